"""Weights, pooling, dropout and normalisation, with kernels for sparse and for dense inputs."""
