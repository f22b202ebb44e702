"""Keep freed memory in the process on Linux: most of an untuned training step is page faults of fresh arrays.

A step allocates the same arrays again and again. glibc gives each large one back to the kernel when it is freed, and
the kernel zeroes every page when it is touched next. Told to keep them, the N-MNIST step takes 0.6 of its time
(docs/torch.md has the figures). The setting is the process's own, so it is made once, when a CPU device is opened;
`STSBP_KEEP_MEMORY=0` leaves the allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks; returns whether it was done."""
    if not sys.platform.startswith("linux") or os.environ.get("STSBP_KEEP_MEMORY", "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, musl for example
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
