"""The chaotic series of Mackey and Glass (1977), which a network continues on its own.

    dx/dt = beta x(t - tau) / (1 + x(t - tau)^10) - gamma x(t),     beta = 0.2, gamma = 0.1

Before time 0, x has a constant value. The fourth-order Runge-Kutta method computes the series with a step of
h = 1/75. A value of the series is a point every L/75, where L is the Lyapunov time of the delay tau. So both tau and
the time between two points are whole numbers of steps, 75 tau and L. The method also needs x(t - tau) in the middle of
a step: this is the cubic polynomial through the values and slopes at both ends of that step (Hermite interpolation).

All operations are + - * / in float64, which every machine rounds correctly, and powers are products. So the series has
the same bits everywhere. It is chaotic: with other bits, it would be another series after some Lyapunov times.

The protocol is that of NeuroBench (its repository, neurobench/examples/mackey_glass/esn_benchmark.py, and
neurobench/datasets/mackey_glass_parameters.csv): 14 delays, with Lyapunov time and initial value of each; 30 starts,
half a Lyapunov time apart; training on 10 Lyapunov times, and then 10 more that the network continues on its own.

A value becomes spikes by a population code: 17 input neurons have receptive fields on equal distances. The activity of
a field is a triangle around its centre, and the number of spikes of its neuron in this step is the activity in units of
1/255. The input of a step has the code of the last 20 values. The target is the change to the next value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from stsbp_spec.typing import Float64, UInt8

from stsbp.datasets.base import Dataset, Request, Subset
from stsbp.datasets.forecast import Forecast
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.sequences import SequenceSplit
from stsbp.errors import DataError

__all__ = [
    "DIRECT_NET",
    "FIELDS",
    "HISTORY",
    "MACKEY_GLASS",
    "STARTS",
    "SYSTEMS",
    "System",
    "decode",
    "encode",
    "load",
    "series",
]


class System(NamedTuple):
    """The equation with one delay.

    Attributes:
        lyapunov: Lyapunov time in the units of the equation.
        before: the value before time 0.
    """

    lyapunov: int
    before: float


SYSTEMS: dict[int, System] = {
    17: System(197, 0.7206597),
    18: System(138, 0.7744313),
    19: System(315, 0.7783468),
    20: System(131, 0.9225991),
    21: System(191, 0.9479431),
    22: System(119, 0.5455960),
    23: System(106, 0.8622247),
    24: System(97, 0.3259660),
    25: System(98, 0.8297825),
    26: System(104, 1.0033490),
    27: System(112, 0.6491406),
    28: System(119, 1.0957495),
    29: System(131, 0.9256179),
    30: System(139, 0.2713639),
}
"""The delays of the protocol, with the parameters of NeuroBench's file mackey_glass_parameters.csv."""

PER_LYAPUNOV = 75
"""Number of points in a Lyapunov time, and of steps of the method in a unit of time."""
STARTS = 30
TRAINED = FORECAST = 10 * PER_LYAPUNOV
"""Number of points after the first one that the network is trained to predict, and of those it continues with."""

BETA, GAMMA = 0.2, 0.1

LOW, HIGH = 0.15, 1.45
"""Centres of the lowest and of the highest receptive field. All values of the protocol lie between them."""
FIELDS = 17
WIDTH = 2
"""Distance from the centre of a field to its end, in distances between neighbouring centres."""
MOST_SPIKES = 255
HISTORY = 20
"""Number of values in the input of a step. The longest delay is 16.2 points, for tau = 30."""
REPEATS = 8
"""Number of times that an epoch shows each sample, because there are few."""
UNITS = 512
"""Targets are changes of the value in units of 1/512."""

_SPACING = (HIGH - LOW) / (FIELDS - 1)
_CENTRES: Float64 = LOW + _SPACING * np.arange(FIELDS, dtype=np.float64)


def _production(x: Float64) -> Float64:
    """`beta x / (1 + x^10)`."""
    square = x * x
    fourth = square * square
    production: Float64 = BETA * x / (1.0 + fourth * fourth * square)
    return production


