#!/usr/bin/env bash
# Experiment 1.6.2
# Question:  What does a bank of real sentences gain on running text, against the strong plain model?
# Builds on: 1.6.0
# Change:    blocks 2 and 5 read sentences of other articles, found by n-grams, token by token (as 1.5.2)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_0
flags --model_type model_memory --retrieval ngram --retrieval_noise 0.1 --fusion words --memory_layers 2 5 --keep_ffn \
    --num_candidates 16 --num_selected 4 --knowledge_num 1048576 --knowledge_length 32 --freeze_ratio 1.0 \
    --database_init_path dataset/stable/wiki_knowledge.jsonl
launch "$@"
