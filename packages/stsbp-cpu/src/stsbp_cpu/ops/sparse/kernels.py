"""The forward and the backward pass of a block, sample by sample: spikes, convolution, filter and neurons.

Convolutions have stride 1. The forward sums are taken in one of two orders. The bits do not depend on the order:

- gather, for 32 output channels or more: the channels of an output pixel stay in registers, while the spikes of the
  pixel's window add their rows of the weights. The weights are stored as `[row, column, c, c']`.
- scatter, for fewer output channels: a spike adds its weights to all output pixels of a row whose windows contain the
  spike. This is one run of `kernel C'` values, because the weights are stored as `[c, row, mirrored column, c']` and
  the rows of `z` are padded.

For each input channel and kernel row, the weight gradient is the sum of runs of `dz`, one for each spike: the output
pixels of a row whose windows contain the spike. This sum has `kernel C'` values, which stay in registers over all
spikes of a frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import Float32, Shape, UInt8

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.engine.layout import own_memory
from stsbp_cpu.equations.vectors import (
    LANES,
    NONE,
    add_scaled,
    aligned_empty,
    copy_vectors,
    sum_scaled,
    view,
    view_of_rows,
)
from stsbp_cpu.models.neurons import NOTHING, fire, fire_run, propagate, propagated
from stsbp_cpu.ops.sparse.spikes import list_by_channel, list_spikes, row_positions

__all__ = ["GATHER_CHANNELS", "KernelInput", "backward", "bands_of", "forward", "gathers", "mirrored"]

GATHER_CHANNELS = 32
"""Number of output channels from which on the forward pass gathers."""
_ZERO = np.float32(0)
_NEAR_CACHE = 64 * 2**10
"""Bytes of error signals that stay in a near cache while the spikes of all channels select among them."""
_IN_CACHE = 2**20
"""Bytes of states and sums that stay in a core's own cache. Larger frames are computed in bands of rows."""


class KernelInput(NamedTuple):
    """The input of a convolution before pooling and dropout. The kernels apply these when they read the input.

    Attributes:
        s: spikes or event counts, uint8 `[T, B, H, W, C]`.
        size: size of the pooling window; 1: no pooling.
        mask: dropout mask, uint8 `[B, ...]`: see `list_spikes`.
        masked: where dropout is applied. 0: nowhere; 1: before the pooling; 2: after the pooling.
    """

    s: UInt8
    size: int
    mask: UInt8
    masked: int


def forward(
    conv: Conv2d, equations: NeuronEquations, conv_input: KernelInput, wq: Float32, u: Float32, spikes: UInt8,
    kept: Float32, learned: Float32 = NOTHING,
) -> None:  # fmt: skip
    """Compute a block.

    Args:
        conv: convolution of stride 1.
        equations: equations of the neurons and of the filter before them.
        conv_input: input of the block.
        wq: weights on their grid, `[C', C, kernel, kernel]`.
        u: filled with the potentials, float32 `[T, B, H', W', C']`. If it is `[0, B, H', W', C']`, the potentials and
            the other kept values are not stored.
        spikes: filled with zeros and ones, uint8 `[T, B, H', W', C']`.
        kept: filled with the values besides `u` that the backward pass reads, float32 `[K, T, B H' W' C']`.
        learned: learned parameters of the neurons, in the order of `equations.learned`, float32 `[P, B H' W' C']`.
    """
    equation = equations.forward
    _forward(
        fire(equation), *conv_input, _kernel_weights(conv, wq), gathers(conv), conv.kernels[0], conv.paddings[0], u,
        spikes, kept, equations.forward_numbers, len(equation.states), learned,
        bands_of(spikes.shape, len(equation.states) + 1), min(get_num_threads(), conv_input.s.shape[1]),
    )  # fmt: skip


