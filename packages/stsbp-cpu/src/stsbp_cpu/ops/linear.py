"""Implements ops/linear.py of the spec as matrix products. The weights' columns are in the input's memory order.

If there are few spikes, they select the rows that are added instead (sparse/linear.py). The bits are then the same in
the forward pass, and in the backward pass in `reproducible` precision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.typing import AnyArray, Float32, Precision, Shape

from stsbp_cpu.engine.layout import NUMPY, empty_memory
from stsbp_cpu.ops import dense
from stsbp_cpu.ops.sparse import linear as sparse

__all__ = ["LinearSaved", "backward", "forward", "saved_for_backward"]


class LinearSaved(NamedTuple):
    """Input rows `[T B, inputs]` and weights `[N, inputs]`, both in memory order, and the input's shape.

    The rows are float32, or uint8 if they contain few spikes. In the latter case, `sparse.rows_of` has transposed the
    weights.
    """

    flat: AnyArray
    w: Float32
    shape: Shape


def forward(linear: Linear, s: AnyArray, wq: Float32) -> tuple[Float32, LinearSaved]:
    """`z = W s`, `[T, B, N]`."""
    residuals = saved_for_backward(linear, s, wq)
    flat, w, _ = residuals
    if flat.dtype == np.uint8:
        z = empty_memory((len(flat), linear.units), np.float32)
        sparse.forward(flat, w, z)
    else:
        z = dense.product(flat, w.T)
    return z.reshape(*s.shape[:2], linear.units), residuals


def saved_for_backward(linear: Linear, s: AnyArray, wq: Float32) -> LinearSaved:
    """The residuals that the backward pass reads."""
    s = NUMPY.laid_out(s)
    flat = NUMPY.view(s).reshape(s.shape[0] * s.shape[1], -1)
    if flat.dtype == np.uint8 and sparse.pays(flat, linear.units):
        return LinearSaved(flat, sparse.rows_of(wq, s.shape), s.shape)
    return LinearSaved(flat.astype(np.float32, copy=False), _memory_order(wq, s.shape), s.shape)


def backward(
    linear: Linear,
    residuals: LinearSaved,
    dz: Float32,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[Float32 | None, AnyArray | None]:
    """`(ds, dW)` from `dz` `[T, B, N]`. In `reproducible` precision, products are float64, and every sum is exact."""
    flat, w, shape = residuals
    dtype = np.float64 if precision == "reproducible" else np.float32
    error = dz.reshape(-1, linear.units).astype(dtype, copy=False)
    ds = dw = None
    is_sparse = flat.dtype == np.uint8
    if need_weights and is_sparse:
        dw = sparse.weights_of(sparse.gradient(flat, error), linear.units, shape)
    elif need_weights:
        dw = _spec_order(dense.product_of_rows(flat.astype(dtype, copy=False), error), shape)
    if need_input:
        w = w[:, : linear.units].T if is_sparse else w
        grad_rows = dense.product(error, w.astype(dtype, copy=False)).astype(np.float32, copy=False)
        (steps, batch), sample_shape = (
            shape[:2],
            NUMPY.view(np.broadcast_to(np.float32(0), (1, 1, *shape[2:]))).shape[2:],
        )
        ds = NUMPY.from_memory(grad_rows.reshape(steps, batch, *sample_shape))
    return ds, dw


def _memory_order(w: Float32, shape: Shape) -> Float32:
    """Reorder the columns of the weights from `(C, H, W)` to `(H, W, C)`."""
    if len(shape) != 5:
        return w
    return np.ascontiguousarray(w.reshape(len(w), *shape[2:]).transpose(0, 2, 3, 1)).reshape(len(w), -1)


def _spec_order(rows: AnyArray, shape: Shape) -> AnyArray:
    """Convert rows `[inputs, N]` in memory order to weights `[N, inputs]`."""
    if len(shape) != 5:
        return np.ascontiguousarray(rows.T)
    c, h, width = shape[2:]
    return np.ascontiguousarray(rows.reshape(h, width, c, -1).transpose(3, 2, 0, 1)).reshape(rows.shape[1], -1)
