"""The processes of JAX (`jax.distributed`) and their devices, which train one network together.

A step is one program that every device runs on its shard of the samples (sharding.py). The processes communicate by
gloo on the CPU and by NCCL on GPUs. So `largest` and `start_total` are parts of the compiled program. For concrete
arrays, they are compiled separately.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from stsbp_spec.distributed.collective import BatchSlice, Collective, Rendezvous
from stsbp_spec.distributed.host import first_line
from stsbp_spec.distributed.rendezvous import meet, port_of
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp_jax.contract.grid import enable_x64
from stsbp_jax.distributed.sharding import AXES, EVERYWHERE, PROCESSES, Spread, guarded, pieces_of_all

__all__ = ["JaxCollective", "connect", "join_processes"]

# A service that catches SIGTERM, the signal with which launchers end processes.
_PREEMPTION = "jax_enable_preemption_service"
_started: list[Rendezvous] = []
"""The rendezvous for which this module started `jax.distributed`."""


class JaxCollective(Collective[Array]):
    """Several processes with the same number of devices each, or one process with several devices.

    Args:
        devices: devices of each process, in the order of the ranks.
        rank: rank of this process.

    Attributes:
        in_programs: True, because the exchanges of a step are parts of the compiled program. The host does not take
            part in them.
    """

    in_programs = True

    def __init__(self, devices: Sequence[Sequence[Any]], rank: int) -> None:
        self.rank, self.size = rank, len(devices)
        self.spread = Spread(Mesh(np.array(devices, dtype=object), AXES), tuple(devices[rank]))
        self._copied = jax.jit(lambda rows: rows, out_shardings=NamedSharding(self.spread.mesh, EVERYWHERE))

    def largest(self, x: Array) -> Array:
        if not isinstance(x, jax.core.Tracer):
            return self._reduce_now("pmax", x)
        largest: Array = lax.pmax(x, AXES)  # type: ignore[no-untyped-call]
        return largest

    def start_total(self, x: Array) -> Callable[[], Array]:
        if not isinstance(x, jax.core.Tracer):
            total = self._reduce_now("psum", x)
        else:
            with enable_x64():
                total = lax.psum(x, AXES)  # type: ignore[no-untyped-call]
        return lambda: total

    def gather(self, x: AnyArray) -> list[AnyArray]:
        sizes = self._rows(np.array([x.nbytes], np.int64).view(np.uint8)).view(np.int64).ravel().tolist()
        # Powers of two, so that few programs are compiled.
        message = np.zeros(1 << max(0, max(sizes) - 1).bit_length(), np.uint8)
        message[: x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
        return [row[:size].view(x.dtype) for row, size in zip(self._rows(message), sizes, strict=True)]

    def broadcast(self, message: bytes | None) -> bytes:
        if (message is None) is (self.rank == 0):
            raise BackendError("rank 0 must give the message to broadcast, and no other rank")
        return self.gather(np.frombuffer(message or b"", np.uint8))[0].tobytes()

    def pieces(self, batch: int, micro_batch: int | None) -> tuple[BatchSlice, ...]:
        return pieces_of_all(self.parts(batch), micro_batch)[self.rank]

    def begin(self) -> None:
        """Connect all devices, and also the devices with the same index in each process."""
        with _on_stderr(), guarded(self):
            for axes in (AXES, AXES[:1]):
                connected = _reduced(self.spread.mesh, "psum", axes)(self._stacked(jnp.zeros(1, np.int32)))
                connected.block_until_ready()

    def close(self) -> None:
        if self.size > 1:
            jax.distributed.shutdown()  # type: ignore[no-untyped-call]

    def _rows(self, x: AnyArray) -> AnyArray:
        """`x` `[n]` of every process, as `[processes, n]`."""
        with guarded(self):
            return np.asarray(self.spread.local_copy(self._copied(self._stacked(jnp.asarray(x)))))

    def _reduce_now(self, reduce: str, x: Array) -> Array:
        """`lax.psum` or `pmax` over the processes, outside of a compiled program."""
        with enable_x64(), guarded(self):
            return self.spread.local_copy(_reduced(self.spread.mesh, reduce, AXES[:1])(self._stacked(x)))

    def _stacked(self, x: Array) -> Array:
        """An array `[processes, ...]`. Each process has its own row, on all of its devices."""
        spread = self.spread
        sharding = NamedSharding(spread.mesh, PROCESSES)
        rows = [jax.device_put(x[None], device) for device in spread.local]
        return jax.make_array_from_single_device_arrays((self.size, *x.shape), sharding, rows)


@lru_cache
def _reduced(mesh: Mesh, reduce: str, axes: tuple[str, ...]) -> Callable[[Array], Array]:
    """A compiled sum or maximum of rows `[processes, ...]`."""

    def program(rows: Array) -> Array:
        reduced: Array = getattr(lax, reduce)(rows[0], axes)
        return reduced

    compiled: Callable[[Array], Array] = jax.jit(
        jax.shard_map(program, mesh=mesh, in_specs=PROCESSES, out_specs=EVERYWHERE, check_vma=False)
    )
    return compiled


@contextmanager
def _on_stderr() -> Iterator[None]:
    """Redirect standard output to standard error, because gloo prints a message when it has connected."""
    if sys.stdout is None:
        # Python was started without standard output, so descriptor 1 may be another file.
        yield
        return
    sys.stdout.flush()
    stdout_copy = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout_copy, 1)
        os.close(stdout_copy)


def connect(rendezvous: Rendezvous, *, all_devices: bool) -> None:
    """Start `jax.distributed`, before JAX looks for devices.

    Each process sees the GPU of its machine whose index is the local rank. With `all_devices`, it sees all GPUs that
    the launcher gave it. It also sees all of them if the launcher gave it so few that none has this index.

    Raises:
        BackendError: a process did not connect in time, there is no such port, or JAX has already looked for devices.
    """
    if rendezvous.size == 1 or rendezvous in _started or jax.distributed.is_initialized():
        return
    port = port_of(rendezvous)
    meet(rendezvous, port)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    sees_fewer_devices = bool(visible) and len(visible.split(",")) <= rendezvous.local_rank
    limit = max(1, math.ceil(rendezvous.timeout))
    if hasattr(jax.config, _PREEMPTION):
        jax.config.update(_PREEMPTION, False)  # type: ignore[no-untyped-call]
    try:
        jax.distributed.initialize(
            f"{rendezvous.address}:{port}",
            rendezvous.size,
            rendezvous.rank,
            None if all_devices or sees_fewer_devices else [rendezvous.local_rank],
            initialization_timeout=limit,
            heartbeat_timeout_seconds=limit,
        )
    except RuntimeError as error:
        raise BackendError(f"rank {rendezvous.rank}: jax.distributed does not start: {first_line(error)}") from error
    _started.append(rendezvous)


def join_processes(rendezvous: Rendezvous, local: Sequence[Any]) -> JaxCollective:
    """The processes of `jax.distributed`, each with the devices that have the same indices as `local`.

    Raises:
        BackendError: `jax.distributed` was not started before JAX looked for devices, or it has other processes, or the
            processes have different numbers of devices.
    """
    processes, rank = jax.process_count(), jax.process_index()
    if (processes, rank) != (rendezvous.size, rendezvous.rank):
        raise BackendError(
            f"this is rank {rendezvous.rank} of {rendezvous.size}, but rank {rank} of {processes} to JAX, which must "
            "know its processes before it opens a device: call JaxBackend.connect(rendezvous, device) first"
        )
    platform = local[0].platform
    present = [jax.local_devices(process, platform) for process in range(processes)]
    if len({len(devices) for devices in present}) > 1:
        sizes = ", ".join(f"rank {process}: {len(devices)}" for process, devices in enumerate(present))
        raise BackendError(
            f"processes have different numbers of {platform} devices ({sizes}); give all the same number"
        )
    device_indices = [present[rank].index(device) for device in local]
    collective = JaxCollective([[devices[index] for index in device_indices] for devices in present], rank)
    collective.begin()
    if platform == "cpu" and rendezvous in _started:
        # JAX aborts a process as soon as another one is missing. A process that ends with an error would have to wait
        # for all others. Once gloo has connected the processes, it does not need JAX's service any more. Without the
        # service, a lost connection raises an exception.
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]
    return collective
