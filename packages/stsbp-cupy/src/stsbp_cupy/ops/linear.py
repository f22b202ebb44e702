"""The ops/linear.py of the spec, as matrix products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.typing import Precision

from stsbp_cupy.engine.runtime import Array, Runtime, logical, memory, rounded
from stsbp_cupy.ops.weights import channels_first, channels_last_rows

__all__ = ["LinearSavedRows", "backward", "forward"]


class LinearSavedRows(NamedTuple):
    """Input `[T, B, N]` or `[T, B, H, W, C]` in memory order, and weights as rows in the order of a sample's input."""

    s: Array
    rows: Array


def forward(rt: Runtime, linear: Linear, s: Array, wq: Array) -> tuple[Array, LinearSavedRows]:
    """`z = W s`, `[T, B, N]`. If `wq` is in half precision, tensor cores compute it."""
    rows = channels_last_rows(rt, wq, s.shape[2:]) if s.ndim == 5 else rt.xp.ascontiguousarray(wq)
    s = memory(rt, s)
    flat = s.reshape(s.shape[0] * s.shape[1], -1)
    z = rt.empty((len(flat), linear.units), np.float32)
    rt.gemm(flat.astype(rows.dtype, copy=False), rows.T, z)
    return z.reshape(*s.shape[:2], linear.units), LinearSavedRows(s, rows)


def backward(
    rt: Runtime,
    linear: Linear,
    residuals: LinearSavedRows,
    dz: Array,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Array | None, Array | None]:
    """`(ds, dW)`. For `reproducible`, products are in float64, and every sum is exact."""
    dtype = np.float64 if precision == "reproducible" else np.float32
    s, rows = residuals
    error = memory(rt, dz).reshape(-1, linear.units).astype(dtype, copy=False)
    dw = None
    if need_weights:
        inputs = s.reshape(len(error), -1).astype(dtype, copy=False)
        dw = rt.empty((linear.units, inputs.shape[1]), dtype)
        rt.gemm(error.T, inputs, dw)
        if s.ndim == 5:
            h, w, c = s.shape[2:]
            dw = channels_first(rt, dw, (c, h, w), dw.shape)
    if not need_input:
        return None, dw
    ds = rt.empty((len(error), rows.shape[1]), dtype)
    rt.gemm(error, rows.astype(dtype, copy=False), ds)
    return logical(rt, rounded(rt, ds).reshape(s.shape)), dw
