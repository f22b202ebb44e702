"""losses/van_rossum.py in float32, in the contract's order."""

from __future__ import annotations

import numpy as np

from stsbp_spec.grid import snap
from stsbp_spec.losses.van_rossum import VanRossum
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float32, UInt8

__all__ = ["error"]


def error(loss: VanRossum, psp: PSP, s: UInt8, targets: UInt8) -> Float32:
    """Eq. (13), (17) of the output layer: `dL/do`, `[T, B, N]`."""
    filter, scaled = psp.filter(), psp.filter(1 / s.shape[1])
    r = np.empty(s.shape, np.float32)
    state = np.zeros(s.shape[1:], np.float32)
    for t in range(len(s)):
        difference = s[t].astype(np.float32) - targets[t].astype(np.float32)
        state = r[t] = snap(filter.decay * state + filter.gain * difference)
    e = np.zeros_like(state)
    for t in reversed(range(len(s))):
        e = snap(filter.decay * e + r[t])
        r[t] = scaled.gain * e
    return r
