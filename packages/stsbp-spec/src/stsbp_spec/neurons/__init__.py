"""Neuron models."""

from stsbp_spec.neurons.base import NeuronModel
from stsbp_spec.neurons.lif import LIF

NEURONS: dict[str, type[NeuronModel]] = {cls.name: cls for cls in (LIF,)}
"""Every neuron model by its name."""

__all__ = ["LIF", "NEURONS", "NeuronModel"]
