#!/usr/bin/env bash
# Experiment 1.6.11
# Question:  What does a pointer add that copies a token which followed the longest suffixes?
# Builds on: 1.6.9
# Change:    a pointer after the last block
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_9
flags --pointer
launch "$@"
