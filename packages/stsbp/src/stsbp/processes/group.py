"""The processes of a command: they are connected, compared, monitored, and ended together."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from stsbp_spec.distributed.collective import BatchSlice, Collective, Rendezvous, parts_of
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp.errors import understood
from stsbp.interrupts import EXIT_CODE, INTERRUPTED
from stsbp.processes.identity import compare, compare_data, compare_settings, own_identity
from stsbp.processes.launcher import Parent, parent
from stsbp.processes.monitor import Member, Monitor, ProcessProgress, Verdict

__all__ = ["PER_PROCESS", "ExchangeError", "ExchangeMonitor", "Group", "join"]

T = TypeVar("T")

PER_PROCESS = frozenset({"threads", "data_dir"})
"""Settings that may differ between machines."""
_CLOSED_PIPE = 141


class ExchangeError(BackendError):
    """An exchange with the other processes failed, for example because one of them ended."""


_EXCHANGES = ("largest", "start_total", "gather", "broadcast")


class ExchangeMonitor:
    """Makes a collective report to `own_progress` when it waits, and measures the time.

    It replaces methods of the object, and not its class, because a backend recognises its own collective by the type.

    Attributes:
        seconds: total time in exchanges so far.
    """

    def __init__(self, collective: Collective[Any], own_progress: ProcessProgress) -> None:
        self.own_progress, self.seconds = own_progress, 0.0
        self._depth = 0
        for name in _EXCHANGES:
            setattr(collective, name, self._watched(getattr(collective, name)))
        collective.beat = own_progress.beat  # type: ignore[method-assign]

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def exchange(*arguments: Any) -> Any:
            with self.exchange():
                output = method(*arguments)
            # The function that `start_total` returns waits.
            return self._watched(output) if callable(output) else output

        return exchange

    @contextlib.contextmanager
    def exchange(self, *, timed: bool = True) -> Iterator[None]:
        """An exchange with the others. Nested exchanges count as one. Not `timed`: a program that contains
        exchanges."""
        began, self._depth = time.perf_counter(), self._depth + 1
        if self._depth == 1:
            self.own_progress.enter(computes=not timed)
        try:
            yield
        except BackendError as error:
            raise ExchangeError(str(error)) from error
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.own_progress.leave()
                self.seconds += (time.perf_counter() - began) * timed


class Group:
    """The processes of a command, including this one. As a context manager, it ends together with them.

    Within it, an error of one process ends all of them, with one message.

    Attributes:
        rank, size: rank of this process, and number of processes.
        collective: exchanges results of computations; None if there is one process.
        members: all processes.
    """

    rank = 0
    size = 1
    collective: Collective[Any] | None = None
    members: Sequence[Member] = ()

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def waited(self) -> float:
        """Time in seconds that this process has spent in exchanges."""
        return 0.0

    def advise(self, text: str) -> None:
        """Set additional text for the message about a lost process."""

    def beat(self, activity: str) -> None:
        """Report that something new begins, for example a file."""

    def stepping(self) -> contextlib.AbstractContextManager[None]:
        """Context of a step. Backends may have exchanges inside of compiled programs."""
        return contextlib.nullcontext()

    def parts(self, batch: int) -> tuple[BatchSlice, ...]:
        """The part of a batch that each process has."""
        return parts_of(batch, self.size) if self.collective is None else self.collective.parts(batch)

    def part(self, batch: int) -> BatchSlice:
        """The part of a batch that this process has."""
        return self.parts(batch)[self.rank]

    def share(self, value: T | None) -> T:
        """The JSON values of rank 0. All other ranks pass None."""
        return json.loads(self.share_bytes(json.dumps(value).encode() if self.leads else None))  # type: ignore[no-any-return]

    def share_bytes(self, data: bytes | None) -> bytes:
        """The bytes of rank 0. All other ranks pass None."""
        if self.collective is None:
            assert data is not None
            return data
        return self.collective.broadcast(data)

    def gather(self, numbers: Sequence[float]) -> AnyArray:
        """The numbers of every process, `[size, ...]` float64."""
        local_numbers = np.array(numbers, np.float64)
        return local_numbers[None] if self.collective is None else np.stack(self.collective.gather(local_numbers))

    def gather_values(self, value: T) -> list[T]:
        """The JSON values of every process."""
        if self.collective is None:
            return [value]
        encoded_values = self.collective.gather(np.frombuffer(json.dumps(value).encode(), np.uint8))
        return [json.loads(np.asarray(encoded, np.uint8).tobytes()) for encoded in encoded_values]

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.collective is not None:
            self.collective.barrier()

    def compare_settings(self, settings: Mapping[str, Any]) -> None:
        """Check that all processes have the same settings, except those that may differ.

        Raises:
            ConfigError: a process has other settings.
        """
        if self.size > 1:
            shown = {name: value for name, value in settings.items() if name not in PER_PROCESS}
            compare_settings(self.members, self.gather_values(shown))

    def compare_data(self, contents: Mapping[str, str]) -> None:
        """Check that all processes have the same data, described by name (`stsbp.training.build.Data.contents`).

        Raises:
            ConfigError: a process has other data.
        """
        if self.size > 1:
            compare_data(self.members, self.gather_values(dict(contents)))

    def one_by_one(self, work: Callable[[], T]) -> T:
        """Run `work`, which fills a cache: first on rank 0, then in one process per machine, then in all others."""
        if self.size == 1:
            return work()
        hosts = [member.host for member in self.members]
        first = hosts.index(hosts[self.rank]) == self.rank
        turn = 0 if self.leads else 1 if first else 2
        outputs: list[T] = []
        for number in range(3):
            if number == turn:
                outputs.append(work())
            self.barrier()
        return outputs[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Joined(Group):
    def __init__(self, collective: Collective[Any], monitor: Monitor, own_progress: ProcessProgress) -> None:
        self.rank, self.size, self.collective = collective.rank, collective.size, collective
        self._monitor, self._progress, self._watch = monitor, own_progress, ExchangeMonitor(collective, own_progress)
        self._parent: Parent | None = None
        self._trace, self._failed = "", ""

    def start(self, rendezvous: Rendezvous, backend: AbstractBackend) -> None:
        """Exchange information with the others, start the monitor, and compare the software of all processes."""
        assert self.collective is not None
        me = self._monitor.me
        engine = self.collective.engine or type(self.collective).__name__
        description: dict[str, Any] = {"host": me.host, "pid": me.pid, "identity": own_identity(backend, engine)}
        descriptions = self.gather_values(description)
        self.members = [
            Member(rank, self.size, member_description["host"], member_description["pid"])
            for rank, member_description in enumerate(descriptions)
        ]
        self._parent = parent()
        if self._parent is not None:
            self._parent.stop_with_parent()
        if self.leads:
            port, word = self._monitor.listen(rendezvous.address)
            self._monitor.watch(self.members)
            self.share([port, word])
        else:
            port, word = self.share(None)
            self._connect((rendezvous.address, self.members[0].host), port, word)
        # No process continues before all are monitored.
        self.barrier()
        compare(self.members, [member_description["identity"] for member_description in descriptions])

    def _connect(self, addresses: Sequence[str], port: int, word: str) -> None:
        for address in addresses:
            try:
                self._monitor.connect(address, port, word, self.members[0])
                return
            except OSError as error:
                problem = error
        raise BackendError(
            f"{self._monitor.me} cannot reach {self.members[0]} at port {port} of {addresses[0]}: "
            f"{problem.strerror or problem}; ports above 1024 must be open between the machines"
        )

    def advise(self, text: str) -> None:
        self._monitor.advice = text

    @property
    def waited(self) -> float:
        return self._watch.seconds

    def beat(self, activity: str) -> None:
        self._progress.beat(activity)

    def stepping(self) -> contextlib.AbstractContextManager[None]:
        fused = getattr(self.collective, "in_programs", False)
        return self._watch.exchange(timed=False) if fused else contextlib.nullcontext()

    def end(self, verdict: Verdict) -> None:
        """End this process. It is called in the monitor's thread. Every file is either complete or unchanged."""
        with contextlib.suppress(OSError, ValueError):
            # The traceback of an exchange that another process broke is of no use.
            is_own_error = str(self._monitor.me) in verdict.message or (self.leads and verdict.message == self._failed)
            trace = self._trace if is_own_error else ""
            if sys.stderr.isatty():
                # A progress bar may have hidden the cursor.
                sys.stderr.write("\x1b[?25h\n")
            is_told = self._parent is not None and self._parent.send_verdict(verdict, self._monitor.advice, trace)
            if (text := str(verdict)) and not is_told:
                sys.stderr.write(f"{trace}{text}\n")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(verdict.code)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            self._monitor.close()
            assert self.collective is not None
            # All processes are finished. The first one that leaves may break connections that the others are closing.
            with contextlib.suppress(BackendError, RuntimeError):
                self.collective.close()
        elif isinstance(error, BrokenPipeError):
            self._monitor.fail("", _CLOSED_PIPE)
        elif isinstance(error, KeyboardInterrupt):
            self._monitor.fail(INTERRUPTED, EXIT_CODE)
        elif (user_error := understood(error)) is not None:
            self._monitor.fail(str(user_error), user_error.exit_code, broken=isinstance(error, ExchangeError))
        else:
            self._trace = "".join(traceback.format_exception(error_type, error, trace))
            self._failed = f"{type(error).__name__}: {error}"
            self._monitor.fail(self._failed, 1, broken=True)


def join(backend: AbstractBackend, rendezvous: Rendezvous | None, timeout: float) -> Group:
    """Connect the processes that a launcher has started; or return a group of only this process.

    Args:
        backend: the backend of this process.
        rendezvous: where the processes meet; None: there are no others.
        timeout: time in seconds after which a process without progress counts as lost.

    Raises:
        BackendError: the backend supports only one process, or the other processes did not arrive.
    """
    if rendezvous is None:
        return Group()
    own_progress = ProcessProgress()
    collective = backend.join(rendezvous)
    me = Member(rendezvous.rank, rendezvous.size, socket.gethostname(), os.getpid())
    group = _Joined(collective, Monitor(own_progress, me, timeout, lambda verdict: group.end(verdict)), own_progress)
    try:
        group.start(rendezvous, backend)
    except BaseException as error:
        # An error of the comparison must reach all processes.
        group.__exit__(type(error), error, error.__traceback__)
        raise
    return group
