#!/usr/bin/env bash
# Experiment 1.6.37
# Question:  Does one model answer facts as 1.6.35 does, and gain on text as 1.6.21 does, if it has both searches?
# Builds on: 1.6.35
# Change:    blocks 2 and 7 read what follows the longest suffix, as in 1.6.20 (--suffix_layers); no fusion dropout
#
# The bank is a folder: the facts, and the passages of the training text, which suffixes alone find (asked.sh PASSAGES=1).
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_35
flags --suffix_layers 2 7 --suffix_selected 32 --suffix_candidates 32 --suffix_tokens 1 --suffix_often 128 \
    --suffix_often_tokens 16 --suffix_topic_dim 64 --fusion_dropout 0
launch "$@"
