"""Weights, pooling, dropout and the synaptic filter."""
