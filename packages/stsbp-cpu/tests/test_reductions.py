"""Numbers over whole arrays, pooling, dropout and optimisers: the bits of the spec, in one chunk and in several."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stsbp_cpu.contract import reductions
from stsbp_cpu.models.optim.update import update
from stsbp_cpu.ops import avgpool2d, conv2d_bytes, dropout, maxpool2d
from stsbp_spec.contract.arrays import NUMPY
from stsbp_spec.contract.random import keep_mask
from stsbp_spec.models.optim import OPTIMIZERS
from stsbp_spec.models.optim.adamw import gradient_norm, gradient_squares, norm_of
from stsbp_spec.networks.ops import AvgPool2d, MaxPool2d
from stsbp_spec.networks.ops.axes import PerAxis
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

REFERENCE = NumpyBackend()
SIZES = [0, 1, 7, 8, 1000, 65_536, 300_001]


@pytest.mark.parametrize("size", SIZES)
def test_spikes_are_counted(size: int) -> None:
    spikes = (np.random.default_rng(size).random(size) < 0.9).astype(np.uint8)
    assert reductions.count(spikes) == int(spikes.sum(dtype=np.int64))
    assert reductions.count(np.ones(size, np.uint8)) == size


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_magnitude_is_found_wherever_it_is(size: int) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    assert reductions.largest(x) == float(np.abs(x).max(initial=0))
    for place in {0, size // 2, size - 1} if size else ():
        for value in (-9.0, math.inf, math.nan):
            changed = x.copy()
            changed[place] = value
            assert np.array_equal(reductions.largest(changed), abs(value), equal_nan=True)


def norm(gradients: list[Float32]) -> float:
    return norm_of(reductions.gradient_squares(gradients), sum(g.size for g in gradients))


def test_the_norm_of_gradients_is_that_of_the_spec() -> None:
    rng = np.random.default_rng(0)
    gradients = [(rng.standard_normal(n) * scale).astype(np.float32) for n, scale in ((70_001, 1e-3), (50, 2.0))]
    assert reductions.gradient_squares(gradients).tolist() == gradient_squares(gradients).tolist()
    assert norm(gradients) == gradient_norm(gradients)
    assert norm([np.zeros(9, np.float32)]) == 0
    for value in (math.inf, math.nan):
        assert np.array_equal(norm([gradients[0], np.array([1, value], np.float32)]), value, equal_nan=True)
    assert math.isnan(norm([np.array([math.inf], np.float32), np.array([math.nan], np.float32)]))


@pytest.mark.parametrize("scale", [1.0, 2.0**-101], ids=["", "below the floor"])
def test_errors_are_rounded_to_their_grid(scale: float) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(200_003) * np.exp(8 * rng.standard_normal(200_003))
    wide[rng.random(wide.shape) < 0.1] = 0
    dz = (wide * (scale / np.abs(wide).max())).astype(np.float32)
    smallest = np.float32(2.0**-126)  # a smaller number does not count as an error that was set to zero
    dz[:4] = smallest, -smallest, np.nextafter(smallest, np.float32(0)), -np.nextafter(smallest, np.float32(0))
    expected, numbers = NUMPY.error_grid(dz, 28)
    out = np.full_like(dz, np.nan)
    counts = reductions.round_errors(dz, 28, reductions.largest(dz), out)
    assert np.array_equal(out, expected)
    assert counts.sum(axis=0).tolist() == numbers.tolist()


def test_rows_of_weights_are_rounded_and_bounded() -> None:
    w = np.random.default_rng(0).standard_normal((40, 901)).astype(np.float32)
    wq, bound = reductions.round_rows(w, 7)
    expected = np.rint(w * np.float32(128))
    assert np.array_equal(wq, expected / 128)
    sums = [np.where(expected > 0, expected, 0).sum(1).max(), -np.where(expected < 0, expected, 0).sum(1).min()]
    assert bound == max(sums) / 128


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 9), (1, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("step", [0, 2**40 + 5])
def test_dropout_draws_the_bits_of_the_spec(shape: tuple[int, ...], step: int) -> None:
    expected = keep_mask(11, 3, step, shape, 0.3)
    mask = dropout.mask(11, 3, step, shape, 0.3)
    assert np.array_equal(mask, np.moveaxis(expected, 1, -1))


@pytest.mark.parametrize("size", [2, 3, (1, 4)], ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pooling_is_that_of_the_reference(kind: type[np.generic], size: PerAxis) -> None:
    rng, pool = np.random.default_rng(0), AvgPool2d(size)
    s: AnyArray = rng.integers(0, 4, (5, 2, 3, 7, 9)).astype(kind)
    expected, shape = REFERENCE.rules[AvgPool2d].forward(pool, s)
    d = rng.standard_normal(expected.shape).astype(np.float32)
    out, grad_input = (np.full((10, *axes, 3), np.nan, np.float32) for axes in (expected.shape[3:], (7, 9)))
    scale = np.float32(2.0**-pool.exponent)
    avgpool2d.forward(_frames(s), out, *pool.sizes, scale)
    assert np.array_equal(out, _frames(expected))
    avgpool2d.backward(_frames(d), grad_input, *pool.sizes, scale)
    assert np.array_equal(grad_input, _frames(REFERENCE.rules[AvgPool2d].backward(pool, shape, d)))


@pytest.mark.parametrize("size", [2, (3, 1), (7, 9)], ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_max_pooling_is_that_of_the_reference(kind: type[np.generic], size: PerAxis) -> None:
    rng, pool = np.random.default_rng(0), MaxPool2d(size)
    s: AnyArray = rng.integers(0, 3, (5, 2, 3, 7, 9)).astype(kind)
    expected, residuals = REFERENCE.rules[MaxPool2d].forward(pool, s)
    d = rng.standard_normal(expected.shape).astype(np.float32)
    out, grad_input = np.empty((10, *expected.shape[3:], 3), kind), np.full((10, 7, 9, 3), np.nan, np.float32)
    first = np.empty(out.shape, np.int32)
    maxpool2d.forward(_frames(s), out, first, *pool.sizes)
    assert np.array_equal(out, _frames(expected))
    maxpool2d.backward(_frames(d), first, grad_input, *pool.sizes)
    assert np.array_equal(grad_input, _frames(REFERENCE.rules[MaxPool2d].backward(pool, residuals, d)))


def _frames(x: AnyArray) -> AnyArray:
    memory = np.ascontiguousarray(x.transpose(0, 1, 3, 4, 2))
    return memory.reshape(-1, *memory.shape[2:])


@pytest.mark.parametrize(("size", "masked"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_bytes_are_pooled_masked_and_doubled(size: int, masked: int) -> None:
    rng = np.random.default_rng(0)
    s = rng.integers(0, 4, (3, 2, 4 * size + size - 1, 5 * size, 3)).astype(np.uint8)
    mask = rng.integers(0, 2, (2, *(s.shape[2:] if masked == 1 else (4, 5, 3)))).astype(np.uint8)
    sums = (s * mask if masked == 1 else s)[:, :, : 4 * size].reshape(3, 2, 4, size, 5, size, 3).sum((3, 5))
    expected = sums * mask if masked == 2 else sums
    out = np.full((3, 2, 4, 5, 6), 255, np.uint8)
    conv2d_bytes.doubled(s, mask, masked, size, out)
    assert np.array_equal(out, np.concatenate([16 * expected, expected], -1))


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 5000, 200_003])
def test_optimisers_update_as_the_reference(size: int, kind: Any) -> None:
    rng = np.random.default_rng(size)
    optimizer = kind(lr=0.01, weight_decay=0.1)
    scalars = optimizer.scalars(1, np.float32(0.5))
    w, g, m, v = (rng.standard_normal(size).astype(np.float32) for _ in range(4))
    values = [w, g, *[m, v * v][: len(optimizer.moments)]]
    copies = [x.copy() for x in values]
    new = [np.full(size, np.nan, np.float32) for _ in scalars.update.outputs]
    update(scalars, values, new)
    for actual, expected in zip(new, REFERENCE.updated(scalars, None, *values), strict=True):
        assert actual.tobytes() == expected.tobytes()
    for x, y in zip(values, copies, strict=True):
        assert np.array_equal(x, y)
