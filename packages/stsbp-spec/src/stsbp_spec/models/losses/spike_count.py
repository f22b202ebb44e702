"""Spike count (rate) loss: the STBP baseline that the paper compares with (Wu et al. 2018).

Per sample: `L = 1/2 sum_n (1/T sum_t o_t - 1/T sum_t target_t)^2`.
Error: `dL/do_t = (sum_t o_t - sum_t target_t) / T^2`, the same at every step.

Order of operations for a batch of B: `do = (1/(T T B))*(count - target count)`. Counts are exact, and the factor is
rounded once from float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Names, unsnapped
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Float64, UInt8

__all__ = ["SpikeCount"]


@dataclass(frozen=True)
class SpikeCount(Loss):
    """Squared distance of firing rates. The times of the spikes do not matter."""

    name: ClassVar[str] = "spike-count"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        difference = spikes.sum(axis=0, dtype=np.int64) - targets.sum(axis=0, dtype=np.int64)
        # Make the rows contiguous, because numpy's order of addition within a row depends on the memory layout.
        difference = np.ascontiguousarray(difference)
        result: Float64 = 0.5 * np.square(difference / len(spikes)).sum(axis=-1)
        return result

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 1 / (steps * steps * batch)}

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        # Not snapped: the result is a multiple of 1/(T T B).
        return LossStep({}, unsnapped(p.scale * (x.count - x.target_count)))
