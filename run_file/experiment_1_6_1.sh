#!/usr/bin/env bash
# Experiment 1.6.1
# Question:  What do learned vectors of the last 2 and 3 tokens gain on running text?
# Builds on: 1.6.0
# Change:    a hashed n-gram table, 8 heads x 131,072 rows x 64, gated into blocks 1 and 4
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_0
flags --ngram_table_rows 131072
launch "$@"
