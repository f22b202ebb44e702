"""optim/adamw.py of the spec: one fused kernel on the CPU, plain expressions elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from stsbp_spec.grid import FLOOR
from stsbp_spec.optim.adamw import AdamWScalars
from stsbp_spec.typing import Float32

from stsbp_torch.compiling import cached_njit
from stsbp_torch.neurons.lif import snap
from stsbp_torch.threads import threads_for

__all__ = ["update", "update_cpu"]

_FLOOR = np.float32(FLOOR)
_ZERO = np.float32(0)


def update(
    c: AdamWScalars, w: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New `(w, m, v)`, eager."""
    g = snap(g * float(c.clip))
    m = snap(m * float(c.beta1) + g * float(c.one_minus_beta1))
    v = snap(v * float(c.beta2) + (g * g) * float(c.one_minus_beta2))
    # torch's float32 square root is not correctly rounded on the CPU (MKL); the float64 one, rounded once, is.
    root = (v * float(c.c2)).double().sqrt().float()
    w = w * float(c.decay) - ((m * float(c.c1)) / (root + float(c.eps))) * float(c.rate)
    return w, m, v


def update_cpu(
    c: AdamWScalars, w: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New `(w, m, v)`, one pass over memory."""
    out = tuple(torch.empty_like(w) for _ in range(3))
    flat = (x.reshape(-1).numpy() for x in (w, g.contiguous(), m, v, *out))
    with threads_for(w.numel()):
        _update(
            *flat,
            c.clip, c.beta1, c.one_minus_beta1, c.beta2, c.one_minus_beta2, c.c1, c.c2, c.eps, c.decay, c.rate,
        )  # fmt: skip
    return out[0], out[1], out[2]


@cached_njit(parallel=True, error_model="numpy")
def _update(
    w: Float32, g: Float32, m: Float32, v: Float32, w1: Float32, m1: Float32, v1: Float32,
    clip: np.float32, beta1: np.float32, one_minus_beta1: np.float32, beta2: np.float32, one_minus_beta2: np.float32,
    c1: np.float32, c2: np.float32, eps: np.float32, decay: np.float32, rate: np.float32,
) -> None:  # fmt: skip
    for j in prange(w.size):
        x = g[j] * clip
        x = _ZERO if abs(x) < _FLOOR else x
        a = beta1 * m[j] + one_minus_beta1 * x
        a = _ZERO if abs(a) < _FLOOR else a
        b = beta2 * v[j] + one_minus_beta2 * (x * x)
        b = _ZERO if abs(b) < _FLOOR else b
        m1[j] = a
        v1[j] = b
        w1[j] = decay * w[j] - rate * ((a * c1) / (np.sqrt(b * c2) + eps))
