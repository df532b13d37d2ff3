#!/usr/bin/env bash
# Experiment 1.6.26
# Question:  Does the retrieval decide? The same reading, of entries that n-grams of the text find.
# Builds on: 1.6.25
# Change:    retrieval: product keys -> the newest n-grams, as 1.6.7 has them (2 and 3 tokens, of up to 64 places)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_25
flags --retrieval ngram --retrieval_noise 0.1 --ngram_decay 0.2 --ngram_lengths 2 3 --ngram_max_places 64
launch "$@"
