"""Segments of a network as differentiable functions, memory layout, CUDA graphs."""
