"""Who is to blame when processes stop moving: the detector on a clock of its own, and monitors over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from stsbp.processes import monitor as watch
from stsbp.processes.channel import MAX_BYTES, Channel
from stsbp.processes.monitor import (
    COMPILING,
    LOST,
    FailureDetector,
    Heartbeat,
    Member,
    Monitor,
    ProcessProgress,
    Verdict,
)

TIMEOUT = 10.0


class Clock:
    """A time that is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Case:
    """Three members and their detector."""

    def __init__(self) -> None:
        self.clock = Clock()
        members = [Member(rank, 3, f"node{rank}", 1000 + rank) for rank in range(3)]
        self.detector = FailureDetector(members, TIMEOUT, self.clock, "; advice")
        self.moved = [0, 0, 0]
        self.cpu = [0.0, 0.0, 0.0]

    def pass_time(
        self, seconds: float, *, moving: str = "", waiting: str = "", computing: str = "", silent: str = ""
    ) -> Verdict | None:
        """Let time pass with a heartbeat a second of each member whose number is not in `silent`."""
        for _ in range(round(seconds)):
            self.clock.now += 1
            for rank in range(3):
                self.moved[rank] += str(rank) in moving
                self.cpu[rank] += str(rank) in computing
                if str(rank) not in silent:
                    waits = str(rank) in waiting
                    self.detector.record_heartbeat(
                        rank, Heartbeat(self.moved[rank], "layer", waits, self.moved[rank], self.cpu[rank])
                    )
            if (verdict := self.detector.verdict()) is not None:
                return verdict
        return None


@pytest.fixture
def case() -> Case:
    return Case()


def test_an_active_rank_is_not_lost(case: Case) -> None:
    assert case.pass_time(10 * TIMEOUT, moving="012") is None


@pytest.mark.parametrize("rank", range(3))
def test_a_silent_rank_is_lost(case: Case, rank: int) -> None:
    others = "012".replace(str(rank), "")
    verdict = case.pass_time(TIMEOUT + 2, waiting=others, silent=str(rank))
    assert verdict is not None
    assert verdict.code == LOST
    assert verdict.message.startswith(f"rank {rank} of 3 (host node{rank}, pid {1000 + rank}) gave no sign of life for")
    assert verdict.message.endswith("; advice")


def test_a_rank_silent_for_less_than_the_timeout_is_not_lost(case: Case) -> None:
    assert case.pass_time(TIMEOUT - 1, waiting="02", silent="1") is None
    assert case.pass_time(3, moving="012") is None


def test_a_waiting_rank_is_not_to_blame(case: Case) -> None:
    verdict = case.pass_time(TIMEOUT + 2, waiting="02")
    assert verdict is not None
    assert verdict.message.startswith("rank 1 of 3")
    assert "did nothing new for 11 s: layer" in verdict.message
    assert verdict.message.endswith("; --rank-timeout is 10 s; advice")


def test_a_compiling_rank_has_more_time(case: Case) -> None:
    assert case.pass_time(COMPILING * TIMEOUT - 1, waiting="02", computing="1") is None
    assert case.pass_time(2, moving="012") is None
    verdict = case.pass_time(COMPILING * TIMEOUT + 2, waiting="02", computing="1")
    assert verdict is not None
    assert verdict.message.startswith("rank 1 of 3")


@pytest.mark.parametrize(("share", "busy"), [(0.02, False), (0.04, False), (0.06, True), (1.0, True)])
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_rank_that_uses_part_of_a_processor_computes(case: Case, share: float, busy: bool, seconds: float) -> None:
    cpu, verdict = 0.0, None
    for number in range(round(1.5 * TIMEOUT / seconds)):
        case.clock.now += seconds
        cpu += share * seconds
        for rank in range(3):
            case.detector.record_heartbeat(
                rank, Heartbeat(number if rank else 0, "layer", False, 0, 0.0 if rank else cpu)
            )
        verdict = case.detector.verdict() or verdict
    assert (verdict is None) == busy


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (Verdict("the disk is full", 1), "Error: the disk is full"),
        (Verdict("rank 1 is lost", LOST), "Error: rank 1 is lost"),
        (Verdict("Interrupted.", 130), "Interrupted."),
        (Verdict("", 141), ""),
    ],
)
def test_verdicts_as_texts(verdict: Verdict, text: str) -> None:
    assert str(verdict) == text


