"""Max pooling over non-overlapping windows: 1 if any neuron of the window spiked. For counts, it is the largest count.

It pools spikes, before the weights and the PSP filter. It is not the maximum of potentials, which would not commute
with the filter. Rows and columns that fill no window are dropped.

Backward: the first maximum of a window, row by row, receives the error of the window. All other inputs receive zero. In
a silent window, the first maximum is its first input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from stsbp_spec.networks.ops.base import Pool2d, Values

__all__ = ["MaxPool2d"]


@dataclass(frozen=True)
class MaxPool2d(Pool2d):
    """Max pooling with stride equal to the window.

    Args:
        size: rows and columns of the window, an integer or a pair.
    """

    makes_spikes: ClassVar[bool] = True

    def infer(self, *inputs: Values) -> Values:
        """The same kind of values as the input."""
        values = self.spikes(inputs)
        return replace(values, shape=self.output_shape(values.shape))
