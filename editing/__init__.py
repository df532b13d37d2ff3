"""Read, edit and undo what a trained run knows: `python -m editing --help`."""
