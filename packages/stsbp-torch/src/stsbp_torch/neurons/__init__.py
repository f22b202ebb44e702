"""Neuron kernels."""
