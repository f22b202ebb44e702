"""Checks the arguments of `lif` and `apply` for values that a forward pass would silently accept.

Concrete arrays are checked, and wrong values raise an error. Arrays in the host's memory are checked by numpy, for
which nothing has to be compiled. Traced arrays (inside `jit`, `grad`, `vmap`) have no values yet, so no error can be
raised. Wrong values of traced arrays become NaN, and so do the spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.engine.checks import check_dropout
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.networks.ops.base import Passing, Weighted
from stsbp_spec.networks.ops.batchnorm import STATISTICS
from stsbp_spec.typing import AnyArray, Shape

__all__ = [
    "as_array",
    "check_array",
    "check_finite",
    "check_operation",
    "check_spikes",
    "checked_weights",
    "dropout_words",
    "in_domain",
    "on_grid",
    "running_statistic",
]

_PART = 2**16
"""Number of elements that numpy checks at a time, so that they stay in the cache."""


def _finite(xp: Any, x: Any) -> Any:
    return xp.isfinite(x)


def _in_bounds(xp: Any, x: Any, low: float, high: float) -> Any:
    return (x >= np.float32(low)) & (x <= np.float32(high))


def _is_on_grid(xp: Any, s: Any, exponent: int, largest: float) -> Any:
    # The user may have forbidden JAX to promote types, and JAX never promotes int4.
    s = s.astype(np.float32)
    units = s * np.float32(2.0**exponent)
    return (s >= 0) & (s <= np.float32(largest)) & (units == xp.rint(units))


def _all_valid(is_valid: Callable[..., Any], x: Any, *limits: float) -> bool:
    """Whether all elements of an array that is not traced are valid, by numpy if its memory is the host's."""
    if not _is_on_host(x):
        with jax.ensure_compile_time_eval():
            return bool(_all_on_device(is_valid, limits, x))
    flat = _values(x).reshape(-1)
    with np.errstate(all="ignore"):
        return all(is_valid(np, flat[i : i + _PART], *limits).all() for i in range(0, flat.size, _PART))


def _is_on_host(x: Any) -> bool:
    """Whether numpy can read all of `x` without a copy from an accelerator or from another process."""
    return not isinstance(x, Array) or (
        x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())
    )


@partial(jax.jit, static_argnums=(0, 1))
def _all_on_device(is_valid: Callable[..., Any], limits: tuple[float, ...], x: Array) -> Array:
    all_valid: Array = is_valid(jnp, x, *limits).all()
    return all_valid


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _or_nan(is_valid: Callable[..., Any], limits: tuple[float, ...], x: Array) -> Array:
    """`x` as float32, with NaN in place of the elements that are not valid."""
    return jnp.where(is_valid(jnp, x, *limits), x.astype(np.float32), np.float32(np.nan))


def _first_wrong(is_valid: Callable[..., Any], x: Any, *limits: float) -> float:
    values = _values(x)
    with np.errstate(all="ignore"):
        return float(values[~is_valid(np, values, *limits)][0])


def as_array(x: Any) -> Any:
    """`x` itself if it is an array of JAX, or an array of numpy of the type that JAX would give it.

    `jax.numpy.asarray` would compile a program for each shape.
    """
    return x if isinstance(x, Array) else _values(x)


def _values(x: Any) -> AnyArray:
    values = np.asarray(x)
    with np.errstate(over="ignore"):
        return values.astype(jnp.result_type(values), copy=False)


def check_array(name: str, x: object) -> None:
    """Raise `ShapeError` unless `x` is a dense array of real numbers. `name` names it."""
    if isinstance(x, (jax.Array, np.ndarray, np.generic)) and not isinstance(x, np.ma.MaskedArray):
        if any(jnp.issubdtype(x.dtype, kind) for kind in (np.integer, np.floating, np.bool_)):
            return
        raise ShapeError(f"{name} must be an array of real numbers, got an array of {x.dtype}")
    # Python's numbers are arrays without axes.
    if not isinstance(x, (bool, int, float)):
        got = f"{name} must be a dense array of real numbers, got {type(x).__name__}"
        raise ShapeError(f"{got}; convert it with jax.numpy.asarray(...), and a sparse array with .todense()")


def check_spikes(s: Any) -> Shape:
    """The shape of one sample and step of spikes, `(N,)` or `(C, H, W)`.

    Raises:
        ShapeError: `s` is not an array of numbers `[T, B, N]` or `[T, B, H, W, C]`.
    """
    check_array("the input", s)
    shape: Shape = np.shape(s)
    if len(shape) == 3:
        return shape[2:]
    if len(shape) == 5:
        return shape[4], *shape[2:4]
    raise ShapeError(f"the input must have the axes [T, B, N] or [T, B, H, W, C] (channels last), got {shape}")


