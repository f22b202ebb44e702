"""Implements ops/flatten.py of the spec: channels, rows and columns as one axis, in this order."""

from __future__ import annotations

import torch
from stsbp_spec.networks.ops.flatten import Flatten
from stsbp_spec.typing import Shape

from stsbp_torch.engine.layout import laid_out

__all__ = ["backward", "forward"]


def forward(flatten: Flatten, s: torch.Tensor) -> tuple[torch.Tensor, Shape]:
    """`[T, B, N]`; the residual is the input's shape."""
    return s.flatten(2), tuple(s.shape)


def backward(flatten: Flatten, shape: Shape, d: torch.Tensor) -> torch.Tensor:
    """The error signal in the input's shape."""
    return laid_out(d.reshape(shape))
