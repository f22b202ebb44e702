"""Initial weights: Kaiming-uniform from the counter-based generator, the same bits on every machine.

`W = gain sqrt(6 / fan_in) (2 v - 1) / area`, with `v` uniform in (0, 1). The standard deviation is therefore
`gain sqrt(2 / fan_in)` (He et al. 2015) if `area` is 1. `area` is the sum over time of the potential of one spike. It
is 1, unless the gain of the synapse is `unit` (ops/psp.py). The division makes training start alike with both
gains. The weights are computed in float64 and rounded once. Learned parameters of neurons start at the values that
their model gives. Learned delays are uniform in `(0, maximum)`, rounded once. Running statistics of batch normalisation
start with mean 0 and variance 1.
"""

from __future__ import annotations

import math

import numpy as np

from stsbp_spec.contract.grid import CEILING
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.engine.checks import check_network
from stsbp_spec.errors import SpecError
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32
from stsbp_spec.validation import real

__all__ = ["DEFAULT_GAIN", "initial_weights"]

DEFAULT_GAIN = 1.5
"""Spikes are sparse. A gain above 1 makes every layer fire at the start."""

RECURRENT_GAIN = 0.5
"""Gain of the recurrent weights of a population, relative to the gain of all weights."""


def initial_weights(network: NetworkSpec, seed: int, gain: float = DEFAULT_GAIN) -> dict[str, Float32]:
    """Initial master weights `[out, ...]`, other learned parameters and running statistics: float32 by name.

    Raises:
        SpecError: `network` is not a network, `gain` not a number, or with this gain, weights would not be below 2^100.
    """
    check_network(network)
    gain = real("gain", gain)
    weights, recurrent = {}, {name for names in network.graph.recurrent.values() for name in names}
    for projection in network.graph.projections:
        if projection.shares is not None:
            continue
        v = uniform(seed, Stream.INIT, math.prod(projection.weight_shape), substream=projection.index)
        bound = gain * math.sqrt(6 / projection.fan_in) * (RECURRENT_GAIN if projection.name in recurrent else 1.0)
        if projection.input.pending is not None and projection.synapse.norm is None:
            bound /= projection.input.pending.area
        if not bound < CEILING:
            raise SpecError(
                f"the initial weights of layer {projection.name} must be below 2^100, and init_gain {gain:g} makes "
                "them larger; give a smaller init_gain"
            )
        weights[projection.name] = (bound * (2 * v - 1)).astype(np.float32).reshape(projection.weight_shape)
    for name, parameter in network.parameters.items():
        if parameter.learned is not None:
            weights[name] = np.full(parameter.shape, parameter.learned.initial, np.float32)
    for index, (name, maximum) in enumerate(network.graph.delays.items()):
        v = uniform(seed, Stream.DELAYS, math.prod(network.parameters[name].shape), substream=index)
        weights[name] = (maximum * v).astype(np.float32)
    return {name: weights[name] for name in network.parameters} | {
        name: x.copy() for name, x in network.statistics.items()
    }
