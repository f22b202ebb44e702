"""Lists of the spikes of a frame, after pooling and dropout, and how dense they are."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Int32, UInt8

from stsbp_cpu.compiling import cached_njit

__all__ = ["NO_MASK", "density", "list_by_channel", "list_present", "list_spikes"]

NO_MASK = np.ones((1, 1, 1), np.uint8)
"""Stands for a dropout mask where there is none."""

_ZERO = np.float32(0)


@cached_njit()
def list_present(x: AnyArray, places: Int32, values: Float32) -> int:
    """List what is not zero of a run `[n]`, spikes or errors, into arrays no shorter; returns how many."""
    count = 0
    for i in range(len(x)):
        places[count] = i
        values[count] = x[i]
        count += x[i] != 0
    return count


@cached_njit()
def list_spikes(
    frame: UInt8, size: int, mask: UInt8, masked: int, row: Int32, places: Int32, values: Float32, starts: Int32
) -> int:
    """List the non-zero inputs of a frame in the order of memory; returns their number.

    Args:
        frame: spikes or event counts, `[H, W, C]`.
        size: of the pooling window; 1: none.
        mask: of dropout: `[H, W, C]` where `masked` is 1, `[H // size, W // size, C]` where it is 2, else ignored.
        masked: 0: no dropout; 1: before the pooling; 2: after it.
        row: scratch, `[W C]`.
        places: filled with `x C + c`.
        values: filled with the pooled values.
        starts: filled with the first entry of each pixel, row by row, and the end: `[H // size * (W // size) + 1]`.
    """
    height, width, channels = frame.shape
    rows, columns = height // size, width // size
    scale = np.float32(1 / (size * size))
    n = 0
    for y in range(rows):
        if size == 1:
            pixels = frame[y].reshape(-1)
            for j in range(columns * channels):
                row[j] = pixels[j]
        else:
            _pool_row(frame, y, size, mask, masked, row)
        if masked == 2 or (masked == 1 and size == 1):
            kept = mask[y].reshape(-1)
            for j in range(columns * channels):
                row[j] *= kept[j]
        for x in range(columns):
            starts[y * columns + x] = n
            for j in range(x * channels, (x + 1) * channels):
                places[n] = j
                values[n] = np.float32(row[j]) * scale
                n += row[j] != 0
    starts[rows * columns] = n
    return n


@cached_njit()
def _pool_row(frame: UInt8, y: int, size: int, mask: UInt8, masked: int, row: Int32) -> None:
    """Sums of the windows of one row, `[W // size * C]`, of the inputs that dropout keeps; `row` holds `[W, C]`."""
    width, channels = frame.shape[1:]
    row[:] = 0
    for i in range(size):
        pixels = frame[y * size + i].reshape(-1)
        if masked == 1:
            kept = mask[y * size + i].reshape(-1)
            for j in range(width * channels):
                row[j] += np.int32(pixels[j]) * np.int32(kept[j])
        else:
            for j in range(width * channels):
                row[j] += pixels[j]
    for x in range(width // size):
        for c in range(channels):
            total = np.int32(0)
            for j in range(size):
                total += row[(x * size + j) * channels + c]
            row[x * channels + c] = total


@cached_njit()
def list_by_channel(
    columns: int,
    channels: int,
    wide: int,
    places: Int32,
    values: Float32,
    starts: Int32,
    cells: Int32,
    cell_values: Float32,
    ends: Int32,
) -> None:
    """Order a list by channel, then by place.

    Args:
        columns, channels: of the frame.
        wide: width of the padded rows that `cells` count.
        places, values, starts: what `list_spikes` filled.
        cells: filled with `y wide + x` of each spike.
        cell_values: filled with their values.
        ends: filled with the end of the list of each channel and row, `[C, H]`.
    """
    rows = ends.shape[1]
    for c in range(channels):
        for y in range(rows):
            ends[c, y] = 0
    for y in range(rows):
        for n in range(starts[y * columns], starts[(y + 1) * columns]):
            ends[places[n] % channels, y] += 1
    begin = 0
    for c in range(channels):
        for y in range(rows):
            count = ends[c, y]
            ends[c, y] = begin
            begin += count
    for y in range(rows):
        for n in range(starts[y * columns], starts[(y + 1) * columns]):
            x = places[n] // channels
            c = places[n] - x * channels
            to = ends[c, y]
            ends[c, y] = to + 1
            cells[to] = y * wide + x
            cell_values[to] = values[n]


@cached_njit()
def _present(frame: UInt8, size: int) -> int:
    """How many inputs of `[H, W, C]` are not zero after a pooling of `size`."""
    found = 0
    if size == 1:
        flat = frame.reshape(-1)
        for j in range(len(flat)):
            found += flat[j] != 0
        return found
    height, width, channels = frame.shape
    for y in range(height // size):
        for x in range(width // size):
            for c in range(channels):
                spiked = 0
                for i in range(size):
                    for j in range(size):
                        spiked |= frame[y * size + i, x * size + j, c]
                found += spiked != 0
    return found


@cached_njit(parallel=True)
def density(s: UInt8, size: int, every: int) -> float:
    """Share of non-zero inputs after a pooling of `size`, from every `every`-th frame of `[T B, H, W, C]`."""
    frames, height, width, channels = s.shape
    looked = (frames + every - 1) // every
    found = 0
    for f in prange(looked):
        found += _present(s[f * every], size)
    return float(found / (looked * (height // size) * (width // size) * channels))
