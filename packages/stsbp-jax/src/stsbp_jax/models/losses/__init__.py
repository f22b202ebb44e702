"""Distances of stsbp_spec.models.losses as differentiable functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.engine.checks import check_lengths, swapped_axes
from stsbp_spec.engine.dispatch import implementation
from stsbp_spec.equations.assembly import padded_loss_equations
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Shape

from stsbp_jax.backend import OPERATIONS
from stsbp_jax.engine.checks import check_array, on_grid
from stsbp_jax.engine.compiling import as_one, pair
from stsbp_jax.models.losses import hamming, spike_count, van_rossum

__all__ = ["checked_lengths", "distance", "read_lengths"]

_MODULES: dict[type[Loss], Any] = {VanRossum: van_rossum, Hamming: hamming, SpikeCount: spike_count}


def distance(loss: Loss, psp: PSP, s: ArrayLike, targets: ArrayLike, lengths: ArrayLike | None = None) -> Array:
    """Mean distance of a batch, a float32 scalar. The gradient in `s` is the spec's error signal times the cotangent.

    Args:
        loss: `VanRossum()`, `Hamming()` or `SpikeCount()`.
        psp: filter of the output layer, `network.output_psp`.
        s: output spikes, float32 `[T, B, N]`.
        targets: target spike trains, `[T, B, N]`, of any number type.
        lengths: number of steps of each sample, integers `[B]`, 1 to T; later steps are ignored. None: all samples have
            T steps.

    Returns:
        The distance. Inside a jit, no error can be raised, so wrong spike trains and wrong lengths make it NaN.

    Raises:
        ShapeError: `s` and `targets` have different shapes or values other than 0 and 1, or the lengths do not fit.
        NumericError: a value of `s` or `targets` is not finite.
    """
    check_array("the spikes of distance", s)
    check_array("the targets of distance", targets)
    if np.ndim(s) != 3 or np.shape(s) != np.shape(targets):
        shapes = np.shape(s), np.shape(targets)
        raise ShapeError(
            f"spikes and targets must be [T, B, N], got {shapes[0]} and {shapes[1]}{swapped_axes(*shapes)}"
        )
    if lengths is not None:
        lengths = checked_lengths(lengths, *np.shape(s)[1::-1])
    value: Array = _mean(loss, psp, on_grid("distance", s, 0, 1), on_grid("distance", targets, 0, 1), lengths)
    return value


def checked_lengths(lengths: ArrayLike, batch: int, steps: int) -> ArrayLike:
    """`lengths`, `[B]`. Raises `ShapeError` if they do not fit; values of traced lengths are not checked."""
    if not isinstance(lengths, jax.core.Tracer):
        lengths = np.asarray(lengths)
        check_lengths(lengths, batch, steps)
    elif lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, np.integer):
        raise ShapeError(f"lengths must be integers [B] = [{batch}], got {lengths.dtype} {list(lengths.shape)}")
    return lengths


def read_lengths(lengths: ArrayLike, steps: int) -> tuple[Array, Array, Array]:
    """Lengths that may be traced: whether each is valid and its last step, `[B]`; and which steps are no padding, uint8
    `[T, B]`. A length that is not valid is clipped, so the result of its sample must be made NaN."""
    numbers = jnp.asarray(lengths, np.int32)
    valid = (numbers >= 1) & (numbers <= steps)
    last_steps = jnp.clip(numbers, 1, steps) - 1
    return valid, last_steps, (last_steps >= np.arange(steps, dtype=np.int32)[:, None]).astype(np.uint8)


@as_one(2)
def _mean(loss: Loss, psp: PSP, s: Array, targets: Array, lengths: ArrayLike | None) -> Array:
    padding = None
    s, targets = (x if x.dtype == np.float32 else x.astype(np.float32) for x in (s, targets))
    if lengths is not None:
        valid, padding = _padding(loss, psp, s.shape, lengths)
        # If a length is wrong, its sample's spikes are NaN.
        s = jnp.where(valid, s, np.float32(np.nan))
    value: Array = _distance(loss, psp, s, targets, padding)
    return value


@as_one(3)
def _padding(loss: Loss, psp: PSP, shape: Shape, lengths: ArrayLike) -> tuple[Array, dict[str, Array]]:
    """Whether each length is one, `[B, 1]`, and `equations.loss_padding` of lengths that may be traced."""
    steps, batch, _ = shape
    valid, last_steps, inside = read_lengths(lengths, steps)
    # Constants are Python numbers. They are computed for every possible length, and each sample selects its own.
    constants = loss.constants_of(psp, np.arange(1, steps + 1), batch, shape[-1])
    padding = {
        name: jnp.broadcast_to(jnp.asarray(x, np.float32)[last_steps][None, :, None], (1, *shape[1:]))
        for name, x in constants.items()
    }
    padding[str(padded_loss_equations(loss).inside)] = jnp.broadcast_to(inside[..., None], shape)
    return valid[:, None], padding


_Residuals = tuple[Array, Array, dict[str, Array] | None]


def _vjp_forward(
    loss: Loss, psp: PSP, s: Array, targets: Array, padding: dict[str, Array] | None
) -> tuple[Array, _Residuals]:
    inside = None if padding is None else padding[str(padded_loss_equations(loss).inside)][..., 0]
    value = implementation("jax", _MODULES, loss, "loss").distance(loss, psp, s, targets, inside).mean()
    return value, (s, targets, padding)


def _vjp_backward(loss: Loss, psp: PSP, residuals: _Residuals, cotangent: Array) -> tuple[Array, None, None]:
    s, targets, padding = residuals
    return OPERATIONS.loss_error(loss, psp, s, targets, None, padding) * cotangent, None, None


_distance = pair(2, _vjp_forward, _vjp_backward)
