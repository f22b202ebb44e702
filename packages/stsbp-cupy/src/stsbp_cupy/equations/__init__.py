"""Equations of the spec as CUDA kernels."""
