"""Distances of stsbp_spec.losses as differentiable functions."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from stsbp_spec.errors import ShapeError
from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.tables import implementation

from stsbp_jax.backend import PAIRS
from stsbp_jax.checks import on_grid
from stsbp_jax.losses import hamming, spike_count, van_rossum

__all__ = ["distance"]

_MODULES: dict[type[Loss], Any] = {VanRossum: van_rossum, Hamming: hamming, SpikeCount: spike_count}


def distance(loss: Loss, psp: PSP, s: ArrayLike, targets: ArrayLike) -> Array:
    """Mean distance of a batch, a float32 scalar; its gradient in `s` is the spec's error, scaled by the cotangent.

    Args:
        loss: `VanRossum()`, `Hamming()` or `SpikeCount()`.
        psp: filter of the output layer, `network.output_psp`.
        s: output spikes, float32 `[T, B, N]`.
        targets: target spike trains, `[T, B, N]`, any number type.

    Returns:
        The distance. Inside a jit nothing can be raised: what is no spike train makes it NaN.

    Raises:
        ShapeError: `s` and `targets` have other shapes, or hold something else than 0 and 1.
        NumericError: one of them is not finite.
    """
    if np.ndim(s) != 3 or np.shape(s) != np.shape(targets):
        raise ShapeError(f"spikes and targets must be [T, B, N], got {np.shape(s)} and {np.shape(targets)}")
    return _distance(loss, psp, on_grid("distance", s, 0, 1), on_grid("distance", targets, 0, 1))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _distance(loss: Loss, psp: PSP, s: Array, targets: Array) -> Array:
    value: Array = implementation("jax", _MODULES, loss, "loss").distance(loss, psp, s, targets).mean()
    return value


def _distance_forward(loss: Loss, psp: PSP, s: Array, targets: Array) -> tuple[Array, tuple[Array, Array]]:
    return _distance(loss, psp, s, targets), (s, targets)


def _distance_backward(loss: Loss, psp: PSP, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, None]:
    s, targets = residuals
    return PAIRS.loss_error(loss, psp, s, targets) * cotangent, None


_distance.defvjp(_distance_forward, _distance_backward)
