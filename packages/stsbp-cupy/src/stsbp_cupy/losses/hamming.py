"""losses/hamming.py by kernels/losses.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.losses.hamming import Hamming
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Native

from stsbp_cupy.runtime import Runtime

__all__ = ["error"]


def error(rt: Runtime, loss: Hamming, psp: PSP, s: Native, targets: Native) -> Native:
    """`dL/do = (o - target) / B`, `[T, B, N]`."""
    batch = s.shape[1]
    s, targets = rt.xp.ascontiguousarray(s), rt.xp.ascontiguousarray(targets)
    e = rt.empty_like(s, np.float32)
    rt.launch("hamming_error", e.size, s, targets, e, e.size, 1 / batch)
    return e
