"""The performance of a trained network with less time, fewer spikes or disturbed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.decoders import nearest_sequence, spike_count
from stsbp_spec.typing import AnyArray, Float64, Int64

from stsbp.datasets import Split
from stsbp.energy.totals import EnergyPrices
from stsbp.training.build import Task
from stsbp.training.evaluate import evaluate
from stsbp.training.noise import DisturbedSplit
from stsbp.training.operations import MOST_SAMPLES, activity
from stsbp.training.prefetch import prefetched
from stsbp.training.timing import Measuring

__all__ = ["MOST_MOMENTS", "OverTime", "by_noise", "over_time"]

MOST_MOMENTS = 50
"""Largest number of steps after which the class is determined. If there are more steps, they are spread evenly."""


@dataclass(frozen=True)
class OverTime:
    """Decisions after some of the T steps.

    Attributes:
        steps: steps after which the class is determined, ascending; the last one is T, `[M]`.
        accuracy, accuracy_spike_count: accuracies of both decoders, from the outputs of the first steps only, `[M]`.
        operations: synaptic operations of all layers until then, mean over up to `MOST_SAMPLES` samples, `[M]`.
        spikes: spikes of all neurons until then, also a mean, `[M]`.
        energy: energy of the network in pJ until then, also a mean, `[M]`. None if it was not asked for.
        settled: the step among `steps` from which on the class of the nearest label sequence no longer changes; mean
            over the samples.
    """

    steps: Int64
    accuracy: Float64
    accuracy_spike_count: Float64
    operations: Float64
    spikes: Float64
    settled: float
    energy: Float64 | None = None

    def record(self) -> list[dict[str, Any]]:
        """As JSON values, one object for each step."""
        columns = {
            "step": self.steps,
            "accuracy": self.accuracy,
            "accuracy_spike_count": self.accuracy_spike_count,
            "operations": self.operations,
            "spikes": self.spikes,
            **({} if self.energy is None else {"pj": self.energy}),
        }
        rows = zip(*(x.tolist() for x in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


def over_time(
    task: Task,
    state: TrainState,
    split: Split,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
    prices: EnergyPrices | None = None,
) -> OverTime:
    """Determine the class after each step, from the outputs until then.

    Args:
        task, state: the trained network. Its labels must be classes.
        split: the samples.
        batch_size: number of samples at a time.
        on_progress: called after each batch with the number of finished samples. It may raise an error to stop.
        prices: energy of each operation. None: the energy is left out.
    """
    total, n = task.config.steps, len(split)
    moments = np.unique(np.linspace(1, total, min(total, MOST_MOMENTS)).round().astype(np.int64))
    nearest_class, count_class = (np.zeros((len(moments), n), np.int64) for _ in range(2))
    parts = [np.arange(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
    predict = task.trainer.predictor(state)
    for part, (batch, _) in prefetched(lambda part: task.batch(split, part), parts):
        outputs = predict(batch.inputs, total).spikes
        sample_steps = np.full(len(part), total) if batch.lengths is None else batch.lengths
        for k, step in enumerate(moments):
            # Shorter samples are decided at their own end.
            lengths = np.minimum(sample_steps, step)
            assert task.distances is not None
            nearest_class[k, part] = nearest_sequence(task.distances(outputs, lengths))
            count_class[k, part] = spike_count(outputs, lengths)
        if on_progress is not None:
            on_progress(int(part[-1]) + 1)
    mean_activity = activity(task, state, split, MOST_SAMPLES, prices)
    energy = mean_activity.energy
    return OverTime(
        moments,
        (nearest_class == split.labels).mean(axis=1),
        (count_class == split.labels).mean(axis=1),
        _up_to(moments, mean_activity.operations),
        _up_to(moments, mean_activity.spikes),
        float(moments[_settled(nearest_class)].mean()),
        None if energy is None else _up_to(moments, {"all": energy}),
    )


def _up_to(moments: Int64, of_layers: Mapping[str, Float64]) -> Float64:
    """Sums over the first steps and all layers, from values `[T]` of each layer."""
    total: Float64 = np.cumsum(np.sum(list(of_layers.values()), axis=0))
    return total[moments - 1]


def _settled(classes: Int64) -> Int64:
    """Index of the first moment from which on the classes `[M, n]` no longer change, `[n]`."""
    is_final: AnyArray = np.logical_and.accumulate((classes == classes[-1])[::-1])[::-1]
    first: Int64 = is_final.argmax(axis=0)
    return first


def by_noise(
    task: Task,
    state: TrainState,
    split: Split,
    batch_size: int,
    amounts_by_kind: Mapping[str, Sequence[float]],
    seed: int = 0,
    on_progress: Callable[[str, float, int], None] | None = None,
    measuring: Measuring | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate the network on inputs with increasing disturbance.

    Args:
        task, state: the trained network.
        split: the samples.
        batch_size: number of samples at a time.
        amounts_by_kind: amounts of each disturbance by its name, one of `stsbp.training.noise.KINDS`.
        seed: seed of the random numbers.
        on_progress: called after each batch with the name, the amount and the number of finished samples. It may raise
            an error to stop.
        measuring: parameters of the measures of spike times. None: they are left out.

    Returns:
        For each disturbance and amount, the results of an evaluation (`Evaluation.means`) and `amount`.
    """

    @cache
    def measured(name: str, amount: float) -> dict[str, Any]:
        report_batch = None if on_progress is None else partial(on_progress, name, amount)
        disturbed = DisturbedSplit(split, name, amount, seed, task.inputs.input_max)
        return evaluate(task, state, disturbed, batch_size, report_batch, measuring=measuring).means()

    # An amount of 0 is the same for all disturbances, and measured once.
    first = next(iter(amounts_by_kind))
    return {
        name: [{"amount": amount, **measured(name if amount else first, amount)} for amount in amounts]
        for name, amounts in amounts_by_kind.items()
    }
