"""Van Rossum distance of spike trains (van Rossum 2001), the paper's first loss.

Per sample: `L = 1/2 sum_t sum_n (a_t - psp(target)_t)^2` with `a = psp(o)` of Eq. (3a).
Error: `dL/da_t = a_t - psp(target)_t`; then Eq. (13), (17) at the output: `d^_t = dL/da_t + k_s d^_{t+1}` and
`dL/do_t = c_s d^_t`.

Order of operations for a batch of B. The filter is linear, so it runs once on the difference:

    r = snap(k*r + c*(o - target))          t = 0 .. T-1
    e = snap(k*e + r)                       t = T-1 .. 0
    do = (c/B)*e                            c/B rounded once from float64

The device therefore filters once per step, for the error. The reported distance is computed in float64. For this, the
host filters once more, both for the loss and for all comparisons of outputs with targets (`parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Names, snap, unsnapped
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses.base import Loss, LossStep, joined
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Float64, Int64, UInt8

__all__ = ["VanRossum"]


@dataclass(frozen=True)
class VanRossum(Loss):
    """Squared distance of postsynaptic potentials. The time constant is the `tau_s` of the output layer."""

    name: ClassVar[str] = "van-rossum"
    parameters: ClassVar[tuple[str, ...]] = ("k", "c", "scaled")
    states: ClassVar[tuple[str, ...]] = ("r",)
    back_states: ClassVar[tuple[str, ...]] = ("e",)

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        return joined(self.parts(spikes, targets, psp))

    def parts(self, spikes: UInt8, targets: UInt8, psp: PSP, lengths: Int64 | None = None) -> Float64:
        k, c = 1 - 1 / psp.tau_s, 1 / psp.tau_s
        difference = spikes.astype(np.float64) - targets
        r = np.zeros_like(difference[0])
        for d in difference:
            r = k * r + c * d
            d[...] = 0.5 * (r * r)
        if lengths is not None:
            difference *= inside(np.broadcast_to(lengths, difference.shape[1:-1]), len(difference))[..., None]
        return difference

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        gain = 1 / psp.tau_s
        return {"k": 1 - 1 / psp.tau_s, "c": gain, "scaled": 1 / batch / psp.tau_s}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = snap(p.k * s.r + p.c * (x.o - x.target))
        return LossStep({"r": r}, r)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = snap(p.k * s.e + x.r)
        # Not snapped: these errors go to the output neurons next, and their backward pass snaps them.
        return LossStep({"e": e}, unsnapped(p.scaled * e))
