#!/usr/bin/env bash
# Experiment 1.4.7
# Question:  Does a bank of sentences, joined by a gated MLP, lower the loss?
# Builds on: 1.4.0
# Change:    the memory takes the place of the feed-forward
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_0
flags --model_type model_memory --fusion gated_mlp --fusion_scope token --selection product_key \
    --num_candidates 16 --num_selected 4 --fusion_dropout 0.15 --freeze_ratio 0.2 \
    --knowledge_num 1048576 --knowledge_length 8 --balance_loss_coef 0.1 \
    --database_init_path dataset/stable/sentence_trex_data.json
launch "$@"
