#!/usr/bin/env bash
# Experiment 1.4.8.heads16
# Question:  Do more, narrower fusion heads do better?
# Builds on: 1.4.8
# Change:    fusion heads: 8 -> 16
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --fusion_heads 16
launch "$@"
