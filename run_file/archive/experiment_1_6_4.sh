#!/usr/bin/env bash
# Experiment 1.6.4
# Question:  How much of 1.6.1's gain is the table's content? (control)
# Builds on: 1.6.1
# Change:    each head of the table has a single row
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_1
flags --ngram_table_rows 1
launch "$@"
