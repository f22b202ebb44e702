"""Keep freed memory in the process on Linux: a quarter of an untuned CPU training step is page faults of fresh arrays.

XLA takes the temporary memory of a step as one block and frees it when the step is done. glibc gives a block of that
size back to the kernel, which zeroes every page again when it is touched next (docs/jax.md has the figures). XLA's
worker threads do the taking, and glibc gives each thread a pool that cannot hold large blocks; so there is one pool
only. The setting is the process's own and works on threads that are not yet running, so it is made before JAX starts
its CPU client; `STSBP_KEEP_MEMORY=0` leaves the allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks; returns whether it was done."""
    if not sys.platform.startswith("linux") or os.environ.get("STSBP_KEEP_MEMORY", "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, musl for example
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all(bool(mallopt(*setting)) for setting in settings)
