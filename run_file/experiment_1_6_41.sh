#!/usr/bin/env bash
# Experiment 1.6.41
# Question:  Are edits as exact as those of 1.6.37, if training searches for facts in half of the rows, not in a quarter?
# Builds on: 1.6.37
# Change:    words are searched, and facts read and copied, in every second row; suffixes in all (--memory_every 2)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_37
flags --memory_every 2
launch "$@"
