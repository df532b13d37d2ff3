#!/usr/bin/env bash
# Experiment 1.6.21
# Question:  What does the training text itself add as a part of the bank, if no position reads its own document?
# Builds on: 1.6.20
# Change:    the bank also holds the passages of the training text; the best learning rate of plain
#
# The bank is a folder: mkdir dataset/stable/wiki_bank; put the sentences of other articles there, and
#   python -m dataset.passages dataset/stable/wiki_train.jsonl --out dataset/stable/wiki_bank/passages.jsonl
source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"
builds_on 1_6_20
flags --learning_rate 4.5e-3 --knowledge_num 1950532 --database_init_path dataset/stable/wiki_bank
launch "$@"
