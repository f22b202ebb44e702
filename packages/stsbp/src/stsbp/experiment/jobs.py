"""Seeds of an experiment side by side: each is trained by `stsbp train` in its folder, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsbp.config import RunConfig, to_toml
from stsbp.errors import StsbpError
from stsbp.experiment.run import Experiment
from stsbp.processes.launcher import THREADS, Started
from stsbp.threads import thread_count
from stsbp.training.loop import StopRequest

__all__ = ["SideBySide"]

_LINES = 20
_PAUSE = 0.05
_SIGTERM = 15


@dataclass(frozen=True)
class SideBySide:
    """How seeds are trained at once.

    Attributes:
        jobs: how many.
        options: those of `stsbp` itself, before the command: backend and device.
        processes: of each; None: one.
        rank_timeout: see `--rank-timeout`.
        tell: told the lines that they say, with the seed before them.
    """

    jobs: int
    options: Sequence[str]
    processes: int | None
    rank_timeout: float
    tell: Callable[[str], None]

    def train(self, experiment: Experiment, stop: StopRequest) -> None:
        """Train the seeds that are not over yet; what a process has trained is in the folder of its run.

        Raises:
            Stopped: a stop was asked for; all have saved.
            StsbpError: one of them failed; the others were stopped and have saved.
        """
        waiting = [seed for seed in experiment.seeds if experiment.reported(experiment.folder(seed)) is None]
        running: list[_Job] = []
        with tempfile.TemporaryDirectory(prefix="stsbp-") as settings, contextlib.ExitStack() as stack:
            stack.callback(_end, running)
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    seed = waiting.pop(0)
                    config = experiment.config.model_copy(update={"seed": seed})
                    running.append(self._begun(config, experiment.folder(seed).path, Path(settings)))
                time.sleep(_PAUSE)
                if asked := stop.asked():
                    _end(running, max(asked, 0) or _SIGTERM)
                    stop.obey(asked)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    job.wait()
                    if job.process.returncode != 0:
                        raise StsbpError(
                            f"the training of seed {job.seed} ended with exit code {job.process.returncode}. To "
                            f"continue, run the same command again. Its last output:\n{job.said()}"
                        )

    def _begun(self, config: RunConfig, path: Path, settings: Path) -> _Job:
        file = settings / f"seed-{config.seed}.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        several = [] if self.processes is None else ["--processes", str(self.processes)]
        timeout = ["--rank-timeout", str(self.rank_timeout)]
        train = ["train", "--config", str(file), "--out", str(path), *several, *timeout, "--resume"]
        each = config.threads or max(1, thread_count() // self.jobs)
        return _Job(config.seed, [*self.options, *train], each, self.tell)


class _Job(Started):
    """A process that trains a seed."""

    def __init__(self, seed: int, arguments: Sequence[str], threads: int, tell: Callable[[str], None]) -> None:
        self.seed, self._tell = seed, tell
        # At one port only one of several jobs could meet.
        variables = {**dict.fromkeys(THREADS, threads), "MASTER_PORT": None}
        super().__init__(arguments, variables, _LINES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def heard(self, line: str) -> None:
        self._tell(f"seed {self.seed}: {line}")

    def wait(self) -> None:
        """Wait for its end."""
        self.process.wait()
        self.here.close()


def _end(jobs: Sequence[_Job], number: int = _SIGTERM) -> None:
    """Let all of them save and end, by a signal."""
    for job in jobs:
        job.send_signal(number)
    for job in jobs:
        job.wait()
