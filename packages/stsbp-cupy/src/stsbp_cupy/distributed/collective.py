"""The collective.py of the spec for CuPy: NCCL on GPUs, and the engines of numpy arrays on the device `host`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stsbp_spec.distributed import host
from stsbp_spec.distributed.collective import Collective, Rendezvous, WrappedCollective
from stsbp_spec.distributed.rendezvous import meet, port_of
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp_cupy.engine.runtime import Array, Runtime

__all__ = ["HostCollective", "NcclCollective", "join"]


class HostCollective(WrappedCollective[Array]):
    """A collective of arrays in the CPU's memory."""

    def largest(self, x: Array) -> Array:
        # Bits of float32 magnitudes. No engine supports the maximum of uint64. The sign bit is never set, so int64
        # works.
        largest: Array = self.wrapped.largest(x.view(np.int64)).view(np.uint64)
        return largest

    def start_total(self, x: Array) -> Callable[[], Array]:
        return self.wrapped.start_total(x)


class NcclCollective(Collective[Array]):
    """A collective of arrays on GPUs, with one process per GPU.

    Args:
        rendezvous: the processes.
        rt: runtime of this process.
        group: result of `cupyx.distributed.init_process_group`; None: call this function.
    """

    def __init__(self, rendezvous: Rendezvous, rt: Runtime, group: Any = None) -> None:
        self.rank, self.size, self._rt = rendezvous.rank, rendezvous.size, rt
        self._group = _group(rendezvous) if group is None else group

    def largest(self, x: Array) -> Array:
        largest: Array = self._rt.xp.empty_like(x)
        with host.connection(self):
            self._group.all_reduce(x, largest, op="max")
        return largest

    def start_total(self, x: Array) -> Callable[[], Array]:
        addend = self._rt.xp.ascontiguousarray(x)
        total = self._rt.xp.empty_like(addend)
        with host.connection(self):
            self._group.all_reduce(addend, total, op="sum")  # on the stream, so the host does not wait here
        return lambda: total

    def gather(self, x: AnyArray) -> list[AnyArray]:
        return host.gather_padded(x, self._all_gather)

    def _all_gather(self, x: AnyArray) -> list[AnyArray]:
        row = self._rt.xp.asarray(x)
        gathered = self._rt.xp.empty(self.size * x.size, x.dtype)
        with host.connection(self):
            self._group.all_gather(row, gathered, x.size)
            return list(self._rt.numpy(gathered).reshape(self.size, -1))

    def broadcast(self, message: bytes | None) -> bytes:
        return host.broadcast_message(message, self._broadcast_from_rank_0)

    def _broadcast_from_rank_0(self, x: AnyArray) -> AnyArray:
        native = self._rt.xp.asarray(x)
        with host.connection(self):
            self._group.broadcast(native, 0)
            return self._rt.numpy(native)

    def close(self) -> None:
        self._group.stop()


def join(rendezvous: Rendezvous, rt: Runtime, device: str) -> Collective[Array]:
    """Connect the processes of a launcher, for arrays on `device`.

    Raises:
        BackendError: the library that connects them is missing, or the other processes did not arrive in time.
    """
    if device == "host":
        return HostCollective(host.join(rendezvous))
    return NcclCollective(rendezvous, rt)


def _group(rendezvous: Rendezvous) -> Any:
    from cupy.cuda import nccl
    from cupyx import distributed

    if not nccl.available:
        raise BackendError(
            f"rank {rendezvous.rank} of {rendezvous.size}: CuPy finds no NCCL, which connects the processes; "
            "python -m pip install nvidia-nccl-cu12 (or nvidia-nccl-cu13, as the driver allows)"
        )
    port = port_of(rendezvous)
    meet(rendezvous, port)
    try:
        group = distributed.init_process_group(
            rendezvous.size, rendezvous.rank, backend="nccl", host=rendezvous.address, port=port
        )
        _stop_store(group)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise BackendError(
            f"rank {rendezvous.rank} of {rendezvous.size} did not meet the others at {rendezvous.address}:"
            f"{port}: {host.first_line(error)}"
        ) from error
    return group


def _stop_store(group: Any) -> None:
    """End the process through which rank 0 told the others how to connect. It would outlive this one and keep the
    port."""
    store = getattr(group, "_store", None)
    if store is not None:
        store.stop()
        store._process = None  # otherwise cupyx tries to stop it again on deletion, and fails
