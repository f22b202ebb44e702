"""Parallel training of an experiment's seeds. Each is trained by `stsbp train` in its folder, in its own process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsbp.config import RunConfig, to_toml
from stsbp.errors import StsbpError
from stsbp.experiment.run import Experiment, same_command
from stsbp.processes.launcher import Started
from stsbp.threads import THREADS, thread_count
from stsbp.training.loop import StopRequest

__all__ = ["SideBySide"]

_LINES = 20
_PAUSE = 0.05
_SIGTERM = 15


@dataclass(frozen=True)
class SideBySide:
    """How seeds are trained in parallel.

    Attributes:
        jobs: number of parallel runs.
        options: options of `stsbp` itself, before the command: backend and device.
        processes: number of processes of each run; None: one.
        rank_timeout: see `--rank-timeout`.
        print_line: function that receives the lines that the runs print, with the seed at the beginning.
    """

    jobs: int
    options: Sequence[str]
    processes: int | None
    rank_timeout: float
    print_line: Callable[[str], None]

    def train(self, experiment: Experiment, stop: StopRequest) -> None:
        """Train the seeds that are not finished. The results are in the folders of the runs.

        Raises:
            Stopped: a stop was requested. All runs have saved their states.
            StsbpError: one of the runs failed. The others were stopped and have saved their states.
        """
        pending_seeds = [seed for seed in experiment.seeds if experiment.reported(experiment.folder(seed)) is None]
        running: list[_Job] = []
        with tempfile.TemporaryDirectory(prefix="stsbp-") as settings, contextlib.ExitStack() as stack:
            stack.callback(_end, running)
            while pending_seeds or running:
                while pending_seeds and len(running) < self.jobs:
                    seed = pending_seeds.pop(0)
                    config = experiment.config.model_copy(update={"seed": seed})
                    running.append(self._start_job(config, experiment.folder(seed).path, Path(settings)))
                time.sleep(_PAUSE)
                if stop_signal := stop.requested():
                    _end(running, max(stop_signal, 0) or _SIGTERM)
                    stop.obey(stop_signal)
                for job in running:
                    if job.process.poll() is None and job.was_stopped():
                        process = job.process.pid
                        self.print_line(
                            f"seed {job.seed}: its process {process} was stopped by a signal, and the experiment waits "
                            f"for it; to continue it, run: kill -CONT {process}"
                        )
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    job.wait()
                    if job.process.returncode != 0:
                        raise StsbpError(
                            f"the training of seed {job.seed} ended with exit code {job.process.returncode}. To "
                            f"continue, run {same_command(sys.argv)} again. Its last output:\n{job.last_output()}"
                        )

    def _start_job(self, config: RunConfig, path: Path, settings: Path) -> _Job:
        file = settings / f"seed-{config.seed}.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        several = [] if self.processes is None else ["--processes", str(self.processes)]
        timeout = ["--rank-timeout", str(self.rank_timeout)]
        train = ["train", "--config", str(file), "--out", str(path), *several, *timeout, "--resume"]
        threads_each = config.threads or max(1, thread_count() // self.jobs)
        return _Job(config.seed, [*self.options, *train], threads_each, self.print_line)


class _Job(Started):
    """A process that trains one seed."""

    def __init__(self, seed: int, arguments: Sequence[str], threads: int, print_line: Callable[[str], None]) -> None:
        self.seed, self._print_line = seed, print_line
        # With one common port, only one of several jobs could use it.
        variables = {**dict.fromkeys(THREADS, threads), "MASTER_PORT": None}
        super().__init__(arguments, variables, _LINES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def on_line(self, line: str) -> None:
        self._print_line(f"seed {self.seed}: {line}")

    def wait(self) -> None:
        """Wait until the process ends."""
        self.process.wait()
        self.own_end.close()


def _end(jobs: Sequence[_Job], number: int = _SIGTERM) -> None:
    """Send a signal to all of them, so that they save and end."""
    for job in jobs:
        job.send_signal(number)
    for job in jobs:
        job.wait()
