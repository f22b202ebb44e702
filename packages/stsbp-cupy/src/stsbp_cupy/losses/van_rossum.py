"""losses/van_rossum.py by kernels/losses.cu."""

from __future__ import annotations

import numpy as np
from stsbp_spec.losses.van_rossum import VanRossum
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Native

from stsbp_cupy.runtime import Runtime

__all__ = ["error"]


def error(rt: Runtime, loss: VanRossum, psp: PSP, s: Native, targets: Native) -> Native:
    """Eq. (13), (17) of the output layer: `dL/do`, `[T, B, N]`."""
    steps, batch, units = s.shape
    s, targets = rt.xp.ascontiguousarray(s), rt.xp.ascontiguousarray(targets)
    e = rt.empty_like(s, np.float32)
    filter, scaled = psp.filter(), psp.filter(1 / batch)
    n = batch * units
    rt.launch("van_rossum_error", n, s, targets, e, n, steps, filter.decay, filter.gain, scaled.gain)
    return e
