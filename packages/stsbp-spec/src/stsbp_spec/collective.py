"""What processes that train one network together tell each other, and which samples of a batch each of them has.

In `reproducible` precision every sum of the backward pass is exact, so a part of it may be taken anywhere: each process
adds what its samples give, in float64 on the error grid, and the sum of the parts has the bits that one process would
have found. The grid itself depends on the largest error of the whole batch, hence `largest`.

Engines are those of the libraries: torch.distributed, jax.distributed, NCCL, MPI. host.py has those for numpy arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from stsbp_spec.errors import BackendError, SpecError
from stsbp_spec.typing import AnyArray, Array

__all__ = ["Alone", "Collective", "Part", "Rendezvous", "Through", "parts_of"]


@dataclass(frozen=True)
class Rendezvous:
    """Which of several processes this one is, and where they meet.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number among those on this machine.
        address, port: of rank 0.
        launcher: who started them, for messages: `torchrun`, `Slurm`, `Open MPI`, ...
        timeout: seconds that one waits for the others.
    """

    rank: int
    size: int
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500
    launcher: str = ""
    timeout: float = 60.0


@dataclass(frozen=True)
class Part:
    """Some samples, one after the other, of a batch.

    Attributes:
        first: number of the first one in the batch.
        count: how many; 0: none.
        batch: samples of the whole batch.
    """

    first: int
    count: int
    batch: int

    @property
    def end(self) -> int:
        """Number after the last one."""
        return self.first + self.count

    def cut(self, count: int) -> tuple[Part, ...]:
        """The part in pieces of `count` samples, the last one possibly of fewer; a part of none is one piece."""
        firsts = range(self.first, max(self.end, self.first + 1), count)
        return tuple(Part(first, min(count, self.end - first), self.batch) for first in firsts)


def parts_of(batch: int, size: int) -> tuple[Part, ...]:
    """A batch in `size` parts that differ by at most one sample; with fewer samples than parts the last are empty."""
    if size < 1:
        raise SpecError(f"a batch is cut into at least 1 part, got {size}")
    short, longer = divmod(batch, size)
    counts = [short + (rank < longer) for rank in range(size)]
    return tuple(Part(sum(counts[:rank]), count, batch) for rank, count in enumerate(counts))


class Collective(ABC, Generic[Array]):
    """Processes that compute one step together; every one of them calls the same methods in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        engine: what carries the messages, where other backends send the same ones through it; empty: none does.
    """

    rank: int
    size: int
    engine: str = ""

    # On native arrays, where they lie.
    @abstractmethod
    def largest(self, x: Array) -> Array:
        """Elementwise maximum, over all processes, of integers: of the bits of magnitudes, so that NaN wins."""

    @abstractmethod
    def start_total(self, x: Array) -> Callable[[], Array]:
        """Begin to add up `x`, float32, float64 or int64, over all processes; what is returned waits for the sum.

        Sums of float64 on one grid are exact. Meanwhile the caller goes on, and leaves `x` as it is.
        """

    # On the host.
    @abstractmethod
    def gather(self, x: AnyArray) -> list[AnyArray]:
        """`x` `[n]` of every process, in the order of their ranks; lengths may differ, types may not."""

    @abstractmethod
    def broadcast(self, message: bytes | None) -> bytes:
        """What rank 0 gives; the others give None."""

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.broadcast(b"" if self.rank == 0 else None)

    def parts(self, batch: int) -> tuple[Part, ...]:
        """Which samples of a batch each process has, in the order of their ranks."""
        return parts_of(batch, self.size)

    def pieces(self, batch: int, micro_batch: int | None) -> tuple[Part, ...]:
        """This process's part in pieces of up to `micro_batch` samples; None: in one. An empty piece is allowed."""
        part = self.parts(batch)[self.rank]
        return part.cut(micro_batch or max(1, part.count))

    def beat(self, what: str) -> None:
        """Told what is computed next, for whoever watches whether the process still moves."""

    def close(self) -> None:
        """Leave the others; nothing may be called afterwards."""


class Alone(Collective[Array]):
    """One process: everything is its own."""

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


class Through(Collective[Array]):
    """Those of another collective, whose arrays are of another kind; only those on the host go through it as they are.

    Args:
        others: the other collective, which is closed with this one.
    """

    def __init__(self, others: Collective[Any]) -> None:
        self.rank, self.size, self.others = others.rank, others.size, others

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return self.others.gather(x)

    def broadcast(self, message: bytes | None) -> bytes:
        return self.others.broadcast(message)

    def close(self) -> None:
        self.others.close()
