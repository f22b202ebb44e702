"""optim/adamw.py in float32, in the contract's order."""

from __future__ import annotations

import numpy as np

from stsbp_spec.grid import snap
from stsbp_spec.optim.adamw import AdamWScalars
from stsbp_spec.typing import Float32

__all__ = ["update"]


def update(c: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32) -> tuple[Float32, Float32, Float32]:
    """One update: new `(w, m, v)`."""
    g = snap(g * c.clip)
    m = snap(c.beta1 * m + c.one_minus_beta1 * g)
    v = snap(c.beta2 * v + c.one_minus_beta2 * (g * g))
    w = c.decay * w - c.rate * ((m * c.c1) / (np.sqrt(v * c.c2) + c.eps))
    return w, m, v
