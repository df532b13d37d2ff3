"""Triton twins of the two hot spots of the memory; needed on CUDA only. Each has its reference in plain torch beside it."""
