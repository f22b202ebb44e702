"""Learned delays have the bits of the reference on every backend: each operation, and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_conformance.reference import NUMPY
from stsbp_spec import AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.registry import installed_backends, open_backend

DELAYS = np.array([0.0, 0.5, 1.5, 2.5, 3.0, 7.75], np.float32)
STEPS, BATCH = 7, 5
IN_THE_SUITE = ("cpu@cpu", "torch@cpu", "torch@cpu:eager", "jax@cpu", "cupy@host")
"""The quick checks of the suite have learned delays on them: operations in tier 5, trainings in tiers 4 and 8."""
XLA = "jax@cpu:xla"
BACKENDS = (*IN_THE_SUITE, XLA)
NETWORKS = ("T5-6C3-P2-T3-F-T2-8", "T3-4C3-[T2-4C3p1]+-P2-8R-T4-7")
OF_JAX = ("T3-4C3-[T2-4C3p1]+-P2-T3-F-8R-T4-7",)
"""JAX compiles every network, so it has one with what both others have."""


def _opened(backend: str) -> AbstractBackend:
    name, device = backend.split("@")
    if name not in installed_backends():
        pytest.skip(f"{name} is not installed")
    return open_backend(name, device)


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if name in IN_THE_SUITE else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in BACKENDS])
@pytest.mark.parametrize("shape", [(6,), (6, 2, 3)])
@pytest.mark.parametrize("earlier", [0, 4])
def test_operations(name: str, shape: tuple[int, ...], earlier: int) -> None:
    backend, rng = _opened(name), np.random.default_rng(2)
    counts = ((rng.random((STEPS + earlier, BATCH, *shape)) < 0.4) * rng.integers(1, 9, (BATCH, *shape))).astype(
        np.uint8
    )
    error = rng.normal(size=(STEPS, BATCH, *shape)).astype(np.float32)
    error, _ = NUMPY.error_grid(error, 40)
    delays = backend.asarray(DELAYS)
    for x in (counts, counts.astype(np.float32) / 4):
        native, native_error = backend.asarray(x), backend.asarray(error)
        delayed = backend.numpy(backend.delay_forward(native, delays))
        assert np.array_equal(delayed, NUMPY.delay_forward(x, DELAYS))
        grad_input = backend.numpy(backend.delay_backward(native_error, delays))
        assert np.array_equal(grad_input, NUMPY.delay_backward(error, DELAYS))
        gradient = backend.numpy(backend.delay_gradient(native, delays, native_error))
        expected = NUMPY.delay_gradient(x, DELAYS, error)
        assert gradient.dtype == np.float64
        assert gradient.tobytes() == expected.tobytes()
        assert np.count_nonzero(expected) > 3


@pytest.mark.parametrize(
    ("name", "notation"),
    [
        pytest.param(name, notation, marks=_marks(name))
        for name in BACKENDS
        for notation in (OF_JAX if name.startswith("jax") else NETWORKS)
    ],
)
def test_training(name: str, notation: str) -> None:
    backend = _opened(name)
    spec, rng = NetworkSpec.parse(notation, input_shape=(2, 8, 8), outputs=3), np.random.default_rng(1)
    inputs = (rng.random((STEPS, BATCH, *spec.input_shape)) < 0.3).astype(np.uint8)
    batch = Batch(inputs, (rng.random((STEPS, BATCH, 3)) < 0.3).astype(np.uint8))
    states = []
    runs: list[tuple[Any, int | None]] = [(NUMPY, None), (backend, None)]
    # XLA's own code compiles ten seconds for each size of a micro-batch, and jax@cpu has the same micro-batches.
    if name != XLA:
        runs.append((backend, 2))
    for tried, micro_batch in runs:
        optimizer = AdamW(lr=0.01, delay_lr=0.5, weight_decay=0.01)
        trainer = tried.trainer(spec, VanRossum(), optimizer, precision="reproducible", micro_batch=micro_batch)
        state = trainer.init(initial_weights(spec, 1, 3.0))
        for _ in range(3):
            state, _ = trainer.step(state, batch)
        states.append(trainer.export_state(state))
    expected, *others = states
    start = initial_weights(spec, 1, 3.0)
    assert all((expected[f"weight/{name}"] != start[name]).any() for name in spec.graph.delays)
    for other in others:
        assert {name: x.tobytes() for name, x in other.items()} == {name: x.tobytes() for name, x in expected.items()}
