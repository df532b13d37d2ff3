#!/usr/bin/env bash
# Experiment 1.6.32
# Question:  Do questions in unknown wordings go by the search more, if training now and then hides the tokens of entries from the pointer?
# Builds on: 1.6.31
# Change:    at 30 % of the positions of training the pointer does not see which tokens the entries have (--pointer_word_dropout 0.3)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_31
flags --pointer_word_dropout 0.3
launch "$@"
