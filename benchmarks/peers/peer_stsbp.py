"""stsbp itself, and the dense floor (mode `floor`): the step of `stsbp benchmark`, in a process of its own.

Other modes are a backend's name, with `+SURROGATE` after it for a surrogate other than the preset's.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from problem import Problem
from stsbp.benchmarks.cases import EVERY, Step
from stsbp.benchmarks.floor import dense_floor
from stsbp.training.build import build_task
from stsbp_spec.backend import Batch
from stsbp_spec.encoders import encode_repeat
from stsbp_spec.losses import VanRossum
from stsbp_spec.network import NetworkSpec
from stsbp_spec.neurons import LIF
from stsbp_spec.optim import AdamW
from stsbp_spec.registry import open_backend

__all__ = ["build"]


class Own:
    """A training step, or the floor, on the problem's batch."""

    def __init__(self, problem: Problem, mode: str) -> None:
        name, _, surrogate = mode.partition("+")
        backend = open_backend("torch" if name == "floor" else name, problem.setup.get("device"))
        case = EVERY[problem.setup["case"]]
        config = case.config(problem.setup["scale"], surrogate or None)
        task = build_task(config, case.inputs, backend)
        targets = encode_repeat(problem.labels, 10, problem.steps, config.label_code)
        batch = Batch(problem.inputs, targets)
        run = Step(task, [batch])
        on = "cuda" if backend.device.startswith(("cuda", "gpu")) else "cpu"
        floor = dense_floor(task.network, run.weights, batch, on) if name == "floor" else None
        self.step: Callable[[], Any] = floor or run
        self.predict = partial(task.trainer.predictor(run.state), batch.inputs, problem.steps)
        self.versions = {package: importlib.metadata.version(package) for package in ("stsbp", "stsbp-spec", "torch")}
        self.rates: dict[str, float] = {}
        if name != "floor":
            spikes = backend.run(task.network, run.weights, batch.inputs, problem.steps).layers
            self.rates = {layer: round(float(np.mean(found.spikes)), 5) for layer, found in spikes.items()}

    def check(self) -> dict[str, Any]:
        """Rates; what the neurons compute is the business of the conformance suite."""
        return {"spike_rates": list(self.rates.values())}


class Network:
    """A training step of the network that `setup` says; modes are a backend's name, with `=DEVICE` after it."""

    def __init__(self, problem: Problem, mode: str) -> None:
        name, _, device = mode.partition("=")
        backend = open_backend(name, device or None)
        neuron = LIF(problem.tau_m, problem.tau_s, problem.threshold)
        (_, _, inputs), words = problem.inputs.shape, problem.setup
        network = NetworkSpec.parse(words["network"], input_shape=(inputs,), outputs=words["outputs"], neuron=neuron)
        targets = encode_repeat(problem.labels, words["outputs"], problem.steps)
        batch = Batch(problem.inputs, targets)
        self.trainer = backend.trainer(network, VanRossum(), AdamW(lr=problem.lr), precision=words["precision"])
        self.state = self.trainer.init(problem.weights)
        self.batch = batch
        packages = ("stsbp", name)
        self.versions = {package: importlib.metadata.version(package) for package in packages}
        layers = backend.run(network, problem.weights, batch.inputs, problem.steps).layers
        self.rates = [round(float(np.mean(found.spikes)), 5) for found in layers.values()]

    def step(self) -> None:
        """Forward, loss, backward, update; numbers of the step have been read when it returns."""
        self.state, _ = self.trainer.step(self.state, self.batch)

    def check(self) -> dict[str, Any]:
        """See `Own`."""
        return {"spike_rates": self.rates}


def build(problem: Problem, mode: str) -> Own | Network:
    """See the module."""
    return (Network if "network" in problem.setup else Own)(problem, mode)
