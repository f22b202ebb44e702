"""synapses/psp.py of the spec, eager: the filter alone, for the van Rossum distance and for users."""

from __future__ import annotations

import torch
from stsbp_spec.synapses.psp import PSP

from stsbp_torch.neurons.lif import snap

__all__ = ["backward", "forward"]


def forward(psp: PSP, s: torch.Tensor) -> torch.Tensor:
    """Eq. (3a): potentials `[T, ...]` of spike trains."""
    k, c = float(psp.filter().decay), float(psp.filter().gain)
    a = torch.empty(s.shape, dtype=torch.float32, device=s.device)
    state = torch.zeros(s.shape[1:], dtype=torch.float32, device=s.device)
    for t in range(len(s)):
        state = snap(k * state + c * s[t].float())
        a[t] = state
    return a


def backward(psp: PSP, da: torch.Tensor) -> torch.Tensor:
    """Adjoint: `dL/do` from `dL/da`."""
    k, c = float(psp.filter().decay), float(psp.filter().gain)
    ds = torch.empty_like(da)
    e = torch.zeros_like(da[0])
    for t in reversed(range(len(da))):
        e = snap(k * e + da[t])
        ds[t] = c * e
    return ds
