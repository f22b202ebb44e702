"""The ops/upsample2d.py of the spec, with elementwise operations of the array module, each of which rounds
once."""

from __future__ import annotations

from stsbp_spec.networks.ops.upsample2d import Upsample2d

from stsbp_cupy.engine.runtime import Array, Runtime, logical, memory

__all__ = ["backward", "forward"]


def forward(rt: Runtime, up: Upsample2d, s: Array) -> tuple[Array, None]:
    """`[T, B, C, H rows, W columns]`, in the type of `s`."""
    rows, columns = up.factors
    repeated: Array = memory(rt, s).repeat(rows, axis=-3).repeat(columns, axis=-2)
    return logical(rt, repeated), None


def backward(rt: Runtime, up: Upsample2d, residuals: None, d: Array) -> Array:
    """The sum of the errors of each block, row by row."""
    d = memory(rt, d)
    rows, columns = up.factors
    first, *later_blocks = (d[..., i::rows, j::columns, :] for i in range(rows) for j in range(columns))
    total = first.copy()
    for block in later_blocks:
        total += block
    return logical(rt, total)
