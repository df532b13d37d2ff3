#!/usr/bin/env bash
# Experiment 1.5.2
# Question:  Does reading tokens in the blocks carry it without the pointer?
# Builds on: 1.5.0
# Change:    no pointer
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_5_0
flags --pointer False
launch "$@"
