"""Collectives on numpy arrays: gloo through PyTorch, or MPI through mpi4py. Both are imported late."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.distributed.rendezvous import meet as contact
from stsbp_spec.distributed.rendezvous import port_of
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray, Int64

__all__ = ["Gloo", "Mpi", "broadcast_message", "connection", "first_line", "gather_padded", "join", "process_group"]

EXCHANGE = 3600.0
"""Time in seconds that an exchange may wait for other processes. A monitor of their progress may end it earlier."""
MPI_LAUNCHERS = ("Open MPI", "MPICH")


def join(rendezvous: Rendezvous) -> Collective[AnyArray]:
    """The processes that a launcher has started. Uses MPI if the launcher is of MPI and mpi4py is installed, else gloo.

    Raises:
        BackendError: neither PyTorch nor mpi4py is installed, or the other processes did not arrive in time.
    """
    has = {name: importlib.util.find_spec(name) is not None for name in ("torch", "mpi4py")}
    if has["mpi4py"] and rendezvous.launcher in MPI_LAUNCHERS:
        return Mpi(rendezvous)
    if has["torch"]:
        return Gloo(rendezvous)
    raise BackendError(
        "several processes need PyTorch (gloo) or, under mpirun, mpi4py to connect them; install "
        "one: python -m pip install torch, or python -m pip install mpi4py"
    )


def process_group(rendezvous: Rendezvous, engines: str = "gloo") -> Any:
    """`torch.distributed`, initialised with the other processes.

    Raises:
        BackendError: PyTorch cannot be loaded, the other processes did not arrive in time, or the port of rank 0 is
            taken.
    """
    try:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout
        from torch.distributed.rendezvous import rendezvous as meet
    except ImportError as error:
        raise BackendError(
            f"PyTorch, which connects the processes, cannot be loaded: {first_line(error)}; it needs about 2 GB of "
            "address space in each process"
        ) from error

    # torchrun already runs a store at the port that it names.
    meeting = "env://" if rendezvous.launcher == "torchrun" else f"tcp://{rendezvous.address}:{rendezvous.port}"
    start_timeout, exchange_timeout = (
        timedelta(seconds=rendezvous.timeout),
        timedelta(seconds=max(EXCHANGE, rendezvous.timeout)),
    )
    if meeting != "env://":
        # A client of torch's store waits for ever for the answer of another program.
        contact(rendezvous, port_of(rendezvous))
    try:
        store, rank, size = next(meet(meeting, rendezvous.rank, rendezvous.size, timeout=start_timeout))
        # The store, with addresses of processes that have ended, survives a restart by torchrun. Separate the starts.
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(engines, store=store, rank=rank, world_size=size, timeout=start_timeout)
        # All processes are here. From now on, allow longer waits, for example for compilation.
        _set_pg_timeout(exchange_timeout)
    except (RuntimeError, ValueError, OSError) as error:
        port_in_use = "EADDRINUSE" in str(error)
        reason = (
            "another program has taken that port; name a free one (MASTER_PORT)" if port_in_use else first_line(error)
        )
        raise BackendError(
            f"rank {rendezvous.rank} of {rendezvous.size} did not meet the others at {rendezvous.address}:"
            f"{rendezvous.port}: {reason}"
        ) from error
    return dist


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def connection(collective: Collective[Any]) -> Iterator[None]:
    """Turn errors that an engine raises when other processes have ended into a `BackendError`."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(
            f"rank {collective.rank} of {collective.size} lost its connection to the others: {first_line(error)}"
        ) from error


def gather_padded(x: AnyArray, gather: Callable[[AnyArray], Sequence[AnyArray]]) -> list[AnyArray]:
    """`Collective.gather` with an engine whose `gather` requires arrays of equal length."""
    lengths = [int(n[0]) for n in gather(np.array([len(x)], np.int64))]
    padded = np.zeros(max(lengths), x.dtype)
    padded[: len(x)] = x
    return [row[:n] for row, n in zip(gather(padded), lengths, strict=True)]


def broadcast_message(message: bytes | None, broadcast: Callable[[AnyArray], AnyArray]) -> bytes:
    """`Collective.broadcast` with an engine whose `broadcast` gives every process the array of rank 0."""
    payload = np.frombuffer(message or b"", np.uint8)
    padded = np.zeros(int(broadcast(np.array([len(payload)], np.int64))[0]), np.uint8)
    padded[: len(payload)] = payload
    return broadcast(padded).tobytes()


