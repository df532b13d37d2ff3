#!/usr/bin/env bash
# Experiment 1.4.10
# Question:  Does the paper's selection, with entries rewritten during training, use the bank better?
# Builds on: 1.4.7
# Change:    selection: product-key scores, 4 entries -> cosine re-scoring and straight-through Gumbel, 1 entry;
#            similarity and diversity losses; entries follow a moving average
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_7
flags --selection gumbel --num_selected 1 --ema_interval 100 --ema_decay 0.9 \
    --similarity_loss_coef 0.1 --diversity_loss_coef 0.05
launch "$@"
