"""Bias of a projection: `x_t = g z_t + b`, then the filter. `b` is one number per channel (dense layers: per neuron).

`g` is the training gain, the `1/(1 - rate)` of dropout. Without a bias, the gain is part of the filter's constant
(ops/psp.py). With a bias it is not, because it must not scale the bias. Order of operations:
`x = snap(snap(g z) + b)`, without `g` if it is 1. Backward: `db = sum dx` over steps, samples and positions,
`dz = g dx`.

A bias starts at 0, does not decay, and stays between -2^100 and 2^100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stsbp_spec.contract.grid import CEILING
from stsbp_spec.equations.expressions import Expr, Names, named, snap, unsnapped
from stsbp_spec.models.learned import Learned
from stsbp_spec.networks.ops.psp import FilterAdjoint, FilterStep, SynapticFilter

__all__ = ["BIAS", "Biased"]

# Not on the weight grid, which makes sums independent of their order: a bias is added once, to an exact sum.
BIAS = Learned(0.0, low=-CEILING, high=CEILING, per="channel")


@dataclass(frozen=True)
class Biased(SynapticFilter):
    """A filter whose input is `gain z + bias`.

    Args:
        filter: the filter, without a gain of its own.
        gain: training gain, float32.
    """

    filter: SynapticFilter
    gain: np.float32

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.filter.states

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.filter.carried

    def constants(self) -> Mapping[str, float | np.float32]:
        gain = {"gain": self.gain} if self.gain != 1 else {}
        return {**self.filter.constants(), **gain}

    def learned(self) -> Mapping[str, Learned]:
        return {"bias": BIAS}

    def step(self, p: Names, s: Names, z: Expr) -> FilterStep:
        # Other libraries also add the bias before the filter (NIR: `tau_syn i' = -i + W o + b`).
        weighted = snap(p.gain * z) if self.gain != 1 else z
        return self.filter.step(p, s, named("x", snap(weighted + p.bias)))

    def adjoint(self, p: Names, d: Names, current: Expr) -> FilterAdjoint | None:
        adjoint = self.filter.adjoint(p, d, current)
        if adjoint is None:
            return None
        dx = adjoint.dz.args[0] if adjoint.dz.op == "unsnapped" else adjoint.dz
        dz = unsnapped(p.gain * dx) if self.gain != 1 else adjoint.dz
        return FilterAdjoint(adjoint.carried, dz, {"bias": adjoint.dz})
