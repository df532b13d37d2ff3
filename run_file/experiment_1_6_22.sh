#!/usr/bin/env bash
# Experiment 1.6.22
# Question:  Do other facts stay when all edits are made, if 16 entries are read and only an entry of the asked subject counts more?
# Builds on: 1.6.18
# Change:    16 entries are read; --pointer_edited counts as far as the text has said what stands before a token
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_18
flags --num_selected 16 --pointer_edited_said
launch "$@"
