"""The processes of a command: joined, compared, watched, and ended together."""

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
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.collective import Collective, Part, Rendezvous, parts_of
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp.errors import understood
from stsbp.interrupts import EXIT_CODE, INTERRUPTED
from stsbp.processes.identity import compare, compare_settings, own_identity
from stsbp.processes.launcher import Parent, parent
from stsbp.processes.monitor import Member, Monitor, Pulse, Verdict

__all__ = ["PER_PROCESS", "ExchangeError", "Group", "Watch", "join"]

T = TypeVar("T")

PER_PROCESS = frozenset({"threads", "data_dir"})
"""Settings that may be others on another machine."""
_HERE = ("127.0.0.1", "localhost", "::1")
_CLOSED_PIPE = 141


class ExchangeError(BackendError):
    """An exchange with the other processes failed, for example because one of them ended."""


_EXCHANGES = ("largest", "start_total", "gather", "broadcast")


class Watch:
    """Has a collective tell a pulse when it waits, and takes the time.

    Its methods are replaced on the object: a backend knows its own collective by its type.

    Attributes:
        seconds: spent in exchanges so far.
    """

    def __init__(self, collective: Collective[Any], pulse: Pulse) -> None:
        self.pulse, self.seconds = pulse, 0.0
        self._depth = 0
        for name in _EXCHANGES:
            setattr(collective, name, self._watched(getattr(collective, name)))
        collective.beat = pulse.beat  # type: ignore[method-assign]

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def exchange(*arguments: Any) -> Any:
            with self.exchange():
                found = method(*arguments)
            # What `start_total` returns waits.
            return self._watched(found) if callable(found) else found

        return exchange

    @contextlib.contextmanager
    def exchange(self, *, timed: bool = True) -> Iterator[None]:
        """An exchange with the others; one within another is a part of it. Not `timed`: a program with some in it."""
        began, self._depth = time.perf_counter(), self._depth + 1
        if self._depth == 1:
            self.pulse.enter(computes=not timed)
        try:
            yield
        except BackendError as error:
            raise ExchangeError(str(error)) from error
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.pulse.leave()
                self.seconds += (time.perf_counter() - began) * timed


