#!/usr/bin/env bash
# Experiment 1.4.0
# Question:  How well does the dense baseline do on this data?
# Builds on: none
# Change:    none; every record compares with this run
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
flags --model_type model_original
launch "$@"
