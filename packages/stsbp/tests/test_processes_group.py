"""What processes share and compare, in threads that stand for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.errors import ConfigError, DataError, FileError, understood
from stsbp.processes import identity
from stsbp.processes.group import ExchangeError, ExchangeMonitor, Group, _Joined
from stsbp.processes.monitor import Member, Monitor, ProcessProgress, Verdict
from stsbp_spec.distributed.collective import Collective
from stsbp_spec.errors import BackendError
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import AnyArray


class ThreadExchange:
    """Exchanges values between threads, which wait for each other."""

    def __init__(self, size: int) -> None:
        self.size, self.inputs = size, list[Any]([None] * size)
        self.barrier = threading.Barrier(size)

    def all_gather(self, rank: int, x: Any) -> list[Any]:
        self.inputs[rank] = x
        self.barrier.wait(10.0)
        gathered = list(self.inputs)
        self.barrier.wait(10.0)
        return gathered


class ThreadCollective(Collective[AnyArray]):
    """A collective of threads."""

    def __init__(self, threads: ThreadExchange, rank: int) -> None:
        self.threads, self.rank, self.size = threads, rank, threads.size

    def largest(self, x: AnyArray) -> AnyArray:
        maximum: AnyArray = np.maximum.reduce(self.threads.all_gather(self.rank, x))
        return maximum

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        return lambda: np.sum(self.threads.all_gather(self.rank, x), axis=0)

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return self.threads.all_gather(self.rank, x)

    def broadcast(self, message: bytes | None) -> bytes:
        content: bytes = self.threads.all_gather(self.rank, message)[0]
        return content


class ThreadGroup(Group):
    """A group of threads, on hosts of these names."""

    def __init__(self, threads: ThreadExchange, rank: int, hosts: str) -> None:
        self.rank, self.size, self.collective = rank, threads.size, ThreadCollective(threads, rank)
        self.members = [Member(number, threads.size, host, 100 + number) for number, host in enumerate(hosts)]


def together(work: Callable[[Group], Any], hosts: str = "abc") -> list[Any]:
    """What work gives, or raises, in each of several groups at once."""
    threads, outcomes = ThreadExchange(len(hosts)), list[Any]([None] * len(hosts))

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(ThreadGroup(threads, rank, hosts))
        except Exception as error:
            outcomes[rank] = error

    running = [threading.Thread(target=run, args=(rank,)) for rank in range(len(hosts))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(20.0)
    return outcomes


def test_messages_of_rank_0_reach_all_ranks() -> None:
    assert together(lambda group: group.share({"a": [1, 2.5]} if group.leads else None)) == [{"a": [1, 2.5]}] * 3


def test_numbers_and_values_of_all_in_the_order_of_ranks() -> None:
    numbers = together(lambda group: group.gather([group.rank, 7.0]).tolist())
    assert numbers == [[[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]]] * 3
    assert together(lambda group: group.gather_values("x" * group.rank)) == [["", "x", "xx"]] * 3


def test_parts_are_those_of_the_collective() -> None:
    parts = together(lambda group: (group.part(4).first, group.part(4).count))
    assert parts == [(0, 2), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("hosts", "order"), [("aaa", [0, 2, 2]), ("abc", [0, 1, 1]), ("aabb", [0, 2, 1, 2]), ("abba", [0, 1, 2, 2])]
)
def test_a_cache_is_filled_by_one_then_by_one_of_each_machine(hosts: str, order: list[int]) -> None:
    """Who is of a later turn begins when all of the turns before are through."""
    began, ended = [0.0] * len(hosts), [0.0] * len(hosts)

    def fill(group: Group) -> int:
        def work() -> int:
            began[group.rank] = time.monotonic()
            time.sleep(0.05)
            ended[group.rank] = time.monotonic()
            return group.rank

        return group.one_by_one(work)

    assert together(fill, hosts) == list(range(len(hosts)))
    for one, turn in enumerate(order):
        for other, later in enumerate(order):
            if turn < later:
                assert ended[one] <= began[other]


def test_settings_are_compared_but_for_those_of_a_machine() -> None:
    same = together(
        lambda group: group.compare_settings({"lr": 0.1, "threads": group.rank, "data_dir": f"/{group.rank}"})
    )
    assert same == [None] * 3
    other = together(
        lambda group: group.compare_settings({"lr": 0.1 + (group.rank == 2), **({"a": 1} if group.leads else {})})
    )
    assert {type(error) for error in other} == {ConfigError}
    assert {str(error) for error in other} == {
        "rank 1 of 3 (host b, pid 101) was given different settings from rank 0:\n  a: 1 on rank 0, not given there"
    }


def test_data_are_compared() -> None:
    assert together(lambda group: group.compare_data({"labels": "x"})) == [None] * 3
    other = together(lambda group: group.compare_data({"labels": "xyz"[group.rank], "inputs": "xxz"[group.rank]}))
    assert {str(error) for error in other} == {
        "rank 1 of 3 (host b, pid 101) has different data from rank 0: other labels\n"
        "rank 2 of 3 (host c, pid 102) has different data from rank 0: other labels, inputs\n"
        "give all processes the same data set, --data-dir and files"
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("contract", 99, "uses version 99 of the exact-arithmetic contract, but rank 0 uses version "),
        ("engine", "Mpi", "communicates through Mpi, but rank 0 through Gloo"),
        (
            "sources of stsbp_spec",
            "0" * 64,
            "has different sources of stsbp_spec from rank 0 (SHA-256 000000000000 and ",
        ),
        ("version of stsbp", "9.9", "the version of stsbp is 9.9, but that of rank 0 "),
    ],
)
def test_identities_of_processes_are_compared(name: str, value: object, says: str) -> None:
    identity_of_rank_0 = identity.own_identity(open_backend("numpy"), "Gloo")
    members = [Member(rank, 2, "a", rank) for rank in range(2)]
    identity.compare(members, [identity_of_rank_0, dict(identity_of_rank_0)])
    with pytest.raises(ConfigError) as error:
        identity.compare(members, [identity_of_rank_0, {**identity_of_rank_0, name: value}])
    assert says in str(error.value)
    assert str(error.value).startswith("rank 1 of 2 (host a, pid 1)")


def test_another_backend_has_other_packages() -> None:
    members = [Member(rank, 2, "a", rank) for rank in range(2)]
    identity_of_rank_0 = identity.own_identity(open_backend("numpy"), "Gloo")
    identity.compare(
        members,
        [{**identity_of_rank_0, "sources of stsbp_torch": "1"}, {**identity_of_rank_0, "sources of stsbp_jax": "2"}],
    )


def test_packages_that_rank_0_does_not_have_are_compared() -> None:
    members = [Member(rank, 3, "a", rank) for rank in range(3)]
    identity_of_rank_0 = identity.own_identity(open_backend("numpy"), "Gloo")
    others = [{**identity_of_rank_0, "sources of stsbp_torch": digest} for digest in ("1", "2")]
    with pytest.raises(ConfigError, match=r"^rank 2 of 3 .* has different sources of stsbp_torch from rank 1 \("):
        identity.compare(members, [identity_of_rank_0, *others])


def test_sources_are_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_package_of_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    (package / "notes.txt").write_text("no source")
    first = identity.sources(package.name)
    (package / "notes.txt").write_text("nor this")
    assert identity.sources(package.name) == first
    (package / "kernel.cu").write_text("float x;")
    second = identity.sources(package.name)
    (package / "kernel.cu").rename(package / "kernels.cu")
    third = identity.sources(package.name)
    (package / "__init__.py").write_text("a = 2\n")
    assert len({first, second, third, identity.sources(package.name)}) == 4
    assert identity.sources("no_such_package_of_the_test") == ""


class Slow(ThreadCollective):
    """Takes its time, and may fail."""

    fails = False

    def __init__(self) -> None:
        super().__init__(ThreadExchange(1), 0)

    def largest(self, x: AnyArray) -> AnyArray:
        if self.fails:
            raise BackendError("nobody answers")
        time.sleep(0.02)
        return x

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return [self.largest(x)]


def test_a_watch_counts_exchanges_and_takes_the_time() -> None:
    own_progress, slow = ProcessProgress(), Slow()
    watch = ExchangeMonitor(slow, own_progress)
    slow.largest(np.zeros(1))
    assert (own_progress.exchange, own_progress.waits) == (1, False)
    assert 0.02 <= watch.seconds < 1.0
    slow.gather(np.zeros(1))
    assert own_progress.exchange == 2, "one within another is a part of it"
    total = slow.start_total(np.ones(2))
    assert own_progress.exchange == 3
    assert total().tolist() == [1.0, 1.0]
    assert own_progress.exchange == 4
    slow.beat("layer")
    assert own_progress.activity == "layer"
    earlier_seconds = watch.seconds
    with watch.exchange(timed=False):
        assert own_progress.waits
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        assert own_progress.heartbeat().cpu >= until, "a program is compiled, which takes longer than an exchange may"
        slow.largest(np.zeros(1))
    assert watch.seconds == earlier_seconds
    assert not own_progress.waits


def test_a_failed_exchange_is_an_exchange_error() -> None:
    own_progress, slow = ProcessProgress(), Slow()
    ExchangeMonitor(slow, own_progress)
    slow.fails = True
    with pytest.raises(ExchangeError, match="nobody answers"):
        slow.gather(np.zeros(1))
    assert not own_progress.waits


@pytest.mark.parametrize(("rank", "shown"), [(0, True), (1, False)])
def test_a_bug_of_all_processes_has_one_traceback(
    rank: int, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts: list[Verdict] = []
    monkeypatch.setattr(Monitor, "fail", lambda _self, text, code, broken: verdicts.append(Verdict(text, code)))
    monkeypatch.setattr("os._exit", lambda _code: None)
    group = _Joined(
        ThreadCollective(ThreadExchange(2), rank),
        Monitor(ProcessProgress(), Member(rank, 2, "a", 1), 5.0, verdicts.append),
        ProcessProgress(),
    )
    error = ZeroDivisionError("a bug")
    group.__exit__(type(error), error, error.__traceback__)
    group.end(verdicts[0])
    output = capsys.readouterr().err
    assert output.endswith("Error: ZeroDivisionError: a bug\n")
    assert ("ZeroDivisionError: a bug\nError" in output) == shown


def test_errors_of_the_system_are_understood() -> None:
    system_error = understood(OSError(28, "No space left on device", "/x/y"))
    assert isinstance(system_error, FileError)
    assert str(system_error) == "/x/y: No space left on device"
    assert "cannot write the output" in str(understood(OSError(5, "Input/output error")))
    assert "not enough memory" in str(understood(MemoryError()))
    error = DataError("gone")
    assert understood(error) is error
    assert understood(TypeError("a bug")) is None
