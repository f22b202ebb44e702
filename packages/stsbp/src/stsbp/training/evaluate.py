"""Evaluation on a split: loss, both decoders, confusion matrix, spike rates and spike times, batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.cost import CostKey
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.typing import AnyArray, Int64

from stsbp.datasets import Split
from stsbp.energy.totals import RunEnergy, cost_of_batch, weights_of
from stsbp.measures.regression import RegressionTotals
from stsbp.training.build import TOLERANCE, Task, mean_target
from stsbp.training.metrics import Sums, spike_figures
from stsbp.training.prefetch import prefetched
from stsbp.training.timing import Measuring, OtherTargets, SpikeTiming

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The results on a split.

    Attributes:
        sums: loss, accuracies and spike rates.
        confusion: number of samples by true class (row) and class of the nearest label sequence (column), `[K, K]`. K
            is 0 if labels are sequences.
        followed: if labels are classes, how well the outputs match their label sequences, as sums that
            `stsbp.training.metrics.spike_figures` reads. Empty for a readout, which has no spikes.
        tolerance: tolerance in steps of the precision, the recall and F1 in `followed` or `sums`.
        timing: the measures of spike times. None for a readout, or if they were not asked for.
        regression: errors of real-valued outputs; None: labels are classes or spike trains.
        energy: what the samples cost. None if that was not asked for.
    """

    sums: Sums
    confusion: Int64
    followed: Mapping[str, float] = field(default_factory=dict)
    tolerance: int = TOLERANCE
    timing: SpikeTiming | None = None
    regression: RegressionTotals | None = None
    energy: RunEnergy | None = None

    def means(self) -> dict[str, Any]:
        """All results as means over the samples, with the tolerance of F1 and the measures of spike times."""
        means = {**self.sums.means(), **(spike_figures(self.followed, self.sums.samples) if self.followed else {})}
        means |= {"tolerance": self.tolerance} if "f1" in means else {}
        means |= {} if self.regression is None else {"regression": self.regression.record()}
        return means | ({} if self.measures is None else {"measures": self.measures})

    @cached_property
    def measures(self) -> dict[str, Any] | None:
        """The measures of spike times as JSON values. None for a readout, or if they were not asked for."""
        return None if self.timing is None else self.timing.record()

    def record(self, split: str) -> dict[str, Any]:
        """The results as a line of metrics."""
        return {"kind": "evaluation", "split": split, **self.means(), "seconds": round(self.sums.seconds, 3)}


