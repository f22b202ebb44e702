"""Dropout of spikes: a mask per sample and neuron, the same at every step, from the counter-based generator.

Forward: `s m`, with `m = keep_mask(seed, layer, step, [B, ...], rate)`; backward: `ds m`. The factor `1/(1 - rate)`
would take spikes off their grid, so it is multiplied after the weights, into the gain of the next layer's PSP filter
(`Values.filter`). In evaluation there is no mask and no factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stsbp_spec.errors import SpecError
from stsbp_spec.synapses.base import Passing, Values
from stsbp_spec.typing import Shape
from stsbp_spec.values import real

__all__ = ["MAX_BEFORE", "Dropout", "substream"]

MAX_BEFORE = 16
"""Layers of pooling and dropout before one spiking layer; as many dropout masks have a random stream of their own."""


@dataclass(frozen=True)
class Dropout(Passing):
    """Dropout, its mask constant over the time steps of a sample.

    Args:
        rate: probability that a neuron's spikes are dropped, in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real("a dropout rate", self.rate))
        if not 0 <= self.rate < 1:
            raise SpecError(f"a dropout rate is in [0, 1), got {self.rate:g}")

    def infer(self, *inputs: Values) -> Values:
        """The same values, with the gain of training."""
        values = self.spikes(inputs)
        return replace(values, gain=values.gain * self.gain)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's own shape."""
        return shape

    @property
    def gain(self) -> float:
        """`1 / (1 - rate)`."""
        return 1 / (1 - self.rate)


def substream(layer: int, position: int) -> int:
    """The `layer` of `random.keep_mask` for a dropout in the network: no two masks of a step share bits.

    Args:
        layer: how many spiking layers stand before it, below 2^16, so that `256 * substream` stays below 2^32.
        position: how many layers of pooling and dropout since the last of them, below `MAX_BEFORE`.
    """
    return MAX_BEFORE * layer + position
