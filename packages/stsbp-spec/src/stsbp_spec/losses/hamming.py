"""Hamming distance of spike trains, the paper's second loss.

Per sample: `L = sum_t sum_n |o_t - target_t|`, for binary trains the same as `sum (o - target)^2`.
Error, taken at the spikes: `dL/do_t = o_t - target_t`. The factor 2 of the square is left out: that is the constant
which this spec fixes.

Contract order for a batch of B: `do = (1/B)*(o - target)`, `1/B` rounded once from float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stsbp_spec.losses.base import Loss
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float64, UInt8

__all__ = ["Hamming"]


@dataclass(frozen=True)
class Hamming(Loss):
    """Number of steps and neurons at which output and target differ."""

    name: ClassVar[str] = "hamming"

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        result: Float64 = (spikes != targets).sum(axis=(0, -1)).astype(np.float64)
        return result
