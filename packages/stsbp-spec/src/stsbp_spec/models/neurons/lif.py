"""Leaky integrate-and-fire (LIF) neurons.

Forward pass, Eq. (3a), (4), (5); all states are zero before t = 0:

    i_t = k i_{t-1} + c z_t                        synaptic filter after the weights, z_t = W o_t of the layer below
    u_t = k_m u_{t-1} (1 - o_{t-1}) + i_t          membrane potential, k_m = 1 - 1/tau_m
    o_t = 1 if u_t >= V_th else 0                  spike

Backward pass, Eq. (10)-(17), from T-1 down to 0. `g_t = dL/do_t` from the layer above, `h` the surrogate derivative:

    d~_t = h(u_t - V_th) (g_t - k_m u_t d~_{t+1}) + k_m (1 - o_t) d~_{t+1}      membrane iteration factor
    e_t  = k e_{t+1} + d~_t,   dL/dz_t = c e_t                                  adjoint of the synaptic filter

`step` and `adjoint` below fix the order of operations. Each operation rounds once. With a static input (direct coding),
one `z` serves all steps. Its error is the sum of `dz_t`, added from T-1 down to 0.

With `reset="subtract"`, a spike subtracts the threshold from the potential (soft reset):

    u_t = k_m (u_{t-1} - V_th o_{t-1}) + i_t

The backward pass is then derived (adjoint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, named, snap, spike, unsnapped, where
from stsbp_spec.models.neurons.base import Adjoint, NeuronModel, Step, choice, parameter, steps
from stsbp_spec.models.surrogates.functions import Arctan, Surrogate

__all__ = ["LIF"]


@dataclass(frozen=True)
class LIF(NeuronModel):
    """Parameters of a layer of LIF neurons.

    Args:
        tau_m: membrane time constant in steps, at least 1.
        tau_s: synaptic time constant of the layer's output spikes in steps, at least 1.
        threshold: `V_th`, above 0; finite and at least 2^-100 in float32.
        surrogate: derivative of the spike in the backward pass.
        reset: reset after a spike: `zero` sets the potential to zero, `subtract` subtracts the threshold.
        tau_rise: rise time constant of the synaptic filter in steps, from 1 to less than `tau_s`; 0: the rise is
            immediate.
        psp_gain: gain of the synaptic filter, `normalised` or `unit` (ops/psp.py).
    """

    name: ClassVar[str] = "lif"
    states: ClassVar[tuple[str, ...]] = ("m",)
    carried: ClassVar[tuple[str, ...]] = ("d",)

    tau_m: float = parameter(8.0, steps)
    tau_s: float = 4.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)
    reset: str = parameter("zero", choice("zero", "subtract"))
    tau_rise: float = 0.0
    psp_gain: str = "normalised"

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"km": 1 - 1 / self.tau_m, "vth": self.threshold}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        o = spike(u, p.vth)
        if self.reset == "subtract":
            return Step(u, o, {"m": p.km * (u - where(o, p.vth, 0))})
        # Not snapped: u is 0 or at least 2^-100. A product below 2^-126 has no effect on u = snap(m + i) in any case.
        return Step(u, o, {"m": unsnapped(where(o, 0, p.km * u))})

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Callable[[Expr], Expr]) -> Adjoint | None:
        if self.reset == "subtract":
            return None
        d1 = named("d1", snap(p.km * d.d))
        pulled = named("pulled", snap(u * d1))
        r = named("r", snap(named("h", h(u - p.vth)) * (g - pulled)))
        new = named("d", r + where(spike(u, p.vth), 0, d1))
        # Not snapped: both summands are 0 or at least 2^-100, so their sum is 0 or at least 2^-124.
        return Adjoint(new, {"d": unsnapped(new)})
