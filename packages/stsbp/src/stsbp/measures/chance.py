"""Chance level: what a measure gives if the outputs of each sample are compared with the targets of another one.

The other sample follows in a random circle through all samples, so no sample keeps its own targets. The circle is drawn
with the generator of `stsbp_spec.contract.random`, so it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from stsbp_spec.contract.random import Stream, check_seed, permutation
from stsbp_spec.engine.checks import FIT_SAMPLES_FIRST, swapped_axes
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.typing import Int64
from stsbp_spec.validation import array_of, integer_between, shown

from stsbp.measures.trains import lengths_of, one_train

__all__ = ["chance_level", "partners", "shuffles_of"]

R = TypeVar("R")

_ENOUGH = 100
"""Number of pairs of samples below which each sample is compared with several others."""


def shuffles_of(samples: int) -> int:
    """With how many others each sample is compared: one, or more for fewer than 100 samples; 0 for a single sample."""
    return min(samples - 1, -(-_ENOUGH // samples)) if samples > 1 else 0


def partners(samples: int, seed: int = 0, shuffle: int = 1) -> Int64:
    """For each sample, the number of another sample, whose targets stand in place of its own, `[samples]`.

    Every sample is the partner of exactly one other sample.

    Args:
        samples: number of samples, at least 2.
        seed: 0 to 2^32 - 1.
        shuffle: place of the partner behind the sample in the circle, 1 to `samples - 1`. Each place gives other
            partners.

    Raises:
        SpecError: an argument is not an integer in its range.
    """
    integer_between("the number of samples that are shuffled", samples, 2, 2**31)
    integer_between("the number of the shuffle", shuffle, 1, samples - 1)
    circle = permutation(check_seed(seed), Stream.CHANCE, samples)
    partner: Int64 = np.empty(samples, dtype=np.int64)
    partner[circle] = np.roll(circle, -shuffle)
    return partner


def chance_level(
    measure: Callable[..., R],
    outputs: Any,
    targets: Any,
    *,
    seed: int = 0,
    shuffles: int | None = None,
    lengths: Any = None,
    **parameters: Any,
) -> R:
    """The result of a measure for targets that are shuffled between the samples.

        chance_level(precision_recall_f1, outputs, targets, tolerances=(0, 1)).f1

    Args:
        measure: a function of outputs, targets (or labels) and `lengths`, such as those of `stsbp.measures`.
        outputs: spike trains, `[T, B, N]`.
        targets: target spike trains, `[T, B, N]`, or labels, `[B]`.
        seed: seed of the shuffling, 0 to 2^32 - 1.
        shuffles: with how many others each sample is compared, 1 to B - 1. The measure then gets `shuffles * B`
            samples. None: one, or more for fewer than 100 samples.
        lengths: number of steps of each sample, `[B]`. A sample and its partner are compared in the steps that both
            have. None: all steps count.
        parameters: further arguments of the measure.

    Raises:
        ShapeError: the outputs are not spike trains, the targets or the lengths do not fit, or there is only one
            sample.
        SpecError: the seed or the number of shuffles is not an integer in its range.
    """
    if not callable(measure):
        raise SpecError(f"a measure is a function, such as stsbp.measures.victor_purpura, got {shown(measure)}")
    output_trains, target_array = one_train("outputs", outputs), array_of(targets)
    samples = output_trains.shape[1]
    if samples < 2:
        raise ShapeError("targets are shuffled between samples, but there is only one sample")
    axis = 0 if target_array.ndim == 1 else 1
    if target_array.ndim not in (1, 3) or target_array.shape[axis] != samples:
        hint = swapped_axes(output_trains.shape, target_array.shape)
        hint = FIT_SAMPLES_FIRST if target_array.shape == (len(output_trains),) else hint
        raise ShapeError(
            f"targets must be [T, B, N] or labels [B] with B = {samples}, got {list(target_array.shape)}{hint}"
        )
    steps_of_samples = lengths_of(lengths, samples, len(output_trains))
    count = (
        shuffles_of(samples)
        if shuffles is None
        else integer_between("the number of shuffles", shuffles, 1, samples - 1)
    )
    partner = np.concatenate([partners(samples, seed, shuffle) for shuffle in range(1, count + 1)])
    common = (
        None if steps_of_samples is None else np.minimum(np.tile(steps_of_samples, count), steps_of_samples[partner])
    )
    return measure(
        np.tile(output_trains, (1, count, 1)), np.take(target_array, partner, axis), lengths=common, **parameters
    )
