#!/usr/bin/env bash
# Experiment 1.6.5
# Question:  How much of 1.6.2's gain is the content of the sentences? (control, trained)
# Builds on: 1.6.2
# Change:    another sentence is read in place of each that was found
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_6_2
flags --bank_control shuffled
launch "$@"
