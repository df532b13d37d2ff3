#!/usr/bin/env bash
# Experiment 1.6.31
# Question:  Are 12 entries of 28 tokens, and a narrower coverage, enough at a speed of 0.78 of plain?
# Builds on: 1.6.29
# Change:    12 entries of 28 tokens are read in place of 16 of 32; coverage is half as wide
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_29
flags --num_selected 12 --knowledge_length 28 --coverage_dim 128
launch "$@"
