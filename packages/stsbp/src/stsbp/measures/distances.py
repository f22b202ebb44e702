"""Distances of spike trains: Victor-Purpura and van Rossum. They need no matching tolerance, but a scale of time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from stsbp_spec.errors import SpecError
from stsbp_spec.models.losses.base import joined
from stsbp_spec.models.losses.van_rossum import VanRossum
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Float64
from stsbp_spec.validation import real

from stsbp.measures.trains import aligned, lengths_of, read_trains, rows_of

__all__ = ["check_cost", "van_rossum", "victor_purpura"]


def check_cost(cost: Any) -> float:
    """The cost of moving a spike by one step. Raises `SpecError` unless it is a finite number of at least 0."""
    number = real("the cost of moving a spike by one step", cost)
    if not (math.isfinite(number) and number >= 0):
        raise SpecError(f"the cost of moving a spike by one step must be finite and at least 0, got {number}")
    return number


def victor_purpura(outputs: Any, targets: Any, cost: float = 1.0, lengths: Any = None) -> Float64:
    """Victor-Purpura distance of each sample and neuron, `[B, N]` (Victor and Purpura 1996).

    The smallest cost of changing the output train into the target train. To add or to remove a spike costs 1, and to
    move a spike by `d` steps costs `cost * d`. A spike is therefore moved by less than `2 / cost` steps at most. With a
    cost of 0, the distance is the difference of the numbers of spikes.

    The definition is that of `elephant.spike_train_dissimilarity.victor_purpura_distance`, with times in steps and
    `cost` as its `cost_factor` for each step.

    Args:
        outputs, targets: spike trains, `[T, B, N]`.
        cost: cost of moving a spike by one step.
        lengths: number of steps of each sample, `[B]`. None: all steps count.

    Raises:
        ShapeError: these are not spike trains of one shape, or the lengths do not fit.
        SpecError: the cost is not a finite number of at least 0.
    """
    per_step = check_cost(cost)
    output_trains, target_trains = read_trains(outputs, targets, lengths)
    steps = len(output_trains)
    # Each pair saves one removal and one addition, less the cost of its move. Only moves that save are considered.
    gains = 2.0 - per_step * np.arange(steps)
    output_rows, target_rows = rows_of(output_trains), rows_of(target_trains)
    savings = aligned(output_rows, target_rows, gains[gains > 0]).gain
    distances: Float64 = output_rows.sum(axis=1) + target_rows.sum(axis=1) - savings
    return distances.reshape(output_trains.shape[1:])


def van_rossum(outputs: Any, targets: Any, tau: float, lengths: Any = None) -> Float64:
    """Van Rossum distance of each sample and neuron, `[B, N]` (van Rossum 2001).

    Half of the squared difference of both filtered trains, summed over the steps. The filter `a_t = (1 - 1/tau) a_{t-1}
    + s_t / tau` is that of the network's synapses. Its decay in a step is `1 - 1/tau`, where elephant's
    `van_rossum_distance` has `exp(-1/tau)` and takes the square root of the integral, so the numbers differ.

    Args:
        outputs, targets, lengths: as for `victor_purpura`.
        tau: time constant of the filter in steps, at least 1.

    Raises:
        ShapeError: these are not spike trains of one shape, or the lengths do not fit.
        SpecError: the time constant is not a number of at least 1.
    """
    psp = PSP(tau)
    output_trains, target_trains = (x.astype(np.uint8) for x in read_trains(outputs, targets, lengths))
    return joined(
        VanRossum().parts(
            output_trains, target_trains, psp, lengths_of(lengths, output_trains.shape[1], len(output_trains))
        )[..., None]
    )
