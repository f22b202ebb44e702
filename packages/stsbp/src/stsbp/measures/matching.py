"""Matched spikes: precision, recall and F1 at several tolerances, and the timing errors of the matched spikes.

An output spike and a target spike of the same neuron match if they are at most `tolerance` steps apart. Each spike has
at most one match, and the number of matches is the largest possible, as in `stsbp_spec.models.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.models.metrics import f1, matched_pairs, precision, recall
from stsbp_spec.typing import Float64, Int64
from stsbp_spec.validation import integer_between, shown

from stsbp.measures.trains import aligned, read_trains, rows_of

__all__ = [
    "TOLERANCES",
    "Matches",
    "PrecisionRecallF1",
    "TimingErrors",
    "check_tolerances",
    "precision_recall_f1",
    "quantile",
    "spike_matches",
    "timing_errors",
    "within",
]

TOLERANCES = (0, 1, 2, 5)
"""Tolerances in steps, if none are given."""
_MOST = 10**9


class Matches(NamedTuple):
    """Numbers of spikes. Sums over samples or neurons are numbers of spikes too.

    Attributes:
        tolerances: tolerances in steps, ascending, K of them.
        matched: number of matches at each tolerance, of each sample and neuron, `[K, B, N]`.
        outputs, targets: number of output spikes and of target spikes, `[B, N]`.
    """

    tolerances: tuple[int, ...]
    matched: Int64
    outputs: Int64
    targets: Int64


class PrecisionRecallF1(NamedTuple):
    """Shares from 0 to 1 at each tolerance, `[K]`; or at each tolerance and for each neuron, `[K, N]`.

    Attributes:
        tolerances: tolerances in steps, ascending.
        precision: share of the output spikes that match.
        recall: share of the target spikes that match.
        f1: harmonic mean of both.
    """

    tolerances: tuple[int, ...]
    precision: Float64
    recall: Float64
    f1: Float64

    @classmethod
    def of(cls, tolerances: tuple[int, ...], matched: Int64, outputs: Int64, targets: Int64) -> PrecisionRecallF1:
        """The shares of numbers of spikes: `matched` `[K, ...]`, `outputs` and `targets` `[...]`."""
        counts = [x.tolist() for x in np.broadcast_arrays(matched, outputs, targets)]
        shares = (_map_nested(share, *counts) for share in (precision, recall, f1))
        return cls(tolerances, *(np.array(share, dtype=np.float64) for share in shares))


def _map_nested(share: Any, *counts: Any) -> Any:
    """`share` of each three numbers in nested lists."""
    if not isinstance(counts[0], list):
        return share(*counts)
    return [_map_nested(share, *numbers) for numbers in zip(*counts, strict=True)]


def within(tolerance: int) -> str:
    """A tolerance in words: `within 1 step`."""
    return f"within {tolerance} step{'' if tolerance == 1 else 's'}"


def check_tolerances(tolerances: Any) -> tuple[int, ...]:
    """Tolerances in steps, ascending and without repetitions.

    Raises:
        SpecError: there are none, or one is not an integer from 0 to 10^9.
    """
    numbers = [tolerances] if np.ndim(tolerances) == 0 else list(tolerances)
    if not numbers:
        raise SpecError(f"tolerances must be numbers of steps, for example {TOLERANCES}, got none")
    return tuple(sorted({integer_between("a tolerance in steps", number, 0, _MOST) for number in numbers}))


def spike_matches(
    outputs: Any, targets: Any, tolerances: Sequence[int] | int = TOLERANCES, lengths: Any = None
) -> Matches:
    """Match the output spikes of each neuron with its target spikes, one to one, at each tolerance.

    Args:
        outputs, targets: spike trains, `[T, B, N]`.
        tolerances: largest distances of a pair in steps, or one of them.
        lengths: number of steps of each sample, `[B]`. None: all steps count.

    Raises:
        ShapeError: these are not spike trains of one shape, or the lengths do not fit.
        SpecError: a tolerance is not an integer of at least 0.
    """
    ascending = check_tolerances(tolerances)
    output_trains, target_trains = read_trains(outputs, targets, lengths)
    counts = (x.sum(axis=0, dtype=np.int64) for x in (output_trains, target_trains))
    return Matches(ascending, matched_pairs(output_trains, target_trains, ascending), *counts)


def precision_recall_f1(
    outputs: Any,
    targets: Any,
    tolerances: Sequence[int] | int = TOLERANCES,
    lengths: Any = None,
    *,
    by_neuron: bool = False,
) -> PrecisionRecallF1:
    """Precision, recall and F1 at each tolerance, from the numbers of spikes of all samples together.

    Without output spikes, precision is 1 if there are no target spikes, else 0. The same holds for recall without
    target spikes, and F1 is 1 if there are no spikes at all.

    Args:
        outputs, targets, tolerances, lengths: as for `spike_matches`, which raises the errors.
        by_neuron: whether each output neuron has its own shares.
    """
    matches = spike_matches(outputs, targets, tolerances, lengths)
    axes = (0,) if by_neuron else (0, 1)
    matched = matches.matched.sum(axis=tuple(axis + 1 for axis in axes))
    return PrecisionRecallF1.of(
        matches.tolerances, matched, matches.outputs.sum(axis=axes), matches.targets.sum(axis=axes)
    )


@dataclass(frozen=True)
class TimingErrors:
    """Signed timing errors of matched spikes in steps: the step of the output spike minus that of its target spike.

    Attributes:
        tolerance: the largest timing error of a match that was asked for.
        counts: number of matches of each neuron with each error from `-E` to `E`, `[N, 2 E + 1]`. `E` is the tolerance,
            but at most `T - 1`.
    """

    tolerance: int
    counts: Int64

    @property
    def errors(self) -> Int64:
        """The errors to which the columns of `counts` belong. Negative: the output spike comes too early."""
        errors: Int64 = np.arange(self.counts.shape[1]) - self.counts.shape[1] // 2
        return errors

    @property
    def histogram(self) -> Int64:
        """Number of matches with each of the `errors`, over all neurons."""
        histogram: Int64 = self.counts.sum(axis=0)
        return histogram

    @property
    def pairs(self) -> int:
        """Number of matches."""
        return int(self.counts.sum())

    @property
    def median(self) -> int | None:
        """The median error. None without matches."""
        return self.quantile(2)

    @property
    def quartiles(self) -> tuple[int, int] | None:
        """The first and the third quartile. None without matches."""
        first, third = self.quantile(1), self.quantile(3)
        return None if first is None or third is None else (first, third)

    def quantile(self, quarters: int) -> int | None:
        """The smallest error that so many quarters of all errors do not exceed. None without matches."""
        index = quantile(self.histogram, quarters)
        return None if index is None else int(self.errors[index])


def quantile(counts: Int64, quarters: int) -> int | None:
    """The smallest index up to which `counts` has so many quarters of its sum. None if the sum is 0.

    There is no interpolation, so that the result is a number of steps.
    """
    total = int(counts.sum())
    if total == 0:
        return None
    return int(np.argmax(4 * np.cumsum(counts) >= quarters * total))


def timing_errors(outputs: Any, targets: Any, tolerance: int = TOLERANCES[-1], lengths: Any = None) -> TimingErrors:
    """Signed timing errors of the matched spikes.

    Of all largest matchings at this tolerance, the errors are those of the one whose absolute errors have the smallest
    sum. If several have the same sum, earlier spikes are matched.

    Args:
        outputs, targets, lengths: as for `spike_matches`, which raises the same errors.
        tolerance: largest error of a match in steps. Only errors up to it are seen, so take it larger than the errors
            that you expect.
    """
    if np.ndim(tolerance) != 0:
        raise SpecError(f"timing errors have one tolerance, a number of steps, got {shown(tolerance)}")
    (largest_error,) = check_tolerances(tolerance)
    output_trains, target_trains = read_trains(outputs, targets, lengths)
    steps, neurons = len(output_trains), output_trains.shape[2]
    reach = min(largest_error, steps - 1)
    # One more match always gains more than all errors of a train can lose.
    one_match = (steps + 1) * (reach + 1)
    dtype = np.int32 if one_match * steps < 2**31 else np.int64
    gains = one_match - np.arange(reach + 1, dtype=dtype)
    pairs = aligned(rows_of(output_trains), rows_of(target_trains), gains, pairs=True).pairs
    assert pairs is not None
    cells = (pairs.row % neurons) * (2 * reach + 1) + pairs.error + reach
    counts = np.bincount(cells, minlength=neurons * (2 * reach + 1)).reshape(neurons, 2 * reach + 1)
    return TimingErrors(largest_error, counts.astype(np.int64))
