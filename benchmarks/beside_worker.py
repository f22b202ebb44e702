"""One checkout in its own process, for beside.py: `beside_worker.py all|first wall|cpu`.

The checkout's packages are on PYTHONPATH. `all`: a line of JSON that says what can be timed, then for each line
`NAME COUNT` on standard input the seconds of one of so many runs. `first`: one line, the seconds from the import of the
backend to the end of the first update. The file runs on old and new checkouts alike, so it imports no more than both
have, late, and takes names that changed in either form.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

NAMES = {"neuron_forward": ("neuron_forward", "lif_forward"), "neuron_backward": ("neuron_backward", "lif_backward")}
"""Today's name of a pair, then former ones."""


class Work(NamedTuple):
    """What is timed: `run` on what `fresh` makes for it, untimed, since a pair may work in place."""

    fresh: Callable[[], Any]
    run: Callable[[Any], Any]


def method(backend: Any, name: str) -> Callable[..., Any]:
    """A pair of the backend by any of its names."""
    for candidate in NAMES.get(name, (name,)):
        if hasattr(backend, candidate):
            function: Callable[..., Any] = getattr(backend, candidate)
            return function
    raise AttributeError(f"the backend has no {name}")


def walk(
    backend: Any, spec: Any, block: Any, wq: Any, steps: int
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """One block of a network forward, and back from what that returned and the error of its spikes."""
    try:
        # By their former names, which older checkouts have too (stsbp_spec/moved.py).
        collective, rules = import_module("stsbp_spec.collective"), import_module("stsbp_spec.rules")
        plan = import_module("stsbp_spec.plan").plan
        # The classes have other names in older checkouts, and no former names in this one.
        BatchSlice = getattr(collective, "BatchSlice", None) or collective.Part
        PassContext = getattr(rules, "PassContext", None) or rules.Run
    except ImportError:  # a checkout from before the plans
        block_forward, block_backward = method(backend, "block_forward"), method(backend, "block_backward")
        return (
            lambda s: block_forward(block, s, wq, steps, None),
            lambda trace, error: block_backward(trace, error, "fast", training=False),
        )
    step = next(step for step in plan(backend, spec.graph).steps if step.name == block.population)

    def run(x: Any) -> Any:
        return PassContext({block.name: wq}, steps, None, BatchSlice(0, x.shape[1], x.shape[1]))

    if not hasattr(step, "forward_slice"):  # a checkout in which steps are generators
        return (
            lambda s: finished(step.forward(run(s), s)),
            lambda output, error: finished(step.backward(run(error), output[1], error, "fast")),
        )
    return (
        lambda s: step.forward_slice(run(s), s),
        lambda output, error: next(step.backward([run(error)], iter([output[1]]), iter([error]), "fast")),
    )


def finished(steps: Any) -> Any:
    """The result of a step of an older checkout: a tuple, or a generator that asks for nothing."""
    if isinstance(steps, tuple):
        return steps
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a step in fast precision asks for a number of the whole batch")


def noise(shape: tuple[int, ...], seed: int, mean: float = 0.0, width: float = 1.0) -> Any:
    """Evenly distributed float32."""
    random = np.random.default_rng(seed).random(shape, dtype=np.float32)
    random -= np.float32(0.5)
    return random * np.float32(width) + np.float32(mean)


def spikes(shape: tuple[int, ...], density: float, seed: int) -> Any:
    """Random spikes, uint8."""
    return (np.random.default_rng(seed).random(shape, dtype=np.float32) < density).astype(np.uint8)


STEPS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, int, float]] = {
    "digits step": (
        "32C3-P2-64C3-128",
        {"input_shape": (1, 8, 8), "coding": "direct", "padding": "same"},
        {"tau_m": 5.0, "tau_s": 3.0},
        8,
        20,
        1.5,
    ),
    "N-MNIST step": ("12C5-P2-64C5-P2", {"input_shape": (2, 34, 34)}, {"tau_m": 5.0, "tau_s": 3.0}, 10, 8, 1.5),
    "CIFAR-10 step": (
        "16C3-32C3-P2-32C3-P2-64C3-128",
        {"input_shape": (3, 32, 32), "coding": "direct", "padding": "same"},
        {"tau_m": 5.0, "tau_s": 3.0, "threshold": 0.5},
        5,
        6,
        3.0,
    ),
}
"""Notation, options, neuron, steps, batch and gain of the initial weights: the presets' networks, smaller."""


class Training:
    """Updates of a small network through the public trainer, on the same batch again and again."""

    def __init__(self, backend: Any, name: str) -> None:
        from stsbp_spec import LIF, LOSSES, AdamW, Batch, NetworkSpec, initial_weights

        notation, options, neuron, steps, batch, gain = STEPS[name]
        network = NetworkSpec.parse(notation, outputs=10, neuron=LIF(**neuron), **options)
        lead = (batch,) if network.coding == "direct" else (steps, batch)
        if network.coding == "direct":
            inputs = (255 * np.random.default_rng(1).random((*lead, *network.input_shape))).astype(np.uint8)
        else:
            inputs = spikes((*lead, *network.input_shape), 0.05, 1)
        self.batch = Batch(inputs, spikes((steps, batch, 10), 0.3, 2))
        self.trainer = backend.trainer(network, LOSSES["van-rossum"], AdamW(lr=1e-4))
        self.state = self.trainer.init(initial_weights(network, 0, gain))

    def __call__(self, _: Any = None) -> Any:
        self.state, result = self.trainer.step(self.state, self.batch)
        return result


