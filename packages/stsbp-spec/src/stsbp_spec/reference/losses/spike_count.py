"""losses/spike_count.py in float32, in the contract's order."""

from __future__ import annotations

import numpy as np

from stsbp_spec.losses.spike_count import SpikeCount
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float32, UInt8

__all__ = ["error"]


def error(loss: SpikeCount, psp: PSP, s: UInt8, targets: UInt8) -> Float32:
    """`dL/do = (count - target count) / (T^2 B)`, the same at every step, `[T, B, N]`."""
    steps, batch = s.shape[:2]
    difference = s.sum(axis=0, dtype=np.float32) - targets.sum(axis=0, dtype=np.float32)
    return np.repeat((np.float32(1 / (steps * steps * batch)) * difference)[None], steps, axis=0)
