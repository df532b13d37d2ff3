#!/usr/bin/env bash
# Experiment 1.6.20
# Question:  What do longer entries, read early and late, add to counted suffixes?
# Builds on: 1.6.16
# Change:    entries of 64 tokens; blocks 2 and 7 read them
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_16
flags --knowledge_length 64 --memory_layers 2 7
launch "$@"
