"""surrogates.py of the spec in JAX: each derivative in the contract's order, products rounded before additions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.tables import implementation

from stsbp_jax.grid import ZERO, Rounding, divide

__all__ = ["derivative"]

_ONE = np.float32(1)


def _rectangle(h: Rectangle, x: Array, rounded: Rounding) -> Array:
    return jnp.where(jnp.abs(x) < np.float32(h.width / 2), np.float32(1 / h.width), ZERO)


def _triangle(h: Triangle, x: Array, rounded: Rounding) -> Array:
    y = _ONE - rounded(jnp.abs(x) * np.float32(1 / h.width))
    return jnp.where(y > 0, y, ZERO)


def _fast_sigmoid(h: FastSigmoid, x: Array, rounded: Rounding) -> Array:
    y = _ONE + rounded(jnp.abs(x) * np.float32(h.beta))
    return divide(jnp.full_like(y, _ONE), rounded(y * y))


def _arctan(h: Arctan, x: Array, rounded: Rounding) -> Array:
    y = rounded(x * np.float32(math.pi / 2 * h.alpha))
    return divide(jnp.full_like(y, _ONE), _ONE + rounded(y * y))


def _logistic(h: Logistic, x: Array, rounded: Rounding) -> Array:
    z = jnp.exp(-(jnp.abs(x) * np.float32(1 / h.width)))
    y = _ONE + z
    return z / (y * y) * np.float32(1 / h.width)


_DERIVATIVES: dict[type[Surrogate], Callable[[Any, Array, Rounding], Array]] = {
    Rectangle: _rectangle,
    Triangle: _triangle,
    FastSigmoid: _fast_sigmoid,
    Arctan: _arctan,
    Logistic: _logistic,
}


def derivative(surrogate: Surrogate, x: Array, rounded: Rounding) -> Array:
    """`h(x)` of `x = u - V_th`, any shape."""
    return implementation("jax", _DERIVATIVES, surrogate, "surrogate")(surrogate, x, rounded)
