"""random.py of the spec in JAX: Threefry-2x32-20 and the dropout mask, in uint32, inside the jit."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.random import Stream
from stsbp_spec.typing import Shape

__all__ = ["bits", "keep_mask", "threefry2x32"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _rotate(x: Array, r: int) -> Array:
    return (x << np.uint32(r)) | (x >> np.uint32(32 - r))


def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two words for each counter, uint32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate(x1, r) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def bits(seed: Array, stream: int, n: int, *, substream: int, step: Array) -> Array:
    """`n` random 32-bit words, `[n]` uint32; `seed` and `step` are uint32 scalars."""
    index = jnp.arange((n + 1) // 2, dtype=np.uint32)
    key = (seed, jnp.asarray((int(stream) + 256 * substream) & 0xFFFFFFFF, np.uint32))
    x0, x1 = threefry2x32(key, (index, jnp.broadcast_to(step, index.shape)))
    return jnp.stack([x0, x1], axis=1).reshape(-1)[:n]


def keep_mask(seed: Array, layer: int, step: Array, shape: Shape, rate: float) -> Array:
    """Dropout mask of `shape` (C order), uint8: 0 with probability `rate`, else 1."""
    threshold = round(rate * 2**32)
    if threshold == 2**32:
        return jnp.zeros(shape, np.uint8)
    words = bits(seed, Stream.DROPOUT, math.prod(shape), substream=layer, step=step)
    return (words >= np.uint32(threshold)).astype(np.uint8).reshape(shape)
