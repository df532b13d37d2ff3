#!/usr/bin/env bash
# Experiment 1.6.3
# Question:  Do the gains of the bank of sentences and of the n-gram table add up?
# Builds on: 1.6.2
# Change:    the n-gram table of 1.6.1 beside the bank
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_2
flags --ngram_table_rows 131072
launch "$@"