@lru_cache(maxsize=2)
def _points(tau: int, count: int) -> Float64:
    lyapunov, before = SYSTEMS[tau]
    h = 1 / PER_LYAPUNOV
    half, sixth, eighth = h / 2, h / 6, h / 8
    delay, steps = tau * PER_LYAPUNOV, (count - 1) * lyapunov
    # The values from time -tau on, and their slopes.
    x: Float64 = np.full(delay + steps + 1, before)
    slope: Float64 = np.zeros(delay + steps + 1)
    # During a delay, all values that the equation needs from the past are known, so their terms are computed together.
    for first in range(0, steps, delay):
        last = min(first + delay, steps)
        past, past_slope = x[first : last + 1], slope[first : last + 1]
        middle = 0.5 * (past[:-1] + past[1:]) + eighth * (past_slope[:-1] - past_slope[1:])
        at_ends, at_middle = _production(past).tolist(), _production(middle).tolist()
        values, slopes = [float(x[delay + first])], list[float]()
        for p, p_middle, p_next in zip(at_ends[:-1], at_middle, at_ends[1:], strict=True):
            value = values[-1]
            k1 = p - GAMMA * value
            k2 = p_middle - GAMMA * (value + half * k1)
            k3 = p_middle - GAMMA * (value + half * k2)
            k4 = p_next - GAMMA * (value + h * k3)
            values.append(value + sixth * (k1 + 2.0 * k2 + 2.0 * k3 + k4))
            slopes.append(k1)
        slopes.append(at_ends[-1] - GAMMA * values[-1])
        x[delay + first : delay + last + 1] = values
        slope[delay + first : delay + last + 1] = slopes
    points = x[delay::lyapunov].copy()
    points.flags.writeable = False
    return points


def series(tau: int, count: int) -> Float64:
    """The first `count` points of the series with the delay `tau`, from time 0 on, `[count]`. Read-only.

    Raises:
        DataError: there is no such delay, or no point.
    """
    if tau not in SYSTEMS or count < 1:
        raise DataError(f"expected tau from {min(SYSTEMS)} to {max(SYSTEMS)} and a point or more, got {tau}, {count}")
    return _points(tau, count)


def encode(values: Float64) -> UInt8:
    """The population code of values `[...]`: numbers of spikes of the receptive fields, uint8 `[..., FIELDS]`."""
    distance = np.abs(np.asarray(values)[..., np.newaxis] - _CENTRES) / (WIDTH * _SPACING)
    activity = np.maximum(0.0, 1.0 - distance)
    return np.floor(activity * MOST_SPIKES + 0.5).astype(np.uint8)


def decode(counts: UInt8) -> Float64:
    """Values `[...]` from their code `[..., FIELDS]`: the mean of the centres, weighted by the numbers of spikes.

    It is exact up to the rounding of the numbers of spikes, except near the lowest and the highest centre, where a part
    of the triangle has no neurons.
    """
    weights = counts.astype(np.float64)
    values: Float64 = (weights * _CENTRES).sum(axis=-1) / weights.sum(axis=-1)
    return values


def _input(history: Float64) -> UInt8:
    """The input of a step, `[HISTORY * FIELDS]`, from the last values `[HISTORY]`. The newest value comes first."""
    return encode(history[::-1]).reshape(-1)


def _next_value(last: float, output: float) -> float:
    """The value that an output predicts. It is kept between the lowest and the highest centre."""
    return min(max(last + output / UNITS, LOW), HIGH)


def _windows(points: Float64, steps: int) -> SequenceSplit:
    """Samples of `steps` steps, one point a step, one sample after the other.

    `points` begin with the `HISTORY` values that the first step knows. What does not fill a sample is left out at the
    beginning.
    """
    codes = encode(points)
    known = len(points) - HISTORY
    inputs = np.stack([codes[HISTORY - 1 - lag : len(points) - 1 - lag] for lag in range(HISTORY)], axis=1)
    changes = (np.diff(points)[HISTORY - 1 :] * UNITS).astype(np.float32)
    samples = known // steps
    kept = slice(known - samples * steps, None)
    return SequenceSplit(
        inputs[kept].reshape(samples, steps, HISTORY * FIELDS),
        changes[kept].reshape(samples, steps, 1),
        np.zeros(samples, dtype=np.int64),
        counts=True,
    )


