"""Starts the separate process that reads an HDF5 file (hdf5_child.py), and ends it if it takes too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, BinaryIO, Self

from stsbp import hdf5_child
from stsbp.files import MEGABYTE

__all__ = ["SECONDS", "Hdf5Process"]

SECONDS = 60.0
"""Seconds that reading may take, besides those for a large file."""


class Hdf5Process:
    """A process in which a script reads a file. As a context manager, it is ended at the end.

    Args:
        file: the open file, which is the standard input of the script.
        script: path of the script. It may import only h5py, numpy and the standard library.
        arguments: its arguments.
        memory: memory that it may take, in bytes, but at least 16 MiB.
        seconds: seconds that one `answer` may take, plus one second for every 8 MiB of the file. Half of it is the
            limit of processor time for all of them.
    """

    def __init__(self, file: BinaryIO, script: str, *arguments: str, memory: int, seconds: float) -> None:
        self._seconds = seconds + os.fstat(file.fileno()).st_size / (8 * MEGABYTE)
        # With less memory, the C code of HDF5 crashes on intact files.
        limits = (str(max(memory, 16 * MEGABYTE)), str(max(1, int(self._seconds / 2))))
        # HDF5 would load filters that a file names from a system folder. OpenBLAS allocates memory for each thread.
        environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", hdf5_child.__file__, *limits, script, *arguments],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._late = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.failure()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @contextlib.contextmanager
    def answer(self) -> Iterator[IO[bytes]]:
        """The standard output of the process, which ends early if reading an answer takes too long."""
        assert self._process.stdout is not None

        def end() -> None:
            self._late.set()
            self._process.kill()

        timer = threading.Timer(self._seconds, end)
        timer.start()
        try:
            yield self._process.stdout
        finally:
            timer.cancel()
            timer.join()

    def failure(self) -> str:
        """End the process. The reason why it did not finish: it took too long, or ended without a message."""
        self._process.kill()
        signal_number = -min(self._process.wait(), 0)
        if self.is_late:
            return f"it takes more than {self._seconds:.3g} seconds to read"
        signal_text = f" ({signal.Signals(signal_number).name})" if signal_number in set(signal.Signals) else ""
        return f"the process that read it ended without a message{signal_text}"

    @property
    def is_late(self) -> bool:
        """Whether the process took too long. It is known after `failure`."""
        return self._late.is_set() or -(self._process.returncode or 0) == getattr(signal, "SIGXCPU", None)
