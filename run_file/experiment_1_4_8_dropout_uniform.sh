#!/usr/bin/env bash
# Experiment 1.4.8.dropout.uniform
# Question:  Is layered dropout better than one rate everywhere?
# Builds on: 1.4.8
# Change:    attention dropout 0.1 and fusion dropout 0.15 -> 0.1 and 0.1
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --fusion_dropout 0.1
launch "$@"
