"""The records of the experiments, and the commands about them: python -m experiment --help."""
