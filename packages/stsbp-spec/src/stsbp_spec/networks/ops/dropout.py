"""Dropout of spikes: a mask per sample and neuron, the same at every step, from the counter-based generator.

Forward: `s m`, with `m = keep_mask(seed, layer, step, [B, ...], rate)`. Backward: `ds m`. Multiplying spikes by
`1/(1 - rate)` would move them off their grid. The factor is therefore applied after the weights, in the gain of the PSP
filter of the next layer (`Values.filter`). In evaluation, there is neither mask nor factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from stsbp_spec.errors import SpecError
from stsbp_spec.networks.ops.base import Passing, Values
from stsbp_spec.typing import Shape
from stsbp_spec.validation import real

__all__ = ["MAX_BEFORE", "Dropout", "substream"]

MAX_BEFORE = 16
"""Number of nodes after the input or a population that may be dropout. Each dropout mask has its own random stream."""


@dataclass(frozen=True)
class Dropout(Passing):
    """Dropout. The mask of a sample is the same at all time steps.

    Args:
        rate: probability that a neuron's spikes are dropped, in [0, 1).
    """

    keeps_bytes: ClassVar[bool] = True

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real("a dropout rate", self.rate))
        if not 0 <= self.rate < 1:
            raise SpecError(f"a dropout rate is in [0, 1), got {self.rate:g}")

    def infer(self, *inputs: Values) -> Values:
        """The same values, with the training gain."""
        values = self.spikes(inputs)
        return replace(values, gain=values.gain * self.gain)

    def check_position(self, position: int) -> None:
        """Raise `SpecError` unless every dropout up to this position has a substream of its own."""
        if position >= MAX_BEFORE:
            raise SpecError(
                f"dropout must be among the first {MAX_BEFORE} nodes after the input or a population, but it is number "
                f"{position + 1}; put it earlier"
            )

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of the input."""
        return shape

    @property
    def gain(self) -> float:
        """`1 / (1 - rate)`."""
        return 1 / (1 - self.rate)


def substream(layer: int, position: int) -> int:
    """The `layer` argument of `random.keep_mask` for a dropout in the network. No two masks of a step share bits.

    Args:
        layer: number of spiking layers before the dropout, below 2^16, so that `256 * substream` stays below 2^32.
        position: number of nodes since the last of these, or since the input, below `MAX_BEFORE`.
    """
    return MAX_BEFORE * layer + position
