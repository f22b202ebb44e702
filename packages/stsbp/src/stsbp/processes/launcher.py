"""Starts the processes of `--processes` on this machine, and manages their signals, output, messages and exit code.

Every process runs the same command with the variables of torchrun. Rank 0 uses the terminal. The output of the other
processes is only shown if one of them fails by itself. Each process is connected to this one by a socket. Through the
socket, the process notices when this one is gone, and tells it why it ends, so that the reason is printed only once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import click
from stsbp_spec.distributed.rendezvous import free_port

from stsbp.errors import NO_WORKING_FOLDER, ConfigError
from stsbp.interrupts import INTERRUPTED, handled_by
from stsbp.processes.channel import Channel
from stsbp.processes.monitor import LOST, Verdict
from stsbp.threads import THREADS, thread_count

__all__ = ["LAUNCHER", "Parent", "Started", "launch", "parent"]

LAUNCHER = "STSBP_LAUNCHER"
"""Variable with the number of the socket to the process that started this one."""
PATIENCE = 3.0
"""Time in seconds that the other processes have to end by themselves after one has failed."""
_LINES = 40
"""Number of last lines of a process that are printed if it fails: enough for a traceback."""
_LONGEST_TRACE = 2**16
"""Largest number of characters of a traceback in a message. A message has at most 2^20 bytes (channel.py)."""


class Started:
    """`stsbp ARGUMENTS` in its own process. It stops as after SIGTERM when this process is gone.

    Args:
        arguments: arguments of the command line.
        variables: changes of the environment variables; None: the variable is removed.
        line_count: number of last lines to keep from its output to a pipe.
        output: where its output goes, as for `subprocess.Popen`.
    """

    def __init__(
        self, arguments: Sequence[str], variables: Mapping[str, object], line_count: int, **output: int
    ) -> None:
        self.own_end, child_end = socket.socketpair()
        environment = {**os.environ, **variables, LAUNCHER: child_end.fileno()}
        self._lines: deque[str] = deque(maxlen=line_count)
        self.process: subprocess.Popen[str] = subprocess.Popen(
            # Without -P, Python would import modules of the current folder in place of its own and of libraries.
            [sys.executable, "-P", "-m", "stsbp", *arguments],
            stdin=subprocess.DEVNULL,
            env={name: str(value) for name, value in environment.items() if value is not None},
            pass_fds=(child_end.fileno(),),
            # Only this process receives Ctrl-C, and passes it on once.
            start_new_session=True,
            text=True,
            errors="backslashreplace",
            **output,  # type: ignore[call-overload]
        )
        child_end.close()
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()

    def _read_lines(self) -> None:
        for line in self.process.stdout or self.process.stderr or ():
            self._lines.append(line.rstrip("\n"))
            self.on_line(line.rstrip())

    def on_line(self, line: str) -> None:
        """Called for each line, in another thread."""

    def last_output(self) -> str:
        """The last lines that it printed."""
        self._reader.join(1.0)
        return "\n".join(self._lines)

    def send_signal(self, number: int) -> None:
        """Pass a signal on. A stopped process is continued, because it would not receive the signal."""
        with contextlib.suppress(OSError):
            self.process.send_signal(number)
            if hasattr(signal, "SIGCONT"):
                self.process.send_signal(signal.SIGCONT)

    def was_stopped(self) -> bool:
        """Whether a signal such as SIGSTOP has stopped the process since the last call."""
        # Systems without `waitid` do not tell.
        with contextlib.suppress(AttributeError, ChildProcessError):
            return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG) is not None
        return False


class _Child(Started):
    """One of several processes, and how it ended."""

    def __init__(self, arguments: Sequence[str], rank: int, size: int, port: int, threads: int) -> None:
        variables = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            **dict.fromkeys(THREADS, threads),
        }
        # Only the first process uses the terminal. The last lines of the others are kept.
        quiet = {} if rank == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        super().__init__(arguments, variables, _LINES, **quiet)
        self.rank, self.channel, self.verdict = rank, Channel(self.own_end), dict[str, object]()
        self.killed = False
        self.ended_at = float("inf")
        """The time at which its end was noticed."""

    def kill(self) -> None:
        """End the process and all processes that it started."""
        self.killed = True
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def code(self) -> int | None:
        """Its exit code. Negative: the signal that ended it. None: it is still running."""
        code = self.process.poll()
        if code is not None:
            self.ended_at = min(self.ended_at, time.monotonic())
        return code


def launch(arguments: Sequence[str], size: int, threads: int = 0) -> int:
    """Run `stsbp ARGUMENTS` in `size` processes on this machine. Returns the exit code.

    Args:
        arguments: arguments of the command line.
        size: number of processes.
        threads: threads of each process; 0: the threads of one process are divided among them.

    Raises:
        ConfigError: the operating system does not let processes inherit sockets.
    """
    if sys.platform == "win32":
        raise ConfigError("--processes starts processes on Linux and macOS; elsewhere start them with torchrun")
    try:
        os.getcwd()
    except FileNotFoundError as error:
        # The libraries of the started processes would end with messages of their own.
        raise ConfigError(NO_WORKING_FOLDER) from error
    threads_each = threads or max(1, thread_count() // size)
    port = int(master_port) if (master_port := os.environ.get("MASTER_PORT", "")).isdecimal() else free_port()
    children: list[_Child] = []
    with _passing_signals_on(children) as passed_signals:
        try:
            for rank in range(size):
                children.append(_Child(arguments, rank, size, port, threads_each))
            _supervise(children)
        finally:
            for child in children:
                if child.code is None:
                    child.kill()
                    child.process.wait()
    verdict = _outcome(children, passed_signals)
    for text in (*(str(child.verdict.get("trace", "")).rstrip() for child in children), str(verdict)):
        with contextlib.suppress(OSError):
            if text:
                click.echo(text, err=True)
    return verdict.code


@contextlib.contextmanager
def _passing_signals_on(children: list[_Child]) -> Iterator[set[int]]:
    """Pass signals on to all processes. Yields the set of signals that were passed on."""
    passed_signals: set[int] = set()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed_signals.add(number)
        for child in children:
            child.send_signal(number)

    with handled_by(pass_on):
        yield passed_signals


def _supervise(children: list[_Child]) -> None:
    """Wait until all have ended. After one has failed, end those that do not end by themselves."""
    deadline = float("inf")
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.channel, selectors.EVENT_READ, child)
        while any(child.code is None for child in children):
            _read_messages(selector, 0.1)
            if not selector.get_map():
                # All have closed their sockets, and are about to end.
                time.sleep(0.01)
            now = time.monotonic()
            if any(child.verdict or child.code not in (None, 0) for child in children):
                deadline = min(deadline, now + PATIENCE)
            if now >= deadline:
                for child in children:
                    if child.code is None:
                        child.kill()
        # Read what they sent just before they ended.
        while _read_messages(selector, 0):
            pass


def _read_messages(selector: selectors.BaseSelector, timeout: float) -> bool:
    """Read what has arrived from the processes, within `timeout` seconds. False: nothing."""
    ready = selector.select(timeout)
    for key, _ in ready:
        child: _Child = key.data
        try:
            messages = child.channel.arrived()
        except (OSError, ValueError):
            messages = None
        if messages is None:
            selector.unregister(child.channel)
        for message in messages or ():
            child.verdict = message
    return bool(ready)


def _outcome(children: list[_Child], passed_signals: set[int]) -> Verdict:
    """How all processes have ended. The message is empty if they printed it themselves."""
    size = len(children)
    ended_by_signal = [child for child in children if child.code is not None and child.code < 0 and not child.killed]
    if ended_by_signal:
        # The cause of the first end may have ended others a little later.
        child = min(ended_by_signal, key=lambda child: child.ended_at)
        number = -(child.code or 0)
        if number in passed_signals:
            # The signal came before there was anything to save. If rank 0 ended by itself, it printed a message.
            silent = number == signal.SIGINT and (children[0].code or 0) < 0
            return Verdict(INTERRUPTED if silent else "", 128 + number)
        name = signal.Signals(number).name if number in signal.valid_signals() else "unknown"
        advice = next((str(c.verdict["advice"]) for c in children if c.verdict.get("advice")), "")
        process_name = f"rank {child.rank} of {size} (pid {child.process.pid})"
        return Verdict(f"{process_name} was ended by signal {number} ({name}){advice}", LOST)
    for child in children:
        if child.verdict:
            code = child.verdict.get("code")
            return Verdict(str(child.verdict.get("end", "")), code if isinstance(code, int) else 1)
    if children[0].code and children[0].code > 0:
        # Rank 0 uses the terminal, and printed the reason.
        return Verdict("", children[0].code)
    for child in children:
        if child.code is not None and child.code > 0:
            process_name = f"rank {child.rank} of {size} (pid {child.process.pid})"
            return Verdict(
                f"{process_name} ended with exit code {child.code}\n{child.last_output()}".rstrip(), child.code
            )
    return Verdict("", LOST if any(child.killed for child in children) else 0)


class Parent:
    """The process that started this one for `--processes`, as seen from this process."""

    def __init__(self, descriptor: int) -> None:
        connection = socket.socket(fileno=descriptor)
        connection.set_inheritable(False)
        self._channel = Channel(connection)

    def send_verdict(self, verdict: Verdict, advice: str, trace: str = "") -> bool:
        """Send a verdict, and the traceback of a bug in this process. False: nobody receives it."""
        try:
            message = {"end": verdict.message, "code": verdict.code, "advice": advice, "trace": trace[-_LONGEST_TRACE:]}
            self._channel.send(message)
        except OSError:
            return False
        return True

    def stop_with_parent(self) -> None:
        """Stop as after SIGTERM when the parent process is gone."""
        threading.Thread(target=self._wait_for_parent, name="stsbp-parent", daemon=True).start()

    def _wait_for_parent(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._channel.arrived() is not None:
                pass
        os.kill(os.getpid(), signal.SIGTERM)


def parent() -> Parent | None:
    """The process of this program that started this one; None if it was started in another way."""
    # Processes started by this one must have neither the variable nor the socket.
    text = os.environ.pop(LAUNCHER, "")
    try:
        return Parent(int(text)) if text.isdecimal() else None
    except (OSError, OverflowError):
        return None
