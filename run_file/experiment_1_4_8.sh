#!/usr/bin/env bash
# Experiment 1.4.8
# Question:  Does cross-attention pick and fuse entries better than a gated MLP?
# Builds on: 1.4.7
# Change:    fusion: gated MLP -> 8-head cross-attention over all positions so far
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_7
flags --fusion cross_attention --fusion_scope sequence --fusion_heads 8 --attention_dropout 0.1
launch "$@"
