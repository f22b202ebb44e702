"""All processes meet before `jax.distributed` is told of them.

Where one of them does not come, or the port of rank 0 is taken, JAX ends the others without an exception (abort, or a
segmentation fault; jax 0.10.2). So they greet each other over the same port first, and whoever waits in vain says so.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import suppress

from stsbp_spec.collective import Rendezvous
from stsbp_spec.errors import BackendError

__all__ = ["meet"]

_HELLO = struct.Struct("<8sII")
_ANSWER = struct.Struct("<8sI")
_MAGIC = b"stsbp-1\n"
_RETRY = 0.1
_LAST_WORD = 2.0
"""Seconds that rank 0 has to say why it gives up."""


def meet(rendezvous: Rendezvous, port: int) -> None:
    """Return when all processes are here; afterwards `port` is free again.

    Raises:
        BackendError: somebody did not come in time, came twice, or takes part in another run; every process that is
            here says so.
    """
    if rendezvous.rank == 0:
        _receive(rendezvous, port)
    else:
        _visit(rendezvous, port)


def _receive(rendezvous: Rendezvous, port: int) -> None:
    """Rank 0 waits for as many as there should be, and tells them how it went."""
    deadline, guests, came = time.monotonic() + rendezvous.timeout, list[socket.socket](), list[tuple[int, int]]()
    with _listener(rendezvous, port) as server:
        while len(came) < rendezvous.size - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                guest, _ = server.accept()
            except TimeoutError:
                break
            guest.settimeout(_LAST_WORD)
            hello = _read(guest, _HELLO.size)
            if hello is None or not hello.startswith(_MAGIC):
                guest.close()  # a stranger
                continue
            _, rank, size = _HELLO.unpack(hello)
            guests.append(guest)
            came.append((rank, size))
        problem = _problem(rendezvous, port, came)
        said = problem.encode()
        for guest in guests:
            with guest, suppress(OSError):
                guest.sendall(_ANSWER.pack(_MAGIC, len(said)) + said)
                guest.recv(1)  # who closes first keeps the port busy: let it be the guest
    if problem:
        raise BackendError(problem)


def _problem(rendezvous: Rendezvous, port: int, came: list[tuple[int, int]]) -> str:
    """What is wrong with those who came, each with its rank and how many it thinks there are."""
    address = f"{rendezvous.address}:{port}"
    for rank, size in came:
        if size != rendezvous.size or not 0 < rank < size or came.count((rank, size)) > 1:
            twice = "two processes say" if came.count((rank, size)) > 1 else "a process says"
            return (
                f"{twice} at {address} to be rank {rank} of {size}; "
                f"rank 0 waits for {rendezvous.size} processes, each with a rank of its own"
            )
    missing = sorted({*range(1, rendezvous.size)} - {rank for rank, _ in came})
    if not missing:
        return ""
    return (
        f"rank 0 waited {rendezvous.timeout:g} s at {address} for {rendezvous.size} processes; "
        f"missing: rank {', '.join(map(str, missing))}"
    )


def _listener(rendezvous: Rendezvous, port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=rendezvous.size)
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise BackendError(f"rank 0 cannot listen on port {port}: {why}; give the run another port") from error


def _visit(rendezvous: Rendezvous, port: int) -> None:
    """Another rank looks for rank 0 and waits for its answer."""
    address, deadline = (rendezvous.address, port), time.monotonic() + rendezvous.timeout
    last = "nobody listens there"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as host:
                host.sendall(_HELLO.pack(_MAGIC, rendezvous.rank, rendezvous.size))
                host.settimeout(left + _LAST_WORD)
                answer = _read(host, _ANSWER.size)
                if answer is not None and answer.startswith(_MAGIC):
                    said = _read(host, _ANSWER.unpack(answer)[1])
                    if said == b"":
                        return
                    raise BackendError((said or b"rank 0 gave up").decode(errors="replace"))
                last = "who listens there is not rank 0 of this run"
        except OSError as error:
            last = error.strerror or str(error) or last
        time.sleep(min(_RETRY, max(0.0, deadline - time.monotonic())))
    raise BackendError(
        f"rank {rendezvous.rank} did not find rank 0 at {rendezvous.address}:{port} within {rendezvous.timeout:g} s: "
        f"{last}; was it started, and does no firewall lie between?"
    )


def _read(from_: socket.socket, count: int) -> bytes | None:
    """`count` bytes; None: the other side ended, or kept silent."""
    found = b""
    try:
        while len(found) < count:
            if not (more := from_.recv(count - len(found))):
                return None
            found += more
    except OSError:
        return None
    return found
