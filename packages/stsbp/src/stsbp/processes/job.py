"""Runs that are trained side by side, each by `stsbp` in its own process: the jobs of experiments and sweeps."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from stsbp.config import RunConfig, to_toml
from stsbp.processes.launcher import Started
from stsbp.threads import THREADS, thread_count

__all__ = ["SIGTERM", "Job", "end_jobs", "run_words", "threads_each"]

SIGTERM = 15
"""Number of the signal after which a run saves and ends."""
_LINES = 20
"""Number of last lines of a process that are kept for a message."""


class Job(Started):
    """`stsbp ARGUMENTS` in its own process, whose lines are printed with its name.

    Args:
        name: its name, for example `seed 3`.
        arguments: arguments of the command line.
        threads: number of threads of numerical libraries.
        print_line: function that receives the lines that it prints, with its name at the beginning.
    """

    def __init__(self, name: str, arguments: Sequence[str], threads: int, print_line: Callable[[str], None]) -> None:
        self.name, self._print_line = name, print_line
        # With one common port, only one of several jobs could use it.
        variables = {**dict.fromkeys(THREADS, threads), "MASTER_PORT": None}
        super().__init__(arguments, variables, _LINES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def on_line(self, line: str) -> None:
        self._print_line(f"{self.name}: {line}")

    def wait(self) -> None:
        """Wait until the process ends."""
        self.process.wait()
        self.own_end.close()

    def tell_if_stopped(self, of: str) -> None:
        """Print a line if a signal such as SIGSTOP has stopped the process. `of` is what waits for it."""
        if self.process.poll() is None and self.was_stopped():
            process = self.process.pid
            self._print_line(
                f"{self.name}: its process {process} was stopped by a signal, and the {of} waits for it; to continue "
                f"it, run: kill -CONT {process}"
            )


def run_words(config: RunConfig, file: Path, out: Path) -> list[str]:
    """The words of `stsbp train` that train a run with these settings, which are written to `file`, or continue it."""
    file.write_text(to_toml(config), encoding="utf-8")
    # A function of the user that only the file names would not be imported.
    track = ["--track", config.track] if config.track else []
    return ["train", "--config", str(file), "--out", str(out), *track, "--resume"]


def threads_each(config: RunConfig, jobs: int) -> int:
    """The number of threads of each of `jobs` runs: that of its settings, or its share of the processors."""
    return config.threads or max(1, thread_count() // jobs)


def end_jobs(jobs: Sequence[Job], number: int = SIGTERM) -> None:
    """Send a signal to all of them, so that they save and end."""
    for job in jobs:
        job.send_signal(number)
    for job in jobs:
        job.wait()
