"""One checkout in its own process, for beside.py: `beside_worker.py all|first wall|cpu [NAME...]`.

The checkout's packages are on PYTHONPATH. `all`: says what can be timed, and answers `time NAME COUNT` with the seconds
of one of so many runs. `first`: says the seconds from the import of the backend to the end of the first update.
Training steps use the public interface, which older checkouts have too; of kernels, a checkout with another interface
leaves out what it does not have.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from workers import serve


class Work(NamedTuple):
    """What is timed: `run` on what `fresh` makes for it, untimed, since a pair may work in place."""

    run: Callable[[Any], Any]
    fresh: Callable[[], Any] = lambda: None


def noise(shape: tuple[int, ...], seed: int, mean: float = 0.0, width: float = 1.0) -> Any:
    """Evenly distributed float32."""
    return (np.random.default_rng(seed).random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(
        width
    ) + np.float32(mean)


def spikes(shape: tuple[int, ...], density: float, seed: int) -> Any:
    """Random spikes, uint8."""
    return (np.random.default_rng(seed).random(shape, dtype=np.float32) < density).astype(np.uint8)


_IMAGES = {"coding": "direct", "padding": "same"}
STEPS: dict[str, tuple[str, dict[str, Any], float, int, int, float]] = {
    "digits step": ("32C3-P2-64C3-128", {"input_shape": (1, 8, 8), **_IMAGES}, 1.0, 8, 20, 1.5),
    "N-MNIST step": ("12C5-P2-64C5-P2", {"input_shape": (2, 34, 34)}, 1.0, 10, 8, 1.5),
    "CIFAR-10 step": ("16C3-32C3-P2-32C3-P2-64C3-128", {"input_shape": (3, 32, 32), **_IMAGES}, 0.5, 5, 6, 3.0),
}
"""Notation, options, threshold, steps, batch and gain of the initial weights: the presets' networks, smaller."""


class Training:
    """Updates of a small network through the public trainer, on the same batch again and again."""

    def __init__(self, backend: Any, name: str) -> None:
        from stsbp_spec import LIF, LOSSES, AdamW, Batch, NetworkSpec, initial_weights

        notation, options, threshold, steps, batch, gain = STEPS[name]
        neuron = LIF(tau_m=5.0, tau_s=3.0, threshold=threshold)
        network = NetworkSpec.parse(notation, outputs=10, neuron=neuron, **options)
        if network.coding == "direct":
            inputs = (255 * np.random.default_rng(1).random((batch, *network.input_shape))).astype(np.uint8)
        else:
            inputs = spikes((steps, batch, *network.input_shape), 0.05, 1)
        self.batch = Batch(inputs, spikes((steps, batch, 10), 0.3, 2))
        self.trainer = backend.trainer(network, LOSSES["van-rossum"], AdamW(lr=1e-4))
        self.state = self.trainer.init(initial_weights(network, 0, gain))

    def __call__(self, _: Any = None) -> Any:
        self.state, result = self.trainer.step(self.state, self.batch)
        return result


def neuron(backend: Any, *, static: bool, backward: bool) -> Work:
    """The neurons of a layer, their input the same at every step, or another."""
    from stsbp_spec import LIF, PSP, SURROGATES

    steps, cells = 20, 400_000
    model, filter = LIF(tau_m=5.0, tau_s=3.0, surrogate=SURROGATES["arctan"]()), PSP(3.0).filter()
    z = backend.asarray(noise((1 if static else steps, 1, cells), 1, 0.3, 1.4))
    if not backward:
        return Work(lambda _: backend.neuron_forward(model, filter, z, steps))
    error = noise((steps, 1, cells), 2)
    _, residuals = backend.neuron_forward(model, filter, z, steps)
    return Work(lambda e: backend.neuron_backward(model, filter, residuals, e), lambda: backend.asarray(error.copy()))