def works(backend: Any, names: list[str]) -> dict[str, Work]:
    """What this checkout can time, of `names` (empty: of everything)."""
    from stsbp_spec import LIF, PSP, SURROGATES, AdamW, NetworkSpec

    def neuron(static: bool, backward: bool) -> Work:
        steps, cells = 20, 400_000
        model, filter = LIF(tau_m=5.0, tau_s=3.0, surrogate=SURROGATES["arctan"]()), PSP(3.0).filter()
        z = backend.asarray(noise((1 if static else steps, 1, cells), 1, 0.3, 1.4))
        forward = method(backend, "neuron_forward")
        if not backward:
            return Work(lambda: None, lambda _: forward(model, filter, z, steps))
        error = backend.asarray(noise((steps, 1, cells), 2))
        adjoint = method(backend, "neuron_backward")
        _, residuals = forward(model, filter, z, steps)
        return Work(
            lambda: backend.asarray(backend.numpy(error).copy()), lambda e: adjoint(model, filter, residuals, e)
        )

    def adamw() -> Work:
        scalars = AdamW().scalars(3, np.float32(0.9))
        start = [noise((1000, 1000), seed) for seed in range(3)]
        start.append(np.square(start[2]))
        if hasattr(backend, "updated"):
            update = partial(backend.updated, scalars, None)
        else:  # a checkout with AdamW only
            update = partial(backend.adamw, scalars)
        return Work(lambda: [backend.asarray(x.copy()) for x in start], lambda arrays: update(*arrays))

    def block(backward: bool) -> Work:
        """A convolution of sparse spikes with its neurons, as one step of the walk through a network."""
        spec = NetworkSpec.parse(
            "16C3p1-16C3p1", input_shape=(16, 24, 24), outputs=4, neuron=LIF(5.0, 3.0, 0.5, SURROGATES["triangle"]())
        )
        measured_block, steps, batch = spec.blocks[1], 8, 8
        s = backend.asarray(spikes((steps, batch, 16, 24, 24), 0.05, 3))
        weights = noise(measured_block.weight_shape, 4, 0.05, 0.6)
        wq, _ = backend.weight_grid(measured_block, backend.asarray(weights))
        forward, adjoint = walk(backend, spec, measured_block, wq, steps)
        if not backward:
            return Work(lambda: None, lambda _: forward(s))
        error = noise((steps, batch, 16, 24, 24), 5)
        return Work(lambda: (forward(s), backend.asarray(error.copy())), lambda arguments: adjoint(*arguments))

    def step(name: str) -> Work:
        return Work(lambda: None, Training(backend, name))

    makers: dict[str, Callable[[], Work]] = {
        "neuron forward, stepped": lambda: neuron(False, False),
        "neuron forward, static": lambda: neuron(True, False),
        "neuron backward, stepped": lambda: neuron(False, True),
        "neuron backward, static": lambda: neuron(True, True),
        "AdamW": adamw,
        "sparse block forward": lambda: block(False),
        "sparse block backward": lambda: block(True),
        **{name: (lambda name=name: step(name)) for name in STEPS},  # type: ignore[misc]
    }
    timed: dict[str, Work] = {}
    for name, make in makers.items():
        if names and name not in names:
            continue
        try:
            timed[name] = make()
        except (AttributeError, TypeError, ImportError) as error:  # another interface: a pair that is no more
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return timed


def main(mode: str, clock_name: str, names: list[str]) -> None:
    """Serve until standard input ends; `clock_name`: `wall`, or `cpu` for the processor time of all threads."""
    # What a library prints must not come between the lines of the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import numba  # noqa: F401
    import torch  # noqa: F401

    clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock_name]
    began = clock()
    from stsbp_torch.backend import TorchBackend

    backend = TorchBackend("cpu")
    if mode == "first":
        result = Training(backend, "N-MNIST step")()
        seconds = clock() - began
        print(json.dumps({"seconds": seconds, "loss": float(result.loss).hex()}), file=answers)
        return
    import stsbp_spec

    timed = works(backend, names)
    losses: dict[str, str] = {}
    for name, work in timed.items():
        for _ in range(3):
            result = work.run(work.fresh())
            if name in STEPS and name not in losses:  # of the first update: no rounding of gradients is in it
                losses[name] = hashlib.sha256(result.spikes.tobytes()).hexdigest() + float(result.loss).hex()
    ready = {"names": list(timed), "losses": losses, "where": str(stsbp_spec.__file__)}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        name, _, count = line.strip().rpartition(" ")
        work, seconds = timed[name], 0.0
        work.run(work.fresh())  # what lay in the caches is gone after the wait for the other
        for _ in range(int(count)):
            arguments = work.fresh()
            began = clock()
            work.run(arguments)
            seconds += clock() - began
        print(json.dumps({"seconds": seconds / int(count)}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
