#!/usr/bin/env bash
# Experiment 1.5.9
# Question:  Does choosing among many candidates by their tokens find better entries?
# Builds on: 1.5.7
# Change:    selection: product-key score -> cosine; candidates 16 -> 64
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_7
flags --selection cosine --num_candidates 64
launch "$@"
