"""Weights in the memory order that the matrix products read."""

from __future__ import annotations

from stsbp_spec.typing import Shape

from stsbp_cupy.engine.runtime import Array, Runtime

__all__ = ["channels_first", "channels_last_rows"]


def channels_last_rows(rt: Runtime, wq: Array, shape: Shape) -> Array:
    """Weights `[out, C H W]` or `[out, C, H, W]` as rows `[out, H W C]`, the order of activations in memory.

    Args:
        rt: runtime of the weights.
        wq: the weights.
        shape: `(C, H, W)` of one row.
    """
    rows: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(wq.reshape(len(wq), *shape), 1, -1))
    return rows.reshape(len(wq), -1)


def channels_first(rt: Runtime, rows: Array, shape: Shape, out_shape: Shape) -> Array:
    """Inverse of `channels_last_rows`: rows `[out, H W C]` as `out_shape`, contiguous."""
    c, h, w = shape
    first: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(rows.reshape(len(rows), h, w, c), -1, 1))
    return first.reshape(out_shape)
