"""The exact-arithmetic contract: grids are grids, bounds bound, and sums on them do not depend on their order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stsbp_spec.contract.arrays import NUMPY, snap
from stsbp_spec.contract.grid import (
    CEILING,
    EXACT_LIMIT_BITS,
    FINEST_ERROR_EXPONENT,
    FLOOR,
    MIN_WEIGHT_BITS,
    ceil_log2,
    error_bits,
    error_exponent,
    headroom_bits,
    is_on_grid,
    round_to_grid,
    unsigned_zeros,
    weight_grid,
)
from stsbp_spec.errors import ExactnessError, NumericError
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32

_SEED = st.integers(0, 2**32 - 1)


def _weights(seed: int, rows: int, columns: int, scale: int, skew: float) -> Float32:
    """Normal weights times `2^scale`, moved by `skew` standard deviations so that sums do not cancel."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=(rows, columns)) + skew) * 2.0**scale).astype(np.float32)


@given(
    seed=_SEED,
    scale=st.integers(-60, 60),
    bits=st.integers(2, 12),
    input_exponent=st.integers(0, 12),
    skew=st.sampled_from([0.0, 3.0, -3.0]),
)
def test_weights_lie_on_a_grid_of_the_promised_bits(
    seed: int, scale: int, bits: int, input_exponent: int, skew: float
) -> None:
    w = _weights(seed, 4, 70, scale, skew)
    wq, grid = weight_grid(w, weight_bits=bits, input_exponent=input_exponent, input_max=1.0, layer="x")
    units = wq.astype(np.float64) * 2.0**grid.exponent
    assert np.array_equal(units, np.rint(units))
    assert is_on_grid(wq, grid.exponent)
    assert np.abs(units).max() <= 2 ** (grid.bits - 1)
    if grid.bits == bits:
        assert np.abs(units).max() <= 2 ** (bits - 1) - 1
        # And the grid is the finest with so few bits: twice as many units would not fit.
        assert round(2 * float(np.abs(w).max()) * 2.0**grid.exponent) > 2 ** (bits - 1) - 1
    assert np.abs(wq - w).max() <= 2.0 ** (-grid.exponent - 1)
    assert MIN_WEIGHT_BITS <= grid.bits <= bits
    assert 0 <= grid.headroom <= 24


@given(
    seed=_SEED, input_exponent=st.integers(0, 10), skew=st.sampled_from([0.0, 2.0, -2.0]), columns=st.integers(1, 400)
)
def test_no_order_of_a_float32_sum_rounds(seed: int, input_exponent: int, skew: float, columns: int) -> None:
    """Random orders, and the worst one: all positive products first, which reaches the bound."""
    w = _weights(seed, 2, columns, 0, skew)
    wq, _ = weight_grid(w, weight_bits=12, input_exponent=input_exponent, input_max=1.0, layer="x")
    rng = np.random.default_rng(seed)
    s = (rng.integers(0, 2**input_exponent + 1, columns) / 2**input_exponent).astype(np.float32)
    for row in wq:
        products = row * s
        exact = sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, s, strict=True)), Fraction(0))
        orders = [rng.permutation(columns), np.argsort(products), np.argsort(-products)]
        for order in orders:
            total = np.float32(0)
            for x in products[order]:
                total = np.float32(total + x)
            assert Fraction(float(total)) == exact


def test_partial_sums_stay_within_the_headroom() -> None:
    w = np.abs(_weights(1, 3, 20_000, 0, 1.0))
    wq, grid = weight_grid(w, weight_bits=12, input_exponent=0, input_max=1.0, layer="x")
    units = wq.astype(np.float64).sum(axis=1).max() * 2.0**grid.exponent
    assert grid.headroom == pytest.approx(24 - math.log2(units), abs=1e-12)


