#!/usr/bin/env bash
# Experiment 1.5.7
# Question:  Are product keys used beside the feed-forward, in two blocks, over whole facts in a grid ordered by content?
# Builds on: 1.4.8
# Change:    feed-forward kept; memory in blocks 2 and 5 with keys of their own; frozen entries of 32 tokens
#            in a grid ordered by content; fusion over a position's own entries
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --fusion_scope token --memory_layers 2 5 --keep_ffn --knowledge_length 32 --freeze_ratio 1.0 \
    --cluster_cache_path dataset/cache/content_order.npz
launch "$@"
