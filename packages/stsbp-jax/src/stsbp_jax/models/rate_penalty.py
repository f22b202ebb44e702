"""The rate penalty of stsbp_spec.models.rate_penalty as a differentiable function."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.rate_penalty import RatePenalty

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.engine.checks import check_array, on_grid
from stsbp_jax.engine.compiling import as_one, pair
from stsbp_jax.models.losses import checked_lengths, read_lengths

__all__ = ["rate_penalty"]


def rate_penalty(s: ArrayLike, target: float, weight: float, lengths: ArrayLike | None = None) -> Array:
    """The penalty on firing rates above a target, a float32 scalar. Add it to your loss.

    It is `weight` times the mean of `max(0, rate - target)^2` over neurons and samples. The gradient in `s` has the
    same bits as the one that `Trainer` adds to the errors of a layer, times the cotangent.

    Args:
        s: spikes of a layer, float32 `[T, B, ...]`.
        target: the largest rate without a penalty, in spikes per step, from 0 to less than 1. No array of JAX.
        weight: weight of the penalty, from 2^-100 to 2^100. No array of JAX.
        lengths: number of steps of each sample, integers `[B]`, 1 to T; later steps are ignored. None: all samples have
            T steps.

    Returns:
        The penalty. Inside a jit, no error can be raised, so wrong spikes and wrong lengths make it NaN.

    Raises:
        ShapeError: `s` has no neurons, or values other than 0 and 1, or the lengths do not fit.
        NumericError: a value of `s` is not finite.
        SpecError: the target or the weight is outside its domain.
    """
    penalty = RatePenalty(target, weight)
    check_array("the spikes of rate_penalty", s)
    if np.ndim(s) < 3:
        raise ShapeError(f"spikes must be [T, B, ...], got {np.shape(s)}")
    if lengths is not None:
        lengths = checked_lengths(lengths, *np.shape(s)[1::-1])
    value: Array = _value(penalty, on_grid("rate_penalty", s, 0, 1), lengths)
    return value


@as_one(1)
def _value(penalty: RatePenalty, s: Array, lengths: ArrayLike | None) -> Array:
    s, padding = s if s.dtype == np.float32 else s.astype(np.float32), None
    if lengths is not None:
        steps, batch = s.shape[:2]
        valid, last_steps, inside = read_lengths(lengths, steps)
        axes = (1, batch, *(1,) * (s.ndim - 2))
        # If a length is wrong, its sample's spikes are NaN.
        s = jnp.where(valid.reshape(axes), s, np.float32(np.nan))
        # Constants are those of the spec for every possible length, and each sample selects its own.
        constants = penalty.constants(int(np.prod(s.shape[2:])), np.arange(1, steps + 1), batch)
        of_lengths = {
            name: jnp.broadcast_to(jnp.asarray(x)[last_steps].reshape(axes), (1, *s.shape[1:]))
            for name, x in constants.items()
        }
        padding = inside, of_lengths
    value: Array = _penalty(penalty, s, padding)
    return value


_Padding = tuple[Array, dict[str, Array]] | None
_Residuals = tuple[Array, _Padding]


def _vjp_forward(penalty: RatePenalty, s: Array, padding: _Padding) -> tuple[Array, _Residuals]:
    inside = None if padding is None else padding[0]
    steps: Array | int = len(s) if inside is None else inside.sum(0, dtype=np.float32).reshape(-1, *(1,) * (s.ndim - 2))
    masked = s if inside is None else OPERATIONS.mask_steps(s, inside)
    excess = jnp.maximum(masked.sum(0, dtype=np.float32) / steps - np.float32(penalty.target), 0)
    return np.float32(penalty.weight) * jnp.square(excess).mean(), (s, padding)


def _vjp_backward(penalty: RatePenalty, residuals: _Residuals, cotangent: Array) -> tuple[Array, None]:
    s, padding = residuals
    inside, of_lengths = (None, None) if padding is None else padding
    error, _ = OPERATIONS.rate_penalty(penalty, s, s.shape[1], inside, of_lengths)
    at_each_step = jnp.broadcast_to(error, s.shape) if inside is None else OPERATIONS.mask_steps(error, inside)
    return at_each_step * cotangent, None


_penalty = pair(1, _vjp_forward, _vjp_backward)
