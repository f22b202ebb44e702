"""Memory of a training step on the CPU: what must be kept, how much of it at a time, and freed memory that is kept.

**Freed memory.** A training step takes the same large blocks of memory again and again. glibc gives each one back to
the kernel when it is freed, and the kernel zeroes every page when it is touched next: much of an untuned step is page
faults of fresh arrays (docs/torch.md and docs/jax.md have the figures). The setting is the process's own, so a backend
makes it once, when it opens a CPU device; `STSBP_KEEP_MEMORY=0` leaves the allocator alone.

**Little memory.** With memory `low` a batch is computed in equal parts, whose size `samples_at_once` takes from the
network and the number of steps alone, so that it is the same on every machine and backend.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys

from stsbp_spec.network import NetworkSpec

__all__ = ["is_much", "keep_freed_memory", "kept_bytes", "release_freed_memory", "samples_at_once"]

_AT_ONCE = 32 * 2**20
"""Bytes that samples which are computed together may keep where memory is little. Fewer cost time, since every part has
its own calls and reads all weights (docs/benchmarks.md)."""
_MUCH = 4 * _AT_ONCE
"""Above it, layers of a part are computed twice."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory(*, one_pool: bool = False) -> bool:
    """Make glibc reuse large freed blocks; returns whether it was done.

    Args:
        one_pool: for all threads, because the pools that glibc gives to threads cannot hold large blocks. It works on
            threads that are not yet running.
    """
    if not sys.platform.startswith("linux") or os.environ.get("STSBP_KEEP_MEMORY", "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, musl for example
        return False
    settings = [(_M_ARENA_MAX, 1)] if one_pool else []
    settings += [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
    return all(bool(mallopt(*setting)) for setting in settings)


def release_freed_memory() -> bool:
    """Give what `keep_freed_memory` kept back to the kernel, once; returns whether it was done."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def kept_bytes(network: NetworkSpec, steps: int) -> int:
    """What the way back of a sample needs of the way ahead, in bytes: u as float32, spikes and inputs as bytes."""
    neurons: int = sum(math.prod(block.output_shape) for block in network.blocks)
    frames = steps if network.coding == "events" else 1
    return frames * math.prod(network.input_shape) + 5 * steps * neurons


def samples_at_once(network: NetworkSpec, steps: int, samples: int) -> int:
    """How many of `samples` are computed at a time where memory is little: equal parts of up to 32 MiB, or one sample.

    At least 1, also of no samples.
    """
    parts = -(-samples // max(1, _AT_ONCE // kept_bytes(network, steps)))
    return -(-samples // parts) if parts else 1


def is_much(network: NetworkSpec, steps: int, samples: int) -> bool:
    """Whether samples that are computed together keep so much that a bit a spike, and computing layers twice, pays."""
    return samples * kept_bytes(network, steps) > _MUCH
