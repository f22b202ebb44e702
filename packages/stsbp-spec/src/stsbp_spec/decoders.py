"""From output spike trains to a class. All backends use this numpy code, on spikes that are the same bits
everywhere."""

from __future__ import annotations

import numpy as np

from stsbp_spec.lengths import without_padding
from stsbp_spec.losses.base import Loss
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8

__all__ = ["distances", "equally_near", "nearest_sequence", "spike_count"]


def distances(spikes: UInt8, sequences: UInt8, loss: Loss, psp: PSP, lengths: Int64 | None = None) -> Float64:
    """Distance of each sample's output to each class's label sequence, in the metric of the loss.

    Args:
        spikes: `[T, B, N]`.
        sequences: target spike trains of each class, `[K, T, N]` (`LabelCode.sequences`).
        loss: the metric.
        psp: the output layer's synaptic filter.
        lengths: number of steps of each sample, `[B]`. Only these steps count. None: all steps count.

    Returns:
        `[B, K]`.
    """
    return np.stack([loss.distances(spikes, target[:, None, :], psp, lengths) for target in sequences], axis=1)


def equally_near(distance: Float64) -> AnyArray:
    """Which label sequences are the nearest, bool: `[B, K] -> [B, K]`.

    Distances that differ by less than one part in 10^9 count as equal. The rounding of a sum can then never decide.
    """
    least = distance.min(axis=1, keepdims=True)
    near: AnyArray = distance <= least + 1e-9 * np.abs(least)
    return near


def nearest_sequence(distance: Float64) -> Int64:
    """The class of the nearest label sequence, `[B, K] -> [B]`. If several are `equally_near`, the lowest class."""
    nearest: Int64 = equally_near(distance).argmax(axis=1).astype(np.int64)
    return nearest


def spike_count(spikes: AnyArray, lengths: Int64 | None = None) -> Int64:
    """The output neuron with the most spikes, `[T, B, N] -> [B]`. For equal counts, the lowest class.

    For the potentials of a readout: the neuron with the largest sum, which is also the one with the largest mean.

    `lengths`: number of steps of each sample, `[B]`. Only spikes in these steps count. None: all steps count.
    """
    kind = np.int64 if spikes.dtype == np.uint8 else np.float64
    most: Int64 = without_padding(spikes, lengths).sum(axis=0, dtype=kind).argmax(axis=1).astype(np.int64)
    return most
