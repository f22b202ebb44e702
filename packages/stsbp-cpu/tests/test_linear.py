"""A full connection that meets few spikes: exact sums, and gradients of float32 up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from numba import config, set_num_threads
from stsbp_cpu.ops.sparse import linear


@pytest.mark.parametrize("threads", sorted({1, config.NUMBA_NUM_THREADS}))
@pytest.mark.parametrize(("frames", "inputs", "units"), [(1, 1, 1), (700, 13, 33), (41, 70, 16), (3, 9, 300)])
def test_sums_and_gradients(frames: int, inputs: int, units: int, threads: int) -> None:
    rng = np.random.default_rng(units)
    s = (rng.integers(0, 256, (frames, inputs)) * (rng.random((frames, inputs)) < 0.2)).astype(np.uint8)
    s[0, 0] = 3
    w = (rng.integers(-2047, 2048, (units, inputs)) / 2.0**11).astype(np.float32)
    dz = (rng.integers(-(2**20), 2**20, (frames, units)) / 2.0**24).astype(np.float32)
    z = np.full((frames, units), 9, np.float32)
    set_num_threads(threads)
    try:
        linear.forward(s, linear.rows_of(w, (1, frames, inputs)), z)
        gradients = (linear.gradient(s, errors) for errors in (dz, dz.astype(np.float64)))
        fast, exact = (linear.weights_of(rows, units, (1, frames, inputs)) for rows in gradients)
    finally:
        set_num_threads(config.NUMBA_NUM_THREADS)
    assert np.array_equal(z, s.astype(np.float64) @ w.T.astype(np.float64))
    expected = dz.T.astype(np.float64) @ s.astype(np.float64)
    assert [fast.dtype.name, exact.dtype.name] == ["float32", "float64"]
    assert np.array_equal(exact, expected)
    assert np.abs(fast - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("units", [1, 16, 37])
def test_weights_by_input_are_in_the_order_of_memory(units: int) -> None:
    shape = (1, 1, 3, 5, 7)
    w = np.random.default_rng(2).standard_normal((units, 105)).astype(np.float32)
    rows = linear.rows_of(w, shape)
    assert rows.shape == (105, -(-units // 16) * 16)
    assert np.array_equal(rows[:, :units], w.reshape(units, 3, 5, 7).transpose(2, 3, 1, 0).reshape(105, units))
    assert not rows[:, units:].any()
    assert np.array_equal(linear.weights_of(rows, units, shape), w)
    assert np.array_equal(linear.weights_of(rows.astype(np.float64), units, shape), w)


def test_the_share_of_spikes_is_of_a_sample() -> None:
    s = (np.random.default_rng(0).random((6400, 64)) < 0.1).astype(np.uint8)
    assert linear.present(s) == pytest.approx(0.1, abs=0.02)
    assert linear.present(np.ones((1, 3), np.uint8)) == 1
