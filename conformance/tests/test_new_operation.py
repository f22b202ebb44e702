"""An operation that is written here, in one class, runs on every backend: forward, backward, in parts, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_conformance.reference import NUMPY
from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.graph import Edge, Neurons, Node
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Linear
from stsbp_spec.networks.ops.base import Merge
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Array, Float32, Int64, Memory, Shape


@dataclass(frozen=True)
class Larger(Merge):
    """The larger value of two branches. Its error goes to the branch that had it, and to the first one if equal."""

    key: ClassVar[str] = "larger"
    symbol: ClassVar[str] = "max"
    outcome: ClassVar[str] = "largest values"

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def largest(self, *maxima: float) -> float:
        return max(maxima)

    def forward(self, arithmetic: ArrayArithmetic[Array], *inputs: Array) -> tuple[Array, Any]:
        one, other = inputs
        return arithmetic.xp.maximum(one, other), one >= other  # type: ignore[operator]

    def backward(self, arithmetic: ArrayArithmetic[Array], residuals: Any, error: Array) -> tuple[Array, ...]:
        nothing = arithmetic.xp.zeros_like(error)
        return arithmetic.xp.where(residuals, error, nothing), arithmetic.xp.where(residuals, nothing, error)

    def reached(self, counts: Int64, shapes: Sequence[Shape]) -> tuple[Int64, ...]:
        """A spike of either branch reaches all weights, since it can be the larger value."""
        return (counts,) * len(shapes)


NEURONS = Neurons(LIF(3, 5 / 3, 0.4))
NETWORK = NetworkSpec(
    (2, 6, 8),
    nodes=(
        Node("conv1", Conv2d(3, 3, padding=1), (Edge("input"),)),
        Node("one", NEURONS, (Edge("conv1"),)),
        Node("conv2", Conv2d(3, 3, padding=1), (Edge("one"),)),
        Node("two", NEURONS, (Edge("conv2"),)),
        Node("spikes", Larger(), (Edge("one", 1), Edge("two"))),
        Node("pool", AvgPool2d(2), (Edge("spikes"),)),
        Node("means", AvgPool2d(2), (Edge("one"),)),
        Node("both", Larger(), (Edge("means"), Edge("pool"))),
        Node("linear3", Linear(4), (Edge("both"),)),
        Node("output", NEURONS, (Edge("linear3"),)),
    ),
)
STEPS = 6


def _problem() -> tuple[dict[str, Float32], Batch]:
    rng = np.random.default_rng(2)
    inputs = (rng.random((STEPS, 5, *NETWORK.input_shape)) < 0.3).astype(np.uint8)
    return dict(initial_weights(NETWORK, 1, 3.0)), Batch(inputs, (rng.random((STEPS, 5, 4)) < 0.4).astype(np.uint8))


def test_gradients_and_steps_are_those_of_the_reference(stsbp_backend: AbstractBackend) -> None:
    weights, batch = _problem()
    expected, actual = (
        backend.value_and_grad(NETWORK, VanRossum(), weights, batch, precision="reproducible")
        for backend in (NUMPY, stsbp_backend)
    )
    assert actual.spikes.any()
    assert np.array_equal(actual.spikes, expected.spikes)
    for name, gradient in expected.gradients.items():
        assert gradient.any(), name
        assert np.array_equal(actual.gradients[name], gradient), name
    stream = stsbp_backend.stream(NETWORK, weights, 5)
    spikes = [stream.step(frame) for frame in batch.inputs]
    assert np.array_equal(np.stack([np.asarray(x) for x in spikes]), expected.spikes)


def _updated(backend: AbstractBackend, memory: Memory, micro_batch: int | None) -> dict[str, AnyArray]:
    weights, batch = _problem()
    trainer = backend.trainer(
        NETWORK, VanRossum(), AdamW(), precision="reproducible", memory=memory, micro_batch=micro_batch
    )
    state = trainer.init(weights)
    for _ in range(2):
        state, _ = trainer.step(state, batch)
    return dict(trainer.export_state(state))


@pytest.mark.parametrize(("memory", "micro_batch"), [("low", None), ("full", 2)])
def test_updates_in_little_memory_and_in_parts_are_those_of_the_reference(
    memory: Memory, micro_batch: int | None, stsbp_backend: AbstractBackend
) -> None:
    expected = _updated(NUMPY, "full", None)
    for name, x in _updated(stsbp_backend, memory, micro_batch).items():
        assert np.array_equal(x, expected[name]), name
