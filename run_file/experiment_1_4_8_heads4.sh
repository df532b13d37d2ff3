#!/usr/bin/env bash
# Experiment 1.4.8.heads4
# Question:  Do fewer, wider fusion heads do as well?
# Builds on: 1.4.8
# Change:    fusion heads: 8 -> 4
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --fusion_heads 4
launch "$@"
