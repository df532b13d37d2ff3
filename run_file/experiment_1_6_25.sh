#!/usr/bin/env bash
# Experiment 1.6.25
# Question:  Do entries help more when their tokens are read, not their mean vectors?
# Builds on: 1.6.24
# Change:    fusion: cross-attention over entry vectors -> entry tokens; for that whole sentences: frozen entries of 32 tokens
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_24
flags --fusion words --knowledge_length 32 --freeze_ratio 1.0
launch "$@"
