"""Packed weights: every float32 comes back with its bits, and weights on grids stay on them."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from stsbp.hub.packing import on_grids, pack, safetensors_bytes, unpack, unpacked_size
from stsbp.records import PackedTensor
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32


def through(weights: dict[str, Float32]) -> dict[str, Float32]:
    data, tensors = pack(weights)
    stored = {name: PackedTensor.model_validate(tensor) for name, tensor in tensors.items()}
    assert unpacked_size(stored) == sum(x.nbytes for x in weights.values())
    return unpack(data, stored)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8),
    st.integers(-112, 126),
    st.lists(st.integers(-(2**15), 2**15), max_size=8),
)
def test_every_number_comes_back_with_its_bits(numbers: list[float], exponent: int, integers: list[int]) -> None:
    on_grid = np.ldexp(np.array(integers, np.float64), -exponent).astype(np.float32)
    weights = {"a": np.array(numbers, np.float32), "b": on_grid.reshape(1, -1), "c": np.array([0.0, -0.0], np.float32)}
    result = through(weights)
    for name, x in weights.items():
        assert result[name].dtype == np.float32
        assert result[name].shape == x.shape
        assert result[name].tobytes() == x.tobytes(), name


def test_integers_take_two_bytes() -> None:
    grid = (np.arange(-2047, 2048) / 2**9).astype(np.float32)
    _, tensors = pack({"w": grid, "zero": np.zeros(3, np.float32), "bias": np.array([0.1], np.float32)})
    assert {name: tensor["exponent"] for name, tensor in tensors.items()} == {"w": 9, "zero": 0, "bias": None}


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 4), max_size=4))
def test_safetensors_are_those_of_the_library(sizes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(size, 2)).astype(np.float32) for name, size in sizes.items()}
    if all(name.isprintable() for name in sizes) and "__metadata__" not in sizes:
        assert safetensors_bytes(weights) == safetensors.numpy.save(weights, metadata={"format": "stsbp"})


@pytest.mark.parametrize("net", ["16", "4C3-P2-16R", "4C3b-P2-8bn"])
@pytest.mark.parametrize("gain", [0.3, 1.5, 40.0])
def test_weights_on_grids_give_the_same_spikes(net: str, gain: float) -> None:
    network = NetworkSpec.parse(net, input_shape=(1, 8, 8), outputs=3, coding="direct")
    weights = initial_weights(network, 3, gain)
    rounded = on_grids(network, weights)
    again = on_grids(network, rounded)
    assert {name: x.tobytes() for name, x in again.items()} == {name: x.tobytes() for name, x in rounded.items()}
    _, tensors = pack(rounded)
    for projection in network.graph.projections:
        assert tensors[projection.parameter]["exponent"] is not None
    backend = NumpyBackend()
    images = np.random.default_rng(1).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    first, second = (backend.run(network, w, images, 6).layers for w in (weights, through(rounded)))
    for name in first:
        assert first[name].spikes.tobytes() == second[name].spikes.tobytes()
        assert np.array_equal(first[name].potentials, second[name].potentials)
