#!/usr/bin/env bash
# Builds the environment and runs all tests: under 5 minutes on 2 cores. `--slow` adds those that take longer.
# Other arguments go to pytest: bash run_file/test.sh tests/model -k future
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
"$PYTHON" -c "import pytest, xdist, ruff, hypothesis, pyarrow" 2>/dev/null \
    || "$PYTHON" -m pip install --quiet --disable-pip-version-check "pytest>=8" "pytest-xdist>=3" "ruff>=0.9" "hypothesis>=6" "pyarrow>=15" \
    || { echo "error: pip could not install pytest, pytest-xdist, ruff, hypothesis and pyarrow" >&2; exit 1; }
marks=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    marks=()
    shift
    # The page and the dashboard are tested in Chromium, with fonts for the records' Chinese.
    command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install -y chromium fonts-noto-cjk; } >/dev/null \
        || { echo "error: the slow tests need Chromium: install the package chromium, as root" >&2; exit 1; }
    "$PYTHON" -c "import gradio, playwright" 2>/dev/null \
        || "$PYTHON" -m pip install --quiet --disable-pip-version-check gradio playwright \
        || { echo "error: pip could not install gradio and playwright" >&2; exit 1; }
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet . || { echo "error: run 'ruff format .' first" >&2; exit 1; }
# A worker for each core, up to four: one more costs its imports and gains no time. The tests of a file stay together.
# A worker has one thread: more would wait for each other by turning in circles, which takes the others' time.
workers=$(($(nproc) < 4 ? $(nproc) : 4))
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "${marks[@]}" "$@"
