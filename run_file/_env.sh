# Sourced by the other scripts: goes to the project's root and sets PYTHON. The first call builds .venv with pip;
# PYTHON=/path/to/python beforehand uses an environment of your own instead, and so does a symbolic link .venv.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

install() { # the environment, where there is none yet
    python3 -m venv .venv \
        && .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt \
        && touch .venv/.installed
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    if [ ! -L .venv ] && { [ ! -e .venv/.installed ] || [ requirements.txt -nt .venv/.installed ]; }; then
        echo "building the environment in .venv (once)"
        waited=0
        install &
        while kill -0 $! 2>/dev/null; do
            sleep 1
            waited=$((waited + 1))
            [ $((waited % 10)) != 0 ] || echo "  $waited s: $(du -sh .venv 2>/dev/null | cut -f1) installed"
        done
        wait $! || { echo "error: pip could not install requirements.txt into .venv" >&2; exit 1; }
    fi
fi
# Modules are compiled at their first use (--no-compile above) and kept so: else each start takes twice as long.
unset PYTHONDONTWRITEBYTECODE
export PYTHON
