"""neurons/lif.py in float32, in the contract's order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stsbp_spec.grid import snap
from stsbp_spec.neurons.lif import LIF
from stsbp_spec.synapses.psp import Filter
from stsbp_spec.typing import Float32, UInt8

__all__ = ["Residuals", "backward", "forward"]


class Residuals(NamedTuple):
    """Membrane potentials and spikes, `[T, B, ...]`, and whether `z` was static."""

    u: Float32
    spikes: UInt8
    static: bool


def forward(neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, Residuals]:
    """Eq. (3a), (4), (5): spikes from `z` `[1 or T, B, ...]`."""
    km, vth = neuron.decay, np.float32(neuron.threshold)
    u = np.empty((steps, *z.shape[1:]), np.float32)
    spikes = np.empty(u.shape, np.uint8)
    i = np.zeros(z.shape[1:], np.float32)
    m = np.zeros_like(i)
    for t in range(steps):
        i = snap(filter.decay * i + filter.gain * z[t % len(z)])
        u[t] = snap(m + i)
        spikes[t] = u[t] >= vth
        m = np.where(spikes[t] != 0, np.float32(0), km * u[t])
    return spikes, Residuals(u, spikes, static=len(z) == 1 and steps > 1)


def backward(neuron: LIF, filter: Filter, residuals: Residuals, ds: Float32) -> Float32:
    """Eq. (10)-(17): `dL/dz` from `g = dL/do`."""
    u, spikes, static = residuals
    km, vth = neuron.decay, np.float32(neuron.threshold)
    dz = np.zeros(u.shape if not static else (1, *u.shape[1:]), np.float32)
    d = np.zeros(u.shape[1:], np.float32)
    e = np.zeros_like(d)
    for t in reversed(range(len(u))):
        h = neuron.surrogate.derivative(u[t] - vth)
        d1 = snap(km * d)
        p = snap(u[t] * d1)
        r = snap(h * (ds[t] - p))
        d = r + np.where(spikes[t] != 0, np.float32(0), d1)
        e = snap(filter.decay * e + d)
        if static:
            dz[0] += filter.gain * e
        else:
            dz[t] = filter.gain * e
    return dz
