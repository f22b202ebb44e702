"""A population whose inputs are zeros and ones. The spikes select weights, which are added as integers.

A weight on its grid is an integer of at most 12 bits. The sum of sixteen weights fits in 16 bits. So a vector holds
twice as many sums as with float32, and the weights take half the memory. No sum is rounded, so the bits are the same as
those of any other product.

The average over a window is a sum of spikes, so each spike of the window is listed separately. A full connection is
treated as a convolution whose window is the whole frame. The samples are divided among the threads. If there are few
samples, bands of rows are divided among the threads as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import prange
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.typing import Float32, Int16, Int32, Shape, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import own_memory
from stsbp_cpu.engine.threads import get_num_threads
from stsbp_cpu.equations.vectors import (
    NONE,
    ROOM,
    SHORT_LANES,
    aligned_empty,
    join_lists,
    list_set,
    sum_selected,
    view,
    view_of_rows,
)
from stsbp_cpu.models.neurons import NOTHING, fire, fire_run
from stsbp_cpu.ops.sparse.kernels import bands_of
from stsbp_cpu.ops.sparse.linear import turn

__all__ = ["BITS", "IntegerWeights", "forward", "integer_weights", "spare_bits"]

BITS = 12
"""Maximum number of bits of a weight."""
_SAMPLES_PER_THREAD = 4
"""Number of samples per thread from which on samples are not divided into bands for the threads."""
_ZERO = np.float32(0)


class IntegerWeights(NamedTuple):
    """Weights as `forward` reads them.

    Attributes:
        w: integers `[rows, columns, C, C' padded to whole vectors]`, followed by a row of zeros, as a 1-d array.
        unit: value of the integer 1.
        kernels: number of rows and of columns of the window.
    """

    w: Int16
    unit: float
    kernels: Shape


def integer_weights(wq: Float32, kernels: Shape) -> IntegerWeights:
    """Convert weights on their grid, `[C', C, rows, columns]` or `[C', C rows columns]`, for `forward`."""
    rows = np.ascontiguousarray(wq).reshape(len(wq), -1)
    exponent = BITS - 1 - math.frexp(max(float(rows.max()), -float(rows.min())))[1]
    w = own_memory((rows.shape[1] + 1, -(-len(rows) // SHORT_LANES) * SHORT_LANES), np.int16)
    w[:, len(rows) :] = 0
    w[-1] = 0
    turn(rows, w, math.prod(kernels), False, np.float32(2.0**exponent))
    # Only in units of their own grid, which may be coarser than 12 bits, do sums have at most 24 bits.
    spare = spare_bits(w)
    if spare:
        w >>= spare
    return IntegerWeights(w.reshape(-1), 2.0 ** (spare - exponent), kernels)


def spare_bits(w: Int16) -> int:
    """Number of bits that are zero at the end of every integer of `w`; 0 if all integers are zero."""
    common = int(np.bitwise_or.reduce(w, axis=None))
    return max(0, (common & -common).bit_length() - 1)


def forward(
    conv_input: tuple[UInt8, int, UInt8, int], weights: IntegerWeights, paddings: Shape, equations: NeuronEquations,
    u: Float32, spikes: UInt8, kept: Float32, learned: Float32 = NOTHING,
) -> None:  # fmt: skip
    """Compute a population and the pooling, dropout and convolution before it.

    Args:
        conv_input: `kernels.KernelInput` with an input of zeros and ones.
        weights: weights of a convolution of stride 1.
        paddings: number of rows and of columns of zeros on each side.
        equations, u, spikes, kept, learned: see `kernels.forward`.
    """
    equation, threads, batch = equations.forward, get_num_threads(), conv_input[0].shape[1]
    bands = 1 if batch >= _SAMPLES_PER_THREAD * threads else min(threads // math.gcd(threads, batch), spikes.shape[2])
    bands = max(bands, bands_of(spikes.shape, len(equation.states)))
    unit = np.float32(weights.unit / conv_input[1] ** 2)
    _forward(
        fire(equation), *conv_input, weights.w, unit, *weights.kernels, *paddings, u, spikes, kept,
        equations.forward_numbers, len(equation.states), learned, bands, min(threads, batch * bands),
    )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, s: UInt8, size: int, mask: UInt8, masked: int, w: Int16, unit: np.float32, kernel_rows: int,
    kernel_columns: int, top_padding: int, left_padding: int, u: Float32, spikes: UInt8, kept: Float32, p: Float32,
    states: int, learned: Float32, bands: int, threads: int,
) -> None:  # fmt: skip
    """Fill `spikes` and, unless it is empty, `u`, `[T, B, H', W', C']`, and `kept`, `[K, T, B H' W' C']`, from `s`.

    Args:
        step: the address that `fire` returns.
        s, size, mask, masked: see `kernels.KernelInput`.
        w, unit, kernel_rows, kernel_columns: see `IntegerWeights`. `unit` is the value of the integer 1 in a sum.
        top_padding, left_padding: number of rows and of columns of zeros on each side.
        u, spikes, kept: the arrays that are filled.
        p, states, learned: parameters and number of states of the equation, and learned parameters, `[P, M]`.
        bands: number of bands into which the rows of a sample are divided.
        threads: number of threads among which the bands are divided.
    """
    steps, batch, height, width, channels = s.shape
    rows, columns = height // size, width // size
    _, _, rows_out, columns_out, channels_out = spikes.shape
    row_size = columns_out * channels_out
    neurons = batch * rows_out * row_size
    padded_channels = (channels_out + SHORT_LANES - 1) // SHORT_LANES * SHORT_LANES
    band_rows = (rows_out + bands - 1) // bands
    entering_rows = min(rows, band_rows + kernel_rows - 1)
    all_u, all_spikes = u.reshape(-1), spikes.reshape(-1)
    for thread in prange(threads):
        z = aligned_empty(row_size + padded_channels)
        state = np.empty((band_rows, states, row_size), np.float32)
        u_buffer, kept_buffer = np.empty(row_size, np.float32), np.empty((len(kept), 1, row_size), np.float32)
        positions = np.empty(entering_rows * size * size * columns * channels + ROOM, np.int32)
        window_positions = np.empty(
            min(kernel_rows, rows) * size * size * min(kernel_columns, columns) * channels + ROOM, np.int32
        )
        starts = np.empty(entering_rows * columns + 1, np.int32)
        for task in range(thread * batch * bands // threads, (thread + 1) * batch * bands // threads):
            b, band = task // bands, task % bands
            low, high = band * rows_out // bands, (band + 1) * rows_out // bands
            first_in, last_in = max(0, low - top_padding), min(rows, high - top_padding + kernel_rows - 1)
            sample_mask = mask[b % len(mask)]
            state[:] = _ZERO
            for t in range(steps):
                _list(s[t, b], size, sample_mask, masked, first_in, last_in, padded_channels, positions, starts)
                for y in range(low, high):
                    top, bottom = max(0, top_padding - y), min(kernel_rows, rows + top_padding - y)
                    for x in range(columns_out):
                        left_column, right = max(0, x - left_padding), min(columns, x - left_padding + kernel_columns)
                        count = join_lists(
                            window_positions, positions, starts,
                            (y - top_padding + top - first_in) * columns + left_column, np.intp(right - left_column),
                            columns, (top * kernel_columns + left_padding - x) * channels * padded_channels,
                            kernel_columns * channels * padded_channels, np.intp(bottom - top),
                            len(w) - padded_channels,
                        )  # fmt: skip
                        sum_selected(
                            z, x * channels_out, w, window_positions, count, unit, padded_channels // SHORT_LANES
                        )
                    fire_run(
                        step, p, view(z, NONE, row_size),
                        view_of_rows(state, (y - low) * states * row_size, states, row_size), all_u, all_spikes, kept,
                        u_buffer, kept_buffer, learned, neurons, t, (b * rows_out + y) * row_size,
                    )  # fmt: skip


@cached_njit()
def _list(
    frame: UInt8,
    size: int,
    mask: UInt8,
    masked: int,
    low: int,
    high: int,
    padded_channels: int,
    positions: Int32,
    starts: Int32,
) -> None:
    """List the spikes of the rows from `low` to `high` of a frame after pooling, pixel by pixel, in `positions`.

    An entry is `padded_channels` times the position in the row, `x C + c`. `starts` is filled with the index of the
    first entry of each pixel and, last, with the length of the list.
    """
    _, width, channels = frame.shape
    columns, run = width // size, size * channels
    pixels, flat_mask = frame.reshape(-1), mask.reshape(-1)
    n = NONE
    for y in range(low, high):
        for x in range(columns):
            starts[(y - low) * columns + x] = n
            # The pixels of a row of the window are adjacent in memory.
            for i in range(size):
                pixel_start = (y * size + i) * width * channels + x * run
                for j in range(size):
                    mask_start = pixel_start + j * channels if masked == 1 else (y * columns + x) * channels
                    n = list_set(
                        pixels, np.intp(pixel_start + j * channels), channels, flat_mask, np.intp(mask_start),
                        np.intp(masked), np.intp(x * channels * padded_channels), np.intp(padded_channels), positions,
                        n,
                    )  # fmt: skip
    starts[(high - low) * columns] = n
