"""Errors of the command line and of training. They are subclasses of the base class in `stsbp_spec.errors`."""

from __future__ import annotations

import re

from stsbp_spec.errors import StsbpError, did_you_mean, legible, printable

__all__ = [
    "NO_WORKING_FOLDER",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FileError",
    "StsbpError",
    "did_you_mean",
    "legible",
    "printable",
    "understood",
]


NO_WORKING_FOLDER = "the working folder does not exist any more; change to another one"
"""What every command says whose working folder was removed."""
_EXHAUSTED = re.compile(r"DefaultCPUAllocator: |CUDA out of memory|\bRESOURCE_EXHAUSTED: ")
"""What torch and XLA say when there is not enough memory. Their errors are no `MemoryError`."""


class DataError(StsbpError):
    """A data set is missing, incomplete or malformed, for example a recording whose times decrease."""


class CheckpointError(StsbpError):
    """A checkpoint cannot be read, or does not fit the network, for example after a truncated copy."""


class ConfigError(StsbpError):
    """A configuration has an unknown key or a value outside its domain, for example `epochs = -1`."""


class FileError(StsbpError):
    """A file cannot be written, for example because the disk is full. The previous file is unchanged."""


def understood(error: BaseException) -> StsbpError | None:
    """The error to show for an error of the operating system; None: it is a bug, and its traceback is shown."""
    if isinstance(error, StsbpError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error))):
        return StsbpError("there is not enough memory; try smaller batches or sizes")
    if isinstance(error, OSError):
        # An error without a file name comes from writing the output.
        subject = error.filename if error.filename is not None else "cannot write the output"
        return FileError(f"{subject}: {error.strerror or error}")
    return None
