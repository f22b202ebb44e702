"""Learned parameters besides the weights: of neurons (neurons/) and of projections (ops/psp.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stsbp_spec.contract.grid import CEILING, FLOOR
from stsbp_spec.errors import SpecError
from stsbp_spec.typing import Float32, Shape
from stsbp_spec.validation import real, shown

__all__ = ["Learned", "learned_name"]


@dataclass(frozen=True)
class Learned:
    """A learned parameter of a step. Its gradient is a sum over neurons, samples and steps.

    After an update, the parameter is clipped to `low` and `high`. All three numbers are float32, rounded once. Each is
    0 or has a magnitude from 2^-100 to 2^100, so that no library flushes it.

    Args:
        initial: value before the first update.
        low, high: ends of the domain. Both ends belong to it.
        per: `layer`: one number for all neurons. `channel`: one per channel (in a full connection: one per neuron).
    """

    # Clipped, and not the sigmoid or softplus of a free number: both need `exp`, whose last bits differ between
    # libraries. A checkpoint then has the number that the equation uses.
    initial: float
    low: float
    high: float
    per: str = "layer"

    def __post_init__(self) -> None:
        for name in ("low", "high", "initial"):
            value = real(f"{name} of a learned parameter", getattr(self, name))
            rounded = float(np.float32(value)) if abs(value) <= CEILING else math.inf
            if rounded != 0 and not FLOOR <= abs(rounded) <= CEILING:
                raise SpecError(f"{name} of a learned parameter must be 0 or from 2^-100 to 2^100, got {value:g}")
            object.__setattr__(self, name, rounded)
        if not self.low <= self.initial <= self.high or self.low == self.high:
            bounds_text = f"low, {self.low:g}, and high, {self.high:g}"
            raise SpecError(f"initial of a learned parameter must be between {bounds_text}, got {self.initial:g}")
        if self.per not in ("layer", "channel"):
            raise SpecError(f"per is 'layer' or 'channel', got {shown(self.per)}")

    def shape(self, output: Shape) -> Shape:
        """Shape of the numbers of a layer whose spikes have the shape `output`, `(C, H, W)` or `(N,)`."""
        return (output[0] if self.per == "channel" else 1,)

    def values(self, output: Shape) -> Float32:
        """The initial values."""
        return np.full(self.shape(output), self.initial, np.float32)


def learned_name(index: int, name: str) -> str:
    """A population's name for a learned parameter of the filter of its projection number `index`."""
    return name if index == 0 else f"{name}{index + 1}"
