"""How well output spikes match target spikes in time: matched spikes, precision, recall and F1.

An output spike and a target spike of the same neuron match if they are at most `tolerance` steps apart. Every spike
matches at most one other spike. The number of matches is the largest possible. A greedy search over the sorted times
finds it: each spike is matched with the oldest waiting spike, so that younger ones stay available for later spikes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stsbp_spec.engine.checks import check_lengths
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.typing import Int64
from stsbp_spec.validation import array_of, integer, shown

__all__ = ["SpikeMatches", "f1", "match_spikes", "precision", "recall"]


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
        raise ShapeError(f"spikes and targets must both be [T, B, N], got {spikes.shape} and {targets.shape}")
    if (reach := integer(tolerance)) is None or reach < 0:
        raise SpecError(f"the tolerance must be a number of steps, 0 or more, got {shown(tolerance)}")
    check_lengths(lengths, spikes.shape[1], len(spikes))
    spikes, targets = (without_padding(x, lengths) for x in (spikes, targets))
    slots = min(reach, len(spikes)) + 1
    # Waiting spikes by their step modulo `slots`. A slot is reused when its spike is too old.
    waiting = np.zeros((2, slots, *spikes.shape[1:]), dtype=bool)
    matched = np.zeros(spikes.shape[1:], dtype=np.int64)
    for t, both in enumerate(zip(spikes, targets, strict=True)):
        waiting[:, t % slots] = False
        for side, spiking in enumerate(both):
            free = spiking.copy()
            for age in range(slots - 1, -1, -1):
                partner = waiting[1 - side, (t - age) % slots]
                hit = free & partner
                matched += hit
                partner &= ~hit
                free &= ~hit
            waiting[side, t % slots] = free
    sums = (x.sum(axis=(0, 2), dtype=np.int64) for x in (spikes, targets))
    return SpikeMatches(matched.sum(axis=1), *sums)


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
