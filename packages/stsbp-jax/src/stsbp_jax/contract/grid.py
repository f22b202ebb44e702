"""Implements grid.py of the spec in JAX: the exact-arithmetic contract inside a jit.

If a product is added to something, XLA fuses `a*b + c` into an operation with only one rounding. `Rounding` prevents
this. It applies an exclusive-or with a number to the product's bits. The number is zero, but the compiler cannot prove
this.

Some functions use `float64` and `int64` although their caller has x64 switched off. `enable_x64()` enables these types
locally, only for the code that is being traced.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from stsbp_spec.contract import grid as spec_grid
from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.contract.grid import (
    CEILING,
    EXACT_LIMIT_BITS,
    FLOOR,
    MIN_WEIGHT_BITS,
    WeightGrid,
    headroom_bits,
)
from stsbp_spec.networks.graph import Projection

__all__ = [
    "ARITHMETIC",
    "GridChoice",
    "Rounding",
    "describe_grid",
    "divide",
    "enable_x64",
    "grid_of_spec",
    "in_float64",
    "rounded",
    "snap",
    "square_root",
    "weight_grid",
]

Result = TypeVar("Result")

ZERO = np.float32(0)

ARITHMETIC: ArrayArithmetic[Array] = ArrayArithmetic(jnp, lax.bitcast_convert_type, channel_axis=-1)
"""The spec's arithmetic of JAX arrays. Sums in int64 and float64 need `enable_x64`.

As integers, the bits of magnitudes have the same order as the magnitudes. On the CPU, XLA's maximum of floats ignores
NaN in large arrays.
"""

# The context manager moved from jax.experimental to jax, and both are there for a while.
_enable_x64: Callable[[bool], AbstractContextManager[None]] = (
    jax.enable_x64 if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64
)


def enable_x64() -> AbstractContextManager[None]:
    """A context in which float64 and int64 exist. It affects only this thread."""
    return _enable_x64(True)


def in_float64(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, with float64 and int64."""

    @wraps(function)
    def widened(*arguments: Any, **named: Any) -> Result:
        with enable_x64():
            return function(*arguments, **named)

    return widened


class Rounding:
    """Rounds a float32 product before an addition can absorb it.

    If `n` is the bits of one element of `data`, then `n (n + 1) & 1` is zero, but neither XLA nor LLVM knows this. The
    barrier is necessary if `data` is a constant of the jitted function. Without the barrier, XLA would evaluate the
    element and remove the exclusive-or.

    Args:
        data: any non-empty array that the computation reads.
    """

    def __init__(self, data: Array) -> None:
        element = data[(0,) * data.ndim].astype(np.float32)
        bits = lax.bitcast_convert_type(element, np.uint32)
        n: Array = lax.optimization_barrier(bits)  # type: ignore[no-untyped-call]
        self._zero = n * (n + np.uint32(1)) & np.uint32(1)

    def __call__(self, product: Array | np.float32) -> Array:
        """`product`, any shape, rounded to float32."""
        bits = lax.bitcast_convert_type(product, np.uint32) ^ self._zero
        return lax.bitcast_convert_type(bits, np.float32)


def snap(x: Array) -> Array:
    """`x` with magnitudes below 2^-100 replaced by zero, any shape."""
    return jnp.where(jnp.abs(x) < FLOOR, ZERO, x)


def _divide_wide(a: Array, b: Array) -> Array:
    # 53 bits are more than 2 * 24 + 2, so rounding twice gives the correctly rounded quotient.
    with enable_x64():
        return (a.astype(np.float64) / b.astype(np.float64)).astype(np.float32)


def _square_root_wide(x: Array) -> Array:
    with enable_x64():
        return jnp.sqrt(x.astype(np.float64)).astype(np.float32)


