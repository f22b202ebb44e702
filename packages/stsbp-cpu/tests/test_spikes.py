"""Lists of the spikes of a frame, held against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_cpu.equations.vectors import LANES, ROOM
from stsbp_cpu.ops.sparse.kernels import _unpool
from stsbp_cpu.ops.sparse.spikes import list_by_channel, list_nonzero, list_spikes, row_positions
from stsbp_spec.typing import AnyArray, Float32, UInt8

FRAMES = {"two channels": (9, 34, 2), "twelve": (7, 15, 12), "whole words": (4, 6, 64), "one pixel": (3, 3, 1)}


def _pooled(frame: UInt8, size: int) -> Float32:
    rows, columns = frame.shape[0] // size, frame.shape[1] // size
    cut = frame[: rows * size, : columns * size].reshape(rows, size, columns, size, -1)
    pooled: Float32 = cut.sum((1, 3), dtype=np.float32) * np.float32(1 / size**2)
    return pooled


@pytest.mark.parametrize("all_rows", [True, False], ids=["all rows", "a band"])
@pytest.mark.parametrize("masked", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", FRAMES)
def test_both_lists_hold_what_is_not_zero(name: str, size: int, masked: int, all_rows: bool) -> None:
    rng = np.random.default_rng(size)
    height, width, channels = FRAMES[name]
    rows, columns = height // size, width // size
    frame = rng.integers(1, 200, FRAMES[name], dtype=np.uint8) * (rng.random(FRAMES[name]) < 0.3)
    shape = FRAMES[name] if masked == 1 else (rows, columns, channels)
    mask = (rng.random(shape) < 0.5).astype(np.uint8) if masked else np.ones((1, 1, 1), np.uint8)
    expected = _pooled(frame * mask if masked == 1 else frame, size) * (mask if masked == 2 else 1)
    low, high = (0, rows) if all_rows else (rows // 3, rows - rows // 4)
    tables, count = row_positions(width, channels, size), expected[low:high].size
    places, values = np.zeros(count, np.int32), np.zeros(count, np.float32)
    starts = np.full((high - low) * columns + 1, -1, np.int32)
    n = list_spikes(frame, size, mask, masked, tables, low, high, places, values, starts)
    y, x, c = np.nonzero(expected[low:high])
    assert n == len(y)
    assert np.array_equal(places[:n], x * channels + c)
    assert np.array_equal(values[:n], expected[low + y, x, c].astype(np.float32))
    of_pixels = np.count_nonzero(expected[low:high], axis=2).reshape(-1)
    assert np.array_equal(starts, np.concatenate([[0], np.cumsum(of_pixels)]))

    wide, ends = columns + 4, np.zeros((rows, channels), np.int32)
    list_by_channel(frame, size, mask, masked, tables, wide, low, high, places, values, ends)
    for channel in range(channels):
        first = channel * (high - low) * columns
        for row in range(low, high):
            of_channel = slice(first, ends[row, channel])
            y, x = np.nonzero(expected[low : row + 1, :, channel])
            assert np.array_equal(places[of_channel], (low + y) * wide + x)
            assert np.array_equal(values[of_channel], expected[low + y, x, channel].astype(np.float32))


@pytest.mark.parametrize("count", [0, 5, 64, 150])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_run_is_listed(count: int, dtype: type) -> None:
    rng = np.random.default_rng(count)
    x: AnyArray = rng.integers(0, 3, count).astype(dtype)
    places, values = np.zeros(count + ROOM, np.int32), np.zeros(count, np.float32)
    n = list_nonzero(x, places, values)
    assert np.array_equal(places[:n], np.flatnonzero(x))
    assert np.array_equal(values[:n], x[x != 0].astype(np.float32))


@pytest.mark.parametrize(("columns", "size", "channels"), [(6, 2, 12), (7, 2, 3), (9, 3, 16), (5, 2, 20)])
def test_a_row_of_errors_goes_back_through_a_pooling(columns: int, size: int, channels: int) -> None:
    inside = columns // size
    source = np.random.default_rng(3).normal(size=(inside, channels)).astype(np.float32)
    scaled = np.zeros(inside * channels + LANES, np.float32)
    unpooled = np.full(columns * channels + LANES, 7, np.float32)
    _unpool(source.reshape(-1), size, channels, scaled, unpooled)
    expected = np.zeros((columns, channels), np.float32)
    expected[: inside * size] = np.repeat(source * np.float32(1 / size**2), size, axis=0)
    assert np.array_equal(unpooled[: columns * channels], expected.reshape(-1))
    _unpool(source.reshape(-1)[:0], size, channels, scaled, unpooled)
    assert not unpooled[: columns * channels].any()
