#!/usr/bin/env bash
# Experiment 1.5.15
# Question:  Do more candidates answer more questions, when all of them are read?
# Builds on: 1.5.14
# Change:    candidates 16 -> 64, all 64 read instead of 4, from the questions on; the text is learnt as in 1.5.14:
#            EXPERIMENT=1_5_15 TEXT_EXPERIMENT=1_5_14 bash run_file/knowledge.sh
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_5_14
flags --num_candidates 64 --num_selected 64
launch "$@"