def divide(a: Array, b: Array) -> Array:
    """`a / b`, float32, correctly rounded. GPU compilers approximate float32 division, so float64 is used there."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    shape = np.broadcast_shapes(a.shape, b.shape)
    if b.shape != shape:
        # If XLA sees that the divisor is the same for several elements, it multiplies by the reciprocal.
        b = jnp.where(a == a, b, np.float32(np.nan))
    a = jnp.broadcast_to(a, shape)
    quotient: Array = lax.platform_dependent(a, b, cpu=lax.div, default=_divide_wide)
    return quotient


def square_root(x: Array) -> Array:
    """`sqrt(x)`, float32, correctly rounded; see `divide`."""
    root: Array = lax.platform_dependent(x, cpu=lax.sqrt, default=_square_root_wide)
    return root


def rounded(x: Array) -> Array:
    """`x`, float64 or float32, as float32."""
    with enable_x64():
        return x.astype(np.float32)


def _bits(x: float) -> np.int32:
    """Bits of a float32."""
    return np.float32(x).view(np.int32)


class GridChoice(NamedTuple):
    """A weight grid as it is computed inside a jit.

    Attributes:
        exponent: `q`, int32.
        coarser: number of bits that were given up to meet the bound, int32. If it is larger than
            `weight_bits - MIN_WEIGHT_BITS`, no grid fits.
        bound: the largest partial sum in units of `2^-q`, float64, for inputs in [0, 1].
        finite: whether every weight is finite and below the ceiling.
    """

    exponent: Array
    coarser: Array
    bound: Array
    finite: Array


def weight_grid(projection: Projection, w: Array) -> tuple[Array, GridChoice]:
    """Weights on their grid, `[out, ...]` float32. All are NaN if `describe_grid` finds no grid."""
    bits = projection.synapse.weight_bits
    # Sums of n units times the largest input, counted in units of the product's grid, must not exceed 2^24.
    largest_allowed = 2.0**EXACT_LIMIT_BITS / (projection.input.maximum * 2.0**projection.input.exponent)
    largest = ARITHMETIC.largest_error(w)[0]
    finite = largest < _bits(CEILING)
    silent = largest < _bits(FLOOR)
    q = ARITHMETIC.weight_exponent(jnp.where(finite & ~silent, largest, _bits(1)), bits)

    def on_grid(coarser: Array) -> tuple[Array, Array]:
        scale, unit = ARITHMETIC.power_of_two(q - coarser), ARITHMETIC.power_of_two(coarser - q)
        with enable_x64():
            return ARITHMETIC.round_weights(w, scale, unit)

    def too_fine(state: tuple[Array, Array]) -> Array:
        coarser, n = state
        with enable_x64():
            return (n > largest_allowed) & (coarser <= bits - MIN_WEIGHT_BITS)

    def next_grid(state: tuple[Array, Array]) -> tuple[Array, Array]:
        coarser = state[0] + np.int32(1)
        return coarser, on_grid(coarser)[1]

    with enable_x64():
        first = jnp.zeros((), np.int32)
        coarser, n = lax.while_loop(too_fine, next_grid, (first, on_grid(first)[1]))
    fits = finite & (coarser <= np.int32(bits - MIN_WEIGHT_BITS))
    wq = jnp.where(silent, ZERO, on_grid(coarser)[0])
    return jnp.where(fits, wq, np.float32(np.nan)), GridChoice(
        jnp.where(silent, np.int32(0), q - coarser),
        jnp.where(silent, np.int32(bits - MIN_WEIGHT_BITS), coarser),
        n,
        finite,
    )


def grid_of_spec(projection: Projection, w: ArrayLike) -> WeightGrid:
    """The grid of weights `[out, ...]`, computed by the spec. If no grid fits, the spec's error says why."""
    return spec_grid.weight_grid(
        np.asarray(w, np.float32),
        weight_bits=projection.synapse.weight_bits,
        input_exponent=projection.input.exponent,
        input_max=projection.input.maximum,
        layer=projection.name,
    )[1]


def describe_grid(projection: Projection, choice: GridChoice) -> WeightGrid | None:
    """The grid as the spec reports it; None if no grid fits. The spec's `weight_grid` then raises the error."""
    q, coarser, n = int(choice.exponent), int(choice.coarser), float(choice.bound)
    bits = projection.synapse.weight_bits - coarser
    if not bool(choice.finite) or bits < MIN_WEIGHT_BITS:
        return None
    return WeightGrid(q, bits, headroom_bits(n * 2.0**-q * projection.input.maximum, q, projection.input.exponent))
