"""LIF neurons with an adaptive threshold (ALIF; Bellec et al. 2018). Every spike raises it, and it decays back.

u_t     = k_m u_{t-1} (1 - o_{t-1}) + i_t      with reset="zero", k_m = 1 - 1/tau_m
u_t     = k_m (u_{t-1} - V_t-1 o_{t-1}) + i_t  with reset="subtract"
V_t     = V_th + beta a_t                      threshold
o_t     = 1 if u_t >= V_t else 0
a_{t+1} = k_a a_t + (1 - k_a) o_t              adaptation, k_a = 1 - 1/tau_a
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, named, snap, spike, where
from stsbp_spec.models.neurons.base import NeuronModel, Step, above_zero, choice, parameter, steps
from stsbp_spec.models.surrogates.functions import Arctan, Surrogate

__all__ = ["ALIF"]


@dataclass(frozen=True)
class ALIF(NeuronModel):
    """Parameters of a layer of ALIF neurons.

    Args:
        tau_m: membrane time constant in steps, at least 1.
        tau_s: synaptic time constant of the layer's output spikes in steps, at least 1.
        threshold: `V_th`, the threshold of a neuron that has not spiked; above 0, finite and at least 2^-100 in
            float32.
        surrogate: derivative of the spike in the backward pass.
        reset: reset after a spike: `zero` sets the potential to zero, `subtract` subtracts the threshold.
        tau_rise: rise time constant of the synaptic filter in steps, from 1 to less than `tau_s`; 0: the rise is
            immediate.
        psp_gain: gain of the synaptic filter, `normalised` or `unit` (ops/psp.py).
        tau_a: time constant of the adaptation in steps, at least 1.
        beta: limit of the increase of the threshold if the neuron spikes at every step; above 0.
    """

    name: ClassVar[str] = "alif"
    states: ClassVar[tuple[str, ...]] = ("m", "a")

    tau_m: float = parameter(8.0, steps)
    tau_s: float = 4.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)
    reset: str = parameter("zero", choice("zero", "subtract"))
    tau_rise: float = 0.0
    tau_a: float = parameter(20.0, steps)
    beta: float = parameter(1.6, above_zero)
    psp_gain: str = "normalised"

    def constants(self) -> Mapping[str, float | np.float32]:
        decay = 1 - 1 / self.tau_a
        return {"km": 1 - 1 / self.tau_m, "vth": self.threshold, "ka": decay, "ca": 1 - decay, "beta": self.beta}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        threshold = named("threshold", p.vth + p.beta * s.a)
        o = spike(u, threshold)
        m = where(o, 0, p.km * u) if self.reset == "zero" else p.km * (u - where(o, threshold, 0))
        return Step(u, o, {"m": m, "a": p.ka * s.a + where(o, p.ca, 0)})
