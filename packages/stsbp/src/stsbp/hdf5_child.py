"""A separate process that reads HDF5. A damaged file may crash the C code of HDF5, or keep it busy for ever.

hdf5_process.py runs this file as a script, with the HDF5 file as standard input. It limits itself, and then runs the
script that reads this kind of file. It imports only h5py and numpy.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys


def main(most_memory: str, most_seconds: str, script: str, *arguments: str) -> None:
    """Run a script within limits.

    Args:
        most_memory, most_seconds: see `limit`.
        script: path of the script.
        arguments: its arguments.
    """
    # The limit of memory is for what is needed in addition to these libraries.
    import h5py  # noqa: F401
    import numpy  # noqa: F401

    limit(int(most_memory), int(most_seconds))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def limit(most_memory: int, most_seconds: int) -> None:
    """Limit the additional memory of this process in bytes, and its processor time in seconds."""
    try:
        import resource
    except ImportError:
        # Windows.
        return
    with open("/proc/self/statm", encoding="ascii") if os.path.exists("/proc/self/statm") else io.StringIO("0") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for resource_kind, limit_value, grace in (
        (resource.RLIMIT_AS, used + most_memory, 0),
        # At the soft limit, the system sends the process a separate signal.
        (resource.RLIMIT_CPU, most_seconds, 5),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        hard = resource.getrlimit(resource_kind)[1]
        soft, hard = (
            (limit_value, limit_value + grace) if hard == resource.RLIM_INFINITY else (min(limit_value, hard), hard)
        )
        # Some systems have a limit but do not accept it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource_kind, (soft, hard))


if __name__ == "__main__":
    main(*sys.argv[1:])