class Gloo(Collective[AnyArray]):
    """`torch.distributed` with gloo.

    Sums are collected in buckets of one type. A bucket is sent when it has `bucket` bytes, or when someone waits for a
    sum. This needs few messages, and they are sent while the caller continues.

    Attributes:
        bucket: size of one message of sums in bytes.
    """

    bucket = 2**20
    engine = "gloo"

    def __init__(self, rendezvous: Rendezvous, engines: str = "gloo") -> None:
        self.rank, self.size = rendezvous.rank, rendezvous.size
        self._dist = process_group(rendezvous, engines)
        self._queued: list[_Sum] = []

    def largest(self, x: AnyArray) -> AnyArray:
        import torch

        maximum: AnyArray = self.largest_tensor(torch.from_numpy(x.copy())).numpy()
        return maximum

    def largest_tensor(self, x: Any) -> Any:
        """`largest` of a tensor, in place."""
        with connection(self):
            self._dist.all_reduce(x, self._dist.ReduceOp.MAX)
        return x

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        import torch

        wait = self.start_total_tensor(torch.from_numpy(np.ascontiguousarray(x)))
        return lambda: np.asarray(wait().numpy())

    def start_total_tensor(self, x: Any) -> Callable[[], Any]:
        """`start_total` of a tensor."""
        if self._queued and self._queued[0].x.dtype != x.dtype:
            self._send()
        pending = _Sum(x)
        self._queued.append(pending)
        if sum(queued_sum.x.nbytes for queued_sum in self._queued) >= self.bucket:
            self._send()

        def wait() -> Any:
            if pending.work is None:
                self._send()
            with connection(self):
                pending.work.wait()
            return pending.total.view(x.shape)

        return wait

    def _send(self) -> None:
        """Start adding up the queued sums, in one message."""
        import torch

        message = torch.cat([queued_sum.x.reshape(-1) for queued_sum in self._queued])
        with connection(self):
            work = self._dist.all_reduce(message, async_op=True)
        begin = 0
        for queued_sum in self._queued:
            end = begin + queued_sum.x.numel()
            queued_sum.work, queued_sum.total, begin = work, message[begin:end], end
        self._queued.clear()

    def gather(self, x: AnyArray) -> list[AnyArray]:
        import torch

        def gather_all(padded: AnyArray) -> list[AnyArray]:
            tensors = [torch.empty_like(torch.from_numpy(padded)) for _ in range(self.size)]
            with connection(self):
                self._dist.all_gather(tensors, torch.from_numpy(padded))
            return [tensor.numpy() for tensor in tensors]

        return gather_padded(x, gather_all)

    def broadcast(self, message: bytes | None) -> bytes:
        import torch

        def send(x: AnyArray) -> AnyArray:
            with connection(self):
                self._dist.broadcast(torch.from_numpy(x), 0)
            return x

        return broadcast_message(message, send)

    def close(self) -> None:
        self._dist.destroy_process_group()


@dataclass
class _Sum:
    """A sum that waits in a bucket for other sums, and then for the other processes."""

    x: Any
    work: Any = None
    total: Any = None


class Mpi(Collective[AnyArray]):
    """MPI through mpi4py, under `mpirun`."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise BackendError(f"mpi4py is installed but finds no MPI library: {first_line(error)}") from error
        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = int(self._world.Get_rank()), int(self._world.Get_size())
        if (self.rank, self.size) != (rendezvous.rank, rendezvous.size):
            raise BackendError(
                f"{rendezvous.launcher} calls this rank {rendezvous.rank} of {rendezvous.size}, and mpi4py rank "
                f"{self.rank} of {self.size}: they belong to different MPI libraries; install mpi4py for this mpirun"
            )

    def largest(self, x: AnyArray) -> AnyArray:
        maximum = x.copy()
        with connection(self):
            self._world.Allreduce(self._mpi.IN_PLACE, maximum, op=self._mpi.MAX)
        return maximum

    def start_total(self, x: AnyArray) -> Callable[[], AnyArray]:
        summand = np.ascontiguousarray(x)
        total = np.empty_like(summand)
        with connection(self):
            request = self._world.Iallreduce(summand, total, op=self._mpi.SUM)

        def wait() -> AnyArray:
            with connection(self):
                request.Wait()
            return total if summand.size else summand  # `summand` must not be freed before this point

        return wait

    def gather(self, x: AnyArray) -> list[AnyArray]:
        lengths: Int64 = np.empty(self.size, np.int64)
        with connection(self):
            self._world.Allgather(np.array([len(x)], np.int64), lengths)
            gathered = np.empty(lengths.sum(), x.dtype)
            self._world.Allgatherv(np.ascontiguousarray(x), (gathered, lengths))
        return np.split(gathered, np.cumsum(lengths)[:-1])

    def broadcast(self, message: bytes | None) -> bytes:
        def send(x: AnyArray) -> AnyArray:
            with connection(self):
                self._world.Bcast(x)
            return x

        return broadcast_message(message, send)
