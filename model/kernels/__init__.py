"""Triton twins of the memory's hot spots, used on CUDA only; the references in plain torch are in retrieval.py."""
