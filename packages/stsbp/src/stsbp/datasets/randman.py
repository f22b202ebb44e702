"""Random manifolds (Zenke and Vogels 2021, Neural Computation 33:899): the class is only in the times of the spikes.

Each class is a smooth manifold of few dimensions in a space with one axis per neuron. A sample is a random point of it,
with coordinates `x_1, ..., x_D`, and neuron `i` spikes once, at the time `f_i` (latency.py), which is scaled to the
range from 0 to 1 over all samples of its class:

    f_i(x) = product over d of  sum over k from 0 to K - 1 of  a (k + 1)^-alpha sin(2 pi (k b x_d + c))

with `a`, `b` and `c` drawn between 0 and 1 for each `i`, `d` and `k`, and `a = 0` for `k = 0`. The larger `alpha`, the
smoother the manifold. `K = ceil(1000^(1/alpha))`, as in the published program, but at most 100 instead of 1,000.

The program of the paper draws other numbers, so its manifolds are other ones. Here, samples have the same bits on every
machine: `b` and `x_d` are multiples of `2^-16`, and the sine is a table of correctly rounded values.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from stsbp_spec.contract.elementary import cosine, power
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.typing import Float64, Int64

from stsbp.datasets.base import Dataset, FrameSplit, Request, Subset, cut_test
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.latency import check_latency_steps, latency_spikes

__all__ = ["RANDMAN", "load", "manifold_times"]

SAMPLES = 1000
"""Number of samples of each class."""
_TEST_SHARE = 5
"""One of this many samples is a test sample."""
_UNIT_BITS = 16
_TABLE_BITS = 14
_MOST_FREQUENCIES = 100
_OPTIONS = {"classes": (10, 2, 100), "dims": (2, 1, 4), "alpha": (2, 1, 8), "neurons": (100, 1, 1000)}
"""Default, least and largest value of each option."""
_PARAMETERS, _POINTS = 3, 4
"""Substreams of the random numbers."""


@cache
def _sines() -> Float64:
    """`sin(2 pi k / 2^14)` for `k` from 0 to `2^14 - 1`."""
    quarter = 2 ** (_TABLE_BITS - 2)
    # The cosine of the float64 number nearest to an angle between 0 and pi/2.
    falling = [cosine(math.pi * k / (2 * quarter)) for k in range(quarter)]
    rising = [0.0, *reversed(falling[1:])]
    half = np.array(rising + falling)
    return np.concatenate([half, -half])


def _frequencies(alpha: int) -> int:
    """`K`, the least number with `K^alpha >= 1000`, or 100."""
    return next((k for k in range(1, _MOST_FREQUENCIES) if k**alpha >= 1000), _MOST_FREQUENCIES)


def manifold_times(seed: int, classes: int, dims: int, alpha: int, neurons: int, count: int = SAMPLES) -> Float64:
    """The times `[classes, count, neurons]`, from 0 to 1, of `count` random points of each manifold."""
    frequencies = _frequencies(alpha)
    shape = (classes, 3, dims, frequencies, neurons)
    drawn = uniform(seed, Stream.SIMULATION, math.prod(shape), substream=_PARAMETERS).reshape(shape)
    points = uniform(seed, Stream.SIMULATION, classes * count * dims, substream=_POINTS).reshape(classes, dims, count)
    whole_points = np.floor(points * 2**_UNIT_BITS).astype(np.int64)
    times = np.empty((classes, count, neurons))
    sines = _sines()
    for c, (factor, speed, phase) in enumerate(drawn):
        speeds = np.floor(speed * 2**_UNIT_BITS).astype(np.int64)
        phases = np.floor(phase * 2 ** (2 * _UNIT_BITS)).astype(np.int64)
        product = np.ones((count, neurons))
        for d in range(dims):
            total = np.zeros((count, neurons))
            # The mean of an axis does not matter, because times are scaled to their range.
            for k in range(1, frequencies):
                turns = k * whole_points[c, d][:, np.newaxis] * speeds[d, k] + phases[d, k]
                index = (turns >> (2 * _UNIT_BITS - _TABLE_BITS)) & (2**_TABLE_BITS - 1)
                total += factor[d, k] * power(1 / (k + 1), alpha) * sines[index]
            product *= total
        low, high = product.min(axis=0), product.max(axis=0)
        times[c] = (product - low) / np.where(high > low, high - low, 1.0)
    return times


def load(request: Request) -> Dataset:
    """1,000 samples of each class, 200 of which are test samples. `--split-seed` draws other manifolds.

    Raises:
        DataError: there are fewer than 6 steps, or an option is outside of its range.
    """
    steps = request.binning.steps
    check_latency_steps(steps)
    classes, dims, alpha, neurons = (
        request.whole_option(name, *limits, most_digits=5) for name, limits in _OPTIONS.items()
    )
    times = manifold_times(request.seed, classes, dims, alpha, neurons)
    spikes = latency_spikes(times.reshape(-1, neurons), steps)
    labels: Int64 = np.repeat(np.arange(classes, dtype=np.int64), SAMPLES)
    samples = FrameSplit(FrameSplit.store(spikes), labels, steps)
    is_test = np.arange(len(labels)) % _TEST_SHARE == 0
    train, test = (Subset(samples, np.flatnonzero(mask)) for mask in (~is_test, is_test))
    axes = "dimension" if dims == 1 else "dimensions"
    notes = [f"{len(labels):,} samples of {classes} random manifolds of {dims} {axes}, drawn by the split seed"]
    if request.only_test:
        train = test
    elif request.wants_own_test:
        notes.append(f"{len(test):,} of them are test samples")
    else:
        train, test = cut_test(train, len(test), request)
        notes.append(request.told_of_test(f"{len(test):,} others are held out as test samples"))
    names = tuple(f"manifold {k}" for k in range(classes))
    return Dataset(request.name, "events", (neurons,), names, train, test, tuple(filter(None, notes)))


RANDMAN = DatasetInfo(
    name="randman",
    description="random manifolds: each neuron spikes once, the class is only in the times, no download",
    coding="events",
    load=load,
    defaults={
        "net": "256",
        "loss": "cross-entropy",
        "steps": 60,
        "epochs": 20,
        "batch_size": 50,
        "lr": 5e-3,
        "tau_m": 10.0,
        "tau_s": 4.0,
        "init_gain": 5.0,
        "dropout": 0.2,
        "test_every": 0,
    },
    needs_data_dir=False,
    test_set="a fifth of the samples of each class",
    options={
        "classes": "number of classes, 2 to 100",
        "dims": "dimensions of each manifold, 1 to 4",
        "alpha": "smoothness of the manifolds, 1 to 8",
        "neurons": "number of neurons, 1 to 1000",
    },
)
"""The data set of `stsbp train randman`, with its default settings."""
