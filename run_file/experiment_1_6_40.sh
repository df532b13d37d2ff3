#!/usr/bin/env bash
# Experiment 1.6.40
# Question:  Is one model for facts and text fast, if training searches for facts in a quarter of the rows?
# Builds on: 1.6.37
# Change:    words are searched, and facts read and copied, in every fourth row; suffixes in all (--memory_every 4)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_37
flags --memory_every 4
launch "$@"
