"""stsbp itself, and the dense floor (mode `floor`): the step of `stsbp benchmark`, in a process of its own.

Other modes are a backend's name, with `+SURROGATE` after it for a surrogate other than the preset's.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from problem import Problem
from stsbp.benchmarks.cases import ALL_CASES, BenchmarkRun
from stsbp.benchmarks.floor import dense_floor
from stsbp.training.build import build_task
from stsbp_spec.engine.backend import Batch
from stsbp_spec.models.decoders import spike_count
from stsbp_spec.models.encoders import encode_repeat
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import open_backend


class StsbpNetwork:
    """A training step, or the floor, on the problem's batch."""

    def __init__(self, problem: Problem, mode: str) -> None:
        name, _, surrogate = mode.partition("+")
        backend = open_backend("torch" if name == "floor" else name, problem.setup.get("device"))
        case = ALL_CASES[problem.setup["case"]]
        config = case.config(problem.setup["scale"], surrogate or None)
        task = build_task(config, case.inputs, backend)
        self.task = task
        self.load(problem.inputs, problem.labels)
        batch = self.batch
        self.run = run = BenchmarkRun(task, [batch], problem.weights)
        device = "cuda" if backend.device.startswith(("cuda", "gpu")) else "cpu"
        floor = dense_floor(task.network, run.weights, batch, device) if name == "floor" else None
        self.step: Callable[[], Any] = floor or self.update
        self.predict = partial(task.trainer.predictor(run.state), batch.inputs, problem.steps)
        self.versions = {package: importlib.metadata.version(package) for package in ("stsbp", "stsbp-spec", "torch")}
        self.rates: dict[str, float] = {}
        if name != "floor":
            spikes = backend.run(task.network, run.weights, batch.inputs, problem.steps).layers
            self.rates = {layer: round(float(np.mean(layer_run.spikes)), 5) for layer, layer_run in spikes.items()}

    def load(self, inputs: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        """Take another batch."""
        config = self.task.config
        self.batch = Batch(inputs, encode_repeat(labels, 10, config.steps, config.label_code))

    def update(self) -> None:
        """Do one update on the batch."""
        self.run(self.batch)

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next updates."""
        trainer = self.task.trainer
        assert isinstance(trainer.optimizer, AdamW)  # the peers' optimiser too
        trainer.optimizer = dataclasses.replace(trainer.optimizer, lr=lr, total_steps=None, warmup_steps=0)

    def classes(self) -> list[int]:
        """The output neuron with most spikes, for each sample."""
        prediction = self.task.trainer.predict(self.run.state, self.batch.inputs, self.task.config.steps)
        classes: list[int] = spike_count(prediction.spikes).tolist()
        return classes

    def check(self) -> dict[str, Any]:
        """Rates; what the neurons compute is the business of the conformance suite."""
        return {"spike_rates": list(self.rates.values())}


class Network:
    """A training step of the network that `setup` says; modes are a backend's name, with `=DEVICE` after it."""

    def __init__(self, problem: Problem, mode: str) -> None:
        name, _, device = mode.partition("=")
        backend = open_backend(name, device or None)
        neuron = LIF(problem.tau_m, problem.tau_s, problem.threshold)
        (_, _, inputs), setup = problem.inputs.shape, problem.setup
        network = NetworkSpec.parse(setup["network"], input_shape=(inputs,), outputs=setup["outputs"], neuron=neuron)
        targets = encode_repeat(problem.labels, setup["outputs"], problem.steps)
        batch = Batch(problem.inputs, targets)
        self.trainer = backend.trainer(network, VanRossum(), AdamW(lr=problem.lr), precision=setup["precision"])
        self.state = self.trainer.init(problem.weights)
        self.batch = batch
        packages = ("stsbp", "stsbp-spec", *({"torch", "jax"} & {name}))
        self.versions = {package: importlib.metadata.version(package) for package in packages}
        layers = backend.run(network, problem.weights, batch.inputs, problem.steps).layers
        self.rates = [round(float(np.mean(layer_run.spikes)), 5) for layer_run in layers.values()]

    def step(self) -> None:
        """Forward, loss, backward, update; numbers of the step have been read when it returns."""
        self.state, _ = self.trainer.step(self.state, self.batch)

    def check(self) -> dict[str, Any]:
        """See `StsbpNetwork`."""
        return {"spike_rates": self.rates}


def build(problem: Problem, mode: str) -> StsbpNetwork | Network:
    """See the module."""
    return (Network if "network" in problem.setup else StsbpNetwork)(problem, mode)
