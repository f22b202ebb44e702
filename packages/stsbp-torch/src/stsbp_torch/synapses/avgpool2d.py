"""synapses/avgpool2d.py of the spec: sums of windows times an exact power of two."""

from __future__ import annotations

import numpy as np
import torch
from stsbp_cpu.synapses import avgpool2d
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.typing import Shape

from stsbp_torch.layout import empty, flat_frames, frames, laid_out

__all__ = ["backward", "forward"]


def forward(pool: AvgPool2d, s: torch.Tensor, *, fused: bool) -> tuple[torch.Tensor, Shape]:
    """Means or sums of windows, float32; the residual is the input's shape."""
    s = laid_out(s)
    scale = 2.0**-pool.exponent
    if not fused:
        pooled = torch.nn.functional.avg_pool2d(frames(s).float(), pool.sizes, divisor_override=1) * scale
        t, b = s.shape[:2]
        return laid_out(pooled.view(t, b, *pooled.shape[1:])), tuple(s.shape)
    output = empty((*s.shape[:2], *pool.output_shape(tuple(s.shape[2:]))), torch.float32, s.device)
    avgpool2d.forward(flat_frames(s), flat_frames(output), *pool.sizes, np.float32(scale))
    return output, tuple(s.shape)


def backward(pool: AvgPool2d, shape: Shape, d: torch.Tensor, *, fused: bool) -> torch.Tensor:
    """Each input receives its window's error, divided where the mean was taken; dropped rows and columns zero."""
    d = laid_out(d)
    ds = empty(shape, torch.float32, d.device)
    scale = 2.0**-pool.exponent
    if fused:
        avgpool2d.backward(flat_frames(d), flat_frames(ds), *pool.sizes, np.float32(scale))
        return ds
    rows, columns = pool.sizes
    spread = (d * scale).repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4)
    ds.zero_()
    ds[:, :, :, : spread.shape[3], : spread.shape[4]] = spread
    return ds
