"""Neuron models."""

from stsbp_spec.neurons.lif import LIF

__all__ = ["LIF"]
