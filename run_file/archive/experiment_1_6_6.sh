#!/usr/bin/env bash
# Experiment 1.6.6
# Question:  What would a plain model with as many parameters as 1.6.1 gain? (control)
# Builds on: 1.6.0
# Change:    9 blocks of width 896 with 14 heads: 94 M parameters
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_0
flags --dim 896 --n_layers 9 --n_heads 14
launch "$@"
