#!/usr/bin/env bash
# Experiment 1.6.17
# Question:  Are more edits followed if entries are also found by the words that questions have for theirs?
# Builds on: 1.6.15
# Change:    entries with "occupation" also have "job"; "what" weighs little; near words make pairs, also the current one
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_15
flags --pointer_scale 1 --bm25_pair_recency 0.95 --bm25_common_words what which who whom whose where when how why does do did \
    they their them he she his her it its tell me about you your can could would i we us my our please
flags --bm25_current_word --bm25_also_words $(< "$folder/../dataset/also_words.txt")
launch "$@"
