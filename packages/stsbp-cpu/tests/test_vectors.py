"""Vector operations held against numpy's, on small integers, where every order of a sum is exact."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from stsbp_cpu.equations.vectors import (
    LANES,
    ROOM,
    add_scaled,
    convert_bytes,
    copy_vectors,
    dot,
    list_set,
    stream,
    sum_scaled,
    view,
)
from stsbp_spec.typing import AnyArray, Float32, Int32, UInt8


def _integers(rng: np.random.Generator, count: int) -> Float32:
    return rng.integers(-9, 10, count).astype(np.float32)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 8])
def test_dot(vectors: int) -> None:
    rng = np.random.default_rng(vectors)
    x, y = _integers(rng, 700), _integers(rng, 700)
    length = LANES * vectors
    expected = sum(x[5 + 140 * i :][:length] @ y[300 - 130 * i :][:length] for i in range(3))
    assert dot(x, 5, 140, y, 300, -130, 3, vectors) == expected


@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 33])
def test_scaled_runs_are_summed_and_nothing_beside_them_is_touched(vectors: int) -> None:
    rng = np.random.default_rng(vectors)
    length = LANES * vectors
    x, y, scales = _integers(rng, 5 * 20 + 7 + length), _integers(rng, length + 40), _integers(rng, 9)
    places = rng.integers(0, 6, 9).astype(np.int32)
    expected = y.copy()
    for n in range(2, 7):
        expected[11 : 11 + length] += scales[n] * x[20 * places[n] + 7 :][:length]
    sum_scaled(y, 11, x, places, 20, 7, scales, 2, 7, vectors)
    assert np.array_equal(y, expected)
    sum_scaled(y, 11, x, places, 20, 7, scales, 3, 3, vectors)
    assert np.array_equal(y, expected)


@numba.njit  # type: ignore[untyped-decorator]
def _add(y: Float32, at: int, x: Float32, start: int, scale: np.float32, vectors: int) -> None:
    add_scaled(y, at, x, start, scale, vectors)


@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_a_scaled_run_is_added(vectors: int) -> None:
    rng = np.random.default_rng(vectors)
    length = LANES * vectors
    x, y = _integers(rng, length + 9), _integers(rng, length + 30)
    expected = y.copy()
    expected[13 : 13 + length] += np.float32(-3) * x[5 : 5 + length]
    _add(y, 13, x, 5, np.float32(-3), vectors)
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
@pytest.mark.parametrize("offset", [0, 1, 7])
@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 31, 63, 64, 65, 150])
def test_what_is_written_past_the_caches_arrives(length: int, offset: int, dtype: type) -> None:
    memory: AnyArray = np.zeros(300, dtype)
    start = (-memory.ctypes.data % 64) // memory.itemsize + offset
    y = memory[start : start + length]
    x: AnyArray = np.arange(1, length + 1, dtype=dtype)
    assert (y.ctypes.data % 64 == 0) is (offset == 0)
    stream(y, x)
    assert np.array_equal(y, x)
    assert np.count_nonzero(memory) == length


def test_a_view_of_an_array_that_is_not_contiguous_is_refused() -> None:
    @numba.njit  # type: ignore[untyped-decorator]
    def first(x: Float32) -> np.float32:
        value: np.float32 = view(x, 0, 1)[0]
        return value

    x = np.arange(8, dtype=np.float32)
    assert first(x) == 0
    with pytest.raises(numba.TypingError, match="a view needs a contiguous array"):
        first(x[::2])


@numba.njit  # type: ignore[untyped-decorator]
def _list(x: AnyArray, at: int, count: int, mask: UInt8, masked: int, places: Int32) -> int:
    n: int = list_set(x, at, count, mask, 2, masked, 1000, 3, places, 4)
    return n


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 75])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_what_is_not_zero_is_listed(dtype: type, share: float, count: int, masked: int) -> None:
    rng = np.random.default_rng(count)
    # What lies beside it is not zero.
    x: AnyArray = np.full(count + 11, 3, dtype)
    x[5 : 5 + count] = (rng.random(count) < share) * 3
    x[5 + count // 2] = 0 if dtype is np.uint8 else -0.0
    mask, places = (rng.random(count + 2) < 0.5).astype(np.uint8), np.full(count + 4 + ROOM, -1, np.int32)
    n = _list(x, 5, count, mask, masked, places)
    expected = np.flatnonzero(x[5 : 5 + count] * (mask[2:] if masked else 1))
    assert np.array_equal(places[4:n], 1000 + 3 * expected)
    assert (places[:4] == -1).all()


@numba.njit  # type: ignore[untyped-decorator]
def _widen(y: Float32, x: UInt8, vectors: int, add: bool) -> None:
    convert_bytes(y, x, vectors, add)


@pytest.mark.parametrize("add", [False, True])
def test_bytes_become_floats_and_nothing_beside_them_is_touched(*, add: bool) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 256, 3 * LANES, dtype=np.uint8), _integers(rng, 3 * LANES)
    expected = y.copy()
    expected[: 2 * LANES] = x[: 2 * LANES] + (y[: 2 * LANES] if add else 0)
    _widen(y, x, 2, add)
    assert np.array_equal(y, expected)


@numba.njit  # type: ignore[untyped-decorator]
def _copy(y: Float32, at: int, x: Float32, start: int, vectors: int) -> None:
    copy_vectors(y, at, x, start, vectors)


def test_vectors_are_copied() -> None:
    x, y = np.arange(60, dtype=np.float32), np.zeros(60, np.float32)
    _copy(y, 3, x, 7, 2)
    assert np.array_equal(y[3 : 3 + 2 * LANES], x[7 : 7 + 2 * LANES])
    assert not y[:3].any()
    assert not y[3 + 2 * LANES :].any()
