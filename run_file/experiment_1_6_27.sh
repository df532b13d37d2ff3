#!/usr/bin/env bash
# Experiment 1.6.27
# Question:  Do two blocks need all 16 entries? They read the best 4, the pointer still reads 16.
# Builds on: 1.6.22
# Change:    blocks read 4 entries, the pointer 16 (--block_selected 4)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_22
flags --block_selected 4
launch "$@"
