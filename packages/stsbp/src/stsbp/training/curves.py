"""How a trained network does when it has less time, fewer spikes or disturbed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from stsbp_spec.decoders import nearest_sequence, spike_count
from stsbp_spec.trainer import TrainState
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.datasets import Split
from stsbp.training.build import Task
from stsbp.training.evaluate import evaluate
from stsbp.training.noise import DisturbedSplit
from stsbp.training.operations import MOST_SAMPLES, activity
from stsbp.training.prefetch import prefetched

__all__ = ["MOST_MOMENTS", "OverTime", "by_noise", "over_time"]

MOST_MOMENTS = 50
"""Steps after which is decided: every one, or so many spread evenly where there are more."""


@dataclass(frozen=True)
class OverTime:
    """Decisions after some of the T steps.

    Attributes:
        steps: after which is decided, ascending, the last one T, `[M]`.
        accuracy, accuracy_spike_count: of both decoders, each from the outputs of the first steps alone, `[M]`.
        operations: synaptic operations of all layers up to then, mean over up to `MOST_SAMPLES` samples, `[M]`.
        spikes: spikes of all neurons up to then, likewise, `[M]`.
        settled: step, among `steps`, from which on the class of the nearest label sequence stays what it is at the end,
            mean over the samples.
    """

    steps: Int64
    accuracy: Float64
    accuracy_spike_count: Float64
    operations: Float64
    spikes: Float64
    settled: float

    def record(self) -> list[dict[str, Any]]:
        """As JSON, one object for each step."""
        columns = (self.steps, self.accuracy, self.accuracy_spike_count, self.operations, self.spikes)
        names = ("step", "accuracy", "accuracy_spike_count", "operations", "spikes")
        return [dict(zip(names, row, strict=True)) for row in zip(*(x.tolist() for x in columns), strict=True)]


def over_time(
    task: Task, state: TrainState, split: Split, batch_size: int, between: Callable[[int], None] | None = None
) -> OverTime:
    """Decide after each step, from the outputs up to then.

    Args:
        task, state: the trained network; its labels are classes.
        split: the samples.
        batch_size: samples at a time.
        between: called with the number of samples done after each batch; may raise to stop.
    """
    total, n = task.config.steps, len(split)
    moments = np.unique(np.linspace(1, total, min(total, MOST_MOMENTS)).round().astype(np.int64))
    nearest, counted = (np.zeros((len(moments), n), np.int64) for _ in range(2))
    parts = [np.arange(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
    predict = task.trainer.predictor(state)
    for part, (batch, _) in prefetched(lambda part: task.batch(split, part), parts):
        outputs = predict(batch.inputs, total).spikes
        own = np.full(len(part), total) if batch.lengths is None else batch.lengths
        for k, step in enumerate(moments):
            # Samples that end before have been decided by then.
            lengths = np.minimum(own, step)
            nearest[k, part] = nearest_sequence(task.distances(outputs, lengths))
            counted[k, part] = spike_count(outputs, lengths)
        if between is not None:
            between(int(part[-1]) + 1)
    found = activity(task, state, split, MOST_SAMPLES)
    return OverTime(
        moments,
        (nearest == split.labels).mean(axis=1),
        (counted == split.labels).mean(axis=1),
        _up_to(moments, found.operations),
        _up_to(moments, found.spikes),
        float(moments[_settled(nearest)].mean()),
    )


def _up_to(moments: Int64, of_layers: Mapping[str, Float64]) -> Float64:
    """Sums of all layers over the first steps, of values `[T]` of each."""
    total: Float64 = np.cumsum(np.sum(list(of_layers.values()), axis=0))
    return total[moments - 1]


def _settled(classes: Int64) -> Int64:
    """Number of the first of the moments from which on classes `[M, n]` do not change any more, `[n]`."""
    same: AnyArray = np.logical_and.accumulate((classes == classes[-1])[::-1])[::-1]
    first: Int64 = same.argmax(axis=0)
    return first


def by_noise(
    task: Task,
    state: TrainState,
    split: Split,
    batch_size: int,
    name: str,
    amounts: Sequence[float],
    seed: int = 0,
    between: Callable[[float, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate on inputs that are disturbed more and more.

    Args:
        task, state: the trained network.
        split: the samples.
        batch_size: samples at a time.
        name: of the disturbance, one of `stsbp.training.noise.KINDS`.
        amounts: of it.
        seed: of its draws.
        between: called with the amount and the number of samples done after each batch; may raise to stop.

    Returns:
        For each amount the figures of an evaluation (`Evaluation.means`) and `amount`.
    """
    found = []
    for amount in amounts:
        told = None if between is None else partial(between, amount)
        means = evaluate(task, state, DisturbedSplit(split, name, amount, seed), batch_size, told).means()
        found.append({"amount": amount, **means})
    return found
