"""Dropout of spikes: a mask per sample and neuron, the same at every step, from the counter-based generator.

Forward: `s m`, with `m = keep_mask(seed, layer, step, [B, ...], rate)`; backward: `ds m`. The factor `1/(1 - rate)`
would take spikes off their grid, so it is multiplied after the weights, into the gain of the next layer's PSP filter
(`Block.filter`). In evaluation there is no mask and no factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from stsbp_spec.errors import SpecError
from stsbp_spec.typing import Shape
from stsbp_spec.values import real

__all__ = ["Dropout"]


@dataclass(frozen=True)
class Dropout:
    """Dropout, its mask constant over the time steps of a sample.

    Args:
        rate: probability that a neuron's spikes are dropped, in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real("a dropout rate", self.rate))
        if not 0 <= self.rate < 1:
            raise SpecError(f"a dropout rate is in [0, 1), got {self.rate:g}")

    def output_shape(self, shape: Shape) -> Shape:
        """The input's own shape."""
        return shape

    @property
    def gain(self) -> float:
        """`1 / (1 - rate)`."""
        return 1 / (1 - self.rate)
