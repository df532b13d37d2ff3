#!/usr/bin/env bash
# Experiment 1.6.8
# Question:  Does the memory gain more, and train faster, where the longest n-grams of the text choose the sentences?
# Builds on: 1.6.7
# Change:    n-grams of 1 to 4 tokens, however common; 16 places a position, those of the longest n-gram first
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_7
flags --ngram_lengths 1 2 3 4 --ngram_max_places 100000 --ngram_max_matches 16
launch "$@"
