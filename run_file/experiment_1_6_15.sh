#!/usr/bin/env bash
# Experiment 1.6.15
# Question:  Does a pointer that trusts the search's scores twice as much from the start follow more facts in untaught words?
# Builds on: 1.6.14
# Change:    the pointer multiplies the scores of found entries by 2 (--pointer_scale 2)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_14
flags --pointer_scale 2
launch "$@"
