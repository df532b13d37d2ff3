#!/usr/bin/env bash
# Experiment 1.6.13
# Question:  Is the right word copied in any wording if a reader knows the places of an entry's tokens?
# Builds on: 1.6.12
# Change:    queries also compare a token's distance from the entry's end, and whether the text has said it
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_12
flags --token_places
launch "$@"
