"""The classic spike-pattern task: the network must answer fixed input rasters with fixed output rasters.

Input rasters are random. Target rasters are random trains (`patterns`), or show the letters S, T, B and P, one per
pattern (`patterns-image`). The task tests memory and timing, so the test set is the training set.
"""

from __future__ import annotations

import numpy as np
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.typing import UInt8

from stsbp.datasets.base import Dataset, Request, Subset
from stsbp.datasets.info import DatasetInfo, Setting
from stsbp.datasets.sequences import SequenceSplit
from stsbp.errors import DataError

__all__ = ["LETTERS", "RASTERS", "load"]

INPUTS = 64
OUTPUTS = 10
PATTERNS = 4
REPEATS = 50
"""Number of times that an epoch shows each pattern."""
INPUT_RATE = 0.1
"""Spikes per input neuron and step."""
TARGET_RATE = 0.07
GAP = 4
"""Smallest number of steps between two target spikes of a neuron."""
QUIET = 4
"""Number of steps at the beginning without target spikes, at least `GAP`. Spikes need this long to reach the output."""

_LETTERS = {
    "S": (".###", "#...", ".##.", "...#", "###."),
    "T": ("#####", "..#..", "..#..", "..#..", "..#.."),
    "B": ("###.", "#..#", "###.", "#..#", "###."),
    "P": ("###.", "#..#", "###.", "#...", "#..."),
}


def _random_targets(seed: int, steps: int) -> UInt8:
    """`[n, T, N]`: random trains with the rate `TARGET_RATE` and at least `GAP` steps between two spikes."""
    draws = uniform(seed, Stream.SIMULATION, PATTERNS * steps * OUTPUTS, substream=1).reshape(PATTERNS, steps, OUTPUTS)
    targets: UInt8 = np.zeros(draws.shape, dtype=np.uint8)
    # The gaps reduce the rate, so spikes must be drawn more often.
    share = TARGET_RATE / (1 - TARGET_RATE * (GAP - 1))
    for t in range(QUIET, steps):
        rested = ~targets[:, t - GAP + 1 : t].any(axis=1)
        targets[:, t] = rested & (draws[:, t] < share)
    return targets


def _letter_targets(steps: int) -> UInt8:
    """`[n, T, N]`: one letter per pattern, with two neurons per row and a spike every third step along a stroke."""
    targets: UInt8 = np.zeros((len(_LETTERS), steps, OUTPUTS), dtype=np.uint8)
    for number, rows in enumerate(_LETTERS.values()):
        columns = len(rows[0])
        width = max(3, (steps - QUIET) // columns)
        for row, line in enumerate(rows):
            for column, mark in enumerate(line):
                if mark == "#":
                    begin = QUIET + column * width
                    targets[number, begin : begin + width : 3, 2 * row : 2 * row + 2] = 1
    return targets


def load(request: Request) -> Dataset:
    """Four patterns with 64 input and 10 output neurons. `--split-seed` draws other patterns."""
    steps = request.binning.steps
    if steps < 20:
        raise DataError(f"the patterns need at least 20 steps, got {steps}: give --steps 50")
    if request.holdout is not None:
        raise DataError("this task tests memory, so the test set is the training set; leave holdout out")
    image = request.name == "patterns-image"
    shape = (PATTERNS, steps, INPUTS)
    rasters = uniform(request.seed, Stream.SIMULATION, int(np.prod(shape))).reshape(shape) < INPUT_RATE
    targets = _letter_targets(steps) if image else _random_targets(request.seed, steps)
    patterns = SequenceSplit(rasters.astype(np.uint8), targets, np.arange(PATTERNS, dtype=np.int64))
    note = (
        f"{PATTERNS} patterns, {int(targets.sum())} target spikes; an epoch shows each {REPEATS} times, and the test "
        "set is these patterns: a task of memory and timing"
    )
    train = Subset(patterns, np.tile(np.arange(PATTERNS), REPEATS))
    return Dataset(request.name, "events", (INPUTS,), (), train, patterns, (note,), neurons=OUTPUTS)


_DEFAULTS: dict[str, Setting] = {
    "net": "200",
    "steps": 50,
    "epochs": 10,
    "batch_size": 4,
    "lr": 5e-3,
    "tau_m": 5.0,
    "tau_s": 2.0,
    "test_every": 5,
}

RASTERS = DatasetInfo(
    name="patterns",
    description="answer 4 random rasters with 4 other random rasters, spike by spike, 64 -> 10 neurons, no download",
    coding="events",
    load=load,
    defaults=_DEFAULTS,
    default_holdout=None,
    needs_data_dir=False,
)
"""The data set of `stsbp train patterns`, with its default settings."""


LETTERS = DatasetInfo(
    name="patterns-image",
    description="answer 4 random rasters with 4 letters drawn with spikes, 64 -> 10 neurons, no download",
    coding="events",
    load=load,
    defaults=_DEFAULTS,
    default_holdout=None,
    needs_data_dir=False,
)
"""The data set of `stsbp train patterns-image`, with its default settings."""
