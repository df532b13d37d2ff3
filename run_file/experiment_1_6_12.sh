#!/usr/bin/env bash
# Experiment 1.6.12
# Question:  Are facts found, read and copied in whatever words they are asked, if rare words find them?
# Builds on: 1.6.0
# Change:    blocks 2 and 5 read the 8 entries that rank best by BM25, token by token, and a pointer copies from them
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_0
flags --model_type model_memory --retrieval bm25 --retrieval_noise 0.1 --fusion words --pointer --memory_layers 2 5 \
    --keep_ffn --num_candidates 64 --num_selected 8 --knowledge_num 1048576 --knowledge_length 32 --freeze_ratio 1.0 \
    --database_init_path dataset/stable/sentence_trex_data.json
launch "$@"
