#!/usr/bin/env bash
# Experiment 1.6.34
# Question:  What does a smaller table beside the bank cost, and does it gain?
# Builds on: 1.6.30
# Change:    32,768 rows a head in place of 131,072, gated into block 1 alone
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_30
flags --ngram_table_rows 32768 --ngram_table_layers 1
launch "$@"