class Group:
    """The processes of a command, this one among them; as a context manager it ends with them.

    Within it an error of one process ends all of them, with one message.

    Attributes:
        rank, size: of this process.
        collective: what is computed travels by; None where there is one process.
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
        """Seconds that this process spent in exchanges."""
        return 0.0

    def advise(self, text: str) -> None:
        """What the message is to say besides where a process is lost."""

    def beat(self, what: str) -> None:
        """Something new begins, for example a file."""

    def stepping(self) -> contextlib.AbstractContextManager[None]:
        """While a step is computed: a backend may have its exchanges within compiled programs."""
        return contextlib.nullcontext()

    def parts(self, batch: int) -> tuple[Part, ...]:
        """Which samples of a batch each process has."""
        return parts_of(batch, self.size) if self.collective is None else self.collective.parts(batch)

    def part(self, batch: int) -> Part:
        """Which samples of a batch this process has."""
        return self.parts(batch)[self.rank]

    def share(self, value: T | None) -> T:
        """What rank 0 gives, values of JSON; the others give None."""
        return json.loads(self.share_bytes(json.dumps(value).encode() if self.leads else None))  # type: ignore[no-any-return]

    def share_bytes(self, data: bytes | None) -> bytes:
        """What rank 0 gives; the others give None."""
        if self.collective is None:
            assert data is not None
            return data
        return self.collective.broadcast(data)

    def gather(self, numbers: Sequence[float]) -> AnyArray:
        """Numbers of every process, `[size, ...]` float64."""
        own = np.array(numbers, np.float64)
        return own[None] if self.collective is None else np.stack(self.collective.gather(own))

    def gather_values(self, value: T) -> list[T]:
        """Values of JSON of every process."""
        if self.collective is None:
            return [value]
        found = self.collective.gather(np.frombuffer(json.dumps(value).encode(), np.uint8))
        return [json.loads(np.asarray(x, np.uint8).tobytes()) for x in found]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.collective is not None:
            self.collective.barrier()

    def compare_settings(self, asked: Mapping[str, Any]) -> None:
        """See that all were asked for the same, but for what may differ.

        Raises:
            ConfigError: a process was asked for something else.
        """
        if self.size > 1:
            shown = {name: value for name, value in asked.items() if name not in PER_PROCESS}
            compare_settings(self.members, self.gather_values(shown))

    def compare_data(self, fingerprint: str) -> None:
        """See that all have the same data.

        Raises:
            ConfigError: a process has others.
        """
        if self.size > 1:
            compare(self.members, self.gather_values({"data": fingerprint}))

    def one_by_one(self, work: Callable[[], T]) -> T:
        """`work` that fills a cache: rank 0 first, then one process of every machine, then all others."""
        if self.size == 1:
            return work()
        hosts = [member.host for member in self.members]
        first = hosts.index(hosts[self.rank]) == self.rank
        turn = 0 if self.leads else 1 if first else 2
        found: list[T] = []
        for number in range(3):
            if number == turn:
                found.append(work())
            self.barrier()
        return found[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Joined(Group):
    def __init__(self, collective: Collective[Any], monitor: Monitor, pulse: Pulse) -> None:
        self.rank, self.size, self.collective = collective.rank, collective.size, collective
        self._monitor, self._pulse, self._watch = monitor, pulse, Watch(collective, pulse)
        self._parent: Parent | None = None
        self._trace, self._failed = "", ""

    def start(self, rendezvous: Rendezvous, backend: AbstractBackend) -> None:
        """Get to know the others, let the monitor begin, and compare what all of them run."""
        assert self.collective is not None
        me = self._monitor.me
        engine = self.collective.engine or type(self.collective).__name__
        own: dict[str, Any] = {"host": me.host, "pid": me.pid, "identity": own_identity(backend, engine)}
        found = self.gather_values(own)
        self.members = [Member(rank, self.size, its["host"], its["pid"]) for rank, its in enumerate(found)]
        self._parent = parent()
        if self._parent is not None:
            self._parent.follow()
        if self.leads:
            port, word = self._monitor.listen("127.0.0.1" if rendezvous.address in _HERE else "")
            self._monitor.watch(self.members)
            self.share([port, word])
        else:
            port, word = self.share(None)
            self._connect((rendezvous.address, self.members[0].host), port, word)
        # Nobody goes on before all are watched.
        self.barrier()
        compare(self.members, [its["identity"] for its in found])

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

    def beat(self, what: str) -> None:
        self._pulse.beat(what)

    def stepping(self) -> contextlib.AbstractContextManager[None]:
        fused = getattr(self.collective, "in_programs", False)
        return self._watch.exchange(timed=False) if fused else contextlib.nullcontext()

    def end(self, verdict: Verdict) -> None:
        """End this process; called in the monitor's thread. Every file is either whole or as it was."""
        with contextlib.suppress(OSError, ValueError):
            # That of an exchange which another process broke says nothing.
            own = str(self._monitor.me) in verdict.message or (self.leads and verdict.message == self._failed)
            trace = self._trace if own else ""
            if sys.stderr.isatty():
                # A bar may have hidden it.
                sys.stderr.write("\x1b[?25h\n")
            told = self._parent is not None and self._parent.tell(verdict, self._monitor.advice, trace)
            if (text := str(verdict)) and not told:
                sys.stderr.write(f"{trace}{text}\n")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(verdict.code)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            self._monitor.close()
            assert self.collective is not None
            # All are through: whoever leaves first may break what others close.
            with contextlib.suppress(BackendError, RuntimeError):
                self.collective.close()
        elif isinstance(error, BrokenPipeError):
            self._monitor.fail("", _CLOSED_PIPE)
        elif isinstance(error, KeyboardInterrupt):
            self._monitor.fail(INTERRUPTED, EXIT_CODE)
        elif (known := understood(error)) is not None:
            self._monitor.fail(str(known), known.exit_code, broken=isinstance(error, ExchangeError))
        else:
            self._trace = "".join(traceback.format_exception(kind, error, trace))
            self._failed = f"{type(error).__name__}: {error}"
            self._monitor.fail(self._failed, 1, broken=True)


def join(backend: AbstractBackend, rendezvous: Rendezvous | None, timeout: float) -> Group:
    """The processes that a launcher has started, or this one alone.

    Args:
        backend: what computes in this process.
        rendezvous: where the processes meet; None: there are no others.
        timeout: seconds after which a process that does not move is lost.

    Raises:
        BackendError: the backend computes in one process only, or the others did not come.
    """
    if rendezvous is None:
        return Group()
    pulse = Pulse()
    collective = backend.join(rendezvous)
    me = Member(rendezvous.rank, rendezvous.size, socket.gethostname(), os.getpid())
    group = _Joined(collective, Monitor(pulse, me, timeout, lambda verdict: group.end(verdict)), pulse)
    try:
        group.start(rendezvous, backend)
    except BaseException as error:
        # An error of the comparison is one of all.
        group.__exit__(type(error), error, error.__traceback__)
        raise
    return group
