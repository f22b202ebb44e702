"""Heartbeats: whether all processes of a run make progress. If one does not, all end.

Every process has a thread that sends rank 0 a heartbeat at least once per second: its progress, its current task, and
whether it waits for the others. Rank 0 decides which processes are lost. A process is lost if its connection closes,
if no message came for `--rank-timeout`, or if it made no progress for this time without waiting. Processes that wait
for a lost process are not lost. All processes then end with one message. If rank 0 falls silent, each of the others
ends by itself.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stsbp_spec.distributed.rendezvous import listener

from stsbp.errors import legible
from stsbp.interrupts import EXIT_CODE
from stsbp.processes.channel import Channel

__all__ = ["LOST", "FailureDetector", "Heartbeat", "Member", "Monitor", "ProcessProgress", "Verdict"]

LOST = 69
"""Exit code of every process if one was lost: EX_UNAVAILABLE of sysexits.h."""
COMPILING = 20
"""A process may compute for this multiple of `--rank-timeout` without progress, for example while it compiles."""
_BUSY = 0.05
"""A process counts as computing if it uses at least this share of a processor."""
_SETTLES = 1.0
"""Time in seconds in which other processes may report the same error, or closed connections may be noticed."""
_BREAKS = 3.0
"""The same after a failed exchange. Its cause is another process, which may be noticed a little later."""
_GREETS = 5.0
"""Time in seconds in which a new connection must send the secret word."""
_STRANGERS = 64
"""Largest number of open connections that have not sent the word, in addition to one per member."""
_GONE = "is gone: its connection closed, as when a process is killed or a machine fails"


def _silent(seconds: float) -> str:
    return f"gave no sign of life for {seconds:.0f} s: it is stopped, or cannot be reached"


def _encoded(word: object) -> bytes:
    # Messages may contain half of a surrogate pair.
    return str(word).encode(errors="surrogatepass")


def _allowed(timeout: float) -> str:
    return f"; --rank-timeout is {timeout:g} s"


@dataclass(frozen=True)
class Member:
    """A process of a run."""

    rank: int
    size: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Heartbeat:
    """What a process says about its progress.

    Attributes:
        progress: number of layers, updates, files and exchanges that it has done.
        activity: its current task.
        waits: whether it waits for the others.
        exchange: number of the exchange in which it waits, or of the last one.
        cpu: computing time in seconds. Time in exchanges does not count, even if waiting uses the processor.
    """

    progress: int
    activity: str
    waits: bool
    exchange: int
    cpu: float


@dataclass(frozen=True)
class Verdict:
    """The reason why all processes end, and the exit code."""

    message: str
    code: int

    def __str__(self) -> str:
        """The printed message. Empty if nothing should be printed."""
        if not self.message or self.code == EXIT_CODE:
            return self.message
        return f"Error: {legible(self.message)}"


class ProcessProgress:
    """The progress of this process. Computing threads update it, and the reporting thread reads it."""

    def __init__(self) -> None:
        self.progress, self.exchange, self.activity, self.waits = 0, 0, "starting", False
        self._entered: float | None = None

    def beat(self, activity: str) -> None:
        """Report that an activity begins."""
        self.progress += 1
        self.activity = activity

    def enter(self, *, computes: bool = False) -> None:
        """Report that an exchange begins. `computes`: it is part of a program that computes or is compiled."""
        self.exchange += 1
        self._entered = None if computes else time.process_time()
        self.waits = True

    def leave(self) -> None:
        """Report that the exchange is over."""
        self.progress += 1
        self.waits = False
        self._entered = None

    def heartbeat(self) -> Heartbeat:
        """The heartbeat to send."""
        entered = self._entered
        cpu = time.process_time() if entered is None else entered
        return Heartbeat(self.progress, self.activity, self.waits, self.exchange, cpu)


@dataclass
class _MemberState:
    """The last heartbeat of a member, and the times when it came, of the last progress and of the last computation."""

    heartbeat: Heartbeat
    received_at: float
    progressed_at: float
    computed_at: float


@dataclass
class _Fault:
    rank: int
    text: str
    code: int
    broken: bool
    reported_at: float


@dataclass
class FailureDetector:
    """Decides from the heartbeats of all members whether they must end, and why.

    Attributes:
        members: in the order of their ranks.
        timeout: allowed time in seconds without a heartbeat, or without progress.
        clock: returns the time.
        advice: end of the message about a lost process.
    """

    members: Sequence[Member]
    timeout: float
    clock: Callable[[], float] = time.monotonic
    advice: str = ""
    _states: dict[int, _MemberState] = field(default_factory=dict)
    _lost_ranks: dict[int, float] = field(default_factory=dict)
    _faults: list[_Fault] = field(default_factory=list)
    _finished_ranks: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        now = self.clock()
        for member in self.members:
            self._states[member.rank] = _MemberState(Heartbeat(0, "starting", False, 0, 0.0), now, now, now)

    def record_heartbeat(self, rank: int, heartbeat: Heartbeat) -> None:
        """A heartbeat has arrived."""
        now, member_state = self.clock(), self._states[rank]
        last_heartbeat = member_state.heartbeat
        if (heartbeat.progress, heartbeat.exchange, heartbeat.waits) != (
            last_heartbeat.progress,
            last_heartbeat.exchange,
            last_heartbeat.waits,
        ):
            member_state.progressed_at = member_state.computed_at = now
        elif heartbeat.cpu - last_heartbeat.cpu >= _BUSY * (now - member_state.received_at):
            member_state.computed_at = now
        member_state.heartbeat, member_state.received_at = heartbeat, now

    def fail(self, rank: int, text: str, code: int, *, broken: bool = False) -> None:
        """A member ends with an error. `broken`: an exchange failed, possibly because of another member."""
        self._faults.append(_Fault(rank, text, code, broken, self.clock()))

    def lose(self, rank: int) -> None:
        """The connection of a member was closed."""
        if rank not in self._finished_ranks:
            self._lost_ranks.setdefault(rank, self.clock())

    def finish(self, rank: int) -> None:
        """A member is finished."""
        self._finished_ranks.add(rank)

    @property
    def all_finished(self) -> bool:
        """Whether all members are finished."""
        return len(self._finished_ranks) == len(self.members)

    def verdict(self) -> Verdict | None:
        """Why all members must end now; None: they need not end."""
        now = self.clock()
        failed_ranks = {fault.rank for fault in self._faults}
        errors = [fault for fault in self._faults if not fault.broken]
        if errors:
            is_same_error = len({fault.text for fault in errors}) == 1
            # An error that all of them report does not belong to one process.
            if not (is_same_error and len(errors) == len(self.members)) and now - errors[0].reported_at < _SETTLES:
                return None
            return self._error(errors)
        # Also if it reported a failed exchange before: it would wait for the verdict, and not close its connection.
        if self._lost_ranks:
            return self._lost(next(iter(self._lost_ranks)), _GONE)
        for rank, member_state in self._states.items():
            if (
                rank not in self._finished_ranks
                and rank not in failed_ranks
                and now - member_state.received_at > self.timeout
            ):
                last_activity = f" (it was last heard at {self._activity_text(member_state.heartbeat)})"
                return self._lost(
                    rank, _silent(now - member_state.received_at) + last_activity + _allowed(self.timeout)
                )
        if self._faults and now - self._faults[0].reported_at >= _BREAKS:
            return self._error(self._faults)
        return None if self._faults else self._stuck(now)

    def _error(self, faults: list[_Fault]) -> Verdict:
        first = min(faults, key=lambda fault: (fault.reported_at - faults[0].reported_at > _SETTLES, fault.rank))
        alone = len({fault.text for fault in faults}) > 1 or len(faults) < len(self.members)
        return Verdict(f"{self.members[first.rank]}: {first.text}" if alone else first.text, first.code)

    def _stuck(self, now: float) -> Verdict | None:
        """A member without progress. If there are several, the one with the longest time without progress."""
        working = {
            rank: member_state for rank, member_state in self._states.items() if rank not in self._finished_ranks
        }
        idle = {
            rank: member_state
            for rank, member_state in working.items()
            if now - member_state.computed_at > self.timeout
            or now - member_state.progressed_at > COMPILING * self.timeout
        }
        not_waiting = {rank: member_state for rank, member_state in idle.items() if not member_state.heartbeat.waits}
        if not_waiting:
            rank = min(not_waiting, key=lambda rank: not_waiting[rank].progressed_at)
            seconds, activity = now - not_waiting[rank].progressed_at, self._activity_text(not_waiting[rank].heartbeat)
            return self._lost(rank, f"did nothing new for {seconds:.0f} s: {activity}{_allowed(self.timeout)}")
        if working and len(idle) == len(working):
            # All wait for each other, so a message is lost. The slowest member has not reached the last exchange.
            last = min(working, key=lambda rank: (working[rank].heartbeat.exchange, working[rank].progressed_at))
            slowest_exchange = working[last].heartbeat.exchange
            furthest_exchange = max(member_state.heartbeat.exchange for member_state in working.values())
            is_same = slowest_exchange == furthest_exchange
            comparison = "as all others do" if is_same else f"others in {furthest_exchange}"
            stall = f"waits in exchange {slowest_exchange} for {self.timeout:g} s, {comparison}"
            return self._lost(last, f"{stall}: a connection between the processes is lost{_allowed(self.timeout)}")
        return None

    @staticmethod
    def _activity_text(heartbeat: Heartbeat) -> str:
        return (
            f"exchange {heartbeat.exchange}, {heartbeat.activity}"
            if heartbeat.waits
            else f"{heartbeat.activity}, after exchange {heartbeat.exchange}"
        )

    def _lost(self, rank: int, reason: str) -> Verdict:
        return Verdict(f"{self.members[rank]} {reason}{self.advice}", LOST)


class Monitor:
    """The thread of a process that reports to rank 0. On rank 0, it is the thread that decides.

    Args:
        own_progress: progress of this process.
        me: this process.
        timeout: see `FailureDetector`.
        end: function that ends the process. It is called with the verdict, in the thread.
    """

    def __init__(
        self, own_progress: ProcessProgress, me: Member, timeout: float, end: Callable[[Verdict], None]
    ) -> None:
        self.own_progress, self.me, self.timeout, self.end = own_progress, me, timeout, end
        self.advice = ""
        self.interval = min(1.0, timeout / 8)
        self._leaving = threading.Event()
        self._over = threading.Event()
        self._outbox: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # Methods for rank 0.
    def listen(self, address: str) -> tuple[int, str]:
        """Start to listen for connections to `address`. Returns the port and the secret word of the others.

        Raises:
            OSError: the system has no free port.
        """
        self._word = os.urandom(16).hex()
        self._server = listener(address, 0, self.me.size)
        # A peer may already be gone before its connection is accepted.
        self._server.setblocking(False)
        return int(self._server.getsockname()[1]), self._word

    def watch(self, members: Sequence[Member]) -> None:
        """Start to detect failures of the members."""
        self._begin(lambda: self._detect_failures(FailureDetector(members, self.timeout)))

    # Methods for the other ranks.
    def connect(self, address: str, port: int, word: str, leader: Member) -> None:
        """Connect to rank 0, and start to report on this process.

        Raises:
            OSError: rank 0 cannot be reached.
        """
        connection = socket.create_connection((address, port), timeout=self.timeout)
        connection.settimeout(None)
        channel = Channel(connection)
        channel.send({"word": word, "rank": self.me.rank})
        self._begin(lambda: self._report_to_leader(channel, leader))

    # Methods for all ranks.
    def fail(self, text: str, code: int, *, broken: bool = False) -> None:
        """This process ends with an error. Tell the others, and wait for the verdict, which ends this process."""
        if self._thread is None:
            # There is no connection yet.
            return
        with self._lock:
            self._outbox.append({"failed": text, "code": code, "broken": broken})
        self._over.wait(self.timeout + 2 * _BREAKS)
        self.end(Verdict(f"{self.me}: {text}", code))

    def close(self) -> None:
        """This process is finished. Wait until all are."""
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()

    def _begin(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="stsbp-monitor", daemon=True)
        self._thread.start()

    def _take_messages(self) -> list[dict[str, Any]]:
        with self._lock:
            messages, self._outbox = self._outbox, []
        return messages

    def _detect_failures(self, detector: FailureDetector) -> None:
        """The thread of rank 0: read the heartbeats of all members, and end all when the detector says so."""
        with selectors.DefaultSelector() as selector, self._server:
            selector.register(self._server, selectors.EVENT_READ)
            channels: dict[Channel, int] = {}
            strangers: dict[Channel, float] = {}
            member_channels: dict[int, Channel] = {}
            last_sign_at = 0.0

            def drop(channel: Channel) -> None:
                selector.unregister(channel)
                del channels[channel]
                strangers.pop(channel, None)
                channel.close()

            while True:
                for key, _ in selector.select(min(0.1, self.interval)):
                    if key.fileobj is self._server:
                        # A connection that failed must not affect the others.
                        with contextlib.suppress(OSError):
                            connection, _ = self._server.accept()
                            connection.setblocking(True)
                            selector.register(channel := Channel(connection), selectors.EVENT_READ)
                            channels[channel], strangers[channel] = -1, time.monotonic()
                        continue
                    channel = key.fileobj  # type: ignore[assignment]
                    if not self._listen_to(detector, channel, channels, member_channels):
                        drop(channel)
                    elif channels[channel] >= 0:
                        strangers.pop(channel, None)
                for channel in self._unwelcome(strangers):
                    drop(channel)
                detector.advice = self.advice
                for failure in self._take_messages():
                    detector.fail(0, failure["failed"], failure["code"], broken=failure["broken"])
                if self._leaving.is_set():
                    detector.finish(0)
                if (now := time.monotonic()) - last_sign_at >= self.interval:
                    last_sign_at = now
                    detector.record_heartbeat(0, self.own_progress.heartbeat())
                    self._send(member_channels, {"here": True})
                if detector.all_finished:
                    self._send(member_channels, {"done": True})
                    break
                if (verdict := detector.verdict()) is not None:
                    self._send(member_channels, {"end": verdict.message, "code": verdict.code})
                    self.end(verdict)
                    break
        self._over.set()

    def _unwelcome(self, strangers: dict[Channel, float]) -> list[Channel]:
        """Connections that did not send the word in time; and the oldest ones, if there are too many."""
        now, surplus = time.monotonic(), len(strangers) - self.me.size - _STRANGERS
        return [
            channel
            for number, (channel, connected_at) in enumerate(strangers.items())
            if number < surplus or now - connected_at > _GREETS
        ]

    def _listen_to(
        self,
        detector: FailureDetector,
        channel: Channel,
        channels: dict[Channel, int],
        member_channels: dict[int, Channel],
    ) -> bool:
        """Process the messages of a member or a stranger. False: the connection is over."""
        rank = channels[channel]
        try:
            messages = channel.arrived()
        except (OSError, ValueError):
            messages = None
        for message in messages or ():
            if rank < 0:
                is_member = hmac.compare_digest(_encoded(message.get("word")), _encoded(self._word))
                claimed_rank = message.get("rank")
                if not is_member or not isinstance(claimed_rank, int) or not 0 < claimed_rank < self.me.size:
                    return False
                rank = channels[channel] = claimed_rank
                member_channels[rank] = channel
            elif "heartbeat" in message:
                detector.record_heartbeat(rank, Heartbeat(*message["heartbeat"]))
            elif "failed" in message:
                detector.fail(rank, message["failed"], message["code"], broken=message["broken"])
            elif "done" in message:
                detector.finish(rank)
        if messages is None and rank > 0:
            member_channels.pop(rank, None)
            detector.lose(rank)
        return messages is not None

    @staticmethod
    def _send(member_channels: dict[int, Channel], message: dict[str, Any]) -> None:
        for channel in member_channels.values():
            # A closed connection is noticed elsewhere.
            with contextlib.suppress(OSError):
                channel.send(message)

    def _report_to_leader(self, channel: Channel, leader: Member) -> None:
        """The thread of another rank: send heartbeats to rank 0, and end when it says so or falls silent."""
        received_at = sent_at = time.monotonic()
        has_left = False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(channel, selectors.EVENT_READ)
                while True:
                    ready = selector.select(min(0.1, self.interval))
                    for message in self._arrived(channel) if ready else ():
                        received_at = time.monotonic()
                        if "end" in message:
                            self.end(Verdict(message["end"], message["code"]))
                            return
                        if "done" in message:
                            return
                    now = time.monotonic()
                    if now - sent_at >= self.interval and not has_left:
                        sent_at = now
                        heartbeat = self.own_progress.heartbeat()
                        channel.send(
                            {
                                "heartbeat": [
                                    heartbeat.progress,
                                    heartbeat.activity,
                                    heartbeat.waits,
                                    heartbeat.exchange,
                                    heartbeat.cpu,
                                ]
                            }
                        )
                    for message in self._take_messages():
                        channel.send(message)
                    if self._leaving.is_set() and not has_left:
                        has_left = True
                        channel.send({"done": True})
                    if now - received_at > self.timeout:
                        reason = _silent(now - received_at) + _allowed(self.timeout)
                        self.end(Verdict(f"{leader} {reason}{self.advice}", LOST))
                        return
        except OSError:
            # Rank 0 may leave as soon as it knows that all are finished.
            if not has_left:
                self.end(Verdict(f"{leader} {_GONE}{self.advice}", LOST))
        finally:
            self._over.set()
            channel.close()

    @staticmethod
    def _arrived(channel: Channel) -> list[dict[str, Any]]:
        try:
            messages = channel.arrived()
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        if messages is None:
            raise ConnectionError("closed")
        return messages
