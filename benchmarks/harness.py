"""What these scripts have in common: their command lines, tables, and reports with what is known of the machine.

Work is timed in turns by `stsbp.benchmarks.timing`, in this process or in those of workers.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stsbp.benchmarks.device import describe, threads_used
from stsbp.datasets import Split
from stsbp.errors import StsbpError
from stsbp.files import write_atomically
from stsbp.training.build import load_data
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained, load_trained
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.registry import open_backend
from workers import WorkerError

HERE = Path(__file__).parent


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
    "threads": {"type": count, "help": "of each process; default: one a core"},
    "clock": {"choices": ["wall", "cpu"], "default": "wall", "help": "cpu: processor time, steadier on a busy machine"},
    "data-dir": {"type": folder, "help": "folder of the data sets; default: embedded ones"},
    "runs": {"nargs": "+", "type": Path, "metavar": "RUN", "help": "folder of a trained run"},
    "out": {"type": Path, "metavar": "FILE.json", "help": "write the results"},
}


def parser_of(doc: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with some of the shared options; `doc` begins with what the script does."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    for name in names:
        parser.add_argument(name if name == "runs" else f"--{name}", **_SHARED[name])
    parser.set_defaults(**defaults)
    return parser


def guarded(main: Callable[[], int | None]) -> int:
    """Run a script; a mistake of its user is a line, not a traceback. Returns the exit code."""
    try:
        return main() or 0
    except (StsbpError, WorkerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def machine(backend: AbstractBackend | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What is known of the machine and of this checkout; without a backend, what measures opens none."""
    commit = None
    with suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output(
            ["git", "-C", str(HERE), "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        ).strip()
    known = describe(backend or open_backend("numpy"), settings)
    return {**known, "threads": threads_used(), "commit": commit}


def write_report(path: Path | None, backend: AbstractBackend | None, settings: dict[str, Any], **fields: Any) -> None:
    """Write fields and the machine as JSON, whole or not at all; nothing without a path."""
    if path is not None:
        report = {"format": 1, "machine": machine(backend, settings), **fields}
        write_atomically(path, (json.dumps(report, indent=1) + "\n").encode())


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows below the names of their columns, as Markdown; short rows are filled up."""
    lines = [" | ".join(columns), "|".join(["---"] * len(columns))]
    lines += [" | ".join(map(str, (*row, *[""] * len(columns))[: len(columns)])) for row in map(tuple, rows)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def spread(seconds: dict[str, float], digits: str = ".1f", unit: float = 1e3) -> list[str]:
    """Median and quartiles of `Timing.to_json` as two cells, in milliseconds or what `unit` says."""
    median, low, high = (f"{unit * seconds[key]:{digits}}" for key in ("median", "low", "high"))
    return [median, f"{low} - {high}"]


def tested(run: Path, backend: AbstractBackend, data_dir: Path | None) -> tuple[Trained, Split]:
    """A trained run on a backend, and its test samples; `data_dir`: where its data are now."""
    trained = load_trained(RunFolder(run), "last", backend)
    data = load_data(trained.settings, moved_data_dir=str(data_dir) if data_dir else None, has_begun=True)
    return trained, trained.samples(data, "test")
