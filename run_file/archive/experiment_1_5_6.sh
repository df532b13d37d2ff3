#!/usr/bin/env bash
# Experiment 1.5.6
# Question:  Do four times as many candidates put the right entry among the four that are read?
# Builds on: 1.5.0
# Change:    candidates 16 -> 64
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_0
flags --num_candidates 64
launch "$@"
