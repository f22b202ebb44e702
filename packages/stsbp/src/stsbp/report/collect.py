"""Collects the contents of a report: the records of the run, and correctly and wrongly classified samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.models.decoders import nearest_sequence
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.models.losses import MeanSquaredError
from stsbp_spec.models.metrics import f1, match_spikes
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, Float32, Float64, Int64, UInt8

from stsbp.datasets import Split
from stsbp.measures.regression import RegressionTotals
from stsbp.training.build import TOLERANCE, Task, mean_target
from stsbp.training.prefetch import prefetched
from stsbp.training.timing import Measuring, OtherTargets, SpikeTiming

__all__ = ["Sample", "Survey", "choose", "run_samples", "survey"]

SHOWN = 3
"""Number of samples of each kind."""


@dataclass(frozen=True)
class Survey:
    """The result for each sample of a split.

    Attributes:
        labels: classes, `[n]`.
        nearest: classes of the nearest label sequences, `[n]`; None if labels are sequences.
        scores: 1 or 0 for correct or wrong; F1 of the spike times of each sample; or minus its mean squared error,
            `[n]`.
        timing: measures of spike times; None for a readout.
        regression: errors of real-valued outputs; None: labels are classes or spike trains.
    """

    labels: Int64
    nearest: Int64 | None
    scores: Float64
    timing: SpikeTiming | None = None
    regression: RegressionTotals | None = None

    def confusion(self, classes: int) -> Int64:
        """Number of samples by true class (row) and class of the nearest label sequence (column), `[K, K]`."""
        counts = np.zeros((classes, classes), dtype=np.int64)
        if self.nearest is not None:
            np.add.at(counts, (self.labels, self.nearest), 1)
        return counts


def survey(
    task: Task, state: TrainState, split: Split, batch_size: int, on_progress: Callable[[int], None] | None = None
) -> Survey:
    """Run a whole split, and record the result for each sample."""
    n = len(split)
    nearest: Int64 = np.zeros(n, dtype=np.int64)
    scores: Float64 = np.zeros(n)
    parts = [np.arange(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
    predict = task.trainer.predictor(state)
    timing = None if task.network.has_readout else SpikeTiming(task, n, Measuring())
    regression = RegressionTotals(mean_target(split)) if task.inputs.real_targets else None

    def load(part: Int64) -> tuple[Batch[Inputs], Int64, list[OtherTargets]]:
        return *task.batch(split, part), [] if timing is None else timing.other_targets(split, part)

    for part, (batch, labels, other_targets) in prefetched(load, parts):
        outputs = predict(batch.inputs, task.config.steps).spikes
        if regression is not None:
            regression.add(outputs, batch.targets, batch.lengths)
            scores[part] = -_squared_errors(outputs, batch.targets, batch.lengths)
        elif task.inputs.sequences:
            matches = match_spikes(outputs, batch.targets, TOLERANCE, batch.lengths)
            rows = zip(*(x.tolist() for x in matches), strict=True)
            scores[part] = [f1(*row) for row in rows]
        else:
            assert task.distances is not None
            nearest[part] = nearest_sequence(task.distances(outputs, batch.lengths))
            scores[part] = nearest[part] == labels
        if timing is not None:
            timing.add(outputs, batch, labels, other_targets, None if task.inputs.sequences else nearest[part])
        if on_progress is not None:
            on_progress(int(part[-1]) + 1)
    return Survey(split.labels[:], None if task.inputs.sequences else nearest, scores, timing, regression)


def _squared_errors(outputs: AnyArray, targets: AnyArray, lengths: Int64 | None) -> Float64:
    """Mean squared error of each sample, `[B]`, from outputs and targets `[T, B, N]`."""
    return MeanSquaredError().distances(outputs, targets, PSP(), lengths)


def choose(surveyed: Survey, count: int = SHOWN) -> tuple[list[int], list[int]]:
    """Samples to show: wrong and correct ones, from as many classes as possible; or those with the worst and best
    scores."""
    n = len(surveyed.scores)
    if surveyed.nearest is None:
        order = np.argsort(surveyed.scores, kind="stable").tolist()
        worst = order[: min(count, (n + 1) // 2)]
        return worst, [i for i in order[::-1] if i not in worst][:count]
    pairs = list(zip(surveyed.labels.tolist(), surveyed.nearest.tolist(), strict=True))
    chosen = []
    for is_correct in (False, True):
        candidates = [i for i in range(n) if (pairs[i][0] == pairs[i][1]) == is_correct]
        # First one sample of each pair of true and decoded class, so that few samples show many kinds of mistakes.
        first_of_pair = {pairs[i]: i for i in reversed(candidates)}
        firsts = set(first_of_pair.values())
        chosen.append([*sorted(firsts), *islice((i for i in candidates if i not in firsts), count)][:count])
    return chosen[0], chosen[1]


@dataclass(frozen=True)
class Sample:
    """A sample and the network's response to it. `T` is the sample's own number of steps.

    Attributes:
        name: its number in the split, or its file.
        inputs: `[C, H, W]`, or frames `[T, ...]` for events.
        outputs, targets: `[T, N]`. `targets` is None if the label is unknown.
        potentials: potentials of the output neurons, `[T, N]`.
        label, nearest: true class and class of the nearest label sequence, if there are classes.
        distances: distance to the label sequence of each class, `[K]`.
        score: F1 of the spike times, if labels are spike trains; the mean squared error, if they are real numbers.
    """

    name: str
    inputs: UInt8
    outputs: UInt8
    targets: AnyArray | None
    potentials: Float32
    label: int | None
    nearest: int | None
    distances: Float64 | None
    score: float | None


def run_samples(
    task: Task,
    state: TrainState,
    names: Sequence[str],
    inputs: UInt8,
    targets: AnyArray | None = None,
    labels: Sequence[int] | None = None,
    lengths: Int64 | None = None,
) -> list[Sample]:
    """Run some samples, and keep everything that a report shows.

    Args:
        task, state: the trained network.
        names: names of the samples.
        inputs: `[B, ...]` or `[T, B, ...]`.
        targets: `[T, B, N]`, if they are known.
        labels: classes, if they are known.
        lengths: number of steps of each sample, `[B]`; None: all steps.
    """
    trainer, events = task.trainer, task.inputs.coding == "events"
    exported = trainer.export_state(state)
    weights = {k.removeprefix("weight/"): x for k, x in exported.items() if k.startswith("weight/")}
    layers = task.backend.run(task.network, weights, inputs, task.config.steps).layers
    outputs, potentials = layers[task.network.blocks[-1].name]
    # A readout has no spikes; its class follows from the potentials.
    decoded: AnyArray = potentials if task.network.has_readout else outputs
    distances = None if task.inputs.sequences or task.distances is None else task.distances(decoded, lengths)
    nearest = None if distances is None else nearest_sequence(distances)
    samples = []
    for i, name in enumerate(names):
        score, own_steps = None, slice(None if lengths is None else int(lengths[i]))
        if task.inputs.real_targets and targets is not None:
            score = float(_squared_errors(potentials[own_steps, i : i + 1], targets[own_steps, i : i + 1], None)[0])
        elif task.inputs.sequences and targets is not None:
            matches = match_spikes(outputs[own_steps, i : i + 1], targets[own_steps, i : i + 1], TOLERANCE)
            score = f1(*(int(x[0]) for x in matches))
        samples.append(
            Sample(
                name,
                inputs[own_steps, i] if events else inputs[i],
                outputs[own_steps, i],
                None if targets is None else targets[own_steps, i],
                potentials[own_steps, i],
                None if labels is None or task.inputs.sequences else int(labels[i]),
                None if nearest is None else int(nearest[i]),
                None if distances is None else distances[i],
                score,
            )
        )
    return samples
