"""Implements ops/batchnorm.py of the spec in JAX: numbers in float64."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.networks.ops import batchnorm

from stsbp_jax.contract.grid import ARITHMETIC

__all__ = ["JaxFloat64"]


class JaxFloat64(batchnorm.ChannelArithmetic):
    """Float64 arithmetic in which XLA fuses and replaces nothing.

    An exclusive-or with zero is applied to products, quotients and roots: see `grid.Rounding`. Otherwise, XLA would
    turn the division by a constant into a multiplication, and `a / sqrt(b)` into a multiplication by a reciprocal root.

    Args:
        data: any non-empty array that the computation reads.
    """

    def __init__(self, data: Array) -> None:
        super().__init__(ARITHMETIC)
        bits = lax.bitcast_convert_type(data[(0,) * data.ndim].astype(np.float32), np.uint32)
        n: Array = lax.optimization_barrier(bits)  # type: ignore[no-untyped-call]
        self._zero = (n * (n + np.uint32(1)) & np.uint32(1)).astype(np.uint64)

    def _hidden(self, x: Any) -> Array:
        bits = lax.bitcast_convert_type(jnp.asarray(x, np.float64), np.uint64) ^ self._zero
        return lax.bitcast_convert_type(bits, np.float64)

    def multiply(self, a: Any, b: Any) -> Array:
        return self._hidden(a * b)

    def divide(self, a: Any, b: Any) -> Array:
        a = self._hidden(a)
        # The divisor may be the same for all elements. XLA must not see this.
        return self._hidden(a / jnp.where(a == a, b, np.nan))

    def root(self, a: Any) -> Array:
        return self._hidden(jnp.sqrt(a))
