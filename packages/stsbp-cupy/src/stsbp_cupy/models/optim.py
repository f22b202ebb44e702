"""The two integers of the gradient norm (stsbp_spec/models/optim/adamw.py), with kernels/gradient_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from stsbp_spec.models.optim.adamw import norm_bits

from stsbp_cupy.contract.grid import launch_max_abs
from stsbp_cupy.engine.runtime import Array, Runtime

__all__ = ["gradient_squares"]


def gradient_squares(rt: Runtime, gradients: Sequence[Array]) -> Array:
    """`optim.gradient_squares`, uint64 `[2]`, without a transfer from the device."""
    arrays = [rt.xp.ascontiguousarray(g) for g in gradients if g.size]
    bits = norm_bits(sum(g.size for g in arrays))
    squares: Array = rt.xp.zeros(2, np.uint64)
    for g in arrays:
        launch_max_abs(rt, g, squares[:1])
    for g in arrays:
        rt.launch("sum_squares", min(rt.reduction_threads, g.size), g, squares[:1], squares[1:], g.size, bits)
    return squares
