#!/usr/bin/env bash
# Experiment 1.6.30
# Question:  What does a hashed n-gram table add to a bank that holds the training text too?
# Builds on: 1.6.21
# Change:    a hashed n-gram table, 8 heads x 131,072 rows x 64, dropout 0.1, gated into blocks 1 and 4
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_21
flags --ngram_table_rows 131072 --ngram_table_dropout 0.1
launch "$@"
