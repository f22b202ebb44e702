"""losses/spike_count.py by kernels/losses.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.losses.spike_count import SpikeCount
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Native

from stsbp_cupy.runtime import Runtime

__all__ = ["error"]


def error(rt: Runtime, loss: SpikeCount, psp: PSP, s: Native, targets: Native) -> Native:
    """`dL/do = (count - target count) / (T^2 B)`, the same at every step, `[T, B, N]`."""
    steps, batch, units = s.shape
    s, targets = rt.xp.ascontiguousarray(s), rt.xp.ascontiguousarray(targets)
    e = rt.empty_like(s, np.float32)
    n = batch * units
    rt.launch("spike_count_error", n, s, targets, e, n, steps, 1 / (steps * steps * batch))
    return e
