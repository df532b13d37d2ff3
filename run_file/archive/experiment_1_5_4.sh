#!/usr/bin/env bash
# Experiment 1.5.4
# Question:  Do pairs of rare tokens find the entries with short common names that n-grams miss?
# Builds on: 1.5.0
# Change:    the index also holds the pairs of each entry's three rarest tokens
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_0
flags --ngram_pairs 3
launch "$@"
