#!/usr/bin/env bash
# Experiment 1.6.16
# Question:  [QUESTION]
# Builds on: 1.6.10
# Change:    num_selected -> 32, suffix_often -> 128, suffix_often_tokens -> 16, suffix_topic_dim -> 64
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_10
flags --num_selected 32 --suffix_often 128 --suffix_often_tokens 16 --suffix_topic_dim 64
launch "$@"
