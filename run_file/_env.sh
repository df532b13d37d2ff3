# Sourced by the other scripts: goes to the project's root and sets PYTHON. The first call builds .venv with pip;
# PYTHON=/path/to/python beforehand uses an environment of your own instead.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    stamp=.venv/.installed
    if [ ! -e "$stamp" ] || [ requirements.txt -nt "$stamp" ]; then
        echo "building the environment in .venv (once)"
        python3 -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
            && touch "$stamp" || { echo "error: pip could not install requirements.txt into .venv" >&2; exit 1; }
    fi
fi
export PYTHON
