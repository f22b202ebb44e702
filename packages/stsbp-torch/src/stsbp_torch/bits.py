"""Spikes packed into bits: `memory="low"` stores them in this form between the passes, and batches contain them."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["pack", "pack_by_shifts", "steps_by_shifts", "unpack", "unpack_by_shifts"]


def pack(s: torch.Tensor) -> torch.Tensor:
    """Pack zeros and ones, uint8 `[M]`, into bytes. The first of eight values is the highest bit."""
    return torch.from_numpy(np.packbits(s.numpy())) if s.device.type == "cpu" else pack_by_shifts(s)


def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` values of `packed`, uint8."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))
    return unpack_by_shifts(packed, count)


def pack_by_shifts(s: torch.Tensor) -> torch.Tensor:
    """`pack` on any device."""
    whole = torch.nn.functional.pad(s, (0, -len(s) % 8)).view(-1, 8)
    return (whole << _shifts(s)).sum(1, dtype=torch.uint8)


def unpack_by_shifts(packed: torch.Tensor, count: int) -> torch.Tensor:
    """`unpack` on any device."""
    return ((packed[:, None] >> _shifts(packed)) & 1).view(-1)[:count]


def steps_by_shifts(packed: torch.Tensor, steps: int) -> torch.Tensor:
    """`[T, ...]` from the bits of `stsbp_spec.encoders.PackedFrames`, `[ceil(T/8), ...]`, on any device."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device).view(-1, *(1,) * (packed.ndim - 1))
    return (packed.unsqueeze(1) >> places & 1).flatten(0, 1)[:steps]


def _shifts(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=x.device)
