"""synapses/linear.py of the spec as matrix products; the weights' columns follow the memory order of the input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.typing import Precision, Shape

from stsbp_torch.layout import laid_out, rows
from stsbp_torch.synapses.conv2d import exact_math

__all__ = ["Residuals", "backward", "forward", "left"]


class Residuals(NamedTuple):
    """Input rows `[T B, inputs]` and weights `[N, inputs]`, both in memory order, and the input's shape."""

    flat: torch.Tensor
    w: torch.Tensor
    shape: Shape


def _memory_order(w: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Weights whose columns are `(C, H, W)` with columns `(H, W, C)`."""
    if len(shape) != 5:
        return w
    return w.view(len(w), *shape[2:]).permute(0, 2, 3, 1).reshape(len(w), -1)


def _spec_order(w: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Inverse of `_memory_order`."""
    if len(shape) != 5:
        return w
    c, h, width = shape[2:]
    return w.view(len(w), h, width, c).permute(0, 3, 1, 2).reshape(len(w), -1)


def forward(linear: Linear, s: torch.Tensor, wq: torch.Tensor) -> tuple[torch.Tensor, Residuals]:
    """`z = W s`, `[T, B, N]`."""
    residuals = left(s, wq)
    with exact_math():
        z = residuals.flat @ residuals.w.T
    return z.view(*s.shape[:2], linear.units), residuals


def left(s: torch.Tensor, wq: torch.Tensor) -> Residuals:
    """What the way back reads."""
    s = laid_out(s.float())
    shape = tuple(s.shape)
    return Residuals(rows(s).view(shape[0] * shape[1], -1), _memory_order(wq, shape), shape)


def backward(
    linear: Linear,
    residuals: Residuals,
    dz: torch.Tensor,
    *,
    precision: Precision,
    need_input: bool,
    need_weights: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`(ds, dW)` from `dz` `[T, B, N]`; products in float64 for `reproducible`, where every sum is exact."""
    flat, w, shape = residuals
    error = dz.reshape(-1, linear.units)
    if precision == "reproducible":
        error, flat, w = error.double(), flat.double(), w.double()
    with exact_math():
        dw = _spec_order(error.T @ flat, shape) if need_weights else None
        below = (error @ w).float() if need_input else None
    ds = None
    if below is not None:
        if len(shape) == 5:
            t, b, c, h, width = shape
            ds = below.view(t, b, h, width, c).permute(0, 1, 4, 2, 3)
        else:
            ds = below.view(shape)
    return ds, dw
