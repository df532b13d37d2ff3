#!/usr/bin/env bash
# Experiment 1.4.8.concat
# Question:  Is attention needed, or does concatenating the entries do as well?
# Builds on: 1.4.8
# Change:    fusion: cross-attention -> concatenation and one linear map
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --fusion concat --fusion_scope token
launch "$@"
