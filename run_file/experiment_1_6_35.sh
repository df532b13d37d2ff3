#!/usr/bin/env bash
# Experiment 1.6.35
# Question:  Do questions go by the search more, if training asks about crowded names and in scrambled words?
# Builds on: 1.6.33
# Change:    10 entries are read in place of 12; learned with CROWDED=10000 SCRAMBLED=0.35 KEPT_BACK=0.15 (asked.sh)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_33
flags --num_selected 10
launch "$@"
