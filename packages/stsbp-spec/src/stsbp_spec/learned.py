"""Numbers that training moves besides the weights: of neurons (neurons/), of projections (synapses/bias.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.grid import CEILING, FLOOR
from stsbp_spec.typing import Float32, Shape
from stsbp_spec.values import real, shown

__all__ = ["Learned"]


@dataclass(frozen=True)
class Learned:
    """A number of a step that is learned, as the weights are: its gradient is a sum over neurons, samples and steps.

    An update ends with the number brought back between `low` and `high`. All three are float32, rounded once, and 0 or
    of a magnitude from 2^-100 to 2^100, so that no library flushes the number.

    Args:
        initial: before the first update.
        low, high: the domain, both ends in it.
        per: `layer`, one number for all neurons, or `channel`, one a channel (of a full connection: one a neuron).
    """

    initial: float
    low: float
    high: float
    per: str = "layer"

    def __post_init__(self) -> None:
        for name in ("low", "high", "initial"):
            value = real(f"{name} of a learned number", getattr(self, name))
            rounded = float(np.float32(value)) if abs(value) <= CEILING else math.inf
            if rounded != 0 and not FLOOR <= abs(rounded) <= CEILING:
                raise SpecError(f"{name} of a learned number must be 0 or from 2^-100 to 2^100, got {value:g}")
            object.__setattr__(self, name, rounded)
        if not self.low <= self.initial <= self.high or self.low == self.high:
            ends = f"low, {self.low:g}, and high, {self.high:g}"
            raise SpecError(f"a learned number begins between {ends}, got initial={self.initial:g}")
        if self.per not in ("layer", "channel"):
            raise SpecError(f"per is 'layer' or 'channel', got {shown(self.per)}")

    def shape(self, output: Shape) -> Shape:
        """Shape of the numbers of a layer whose spikes have the shape `output`, `(C, H, W)` or `(N,)`."""
        return (output[0] if self.per == "channel" else 1,)

    def values(self, output: Shape) -> Float32:
        """The numbers before the first update."""
        return np.full(self.shape(output), self.initial, np.float32)