def load(request: Request) -> Dataset:
    """The series from one start: 750 points to train on, and the 750 points after them.

    The test samples have the points of the forecast, with the true values as inputs. `Dataset.forecast` feeds
    predictions back.

    Raises:
        DataError: `tau`, `start` or the number of steps is outside its range, or test samples should be held out.
    """
    tau = request.whole_option("tau", 17, min(SYSTEMS), max(SYSTEMS), most_digits=3)
    start = request.whole_option("start", 0, 0, STARTS - 1, most_digits=3)
    steps = request.binning.steps
    if not 1 <= steps <= (TRAINED - HISTORY + 1) // 2:
        raise DataError(
            f"{request.name}: a sample has 1 to {(TRAINED - HISTORY + 1) // 2} steps, got {steps}: give --steps 5"
        )
    if request.holdout is not None:
        raise DataError(f"{request.name}: the test samples are the points after the others; leave holdout out")
    # As NeuroBench, which rounds half a point down.
    first = start * PER_LYAPUNOV // 2
    points = series(tau, (STARTS - 1) * PER_LYAPUNOV // 2 + TRAINED + FORECAST + 1)[first:]
    known, truth = points[: TRAINED + 1], points[TRAINED + 1 : TRAINED + FORECAST + 1]
    train, test = _windows(known, steps), _windows(points[TRAINED + 1 - HISTORY : TRAINED + FORECAST + 1], steps)
    forecast = Forecast(
        known=known,
        truth=truth,
        history=HISTORY,
        encode=_input,
        next_value=_next_value,
        unit=PER_LYAPUNOV,
        unit_name="Lyapunov time",
    )
    told = request.told_of_test(f", {len(truth)} more to continue with")
    note = f"Mackey-Glass with tau = {tau}, start {start}: {len(known)} points to train on{told}"
    return Dataset(
        "mackey-glass",
        "events",
        (HISTORY * FIELDS,),
        (),
        Subset(train, np.tile(np.arange(len(train)), REPEATS)),
        test,
        (note,),
        neurons=1,
        input_max=MOST_SPIKES,
        real_targets=True,
        forecast=None if request.train_only else forecast,
    )


_NET = """\
[[node]]
name = "hidden"
weights = "128"
from = "input"

[[node]]
name = "spikes"
neurons = "tau_m=1,tau_s=1,threshold=100,surrogate=triangle:width=100"
from = "hidden"

[[node]]
name = "correction"
weights = "1b"
from = "spikes"

[[node]]
name = "direct"
weights = "1"
from = "input"

[[node]]
name = "output"
neurons = "neuron=readout,tau_m=1"
from = ["correction", "direct"]
"""

DIRECT_NET = """\
[[node]]
name = "direct"
weights = "1"
from = "input"

[[node]]
name = "output"
neurons = "neuron=readout,tau_m=1"
from = "direct"
"""
"""The network without hidden neurons, to compare with."""

MACKEY_GLASS = DatasetInfo(
    name="mackey-glass",
    description="a chaotic series that the network predicts and then continues on its own, no download",
    coding="events",
    load=load,
    defaults={
        "net": _NET,
        "loss": "mse",
        "steps": 5,
        "epochs": 200,
        # As many as there are samples of 5 steps. With smaller batches, the changes are predicted less exactly.
        "batch_size": 146,
        "lr": 1e-2,
        # Inputs are numbers of spikes, up to 255, so the weights begin small.
        "init_gain": 0.02,
        "test_every": 0,
    },
    test_set="the 750 points after those of the training",
    default_holdout=None,
    needs_data_dir=False,
    options={
        "tau": f"delay of the equation, {min(SYSTEMS)} to {max(SYSTEMS)}; 17 by default",
        "start": f"number of the start, 0 to {STARTS - 1}; each is half a Lyapunov time after the one before",
    },
)
"""The data set of `stsbp train mackey-glass`, with its default settings."""
