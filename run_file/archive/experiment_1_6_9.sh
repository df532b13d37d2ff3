#!/usr/bin/env bash
# Experiment 1.6.9
# Question:  Does the memory pay where each position reads what followed the longest suffixes of the text?
# Builds on: 1.6.2
# Change:    suffix index in place of n-grams; 16 places a position, 4 tokens after each; no dropout of what is read
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_2
drop --retrieval_noise
flags --retrieval suffix --fusion continuations --num_candidates 32 --num_selected 16 --suffix_tokens 4 --fusion_dropout 0
launch "$@"
