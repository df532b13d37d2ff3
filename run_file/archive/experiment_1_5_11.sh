#!/usr/bin/env bash
# Experiment 1.5.11
# Question:  Do product keys find the right entry when retrieval is supervised?
# Builds on: 1.5.7
# Change:    cross-entropy on row and column of the right entry, in the questions and in 12 rows of entries
#            beside the 48 rows of text; balance loss 0.1 -> 0.01
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_7
flags --retrieval_loss_coef 0.3 --entry_rows 12 --balance_loss_coef 0.01
launch "$@"
