"""The error signal of spikes, computed only where the layer below uses it.

The layer below uses the error signal where the surrogate derivative of its neurons is non-zero. If the surrogate
derivative has compact support (rectangle, triangle), the error signal of most neurons and steps is not used. Before a
convolution, each element that is used is a sum over its window of `dz`. The other elements are set to zero and never
computed (Perez-Nieves and Goodman 2021, "Sparse spiking gradient descent").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Recurrence, ordered
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.surrogates import equation
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.networks.ops.psp import IDENTITY
from stsbp_spec.typing import Float32, Int32

from stsbp_cpu.engine.compiling import cached_njit
from stsbp_cpu.equations.printers import condition
from stsbp_cpu.equations.vectors import LANES, dot
from stsbp_cpu.ops.sparse.kernels import mirrored

__all__ = ["Kernels", "Support", "error", "kernels", "share", "support"]

_ZERO = np.float32(0)


class Support(NamedTuple):
    """Where a neuron uses the error signal of its spikes: where `h(u - threshold)`, of parameters `p`, is not zero."""

    surrogate: Recurrence
    threshold: np.float32
    p: Float32


@cache
def support(neuron: NeuronModel) -> Support | None:
    """The support of a neuron's surrogate derivative.

    None: the neuron may use the error signal anywhere, or its threshold is not constant.
    """
    surrogate = neuron.surrogate
    equations = neuron_equations(IDENTITY, neuron)
    u, threshold = equations.forward.outputs["o"].args
    constant = threshold.op == "variable" and threshold.name in equations.forward.parameters
    if not (surrogate.compact and constant and u is equations.forward.outputs["u"]) or _bypasses_h(equations.backward):
        return None
    p = np.array(list(surrogate.constants().values()), np.float32)
    return Support(equation(surrogate), equations.constants[str(threshold.name)], p)


def _bypasses_h(backward: Recurrence) -> bool:
    """Whether the error signal `g` of the spike reaches an output or state without a multiplication by `h`."""
    reached: set[int] = set()
    for x in ordered(backward.roots):
        through_h = x.op == "mul" and any(a.name == "h" for a in x.args)
        if x.name == "g" or (not through_h and any(id(a) in reached for a in x.args)):
            reached.add(id(x))
    return any(id(x) in reached for x in backward.roots)


def share(support: Support, u: Float32, size: int, stride: int) -> float:
    """Share of the error signals after a pooling of size `size` that neurons use.

    Args:
        support: support of the neurons.
        u: potentials of the neurons, `[n, H, W, C]`.
        size: size of the pooling windows; 1: no pooling.
        stride: only every `stride`-th frame is read; 1: all frames.
    """
    return float(kernels(support.surrogate).share(u, size, stride, support.threshold, support.p))


def error(support: Support, conv: Conv2d, wq: Float32, u: Float32, size: int, dz: Float32, ds: Float32) -> None:
    """The error signal of the inputs of a convolution where the neurons below use it, zero elsewhere.

    Args:
        support, u, size: see `share`.
        conv: convolution of stride 1 whose number of output channels is a multiple of `LANES`.
        wq: weights of the convolution, `[C', C, kernel, kernel]`.
        dz: error signal of the outputs, `[n, H', W', C']`.
        ds: filled with the error signal of the inputs, `[n, H // size, W // size, C]`.
    """
    kernels(support.surrogate).error(
        u, size, dz, mirrored(wq).reshape(-1), conv.kernels[0], conv.paddings[0], ds, support.threshold, support.p,
        get_num_threads(),
    )  # fmt: skip


class Kernels(NamedTuple):
    """The kernels that `share` and `error` call."""

    share: Callable[..., float]
    error: Callable[..., None]


@cache
def kernels(surrogate: Recurrence) -> Kernels:
    """The kernels for layers with this surrogate derivative."""
    used = condition(surrogate)

    @cached_njit(error_model="numpy")
    def list_used(
        u: Float32,
        y: int,
        size: int,
        vth: np.float32,
        p: Float32,
        row: Float32,
        used_channels: Int32,
        pixel_ends: Int32,
    ) -> int:
        """List the used elements of row `y` after the pooling; returns their number.

        Args:
            u: membrane potentials of a frame, `[H, W, C]`.
            y: index of the row of windows.
            size: size of the windows.
            vth: threshold.
            p: parameters of the surrogate derivative.
            row: scratch memory, `[W C]`.
            used_channels: filled with the channels, pixel by pixel.
            pixel_ends: filled with the end of each pixel's channels, `[W // size]`.
        """
        channels = u.shape[2]
        columns = len(pixel_ends)
        n = 0
        for i in range(size):
            potentials = u[y * size + i].reshape(-1)
            for j in range(columns * size * channels):
                distance = abs(potentials[j] - vth)
                row[j] = distance if i == 0 else min(row[j], distance)
        for x in range(columns):
            first = x * size * channels
            for j in range(1, size):
                for channel in range(channels):
                    row[first + channel] = min(row[first + channel], row[first + j * channels + channel])
            for channel in range(channels):
                channel_distance = row[first + channel]
                used_channels[n] = channel
                n += used(p, channel_distance)
            pixel_ends[x] = n
        return n

    @cached_njit(parallel=True, error_model="numpy")
    def needed_share(u: Float32, size: int, stride: int, vth: np.float32, p: Float32) -> float:
        """Share of the used elements after a pooling of `size`, in every `stride`-th frame `[H, W, C]`."""
        frames, height, width, channels = u.shape
        rows, columns = height // size, width // size
        frames_sampled = (frames + stride - 1) // stride
        used = 0
        for f in prange(frames_sampled):
            row = np.empty(width * channels, np.float32)
            used_channels, pixel_ends = np.empty(columns * channels + 1, np.int32), np.empty(columns, np.int32)
            n = 0
            for y in range(rows):
                n += list_used(u[f * stride], y, size, vth, p, row, used_channels, pixel_ends)
            used += n
        return float(used / (frames_sampled * rows * columns * channels))

    @cached_njit(parallel=True, error_model="numpy")
    def needed_error(
        u: Float32, size: int, dz: Float32, w: Float32, kernel: int, padding: int, ds: Float32,
        vth: np.float32, p: Float32, threads: int,
    ) -> None:  # fmt: skip
        """Fill `ds`: the error signal of the inputs of a convolution of stride 1 where it is used, zero elsewhere.

        Args:
            u: membrane potentials of the layer below, `[n, H, W, C]`.
            size: size of the pooling between the layers; 1: no pooling.
            dz: error signal of the convolution's outputs, `[n, H', W', C']`.
            w: weights, 1-d, `mirrored`.
            kernel, padding: size of the kernel, and padding of the convolution.
            ds: error signal of the convolution's inputs, `[n, H // size, W // size, C]`.
            vth, p: threshold and parameters of the surrogate derivative of the layer below.
            threads: number of threads among which the frames are divided.
        """
        frames, rows, columns, channels = ds.shape
        rows_out, columns_out, channels_out = dz.shape[1:]
        dz_row, weight_row = columns_out * channels_out, kernel * channels_out
        for thread in prange(threads):
            row = np.empty(u.shape[2] * channels, np.float32)
            used_channels, pixel_ends = np.empty(columns * channels + 1, np.int32), np.empty(columns, np.int32)
            for f in range(thread * frames // threads, (thread + 1) * frames // threads):
                frame_error = dz[f].reshape(-1)
                for y in range(rows):
                    # Output rows and columns whose windows contain the pixel, from `top` and `first_column` on.
                    top = y + padding - kernel + 1
                    first, last = max(0, top), min(rows_out - 1, y + padding)
                    ds[f, y] = _ZERO
                    list_used(u[f], y, size, vth, p, row, used_channels, pixel_ends)
                    listed = 0
                    for x in range(columns):
                        first_column = x + padding - kernel + 1
                        begin, end = max(0, first_column), min(columns_out - 1, x + padding)
                        vectors = max(0, end - begin + 1) * channels_out // LANES
                        for n in range(listed, pixel_ends[x]):
                            channel = used_channels[n]
                            ds[f, y, x, channel] = dot(
                                frame_error, first * dz_row + begin * channels_out, dz_row, w,
                                (channel * kernel + y + padding - first) * weight_row
                                + (begin - first_column) * channels_out,
                                -weight_row, last - first + 1, vectors,
                            )  # fmt: skip
                        listed = pixel_ends[x]

    return Kernels(needed_share, needed_error)
