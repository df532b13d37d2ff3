#!/usr/bin/env bash
# Experiment 1.6.14
# Question:  Does a reader choose the right entry if it knows what each entry says that the text has not said?
# Builds on: 1.6.13
# Change:    a token counts less, the more its entry says before it that the recent text has not said (learned weights)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_13
flags --unsaid_tokens
launch "$@"
