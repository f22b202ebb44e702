"""Leaky integrate-and-fire (LIF) neurons with hard reset to zero, after their synaptic filter.

Forward, Eq. (3a), (4), (5), all states zero before t = 0:

    i_t = k i_{t-1} + c z_t                        synaptic filter after the weights, z_t = W o_t of the layer below
    u_t = k_m u_{t-1} (1 - o_{t-1}) + i_t          membrane potential, k_m = 1 - 1/tau_m
    o_t = 1 if u_t >= V_th else 0                  spike

Backward, Eq. (10)-(17), from T-1 down to 0, with `g_t = dL/do_t` through space and `h` the surrogate derivative:

    d~_t = h(u_t - V_th) (g_t - k_m u_t d~_{t+1}) + k_m (1 - o_t) d~_{t+1}      membrane iteration factor
    e_t  = k e_{t+1} + d~_t,   dL/dz_t = c e_t                                  adjoint of the synaptic filter

The contract's order, each line one rounding per operation, `snap` to zero below 2^-100:

    i  = snap(k*i + c*z)                d1 = snap(km*d)
    m  = 0 if o else km*u               p  = snap(u*d1)
    u  = snap(m + i)                    r  = snap(h(u - vth) * (g - p))
    o  = u >= vth                       d  = r + (0 if o else d1)
                                        e  = snap(k*e + d)
                                        dz = c*e

A static input (direct coding) gives one `z` for all steps; its error is the sum of `dz_t` added from T-1 down to 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.grid import FLOOR
from stsbp_spec.surrogates import SURROGATES, Arctan, Surrogate
from stsbp_spec.synapses.psp import PSP, time_constant
from stsbp_spec.values import real, shown

__all__ = ["LIF"]


@dataclass(frozen=True)
class LIF:
    """Parameters of a layer of LIF neurons.

    Args:
        tau_m: membrane time constant in steps, at least 1.
        tau_s: synaptic time constant of the layer's output spikes in steps, at least 1.
        threshold: `V_th`, above 0; finite and at least 2^-100 in float32.
        surrogate: derivative of the spike in the backward pass.
    """

    tau_m: float = 8.0
    tau_s: float = 4.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)

    def __post_init__(self) -> None:
        for name in ("tau_m", "tau_s"):
            object.__setattr__(self, name, time_constant(name, getattr(self, name)))
        object.__setattr__(self, "threshold", real("threshold", self.threshold))
        surrogate: object = self.surrogate
        if not isinstance(surrogate, Surrogate):
            known = ", ".join(f"{cls.__name__}()" for cls in SURROGATES.values())
            raise SpecError(f"a neuron's surrogate is one of {known}, got {shown(surrogate)}")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise SpecError(f"threshold must be a finite number above 0, got {self.threshold:g}")
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.float32(self.threshold)
        if not FLOOR <= rounded < np.inf:
            raise SpecError(f"threshold must be from 2^-100 to the largest float32, 3.4e38, got {self.threshold:g}")

    @property
    def decay(self) -> np.float32:
        """`k_m`, rounded once from float64."""
        return np.float32(1 - 1 / self.tau_m)

    @property
    def psp(self) -> PSP:
        """The filter of this layer's output spikes."""
        return PSP(self.tau_s)
