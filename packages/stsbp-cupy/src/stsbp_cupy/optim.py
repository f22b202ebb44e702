"""The gradient norm of stsbp_spec/optim/adamw.py by kernels/gradient_norm.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from stsbp_spec.grid import error_exponent
from stsbp_spec.optim.adamw import norm_bits

from stsbp_cupy.grid import launch_max_abs, magnitude
from stsbp_cupy.runtime import Array, Runtime

__all__ = ["gradient_norm"]


def gradient_norm(rt: Runtime, gradients: Sequence[Array]) -> float:
    """Global norm, from squares that add as integers; one transfer from the device."""
    arrays = [rt.xp.ascontiguousarray(g) for g in gradients if g.size]
    bits = norm_bits(sum(g.size for g in arrays))
    found = rt.xp.zeros(2, np.uint64)
    for g in arrays:
        launch_max_abs(rt, g, found[:1])
    for g in arrays:
        rt.launch("sum_squares", min(rt.reduction_threads, g.size), g, found[:1], found[1:], g.size, bits)
    largest_bits, total = (int(x) for x in rt.numpy(found))
    largest = magnitude(largest_bits)
    if not math.isfinite(largest):
        return largest
    q = error_exponent(largest, bits)
    return 0.0 if q is None else math.sqrt(total) * 2.0**-q
