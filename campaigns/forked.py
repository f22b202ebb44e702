"""Lets stsbp read HDF5 in forks of this process, which saves the time that a new Python takes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

from stsbp import hdf5_child, hdf5_process

__all__ = ["forking"]


class _Forked:
    """What `subprocess.Popen` is for the process that reads a file, without the time that a new Python takes."""

    def __init__(self, command: Sequence[str], *, stdin: BinaryIO, **_options: Any) -> None:
        reader, writer = os.pipe()
        # JAX warns of every fork, but the child only reads.
        with warnings.catch_warnings(action="ignore"):
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(stdin.fileno(), 0)
                os.dup2(writer, 1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
                hdf5_child.main(*command[3:])
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self.stdout = open(reader, "rb")  # noqa: SIM115 - its reader closes it
        self.returncode: int | None = None

    def kill(self) -> None:
        """End it."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, as `subprocess` gives it."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Let files be read in forks of this process."""
    names = vars(hdf5_process)
    original = names["subprocess"]
    names["subprocess"] = SimpleNamespace(Popen=_Forked, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    try:
        yield
    finally:
        names["subprocess"] = original
