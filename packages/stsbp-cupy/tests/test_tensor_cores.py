"""The half-precision forward path, on `host`: its bits, its proof at start-up, and that the proof can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend, tensor_cores
from stsbp_cupy.host import HostRuntime
from stsbp_cupy.synapses.weights import HalfUnits
from stsbp_spec import NetworkSpec, initial_weights
from stsbp_spec.reference.backend import NumpyBackend


@pytest.fixture
def half(backend: CupyBackend) -> CupyBackend:
    """A backend whose runtime takes the half-precision path."""
    other = CupyBackend("host")
    other.rt.tensor_cores = True
    return other


@pytest.mark.parametrize("notation", ["12C5-P2-16C5-P2", "8C3-P4-20", "6C3s2-8C3p1-D0.3-12"])
@pytest.mark.parametrize("coding", ["events", "direct"])
def test_run_has_the_bits_of_the_reference(
    half: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, coding: Any, notation: str
) -> None:
    network = NetworkSpec.parse(
        notation, input_shape=(2, 34, 34), outputs=10, coding=coding, input_max=3 if coding == "events" else 1
    )
    weights = initial_weights(network, 5)
    inputs = rng.integers(0, 4, (6, 3, 2, 34, 34), dtype=np.uint8)
    if coding == "direct":
        inputs = rng.integers(0, 256, (3, 2, 34, 34), dtype=np.uint8)
    wq, _ = half.weight_grid(network.blocks[0], weights["conv1"])
    assert isinstance(wq, HalfUnits)
    expected, actual = (b.run(network, weights, inputs, 6) for b in (reference, half))
    assert actual.grids == expected.grids
    for name, layer in expected.layers.items():
        assert np.array_equal(actual.layers[name].spikes, layer.spikes)
        u = np.ascontiguousarray(actual.layers[name].potentials)
        assert u.tobytes() == layer.potentials.tobytes(), name
    assert expected.layers["conv1"].spikes.any()


def test_inputs_of_more_than_11_bits_stay_in_float32(half: CupyBackend) -> None:
    network = NetworkSpec.parse("P4-8", input_shape=(1, 8, 8), outputs=2, coding="direct")
    weights = initial_weights(network, 1)
    first, second = network.blocks
    assert first.input.bits == 12
    wq, _ = half.weight_grid(first, weights[first.name])
    assert isinstance(wq, np.ndarray)
    wq, _ = half.weight_grid(second, weights[second.name])
    assert isinstance(wq, HalfUnits)
    assert np.array_equal(half.numpy(wq), wq.array)


def test_proof_reaches_for_the_bound() -> None:
    for number, (k, rows, columns) in enumerate(tensor_cores._CASES):
        a, b = tensor_cores._operands(number, k, rows, columns)
        assert 0 <= a.min() <= a.max() < 2**11
        assert np.abs(b).max() < 2**11
        largest = max((a @ np.maximum(b, 0)).max(), (a @ np.maximum(-b, 0)).max())
        assert 2**22 < largest < 2**24


def test_proof_passes_where_sums_are_exact() -> None:
    assert tensor_cores.prove(HostRuntime()) is None


class Truncating(HostRuntime):
    """Tensor cores that would keep fewer bits of a running sum."""

    bits = 22

    def gemm(self, a: Any, b: Any, out: Any, **options: Any) -> None:
        total = np.zeros(out.shape, np.float64)
        for start in range(0, a.shape[1], 16):
            part = slice(start, start + 16)
            total += a[:, part].astype(np.float64) @ b[part].astype(np.float64)
            mantissa, exponent = np.frexp(total)
            total = np.ldexp(np.trunc(np.ldexp(mantissa, self.bits)), exponent - self.bits)
        out[...] = total


@pytest.mark.parametrize("bits", [14, 20, 22])
def test_proof_sees_sums_that_lose_bits(bits: int) -> None:
    runtime = Truncating()
    runtime.bits = bits
    verdict = tensor_cores.prove(runtime)
    assert verdict is not None
    assert "half-precision products differ from integers" in verdict
