"""Memory of a training step on the CPU: reuse of freed memory, and computation of a batch in parts.

**Freed memory.** A training step allocates the same large blocks of memory again and again. glibc returns each block to
the kernel when it is freed, and the kernel clears every page when it is next used. A large share of an untuned step
therefore consists of page faults of new arrays (docs/torch.md and docs/jax.md have the figures). The setting applies to
the whole process. A backend makes it once, when it opens a CPU device. `STSBP_KEEP_MEMORY=0` leaves the allocator
unchanged.

**Little memory.** With memory `low`, a batch is computed in equal parts. `samples_at_once` determines their size from
the network and the number of steps only, so that it is the same on every machine and backend.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys

from stsbp_spec.networks.spec import NetworkSpec

__all__ = ["keep_freed_memory", "kept_bytes", "recompute_pays", "release_freed_memory", "samples_at_once"]

# Parts, and not an arena, in which every array has a planned place. An arena closes gaps, but the arrays of a step on
# N-MNIST needed 150 MB without them, at one bit per spike. It cannot hold what oneDNN, BLAS and numpy allocate, and the
# density of spikes decides which arrays there are.
_GROUP_BYTES = 32 * 2**20
"""Bytes that samples which are computed together may store, if memory is `low`. Smaller parts take more time, because
every part has its own calls and reads all weights (docs/benchmarks.md)."""
_RECOMPUTE_BYTES = 4 * _GROUP_BYTES
"""If a part stores more bytes than this, its layers are computed twice."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory(*, one_pool: bool = False) -> bool:
    """Make glibc reuse large freed blocks. Returns whether this was possible.

    Args:
        one_pool: use one pool for all threads, because the pools that glibc gives to threads cannot hold large blocks.
            This only affects threads that are started later.
    """
    if not sys.platform.startswith("linux") or os.environ.get("STSBP_KEEP_MEMORY", "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, musl for example
        return False
    settings = [(_M_ARENA_MAX, 1)] if one_pool else []
    # A map of its own for each large block would leave no gaps, but the kernel would clear its pages in each step: 190
    # ms instead of 110 ms (docs/torch.md).
    # -1: memory at the end of the heap is never returned either, however much it is.
    settings += [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
    return all(bool(mallopt(*setting)) for setting in settings)


def release_freed_memory() -> bool:
    """Return once to the kernel what `keep_freed_memory` kept. Returns whether this was possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def kept_bytes(network: NetworkSpec, steps: int) -> int:
    """Bytes that the backward pass of a sample needs from its forward pass: u as float32, spikes and inputs as
    bytes."""
    neurons: int = sum(math.prod(block.output_shape) for block in network.blocks)
    frames = steps if network.coding == "events" else 1
    return frames * math.prod(network.input_shape) + 5 * steps * neurons


def samples_at_once(network: NetworkSpec, steps: int, samples: int) -> int:
    """Number of `samples` to compute at a time if memory is `low`: equal parts of up to 32 MiB, or one sample.

    The result is at least 1, even without samples.
    """
    parts = -(-samples // max(1, _GROUP_BYTES // kept_bytes(network, steps)))
    return -(-samples // parts) if parts else 1


def recompute_pays(network: NetworkSpec, steps: int, samples: int) -> bool:
    """Whether samples store so much that it pays to keep only one bit per spike and to compute layers twice."""
    # To compute layers twice takes 20 to 45 % more time.
    return samples * kept_bytes(network, steps) > _RECOMPUTE_BYTES
