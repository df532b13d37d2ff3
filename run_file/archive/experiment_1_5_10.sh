#!/usr/bin/env bash
# Experiment 1.5.10
# Question:  Do queries and sub-keys need a larger learning rate?
# Builds on: 1.5.7
# Change:    learning rate of queries and sub-keys x 10
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_7
flags --memory_lr_scale 10
launch "$@"
