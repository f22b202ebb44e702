"""Yin-Yang (Kriener, Goeltz and Petrovici 2022, https://arxiv.org/abs/2102.08211): points of a plane in three classes.

The points are those of the published generator, drawn by numpy's `RandomState`, whose numbers numpy keeps the same.
Each point `(x, y)` in the unit square is given as the four numbers `x, y, 1 - x, 1 - y`. A neuron spikes once for each
of them, the later the larger the number (latency.py). A fifth neuron spikes in the first step. The rates say nothing
about the class.
"""

from __future__ import annotations

import math

import numpy as np
from stsbp_spec.typing import Float64, Int64, UInt8

from stsbp.datasets.base import Dataset, FrameSplit, Request, cut_test
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.latency import check_latency_steps, latency_spikes
from stsbp.errors import DataError

__all__ = ["CLASSES", "YINYANG", "load", "points", "spikes_of_points"]

CLASSES = ("yin", "yang", "dot")
INPUTS = 5
"""One neuron for each of the four numbers of a point, and one that marks the first step."""
_DOT, _RADIUS = 0.1, 0.5
"""Radius of the two dots, and of the whole figure."""
_SETS = {"train": (42, 5000), "validation": (41, 1000), "test": (40, 1000)}
"""Published seed and number of points of each set."""


def _distance(x: float, y: float, centre: float) -> float:
    """Distance from a dot. The square root and the products are rounded in the same way on every machine."""
    return math.sqrt((x - centre) * (x - centre) + (y - _RADIUS) * (y - _RADIUS))


def _class_of(x: float, y: float) -> int:
    """The class of a point in the figure: 0 and 1 are the two halves, 2 is either dot."""
    right, left = _distance(x, y, 1.5 * _RADIUS), _distance(x, y, 0.5 * _RADIUS)
    if right < _DOT or left < _DOT:
        return 2
    in_tail = _DOT < left <= 0.5 * _RADIUS
    in_head = y > _RADIUS and right > 0.5 * _RADIUS
    return int(right <= _DOT or in_tail or in_head)


def points(seed: int, count: int) -> tuple[Float64, Int64]:
    """Points `[n, 2]` in the unit square and their classes `[n]`, as the published generator draws them.

    For each point, it draws a class, and then points until one is in the figure and of this class.
    """
    random = np.random.RandomState(seed)
    drawn, classes = np.empty((count, 2)), np.empty(count, dtype=np.int64)
    for k in range(count):
        wanted = random.randint(3)
        while True:
            x, y = (float(number) for number in random.rand(2) * 2.0 * _RADIUS)
            if _distance(x, y, _RADIUS) <= _RADIUS and _class_of(x, y) == wanted:
                break
        drawn[k], classes[k] = (x, y), wanted
    return drawn, classes


def spikes_of_points(drawn: Float64, steps: int) -> UInt8:
    """Spikes `[n, T, 5]` of points `[n, 2]`."""
    first_step = np.zeros((len(drawn), 1))
    return latency_spikes(np.concatenate([drawn, 1.0 - drawn, first_step], axis=1), steps)


def _split(name: str, steps: int) -> FrameSplit:
    drawn, classes = points(*_SETS[name])
    return FrameSplit(FrameSplit.store(spikes_of_points(drawn, steps)), classes, steps)


def load(request: Request) -> Dataset:
    """5,000 points to train on, and the 1,000 test points, or with `test=validation` the 1,000 validation points.

    Raises:
        DataError: there are fewer than 6 steps, or an option has another value.
    """
    steps = request.binning.steps
    check_latency_steps(steps)
    test_set = request.options.get("test", "test")
    if test_set not in ("test", "validation"):
        raise DataError(f"{request.name}: test must be validation, got {test_set!r}; leave it out for the test set")
    if request.only_test:
        tested = _split(test_set, steps)
        return Dataset(request.name, "events", (INPUTS,), CLASSES, tested, tested)
    train = _split("train", steps)
    notes = [f"{len(train):,} points, drawn by the published generator"]
    if request.wants_own_test:
        tested = _split(test_set, steps)
        notes.append(f"{len(tested):,} test points, those of the published {test_set} set")
        return Dataset(request.name, "events", (INPUTS,), CLASSES, train, tested, tuple(notes))
    kept, held_out = cut_test(train, 1000, request)
    if not request.train_only:
        notes.append(f"{len(held_out):,} of them are held out as test points (split seed {request.seed})")
    return Dataset(request.name, "events", (INPUTS,), CLASSES, kept, held_out, tuple(notes))


YINYANG = DatasetInfo(
    name="yinyang",
    description="Yin-Yang: points of a plane as spike times, 5 neurons, three classes, 5,000 + 1,000, no download",
    coding="events",
    load=load,
    defaults={
        "net": "200-100",
        "loss": "cross-entropy",
        "steps": 90,
        "epochs": 80,
        "batch_size": 50,
        "lr": 0.01,
        "tau_m": 10.0,
        "tau_s": 4.0,
        "init_gain": 8.0,
        "test_every": 0,
    },
    needs_data_dir=False,
    test_set="1,000 points of the published test set; with test=validation, of the published validation set",
    options={"test": "validation: test on the published validation set, to choose settings"},
)
"""The data set of `stsbp train yinyang`, with its default settings."""
