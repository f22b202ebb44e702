"""Flattening of spikes: `(C, H, W)` as `(N,)`, in this order. Fully connected layers do this themselves (linear.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stsbp_spec.networks.ops.base import Passing, Values
from stsbp_spec.typing import Shape

__all__ = ["Flatten"]


@dataclass(frozen=True)
class Flatten(Passing):
    """Channels, rows and columns as one axis. An input with one axis stays as it is."""

    def infer(self, *inputs: Values) -> Values:
        """The same values."""
        values = self.spikes(inputs)
        return replace(values, shape=self.output_shape(values.shape))

    def output_shape(self, shape: Shape) -> Shape:
        """`(N,)`, the product of `shape`."""
        return (math.prod(shape),)
