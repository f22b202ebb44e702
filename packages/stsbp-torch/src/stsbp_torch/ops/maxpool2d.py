"""Implements ops/maxpool2d.py of the spec: the first largest input of each window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from stsbp_cpu.ops import pooling
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import TENSORS, empty, laid_out

__all__ = ["MaxPoolSavedTensors", "backward", "forward"]


class MaxPoolSavedTensors(NamedTuple):
    """The index of the first largest input in each window (row by row, int32), and the input's shape."""

    first: torch.Tensor
    shape: Shape


def forward(pool: MaxPool2d, s: torch.Tensor, *, fused: bool) -> tuple[torch.Tensor, MaxPoolSavedTensors]:
    """The largest input of each window, in the type of `s`."""
    s = laid_out(s)
    shape = (*s.shape[:2], *pool.output_shape(tuple(s.shape[2:])))
    first = empty(shape, torch.int32, s.device)
    if fused:
        return pooling.largest(TENSORS, pool, s, first), MaxPoolSavedTensors(first, tuple(s.shape))
    views = _views(pool, s)
    largest = next(views).clone()
    first.zero_()
    for number, view in enumerate(views, start=1):
        larger = view > largest
        largest, first = torch.where(larger, view, largest), torch.where(larger, number, first)
    return laid_out(largest), MaxPoolSavedTensors(first, tuple(s.shape))


def backward(pool: MaxPool2d, residuals: MaxPoolSavedTensors, d: torch.Tensor, *, fused: bool) -> torch.Tensor:
    """The first largest input of a window receives the window's error signal. All other inputs receive zero."""
    if fused:
        return pooling.largest_backward(TENSORS, pool, residuals.first, residuals.shape, d)
    ds = empty(residuals.shape, torch.float32, d.device).zero_()
    for number, view in enumerate(_views(pool, ds)):
        view.copy_(torch.where(residuals.first == number, d, 0.0))
    return ds


def _views(pool: MaxPool2d, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """For each position in a window, row by row, the inputs at this position in all windows."""
    rows, columns = pool.sizes
    height, width = x.shape[3] // rows * rows, x.shape[4] // columns * columns
    return (x[:, :, :, i:height:rows, j:width:columns] for i in range(rows) for j in range(columns))
