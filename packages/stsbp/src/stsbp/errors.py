"""Errors of the command line and of training, children of the one base class of `stsbp_spec.errors`."""

from __future__ import annotations

from stsbp_spec.errors import StsbpError, did_you_mean, legible, printable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FileError",
    "StsbpError",
    "did_you_mean",
    "legible",
    "printable",
]


class DataError(StsbpError):
    """A data set is missing, incomplete or malformed, for example a recording whose time runs backwards."""


class CheckpointError(StsbpError):
    """A checkpoint cannot be read, or does not fit the network, for example after a truncated copy."""


class ConfigError(StsbpError):
    """A configuration has an unknown key or a value outside its domain, for example `epochs = -1`."""


class FileError(StsbpError):
    """A file cannot be written, for example because the disk is full; what was there before is untouched."""
