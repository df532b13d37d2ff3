#!/usr/bin/env bash
# Experiment 1.5.12
# Question:  Is the right entry easier to find in a grid whose rows share a rare token?
# Builds on: 1.5.11
# Change:    rows of the grid: clusters -> entries that share the rarest of their first 8 tokens
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_11
flags --cluster_cache_path dataset/cache/word_order.npz --cluster_words 8
launch "$@"