def test_a_coarser_grid_is_taken_where_the_bound_fails() -> None:
    w = np.full((2, 3 * 32 * 32), 0.9, np.float32)
    _, spikes = weight_grid(w, weight_bits=12, input_exponent=0, input_max=1.0, layer="x")
    wq, images = weight_grid(w, weight_bits=12, input_exponent=8, input_max=255 / 256, layer="x")
    assert spikes.bits == 12
    assert images.bits == 5
    assert images.headroom >= 0
    assert is_on_grid(wq, images.exponent)
    assert headroom_bits(float(wq[0].sum()), images.exponent + 1, 8) < 0


def test_no_grid_is_left() -> None:
    w = np.ones((1, 70_000), np.float32)
    with pytest.raises(ExactnessError, match=r"layer conv3: sums of 70000 inputs .* make the layer's input smaller"):
        weight_grid(w, weight_bits=12, input_exponent=8, input_max=1.0, layer="conv3")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    w = np.ones((2, 3), np.float32)
    w[1, 1] = value
    with pytest.raises(NumericError, match="layer conv3"):
        weight_grid(w, weight_bits=12, input_exponent=0, input_max=1.0, layer="conv3")


@pytest.mark.parametrize("value", [2.0**100, -(2.0**100), 1e37, -3.4e38])
def test_weights_from_the_ceiling_on_are_refused(value: float) -> None:
    w = np.ones((2, 3), np.float32)
    w[1, 1] = value
    with pytest.raises(
        NumericError, match=r"layer conv3: a weight of magnitude .* is too large; it must be below 2\^100"
    ):
        weight_grid(w, weight_bits=12, input_exponent=0, input_max=1.0, layer="conv3")


@pytest.mark.parametrize("bits", range(2, 13))
@pytest.mark.parametrize(
    "most", [np.nextafter(np.float32(CEILING), np.float32(0)), np.float32(FLOOR)], ids=["ceiling", "floor"]
)
def test_scales_and_sums_of_the_outermost_grids_are_normal_numbers(bits: int, most: np.float32) -> None:
    w = np.linspace(-1, 1, 300, dtype=np.float32).reshape(2, 150) * most
    w[0, :3] = most
    for summands in (150, 2**16):
        wide = np.broadcast_to(np.abs(w[0, :1]), (1, summands)) if summands > 150 else w
        wq, grid = weight_grid(np.array(wide), weight_bits=bits, input_exponent=0, input_max=1.0, layer="x")
        assert wq.any()
        assert is_on_grid(wq, grid.exponent)
        assert -126 < grid.exponent < 126
        assert np.abs(wq.astype(np.float64)).sum(axis=1).max() < 2.0**127
        assert np.abs(wq - wide).max() <= 2.0 ** (-grid.exponent - 1)


def test_unsigned_zeros_copies_and_changes_zeros_alone() -> None:
    x = np.array([-0.0, 0.0, 1.5, -(2.0**-149), np.inf, -np.inf, np.nan], np.float32)
    y = unsigned_zeros(x)
    assert y.tobytes() == np.array([0.0, 0.0, 1.5, -(2.0**-149), np.inf, -np.inf, np.nan], np.float32).tobytes()
    assert np.signbit(x[0])


def test_weights_below_the_floor_are_zero() -> None:
    wq, grid = weight_grid(
        np.full((2, 3), 2.0**-101, np.float32), weight_bits=12, input_exponent=0, input_max=1, layer="x"
    )
    assert not wq.any()
    assert grid.headroom == 24


def test_a_magnitude_of_the_floor_itself_has_a_grid() -> None:
    w = np.full((2, 3), FLOOR, np.float32)
    wq, grid = weight_grid(w, weight_bits=12, input_exponent=0, input_max=1, layer="x")
    assert np.array_equal(wq, w)
    assert grid.bits == 12
    assert error_exponent(FLOOR, 24) is not None
    assert error_exponent(math.nextafter(FLOOR, 0), 24) is None


def test_halves_round_to_even() -> None:
    assert round_to_grid(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), 0).tolist() == [0, 2, 2, 0, -2]


