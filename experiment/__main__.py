"""`python -m experiment`: the commands of `runs.__main__`, where the records are."""

from common.cli import run_command
from runs.__main__ import main

run_command(main)
