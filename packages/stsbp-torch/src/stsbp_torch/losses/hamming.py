"""losses/hamming.py of the spec."""

from __future__ import annotations

import torch
from stsbp_spec.synapses.psp import PSP

__all__ = ["error"]


def error(psp: PSP, s: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`dL/do = (o - target) / B`, `[T, B, N]`."""
    return (s.float() - targets.float()) * (1 / s.shape[1])