@given(x=hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_snap_changes_only_what_is_below_the_floor(x: Float32) -> None:
    y = snap(x)
    small = np.abs(x) < FLOOR
    assert not y[small].any()
    assert not np.signbit(y[small]).any()
    assert np.array_equal(y[~small], x[~small])


@given(n=st.integers(1, 10**9))
def test_ceil_log2(n: int) -> None:
    k = ceil_log2(n)
    assert 2**k >= n
    assert k == 0 or 2 ** (k - 1) < n


@given(
    seed=_SEED,
    scale=st.floats(-60, 60),
    spread=st.sampled_from([0, 4, 12]),
    frames=st.integers(1, 400),
    input_bits=st.integers(0, 12),
)
def test_sums_of_errors_on_their_grid_are_exact_in_any_order(
    seed: int, scale: float, spread: int, frames: int, input_bits: int
) -> None:
    """Both backward products of a layer, permuted, in float64 and in exact fractions."""
    rng = np.random.default_rng(seed)
    errors = (rng.standard_t(2, frames) * 2.0 ** rng.normal(scale, spread, frames)).astype(np.float32)
    bits = error_bits(input_bits=input_bits, weight_bits=12, weight_summands=frames, data_summands=frames)
    q = error_exponent(float(np.abs(errors).max()), bits)
    assert q is not None
    on_grid = round_to_grid(errors, q)
    assert np.abs(on_grid).max() <= 2.0 ** (bits - q)
    assert np.abs(on_grid.astype(np.float64) - errors).max() <= 2.0 ** (-q - 1)
    inputs = rng.integers(0, 2**input_bits + 1, frames) / 2.0**input_bits
    weights = rng.integers(-(2**11), 2**11, frames) / 2.0**9
    for factor in (inputs, weights):
        exact = sum(
            (Fraction(float(a)) * Fraction(float(b)) for a, b in zip(on_grid, factor, strict=True)), Fraction(0)
        )
        products = on_grid.astype(np.float64) * factor
        for order in (rng.permutation(frames), np.argsort(products), np.argsort(-products)):
            assert Fraction(float(np.cumsum(products[order])[-1])) == exact


@pytest.mark.parametrize("input_bits", [0, 8])
@pytest.mark.parametrize("log2_frames", [0, 5, 13])
def test_the_largest_sums_of_errors_reach_53_bits_and_no_more(input_bits: int, log2_frames: int) -> None:
    """One bit more would round: all errors and inputs at their largest, and the last error one unit."""
    frames = 2**log2_frames
    bits = error_bits(input_bits=input_bits, weight_bits=2, weight_summands=frames, data_summands=1)
    assert bits == min(53 - input_bits - log2_frames, 51)
    largest = np.float32(2.0**bits - 2.0 ** max(0, bits - 24))
    q = error_exponent(float(largest), bits)
    assert q == 0
    units = round_to_grid(np.append(np.full(frames - 1, largest), np.float32(1)).astype(np.float32), q)
    products = units.astype(np.float64) * 2.0**input_bits
    exact = ((frames - 1) * int(largest) + 1) * 2**input_bits
    assert exact <= 2**53
    for order in (np.arange(frames), np.arange(frames)[::-1]):
        assert int(np.cumsum(products[order])[-1]) == exact


def test_an_error_grid_of_24_bits_or_more_leaves_the_largest_errors_as_they_are() -> None:
    errors = (np.random.default_rng(0).uniform(0.5, 1, 100) * 2.0 ** np.arange(-100, 0)).astype(np.float32)
    for bits, unchanged in ((24, 1), (31, 8), (40, 17)):
        q = error_exponent(float(errors.max()), bits)
        assert q is not None
        same = round_to_grid(errors, q) == errors
        assert same[-unchanged:].all()
        # Up to half a unit becomes zero: more than `bits` bits below the power of two above the largest.
        assert not round_to_grid(errors, q)[: -bits - 1].any()
        assert round_to_grid(errors, q)[-bits - 1 :].all()


def test_errors_off_the_grid_do_depend_on_the_order() -> None:
    """The grid is needed: without it float64 sums of such errors differ between orders."""
    rng = np.random.default_rng(0)
    errors = (
        (rng.standard_t(1, (2000, 16)) * np.exp(rng.normal(0, 6, (2000, 16)))).astype(np.float32).astype(np.float64)
    )
    sums = {tuple(np.cumsum(errors[rng.permutation(2000)], axis=0)[-1]) for _ in range(8)}
    assert len(sums) > 1


def test_error_bits_are_refused_where_too_few_would_be_left() -> None:
    with pytest.raises(ExactnessError, match="smaller batches"):
        error_bits(input_bits=20, weight_bits=12, weight_summands=2**26, data_summands=1)
    assert error_bits(input_bits=20, weight_bits=12, weight_summands=2**25, data_summands=1) == 8


def test_errors_of_zero_have_no_grid() -> None:
    assert error_exponent(0.0, 24) is None
    assert error_exponent(2.0**-101, 24) is None
    assert error_exponent(2.0**-99, 24) == FINEST_ERROR_EXPONENT


def test_gradients_near_the_floor_are_no_subnormal_numbers() -> None:
    unit, input_unit = 2.0**-FINEST_ERROR_EXPONENT, 2.0**-EXACT_LIMIT_BITS
    assert unit * input_unit == np.finfo(np.float32).tiny
    assert unit < FLOOR


def test_error_bits_of_the_nmnist_network() -> None:
    blocks = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10).blocks
    # 1250 frames, 50 samples of 25 steps: dW of conv1 adds 900 places of each (21 bits); ds of conv2 adds 64 x 5 x 5
    # weights (11 bits) of 12 bits, more than its dW asks for (18 bits, pooled spikes 2); ds of the output 10 weights.
    assert [block.error_bits(frames=1250) for block in blocks] == [53 - 21, 53 - 12 - 11, 53 - 12 - 4]
    assert blocks[1].error_bits(frames=1250 * 2**12) == 53 - 2 - 30


