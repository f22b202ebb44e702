"""What processes tell each other: NCCL's calls by threads on numpy arrays, and how CuPy's processes meet."""

from __future__ import annotations

import socket
import sys
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stsbp_cupy.distributed.collective import HostCollective, NcclCollective
from stsbp_cupy.engine.host import HostRuntime
from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

SIZE = 3


class Group:
    """A thread of several with the methods of CuPy's process groups: what comes out is written into an argument."""

    def __init__(self, rank: int, barrier: threading.Barrier, messages: list[AnyArray]) -> None:
        self.rank, self._barrier, self._messages, self.stopped = rank, barrier, messages, 0

    def _of_all(self, x: AnyArray) -> list[AnyArray]:
        self._messages[self.rank] = x.copy()
        self._barrier.wait()
        messages = list(self._messages)
        self._barrier.wait()
        assert len({(row.shape, row.dtype) for row in messages}) == 1
        return messages

    def all_reduce(self, x: AnyArray, out: AnyArray, op: str) -> None:
        out[...] = {"max": np.maximum, "sum": np.add}[op].reduce(self._of_all(x))

    def all_gather(self, x: AnyArray, out: AnyArray, count: int) -> None:
        assert (x.size, out.size) == (count, count * SIZE)
        out[...] = np.concatenate(self._of_all(x))

    def broadcast(self, x: AnyArray, root: int) -> None:
        x[...] = self._of_all(x)[root]

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def runtime() -> HostRuntime:
    return HostRuntime.__new__(HostRuntime)  # exchanges need no kernels, and so no compiler


def results_of_all(runtime: HostRuntime, work: Callable[[NcclCollective], Any]) -> list[Any]:
    """The result of each process."""
    barrier, messages = threading.Barrier(SIZE, timeout=60), [np.zeros(0)] * SIZE

    def run(rank: int) -> Any:
        return work(NcclCollective(Rendezvous(rank, SIZE), runtime, Group(rank, barrier, messages)))

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(run, range(SIZE)))


def test_the_largest_of_all(runtime: HostRuntime) -> None:
    values = np.array([[1, 2**63, 5], [7, 2, 5], [0, 3, 2**64 - 1]], np.uint64)
    for largest in results_of_all(runtime, lambda collective: collective.largest(values[collective.rank])):
        assert largest.dtype == np.uint64
        assert largest.tolist() == [7, 2**63, 2**64 - 1]


def test_a_total_leaves_what_it_was_given(runtime: HostRuntime) -> None:
    values = np.arange(SIZE * 8.0).reshape(SIZE, 4, 2)

    def work(collective: NcclCollective) -> AnyArray:
        x = values[collective.rank].T  # not contiguous, which NCCL refuses
        wait = collective.start_total(x)
        assert np.array_equal(x, values[collective.rank].T)
        return wait()

    for total in results_of_all(runtime, work):
        assert np.array_equal(total, values.sum(0).T)


def test_arrays_of_different_lengths_are_gathered(runtime: HostRuntime) -> None:
    rows = [np.arange(n, dtype=np.float32) + 10 * n for n in (2, 0, 5)]
    for gathered in results_of_all(runtime, lambda collective: collective.gather(rows[collective.rank])):
        assert [row.dtype for row in gathered] == [np.float32] * SIZE
        assert [row.tolist() for row in gathered] == [row.tolist() for row in rows]


@pytest.mark.parametrize("message", [b"", b"\x00said by rank 0\xff"])
def test_all_are_told_what_rank_0_says(runtime: HostRuntime, message: bytes) -> None:
    assert (
        results_of_all(runtime, lambda collective: collective.broadcast(message if collective.rank == 0 else None))
        == [message] * SIZE
    )


def test_the_group_is_closed(runtime: HostRuntime) -> None:
    group = Group(0, threading.Barrier(1), [])
    NcclCollective(Rendezvous(0, SIZE), runtime, group).close()
    assert group.stopped == 1


