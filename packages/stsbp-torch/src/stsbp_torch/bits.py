"""Spikes as bits: what `memory="low"` keeps of them between the passes."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["pack", "unpack"]


def pack(s: torch.Tensor) -> torch.Tensor:
    """Zeros and ones, uint8 `[M]`, eight a byte, the first one the highest."""
    if s.device.type == "cpu":
        return torch.from_numpy(np.packbits(s.numpy()))
    whole = torch.nn.functional.pad(s, (0, -len(s) % 8)).view(-1, 8)
    return (whole << _shifts(s)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` of them."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))
    return ((packed[:, None] >> _shifts(packed)) & 1).view(-1)[:count]


def _shifts(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=x.device)
