"""losses/hamming.py in float32, in the contract's order."""

from __future__ import annotations

import numpy as np

from stsbp_spec.losses.hamming import Hamming
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Float32, UInt8

__all__ = ["error"]


def error(loss: Hamming, psp: PSP, s: UInt8, targets: UInt8) -> Float32:
    """`dL/do = (o - target) / B`, `[T, B, N]`."""
    return np.float32(1 / s.shape[1]) * (s.astype(np.float32) - targets.astype(np.float32))
