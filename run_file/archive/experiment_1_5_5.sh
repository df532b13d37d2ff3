#!/usr/bin/env bash
# Experiment 1.5.5
# Question:  Are entries of 16 tokens enough?
# Builds on: 1.5.0
# Change:    entries of 32 tokens -> 16
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_0
flags --knowledge_length 16
launch "$@"
