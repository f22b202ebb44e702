"""How well output spikes match target spikes in time: matched spikes, precision, recall and F1.

An output spike and a target spike of the same neuron match if they are at most `tolerance` steps apart. Every spike
matches at most one other spike. The number of matches is the largest possible. A greedy search over the sorted times
finds it: each spike is matched with the oldest waiting spike, so that younger ones stay available for later spikes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stsbp_spec.engine.checks import check_lengths, swapped_axes
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.typing import AnyArray, Int64
from stsbp_spec.validation import array_of, integer, shown

__all__ = ["SpikeMatches", "f1", "match_spikes", "matched_pairs", "precision", "recall"]

_WORDS = ((7, np.uint8), (15, np.uint16), (31, np.uint32), (63, np.uint64))
"""Up to which tolerance the waiting spikes of a train are the bits of a word."""


class SpikeMatches(NamedTuple):
    """Numbers of matched pairs, output spikes and target spikes of each sample, over all neurons, `[B]`."""

    matched: Int64
    spikes: Int64
    targets: Int64


def match_spikes(spikes: Any, targets: Any, tolerance: int = 1, lengths: Any = None) -> SpikeMatches:
    """Match the spikes of each neuron with its target spikes, one to one.

    `precision`, `recall` and `f1` take the three numbers of one sample, or sums over samples, for example
    `f1(*(n.sum() for n in match_spikes(spikes, targets)))`.

    Args:
        spikes: output spike trains, `[T, B, N]`, as numpy arrays or as tensors of torch or JAX, like the targets.
        targets: target spike trains, `[T, B, N]`.
        tolerance: largest distance of a pair in steps.
        lengths: number of steps of each sample, `[B]`. Later output and target spikes are ignored. None: all steps
            count.

    Raises:
        ShapeError: the shapes differ, or are not `[T, B, N]`, or the lengths do not fit.
        SpecError: the tolerance is not an integer of at least 0.
    """
    spikes, targets = (array_of(x).astype(bool) for x in (spikes, targets))
    lengths = None if lengths is None else array_of(lengths)
    if spikes.shape != targets.shape or spikes.ndim != 3:
        raise ShapeError(
            f"spikes and targets must both be [T, B, N], got {spikes.shape} and {targets.shape}"
            f"{swapped_axes(spikes.shape, targets.shape)}"
        )
    if (reach := integer(tolerance)) is None or reach < 0:
        raise SpecError(f"the tolerance must be a number of steps, 0 or more, got {shown(tolerance)}")
    check_lengths(lengths, spikes.shape[1], len(spikes))
    spikes, targets = (without_padding(x, lengths) for x in (spikes, targets))
    matched = matched_pairs(spikes, targets, [reach])[0]
    sums = (x.sum(axis=(0, 2), dtype=np.int64) for x in (spikes, targets))
    return SpikeMatches(matched.sum(axis=1), *sums)


def matched_pairs(spikes: AnyArray, targets: AnyArray, tolerances: Sequence[int]) -> Int64:
    """Numbers of matched pairs at each tolerance, `[K, ...]`.

    Args:
        spikes, targets: output and target spike trains, bool `[T, ...]`.
        tolerances: largest distances of a pair in steps, ascending, K of them.
    """
    # A larger tolerance than the number of steps matches no more spikes.
    reaches = [min(tolerance, max(len(spikes) - 1, 0)) for tolerance in tolerances]
    word = next((word for max_reach, word in _WORDS if reaches[-1] <= max_reach), None)
    if word is None:
        return np.stack([_matched_in_slots(spikes, targets, reach) for reach in reaches])
    # Spikes wait as bits of a word, the oldest as the lowest bit. All words move down by one bit in each step, so a
    # spike that waited too long drops out.
    one_step = word(1)
    youngest = np.array([2**reach for reach in reaches], dtype=word).reshape(-1, *(1,) * (spikes.ndim - 1))
    pending_spikes, pending_targets = np.zeros((2, len(reaches), *spikes.shape[1:]), dtype=word)
    matched = np.zeros(pending_spikes.shape, dtype=np.promote_types(word, np.uint32))
    for new_spikes, new_targets in zip(spikes.astype(word), targets.astype(word), strict=True):
        pending_spikes >>= one_step
        pending_targets >>= one_step
        hit = new_spikes & (pending_targets != 0)
        pending_targets &= pending_targets - hit  # clears the lowest bit where there is a match
        matched += hit
        pending_spikes |= (new_spikes ^ hit) * youngest
        hit = new_targets & (pending_spikes != 0)
        pending_spikes &= pending_spikes - hit
        matched += hit
        pending_targets |= (new_targets ^ hit) * youngest
    return matched.astype(np.int64)


def _matched_in_slots(spikes: AnyArray, targets: AnyArray, reach: int) -> Int64:
    """`matched_pairs` at a tolerance with more steps than a word has bits, `[...]`."""
    slots = reach + 1
    # Waiting spikes by their step modulo `slots`. A slot is reused when its spike is too old.
    pending = np.zeros((2, slots, *spikes.shape[1:]), dtype=bool)
    matched = np.zeros(spikes.shape[1:], dtype=np.int64)
    for t, trains in enumerate(zip(spikes, targets, strict=True)):
        pending[:, t % slots] = False
        for train, spiking in enumerate(trains):
            free = spiking.copy()
            for age in range(slots - 1, -1, -1):
                partner = pending[1 - train, (t - age) % slots]
                hit = free & partner
                matched += hit
                partner &= ~hit
                free &= ~hit
            pending[train, t % slots] = free
    return matched


def precision(matched: float, spikes: float, targets: float) -> float:
    """Share of the output spikes that match. Without output spikes: 1 if there are no target spikes, else 0."""
    if spikes == 0:
        return float(targets == 0)
    return matched / spikes


def recall(matched: float, spikes: float, targets: float) -> float:
    """Share of the target spikes that match. Without target spikes: 1 if there are no output spikes, else 0."""
    return precision(matched, targets, spikes)


def f1(matched: float, spikes: float, targets: float) -> float:
    """Harmonic mean of precision and recall, `2 matched / (spikes + targets)`; 1 if there are no spikes at all."""
    return 1.0 if spikes + targets == 0 else 2 * matched / (spikes + targets)
