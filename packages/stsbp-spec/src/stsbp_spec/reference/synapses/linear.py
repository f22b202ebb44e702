"""synapses/linear.py as matrix products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stsbp_spec.synapses.linear import Linear
from stsbp_spec.typing import AnyArray, Float32, Precision

__all__ = ["Residuals", "backward", "forward"]


class Residuals(NamedTuple):
    """Input `[T, B, ...]` and the weights on their grid."""

    s: AnyArray
    wq: Float32


def forward(linear: Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Residuals]:
    """`z = W s`, `[T, B, N]`."""
    flat = s.reshape(s.shape[0] * s.shape[1], -1).astype(np.float32)
    return (flat @ wq.T).reshape(*s.shape[:2], linear.units), Residuals(s, wq)


def backward(
    linear: Linear, residuals: Residuals, dz: Float32, *, precision: Precision, need_input: bool
) -> tuple[Float32 | None, Float32]:
    """`(ds, dW)`; products in float64 for `reproducible`, where every sum is exact."""
    dtype = np.float64 if precision == "reproducible" else np.float32
    s, wq = residuals
    error = dz.reshape(-1, linear.units).astype(dtype)
    dw = (error.T @ s.reshape(len(error), -1).astype(dtype)).astype(np.float32)
    ds = (error @ wq.astype(dtype)).astype(np.float32).reshape(s.shape) if need_input else None
    return ds, dw
