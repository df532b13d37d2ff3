#!/usr/bin/env bash
# Experiment 1.5.8
# Question:  Do normalised queries find better entries?
# Builds on: 1.5.7
# Change:    each half of a query at unit scale
source "$(dirname "${BASH_SOURCE[0]}")/../_base.sh"
builds_on 1_5_7
flags --query_norm
launch "$@"
