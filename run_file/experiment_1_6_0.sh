#!/usr/bin/env bash
# Experiment 1.6.0
# Question:  How well does the dense baseline do with the recipe of today's small models?
# Builds on: 1.4.0
# Change:    Muon, 8 heads of 64, query-key norm, residual scalars, squared ReLU, soft-cap, linear fall to zero, no accumulation
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_0
flags --n_heads 8 --qk_norm --residual_scalars --ffn_activation relu2 --logit_softcap 15 \
    --optimizer muon --learning_rate 3e-3 --muon_lr_scale 1 --lr_schedule linear --min_lr_ratio 0 \
    --accumulation_steps 1
launch "$@"
