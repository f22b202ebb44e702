"""Implements ops/dropout.py of the spec: masks with the same bits as those of `random.keep_mask`."""

from __future__ import annotations

import torch
from stsbp_cpu.ops import dropout
from stsbp_spec.typing import Shape

__all__ = ["apply", "mask"]


def mask(seed: int, layer: int, step: int, shape: Shape, rate: float, first: int, device: torch.device) -> torch.Tensor:
    """Mask `[B, ...]` from sample `first` of the batch on, uint8. Masks of frames are channels last in memory."""
    if device.type != "cpu":
        from stsbp_torch.equations import fused_cuda

        return fused_cuda.keep_mask(seed, layer, step, shape, rate, first, device)
    cpu_mask = torch.from_numpy(dropout.mask(seed, layer, step, shape, rate, first))
    return cpu_mask.permute(0, 3, 1, 2) if cpu_mask.ndim == 4 else cpu_mask


def apply(keep_mask: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """`s * mask`, with the same mask at every step. This operation is its own adjoint."""
    return s * keep_mask
