#!/usr/bin/env bash
# Experiment 1.6.24
# Question:  Is a memory in two blocks of eight better than in all of them?
# Builds on: 1.6.23
# Change:    blocks 2 and 5 read the memory; the other six are those of the plain model
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_23
flags --memory_layers 2 5
launch "$@"
