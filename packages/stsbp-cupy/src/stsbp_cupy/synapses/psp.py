"""synapses/psp.py by kernels/psp.cu."""

from __future__ import annotations

import math

import numpy as np
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Native

from stsbp_cupy.runtime import Runtime, logical, memory

__all__ = ["backward", "forward"]


def forward(rt: Runtime, psp: PSP, s: Native) -> Native:
    """Eq. (3a): potentials `[T, ...]` of spike trains."""
    s = memory(rt, s if s.dtype == np.uint8 else s.astype(np.float32))
    a = rt.empty_like(s, np.float32)
    n, filter = math.prod(s.shape[1:]), psp.filter()
    name = "psp_forward_u8" if s.dtype == np.uint8 else "psp_forward_f32"
    rt.launch(name, n, s, a, n, len(s), filter.decay, filter.gain)
    return logical(rt, a)


def backward(rt: Runtime, psp: PSP, da: Native) -> Native:
    """Adjoint: `dL/do` from `dL/da`."""
    da = memory(rt, da)
    ds = rt.empty_like(da)
    n, filter = math.prod(da.shape[1:]), psp.filter()
    rt.launch("psp_backward", n, da, ds, n, len(da), filter.decay, filter.gain)
    return logical(rt, ds)
