#!/usr/bin/env bash
# Experiment 1.5.1
# Question:  Does the pointer alone carry the knowledge?
# Builds on: 1.5.0
# Change:    no block reads the memory
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_5_0
flags --memory_layers -1
launch "$@"