def evaluate(
    task: Task,
    state: TrainState,
    split: Split,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
    tolerance: int = TOLERANCE,
    measuring: Measuring | None = None,
    energy: RunEnergy | None = None,
) -> Evaluation:
    """Evaluate a state, without dropout.

    Distances and spikes are added exactly. No result therefore depends on the batches or the order of the samples.

    Args:
        task: the training task.
        state: the state with the weights; it is not changed.
        split: the samples.
        batch_size: number of samples at a time.
        on_progress: called after each batch with the number of finished samples. It may raise an error to stop.
        tolerance: largest distance in steps between a spike and its target.
        measuring: parameters of the measures of spike times and their chance level. None: these are left out. A readout
            has no spikes, so they are left out for it too.
        energy: to which the counts of the samples are added. The network then computes each sample a second time. None:
            nothing is counted.
    """
    classes = len(task.inputs.classes)
    sums, confusion = Sums(), np.zeros((classes, classes), dtype=np.int64)
    followed: dict[str, float] = {}
    losses: list[float] = []
    distances: dict[str, list[float]] = {}
    has_spikes = not task.network.has_readout
    timing = SpikeTiming(task, len(split), measuring) if measuring is not None and has_spikes else None
    regression = RegressionTotals(mean_target(split)) if task.inputs.real_targets else None
    batches = [np.arange(i, min(i + batch_size, len(split))) for i in range(0, len(split), batch_size)]
    spike_counts, frames = {block.name: 0 for block in task.network.blocks}, 0
    began = time.perf_counter()
    load, predict = partial(_load, task, split, timing), task.trainer.predictor(state)
    weights = {} if energy is None else weights_of(task, state)
    for _, (batch, labels, other_targets) in prefetched(load, batches):
        task.group.beat("evaluating a batch")
        with task.group.stepping():
            prediction = predict(batch.inputs, task.config.steps, len(labels), batch.lengths)
        score = task.score(prediction.spikes, batch.targets, labels, tolerance, batch.lengths)
        sums.add(samples=len(labels), loss=0.0, rates={}, **score.sums)
        batch_frames = len(labels) * task.config.steps if batch.lengths is None else int(batch.lengths.sum())
        frames += batch_frames
        for block in task.network.blocks:
            rate = prediction.rates[block.name]
            spike_counts[block.name] += round(rate * batch_frames * math.prod(block.output_shape))
        losses.extend(score.losses)
        if regression is not None:
            regression.add(prediction.spikes, batch.targets, batch.lengths)
        batch_distances = score.distances
        if classes and has_spikes:
            # Training updates do not compute this, because they have the loss, and it takes time.
            follows = task.followed(prediction.spikes, batch.targets, tolerance, batch.lengths, score.losses)
            batch_distances = follows.distances
            followed = {name: followed.get(name, 0) + value for name, value in follows.sums.items()}
        for name, values in batch_distances.items():
            distances.setdefault(name, []).extend(values)
        if score.nearest is not None:
            np.add.at(confusion, (labels, score.nearest), 1)
        if timing is not None:
            timing.add(prediction.spikes, batch, labels, other_targets, score.nearest, batch_distances)
        if energy is not None:
            _count(task, weights, batch, len(labels), energy)
        if on_progress is not None:
            on_progress(sums.samples)
    sums.loss = math.fsum(losses)
    sums.padded = sums.samples - frames / task.config.steps
    for block in task.network.blocks:
        sums.rates[block.name] = spike_counts[block.name] / (task.config.steps * math.prod(block.output_shape))
    exact = {name: math.fsum(values) for name, values in distances.items()}
    if regression is not None:
        sums.squared_error = exact["squared_error"]
    elif followed:
        followed |= exact
    else:
        sums.sequence |= exact
    if timing is not None:
        timing.finish()
    sums.seconds = time.perf_counter() - began
    return Evaluation(sums, confusion, followed, tolerance, timing, regression, energy)


def _count(task: Task, weights: Mapping[str, AnyArray], batch: Batch[Inputs], samples: int, energy: RunEnergy) -> None:
    """Add the counts of a batch, of which `batch` has the inputs of this process's part."""
    part = task.group.part(samples)
    own_lengths = None if batch.lengths is None else batch.lengths[part.first : part.end]
    own_counts = list[list[Any]]()
    if part.count:
        task.group.beat("counting operations")
        costs = cost_of_batch(task, weights, batch._replace(lengths=own_lengths), part.count)
        own_counts = [[*key, x.tolist()] for key, x in costs.items()]
    counts: dict[CostKey, list[int]] = {}
    for layer, kind, node, numbers in (row for rows in task.group.gather_values(own_counts) for row in rows):
        counts.setdefault(CostKey(layer, kind, node), []).extend(numbers)
    lengths = np.full(samples, task.config.steps) if batch.lengths is None else batch.lengths
    energy.add({key: np.array(numbers, np.int64) for key, numbers in counts.items()}, lengths)


def _load(
    task: Task, split: Split, timing: SpikeTiming | None, indices: Int64
) -> tuple[Batch[Inputs], Int64, list[OtherTargets]]:
    task.group.beat("reading samples")
    batch, labels = task.batch(split, indices, task.group.part(len(indices)))
    return batch, labels, [] if timing is None else timing.other_targets(split, indices)