@given(
    seed=_SEED,
    bits=st.integers(10, 51),
    shape=st.sampled_from([(1, 4, 6), (1, 3, 2, 3, 2), (1, 1, 1), (1, 2, 9)]),
    wide=st.sampled_from([0.0, 2.0, 20.0]),
    scale=st.sampled_from([0, -100, -76, 120]),
)
def test_each_sample_of_a_step_has_an_error_grid_of_its_own(
    seed: int, bits: int, shape: tuple[int, ...], wide: float, scale: int
) -> None:
    """That of `error_grid` on the sample alone, whatever else is in the batch."""
    rng = np.random.default_rng(seed)
    per_sample = (1, shape[1], *(1,) * (len(shape) - 2))
    with np.errstate(over="ignore", under="ignore"):
        drawn = (
            rng.normal(size=shape) * np.exp(wide * rng.normal(size=shape)) * np.exp2(30.0 * rng.normal(size=per_sample))
        )
        dz = np.clip(drawn * 2.0**scale, -(2.0**127), 2.0**127).astype(np.float32)
    dz *= rng.random(shape) < 0.8
    rounded = NUMPY.sample_grid(dz, bits)
    assert (rounded.shape, rounded.dtype) == (dz.shape, dz.dtype)
    for b in range(shape[1]):
        alone, _ = NUMPY.error_grid(dz[:, b : b + 1], bits)
        assert np.array_equal(rounded[:, b : b + 1], alone)
        assert np.array_equal(NUMPY.sample_grid(dz[:, b : b + 1], bits), alone)


def test_a_sample_grid_zeroes_what_is_below_the_floor_and_keeps_what_is_no_number() -> None:
    floor, under_floor = np.float32(FLOOR), np.nextafter(np.float32(FLOOR), np.float32(0))
    dz = np.array([[[floor, -floor, 0], [under_floor, -under_floor, 0], [1, np.nan, 0], [np.inf, 1, 0]]], np.float32)
    with np.errstate(invalid="ignore"):
        rounded = NUMPY.sample_grid(dz, 30)[0]
    assert np.array_equal(rounded[0], dz[0, 0])
    assert not rounded[1].any()
    assert np.isnan(rounded[2]).any()
    assert not np.isfinite(rounded[3]).all()
