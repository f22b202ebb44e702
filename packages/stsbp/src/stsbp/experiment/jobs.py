"""Seeds of an experiment side by side: each is trained by `stsbp train` in its folder, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsbp.config import RunConfig, to_toml
from stsbp.errors import StsbpError
from stsbp.experiment.run import Experiment
from stsbp.processes.launcher import LAUNCHER, THREADS
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
                            f"the training of seed {job.seed} ended with exit code {job.process.returncode}; the same "
                            f"command goes on. It said:\n{job.said()}"
                        )

    def _begun(self, config: RunConfig, path: Path, settings: Path) -> _Job:
        file = settings / f"seed-{config.seed}.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        several = [] if self.processes is None else ["--processes", str(self.processes)]
        timeout = ["--rank-timeout", str(self.rank_timeout)]
        train = ["train", "--config", str(file), "--out", str(path), *several, *timeout, "--resume"]
        each = config.threads or max(1, thread_count() // self.jobs)
        return _Job(config.seed, [*self.options, *train], each, self.tell)


class _Job:
    """A process that trains a seed."""

    def __init__(self, seed: int, arguments: Sequence[str], threads: int, tell: Callable[[str], None]) -> None:
        self.seed, self._tell = seed, tell
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._here, there = socket.socketpair()
        environment = {**dict.fromkeys(THREADS, str(threads)), LAUNCHER: str(there.fileno())}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stsbp", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # At one port only one of several jobs could meet.
            env={**{name: value for name, value in os.environ.items() if name != "MASTER_PORT"}, **environment},
            pass_fds=(there.fileno(),),
            # Ctrl-C goes to this process alone, which passes it on once.
            start_new_session=True,
            text=True,
            errors="backslashreplace",
        )
        there.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line.rstrip("\n"))
            self._tell(f"seed {self.seed}: {line.rstrip()}")

    def said(self) -> str:
        """The last lines that it printed."""
        self._reader.join(1.0)
        return "\n".join(self._lines)

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""
        with contextlib.suppress(OSError):
            self.process.send_signal(number)

    def wait(self) -> None:
        """Wait for its end."""
        self.process.wait()
        self._here.close()


def _end(jobs: Sequence[_Job], number: int = _SIGTERM) -> None:
    """Let all of them save and end, by a signal."""
    for job in jobs:
        job.send_signal(number)
    for job in jobs:
        job.wait()
