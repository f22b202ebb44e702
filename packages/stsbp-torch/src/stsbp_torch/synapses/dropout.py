"""synapses/dropout.py of the spec: masks from the counter-based generator, the same bits as `random.keep_mask`."""

from __future__ import annotations

import math

import numpy as np
import torch
from stsbp_spec.random import Stream, check_seed, keep_mask
from stsbp_spec.typing import Shape

from stsbp_torch.synapses import cpu_kernels

__all__ = ["apply", "mask"]


def mask(seed: int, layer: int, step: int, shape: Shape, rate: float, device: torch.device) -> torch.Tensor:
    """Mask `[B, ...]`, uint8, channels last in memory where it has channels."""
    if device.type != "cpu":
        made = torch.from_numpy(keep_mask(seed, layer, step, shape, rate)).to(device)
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made
    batch, channels, area = shape[0], shape[1], math.prod(shape[2:])
    out = np.empty((batch, area, channels), np.uint8)
    key = (Stream.DROPOUT + 256 * layer) & 0xFFFFFFFF
    cpu_kernels.keep_mask(check_seed(seed), key, step & 0xFFFFFFFF, round(rate * 2**32), channels, out)
    made = torch.from_numpy(out)
    if len(shape) == 4:
        return made.view(batch, shape[2], shape[3], channels).permute(0, 3, 1, 2)
    return made.view(shape)


def apply(kept: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """`s * mask`, the mask the same at every step; its own adjoint."""
    return s * kept
