#!/usr/bin/env bash
# Experiment 1.6.10
# Question:  How much of 1.6.9's gain is the next token alone?
# Builds on: 1.6.9
# Change:    one token is read after each place
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_9
flags --suffix_tokens 1
launch "$@"
