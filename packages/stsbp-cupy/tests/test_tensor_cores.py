"""The half-precision forward path, on `host`: its bits, its proof at start-up, and that the proof can fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.engine.host import HostRuntime
from stsbp_cupy.ops import tensor_cores
from stsbp_spec import NetworkSpec, initial_weights
from stsbp_spec.contract import random
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
    assert wq.dtype == np.float16
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
    assert wq.dtype == np.float32
    wq, _ = half.weight_grid(second, weights[second.name])
    assert wq.dtype == np.float16
    (first, *_) = NetworkSpec.parse("P4-8", input_shape=(1, 8, 8), outputs=2, input_max=128).blocks
    assert first.input.bits == 11
    assert half.weight_grid(first, weights["linear1"])[0].dtype == np.float16


@pytest.mark.parametrize(
    ("exponent", "dtype"), [(-6, np.float32), (-5, np.float16), (24, np.float16), (25, np.float32)]
)
def test_weights_of_any_size_have_the_bits_of_the_reference(
    half: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, exponent: int, dtype: type[np.floating[Any]]
) -> None:
    """Half precision holds them in units from 2^-24, its smallest number, to 2^5."""
    network = NetworkSpec.parse("8C3-12", input_shape=(2, 9, 9), outputs=3)
    weights = {
        block.name: ((2047 * rng.uniform(-1, 1, block.weight_shape)) * 2.0**-exponent).astype(np.float32)
        for block in network.blocks
    }
    for block in network.blocks:
        weights[block.name].flat[0] = 2047 * 2.0**-exponent
        wq, grid = half.weight_grid(block, weights[block.name])
        expected, _ = reference.weight_grid(block, weights[block.name])
        assert grid.exponent == exponent
        assert wq.dtype == dtype
        assert half.numpy(wq).tobytes() == expected.tobytes()
        s = (rng.random((3, 2, *block.input.shape)) < 0.4).astype(np.uint8)
        z, residuals = half.rule(block.synapse).forward(block.synapse, s, wq)
        expected_z, expected_residuals = reference.rule(block.synapse).forward(block.synapse, s, expected)
        assert np.ascontiguousarray(z).tobytes() == expected_z.tobytes()
        assert np.count_nonzero(z) > z.size // 2
        dz = rng.integers(-2047, 2048, z.shape).astype(np.float32)
        for gradient, expected_gradient in zip(
            half.rule(block.synapse).backward(block.synapse, residuals, dz, precision="reproducible", need_input=True),
            reference.rule(block.synapse).backward(
                block.synapse, expected_residuals, dz, precision="reproducible", need_input=True
            ),
            strict=True,
        ):
            assert gradient is not None
            assert np.array_equal(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("dtype", "significant", "limit"), [(np.float16, 11, 24), (np.float32, 24, 24), (np.float64, 53, 53)]
)
def test_proof_reaches_for_the_bound(dtype: Any, significant: int, limit: int) -> None:
    proof = tensor_cores._PROOFS[np.dtype(dtype)]
    for number, (k, rows, columns) in enumerate(tensor_cores._CASES):
        a, b = tensor_cores._operands(number, k, rows, columns, proof)
        assert 0 <= a.min() <= a.max() < 2**significant
        assert np.abs(b).max() < 2**significant
        assert {0, 1} == set((a % 2).ravel().tolist())
        largest = max((a @ np.maximum(sign * b, 0).T).max() for sign in (1, -1))
        assert 2 ** (limit - 2) < largest < 2**limit


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_proof_passes_where_sums_are_exact(dtype: Any) -> None:
    assert tensor_cores.prove(HostRuntime(), dtype) is None


def test_proofs_of_all_precisions_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start of the device pays for them: words of random bits, and products that the host multiplies too."""
    words: list[int] = []
    draw = random.bits

    def counted(seed: int, stream: Any, count: int, **options: Any) -> Any:
        words.append(count)
        return draw(seed, stream, count, **options)

    monkeypatch.setattr(tensor_cores, "bits", counted)
    for dtype in (np.float16, np.float32, np.float64):
        tensor_cores.prove(HostRuntime(), dtype)
    # The proof of half precision alone took 2.6 s with 3.3 million words and 188 million products of int64.
    assert sum(words) < 300_000
    assert sum(math.prod(case) for case in tensor_cores._CASES) < 40_000_000


class Rounding(HostRuntime):
    """cuBLAS that would round the operands of products of one type to fewer bits."""

    rounded: Any = np.float32
    significant = 11

    def gemm(self, a: Any, b: Any, out: Any, **options: Any) -> None:
        if a.dtype == self.rounded:
            a, b = (self._round(x) for x in (a, b))
        super().gemm(a, b, out, **options)

    def _round(self, x: Any) -> Any:
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 2**self.significant), exponent - self.significant).astype(x.dtype)


@pytest.mark.parametrize(
    ("dtype", "significant"), [(np.float32, 8), (np.float32, 11), (np.float64, 24), (np.float64, 28)]
)
def test_proof_sees_operands_that_are_rounded(dtype: Any, significant: int) -> None:
    runtime = Rounding()
    runtime.rounded, runtime.significant = dtype, significant
    verdict = tensor_cores.prove(runtime, dtype)
    assert verdict is not None
    assert f"{np.dtype(dtype)} products differ from integers" in verdict


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


class Flushing(HostRuntime):
    """Tensor cores that would take subnormal numbers for zero."""

    def gemm(self, a: Any, b: Any, out: Any, **options: Any) -> None:
        a, b = (np.where(np.abs(x) < 2.0**-14, 0, x).astype(np.float32) for x in (a, b))
        super().gemm(a, b, out, **options)


def test_proof_sees_that_subnormal_weights_are_lost() -> None:
    verdict = tensor_cores.prove(Flushing())
    assert verdict is not None
    assert verdict.endswith("weights in units of 2^-24")
