#!/usr/bin/env bash
# Experiment 1.5.3
# Question:  Is it the retrieval alone? The same entries, read as 1.4.8 reads them.
# Builds on: 1.5.0
# Change:    fusion: tokens and pointer -> 8-head cross-attention over entry vectors
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_5_0
flags --fusion cross_attention --fusion_scope token --pointer False
launch "$@"