def test_of_several_idle_ranks_the_first_to_stop_is_named(case: Case) -> None:
    case.pass_time(3, moving="01")
    verdict = case.pass_time(TIMEOUT + 2)
    assert verdict is not None
    assert verdict.message.startswith("rank 2 of 3")


def test_all_wait_in_one_exchange(case: Case) -> None:
    verdict = case.pass_time(TIMEOUT + 2, waiting="012")
    assert verdict is not None
    assert "waits in exchange 0 for 10 s, as all others do" in verdict.message


def test_all_wait_and_one_is_behind(case: Case) -> None:
    case.pass_time(2, moving="02")
    verdict = case.pass_time(TIMEOUT + 2, waiting="012")
    assert verdict is not None
    assert verdict.message.startswith("rank 1 of 3")
    assert "waits in exchange 0 for 10 s, others in 2" in verdict.message


def test_a_closed_connection_is_lost_at_once(case: Case) -> None:
    case.pass_time(1, moving="012")
    case.detector.lose(2)
    verdict = case.detector.verdict()
    assert verdict is not None
    assert verdict.message.startswith("rank 2 of 3 (host node2, pid 1002) is gone")
    assert verdict.code == LOST


def test_a_finished_rank_may_close_its_connection(case: Case) -> None:
    case.detector.finish(2)
    case.detector.lose(2)
    assert case.pass_time(2 * TIMEOUT, moving="01", silent="2") is None
    assert not case.detector.all_finished
    case.detector.finish(0)
    case.detector.finish(1)
    assert case.detector.all_finished


def test_an_error_of_one_names_it(case: Case) -> None:
    case.detector.fail(1, "the disk is full", 1)
    assert case.detector.verdict() is None
    verdict = case.pass_time(2, moving="012")
    assert verdict == Verdict("rank 1 of 3 (host node1, pid 1001): the disk is full", 1)


def test_an_error_of_all_is_of_nobody(case: Case) -> None:
    for rank in range(3):
        case.detector.fail(rank, "no such layer", 1)
    assert case.detector.verdict() == Verdict("no such layer", 1)


def test_a_broken_exchange_waits_for_its_cause(case: Case) -> None:
    case.detector.fail(0, "connection reset", 1, broken=True)
    case.detector.fail(2, "connection reset", 1, broken=True)
    assert case.detector.verdict() is None
    case.detector.lose(1)
    verdict = case.detector.verdict()
    assert verdict is not None
    assert verdict.message.startswith("rank 1 of 3")
    assert verdict.code == LOST


def test_a_member_whose_exchange_broke_first_is_lost_too(case: Case) -> None:
    case.detector.fail(0, "connection reset", 1, broken=True)
    case.detector.fail(1, "connection reset", 1, broken=True)
    case.detector.lose(1)
    verdict = case.detector.verdict()
    assert verdict is not None
    assert verdict.message.startswith("rank 1 of 3")
    assert verdict.code == LOST


def test_a_broken_exchange_without_a_cause_is_told_itself(case: Case) -> None:
    case.detector.fail(2, "connection reset", 1, broken=True)
    verdict = case.pass_time(5, waiting="01")
    assert verdict == Verdict("rank 2 of 3 (host node2, pid 1002): connection reset", 1)


def test_an_error_counts_more_than_the_exchanges_that_it_broke(case: Case) -> None:
    case.detector.fail(0, "connection reset", 1, broken=True)
    case.detector.fail(1, "the disk is full", 1)
    verdict = case.pass_time(2, waiting="2")
    assert verdict == Verdict("rank 1 of 3 (host node1, pid 1001): the disk is full", 1)


def test_a_pulse_reports_its_activity() -> None:
    own_progress = ProcessProgress()
    own_progress.beat("layer")
    own_progress.enter()
    assert (
        own_progress.progress,
        own_progress.heartbeat().activity,
        own_progress.heartbeat().waits,
        own_progress.heartbeat().exchange,
    ) == (1, "layer", True, 1)
    own_progress.leave()
    assert not own_progress.heartbeat().waits
    assert own_progress.heartbeat().progress == 2


