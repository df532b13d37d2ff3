#!/usr/bin/env bash
# Experiment 1.6.16
# Question:  Does the bank pay more where what follows frequent suffixes is counted, too, by the topic of the text?
# Builds on: 1.6.10
# Change:    the 16 tokens that follow 128 places of a frequent suffix most often, by topic, in a group of their own
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_10
flags --num_selected 32 --suffix_often 128 --suffix_often_tokens 16 --suffix_topic_dim 64
launch "$@"
