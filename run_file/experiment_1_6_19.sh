#!/usr/bin/env bash
# Experiment 1.6.19
# Question:  Do learned product keys find the facts, and without a price in text loss, if words and their pairs are their only input?
# Builds on: 1.6.14
# Change:    product keys over words propose the entries, taught by entries of the bank; the reader alone learns from text
#            (retrieval -> word_keys, memory_lr_scale -> 3); for speed block 5 alone and the pointer read 4 entries, not 8
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_14
flags --retrieval word_keys --memory_layers 5 --num_selected 4 --memory_lr_scale 3
launch "$@"
