#!/usr/bin/env bash
# Experiment 1.6.7
# Question:  Does the memory gain more where the newest n-grams of the text decide which sentences are read?
# Builds on: 1.6.2
# Change:    n-grams of 2 and 3 tokens, of up to 64 places; a match counts a fifth at the next token
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_2
flags --ngram_decay 0.2 --ngram_lengths 2 3 --ngram_max_places 64
launch "$@"
