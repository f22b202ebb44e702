"""Lists of the spikes of a frame after pooling and dropout, and the density of spikes."""

from __future__ import annotations

import numpy as np
from numba import prange
from stsbp_spec.typing import AnyArray, Float32, Int32, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.equations.vectors import LANES, NONE, ONE, ROOM, add_scaled, convert_bytes, list_set, view

__all__ = ["NO_MASK", "density", "list_by_channel", "list_nonzero", "list_spikes", "row_positions"]

NO_MASK = np.ones((1, 1, 1), np.uint8)
"""Placeholder for the dropout mask if there is no dropout."""

_ZERO, _UNIT = np.float32(0), np.float32(1)
_ONE = np.uint64(1)
_ALL = np.ones(1, np.uint8)
"""Placeholder for the mask of a list without a mask."""


@cached_njit()
def list_nonzero(x: AnyArray, positions: Int32, values: Float32) -> int:
    """List the non-zero elements of a run `[n]` of spikes or error signals; returns their number.

    `positions` has room for `n + ROOM` elements, and `values` for `n` elements.
    """
    count: int = list_set(x, NONE, len(x), _ALL, NONE, NONE, NONE, ONE, positions, NONE)
    for i in range(count):
        values[i] = x[positions[i]]
    return count


@cached_njit()
def row_positions(width: int, channels: int, size: int) -> tuple[UInt8, AnyArray, AnyArray, Float32, Int32]:
    """Positions of the elements of a row `[width, channels]` after a pooling of `size`, and memory for a row.

    Returns:
        Whether each element is in the first column of a window, where `_entering_row` writes the sums; the column of
        each element after the pooling; the channel of each element; memory for a row; memory for a list of the row's
        elements.
    """
    run = width * channels
    valid = np.zeros(run, np.uint8)
    # Unsigned: numba would check signed indices for negative values, which takes time.
    columns, channel = np.zeros(run, np.uint32), np.zeros(run, np.uint32)
    for x in range(width // size):
        for c in range(channels):
            j = x * size * channels + c
            valid[j], columns[j], channel[j] = 1, x, c
    row = np.zeros((run + LANES - 1) // LANES * LANES + channels, np.float32)
    return valid, columns, channel, row, np.empty(run + ROOM, np.int32)


@cached_njit()
def list_spikes(
    frame: UInt8, size: int, mask: UInt8, masked: int, tables: tuple[UInt8, AnyArray, AnyArray, Float32, Int32],
    low: int, high: int, positions: Int32, values: Float32, starts: Int32,
) -> int:  # fmt: skip
    """List the non-zero inputs of some rows of a frame in the order of memory; returns their number.

    Args:
        frame: spikes or event counts, `[H, W, C]`.
        size: size of the pooling window; 1: no pooling.
        mask: dropout mask, `[H, W, C]` if `masked` is 1, `[H // size, W // size, C]` if `masked` is 2, else ignored.
        masked: where dropout is applied. 0: nowhere; 1: before the pooling; 2: after the pooling.
        tables: the result of `row_positions`.
        low, high: the rows after the pooling, from `low` to `high`.
        positions: filled with `x C + c` of each input.
        values: filled with the pooled values.
        starts: filled with the index of the first entry of each pixel, row by row, and then with the length of the
            list: `[(high - low) (W // size) + 1]`.
    """
    _, width, channels = frame.shape
    columns = width // size
    valid, columns_of, channels_of, row, elements = tables
    scale, flat_frame, flat_mask = np.float32(1 / (size * size)), frame.reshape(-1), mask.reshape(-1)
    n = np.uint64(0)
    starts[0] = 0
    for y in range(low, high):
        _entering_row(flat_frame, y, width * channels, channels, size, flat_mask, masked, row)
        pixel_ends = view(starts, (y - low) * columns + 1, columns)
        pixel_ends[:] = n
        for k in range(list_set(row, NONE, len(valid), valid, NONE, size - 1, NONE, ONE, elements, NONE)):
            j = np.uint32(elements[k])
            x = columns_of[j]
            positions[n] = x * channels + channels_of[j]
            values[n] = row[j] * scale
            n += _ONE
            pixel_ends[x] = n
        for x in range(1, columns):
            pixel_ends[x] = max(pixel_ends[x], pixel_ends[x - 1])
    return int(np.intp(n))


@cached_njit()
def list_by_channel(
    frame: UInt8, size: int, mask: UInt8, masked: int, tables: tuple[UInt8, AnyArray, AnyArray, Float32, Int32],
    row_width: int, low: int, high: int, cells: Int32, values: Float32, channel_ends: Int32,
) -> None:  # fmt: skip
    """List the non-zero inputs of some rows of a frame channel by channel, each in the order of memory.

    Args:
        frame, size, mask, masked, tables: see `list_spikes`.
        row_width: width of the padded rows, on which the positions in `cells` are based.
        low, high: the rows after the pooling, from `low` to `high`.
        cells: filled with `y row_width + x` of each spike, 1-d: `C` lists, each with room for at least
            `(high - low) (W // size)` entries.
        values: filled with the pooled values, at the same positions.
        channel_ends: filled with the end of each channel's list after each of these rows, `[H // size, C]`.
    """
    channels = channel_ends.shape[1]
    valid, columns_of, channels_of, row, elements = tables
    scale, flat_frame, flat_mask = np.float32(1 / (size * size)), frame.reshape(-1), mask.reshape(-1)
    room = len(cells) // channels
    for y in range(low, high):
        _entering_row(flat_frame, y, frame.shape[1] * channels, channels, size, flat_mask, masked, row)
        row_ends = channel_ends[y]
        for c in range(channels):
            row_ends[c] = channel_ends[y - 1, c] if y > low else c * room
        for k in range(list_set(row, NONE, len(valid), valid, NONE, size - 1, NONE, ONE, elements, NONE)):
            j = np.uint32(elements[k])
            c = channels_of[j]
            n = np.uint32(row_ends[c])
            cells[n] = y * row_width + columns_of[j]
            values[n] = row[j] * scale
            row_ends[c] = n + _ONE


@cached_njit()
def _entering_row(
    frame: UInt8, y: int, run: int, channels: int, size: int, mask: UInt8, masked: int, row: Float32
) -> None:
    """Fill `row` with a row of a frame after pooling and dropout. The sum of a window is in the window's first column.

    Args:
        frame: the frame, 1-d.
        y: index of the row after the pooling.
        run: `W C`.
        channels, size, masked: see `list_spikes`.
        mask: the dropout mask, 1-d.
        row: filled with the row.
    """
    for i in range(size):
        low = (y * size + i) * run
        pixels = view(frame, low, run)
        if masked == 1:
            mask_row = view(mask, low, run)
            for j in range(run):
                row[j] = np.float32(pixels[j] * mask_row[j]) + (row[j] if i > 0 else _ZERO)
        else:
            convert_bytes(row, pixels, run // LANES, i > 0)
            for j in range(run // LANES * LANES, run):
                row[j] = np.float32(pixels[j]) + (row[j] if i > 0 else _ZERO)
    columns = run // (channels * size)
    if size == 2:
        # The added values are farther on in the row and unchanged so far. Results beyond the row are not valid.
        add_scaled(row, NONE, row, channels, _UNIT, (run + LANES - 1) // LANES)
    elif size > 2:
        # One window after the other, so that the added values are unchanged so far.
        for x in range(columns):
            for i in range(1, size):
                for c in range(channels):
                    row[x * size * channels + c] += row[(x * size + i) * channels + c]
    if masked == 2:
        mask_row = view(mask, y * columns * channels, columns * channels)
        for x in range(columns):
            for c in range(channels):
                row[x * size * channels + c] *= np.float32(mask_row[x * channels + c])


@cached_njit()
def _count_nonzero(frame: UInt8, size: int) -> int:
    """Number of non-zero inputs of `[H, W, C]` after a pooling of `size`."""
    count = 0
    if size == 1:
        flat = frame.reshape(-1)
        for j in range(len(flat)):
            count += flat[j] != 0
        return count
    height, width, channels = frame.shape
    for y in range(height // size):
        for x in range(width // size):
            for c in range(channels):
                spiked = 0
                for i in range(size):
                    for j in range(size):
                        spiked |= frame[y * size + i, x * size + j, c]
                count += spiked != 0
    return count


@cached_njit(parallel=True)
def density(s: UInt8, size: int, stride: int) -> float:
    """Share of non-zero inputs after a pooling of `size`, in every `stride`-th frame of `[T B, H, W, C]`."""
    frames, height, width, channels = s.shape
    frames_sampled = (frames + stride - 1) // stride
    nonzero = 0
    for f in prange(frames_sampled):
        nonzero += _count_nonzero(s[f * stride], size)
    return float(nonzero / (frames_sampled * (height // size) * (width // size) * channels))