class Lost:
    """A group whose others are gone."""

    def fail(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("NCCL_ERROR_REMOTE_ERROR: remote process exited")

    all_reduce = all_gather = broadcast = fail


@pytest.mark.parametrize(
    "work",
    [
        lambda collective: collective.largest(np.zeros(2, np.uint64)),
        lambda collective: collective.start_total(np.zeros(2)),
        lambda collective: collective.gather(np.zeros(2)),
        lambda collective: collective.broadcast(None),
    ],
    ids=["largest", "start_total", "gather", "broadcast"],
)
def test_a_connection_that_is_lost_is_told(runtime: HostRuntime, work: Callable[[NcclCollective], Any]) -> None:
    collective = NcclCollective(Rendezvous(1, SIZE), runtime, Lost())
    with pytest.raises(BackendError, match=r"^rank 1 of 3 lost its connection to the others: NCCL_ERROR_REMOTE"):
        work(collective)


class Signed(Collective[AnyArray]):
    """An engine as gloo, which knows no uint64; the other process has `other`."""

    rank, size = 0, 2

    def __init__(self, other: AnyArray) -> None:
        self.other = other

    def largest(self, x: AnyArray) -> AnyArray:
        assert x.dtype == np.int64
        return np.maximum(x, self.other.view(np.int64))

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        raise NotImplementedError

    gather = broadcast = start_total  # type: ignore[assignment]


def test_the_largest_bits_of_float32_on_the_host() -> None:
    """Two magnitudes in a uint64, as the grid is asked for."""
    bits = np.array([0x7F80_0000, 0x3F80_0000, 0, 0x7FFF_FFFF_0000_0000], np.uint64)
    other = np.array([0x7F7F_FFFF, 0x4000_0000, 1, 0x7FFF_FFFF_0000_0001], np.uint64)
    largest = HostCollective(Signed(other)).largest(bits)
    assert largest.dtype == np.uint64
    assert largest.tolist() == np.maximum(bits, other).tolist()


class Store:
    """As cupyx's: it is stopped once, where there is a process."""

    def __init__(self) -> None:
        self._process: object | None = object()
        self.stopped = 0

    def stop(self) -> None:
        if self._process is not None:
            self.stopped += 1
            assert self.stopped == 1


def cupyx(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any], *, nccl: bool = True) -> None:
    module = ModuleType("cupyx")
    module.distributed = SimpleNamespace(init_process_group=start)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupyx", module)
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nccl=SimpleNamespace(available=nccl)))


def free_port() -> int:
    """A port that is free, and so is the one before it."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
            with socket.create_server(("127.0.0.1", port - 1)):
                return port


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_processes_meet_beside_torchrun(monkeypatch: pytest.MonkeyPatch, runtime: HostRuntime, launcher: str) -> None:
    started, stores = set[tuple[Any, ...]](), [Store(), Store()]

    def start(size: int, rank: int, *, backend: str, host: str, port: int) -> Any:
        started.add((size, rank, backend, host, port))
        return SimpleNamespace(_store=stores[0], stop=stores[0].stop) if rank == 0 else SimpleNamespace()

    cupyx(monkeypatch, start)
    port = free_port()
    named = port - (launcher == "torchrun")
    with socket.create_server(("127.0.0.1", named)) if named != port else socket.socket():  # torchrun's own store
        meetings = [Rendezvous(rank, 2, rank, "127.0.0.1", named, launcher, 20.0) for rank in range(2)]
        with ThreadPoolExecutor(2) as pool:
            first, _ = pool.map(lambda rendezvous: NcclCollective(rendezvous, runtime), meetings)
    assert started == {(2, rank, "nccl", "127.0.0.1", port) for rank in range(2)}
    assert (stores[0].stopped, stores[0]._process) == (1, None)
    first.close()
    assert stores[0].stopped == 1


def test_a_process_that_waits_in_vain_never_asks_cupyx(monkeypatch: pytest.MonkeyPatch, runtime: HostRuntime) -> None:
    cupyx(monkeypatch, lambda *_, **__: pytest.fail("its barrier waits for ever"))
    port = free_port()
    with pytest.raises(BackendError, match=rf"^rank 0 waited 0.2 s at 127.0.0.1:{port} for 2 processes; missing: rank"):
        NcclCollective(Rendezvous(0, 2, 0, "127.0.0.1", port, timeout=0.2), runtime)


def test_without_nccl_the_package_is_named_before_the_processes_meet(
    monkeypatch: pytest.MonkeyPatch, runtime: HostRuntime
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise RuntimeError("NCCL is not available")

    cupyx(monkeypatch, start, nccl=False)
    monkeypatch.setattr("stsbp_cupy.distributed.collective.meet", lambda *_: None)
    with pytest.raises(BackendError, match=r"^rank 1 of 2: CuPy finds no NCCL.*pip install nvidia-nccl-cu12"):
        NcclCollective(Rendezvous(1, 2, 1, "node", launcher="torchrun"), runtime)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_the_extras_for_cuda_bring_nccl(extra: str) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"nvidia-nccl-cu{extra.removeprefix('cuda')}" in project["optional-dependencies"][extra]


@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError, OSError])
def test_what_cupyx_raises_is_told(
    monkeypatch: pytest.MonkeyPatch, runtime: HostRuntime, error: type[Exception]
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise error("Invalid length for message")

    cupyx(monkeypatch, start)
    monkeypatch.setattr("stsbp_cupy.distributed.collective.meet", lambda *_: None)
    with pytest.raises(BackendError, match=r"^rank 1 of 2 did not meet the others at node:29501: Invalid length"):
        NcclCollective(Rendezvous(1, 2, 1, "node", launcher="torchrun"), runtime)