def check_operation(operation: Passing | Weighted, s: Any, w: Any = None) -> None:
    """Raise an error unless `operation` can compute spikes `s`, `[T, B, N]` or `[T, B, H, W, C]`, with weights `w`.

    Raises:
        ShapeError: `s` or `w` is not an array of numbers, or its shape does not fit.
        SpecError: the operation does not fit its input, for example because the window is larger.
    """
    shape = check_spikes(s)
    operation.output_shape(shape)
    if isinstance(operation, Weighted):
        check_array("the weights", w)
        if np.shape(w) != (expected := operation.weight_shape(shape)):
            raise ShapeError(
                f"the weights of {type(operation).__name__} must have the shape {expected}, got {np.shape(w)}"
            )


def check_finite(name: str, x: ArrayLike) -> None:
    """Raise `NumericError` if a value of `x`, any shape, is not finite. `name` names it. Tracers are not checked."""
    check_array(name, x)
    if isinstance(x, jax.core.Tracer):
        return
    if jnp.issubdtype(jnp.result_type(x), np.floating) and not _all_valid(_finite, x):
        raise NumericError(f"{name} holds a value that is not finite")


def checked_weights(weights: Any, name: str, shape: Shape) -> Array:
    """`weights`, an array of the layer `name`, as float32.

    Raises:
        ShapeError: the array has another shape, or its elements are not floating-point numbers.
        NumericError: an element is not finite, and `weights` is not a tracer.
    """
    check_array(f"weights[{name!r}]", weights)
    kind = jnp.result_type(weights)
    if np.shape(weights) != shape or not jnp.issubdtype(kind, jnp.floating):
        raise ShapeError(f"weights[{name!r}] must be floating-point numbers {shape}, got {kind} {np.shape(weights)}")
    check_finite(f"weights[{name!r}]", weights)
    return weights if weights.dtype == np.float32 else jnp.asarray(weights, np.float32)


def dropout_words(dropout: tuple[ArrayLike, ArrayLike] | None) -> tuple[Any, Any]:
    """`(seed, step)` as uint32 scalars; zeros for None.

    Raises:
        SpecError: one of them is not an integer in `[0, 2**32)`, or is a tracer of another type or shape.
    """
    if isinstance(dropout, (tuple, list)):
        for name, x in zip(("seed", "step"), dropout, strict=False):
            if isinstance(x, jax.core.Tracer) and not (x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)):
                raise SpecError(f"the {name} of dropout must be an integer, got {x.dtype} {list(x.shape)}")
        # A tracer has no value yet.
        check_dropout(tuple(0 if isinstance(x, jax.core.Tracer) else x for x in dropout))
    else:
        check_dropout(dropout)
    words: Any = dropout or (0, 0)
    seed, step = (jnp.asarray(x, np.uint32) if isinstance(x, Array) else np.uint32(x) for x in words)
    return seed, step


def in_domain(name: str, x: Any, low: float, high: float, remedy: str = "call clip_to_domain after each update") -> Any:
    """`x`, any shape, whose elements must be from `low` to `high`. `remedy` is the end of the message.

    Raises:
        NumericError: an element is outside, and `x` is not a tracer. Such elements of a tracer become NaN.
    """
    if isinstance(x, jax.core.Tracer):
        return _or_nan(_in_bounds, (low, high), x)
    if not _all_valid(_in_bounds, x, low, high):
        wrong = _first_wrong(_in_bounds, x, low, high)
        raise NumericError(f"{name} is {wrong:g}, outside of its domain from {low:g} to {high:g}; {remedy}")
    return x


def running_statistic(name: str, x: Any) -> Any:
    """A running statistic of batch normalisation `[C]`, which must be in its domain (`in_domain`)."""
    domain = STATISTICS[name.rpartition(".")[2]]
    remedy = "give running statistics of a network whose training stayed finite"
    return in_domain(name, x, domain.low, domain.high, remedy)


def on_grid(layer: str, inputs: ArrayLike, exponent: int, largest: float) -> Any:
    """`inputs`, any shape, as float32 if they are traced. The elements must be multiples of `2^-exponent` in
    `[0, largest]`.

    Raises:
        ShapeError: an element has another value, and `inputs` is not a tracer. Such elements of a tracer become NaN.
        NumericError: an element is not finite, and `inputs` is not a tracer.
    """
    if isinstance(inputs, jax.core.Tracer):
        return _or_nan(_is_on_grid, (exponent, largest), inputs)
    check_array(f"the input of {layer}", inputs)
    if _all_valid(_is_on_grid, inputs, exponent, largest):
        return as_array(inputs)
    check_finite(f"the input of {layer}", inputs)
    wrong = _first_wrong(_is_on_grid, inputs, exponent, largest)
    unit = "whole numbers" if exponent == 0 else f"multiples of 2^-{exponent}"
    expected = "spikes, 0 or 1" if (exponent, largest) == (0, 1) else f"{unit} from 0 to {largest:g}"
    raise ShapeError(f"the inputs of {layer} must be {expected}, got {wrong:g}")
