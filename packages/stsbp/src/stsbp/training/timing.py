"""Measures of spike times over the batches of an evaluation, beside their chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.decoders import spike_count
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.typing import AnyArray, Int64, UInt8

from stsbp.datasets import Split
from stsbp.datasets.base import lengths_of
from stsbp.measures.chance import partners, shuffles_of
from stsbp.measures.matching import TOLERANCES
from stsbp.measures.totals import SpikeMeasures
from stsbp.training.build import Task

__all__ = ["Measuring", "OtherTargets", "SpikeTiming"]


@dataclass(frozen=True)
class Measuring:
    """Parameters of the measures of spike times.

    Attributes:
        tolerances: tolerances in steps of precision, recall and F1. Timing errors are those at the largest one.
        cost: cost of moving a spike by one step in the Victor-Purpura distance.
        seed: seed with which targets are shuffled between samples, for the chance level.
    """

    tolerances: tuple[int, ...] = TOLERANCES
    cost: float = 1.0
    seed: int = 0


class OtherTargets(NamedTuple):
    """Targets `[T, B, N]` and labels `[B]` of other samples, and the numbers of steps that both samples have, `[B]`."""

    targets: UInt8
    labels: Int64
    lengths: Int64 | None


class SpikeTiming:
    """Measures of spike times over the batches of an evaluation: those of the targets, and those of chance.

    Args:
        task: the training task. Its network must have output spikes.
        samples: number of samples of the split.
        measuring: parameters of the measures.
    """

    def __init__(self, task: Task, samples: int, measuring: Measuring) -> None:
        self._task, self.seed = task, measuring.seed
        self.names = task.inputs.classes or tuple(str(n) for n in range(task.inputs.outputs))
        self.own, self.chance = (SpikeMeasures(measuring.tolerances, measuring.cost) for _ in range(2))
        shuffles = range(1, shuffles_of(samples) + 1)
        self._partners = [partners(samples, measuring.seed, shuffle) for shuffle in shuffles]
        self._correct = np.zeros(2, dtype=np.int64)
        self._distances: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})

    def other_targets(self, split: Split, indices: Int64) -> list[OtherTargets]:
        """What stands in place of the targets of some samples, once for each shuffle."""
        lengths = lengths_of(split)
        shuffled = [partner[indices] for partner in self._partners]
        return [
            OtherTargets(
                self._task.targets(split, partners_of_batch),
                split.labels[partners_of_batch],
                None if lengths is None else np.minimum(lengths[indices], lengths[partners_of_batch]),
            )
            for partners_of_batch in shuffled
        ]

    def add(
        self,
        spikes: UInt8,
        batch: Batch[Inputs],
        labels: Int64,
        other_targets: Sequence[OtherTargets],
        nearest: Int64 | None,
        distances: Mapping[str, AnyArray] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            spikes: output spikes, `[T, B, N]`.
            batch: targets and lengths of the samples.
            labels: classes of the samples, `[B]`; meaningless if labels are spike trains.
            other_targets: what `other_targets` returned for the samples.
            nearest: classes of the nearest label sequences, `[B]`; None if labels are spike trains.
            distances: `van_rossum` and `hamming` of each sample to its targets, if they are known.
        """
        if distances is None:
            distances = self._task.spike_distances(spikes, batch.targets, batch.lengths)
        self.own.add(spikes, batch.targets, batch.lengths, None if nearest is None else labels)
        self._add_distances(0, distances)
        decoded = () if nearest is None else (nearest, spike_count(spikes, batch.lengths))
        for target in other_targets:
            self.chance.add(spikes, target.targets, target.lengths, None if nearest is None else target.labels)
            self._add_distances(1, self._task.spike_distances(spikes, target.targets, target.lengths))
            if decoded:
                self._correct += [(classes == target.labels).sum() for classes in decoded]

    def finish(self) -> None:
        """Measure what was added and still waits for more samples."""
        self.own.finish()
        self.chance.finish()

    def _add_distances(self, index: int, distances: Mapping[str, AnyArray]) -> None:
        for name, values in distances.items():
            self._distances[index].setdefault(name, []).extend(values.tolist())

    def record(self) -> dict[str, Any]:
        """All measures with their parameters, and those of chance under `chance`, as JSON values."""
        record = self._with_distances(self.own, 0)
        if not self.chance.samples:
            return {**record, "chance": None}
        chance = {"seed": self.seed, "shuffles": len(self._partners), **self._with_distances(self.chance, 1)}
        if not self._task.inputs.sequences:
            shares = (self._correct / self.chance.samples).tolist()
            chance |= dict(zip(("accuracy", "accuracy_spike_count"), shares, strict=True))
        return {**record, "chance": chance}

    def record_by_neuron(self) -> dict[str, Any]:
        """The measures of each output neuron, its name, and those of chance under `chance`, as JSON values."""
        chance = self.chance.record_by_neuron() if self.chance.samples else None
        return {"neurons": list(self.names), **self.own.record_by_neuron(), "chance": chance}

    def _with_distances(self, measures: SpikeMeasures, index: int) -> dict[str, Any]:
        means = {name: math.fsum(values) / measures.samples for name, values in self._distances[index].items()}
        van_rossum = {"tau": self._task.network.output_psp.tau_s, "mean": means["van_rossum"]}
        return {**measures.record(), "van_rossum": van_rossum, "hamming": means["hamming"]}
