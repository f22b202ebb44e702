"""Mean squared error of the potentials of a readout (neurons/readout.py), for targets that are real numbers.

Per sample: `L = 1/(T*N) sum_t sum_n (u_t - y_t)^2`, `T` the steps and `N` the neurons of the sample.

Error for a batch of B, in this order of operations:

    e = snap(u - y)
    dL/du = scale*e                      scale = 2/(T*N*B), rounded once from float64

`e` is 0 or at least 2^-100, so it does not matter whether a library keeps subnormal targets: beside a potential, which
is 0 or at least 2^-100, they have no effect. The reported loss is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from stsbp_spec.equations.expressions import Expr, Names, snap, unsnapped
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.networks.ops.psp import PSP

__all__ = ["MeanSquaredError"]


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Mean squared error over all steps and outputs of a sample."""

    name: ClassVar[str] = "mse"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)
    of_potentials: ClassVar[bool] = True
    real_targets: ClassVar[bool] = True

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return self.layer_constants(psp, steps, batch, 1)

    def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
        return {"scale": 2 / (steps * neurons * batch)}

    def measure(self, p: Names, x: Names) -> Expr:
        e = x.o - x.target
        return 0.5 * p.scale * (e * e)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = snap(x.o - x.target)
        # Not snapped: the backward pass of the readout, which reads these errors, snaps them.
        return LossStep({}, unsnapped(p.scale * e))
