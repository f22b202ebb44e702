"""synapses/psp.py in float32, in the contract's order."""

from __future__ import annotations

import numpy as np

from stsbp_spec.grid import snap
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import AnyArray, Float32

__all__ = ["backward", "forward"]


def forward(psp: PSP, s: AnyArray) -> Float32:
    """Eq. (3a): potentials `[T, ...]` of spike trains."""
    filter = psp.filter()
    a = np.empty(s.shape, np.float32)
    state = np.zeros(s.shape[1:], np.float32)
    for t in range(len(s)):
        state = a[t] = snap(filter.decay * state + filter.gain * s[t].astype(np.float32))
    return a


def backward(psp: PSP, da: Float32) -> Float32:
    """Adjoint: `dL/do` from `dL/da`."""
    filter = psp.filter()
    ds = np.empty_like(da)
    e = np.zeros(da.shape[1:], np.float32)
    for t in reversed(range(len(da))):
        e = snap(filter.decay * e + da[t])
        ds[t] = filter.gain * e
    return ds
