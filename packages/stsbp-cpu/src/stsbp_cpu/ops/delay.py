"""Learned delays (numba, CPU): ops/delay.py of the spec. Arrays are `[T, n, C]` in memory order, channels last."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Array, Float32, Float64, Int32

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import Layout
from stsbp_cpu.engine.threads import threads_for

__all__ = ["backward", "forward", "gradient"]


@cached_njit(parallel=True)
def _shifted(x: AnyArray, steps: Int32, out: AnyArray) -> None:
    count, rows, channels = x.shape
    for t in prange(count):
        of_step = out[t]
        for c in range(channels):
            source = t - steps[c]
            if 0 <= source < count:
                of_source = x[source]
                for row in range(rows):
                    of_step[row, c] = of_source[row, c]
            else:
                for row in range(rows):
                    of_step[row, c] = 0


@cached_njit(parallel=True)
def _terms(x: AnyArray, floors: Int32, error: Float32, silent: AnyArray, sums: Float64) -> None:
    count, rows, channels = error.shape
    # Steps of `x` before the first one of `error`.
    earlier = len(x) - count
    for t in prange(count):
        of_step, total = error[t], sums[t]
        for c in range(channels):
            source = t + earlier - floors[c]
            later = x[source] if 0 <= source < len(x) else silent
            before = x[source - 1] if 1 <= source <= len(x) else silent
            channel_total = 0.0
            for row in range(rows):
                slope = np.float64(before[row, c]) - np.float64(later[row, c])
                channel_total += np.float64(of_step[row, c]) * slope
            total[c] = channel_total


def _by_channel(layout: Layout[Array], x: Array) -> AnyArray:
    memory = layout.view(layout.laid_out(x))
    return memory.reshape(len(memory), -1, memory.shape[-1])


def _moved(layout: Layout[Array], x: Array, steps: Int32) -> Array:
    source = _by_channel(layout, x)
    out = layout.empty(tuple(x.shape), source.dtype.type)
    with threads_for(source.size):
        _shifted(source, steps, _by_channel(layout, out))
    return out


def _whole(delays: Float32) -> Int32:
    """Delays in whole steps, ties to even."""
    return np.rint(delays).astype(np.int32)


def forward(layout: Layout[Array], x: Array, delays: Float32) -> Array:
    """Implements `Operations.delay_forward`."""
    return _moved(layout, x, _whole(delays))


def backward(layout: Layout[Array], error: Array, delays: Float32) -> Array:
    """Implements `Operations.delay_backward`."""
    return _moved(layout, error, -_whole(delays))


def gradient(layout: Layout[Array], x: Array, delays: Float32, error: Array) -> Float64:
    """Implements `Operations.delay_gradient`. The order of the sums does not depend on the number of threads."""
    values, errors = _by_channel(layout, x), _by_channel(layout, error)
    sums = np.empty((len(errors), len(delays)), np.float64)
    with threads_for(errors.size):
        # No delay is negative, so this is their floor.
        _terms(values, delays.astype(np.int32), errors, np.zeros_like(values[0]), sums)
    total: Float64 = sums.sum(axis=0)
    return total