def adamw(backend: Any) -> Work:
    """An update of a million weights."""
    from stsbp_spec import AdamW

    start = [noise((1000, 1000), seed) for seed in range(3)]
    start.append(np.square(start[2]))
    update = partial(backend.updated, AdamW().scalars(3, np.float32(0.9)), None)
    return Work(lambda arrays: update(*arrays), lambda: [backend.asarray(x.copy()) for x in start])


def block(backend: Any, *, backward: bool) -> Work:
    """A convolution of sparse spikes with its neurons, as one step of the walk through a network."""
    from stsbp_spec import LIF, SURROGATES, NetworkSpec
    from stsbp_spec.distributed.collective import BatchSlice
    from stsbp_spec.engine.plan import plan
    from stsbp_spec.engine.rules import PassContext

    lif = LIF(5.0, 3.0, 0.5, SURROGATES["triangle"]())
    spec = NetworkSpec.parse("16C3p1-16C3p1", input_shape=(16, 24, 24), outputs=4, neuron=lif)
    measured, shape = spec.blocks[1], (8, 8, 16, 24, 24)
    s, error = backend.asarray(spikes(shape, 0.05, 3)), noise(shape, 5)
    wq, _ = backend.weight_grid(measured, backend.asarray(noise(measured.weight_shape, 4, 0.05, 0.6)))
    step = next(step for step in plan(backend, spec.graph).steps if step.name == measured.population)
    run = PassContext({measured.name: wq}, shape[0], None, BatchSlice(0, shape[1], shape[1]))
    if not backward:
        return Work(lambda _: step.forward_slice(run, s))
    return Work(
        lambda pair: next(step.backward([run], iter([pair[0][1]]), iter([pair[1]]), "fast")),
        lambda: (step.forward_slice(run, s), backend.asarray(error.copy())),
    )


MAKERS: dict[str, Callable[[Any], Work]] = {
    "neuron forward, stepped": partial(neuron, static=False, backward=False),
    "neuron forward, static": partial(neuron, static=True, backward=False),
    "neuron backward, stepped": partial(neuron, static=False, backward=True),
    "neuron backward, static": partial(neuron, static=True, backward=True),
    "AdamW": adamw,
    "sparse block forward": partial(block, backward=False),
    "sparse block backward": partial(block, backward=True),
    **{name: (lambda backend, name=name: Work(Training(backend, name))) for name in STEPS},  # type: ignore[misc]
}


def works(backend: Any, names: list[str]) -> dict[str, Work]:
    """What this checkout can time, of `names` (empty: of everything)."""
    timed: dict[str, Work] = {}
    for name in names or MAKERS:
        try:
            timed[name] = MAKERS[name](backend)
        except (AttributeError, TypeError, ImportError) as error:  # of another interface
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return timed


def prepare(mode: str, clock_name: str, *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the checkout says of itself, and the requests; `clock_name`: `cpu` is the processor time of all threads."""
    import numba  # noqa: F401
    import torch  # noqa: F401

    clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock_name]
    began = clock()
    from stsbp_torch.backend import TorchBackend

    backend = TorchBackend("cpu")
    if mode == "first":
        result = Training(backend, "N-MNIST step")()
        return {"seconds": clock() - began, "loss": float(result.loss).hex()}, {}
    timed, losses = works(backend, list(names)), dict[str, str]()
    for name, work in timed.items():
        for _ in range(3):
            result = work.run(work.fresh())
            if name in STEPS and name not in losses:  # of the first update: no rounding of gradients is in it
                losses[name] = hashlib.sha256(result.spikes.tobytes()).hexdigest() + float(result.loss).hex()

    def seconds(name: str, count: int) -> dict[str, float]:
        work, total = timed[name], 0.0
        work.run(work.fresh())  # what lay in the caches is gone after the wait for the other
        for _ in range(count):
            arguments = work.fresh()
            began = clock()
            work.run(arguments)
            total += clock() - began
        return {"seconds": total / count}

    return {"names": list(timed), "losses": losses}, {"time": seconds}


if __name__ == "__main__":
    serve(lambda: prepare(*sys.argv[1:]))
