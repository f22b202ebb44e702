"""The grid.py of the spec with kernels/weight_grid.cu and kernels/error_grid.cu. Exponents are computed on the
device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.engine.operations import fit_first_grid
from stsbp_spec.networks.graph import Projection

from stsbp_cupy.engine.runtime import Array, Runtime, lanes_of, logical, memory

__all__ = ["error_grid", "largest_error", "launch_max_abs", "weight_grids"]


def launch_max_abs(rt: Runtime, x: Array, largest: Array) -> None:
    """Raise `largest` `[1]` uint64 to the bits of the largest magnitude in `x`, if they are larger."""
    rt.launch("max_abs", min(rt.reduction_threads, x.size), x, largest, x.size)


def largest_error(rt: Runtime, dz: Array) -> Array:
    """`Operations.largest_error`, uint64 `[1]`, without a transfer from the device."""
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


def weight_grids(
    rt: Runtime, projections: Sequence[Projection], weights: Sequence[Array]
) -> list[tuple[Array, WeightGrid]]:
    """`Operations.weight_grids`. It needs one transfer from the device, and more only for coarser grids.

    Raises:
        NumericError: a weight is not finite, or too large.
        ExactnessError: the bound fails even with weights of `MIN_WEIGHT_BITS` bits.
    """
    pairs = rt.xp.zeros((len(projections), 2), np.uint64)
    masters = [rt.xp.ascontiguousarray(w) for w in weights]
    first = []
    for projection, w, pair in zip(projections, masters, pairs, strict=True):
        launch_max_abs(rt, w, pair[:1])
        first.append(_round(rt, projection, w, pair, 0))

    def rounded(projection: Projection, w: Array, pair: Array, q: int, coarser: int) -> tuple[Array, float]:
        pair[1:] = 0
        wq = _round(rt, projection, w, pair, coarser)
        return wq, float(rt.numpy(pair)[1])

    return [
        fit_first_grid(projection, wq, numbers, partial(rounded, projection, w, pair), rt.xp.zeros_like)
        for projection, w, wq, numbers, pair in zip(projections, masters, first, rt.numpy(pairs), pairs, strict=True)
    ]


def _round(rt: Runtime, projection: Projection, w: Array, pair: Array, coarser: int) -> Array:
    """Weights on the grid. `pair` contains the largest magnitude, and receives the bound in units."""
    bits = projection.synapse.weight_bits
    wq = rt.empty_like(w)
    rt.launch("round_weights", w.size, w, wq, pair[:1], w.size, bits, coarser)
    rows, length = len(w), w.size // len(w)
    rt.launch("row_bound", rows * rt.warp_size, wq, pair[:1], pair[1:], rows, length, bits, coarser)
    return wq
