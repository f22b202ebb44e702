"""Latency: how many steps a network runs until its first right spike."""

from __future__ import annotations

from typing import Any

import numpy as np
from stsbp_spec.engine.checks import FIT_SAMPLES_FIRST
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.typing import AnyArray, Float64
from stsbp_spec.validation import array_of

from stsbp.measures.matching import check_tolerances
from stsbp.measures.trains import lengths_of, one_train, read_trains

__all__ = ["first_match_latency", "first_spike_latency"]


def first_spike_latency(outputs: Any, labels: Any, lengths: Any = None) -> Float64:
    """Steps until the first spike of the neuron of each sample's class, `[B]`. NaN if this neuron is silent.

    The step of the spike counts, so a spike in the first step has a latency of 1.

    Args:
        outputs: output spike trains, `[T, B, N]`.
        labels: the class of each sample, the number of its neuron, `[B]`.
        lengths: number of steps of each sample, `[B]`. None: all steps count.

    Raises:
        ShapeError: the outputs are not spike trains, or the labels or the lengths do not fit.
    """
    spikes, classes = one_train("outputs", outputs), array_of(labels)
    samples, neurons = spikes.shape[1:]
    if classes.dtype.kind not in "iu" or classes.shape != (samples,):
        raise ShapeError(
            f"labels must be integers [B] = [{samples}], got {classes.dtype} of shape {list(classes.shape)}"
            f"{FIT_SAMPLES_FIRST if classes.shape == (len(spikes),) else ''}"
        )
    if ((classes < 0) | (classes >= neurons)).any():
        raise ShapeError(f"labels must be from 0 to {neurons - 1}, the numbers of the output neurons")
    spikes = without_padding(spikes, lengths_of(lengths, samples, len(spikes)))
    return _first(spikes[:, np.arange(samples), classes])


def first_match_latency(outputs: Any, targets: Any, tolerance: int = 1, lengths: Any = None) -> Float64:
    """Steps until the first output spike of each sample that matches a target spike, `[B]`. NaN if none does.

    The step of the spike counts, so a match in the first step has a latency of 1. The target spike may come up to
    `tolerance` steps later.

    Args:
        outputs, targets: spike trains, `[T, B, N]`.
        tolerance: largest distance of a match in steps.
        lengths: number of steps of each sample, `[B]`. None: all steps count.

    Raises:
        ShapeError: these are not spike trains of one shape, or the lengths do not fit.
        SpecError: the tolerance is not an integer of at least 0.
    """
    (largest_distance,) = check_tolerances((tolerance,))
    output_trains, target_trains = read_trains(outputs, targets, lengths)
    reach = min(largest_distance, len(output_trains) - 1)
    targets_before = np.zeros((len(output_trains) + 1, *output_trains.shape[1:]), dtype=np.int32)
    np.cumsum(target_trains, axis=0, dtype=np.int32, out=targets_before[1:])
    steps = np.arange(len(output_trains))
    # The first spike with a target spike in reach is always matched, because no earlier spike takes this target.
    in_reach = (
        targets_before[np.minimum(steps + reach + 1, len(output_trains))] > targets_before[np.maximum(steps - reach, 0)]
    )
    is_matched: AnyArray = np.any(output_trains & in_reach, axis=2)
    return _first(is_matched)


def _first(spiking: AnyArray) -> Float64:
    """Number of the first step, from 1, at which each column of `[T, B]` is true, `[B]`; NaN if none is."""
    return np.where(spiking.any(axis=0), spiking.argmax(axis=0) + 1.0, np.nan)
