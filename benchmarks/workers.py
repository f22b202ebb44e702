"""Processes that compute when they are asked to: lines of JSON on their standard input and output.

The measuring side has `Worker`, the process calls `serve`. Needs nothing but Python, because a process may live in the
environment of another library, or import the packages of another checkout. While it waits it uses no processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


class WorkerError(RuntimeError):
    """A process did not start, took too long to, or ended before its answer; `reason` is that without its name."""

    def __init__(self, worker: Worker, reason: str) -> None:
        super().__init__(f"{worker.name}: {reason}; all that it printed is in {worker.log}")
        self.reason = reason


class Worker:
    """A process that is to serve. `wait` for it before anything else begins, because it computes from its start on.

    Args:
        name: in messages.
        command: of the process.
        log: file of what it prints, besides its answers.
        environment: its variables; None: those of this process.
    """

    def __init__(
        self, name: str, command: Sequence[object], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log, self.ready = name, log, dict[str, Any]()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end, or end it."""
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def wait(self, patience: float) -> Worker:
        """Wait until it is warm; `ready` is then what it says of itself.

        Raises:
            WorkerError: it ended, or took more than `patience` seconds and was ended.
        """
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            self.process.kill()

        limit = threading.Timer(patience, end)
        limit.start()
        try:
            self.ready = self.answer()
        except WorkerError:
            if overdue.is_set():
                raise WorkerError(self, f"not ready after {patience:.0f} s") from None
            raise
        finally:
            limit.cancel()
        return self

    def tell(self, request: str, *arguments: object) -> None:
        """Send a request; `answer` waits for what it says."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([request, *arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def answer(self) -> dict[str, Any]:
        """Wait for what it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: str, *arguments: object) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            WorkerError: the process ended.
        """
        self.tell(request, *arguments)
        return self.answer()

    def _ended(self) -> NoReturn:
        last = self.log.read_text().strip().rpartition("\n")[2]
        raise WorkerError(self, f"exit code {self.process.wait()}: {last}")


def serve(prepare: Callable[[], tuple[Mapping[str, Any], Mapping[str, Callable[..., Mapping[str, Any]]]]]) -> None:
    """Answer requests until standard input ends.

    Args:
        prepare: warms up, and returns what the process says of itself and a function for each request.
    """
    # What a library prints must not come between the lines of the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ready, requests = prepare()
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        print(json.dumps(requests[request](*arguments)), file=answers)
