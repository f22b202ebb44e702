"""The grid.py of the spec with kernels/weight_grid.cu and kernels/error_grid.cu. Exponents are computed on the
device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from stsbp_spec.errors import ExactnessError
from stsbp_spec.graph import Projection
from stsbp_spec.grid import (
    EXACT_LIMIT_BITS,
    FINEST_ERROR_EXPONENT,
    FLOOR,
    MIN_WEIGHT_BITS,
    WeightGrid,
    check_largest,
    headroom_bits,
    magnitude,
)

from stsbp_cupy.runtime import Array, Runtime, lanes_of, logical, memory

__all__ = ["error_grid", "largest_error", "launch_max_abs", "sample_grid", "weight_grids"]


def launch_max_abs(rt: Runtime, x: Array, largest: Array) -> None:
    """Raise `largest` `[1]` uint64 to the bits of the largest magnitude in `x`, if they are larger."""
    rt.launch("max_abs", min(rt.reduction_threads, x.size), x, largest, x.size)


def largest_error(rt: Runtime, dz: Array) -> Array:
    """`grid.largest_error`, uint64 `[1]`, without a transfer from the device."""
    largest: Array = rt.xp.zeros(1, np.uint64)
    launch_max_abs(rt, memory(rt, dz), largest)
    return largest


def error_grid(rt: Runtime, dz: Array, bits: int, largest: Array) -> tuple[Array, Array]:
    """`dz` on its grid of `bits` bits, and the counts of zeroed errors, uint64 `[2]`, without a transfer to the
    host."""
    dz = memory(rt, dz)
    zeroed = rt.xp.zeros(2, np.uint64)
    out = rt.empty_like(dz)
    lanes = lanes_of(dz.size, dz, out)
    threads = min(rt.reduction_threads, dz.size // lanes)
    rt.launch("round_errors", threads, dz, out, largest, zeroed, dz.size, bits, lanes)
    return logical(rt, out), zeroed


def sample_grid(rt: Runtime, dz: Array, bits: int) -> Array:
    """`grid.sample_grid` of `[1, B, ...]`, without a transfer from the device."""
    xp, dz = rt.xp, memory(rt, dz)
    axes = tuple(range(2, dz.ndim))
    most = (dz.view(np.int32) & np.int32(0x7FFFFFFF)).max(axis=axes, keepdims=True)
    exponent = xp.minimum(np.int32(bits + 126) - (most >> np.int32(23)), np.int32(FINEST_ERROR_EXPONENT))
    scale, back = (((q + np.int32(127)) << np.int32(23)).view(np.float32) for q in (exponent, -exponent))
    found = xp.where(most.view(np.float32) < np.float32(FLOOR), np.float32(0), xp.rint(dz * scale) * back)
    return logical(rt, found)


def weight_grids(
    rt: Runtime, projections: Sequence[Projection], weights: Sequence[Array]
) -> list[tuple[Array, WeightGrid]]:
    """`grid.weight_grid` of several layers. It needs one transfer from the device, and more only for coarser grids.

    Raises:
        NumericError: a weight is not finite, or too large.
        ExactnessError: the bound fails even with weights of `MIN_WEIGHT_BITS` bits.
    """
    xp = rt.xp
    found = xp.zeros((len(projections), 2), np.uint64)
    masters = [xp.ascontiguousarray(w) for w in weights]
    rounded = []
    for projection, w, pair in zip(projections, masters, found, strict=True):
        launch_max_abs(rt, w, pair[:1])
        rounded.append(_round(rt, projection, w, pair, 0))
    host = rt.numpy(found)
    grids: list[tuple[Array, WeightGrid]] = []
    for i, (projection, w) in enumerate(zip(projections, masters, strict=True)):
        wq, largest, bound = rounded[i], magnitude(int(host[i, 0])), int(host[i, 1])
        bits = projection.synapse.weight_bits
        check_largest(largest, projection.name)
        if largest < FLOOR:
            grids.append((wq, WeightGrid(exponent=0, bits=MIN_WEIGHT_BITS, headroom=float(EXACT_LIMIT_BITS))))
            continue
        q = bits - 1 - math.frexp(largest)[1]
        if round(largest * 2.0**q) > 2 ** (bits - 1) - 1:
            q -= 1
        coarser = 0
        while (headroom := _headroom(projection, bound, q - coarser)) < 0:
            coarser += 1
            if bits - coarser < MIN_WEIGHT_BITS:
                raise ExactnessError(
                    f"layer {projection.name}: sums of {w[0].size} inputs leave the range that float32 adds exactly, "
                    f"even with {MIN_WEIGHT_BITS}-bit weights; make the layer's input smaller"
                )
            pair = found[i]
            pair[1:] = 0
            wq = _round(rt, projection, w, pair, coarser)
            bound = int(rt.numpy(pair)[1])
        grids.append((wq, WeightGrid(exponent=q - coarser, bits=bits - coarser, headroom=headroom)))
    return grids


def _round(rt: Runtime, projection: Projection, w: Array, pair: Array, coarser: int) -> Array:
    """Weights on the grid. `pair` contains the largest magnitude, and receives the bound in units."""
    bits = projection.synapse.weight_bits
    wq = rt.empty_like(w)
    rt.launch("round_weights", w.size, w, wq, pair[:1], w.size, bits, coarser)
    rows, length = len(w), w.size // len(w)
    rt.launch("row_bound", rows * rt.warp_size, wq, pair[:1], pair[1:], rows, length, bits, coarser)
    return wq


def _headroom(projection: Projection, units: int, exponent: int) -> float:
    return headroom_bits(units * 2.0**-exponent * projection.input.maximum, exponent, projection.input.exponent)
