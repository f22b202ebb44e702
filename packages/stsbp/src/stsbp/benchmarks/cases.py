"""The networks of the benchmarks, their data, and their training steps. Settings are those of `stsbp train`, except
sizes.

Recordings and photographs come from a data folder if there is one. Otherwise the embedded digits replace them, recorded
by the simulated event camera or enlarged to 32 x 32, so that the spikes are those of a real input.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.trainer import StepResult
from stsbp_spec.models.encoders import packed
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.typing import Float32, Int64, Memory

from stsbp.benchmarks.device import synchronise
from stsbp.config import RunConfig, SettingsSource, resolve
from stsbp.datasets import Split, load
from stsbp.datasets.base import ArraySplit
from stsbp.training.build import Inputs, Task, build_task

__all__ = ["ALL_CASES", "CASES", "LARGE", "BenchmarkRun", "Case", "Resident", "prepare"]

_BATCHES = 4


@dataclass(frozen=True)
class Case:
    """A network and the data set whose preset it is trained with.

    Attributes:
        surrogate, init_gain: fixed here, so that results stay comparable if a preset changes. They determine the
            number of spikes. No layer is scaled to reach a given rate.
    """

    name: str
    dataset: str
    stand_in: str
    net: str
    inputs: Inputs
    steps: int
    batch: int
    surrogate: str = "arctan"
    init_gain: float = 1.5

    def config(self, scale: float = 1.0, surrogate: str | None = None) -> RunConfig:
        """Settings of a run of this case. `scale` multiplies the batch size."""
        settings: dict[str, Any] = {"dataset": self.dataset, "net": self.net, "steps": self.steps}
        settings["batch_size"] = max(1, round(self.batch * scale))
        settings |= {"surrogate": surrogate or self.surrogate, "init_gain": self.init_gain, "init_rate": 0.0}
        return resolve([SettingsSource("benchmark", settings)])

    def split(self, data_dir: Path | None, count: int) -> tuple[Split, str]:
        """At least `count` samples, and where they come from."""
        if data_dir is not None:
            dataset = load(self.dataset, data_dir=data_dir, steps=self.steps, limit=count)
            return dataset.train, self.dataset
        embedded = load(self.stand_in, steps=self.steps, limit=count)
        if self.inputs.coding == "events":
            return embedded.train, self.stand_in
        images = embedded.train.inputs(np.arange(len(embedded.train)))
        enlarged = np.repeat(np.repeat(images, 4, axis=2), 4, axis=3)
        coloured = np.moveaxis(np.repeat(enlarged, 3, axis=1), 1, -1)
        return ArraySplit(coloured, embedded.train.labels), f"{self.stand_in}, enlarged"


_TEN = tuple("0123456789")
_PICTURES = Inputs((3, 32, 32), "direct", _TEN)
_TWENTY = "-P2-".join(["-".join(["32C3"] * 7), "-".join(["64C3"] * 6), "-".join(["64C3"] * 6)])
"""19 convolutions. The fully connected output layer is added to them."""
CASES = {
    case.name: case
    for case in (
        Case(
            "N-MNIST",
            "nmnist",
            "digits-events",
            "12C5-P2-64C5-P2",
            Inputs((2, 34, 34), "events", _TEN),
            25,
            50,
            surrogate="fast-sigmoid:beta=3",
            init_gain=1.0,
        ),
        Case(
            "CIFAR-10",
            "cifar10",
            "digits",
            "32C3-64C3-P2-128C3-P2-128C3-256",
            _PICTURES,
            5,
            50,
        ),
    )
}
"""Networks that `stsbp benchmark` measures, by name."""
LARGE = {
    case.name: case
    for case in (
        Case(
            "TSSL-1",
            "cifar10",
            "digits",
            "96C3-256C3-P2-384C3-P2-384C3-256C3-1024-1024",
            _PICTURES,
            5,
            50,
        ),
        Case("depth-20", "cifar10", "digits", _TWENTY, _PICTURES, 5, 50),
    )
}
"""Further networks, which need gigabytes and seconds: the first CIFAR-10 network of TSSL-BP, and one of 20 layers."""
ALL_CASES: Mapping[str, Case] = ChainMap(CASES, LARGE)


@dataclass(frozen=True)
class Resident:
    """Some batches in memory, and where they come from."""

    batches: list[Batch[packed.Inputs]]
    source: str

    @classmethod
    def of(cls, task: Task, case: Case, data_dir: Path | None) -> Resident:
        """A few different batches. Samples are repeated if there are too few."""
        size = task.config.batch_size
        split, source = case.split(data_dir, _BATCHES * size)
        numbers: Int64 = np.resize(np.arange(len(split)), _BATCHES * size)
        return cls([task.batch(split, part)[0] for part in np.split(numbers, _BATCHES)], source)


class BenchmarkRun:
    """A training run in memory. Each call does one update on the next batch, and waits until it is done.

    Args:
        task: the training task.
        batches: batches that are used in turn.
        weights: initial weights; by default those of the task.
    """

    def __init__(
        self, task: Task, batches: list[Batch[packed.Inputs]], weights: dict[str, Float32] | None = None
    ) -> None:
        self.task = task
        config = task.config
        self.weights = weights or initial_weights(task.network, config.seed, config.init_gain)
        self.state = task.trainer.init(self.weights)
        self.result: StepResult | None = None
        self.batches = batches
        self._batches = cycle(batches)

    def __call__(self, batch: Batch[packed.Inputs] | None = None) -> None:
        self.state, self.result = self.task.trainer.step(self.state, batch or next(self._batches))
        synchronise(*self.state.weights.values())

    @property
    def rates(self) -> dict[str, float]:
        """Spikes per neuron and step of each layer in the last update."""
        return {} if self.result is None else {name: round(rate, 5) for name, rate in self.result.rates.items()}


def prepare(
    case: Case,
    backend: AbstractBackend,
    *,
    scale: float,
    surrogate: str | None,
    data_dir: Path | None,
    memory: Memory = "full",
) -> tuple[Task, Resident]:
    """Task and batches of a case on a backend."""
    config = case.config(scale, surrogate).model_copy(update={"memory": memory})
    task = build_task(config, case.inputs, backend)
    return task, Resident.of(task, case, data_dir)
