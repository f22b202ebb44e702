"""A latency code: each neuron spikes once, the later the larger its number is."""

from __future__ import annotations

import numpy as np
from stsbp_spec.typing import Float64, UInt8

from stsbp.errors import DataError

__all__ = ["check_latency_steps", "latency_spikes"]

_FEWEST_STEPS = 6


def check_latency_steps(steps: int) -> None:
    """Raise `DataError` if there are too few steps."""
    if steps < _FEWEST_STEPS:
        raise DataError(f"a latency code needs at least {_FEWEST_STEPS} steps, got {steps}: give --steps 60")


def latency_spikes(numbers: Float64, steps: int) -> UInt8:
    """Spikes `[n, T, N]` of numbers `[n, N]` from 0 to 1.

    The step of the spike of `x` is `floor(L x)`, with `L` two thirds of the steps, and at most `L - 1`. The last third
    leaves the network time to answer.
    """
    window = 2 * steps // 3
    times = np.minimum(np.floor(numbers * window).astype(np.int64), window - 1)
    spikes: UInt8 = np.zeros((len(numbers), steps, numbers.shape[1]), dtype=np.uint8)
    np.put_along_axis(spikes, times[:, np.newaxis], 1, axis=1)
    return spikes
