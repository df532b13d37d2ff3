#!/usr/bin/env bash
# Experiment 1.6.18
# Question:  Are more edits followed, and do other facts stay, if the pointer prefers entries that were edited?
# Builds on: 1.6.17
# Change:    the pointer adds 2 nats to entries edited since the training; training is that of 1.6.17 (--pointer_edited 2)
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_17
flags --pointer_edited 2
launch "$@"
