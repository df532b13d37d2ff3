#!/usr/bin/env bash
# Experiment 1.6.0
# Question:  How well does the dense baseline do with the recipe of today's small models?
# Builds on: 1.4.0
# Change:    Muon for the matrices of the blocks, 8 heads of 64, learning rates swept for both
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_0
flags --n_heads 8 --optimizer muon --learning_rate 2e-3 --muon_lr_scale 1.5
launch "$@"