def backward(
    conv: Conv2d, equations: NeuronEquations, conv_input: KernelInput, u: Float32, kept: Float32, ds: Float32,
    pooled: int, dz: Float32, learned: Float32 = NOTHING, terms: Float32 = NOTHING, *, need_weights: bool,
) -> Float32 | None:  # fmt: skip
    """The gradient of a block's weights, `[C', C, kernel, kernel]`, or None if it is not needed.

    Args:
        conv, equations, conv_input: see `forward`.
        u, kept: the arrays that `forward` filled.
        ds: error signal of the spikes after a pooling of size `pooled`, `[T, B, H' // pooled, W' // pooled, C']`. The
            adjoint of this pooling has not been applied yet.
        dz: filled with the error signal of the convolution's output, `[T, B, H', W', C']`, unless `dz` is empty.
        learned: see `forward`.
        terms: filled with each neuron's contribution to the gradients of the learned parameters, float32
            `[P, B H' W' C']`.
        need_weights: whether the gradient is needed.
    """
    equation, channels, run = equations.summing, conv_input.s.shape[4], _run_length(conv)
    threads = min(get_num_threads(), conv_input.s.shape[1])
    (kernel, _), (padding, _) = conv.kernels, conv.paddings
    sums = np.empty((threads if need_weights else 0, channels * kernel * run), np.float32)
    _backward(
        propagate(equation, len(equations.terms)), *conv_input, kernel, padding, u, kept, ds, pooled, dz, sums,
        equations.backward_numbers, len(equation.states), learned, terms,
        bands_of(u.shape, len(equation.states) + 1), threads,
    )  # fmt: skip
    if not need_weights:
        return None
    total = sums.sum(0).reshape(channels, kernel, run)[:, :, : kernel * conv.channels]
    rows = total.reshape(channels, kernel, kernel, conv.channels)
    # A copy, because torch refuses the negative stride that a view has, also of an axis of length 1.
    return np.array(rows[:, :, ::-1].transpose(3, 0, 1, 2), order="C")


