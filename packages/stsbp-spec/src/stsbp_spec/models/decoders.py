"""From output spike trains to a class. All backends use this numpy code, on spikes that are the same bits
everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from stsbp_spec.engine.checks import check_lengths, check_loss, check_psp
from stsbp_spec.errors import NumericError, ShapeError
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64
from stsbp_spec.validation import array_of

__all__ = ["distances", "equally_near", "nearest_sequence", "spike_count"]


def distances(spikes: Any, sequences: Any, loss: Loss, psp: PSP, lengths: Any = None) -> Float64:
    """Distance of each sample's output to each class's label sequence, in the metric of the loss.

    Args:
        spikes: `[T, B, N]`, as a numpy array or as a tensor of torch or JAX.
        sequences: target spike trains of each class, `[K, T, N]` of 0 and 1 (`LabelCode.sequences`), of any kind that
            `spikes` may have.
        loss: the metric.
        psp: the output layer's synaptic filter.
        lengths: number of steps of each sample, `[B]`. Only these steps count. None: all steps count.

    Returns:
        `[B, K]`.

    Raises:
        ShapeError: the spikes are not `[T, B, N]`, the sequences are not `[K, T, N]` with the same `T` and `N` or hold
            other values than 0 and 1, or the lengths do not fit.
        SpecError: `loss` is not a loss, or `psp` not a filter.
    """
    check_loss(loss)
    check_psp(psp)
    spikes, lengths = _trains(spikes, lengths)
    sequences = array_of(sequences)
    steps, _, neurons = spikes.shape
    # Numpy would broadcast axes of length 1, and measure distances to other sequences.
    if sequences.ndim != 3 or len(sequences) == 0 or sequences.shape[1:] != (steps, neurons):
        raise ShapeError(
            f"sequences must be [K, T, N] = [K, {steps}, {neurons}] with K >= 1, the steps and neurons of the spikes, "
            f"got {list(sequences.shape)}"
        )
    if not ((sequences == 0) | (sequences == 1)).all():
        raise ShapeError("sequences are spike trains of 0 and 1")
    sequences = sequences.astype(np.uint8, copy=False)
    return np.stack([loss.distances(spikes, target[:, None, :], psp, lengths) for target in sequences], axis=1)


def _trains(spikes: Any, lengths: Any) -> tuple[AnyArray, Int64 | None]:
    spikes, lengths = array_of(spikes), None if lengths is None else array_of(lengths)
    if spikes.ndim != 3 or 0 in spikes.shape:
        raise ShapeError(f"spikes must be [T, B, N] without empty axes, got {list(spikes.shape)}")
    check_lengths(lengths, spikes.shape[1], len(spikes))
    return spikes, lengths


def equally_near(distance: Any) -> AnyArray:
    """Which label sequences are the nearest, bool: `[B, K] -> [B, K]`.

    Distances that differ by less than one part in 10^9 count as equal. The rounding of a sum can then never decide.

    Raises:
        ShapeError: the distances are not `[B, K]` with at least one class.
        NumericError: a distance is NaN.
    """
    distance = array_of(distance)
    if distance.ndim != 2 or distance.shape[1] == 0:
        raise ShapeError(f"distances must be [B, K] with K >= 1, got {list(distance.shape)}")
    if (wrong := np.isnan(distance).any(axis=1)).any():
        raise NumericError(f"a distance of sample {int(wrong.argmax())} is NaN, so no label sequence is the nearest")
    smallest = distance.min(axis=1, keepdims=True)
    is_nearest: AnyArray = distance <= smallest + 1e-9 * np.abs(smallest)
    return is_nearest


def nearest_sequence(distance: Any) -> Int64:
    """The class of the nearest label sequence, `[B, K] -> [B]`. If several are `equally_near`, the lowest class.

    Raises:
        ShapeError, NumericError: as for `equally_near`.
    """
    nearest: Int64 = equally_near(distance).argmax(axis=1).astype(np.int64)
    return nearest


def spike_count(spikes: Any, lengths: Any = None) -> Int64:
    """The output neuron with the most spikes, `[T, B, N] -> [B]`. For equal counts, the lowest class.

    `spikes` are a numpy array or a tensor of torch or JAX.

    For the potentials of a readout: the neuron with the largest sum, which is also the one with the largest mean.

    `lengths`: number of steps of each sample, `[B]`. Only spikes in these steps count. None: all steps count.

    Raises:
        ShapeError: the spikes are not `[T, B, N]`, or the lengths do not fit.
    """
    spikes, lengths = _trains(spikes, lengths)
    dtype = np.int64 if spikes.dtype == np.uint8 else np.float64
    classes: Int64 = without_padding(spikes, lengths).sum(axis=0, dtype=dtype).argmax(axis=1).astype(np.int64)
    return classes
