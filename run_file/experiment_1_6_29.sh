#!/usr/bin/env bash
# Experiment 1.6.29
# Question:  Does a pointer need only one block that knows how far each entry is said, to judge statements too?
# Builds on: 1.6.28
# Change:    block 4 adds how far the text has said the best 4 entries (--fusion coverage)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_28
flags --memory_layers 4 --fusion coverage --block_selected 4
launch "$@"
