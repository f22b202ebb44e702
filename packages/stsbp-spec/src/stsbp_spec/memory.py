"""Keep freed memory in the process on Linux: much of an untuned step on the CPU is page faults of fresh arrays.

A training step takes the same large blocks of memory again and again. glibc gives each one back to the kernel when it
is freed, and the kernel zeroes every page when it is touched next (docs/torch.md and docs/jax.md have the figures). The
setting is the process's own, so a backend makes it once, when it opens a CPU device; `STSBP_KEEP_MEMORY=0` leaves the
allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

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
    settings += [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)]
    return all(bool(mallopt(*setting)) for setting in settings)
