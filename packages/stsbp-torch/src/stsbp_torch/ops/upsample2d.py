"""Implements ops/upsample2d.py of the spec: repeats rows and columns, and sums blocks in the spec's order."""

from __future__ import annotations

from functools import reduce

import torch
from stsbp_spec.networks.ops.upsample2d import Upsample2d

from stsbp_torch.engine.layout import laid_out

__all__ = ["backward", "forward"]


def forward(up: Upsample2d, s: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The upsampled input, `[T, B, C, H rows, W columns]`, in the type of `s`."""
    rows, columns = up.factors
    return laid_out(s.repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4)), None


def backward(up: Upsample2d, residuals: None, d: torch.Tensor) -> torch.Tensor:
    """The sum of the error signals in each block, row by row."""
    rows, columns = up.factors
    blocks = (d[:, :, :, i::rows, j::columns] for i in range(rows) for j in range(columns))
    return laid_out(reduce(torch.add, blocks))
