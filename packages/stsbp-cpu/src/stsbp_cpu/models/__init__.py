"""Kernels of neurons and of the optimiser."""
