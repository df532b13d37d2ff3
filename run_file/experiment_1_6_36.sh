#!/usr/bin/env bash
# Experiment 1.6.36
# Question:  How fast are learned product keys, if no block reads tokens and the pointer copies?
# Builds on: 1.6.35
# Change:    the keys of 1.6.19 propose the entries (retrieval -> word_keys, memory_lr_scale -> 3); 4 entries are read
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_35
flags --retrieval word_keys --num_selected 4 --memory_lr_scale 3
launch "$@"
