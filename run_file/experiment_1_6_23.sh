#!/usr/bin/env bash
# Experiment 1.6.23
# Question:  Does 1.4.8 stop losing to the plain model when its blocks keep their feed-forward?
# Builds on: 1.4.8
# Change:    feed-forward kept: the memory stands beside it, not in its place
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_4_8
flags --keep_ffn
launch "$@"
