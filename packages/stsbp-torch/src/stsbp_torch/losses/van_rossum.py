"""losses/van_rossum.py of the spec."""

from __future__ import annotations

import torch
from stsbp_spec.synapses.psp import PSP

from stsbp_torch.neurons.lif import snap
from stsbp_torch.synapses import psp as filter_pair

__all__ = ["error"]


def error(psp: PSP, s: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Eq. (13), (17) of the output layer: `dL/do`, `[T, B, N]`."""
    r = filter_pair.forward(psp, s.float() - targets.float())
    k, scaled = float(psp.filter().decay), float(psp.filter(1 / s.shape[1]).gain)
    e = torch.zeros_like(r[0])
    for t in reversed(range(len(r))):
        e = snap(k * e + r[t])
        r[t] = scaled * e
    return r
