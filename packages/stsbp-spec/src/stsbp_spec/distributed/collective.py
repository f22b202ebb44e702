"""Communication of processes that train one network together, and the assignment of samples to processes.

In `reproducible` precision, every sum of the backward pass is exact, so its parts may be computed anywhere. Each
process adds the contributions of its samples in float64 on the error grid. The sum over the processes has the same bits
as the sum of a single process. The grid depends on the largest error of the whole batch; `largest` computes it.

The engines are those of the libraries: torch.distributed, jax.distributed, NCCL, MPI. host.py has those for numpy
arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from stsbp_spec.errors import BackendError, SpecError
from stsbp_spec.typing import AnyArray, Array

__all__ = ["Alone", "BatchSlice", "Collective", "Rendezvous", "WrappedCollective", "parts_of"]


@dataclass(frozen=True)
class Rendezvous:
    """The rank of this process, and where the processes meet.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those on the same machine.
        address, port: network address of rank 0.
        launcher: program that started the processes, for messages: `torchrun`, `Slurm`, `Open MPI`, ...
        timeout: time in seconds to wait for the other processes.
    """

    rank: int
    size: int
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500
    launcher: str = ""
    timeout: float = 60.0


@dataclass(frozen=True)
class BatchSlice:
    """Consecutive samples of a batch.

    Attributes:
        first: number of the first sample in the batch.
        count: number of samples; 0: none.
        batch: number of samples of the whole batch.
    """

    first: int
    count: int
    batch: int

    @property
    def end(self) -> int:
        """Number of the sample after the last one."""
        return self.first + self.count

    def cut(self, count: int) -> tuple[BatchSlice, ...]:
        """The part in pieces of `count` samples. The last piece may be smaller. An empty part is one empty piece."""
        firsts = range(self.first, max(self.end, self.first + 1), count)
        return tuple(BatchSlice(first, min(count, self.end - first), self.batch) for first in firsts)


def parts_of(batch: int, size: int) -> tuple[BatchSlice, ...]:
    """Split a batch into `size` parts that differ by at most one sample. Parts without samples come last."""
    if size < 1:
        raise SpecError(f"a batch is cut into at least 1 part, got {size}")
    part_size, longer_parts = divmod(batch, size)
    counts = [part_size + (rank < longer_parts) for rank in range(size)]
    return tuple(BatchSlice(sum(counts[:rank]), count, batch) for rank, count in enumerate(counts))


class Collective(ABC, Generic[Array]):
    """Processes that compute one step together. All of them call the same methods in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        engine: name of the engine that carries the messages, if other backends use it in the same way; else empty.
    """

    rank: int
    size: int
    engine: str = ""

    # Methods for native arrays, which stay on their device.
    @abstractmethod
    def largest(self, x: Array) -> Array:
        """Elementwise maximum over all processes. `x` holds bits of magnitudes as integers, so that NaN is largest."""

    @abstractmethod
    def start_total(self, x: Array) -> Callable[[], Array]:
        """Start to add up `x`, float32, float64 or int64, over all processes. The returned function waits for the sum.

        Sums of float64 on one grid are exact. The caller may continue meanwhile, but must not change `x`.
        """

    # Methods for arrays of the host.
    @abstractmethod
    def gather(self, x: AnyArray) -> list[AnyArray]:
        """`x` `[n]` of every process, in the order of their ranks. Lengths may differ, but types may not."""

    @abstractmethod
    def broadcast(self, message: bytes | None) -> bytes:
        """The message of rank 0. All other ranks pass None."""

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        self.broadcast(b"" if self.rank == 0 else None)

    def parts(self, batch: int) -> tuple[BatchSlice, ...]:
        """The part of a batch that each process has, in the order of their ranks."""
        return parts_of(batch, self.size)

    def pieces(self, batch: int, micro_batch: int | None) -> tuple[BatchSlice, ...]:
        """This process's part in pieces of up to `micro_batch` samples; None: one piece. A piece may be empty."""
        part = self.parts(batch)[self.rank]
        return part.cut(micro_batch or max(1, part.count))

    def beat(self, activity: str) -> None:
        """Report what is computed next, for a monitor that checks whether the process makes progress."""

    def close(self) -> None:
        """Leave the group. No method may be called afterwards."""


class Alone(Collective[Array]):
    """A single process, which has all samples."""

    rank = 0
    size = 1

    def largest(self, x: Array) -> Array:
        return x

    def start_total(self, x: Array) -> Callable[[], Array]:
        return lambda: x

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return [x]

    def broadcast(self, message: bytes | None) -> bytes:
        if message is None:
            raise BackendError("rank 0 has nothing to broadcast")
        return message


class WrappedCollective(Collective[Array]):
    """A collective for another kind of array, based on an existing one. Messages of the host pass through unchanged.

    Args:
        others: the existing collective. It is closed together with this one.
    """

    def __init__(self, wrapped: Collective[Any]) -> None:
        self.rank, self.size, self.wrapped = wrapped.rank, wrapped.size, wrapped

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return self.wrapped.gather(x)

    def broadcast(self, message: bytes | None) -> bytes:
        return self.wrapped.broadcast(message)

    def close(self) -> None:
        self.wrapped.close()
