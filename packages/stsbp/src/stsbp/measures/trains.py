"""Spike trains as arguments, as sorted spike times, and the best alignment of two sets of spike times."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.engine.checks import check_lengths, swapped_axes
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.typing import AnyArray, Int64
from stsbp_spec.validation import array_of

__all__ = ["Alignment", "Pairs", "SpikeTimes", "aligned", "lengths_of", "one_train", "read_trains", "rows_of"]

_FAR_STEP = np.int32(2**30)
"""Stands in place of a spike time in rows that have fewer spikes than others. No spike is near it."""
_CHUNK_CELLS = 2**18
"""Number of scores that are computed at a time, so that they stay in the cache of a processor."""


def one_train(name: str, trains: Any) -> AnyArray:
    """Spike trains `[T, B, N]` as bool.

    Raises:
        ShapeError: they have other axes, an empty axis, or other values than 0 and 1.
    """
    array = array_of(trains)
    if array.ndim != 3 or 0 in array.shape:
        raise ShapeError(f"{name} must be spike trains [T, B, N] without empty axes, got {list(array.shape)}")
    if array.dtype != bool and not ((array == 0) | (array == 1)).all():
        raise ShapeError(f"{name} must be spike trains of 0 and 1, got other values, such as potentials or counts")
    return array.astype(bool, copy=False)


def lengths_of(lengths: Any, samples: int, steps: int) -> Int64 | None:
    """Numbers of steps of samples `[B]` as int64. Raises `ShapeError` if they do not fit."""
    if lengths is None:
        return None
    array = array_of(lengths)
    check_lengths(array, samples, steps)
    return array.astype(np.int64)


def read_trains(outputs: Any, targets: Any, lengths: Any = None) -> tuple[AnyArray, AnyArray]:
    """Output and target spike trains `[T, B, N]` as bool, without the spikes of padded steps.

    Raises:
        ShapeError: they are not spike trains of one shape, or the lengths do not fit.
    """
    output_trains, target_trains = one_train("outputs", outputs), one_train("targets", targets)
    if output_trains.shape != target_trains.shape:
        raise ShapeError(
            f"outputs and targets must have the same shape [T, B, N], got {list(output_trains.shape)} and "
            f"{list(target_trains.shape)}{swapped_axes(output_trains.shape, target_trains.shape)}"
        )
    steps_of_samples = lengths_of(lengths, output_trains.shape[1], len(output_trains))
    return without_padding(output_trains, steps_of_samples), without_padding(target_trains, steps_of_samples)


def rows_of(trains: AnyArray) -> AnyArray:
    """The trains `[T, B, N]` as rows `[B N, T]`."""
    return np.ascontiguousarray(trains.reshape(len(trains), -1).T)


class SpikeTimes(NamedTuple):
    """The spike times of rows, one spike train a row.

    Attributes:
        times: sorted steps, `[R, M]`. After its last spike, a row is filled up with steps that are far away.
        counts: number of spikes of each row, `[R]`.
    """

    times: AnyArray
    counts: Int64

    @classmethod
    def of(cls, rows: AnyArray, padding: int = 0) -> SpikeTimes:
        """The spike times of trains `[R, T]`, filled up by at least `padding` steps."""
        row, step = np.nonzero(rows)
        counts = np.bincount(row, minlength=len(rows)).astype(np.int64)
        times = np.full((len(rows), int(counts.max(initial=0)) + padding), _FAR_STEP, dtype=np.int32)
        times[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = step
        return cls(times, counts)


class Pairs(NamedTuple):
    """Pairs of an output spike and a target spike: the row of each, and its timing error in steps, `[P]`."""

    row: Int64
    error: Int64


class Alignment(NamedTuple):
    """The best alignment of each row: the sum of its gains, `[R]`, and its pairs, if they were asked for."""

    gain: AnyArray
    pairs: Pairs | None


def aligned(outputs: AnyArray, targets: AnyArray, gains: AnyArray, *, pairs: bool = False) -> Alignment:
    """Pair the spikes of rows `[R, T]` one to one and in their order, so that the sum of the gains is largest.

    A pair that is `d` steps apart gains `gains[d]`, which must be positive. Spikes further apart than `len(gains) - 1`
    steps are never paired. If several alignments are equally good, earlier spikes are paired.

    Dynamic programming over the output spikes of all rows at once. Each output spike is compared only with the target
    spikes within reach, so time grows with the number of spikes times the reach.
    """
    output_counts, target_counts = (x.sum(axis=1) for x in (outputs, targets))
    # Rows without spikes on one side have no pairs. Those with most output spikes come first.
    alignable = np.flatnonzero((output_counts > 0) & (target_counts > 0))
    alignable = alignable[np.argsort(-output_counts[alignable], kind="stable")]
    width = min(2 * len(gains) - 1, int(target_counts.max(initial=0)))
    # The scores of a part fit into the cache, and what is kept of them into little memory.
    size = (
        _CHUNK_CELLS // (width + 1)
        if not pairs
        else 64 * _CHUNK_CELLS // ((width + 1) * int(output_counts.max(initial=1)))
    )
    size = max(1, min(size, _CHUNK_CELLS // (width + 1)))
    total = np.zeros(len(outputs), dtype=gains.dtype)
    rows, errors = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(alignable), size):
        chunk = alignable[first : first + size]
        table = _ScoreTable(outputs[chunk], targets[chunk], gains, width, pairs)
        total[chunk] = table.gain
        if pairs:
            row, error = table.pairs()
            rows.append(chunk[row])
            errors.append(error)
    return Alignment(total, Pairs(np.concatenate(rows), np.concatenate(errors)) if pairs else None)


class _ScoreTable:
    """The scores of the dynamic programme over the spikes of rows `[R, T]`, those with most output spikes first.

    `scores[r, c]` is the best sum for the output spikes so far and the first `low[r] + c` target spikes, where `low`
    counts the target spikes that are too old for the current output spike. At most `width` target spikes are in its
    reach, and those that are too new for it change nothing, so the last column also holds for all further ones.
    """

    def __init__(self, outputs: AnyArray, targets: AnyArray, gains: AnyArray, width: int, keep_pairs: bool) -> None:
        self.width, self.columns = width, np.arange(width + 1)
        self.outputs, self.targets = SpikeTimes.of(outputs), SpikeTimes.of(targets, width + 1)
        # A pair beyond the reach gains nothing, so it is never better than no pair.
        self.gains = np.append(gains, gains.dtype.type(0))
        self.history: list[tuple[Int64, AnyArray, AnyArray]] = []
        low = np.zeros(len(outputs), dtype=np.int64)
        scores = np.zeros((len(outputs), width + 1), dtype=gains.dtype)
        spikes_before = _spikes_before(targets)
        for spike in range(self.outputs.times.shape[1]):
            # Only the first rows have so many output spikes.
            row_count = int(np.searchsorted(-self.outputs.counts, -spike))
            time = self.outputs.times[:row_count, spike]
            next_low = spikes_before[np.arange(row_count), np.maximum(time - (len(gains) - 1), 0)]
            scores[:row_count] = self._added(scores[:row_count], time, next_low, next_low - low[:row_count], keep_pairs)
            low[:row_count] = next_low
        self.gain = scores[:, -1]

    def _added(self, scores: AnyArray, time: AnyArray, low: Int64, shift: Int64, keep_pairs: bool) -> AnyArray:
        """The scores with one more output spike in each row, at `time` `[R]`."""
        row = np.arange(len(scores))[:, None]
        if shift.any():
            columns = np.minimum(self.columns + shift[:, None], self.width)
            scores = np.take(scores, row * (self.width + 1) + columns)
        in_reach = np.take(self.targets.times, row * self.targets.times.shape[1] + low[:, None] + self.columns[:-1])
        distance = np.minimum(np.abs(time[:, None] - in_reach), len(self.gains) - 1)
        paired = scores[:, :-1] + np.take(self.gains, distance)
        best = scores.copy()
        np.maximum(paired, scores[:, 1:], out=best[:, 1:])
        result: AnyArray = np.maximum.accumulate(best, axis=1)
        if keep_pairs:
            rises = np.zeros(scores.shape, dtype=np.int32)
            np.multiply(best[:, 1:] > result[:, :-1], self.columns[1:], out=rises[:, 1:], casting="same_kind")
            is_pair = np.zeros(scores.shape, dtype=bool)
            np.greater(paired, scores[:, 1:], out=is_pair[:, 1:])
            self.history.append((low, np.maximum.accumulate(rises, axis=1), is_pair))
        return result

    def pairs(self) -> Pairs:
        """The pairs of the best alignments, from the last output spike to the first."""
        rows, errors = [], []
        unpaired = self.targets.counts.copy()  # number of target spikes of each row that are not yet paired or skipped
        for spike in reversed(range(len(self.history))):
            low, origin, is_pair = self.history[spike]
            row = np.arange(len(low))
            column = origin[row, np.minimum(unpaired[: len(low)] - low, self.width)]
            paired = is_pair[row, column]
            unpaired[: len(low)] = low + column - paired
            row = row[paired]
            rows.append(row)
            errors.append(self.outputs.times[row, spike] - self.targets.times[row, unpaired[row]])
        return Pairs(np.concatenate(rows), np.concatenate(errors).astype(np.int64))


def _spikes_before(rows: AnyArray) -> Int64:
    """Number of spikes before each step of trains `[R, T]`, `[R, T]`."""
    counts = np.zeros(rows.shape, dtype=np.int64)
    np.cumsum(rows[:, :-1], axis=1, out=counts[:, 1:])
    return counts
