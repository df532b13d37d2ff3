"""Show, edit and undo entries in the memory of a trained run: `python -m editing --help`."""
