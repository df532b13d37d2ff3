#!/usr/bin/env bash
# Experiment 1.6.17
# Question:  Are more edits followed if words of questions weigh little in the search, and the words of a name find partners?
# Builds on: 1.6.15
# Change:    words such as "what" and "they" weigh 1 nat at most; pairs are made with recent words (bm25_pair_recency 0.95)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_15
flags --bm25_pair_recency 0.95 --bm25_common_words what which who whom whose where when how why does do did \
    they their them he she his her it its
launch "$@"
