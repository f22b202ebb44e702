"""Gaits of a walking machine. The inputs are spikes of commands, and the targets are spikes of movements of the joints.

The machine has four legs, each with a hip and a knee. The angle of a joint is periodic. Each joint has two output
neurons, "up" and "down". One of them spikes whenever the angle crosses one of its levels upwards, the other one
downwards, like an incremental encoder. Counting these spikes gives back the angle.

    hip   A sin(p)                                    A = amplitude, grows with the speed
    knee  A sin(p + pi/2) if that is positive, else 0          (lifted while the leg swings forward)

with p = 2 pi (phase + offset of the leg in this gait). The input has 32 clock neurons, each of which spikes once per
period at its own phase; 8 neurons for the speed, of which more spike steadily the higher it is; and 3 neurons for the
gait (walk, trot or bound), of which one spikes steadily. No two samples have the same input.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.typing import Float64, Int64, UInt8

from stsbp.datasets.base import Dataset, Request
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.sequences import SequenceSplit
from stsbp.errors import DataError

__all__ = ["GAITS", "MOTOR", "OUTPUT_NAMES", "load"]

GAITS = ("walk", "trot", "bound")
_OFFSETS: Float64 = np.array([[0, 0.5, 0.75, 0.25], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
"""Phase of each leg (left front, right front, left hind, right hind) in each gait."""

OUTPUT_NAMES = tuple(
    f"{leg} {joint} {direction}"
    for leg in ("left front", "right front", "left hind", "right hind")
    for joint in ("hip", "knee")
    for direction in ("up", "down")
)

CLOCKS = 32
SPEEDS = 8
SPEED_PERIOD = 4
"""Number of steps between two spikes of a neuron for speed or gait."""
SLOW, FAST = 40.0, 24.0
"""Number of steps of a period at the lowest and at the highest speed."""
LEVELS: Float64 = np.array([-0.75, -0.45, -0.15, 0.15, 0.45, 0.75])
QUIET = 5
"""Number of steps at the beginning without target spikes. In this time, the network receives clock, speed and gait."""
TRAIN, TEST = 240, 60
_DRAWN = 600
"""Number of samples that are drawn. It is more than needed, because some have the same input."""


def _simulate(speed: Float64, first: Float64, gait: Int64, steps: int) -> tuple[UInt8, UInt8]:
    """Inputs `[n, T, 43]` and targets `[n, T, 16]` for speeds `[n]` and first phases `[n]` in [0, 1), gaits `[n]`."""
    n = len(speed)
    period = SLOW + (FAST - SLOW) * speed
    # One additional step before the first one, because a crossing is between two steps.
    phase = first[:, None] + np.arange(-1, steps) / period[:, None]
    inputs: UInt8 = np.zeros((n, steps, CLOCKS + SPEEDS + len(GAITS)), dtype=np.uint8)
    turns = np.floor(phase[..., None] - np.arange(CLOCKS) / CLOCKS)
    inputs[..., :CLOCKS] = turns[:, 1:] > turns[:, :-1]
    beat = np.arange(steps) % SPEED_PERIOD == 0
    active = np.arange(SPEEDS) < np.round(speed * SPEEDS)[:, None]
    inputs[..., CLOCKS : CLOCKS + SPEEDS] = beat[:, None] & active[:, None, :]
    inputs[..., CLOCKS + SPEEDS :] = beat[:, None] & (np.arange(len(GAITS)) == gait[:, None])[:, None, :]

    angle = 2 * np.pi * (phase[..., None] + _OFFSETS[gait][:, None, :])
    amplitude = (0.5 + 0.5 * speed)[:, None, None]
    joints = np.stack([amplitude * np.sin(angle), amplitude * np.maximum(0, np.cos(angle))], axis=-1)
    exceeds_level = joints[..., None] > LEVELS
    rising = (exceeds_level[:, 1:] & ~exceeds_level[:, :-1]).any(axis=-1)
    falling = (~exceeds_level[:, 1:] & exceeds_level[:, :-1]).any(axis=-1)
    targets = np.stack([rising, falling], axis=-1).reshape(n, steps, len(OUTPUT_NAMES)).astype(np.uint8)
    targets[:, :QUIET] = 0
    return inputs, targets


def load(request: Request) -> Dataset:
    """240 training and 60 test samples, with about a third of each gait. `--split-seed` draws other samples."""
    steps = request.binning.steps
    if steps < 20:
        raise DataError(f"the gaits need at least 20 steps, got {steps}: give --steps 60")
    test_count = 0 if request.train_only else TEST if request.holdout is None else request.holdout
    if not (request.train_only or 1 <= test_count < TRAIN + TEST):
        raise DataError(f"cannot hold out {test_count} of {TRAIN + TEST} samples; choose another holdout")
    n = TRAIN + TEST
    speed, first = uniform(request.seed, Stream.SIMULATION, 2 * _DRAWN, substream=2).reshape(2, _DRAWN)
    gait = np.arange(_DRAWN, dtype=np.int64) % len(GAITS)
    inputs, targets = _simulate(speed, first, gait, steps)
    # Two speeds may be so close that their inputs are equal. Keep only one, or a test sample could be a training
    # sample.
    chosen = np.sort(np.unique(inputs.reshape(_DRAWN, -1), axis=0, return_index=True)[1])[:n]
    train, test = (
        SequenceSplit(inputs[part], targets[part], gait[part]) for part in (chosen[test_count:], chosen[:test_count])
    )
    cut = request.told_of_test(f", {len(test)} more at other speeds and phases held out as test samples")
    note = f"{len(train)} simulated gaits{cut}"
    return Dataset("motor", "events", inputs.shape[2:], (), train, test, (note,), neurons=len(OUTPUT_NAMES))


MOTOR = DatasetInfo(
    name="motor",
    description="gaits of a four-legged machine: clock, speed, gait -> spikes for 8 joints, 43 -> 16, no download",
    coding="events",
    load=load,
    defaults={
        "net": "400",
        "steps": 60,
        "epochs": 40,
        "batch_size": 10,
        "lr": 5e-3,
        "tau_m": 5.0,
        "tau_s": 2.0,
        "test_every": 10,
    },
    default_holdout=TEST,
    needs_data_dir=False,
)
"""The data set of `stsbp train motor`, with its default settings."""
