"""What the error grid takes from a network, and that it is reported exactly."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.contract.arrays import NUMPY
from stsbp_spec.contract.grid import SMALLEST_NORMAL, ZeroedErrors, error_exponent
from stsbp_spec.engine.backend import Batch, ValueAndGrad
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.models.optim.adamw import AdamW
from stsbp_spec.models.surrogates import FastSigmoid
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, Int64, Memory, Precision

STEPS = 4
SATURATED = NetworkSpec.parse(
    "16-12", input_shape=(24,), outputs=6, weight_bits=4, neuron=LIF(5, 1, 0.5, FastSigmoid())
)
"""Of two samples one is silent. In the other one the first layer's potentials are so large that its surrogate
derivative is 2^-28 of the silent sample's, and only its inputs, and so its errors, enter the gradient of that layer."""


def saturated() -> tuple[dict[str, Float32], Batch]:
    """Weights and a batch."""
    rng = np.random.default_rng(0)
    weights = initial_weights(SATURATED, 0, 2.0)
    weights["linear1"] = rng.uniform(512, 1024, (16, 24)).astype(np.float32)
    inputs = np.ones((STEPS, 2, 24), np.uint8)
    inputs[:, 1] = 0
    return weights, Batch(inputs, (rng.random((STEPS, 2, 6)) < 0.4).astype(np.uint8))


class Version1(NumpyBackend):
    """The error grid of version 1 of the contract."""

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        return super().error_grid(dz, min(24, bits), largest)


class Recording(NumpyBackend):
    """Keeps what enters and leaves the error grid, from the last layer to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Float32, Float32]] = []

    def error_grid(self, dz: Float32, bits: int, largest: AnyArray | None = None) -> tuple[Float32, Int64]:
        on_grid, counts = super().error_grid(dz, bits, largest)
        self.seen.append((dz.copy(), on_grid.copy()))
        return on_grid, counts


def gradients(backend: NumpyBackend, precision: Precision) -> ValueAndGrad:
    weights, batch = saturated()
    return backend.value_and_grad(SATURATED, VanRossum(), weights, batch, precision=precision)


def test_gradients_of_a_saturated_layer_that_24_bits_lost_are_kept() -> None:
    fast = gradients(NumpyBackend(), "fast").gradients["linear1"]
    assert np.abs(fast).max() > 0
    lost = gradients(Version1(), "reproducible")
    assert not lost.gradients["linear1"].any()
    assert lost.zeroed["linear1"].share >= 0.5
    backend = Recording()
    computed = gradients(backend, "reproducible")
    dz, on_grid = backend.seen[-1]
    bits = SATURATED.blocks[0].error_bits(frames=2 * STEPS)
    q = error_exponent(float(np.abs(dz).max()), bits)
    assert bits == 53 - 4 - 4
    assert q is not None
    # Inputs are 0 and 1: each of STEPS errors is wrong by half a unit, each of STEPS float32 sums by half a last place.
    bound = STEPS * (2.0 ** -(q + 1) + 2.0**-24 * np.abs(fast).max())
    assert np.abs(computed.gradients["linear1"] - fast).max() <= bound
    assert bound <= 1e-4 * np.abs(fast).max()
    assert (on_grid[:, 0] != 0).all()
    assert computed.zeroed["linear1"] == ZeroedErrors(0, 2 * STEPS * 16)


@pytest.mark.parametrize("memory", ["full", "low"])
def test_zeroed_errors_are_counted_exactly(memory: Memory) -> None:
    backend = Recording()
    network = NetworkSpec.parse(
        "4C3-P2-12", input_shape=(2, 9, 9), outputs=6, input_max=255, neuron=LIF(5, 5 / 3, 0.5, FastSigmoid())
    )
    rng = np.random.default_rng(1)
    inputs = (rng.integers(0, 256, (6, 4, *network.input_shape)) * (rng.random((6, 4, 1, 1, 1)) < 0.5)).astype(np.uint8)
    batch = Batch(inputs, (rng.random((6, 4, 6)) < 0.3).astype(np.uint8))
    trainer = backend.trainer(network, VanRossum(), AdamW(), precision="reproducible", memory=memory)
    _, result = trainer.step(trainer.init(initial_weights(network, 0, 200.0)), batch)
    assert list(result.zeroed) == list(network.weight_shapes)
    for name, (dz, on_grid) in zip(reversed(result.zeroed), backend.seen, strict=True):
        nonzero, nonzero_on_grid = dz != 0, on_grid != 0
        assert result.zeroed[name] == ZeroedErrors(int((nonzero & ~nonzero_on_grid).sum()), int(nonzero.sum()))
    first = result.zeroed["conv1"]
    assert 0 < first.zeroed < first.nonzero
    assert first.share == first.zeroed / first.nonzero


def test_fast_precision_has_no_error_grid() -> None:
    weights, batch = saturated()
    assert gradients(NumpyBackend(), "fast").zeroed == {}
    trainer = NumpyBackend().trainer(SATURATED, VanRossum(), AdamW())
    assert trainer.step(trainer.init(weights), batch)[1].zeroed == {}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.0, -0.0], (0, 0)),
        ([1.0, 2.0**-9, 2.0**-9 * 1.5, -(2.0**-9), 0.0], (2, 4)),
        ([SMALLEST_NORMAL, SMALLEST_NORMAL / 2, 1.0], (1, 2)),
        ([2.0**-101, -(2.0**-110), 0.0], (2, 2)),
    ],
    ids=["zeros", "half a unit", "subnormal", "below the floor"],
)
def test_what_counts_as_zeroed(errors: list[float], expected: tuple[int, int]) -> None:
    # The power of two above 1 is 2, so the unit of 9 bits is 2^-8 and half of it 2^-9.
    _, counts = NUMPY.error_grid(np.array(errors, np.float32), 9)
    assert tuple(counts) == expected


def test_the_share_of_nothing_is_zero() -> None:
    assert ZeroedErrors(0, 0).share == 0
