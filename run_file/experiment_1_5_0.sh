#!/usr/bin/env bash
# Experiment 1.5.0
# Question:  Does the model use the memory when n-grams of the text find entries and it reads and copies their tokens?
# Builds on: 1.4.8
# Change:    retrieval: product keys -> n-grams; fusion: entry vectors -> entry tokens, with a pointer;
#            blocks 2 and 5 read the memory and keep their feed-forward; frozen entries of 32 tokens
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --retrieval ngram --retrieval_noise 0.1 --fusion words --pointer --memory_layers 2 5 --keep_ffn \
    --knowledge_length 32 --freeze_ratio 1.0
launch "$@"
