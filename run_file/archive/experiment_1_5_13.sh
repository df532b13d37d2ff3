#!/usr/bin/env bash
# Experiment 1.5.13
# Question:  Does supervised retrieval choose well among many candidates by their tokens?
# Builds on: 1.5.12
# Change:    selection: product-key score -> cosine; candidates 16 -> 64
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_12
flags --selection cosine --num_candidates 64
launch "$@"
