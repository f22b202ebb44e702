"""Implements ops/linear.py of the spec as matrix products. The weights' columns are in the input's memory order.

With `fused` on the CPU, if there are few spikes, they select the rows that are added instead
(stsbp_cpu/ops/sparse/linear.py). The bits are then the same in the forward pass, and in the backward pass in
`reproducible` precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from stsbp_cpu.ops.sparse import linear as sparse
from stsbp_spec.networks.ops.linear import Linear
from stsbp_spec.typing import Precision, Shape

from stsbp_torch.engine.layout import laid_out, rows
from stsbp_torch.ops.conv2d import exact_math

__all__ = ["LinearSavedTensors", "backward", "forward", "saved_for_backward"]


class LinearSavedTensors(NamedTuple):
    """Input rows `[T B, inputs]` and weights `[N, inputs]`, both in memory order, and the input's shape.

    The rows are float32, or uint8 if they contain few spikes. In the latter case, `sparse.rows_of` has transposed the
    weights.
    """

    flat: torch.Tensor
    w: torch.Tensor
    shape: Shape


def _memory_order(w: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Reorder the columns of the weights from `(C, H, W)` to `(H, W, C)`."""
    if len(shape) != 5:
        return w
    return w.view(len(w), *shape[2:]).permute(0, 2, 3, 1).reshape(len(w), -1)


def _spec_order(w: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Inverse of `_memory_order`."""
    if len(shape) != 5:
        return w
    c, h, width = shape[2:]
    return w.view(len(w), h, width, c).permute(0, 3, 1, 2).reshape(len(w), -1)


def forward(
    linear: Linear, s: torch.Tensor, wq: torch.Tensor, *, fused: bool
) -> tuple[torch.Tensor, LinearSavedTensors]:
    """`z = W s`, `[T, B, N]`."""
    residuals = saved_for_backward(linear, s, wq, fused=fused)
    if residuals.flat.dtype is torch.uint8:
        z = torch.empty((len(residuals.flat), linear.units), dtype=torch.float32, device="cpu")
        sparse.forward(residuals.flat.numpy(), residuals.w.detach().numpy(), z.numpy())
    else:
        with exact_math():
            z = residuals.flat @ residuals.w.T
    return z.view(*s.shape[:2], linear.units), residuals


def saved_for_backward(linear: Linear, s: torch.Tensor, wq: torch.Tensor, *, fused: bool) -> LinearSavedTensors:
    """The residuals that the backward pass reads."""
    shape = tuple(s.shape)
    frames = shape[0] * shape[1]
    if fused and s.dtype is torch.uint8:
        flat = rows(laid_out(s)).view(frames, -1)
        if sparse.pays(flat.numpy(), linear.units):
            return LinearSavedTensors(flat, torch.from_numpy(sparse.rows_of(wq.detach().numpy(), shape)), shape)
    return LinearSavedTensors(rows(laid_out(s.float())).view(frames, -1), _memory_order(wq, shape), shape)


def backward(
    linear: Linear,
    residuals: LinearSavedTensors,
    dz: torch.Tensor,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`(ds, dW)` from `dz` `[T, B, N]`. In `reproducible` precision, products are float64, and every sum is exact."""
    flat, w, shape = residuals
    error = dz.reshape(-1, linear.units)
    if precision == "reproducible":
        error = error.double()
    dw = grad_rows = None
    of_bytes = flat.dtype is torch.uint8
    with exact_math():
        if need_weights and of_bytes:
            row_gradient = sparse.gradient(flat.numpy(), error.detach().numpy())
            dw = torch.from_numpy(sparse.weights_of(row_gradient, linear.units, shape))
        elif need_weights:
            dw = _spec_order(error.T @ flat.to(error.dtype), shape)
        if need_input:
            w = w[:, : linear.units].T if of_bytes else w
            grad_rows = (error @ w.to(error.dtype)).float()
    ds = None
    if grad_rows is not None:
        if len(shape) == 5:
            t, b, c, h, width = shape
            ds = grad_rows.view(t, b, h, width, c).permute(0, 1, 4, 2, 3)
        else:
            ds = grad_rows.view(shape)
    return ds, dw