def bands_of(shape: Shape, numbers: int) -> int:
    """Number of bands into which the rows of a frame are divided.

    A band is so small that `numbers` values of each of its neurons stay in the cache during all steps. `shape` is the
    shape of the spikes, `[T, B, H', W', C']`.
    """
    rows, row_size = shape[2], math.prod(shape[3:])
    return -(-rows // max(1, _IN_CACHE // (4 * numbers * row_size)))


def gathers(conv: Conv2d) -> bool:
    """Whether the forward pass gathers."""
    return conv.channels >= GATHER_CHANNELS and conv.channels % LANES == 0


def mirrored(wq: Float32) -> Float32:
    """Weights `[C', C, kernel, kernel]` as `[C, row, mirrored column, C']`, without a copy."""
    return wq[:, :, :, ::-1].transpose(1, 2, 3, 0)


def _run_length(conv: Conv2d) -> int:
    return -(-conv.kernels[1] * conv.channels // LANES) * LANES


def _kernel_weights(conv: Conv2d, wq: Float32) -> Float32:
    """The weights as a 1-d array, in the order in which the forward kernel reads them."""
    if gathers(conv):
        ordered = wq.transpose(2, 3, 1, 0)
        kernel_weights = own_memory(ordered.shape, np.float32)
        kernel_weights[...] = ordered
        return kernel_weights.reshape(-1)
    rows, columns = conv.kernels
    kernel_weights = own_memory((wq.shape[1], rows, _run_length(conv)), np.float32)
    kernel_weights[:, :, columns * conv.channels :] = 0
    kernel_weights[:, :, : columns * conv.channels] = mirrored(wq).reshape(wq.shape[1], rows, -1)
    return kernel_weights.reshape(-1)


@cached_njit(parallel=True, error_model="numpy")
def _forward(
    step: int, s: UInt8, size: int, mask: UInt8, masked: int, w: Float32, gathered: bool, kernel: int, padding: int,
    u: Float32, spikes: UInt8, kept: Float32, p: Float32, states: int, learned: Float32, bands: int, threads: int,
) -> None:  # fmt: skip
    """Fill `u` and `spikes`, `[T, B, H', W', C']`, and `kept`, `[K, T, B H' W' C']`, from `s`.

    Args:
        step: the address that `fire` returns.
        s, size, mask, masked: see `KernelInput`.
        w: weights, 1-d: `[kernel, kernel, C, C']` if `gathered`, else `[C, kernel, run]`. A run is `kernel C'` values,
            padded with zeros to whole vectors.
        gathered: whether to gather.
        kernel, padding: size of the kernel, and padding of the convolution.
        p, states, learned: parameters and number of states of the equation, and learned parameters, `[P, M]`.
        bands: number of bands into which the rows of a sample are divided. All steps of a band are computed before the
            next band.
        threads: number of threads among which the samples are divided.
    """
    steps, batch, height, width, channels = s.shape
    rows, columns = height // size, width // size
    rows_out, columns_out, channels_out = u.shape[2:]
    row_size = columns_out * channels_out
    neurons = batch * rows_out * row_size
    # Rows of `z`: padded for the scattered runs, which begin up to kernel - 1 - padding pixels before the first.
    padded_columns = columns_out if gathered else columns + kernel - 1
    margin = 0 if gathered else (kernel - 1 - padding) * channels_out
    run = (kernel * channels_out + LANES - 1) // LANES * LANES
    # A view of each row by `reshape` would take longer than its neurons.
    all_u, all_spikes = u.reshape(-1), spikes.reshape(-1)
    band_rows = (rows_out + bands - 1) // bands
    entering_rows = min(rows, band_rows + kernel - 1)
    for thread in prange(threads):
        z = aligned_empty(band_rows * padded_columns * channels_out + LANES)
        state = np.empty((band_rows, states, row_size), np.float32)
        u_buffer, kept_buffer = np.empty(row_size, np.float32), np.empty((len(kept), 1, row_size), np.float32)
        tables = row_positions(width, channels, size)
        positions = np.empty(entering_rows * columns * channels, np.int32)
        values = np.empty(entering_rows * columns * channels, np.float32)
        starts = np.empty(entering_rows * columns + 1, np.int32)
        for task in range(thread * batch // threads * bands, (thread + 1) * batch // threads * bands):
            b, band = task // bands, task % bands
            low, high = band * rows_out // bands, (band + 1) * rows_out // bands
            first_in, last_in = max(0, low - padding), min(rows, high - padding + kernel - 1)
            sample_mask = mask[b % len(mask)]
            state[:] = _ZERO
            for t in range(steps):
                list_spikes(s[t, b], size, sample_mask, masked, tables, first_in, last_in, positions, values, starts)
                for j in range(len(z)):
                    z[j] = _ZERO
                if gathered:
                    for y in range(low, high):
                        for q in range(kernel):
                            row = y - padding + q
                            if row < 0 or row >= rows:
                                continue
                            for x in range(columns_out):
                                first = (row - first_in) * columns + max(0, x - padding)
                                last = (row - first_in) * columns + min(columns, x - padding + kernel)
                                shift = (q * kernel + padding - x) * channels * channels_out
                                z_index = ((y - low) * columns_out + x) * channels_out
                                sum_scaled(
                                    z, z_index, w, positions, channels_out, shift, values, np.intp(starts[first]),
                                    np.intp(starts[last]), channels_out // LANES,
                                )  # fmt: skip
                else:
                    for y in range(first_in, last_in):
                        top, bottom = max(low, y + padding - kernel + 1), min(high - 1, y + padding)
                        pixel = (y - first_in) * columns
                        for x in range(columns):
                            for n in range(starts[pixel + x], starts[pixel + x + 1]):
                                channel = positions[n] - x * channels
                                for row_out in range(top, bottom + 1):
                                    row = channel * kernel + y + padding - row_out
                                    z_index = ((row_out - low) * padded_columns + x) * channels_out
                                    add_scaled(z, z_index, w, row * run, values[n], run // LANES)
                for y in range(low, high):
                    z_index = (y - low) * padded_columns * channels_out + margin
                    fire_run(
                        step, p, view(z, z_index, row_size),
                        view_of_rows(state, (y - low) * states * row_size, states, row_size), all_u, all_spikes, kept,
                        u_buffer, kept_buffer, learned, neurons, t, (b * rows_out + y) * row_size,
                    )  # fmt: skip


@cached_njit(parallel=True, error_model="numpy")
def _backward(
    step: int, s: UInt8, size: int, mask: UInt8, masked: int, kernel: int, padding: int,
    u: Float32, kept: Float32, ds: Float32, pooled: int, dz: Float32, dw: Float32, p: Float32, states: int,
    learned: Float32, terms: Float32, bands: int, threads: int,
) -> None:  # fmt: skip
    """Fill `dz` and `dw`, unless they are empty.

    Args:
        step: the address that `propagate` returns.
        s, size, mask, masked: see `KernelInput`.
        kernel, padding: size of the kernel, and padding of the convolution.
        u, kept, ds, pooled, dz: see the public function.
        dw: gradient of the weights, `[threads, C kernel run]`: one sum for each thread, in the layout of scattered
            weights.
        p, states, learned: parameters and number of states of the equation, and learned parameters, `[P, M]`.
        bands: number of bands into which the rows of a sample are divided. All steps of a band are computed before the
            next band.
        threads: number of threads among which the samples are divided.
    """
    steps, batch, height, width, channels = s.shape
    rows, columns = height // size, width // size
    rows_out, columns_out, channels_out = u.shape[2:]
    row_size = columns_out * channels_out
    neurons = batch * rows_out * row_size
    padded_columns = columns + kernel - 1
    margin = (kernel - 1 - padding) * channels_out
    run = (kernel * channels_out + LANES - 1) // LANES * LANES
    near_rows = max(1, _NEAR_CACHE // (4 * padded_columns * channels_out))
    band_rows = (rows_out + bands - 1) // bands
    room = min(rows, band_rows + kernel - 1) * columns
    all_u, all_ds, all_dz = u.reshape(-1), ds.reshape(-1), dz.reshape(-1)
    pooled_rows, pooled_row_size = rows_out // pooled, columns_out // pooled * channels_out
    for thread in prange(threads):
        error = aligned_empty(band_rows * padded_columns * channels_out + LANES)
        error[:] = _ZERO
        state = np.empty((band_rows, states, row_size), np.float32)
        unpooled, scaled = np.zeros(row_size + LANES, np.float32), np.zeros(pooled_row_size + LANES, np.float32)
        tables = row_positions(width, channels, size)
        cells = np.empty(channels * room, np.int32)
        values = np.empty(channels * room, np.float32)
        channel_ends = np.empty((rows, channels), np.int32)
        gradient = dw[thread if len(dw) > 0 else 0 :].reshape(-1)[: channels * kernel * run]
        gradient[:] = _ZERO
        band_gradient = aligned_empty(len(gradient))
        for task in range(thread * batch // threads * bands, (thread + 1) * batch // threads * bands):
            b, band = task // bands, task % bands
            low, high = band * rows_out // bands, (band + 1) * rows_out // bands
            first_in, last_in = max(0, low - padding), min(rows, high - padding + kernel - 1)
            sample_mask = mask[b % len(mask)]
            state[:] = _ZERO
            band_gradient[:] = _ZERO
            for steps_done in range(steps):
                t = steps - 1 - steps_done
                for y in range(low, high):
                    first_neuron = (b * rows_out + y) * row_size
                    offset = t * neurons + first_neuron
                    dz_row = view(error, (y - low) * padded_columns * channels_out + margin, row_size)
                    if pooled == 1:
                        errors = view(all_ds, offset, row_size)
                    else:
                        errors = view(unpooled, NONE, row_size)
                        if y % pooled == 0 or y == low:
                            row = y // pooled
                            first = ((t * batch + b) * pooled_rows + row) * pooled_row_size
                            source = view(all_ds, first, pooled_row_size if row < pooled_rows else 0)
                            _unpool(source, pooled, channels_out, scaled, unpooled)
                    neuron_states = view_of_rows(state, (y - low) * states * row_size, states, row_size)
                    propagated(
                        step,
                        p,
                        view(all_u, offset, row_size),
                        errors,
                        neuron_states,
                        kept,
                        offset,
                        learned,
                        first_neuron,
                        dz_row,
                        row_size,
                    )
                    if len(all_dz) > 0:
                        all_dz[offset : offset + row_size] = dz_row
                if len(dw) == 0:
                    continue
                list_by_channel(
                    s[t, b],
                    size,
                    sample_mask,
                    masked,
                    tables,
                    padded_columns,
                    first_in,
                    last_in,
                    cells,
                    values,
                    channel_ends,
                )
                for q in range(kernel):
                    # Spikes whose output row y + padding - q is in the band. As many rows are taken at a time as stay
                    # in a near cache while all channels read the error signals.
                    bottom = min(rows, high - padding + q)
                    for top in range(max(0, low - padding + q), bottom, near_rows):
                        end = min(bottom, top + near_rows)
                        for channel in range(channels):
                            first = channel_ends[top - 1, channel] if top > first_in else channel * room
                            if first < channel_ends[end - 1, channel]:
                                sum_scaled(
                                    band_gradient, (channel * kernel + q) * run, error, cells, channels_out,
                                    (padding - q - low) * padded_columns * channels_out, values, np.intp(first),
                                    np.intp(channel_ends[end - 1, channel]), run // LANES,
                                )  # fmt: skip
            for y in range(low, high):
                first_neuron = (b * rows_out + y) * row_size
                for k in range(len(terms)):
                    terms[k, first_neuron : first_neuron + row_size] = state[y - low, states - len(terms) + k]
            # Each band is summed separately first. A single sum over all bands would lose the last bits of later bands.
            for j in range(len(gradient)):
                gradient[j] += band_gradient[j]


@cached_njit()
def _unpool(source: Float32, size: int, channels: int, scaled: Float32, unpooled: Float32) -> None:
    """Apply the adjoint of a pooling to one row of error signals `[W // size C]`, and write the result to `unpooled`.

    If the row is empty, `unpooled` is filled with zeros. `scaled` is scratch memory. `scaled` and `unpooled` are one
    vector longer than their rows.
    """
    scale, vectors = np.float32(1 / (size * size)), (channels + LANES - 1) // LANES
    for j in range(len(source)):
        scaled[j] = source[j] * scale
    for x in range(len(source) // channels):
        for j in range(size):
            # Whole vectors are copied. Values beyond these channels are overwritten with the next channels.
            copy_vectors(unpooled, (x * size + j) * channels, scaled, x * channels, vectors)
    unpooled[len(source) * size :] = _ZERO