@pytest.mark.parametrize("computes", [False, True])
def test_spinning_while_waiting_is_not_computing(computes: bool) -> None:
    """A program that has its exchanges within is compiled, too."""
    own_progress = ProcessProgress()
    own_progress.enter(computes=computes)
    earlier_seconds, until = own_progress.heartbeat().cpu, time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert (own_progress.heartbeat().cpu > earlier_seconds) == computes
    own_progress.leave()
    assert own_progress.heartbeat().cpu >= until


def test_messages_arrive_whole_however_they_are_cut() -> None:
    near_end, far_end = socket.socketpair()
    one, other = Channel(near_end), Channel(far_end)
    one.send({"a": "x" * 1000})
    one.send({"b": [1, 2.5, None]})
    messages: list[dict[str, object]] = []
    while len(messages) < 2:
        messages += other.arrived() or []
    assert messages == [{"a": "x" * 1000}, {"b": [1, 2.5, None]}]
    one.close()
    assert other.arrived() is None


@pytest.mark.parametrize(
    "data",
    [(MAX_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\2no", b"\0\0\0\2[]", (60_000).to_bytes(4, "big") + b"[" * 60_000],
    ids=["too long", "no JSON", "no object", "too deep"],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    near_end, far_end = socket.socketpair()
    near_end.sendall(data)
    with pytest.raises(ValueError, match=r"."):
        Channel(far_end).arrived()


def test_a_message_has_an_end() -> None:
    near_end, _far_end = socket.socketpair()
    with pytest.raises(ValueError, match="at most"):
        Channel(near_end).send({"a": "x" * MAX_BYTES})


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("address", "reached"),
    [("::1", ["::1"]), ("127.0.0.1", ["127.0.0.1"]), ("node1", ["127.0.0.1", "::1"])],
)
def test_rank_0_is_reached_over_ipv4_and_ipv6(address: str, reached: list[str]) -> None:
    port, _word = (monitor := Monitor(ProcessProgress(), Member(0, 2, "here", 100), 5.0, print)).listen(address)
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            assert host not in reached
        else:
            assert host in reached
    assert monitor._server is not None
    monitor._server.close()


class Ranks:
    """Monitors of three processes, in this one, over real sockets; what each of them would have ended with."""

    def __init__(self, timeout: float) -> None:
        self.members = [Member(rank, 3, "here", 100 + rank) for rank in range(3)]
        self.ended: dict[int, Verdict] = {}
        self.monitors = [
            Monitor(ProcessProgress(), member, timeout, partial(self.ended.__setitem__, member.rank))
            for member in self.members
        ]
        port, word = self.monitors[0].listen("127.0.0.1")
        self.port, self.word = port, word
        self.monitors[0].watch(self.members)
        for monitor in self.monitors[1:]:
            monitor.connect("127.0.0.1", port, word, self.members[0])
        self.moving = True
        threading.Thread(target=self._move, daemon=True).start()

    def _move(self) -> None:
        while self.moving:
            for monitor in self.monitors:
                monitor.own_progress.beat("layer")
            time.sleep(0.02)

    def wait(self, seconds: float, ready: Callable[[], bool]) -> None:
        """Return when it is so."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not ready():
            time.sleep(0.01)
        assert ready(), self.ended

    def detects_failures(self) -> bool:
        """Whether the thread of rank 0 runs on."""
        time.sleep(0.2)
        thread = self.monitors[0]._thread
        return thread is not None and thread.is_alive()


def is_closed(channel: Channel, seconds: float = 5.0) -> bool:
    """Whether the other side closes the connection within some time."""
    channel.connection.settimeout(seconds)
    try:
        while channel.arrived() is not None:
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    connected = Ranks(timeout=2.0)
    yield connected
    connected.moving = False


def test_all_are_through(ranks: Ranks) -> None:
    threads = [threading.Thread(target=monitor.close) for monitor in ranks.monitors]
    for thread in threads[:-1]:
        thread.start()
    time.sleep(0.4)
    assert all(thread.is_alive() for thread in threads[:-1]), "nobody leaves before the last one is through"
    threads[-1].start()
    for thread in threads:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in threads)
    assert ranks.ended == {}


def test_an_error_ends_all_with_one_message(ranks: Ranks) -> None:
    ranks.monitors[2].fail("the disk is full", 7)
    ranks.wait(5.0, lambda: len(ranks.ended) == 3)
    assert set(ranks.ended.values()) == {Verdict("rank 2 of 3 (host here, pid 102): the disk is full", 7)}


def test_the_rank_that_stops_is_named_by_all(ranks: Ranks) -> None:
    for monitor in (ranks.monitors[0], ranks.monitors[2]):
        monitor.own_progress.enter()
    ranks.moving = False
    ranks.wait(10.0, lambda: len(ranks.ended) == 3)
    assert len({verdict.message for verdict in ranks.ended.values()}) == 1
    assert ranks.ended[0].message.startswith("rank 1 of 3 (host here, pid 101) did nothing new for")
    assert ranks.ended[0].code == LOST


@pytest.mark.parametrize(
    "hello",
    [
        {"word": "?", "rank": 1},
        {"word": "\xe9", "rank": 1},
        {"word": "\ud800", "rank": 1},
        {"rank": 1},
        {"rank": 0},
        {"rank": 3},
        {"rank": "1"},
    ],
)
def test_messages_of_strangers_are_ignored(hello: dict[str, object], ranks: Ranks) -> None:
    stranger = Channel(socket.create_connection(("127.0.0.1", ranks.port)))
    needs_word = hello.get("word") is None and hello["rank"] != 1
    stranger.send({**hello, "word": ranks.word} if needs_word else hello)
    stranger.send({"failed": "all is lost", "code": 1, "broken": False})
    assert is_closed(stranger)
    assert ranks.detects_failures()
    assert ranks.ended == {}


def test_a_silent_connection_is_closed(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GREETS", 0.3)
    assert is_closed(Channel(socket.create_connection(("127.0.0.1", ranks.port))))
    assert ranks.detects_failures()
    assert ranks.ended == {}


def test_few_silent_connections_are_open_at_a_time(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_STRANGERS", 1)
    strangers = [Channel(socket.create_connection(("127.0.0.1", ranks.port))) for _ in range(6)]
    assert all(is_closed(stranger, 3.0) for stranger in strangers[:2])
    assert not any(is_closed(stranger, 0.1) for stranger in strangers[2:])
    assert ranks.ended == {}


def test_a_connection_that_fails_ends_nobody(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(_server: socket.socket) -> None:
        failed.set()
        raise OSError("too many open files")

    monkeypatch.setattr(socket.socket, "accept", fail)
    with socket.create_connection(("127.0.0.1", ranks.port)):
        assert failed.wait(5.0)
        monkeypatch.undo()
        assert ranks.detects_failures()
    assert ranks.ended == {}


def test_rank_0_may_be_gone_when_all_are_through() -> None:
    """What it says last can be lost with its connection."""
    ended: list[Verdict] = []
    leader = Member(0, 2, "here", 100)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monitor = Monitor(ProcessProgress(), Member(1, 2, "here", 101), 5.0, ended.append)
        monitor.connect("127.0.0.1", server.getsockname()[1], "word", leader)
        connection, _ = server.accept()
        closing = threading.Thread(target=monitor.close)
        closing.start()
        channel, messages = Channel(connection), list[dict[str, object]]()
        while {"done": True} not in messages:
            messages += channel.arrived() or []
        channel.close()
        closing.join(5.0)
    assert not closing.is_alive()
    assert ended == []


def test_rank_0_may_not_be_gone_before() -> None:
    ended: list[Verdict] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monitor = Monitor(ProcessProgress(), Member(1, 2, "here", 101), 5.0, ended.append)
        monitor.connect("127.0.0.1", server.getsockname()[1], "word", Member(0, 2, "here", 100))
        connection, _ = server.accept()
        connection.close()
        monitor.close()
    assert [verdict.code for verdict in ended] == [LOST]
    assert ended[0].message.startswith("rank 0 of 2 (host here, pid 100) is gone")
