"""Implements random.py of the spec in JAX: Threefry-2x32-20 and the dropout mask, in uint32, inside a jit."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from stsbp_spec.contract.random import Stream
from stsbp_spec.typing import Shape

__all__ = ["bits", "keep_mask", "threefry2x32"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _rotate(x: Array, r: int) -> Array:
    return (x << np.uint32(r)) | (x >> np.uint32(32 - r))


def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two random words for each counter, uint32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate(x1, r) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def bits(
    seed: Array, stream: int, n: int, *, substream: int, step: Array, block: int | Array = 0, odd: int | Array = 0
) -> Array:
    """`n` random 32-bit words from word number `2 block + odd` on, `[n]` uint32.

    `seed` and `step` are uint32 scalars; `block` and `odd`, 0 or 1, are numbers, or uint32 scalars too.
    """
    from_first = isinstance(odd, int) and odd == 0
    index = jnp.arange((n + 1) // 2 if from_first else n // 2 + 1, dtype=np.uint32)
    if not (isinstance(block, int) and block == 0):
        index = index + _word(block)
    key = (seed, jnp.asarray((int(stream) + 256 * substream) & 0xFFFFFFFF, np.uint32))
    x0, x1 = threefry2x32(key, (index, jnp.broadcast_to(step, index.shape)))
    words = jnp.stack([x0, x1], axis=1).reshape(-1)
    return words[:n] if from_first else lax.dynamic_slice(words, (_word(odd),), (n,))


def _word(x: int | Array) -> Any:
    return np.uint32(x & 0xFFFFFFFF) if isinstance(x, int) else x


def keep_mask(seed: Array, layer: int, step: Array, shape: Shape, rate: float, first: int | Array = 0) -> Array:
    """Dropout mask of shape `shape`, `[B, ...]` (C order), uint8: 0 with probability `rate`, else 1.

    `first`, a number or a uint32 scalar, is the index in the batch of the mask's first sample.
    """
    threshold = round(rate * 2**32)
    if threshold == 2**32:
        return jnp.zeros(shape, np.uint8)
    # The words of the `first` samples fill this many blocks of two (counted modulo 2^32), and possibly half a block.
    half, is_odd = divmod(math.prod(shape[1:]), 2)
    block, odd = (first * half + first // 2, first % 2) if is_odd else (first * half, 0)
    words = bits(seed, Stream.DROPOUT, math.prod(shape), substream=layer, step=step, block=block, odd=odd)
    return (words >= np.uint32(threshold)).astype(np.uint8).reshape(shape)
