#!/usr/bin/env bash
# Experiment 1.6.33
# Question:  Does running text pay less for it, if the state decides how much the scores of the search count?
# Builds on: 1.6.32
# Change:    the scale of the scores depends on the state (--pointer_state_scale)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_32
flags --pointer_state_scale
launch "$@"
