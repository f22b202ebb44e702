"""Hamming distance of spike trains, the paper's second loss.

Per sample: `L = sum_t sum_n |o_t - target_t|`. For binary trains, this equals `sum (o - target)^2`.
Error: `dL/do_t = o_t - target_t`. The factor 2 of the derivative of the square is left out; this convention is part of
the spec.

Order of operations for a batch of B: `do = (1/B)*(o - target)`, with `1/B` rounded once from float64.
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

__all__ = ["Hamming"]


@dataclass(frozen=True)
class Hamming(Loss):
    """Number of pairs of step and neuron at which output and target differ."""

    name: ClassVar[str] = "hamming"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        result: Float64 = (spikes != targets).sum(axis=(0, -1)).astype(np.float64)
        return result

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        # Without the 2 of the derivative, which would only change the best learning rate.
        return {"scale": 1 / batch}

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        # Not snapped: the result is a multiple of 1/B.
        return LossStep({}, unsnapped(p.scale * (x.o - x.target)))
