"""synapses/dropout.py of the spec: masks from the counter-based generator, the same bits as `random.keep_mask`."""

from __future__ import annotations

import torch
from stsbp_cpu.synapses import dropout
from stsbp_spec.typing import Shape

__all__ = ["apply", "mask"]


def mask(seed: int, layer: int, step: int, shape: Shape, rate: float, first: int, device: torch.device) -> torch.Tensor:
    """Mask `[B, ...]` from sample `first` of the batch on, uint8, channels last in memory where it has channels."""
    if device.type != "cpu":
        from stsbp_torch import fused_cuda

        return fused_cuda.keep_mask(seed, layer, step, shape, rate, first, device)
    made = torch.from_numpy(dropout.mask(seed, layer, step, shape, rate, first))
    return made.permute(0, 3, 1, 2) if made.ndim == 4 else made


def apply(kept: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """`s * mask`, the mask the same at every step; its own adjoint."""
    return s * kept
