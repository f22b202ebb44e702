"""Counter-based random numbers: the same bits on every backend, in any order, without a state.

The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
It only uses 32-bit additions, rotations and exclusive-ors, so it is the same in numpy, CUDA C, numba and XLA.

Element `i` of a draw is word `i % 2` of `threefry(key, counter)` with
`key = (seed, stream + 256 * substream)` and `counter = (i // 2, step)`.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.typing import Float64, Int64, Shape, UInt8, UInt32
from stsbp_spec.validation import integer, integer_between, shown

__all__ = [
    "LARGEST_SUBSTREAM",
    "Stream",
    "bits",
    "check_seed",
    "check_step",
    "keep_mask",
    "permutation",
    "threefry2x32",
    "uniform",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_LARGEST_WORD = 2**32 - 1
_MOST_WORDS = 2**33
"""Number of words of a draw. Each counter gives two."""
LARGEST_SUBSTREAM = 2**24 - 1
"""Up to it, `stream + 256 * substream` is below 2^32, so no two substreams share bits."""


class Stream(IntEnum):
    """The purpose of a draw. Two streams never share bits."""

    INIT = 1
    SHUFFLE = 2
    DROPOUT = 3
    SPLIT = 4
    ENCODER = 5
    AUGMENT = 6
    SIMULATION = 7
    NOISE = 8
    CHANCE = 9
    DELAYS = 10


def check_seed(seed: object) -> int:
    """Return `seed`, or raise `SpecError` unless it is an integer in `[0, 2**32)`."""
    number = integer(seed)
    if number is None or not 0 <= number < 2**32:
        raise SpecError(f"seed must be an integer from 0 to 2**32 - 1, got {shown(seed)}")
    return number


def check_step(step: object) -> int:
    """Return `step`, or raise `SpecError` unless it is an integer in `[0, 2**32)`."""
    number = integer(step)
    if number is None or not 0 <= number < 2**32:
        raise SpecError(f"the step of dropout must be an integer from 0 to 2**32 - 1, got {shown(step)}")
    return number


def _rotate(x: UInt32, r: int) -> UInt32:
    return (x << np.uint32(r)) | (x >> np.uint32(32 - r))


def threefry2x32(key: tuple[int | Int64, int | Int64], counter: tuple[UInt32, UInt32]) -> tuple[UInt32, UInt32]:
    """Threefry-2x32-20 of keys and counters that broadcast against each other. Returns two words for each pair."""
    k0, k1 = np.uint32(key[0]), np.uint32(key[1])
    schedule = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    with np.errstate(over="ignore"):
        x0 = counter[0].astype(np.uint32) + schedule[0]
        x1 = counter[1].astype(np.uint32) + schedule[1]
        for group in range(5):
            for r in _ROTATIONS[group % 2]:
                x0 = x0 + x1
                x1 = _rotate(x1, r) ^ x0
            x0 = x0 + schedule[(group + 1) % 3]
            x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def bits(seed: int, stream: int, n: int, *, substream: int = 0, step: int = 0, first: int = 0) -> UInt32:
    """`n` random 32-bit words from word number `first` on, `[n]`.

    Args:
        seed: 0 to 2^32 - 1.
        stream: purpose of the draw, a `Stream` or another number from 0 to 255.
        n: number of words.
        substream: part of the stream, 0 to 2^24 - 1.
        step: 0 to 2^32 - 1.
        first: number of the first word. A draw has at most 2^33 words.

    Raises:
        SpecError: an argument is not an integer in its range. `uniform` and `permutation` raise it too.
    """
    stream, substream = (
        integer_between("stream", stream, 0, 255),
        integer_between("substream", substream, 0, LARGEST_SUBSTREAM),
    )
    first = integer_between("the number of the first random word", first, 0, _MOST_WORDS)
    n, step = (
        integer_between("the number of random words", n, 0, _MOST_WORDS - first),
        integer_between("step", step, 0, _LARGEST_WORD),
    )
    return _bits(seed, stream + 256 * substream, n, step=step, first=first)


def _bits(seed: int, key: int, n: int, *, step: int, first: int) -> UInt32:
    """The words of `bits` for the second word of a key, which is taken modulo 2^32, as `step` is."""
    odd = first % 2
    blocks = (odd + n + 1) // 2
    index = np.arange(first // 2, first // 2 + blocks, dtype=np.int64).astype(np.uint32)
    words = np.full(blocks, step & _LARGEST_WORD, dtype=np.uint32)
    x0, x1 = threefry2x32((check_seed(seed), key & _LARGEST_WORD), (index, words))
    return np.stack([x0, x1], axis=1).reshape(-1)[odd : odd + n]


def uniform(seed: int, stream: int, n: int, *, substream: int = 0, step: int = 0) -> Float64:
    """`n` uniform numbers `[n]` in the open interval (0, 1), spaced 2**-32 and centred in their cells (`bits`)."""
    return (bits(seed, stream, n, substream=substream, step=step).astype(np.float64) + 0.5) * 2.0**-32


def permutation(seed: int, stream: int, n: int, *, substream: int = 0, step: int = 0) -> Int64:
    """A random order of `range(n)`, `[n]`, from the stable sort of `n` random 64-bit keys (`bits`)."""
    n = integer_between("the number of items", n, 0, _MOST_WORDS // 2)
    words = bits(seed, stream, 2 * n, substream=substream, step=step).astype(np.uint64).reshape(n, 2)
    return np.argsort((words[:, 0] << np.uint64(32)) | words[:, 1], kind="stable").astype(np.int64)


def keep_mask(seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> UInt8:
    """Dropout mask of `shape` `[B, ...]` (C order): 0 with probability `rate`, else 1.

    `first` is the number of its first sample in the batch. Each element of the batch has its own random word. `step` is
    taken modulo 2^32.
    """
    threshold = np.uint64(round(rate * 2**32))
    n = int(np.prod(shape))
    words = _bits(seed, Stream.DROPOUT + 256 * layer, n, step=step, first=first * math.prod(shape[1:]))
    return (words.astype(np.uint64) >= threshold).astype(np.uint8).reshape(shape)
