#!/usr/bin/env bash
# Experiment 1.6.39
# Question:  Does a memory learn as much from a quarter of the rows, and how much faster is its training?
# Builds on: 1.6.35
# Change:    training searches, reads and copies in every fourth row of a micro-batch (--memory_every 4)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_35
flags --memory_every 4
launch "$@"
