"""Processes greet each other before a library connects them: who is missing, twice there, or a stranger."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from stsbp_spec.distributed import rendezvous
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.distributed.rendezvous import meet, port_of
from stsbp_spec.errors import BackendError


def refusal(rendezvous: Rendezvous) -> str:
    with pytest.raises(BackendError) as caught:
        meet(rendezvous, rendezvous.port)
    return str(caught.value)


def processes(ranks: Sequence[int], size: int, timeout: float, address: str = "127.0.0.1") -> list[Rendezvous]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [Rendezvous(rank, size, rank, address, port, timeout=timeout) for rank in ranks]


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_all_meet_and_the_port_is_free_again(address: str) -> None:
    ranks = processes([0, 1, 2], 3, 20.0, address)
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lambda rank: meet(rank, rank.port), ranks)) == [None] * 3


@pytest.mark.parametrize(
    ("address", "host"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("127.0.1.1", "127.0.1.1"), ("::1", "::1"),
     ("10.0.0.3", ""), ("node1", ""), ("127.example.org", "")],
)  # fmt: skip
def test_no_other_machine_reaches_a_meeting_on_one(address: str, host: str) -> None:
    assert rendezvous._loopback(address) == host


def test_rank_0_listens_where_it_is_looked_for() -> None:
    (first,) = processes([0], 2, 5.0)
    with rendezvous._listener(first, first.port) as server:
        assert server.getsockname() == ("127.0.0.1", first.port)
    with rendezvous._listener(replace(first, address="node1"), first.port) as server:
        assert server.getsockname()[0] in ("::", "0.0.0.0")


def test_who_finds_nobody_says_where_it_looked() -> None:
    (alone,) = processes([2], 3, 0.3)
    assert refusal(alone).startswith(
        f"rank 2 did not find rank 0 at 127.0.0.1:{alone.port} within 0.3 s: Connection refused"
    )


def test_all_who_are_there_say_who_is_missing() -> None:
    ranks = processes([0, 2], 4, 1.0)
    with ThreadPoolExecutor() as pool:
        messages = set(pool.map(refusal, ranks))
    assert messages == {f"rank 0 waited 1 s at 127.0.0.1:{ranks[0].port} for 4 processes; missing: rank 1, 3"}


@pytest.mark.parametrize("size", [3, 4])
def test_a_rank_that_comes_twice_or_from_another_run_ends_the_meeting(size: int) -> None:
    first, second = processes([0, 1], 3, 5.0)
    with ThreadPoolExecutor() as pool:
        messages = set(pool.map(refusal, (first, second, replace(second, size=size))))
    (message,) = messages
    assert re.match(rf"(two processes say|a process says) at 127.0.0.1:{first.port} to be rank 1 of {size}; ", message)


def test_a_port_that_others_use_is_told() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        message = refusal(Rendezvous(0, 2, 0, "127.0.0.1", port, timeout=5.0))
        assert message == f"rank 0 cannot listen on port {port}: the port is in use; give the run another port"
        message = refusal(Rendezvous(1, 2, 1, "127.0.0.1", port, timeout=0.3))
        assert message.startswith(f"rank 1 did not find rank 0 at 127.0.0.1:{port} within 0.3 s: ")


def test_who_leaves_before_it_is_heard_does_not_disturb_a_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept

    def aborted(server: socket.socket) -> Any:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raise ConnectionAbortedError

    monkeypatch.setattr(socket.socket, "accept", aborted)
    first, second = processes([0, 1], 2, 20.0)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meet, first, first.port)
        meet(second, second.port)
        waiting.result()


def test_strangers_do_not_disturb_a_meeting() -> None:
    first, second = processes([0, 1], 2, 20.0)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meet, first, first.port)
        for _ in range(200):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", first.port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            time.sleep(0.01)
        meet(second, second.port)
        waiting.result()


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_LAST_WORD", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            guest, _ = server.accept()
            with guest, suppress(OSError):
                guest.sendall(rendezvous._ANSWER.pack(rendezvous._MAGIC, 2**32 - 1))
                guest.recv(64)
                guest.recv(1)  # until it leaves

        liar = Thread(target=answer)
        liar.start()
        message = refusal(Rendezvous(1, 2, 1, "127.0.0.1", server.getsockname()[1], timeout=0.3))
        liar.join()
    assert "the process that listens there is not rank 0 of this run: it answers b'stsbp-1" in message


def test_who_sends_byte_by_byte_has_no_more_time() -> None:
    ours, theirs = socket.socketpair()

    def drip() -> None:
        with suppress(OSError):
            while True:
                theirs.sendall(b"x")
                time.sleep(0.02)

    slow = Thread(target=drip)
    slow.start()
    began = time.monotonic()
    assert rendezvous._receive_bytes(ours, 10**6, began + 0.2) is None
    took = time.monotonic() - began
    ours.close()
    slow.join()
    theirs.close()
    assert 0.15 < took < 10.0


@pytest.mark.parametrize(("launcher", "port", "listening"), [("torchrun", 29500, 29501), ("Slurm", 65535, 65535)])
def test_torchrun_listens_on_its_own_port(launcher: str, port: int, listening: int) -> None:
    assert port_of(Rendezvous(0, 2, port=port, launcher=launcher)) == listening


@pytest.mark.parametrize(("launcher", "port", "named"), [("torchrun", 65535, "65536, which"), ("", 0, "0:")])
def test_a_port_that_cannot_be_is_named(launcher: str, port: int, named: str) -> None:
    with pytest.raises(BackendError, match=f"^processes cannot meet at port {named}"):
        port_of(Rendezvous(0, 2, port=port, launcher=launcher))
