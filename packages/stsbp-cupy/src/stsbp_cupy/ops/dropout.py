"""The ops/dropout.py and random.keep_mask of the spec, with kernels/dropout.cu."""

from __future__ import annotations

import math

import numpy as np
from stsbp_spec.contract.random import Stream, check_seed
from stsbp_spec.typing import Shape

from stsbp_cupy.engine.runtime import Array, Runtime, logical, memory

__all__ = ["apply", "keep_mask"]


def keep_mask(rt: Runtime, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> Array:
    """Dropout mask of `shape` `[B, ...]`: 0 with probability `rate`, else 1. `first`: number of its first sample."""
    spatial = len(shape) >= 4
    channels, area = (shape[-3], shape[-2] * shape[-1]) if spatial else (1, math.prod(shape))
    mask = rt.empty((*shape[:-3], *shape[-2:], channels) if spatial else shape, np.uint8)
    elements_before = first * math.prod(shape[1:])
    key = (int(Stream.DROPOUT) + 256 * layer) & 0xFFFFFFFF
    rt.launch(
        "keep_mask", (elements_before % 2 + mask.size + 1) // 2, mask, mask.size, elements_before, area, channels,
        check_seed(seed), key, step & 0xFFFFFFFF, round(rate * 2**32),
    )  # fmt: skip
    return logical(rt, mask)


def apply(rt: Runtime, mask: Array, s: Array) -> Array:
    """`s * mask`, `[T, B, ...]` times `[B, ...]`. This operation is its own adjoint."""
    s, mask = memory(rt, s), memory(rt, mask)
    out = rt.empty_like(s)
    rt.launch("dropout_u8" if s.dtype == np.uint8 else "dropout_f32", s.size, s, mask, out, s.size, mask.size)
    return logical(rt, out)
