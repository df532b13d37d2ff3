#!/usr/bin/env bash
# Experiment 1.5.14
# Question:  Does the model use entries that supervised product keys find, when it reads them token by token?
# Builds on: 1.5.12
# Change:    fusion: 8-head cross-attention over entry vectors -> entry tokens; at 9 of 10 positions training reads
#            the entry that the n-grams find; 24 rows of entries
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_5_12
flags --fusion words --teacher_forcing 0.9 --entry_rows 24
launch "$@"
