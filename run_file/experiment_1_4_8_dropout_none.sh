#!/usr/bin/env bash
# Experiment 1.4.8.dropout.none
# Question:  Is dropout in the fusion needed at all?
# Builds on: 1.4.8
# Change:    attention dropout 0.1 and fusion dropout 0.15 -> 0 and 0
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --attention_dropout 0.0 --fusion_dropout 0.0
launch "$@"
