#!/usr/bin/env bash
# Experiment 1.6.38
# Question:  Do learned product keys still find the facts, if training asks them for a quarter of the entries in each step?
# Builds on: 1.6.36
# Change:    1024 entries are asked for in each micro-batch, not 4096 (--finder_entries)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_36
flags --finder_entries 1024
launch "$@"
