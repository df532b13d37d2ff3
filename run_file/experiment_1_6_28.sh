#!/usr/bin/env bash
# Experiment 1.6.28
# Question:  Do blocks need to read entries at all, if a pointer copies from them?
# Builds on: 1.6.22
# Change:    no block reads (--memory_layers -1): the pointer alone
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_22
flags --memory_layers -1
launch "$@"
