#!/usr/bin/env bash
# Builds the environment and runs all tests: under 5 minutes on 2 cores. `--slow` adds those that take longer.
# Other arguments go to pytest: bash run_file/test.sh tests/model -k future
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
"$PYTHON" -c "import pytest, ruff" 2>/dev/null \
    || "$PYTHON" -m pip install --quiet --disable-pip-version-check "pytest>=8" "ruff>=0.9" \
    || { echo "error: pip could not install pytest and ruff" >&2; exit 1; }
marks=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    marks=()
    shift
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet . || { echo "error: run 'ruff format .' first" >&2; exit 1; }
exec "$PYTHON" -m pytest "${marks[@]}" "$@"
