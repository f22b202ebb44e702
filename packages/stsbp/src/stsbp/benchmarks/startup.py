"""Waiting times of users: for the help page, and from the command to the first update, with and without compiled
kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stsbp_spec.engine.backend import AbstractBackend

from stsbp.benchmarks.result import Announce, Row
from stsbp.benchmarks.timing import Timing, interleaved
from stsbp.errors import StsbpError

__all__ = ["measure"]

_LONGEST = 600.0
_CACHES = ("STSBP_CACHE", "CUPY_CACHE_DIR", "TRITON_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
"""Variables with the folders of decoded samples and compiled kernels, of stsbp and of the frameworks."""


def measure(backend: AbstractBackend, *, rounds: int, announce: Announce) -> list[Row]:
    """Time `stsbp --help`, and `stsbp train digits-events` to the first line of its metrics."""
    announce("start-up: the help page")
    stsbp = [sys.executable, "-P", "-m", "stsbp"]
    help_times = interleaved({"help": lambda: subprocess.run([*stsbp, "--help"], capture_output=True)}, rounds=rounds)
    announce("start-up: the first update")
    command = [*stsbp, "--backend", backend.name, "--device", backend.device, "train", "digits-events"]
    command += ["--limit", "50", "--batch-size", "50", "--holdout", "20", "--epochs", "1", "--log-every", "1"]
    # Some measurements take as long as several steps, so they are repeated less often.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {**os.environ, **{name: str(Path(folder) / name) for name in _CACHES}}
        first = tuple(_first_update(command, caches) for _ in range(1 + min(rounds, 3)))
    return [
        Row("step", "", "stsbp --help", help_times["help"]),
        Row("step", "", "first update after the command", Timing(first[1:]), detail={"empty_caches": first[0]}),
    ]


def _first_update(command: list[str], environment: dict[str, str]) -> float:
    """Time in seconds until the metrics of the first update are on the disk."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        began = time.perf_counter()
        child = subprocess.Popen(
            [*command, "--out", str(metrics.parent)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            while time.perf_counter() - began < _LONGEST:
                if metrics.is_file() and metrics.stat().st_size > 0:
                    return time.perf_counter() - began
                if child.poll() is not None:
                    break
                time.sleep(0.01)
        finally:
            child.kill()
            error_output = child.communicate()[1]
        raise StsbpError(f"`{' '.join(command)}` did not reach its first update: {error_output.strip()[-300:]}")
