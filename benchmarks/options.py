"""What the command lines of these scripts have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stsbp.errors import StsbpError
from stsbp.files import write_atomically

__all__ = ["guarded", "parser_of", "write_report"]


def count(text: str) -> int:
    """An integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def factor(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def folder(text: str) -> Path:
    """A folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


_SHARED: dict[str, dict[str, Any]] = {
    "backend": {"default": "torch", "help": "which backend computes"},
    "device": {"help": "where, e.g. cuda; default: the backend's own"},
    "rounds": {"type": count, "default": 7, "help": "how often each is timed"},
    "scale": {"type": factor, "default": 1.0, "help": "factor of the batch"},
    "shrink": {"type": count, "default": 1, "help": "divisor of T, B and C"},
    "data-dir": {"type": folder, "help": "folder of the data sets; default: embedded ones"},
    "out": {"type": Path, "metavar": "FILE.json", "help": "write the results"},
}


def parser_of(doc: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with some of the shared options; `doc` begins with what the script does."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    for name in names:
        parser.add_argument(f"--{name}", **_SHARED[name])
    parser.set_defaults(**defaults)
    return parser


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Write a report as JSON, whole or not at all; nothing without a path."""
    if path is not None:
        write_atomically(path, (json.dumps(report, indent=1) + "\n").encode())


def guarded(main: Callable[[], int | None]) -> int:
    """Run a script; a mistake of its user is a line, not a traceback. Returns the exit code."""
    try:
        return main() or 0
    except StsbpError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
