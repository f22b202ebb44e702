"""Implements ops/avgpool2d.py of the spec: sums over windows times an exact power of two."""

from __future__ import annotations

import torch
from stsbp_cpu.ops import pooling
from stsbp_spec.networks.ops.avgpool2d import AvgPool2d
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import TENSORS, empty, frames, laid_out

__all__ = ["backward", "forward"]


def forward(pool: AvgPool2d, s: torch.Tensor, *, fused: bool) -> tuple[torch.Tensor, Shape]:
    """Averages or sums over windows, float32; the residual is the input's shape."""
    if fused:
        return pooling.average(TENSORS, pool, s), tuple(s.shape)
    s = laid_out(s)
    pooled = torch.nn.functional.avg_pool2d(frames(s).float(), pool.sizes, divisor_override=1) * 2.0**-pool.exponent
    t, b = s.shape[:2]
    return laid_out(pooled.view(t, b, *pooled.shape[1:])), tuple(s.shape)


def backward(pool: AvgPool2d, shape: Shape, d: torch.Tensor, *, fused: bool) -> torch.Tensor:
    """Each input receives its window's error signal, divided as in the forward pass.

    Rows and columns that the forward pass drops receive zero.
    """
    if fused:
        return pooling.average_backward(TENSORS, pool, shape, d)
    ds = empty(shape, torch.float32, d.device)
    rows, columns = pool.sizes
    spread = (d * 2.0**-pool.exponent).repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4)
    ds.zero_()
    ds[:, :, :, : spread.shape[3], : spread.shape[4]] = spread
    return ds
