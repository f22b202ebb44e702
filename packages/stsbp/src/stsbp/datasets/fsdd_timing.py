"""Spoken digits whose spike counts are all equal, so that only the times of the spikes tell the digit.

The spikes are those of `fsdd` (fsdd.py, cochlea.py). For each recording and each neuron, `K` spikes replace its spikes:
those at the quantiles `(2 k + 1) / (2 K)` of its spikes in time, `k` from 0 to `K - 1`. If two of them are the same
step, the later one moves to the next free step. A neuron without spikes gets its `K` spikes at these quantiles of the
whole time. So every neuron has `K` spikes in every sample, and counts of spikes are the same for all samples. After the
idea of arXiv 2507.16043: data sets without information in their rates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from stsbp_spec.typing import Int64, UInt8

from stsbp.datasets import fsdd
from stsbp.datasets.base import Dataset, FrameSplit, Progress, Request, Split
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError

__all__ = ["FSDD_TIMING", "equal_counts", "load"]

MOST_SPIKES = 20
_BLOCK = 64


def equal_counts(spikes: UInt8, count: int) -> UInt8:
    """Replace the spikes of each neuron by `count` of them, in spikes `[T, B, N]` of zeros and ones.

    Raises:
        DataError: there are fewer than `count` steps.
    """
    steps = len(spikes)
    if count > steps:
        raise DataError(f"{count} spikes of a neuron need as many steps, got {steps}")
    total = spikes.sum(axis=0, dtype=np.int64)
    # The time of spike number j of each neuron is the number of steps in which at most j spikes have come.
    cumulative = np.cumsum(spikes, axis=0, dtype=np.int64)
    times = np.empty((count, *total.shape), dtype=np.int64)
    for k in range(count):
        number = (2 * k + 1) * total // (2 * count)
        times[k] = np.where(total > 0, (cumulative <= number).sum(axis=0), (2 * k + 1) * steps // (2 * count))
    # First move spikes to later steps until no two are equal, then those beyond the end to earlier ones.
    for k in range(1, count):
        times[k] = np.maximum(times[k], times[k - 1] + 1)
    times[-1] = np.minimum(times[-1], steps - 1)
    for k in reversed(range(count - 1)):
        times[k] = np.minimum(times[k], times[k + 1] - 1)
    equal: UInt8 = np.zeros_like(spikes)
    np.put_along_axis(equal, times, 1, axis=0)
    return equal


def load(request: Request) -> Dataset:
    """The samples of `fsdd` with `spikes` spikes of every neuron in every sample, by default 3.

    Raises:
        DataError: as of `fsdd`; samples would end at the end of their recording, so that their lengths tell something;
            or `spikes` is outside of its range.
    """
    count, steps = request.whole_option("spikes", 3, 1, MOST_SPIKES), request.binning.steps
    if request.own_lengths:
        raise DataError(
            "the length of a recording says something about the digit, so all samples of fsdd-timing have the same "
            "number of steps; leave own_lengths out"
        )
    options = {name: value for name, value in request.options.items() if name != "spikes"}
    recorded = fsdd.load(dataclasses.replace(request, options=options))

    def converted(split: Split) -> FrameSplit:
        report = Progress(request.progress, "moving spikes", len(split))
        frames = list[UInt8]()
        for first in range(0, len(split), _BLOCK):
            numbers: Int64 = np.arange(first, min(first + _BLOCK, len(split)))
            equal = equal_counts(split.inputs(numbers), count)
            frames.append(FrameSplit.store(np.ascontiguousarray(np.swapaxes(equal, 0, 1))))
            report(int(numbers[-1]) + 1)
        empty: UInt8 = np.zeros((0, -(-steps // 8), *recorded.input_shape), dtype=np.uint8)
        return FrameSplit(np.concatenate([*frames, empty]), split.labels, steps)

    train = converted(recorded.train)
    test = train if recorded.test is recorded.train else converted(recorded.test)
    spikes_text = "1 spike" if count == 1 else f"{count} spikes"
    note = f"each neuron has {spikes_text} in each sample, so only their times tell the digit"
    return dataclasses.replace(recorded, train=train, test=test, notes=(*recorded.notes, note))


FSDD_TIMING = DatasetInfo(
    name="fsdd-timing",
    description="spoken digits of fsdd with equal numbers of spikes, so that only their times tell the digit",
    coding="events",
    load=load,
    # All samples have the same number of steps, because the length of a recording would tell something, too.
    defaults={key: value for key, value in fsdd.FSDD.defaults.items() if key != "own_lengths"} | {"epochs": 20},
    recordings=True,
    test_set=fsdd.FSDD.test_set,
    options={
        **fsdd.FSDD.options,
        "spikes": f"number of spikes of each neuron in each sample, 1 to {MOST_SPIKES}, by default 3",
    },
    licence=fsdd.FSDD.licence,
)
"""The data set of `stsbp train fsdd-timing`, with its default settings."""
