"""Makes all processes meet before the library that connects them is started.

If a process is missing, or the port of rank 0 is taken, JAX ends the other processes without an exception (abort, or a
segmentation fault; jax 0.10.2), and CuPy waits forever. The processes therefore first contact each other over the same
port. A process that waits in vain raises an error.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import suppress
from ipaddress import ip_address

from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.errors import BackendError

__all__ = ["free_port", "listener", "meet", "port_of"]

_HELLO = struct.Struct("<8sII")
_ANSWER = struct.Struct("<8sI")
_MAGIC = b"stsbp-1\n"
_RETRY = 0.1
_LAST_WORD = 2.0
"""Time in seconds for a guest to send its number, and for rank 0 to send the reason why it gives up."""
_LONGEST = 2**16
"""Largest size of an answer in bytes."""


def free_port() -> int:
    """A port of this machine on which no program listens at present."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def port_of(rendezvous: Rendezvous) -> int:
    """The port at which the processes meet. Under torchrun, it is the next port, because torchrun itself uses the
    first.

    Raises:
        BackendError: there is no such port.
    """
    port = rendezvous.port + (rendezvous.launcher == "torchrun")
    if not 0 < port < 2**16:
        note = ", which is the one after torchrun's" if port != rendezvous.port else ""
        raise BackendError(
            f"processes cannot meet at port {port}{note}: ports are 1 to 65535; give the run another port"
        )
    return port


def meet(rendezvous: Rendezvous, port: int) -> None:
    """Return when all processes have arrived. Afterwards, `port` is free again.

    Raises:
        BackendError: a process did not arrive in time, arrived twice, or belongs to another run. All processes that
            have arrived raise this error.
    """
    if rendezvous.rank == 0:
        _receive(rendezvous, port)
    else:
        _visit(rendezvous, port)


def _receive(rendezvous: Rendezvous, port: int) -> None:
    """Rank 0 waits for all other ranks, and tells them the result."""
    deadline, guests, arrivals = time.monotonic() + rendezvous.timeout, list[socket.socket](), list[tuple[int, int]]()
    with _listener(rendezvous, port) as server:
        while len(arrivals) < rendezvous.size - 1 and (remaining := deadline - time.monotonic()) > 0:
            server.settimeout(remaining)
            try:
                guest, _ = server.accept()
            except TimeoutError:
                break
            except ConnectionError:
                continue  # the guest has left again
            hello = _receive_bytes(guest, _HELLO.size, time.monotonic() + _LAST_WORD)
            if hello is None or not hello.startswith(_MAGIC):
                guest.close()  # a stranger
                continue
            _, rank, size = _HELLO.unpack(hello)
            guests.append(guest)
            arrivals.append((rank, size))
        problem = _problem(rendezvous, port, arrivals)
        message = problem.encode()[:_LONGEST]
        for guest in guests:
            with guest, suppress(OSError):
                guest.settimeout(_LAST_WORD)
                guest.sendall(_ANSWER.pack(_MAGIC, len(message)) + message)
                guest.recv(1)  # the side that closes first keeps the port busy, so let the guest close first
    if problem:
        raise BackendError(problem)


def _problem(rendezvous: Rendezvous, port: int, arrivals: list[tuple[int, int]]) -> str:
    """What is wrong with the guests that came. Each guest has a rank and the number of processes that it expects."""
    address = f"{rendezvous.address}:{port}"
    for rank, size in arrivals:
        if size != rendezvous.size or not 0 < rank < size or arrivals.count((rank, size)) > 1:
            twice = "two processes say" if arrivals.count((rank, size)) > 1 else "a process says"
            return (
                f"{twice} at {address} to be rank {rank} of {size}; rank 0 waits for {rendezvous.size} "
                "processes, each with a different rank"
            )
    missing = sorted({*range(1, rendezvous.size)} - {rank for rank, _ in arrivals})
    if not missing:
        return ""
    return (
        f"rank 0 waited {rendezvous.timeout:g} s at {address} for {rendezvous.size} processes; "
        f"missing: rank {', '.join(map(str, missing))}"
    )


def listener(address: str, port: int, backlog: int) -> socket.socket:
    """A server for connections to `address`, a name or number of this machine, over IPv4 and IPv6. Port 0: any.

    Raises:
        OSError: the port is in use, or the system has no free port.
    """
    host = _loopback(address)
    dual_stack = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=dual_stack, backlog=backlog)


def _listener(rendezvous: Rendezvous, port: int) -> socket.socket:
    try:
        return listener(rendezvous.address, port, rendezvous.size)
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise BackendError(f"rank 0 cannot listen on port {port}: {reason}; give the run another port") from error


def _loopback(address: str) -> str:
    """`address` if only this machine can reach it; otherwise empty, which means all addresses of the machine."""
    number = "127.0.0.1" if address == "localhost" else address
    with suppress(ValueError):
        if ip_address(number).is_loopback:
            return number
    return ""


def _visit(rendezvous: Rendezvous, port: int) -> None:
    """Another rank connects to rank 0 and waits for its answer."""
    address, deadline = (rendezvous.address, port), time.monotonic() + rendezvous.timeout
    last, stranger = "nobody listens there", ""
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=remaining) as host:
                host.sendall(_HELLO.pack(_MAGIC, rendezvous.rank, rendezvous.size))
                last = "a process listens there, but does not answer"
                answer = _receive_bytes(host, _ANSWER.size, deadline + _LAST_WORD)
                length = _ANSWER.unpack(answer)[1] if answer and answer.startswith(_MAGIC) else _LONGEST + 1
                if length <= _LONGEST:
                    message = _receive_bytes(host, length, deadline + _LAST_WORD)
                    if message == b"":
                        return
                    raise BackendError((message or b"rank 0 gave up").decode(errors="replace"))
                if answer:
                    stranger = f"the process that listens there is not rank 0 of this run: it answers {answer!r}"
        except OSError as error:
            last = error.strerror or str(error) or last
        time.sleep(min(_RETRY, max(0.0, deadline - time.monotonic())))
    raise BackendError(
        f"rank {rendezvous.rank} did not find rank 0 at {rendezvous.address}:{port} within "
        f"{rendezvous.timeout:g} s: {stranger or last}. Is rank 0 running, and does a firewall block that "
        "port?"
    )


def _receive_bytes(from_: socket.socket, count: int, deadline: float) -> bytes | None:
    """Read `count` bytes. None: the other side closed the connection, or `deadline` passed."""
    data = b""
    try:
        while len(data) < count:
            if (remaining := deadline - time.monotonic()) <= 0:
                return None
            from_.settimeout(remaining)
            if not (received := from_.recv(count - len(data))):
                return None
            data += received
    except OSError:
        return None
    return data
