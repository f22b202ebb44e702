"""Makes the waiting threads of OpenMP sleep, without an environment variable.

After a parallel loop, the threads of libgomp (the OpenMP library of GCC) spin for about 3 ms before they sleep. numba
and torch each load a libgomp of their own. In a training loop that calls both in turn, the waiting threads of one
library then take the processor from the working threads of the other, and from other processes.

`OMP_WAIT_POLICY=PASSIVE` turns this off, but libgomp reads it only when it is loaded, which for torch is before this
package is imported. libgomp also stops spinning while it manages more threads than there are processors: a thread then
looks at most 100 times whether there is work, and sleeps. So a thread of this module starts a team with more threads
than there are processors, once in each libgomp, and keeps it. All threads of the team sleep.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["gnu_libraries", "let_waiting_threads_sleep"]

_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_MAPS = Path("/proc/self/maps")
_handled: set[str] = set()
_lock = threading.Lock()


def let_waiting_threads_sleep() -> list[str]:
    """Make the waiting threads of every loaded libgomp sleep, numba's included. Returns the libraries that are new.

    Does nothing if a variable of `_POLICIES` is set, because then the user has chosen how threads wait, or on systems
    other than Linux.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _POLICIES):
        return []
    with suppress(ImportError):  # numba without this threading layer
        # numba loads its libgomp with its first parallel loop. This module must find the library before.
        import numba.np.ufunc.omppool  # noqa: F401
    with _lock:
        libraries = [path for path in gnu_libraries() if path not in _handled and _keep_idle_team(path)]
        _handled.update(libraries)
    return libraries


def gnu_libraries() -> list[str]:
    """Paths of all libgomps of this process."""
    try:
        maps = _MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libgomp" in line}
    return sorted(path for path in paths if Path(path).name.startswith("libgomp"))


def _keep_idle_team(path: str) -> bool:
    """Start a team with more threads than processors and keep it. Returns whether the library can do this."""
    try:
        library = ctypes.CDLL(path)
        parallel, nothing = library.GOMP_parallel, ctypes.cast(library.omp_get_level, ctypes.c_void_p)
    except (OSError, AttributeError):  # deleted since it was loaded, or another library of this name
        return False
    threads = len(os.sched_getaffinity(0)) + 1
    started = threading.Event()

    def hold_team() -> None:
        # Any function serves as the body of the parallel region if it needs no argument and does nothing.
        parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        started.set()
        threading.Event().wait()  # libgomp ends a team together with the thread that started it

    threading.Thread(target=hold_team, name=f"idle team of {Path(path).name}", daemon=True).start()
    started.wait()
    return True
