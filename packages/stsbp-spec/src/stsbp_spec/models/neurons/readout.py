"""A readout: leaky integrators without spikes. Their potentials are the output of a network.

    u_t = k_m u_{t-1} + i_t,   k_m = 1 - 1/tau_m          i_t: the filtered current, as in every neuron

A loss of potentials (losses/cross_entropy.py) gives `g_t = dL/du_t`. The backward pass is linear:

    d_t = g_t + k_m d_{t+1}

A readout can only be the last layer of a network. Its spikes are always 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, named, snap, spike, unsnapped
from stsbp_spec.models.neurons.base import Adjoint, NeuronModel, Step, parameter, steps
from stsbp_spec.models.surrogates.functions import Arctan, Surrogate

__all__ = ["Readout"]


@dataclass(frozen=True)
class Readout(NeuronModel):
    """Parameters of a layer of leaky integrators.

    Args:
        tau_m: membrane time constant in steps, at least 1.
        tau_s, threshold, surrogate, tau_rise, psp_gain: parameters that every model has. They have no effect here.
    """

    name: ClassVar[str] = "readout"
    makes_spikes: ClassVar[bool] = False
    states: ClassVar[tuple[str, ...]] = ("m",)
    carried: ClassVar[tuple[str, ...]] = ("d",)

    tau_m: float = parameter(8.0, steps)
    tau_s: float = 4.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)
    tau_rise: float = 0.0
    psp_gain: str = "normalised"

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"km": 1 - 1 / self.tau_m, "never": np.finfo(np.float32).max}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        # Not snapped: u is 0 or at least 2^-100. A product below 2^-126 has no effect on u = snap(m + i) in any case.
        return Step(u, spike(u, p.never), {"m": unsnapped(p.km * u)})

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Callable[[Expr], Expr]) -> Adjoint:
        """`g` is `dL/du` here."""
        new = named("d", snap(g + snap(p.km * d.d)))
        return Adjoint(new, {"d": new})
