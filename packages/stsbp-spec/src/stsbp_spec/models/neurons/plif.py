"""LIF neurons with a learned leak (parametric LIF; Fang et al. 2021), one number per layer or per channel.

u_t = k u_{t-1} (1 - o_{t-1}) + i_t            with reset="zero"
u_t = k (u_{t-1} - V_th o_{t-1}) + i_t         with reset="subtract"
o_t = 1 if u_t >= V_th else 0

`k` starts at `1 - 1/tau_m`. It is learned directly, and every update clips it to [0, 1]. Fang et al. learn the argument
of a sigmoid instead. This project avoids the sigmoid, because `exp` differs between libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, named, snap, spike, where
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons.base import NeuronModel, Step, choice, parameter, steps
from stsbp_spec.models.surrogates.functions import Arctan, Surrogate

__all__ = ["PLIF"]


@dataclass(frozen=True)
class PLIF(NeuronModel):
    """Parameters of a layer of parametric LIF neurons.

    Args:
        tau_m: membrane time constant in steps before the first update, at least 1.
        tau_s: synaptic time constant of the layer's output spikes in steps, at least 1.
        threshold: `V_th`, above 0; finite and at least 2^-100 in float32.
        surrogate: derivative of the spike in the backward pass.
        reset: reset after a spike: `zero` sets the potential to zero, `subtract` subtracts the threshold.
        tau_rise: rise time constant of the synaptic filter in steps, from 1 to less than `tau_s`; 0: the rise is
            immediate.
        psp_gain: gain of the synaptic filter, `normalised` or `unit` (ops/psp.py).
        per: one `decay` per `layer`, or one per `channel` (in a fully connected layer: per neuron).
    """

    name: ClassVar[str] = "plif"
    states: ClassVar[tuple[str, ...]] = ("m",)

    tau_m: float = parameter(8.0, steps)
    tau_s: float = 4.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)
    reset: str = parameter("zero", choice("zero", "subtract"))
    tau_rise: float = 0.0
    per: str = parameter("layer", choice("layer", "channel"))
    psp_gain: str = "normalised"

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"vth": self.threshold}

    def learned(self) -> Mapping[str, Learned]:
        return {"decay": Learned(1 - 1 / self.tau_m, low=0, high=1, per=self.per)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i))
        o = spike(u, p.vth)
        return Step(
            u, o, {"m": where(o, 0, p.decay * u) if self.reset == "zero" else p.decay * (u - where(o, p.vth, 0))}
        )
