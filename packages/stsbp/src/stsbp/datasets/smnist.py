"""Sequential MNIST: each step shows one row or one pixel of a digit, so the network must remember earlier steps.

Pixels are encoded as spikes. With L levels, a pixel has L input neurons. Neuron k spikes if the grey value x in 0..255
is at least (2k + 1) 256 / 2L. `smnist` shows a digit in 28 steps to 28 L neurons, and `smnist-pixels` in 784 steps to L
neurons.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from stsbp_spec.typing import UInt8

from stsbp.datasets.base import Dataset, FrameSplit, Request, names_unreadable
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.mnist import DEFAULT_HOLDOUT, DIGIT_FILES, Digits, images
from stsbp.errors import DataError

__all__ = ["PIXELS", "ROWS", "load"]

_SIDE = 28
_MOST_LEVELS = 128
_BLOCK = 1024


def _spikes(pictures: UInt8, levels: int, *, by_pixel: bool) -> UInt8:
    """Frames `[n, T, N]` of pictures `[n, 28, 28]`, as `FrameSplit` stores them."""
    # Rounded up, because grey values are integers.
    thresholds = -(-(2 * np.arange(levels) + 1) * 128 // levels)
    shape = (_SIDE * _SIDE, levels) if by_pixel else (_SIDE, _SIDE * levels)
    blocks = (pictures[first : first + _BLOCK, :, :, np.newaxis] for first in range(0, len(pictures), _BLOCK))
    return np.concatenate(
        [FrameSplit.store((block >= thresholds).astype(np.uint8).reshape(-1, *shape)) for block in blocks]
    )


def _levels(request: Request, default: int) -> int:
    return request.whole_option("levels", default, 1, _MOST_LEVELS)


@names_unreadable
def load(request: Request) -> Dataset:
    """MNIST row by row, or pixel by pixel.

    Raises:
        DataError: MNIST is missing or malformed, or `steps` is not the number of rows or pixels.
    """
    by_pixel = request.name.startswith(PIXELS.name)
    levels = _levels(request, 16 if by_pixel else 1)
    steps, neurons = (_SIDE * _SIDE, levels) if by_pixel else (_SIDE, _SIDE * levels)
    if request.binning.steps != steps:
        unit = "pixels" if by_pixel else "rows"
        raise DataError(f"a digit has {steps} {unit}, one a step, not {request.binning.steps}: give --steps {steps}")

    def split_of(digits: Digits) -> FrameSplit:
        return FrameSplit(_spikes(digits.images, levels, by_pixel=by_pixel), digits.labels, steps)

    train, test, notes = images(request, DIGIT_FILES, split_of)
    return Dataset(request.name, "events", (neurons,), CLASSES, train, test, notes)


_info = partial(
    DatasetInfo,
    coding="events",
    load=load,
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    extra="mnist",
    options={"levels": f"grey levels that a pixel's spikes tell apart, 1 to {_MOST_LEVELS}"},
)

ROWS = _info(
    name="smnist",
    description="sequential MNIST: one row of the digit per step, 28 steps of 28 neurons, 60,000 + 10,000",
    defaults={
        "net": "512R",
        "loss": "cross-entropy",
        "steps": _SIDE,
        "epochs": 30,
        "batch_size": 100,
        "lr": 2e-3,
        "tau_m": 10.0,
        "tau_s": 3.0,
        "augment_shift": 1,
        "augment_elastic": 1.0,
        "augment_rotate": 8.0,
        "augment_scale": 0.08,
    },
)
"""The data set of `stsbp train smnist`, with its default settings."""

PIXELS = _info(
    name="smnist-pixels",
    description="sequential MNIST: one pixel of the digit per step, 784 steps of 16 neurons, 60,000 + 10,000",
    defaults={
        "net": "256R",
        "steps": _SIDE * _SIDE,
        "epochs": 20,
        "batch_size": 100,
        "lr": 1e-3,
        "tau_m": 50.0,
        "tau_s": 10.0,
        "label_pattern": "01",
    },
)
"""The data set of `stsbp train smnist-pixels`, with its default settings."""
