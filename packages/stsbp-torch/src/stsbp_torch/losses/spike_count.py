"""losses/spike_count.py of the spec."""

from __future__ import annotations

import torch
from stsbp_spec.synapses.psp import PSP

__all__ = ["error"]


def error(psp: PSP, s: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`dL/do = (count - target count) / (T^2 B)`, the same at every step, `[T, B, N]`."""
    steps, batch = s.shape[:2]
    difference = s.float().sum(dim=0) - targets.float().sum(dim=0)
    return (difference * (1 / (steps * steps * batch))).expand(s.shape).contiguous()
