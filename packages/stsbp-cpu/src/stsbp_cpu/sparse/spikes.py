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
    frame: UInt8, size: int, mask: UInt8, masked: int, row: Float32, places: Int32, values: Float32, starts: Int32
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
    scale, stride = np.float32(1 / (size * size)), size * channels
    n = 0
    for y in range(rows):
        _entering_row(frame, y, size, mask, masked, row)
        for x in range(columns):
            starts[y * columns + x] = n
            for c in range(channels):
                value = row[x * stride + c]
                places[n] = x * channels + c
                values[n] = value * scale
                n += value > _ZERO
    starts[rows * columns] = n
    return n


@cached_njit()
def list_by_channel(
    frame: UInt8, size: int, mask: UInt8, masked: int, row: Float32, wide: int, cells: Int32, values: Float32,
    ends: Int32,
) -> None:  # fmt: skip
    """List the non-zero inputs of a frame channel by channel, each in the order of memory.

    Args:
        frame, size, mask, masked, row: see `list_spikes`.
        wide: width of the padded rows that `cells` count.
        cells: filled with `y wide + x` of each spike, `[C, H // size * (W // size) + 1]`.
        values: filled with their pooled values, likewise.
        ends: filled with the end of the list after each row, `[C, H // size]`, counted in the flat `cells`.
    """
    channels, rows = ends.shape
    columns, room = frame.shape[1] // size, cells.shape[1]
    scale, stride = np.float32(1 / (size * size)), size * channels
    flat, kept = cells.reshape(-1), values.reshape(-1)
    for y in range(rows):
        _entering_row(frame, y, size, mask, masked, row)
        for c in range(channels):
            n = ends[c, y - 1] if y > 0 else c * room
            for x in range(columns):
                value = row[x * stride + c]
                flat[n] = y * wide + x
                kept[n] = value * scale
                n += value > _ZERO
            ends[c, y] = n


@cached_njit()
def _entering_row(frame: UInt8, y: int, size: int, mask: UInt8, masked: int, row: Float32) -> None:
    """One row of a frame after pooling and dropout, `[W, C]`: the sum of a window stands at its first column."""
    width, channels = frame.shape[1:]
    run = width * channels
    for i in range(size):
        pixels = frame[y * size + i].reshape(-1)
        if masked == 1:
            kept = mask[y * size + i].reshape(-1)
            for j in range(run):
                row[j] = np.float32(pixels[j] * kept[j]) + (row[j] if i > 0 else _ZERO)
        elif i == 0:
            for j in range(run):
                row[j] = np.float32(pixels[j])
        else:
            for j in range(run):
                row[j] += np.float32(pixels[j])
    if size == 2:
        for j in range(run - channels):
            row[j] += row[j + channels]
    elif size > 2:
        # Not in place all at once: what is added has not been added to.
        for x in range(width // size):
            for i in range(1, size):
                for c in range(channels):
                    row[x * size * channels + c] += row[(x * size + i) * channels + c]
    if masked == 2:
        kept = mask[y].reshape(-1)
        for x in range(width // size):
            for c in range(channels):
                row[x * size * channels + c] *= np.float32(kept[x * channels + c])


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
