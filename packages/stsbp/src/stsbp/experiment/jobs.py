"""Parallel training of an experiment's seeds. Each is trained by `stsbp train` in its folder, in its own process."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsbp.config import RunConfig
from stsbp.errors import StsbpError
from stsbp.experiment.run import Experiment, same_command
from stsbp.processes.job import SIGTERM, Job, end_jobs, run_words, threads_each
from stsbp.training.loop import StopRequest

__all__ = ["SideBySide"]

_PAUSE = 0.05


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
        running: list[Job] = []
        with tempfile.TemporaryDirectory(prefix="stsbp-") as settings, contextlib.ExitStack() as stack:
            stack.callback(end_jobs, running)
            while pending_seeds or running:
                while pending_seeds and len(running) < self.jobs:
                    seed = pending_seeds.pop(0)
                    config = experiment.config.model_copy(update={"seed": seed})
                    running.append(self._start_job(config, experiment.folder(seed).path, Path(settings)))
                time.sleep(_PAUSE)
                if stop_signal := stop.requested():
                    end_jobs(running, max(stop_signal, 0) or SIGTERM)
                    stop.obey(stop_signal)
                for job in running:
                    job.tell_if_stopped("experiment")
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    job.wait()
                    if job.process.returncode != 0:
                        raise StsbpError(
                            f"the training of {job.name} ended with exit code {job.process.returncode}. To "
                            f"continue, run {same_command(sys.argv)} again. Its last output:\n{job.last_output()}"
                        )

    def _start_job(self, config: RunConfig, path: Path, settings: Path) -> Job:
        several = [] if self.processes is None else ["--processes", str(self.processes)]
        timeout = ["--rank-timeout", str(self.rank_timeout)]
        train = [*run_words(config, settings / f"seed-{config.seed}.toml", path), *several, *timeout]
        return Job(f"seed {config.seed}", [*self.options, *train], threads_each(config, self.jobs), self.print_line)
