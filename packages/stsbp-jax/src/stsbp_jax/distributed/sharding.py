"""Programs that run on several devices, each device with its shard of the samples.

All shards of a program have the same size. If the batch has too few samples for this, silent samples are added to the
ends of the last shards. The error signals of these samples are zero, and their spikes are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stsbp_spec.distributed.collective import BatchSlice, Collective
from stsbp_spec.distributed.host import connection
from stsbp_spec.engine.programs import Gradients, gradients, output

from stsbp_jax.engine.compiling import Compiled
from stsbp_jax.engine.host_callback import original_errors

__all__ = ["AXES", "EVERYWHERE", "PROCESSES", "Spread", "SpreadGradients", "SpreadOutput", "guarded", "pieces_of_all"]

AXES = ("process", "device")
_STATUS = re.compile("[A-Z_]+: ")

_spec: Any = PartitionSpec
EVERYWHERE = _spec()
PROCESSES = _spec(AXES[0])
"""The first axis has a row for each process. All devices of a process have copies of its row."""
FIRST, SECOND = _spec(AXES), _spec(None, AXES)
"""The first or the second axis is divided, and each device has a piece."""


@contextmanager
def guarded(collective: Collective[Any]) -> Iterator[None]:
    """`host.connection` for the errors that JAX raises when other processes have ended, and `original_errors`."""
    try:
        with original_errors():
            yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A program that runs synchronously raises a ValueError whose message begins like XLA's errors.
        is_xla_error = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error))
        if collective.size == 1 or not is_xla_error or "RESOURCE_EXHAUSTED" in str(error):
            raise
        with connection(collective):
            raise RuntimeError(str(error)) from error


def pieces_of_all(parts: Sequence[BatchSlice], micro_batch: int | None) -> list[tuple[BatchSlice, ...]]:
    """`Collective.pieces` of each process. All have the same number of pieces, because all run the same program.

    The last pieces may be empty.
    """
    longest = max(1, *(part.count for part in parts))
    size = micro_batch or longest
    starts = range(0, longest, size)
    return [
        tuple(BatchSlice(part.first + i, min(size, max(0, part.count - i)), part.batch) for i in starts)
        for part in parts
    ]


@dataclass(frozen=True)
class Spread:
    """Converts arrays of this process to parts of arrays of all processes, and back.

    Attributes:
        mesh: devices, `[processes, devices of each process]`.
        local: devices of this process. The process's own arrays are on the first one.
    """

    mesh: Mesh
    local: tuple[Any, ...]

    def copies(self, x: Array) -> Array:
        """Copies of `x`, which all processes have, on all devices."""
        parts = [jax.device_put(x, device) for device in self.local]
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(self.mesh, EVERYWHERE), parts)

    def shards(self, x: Array, shard: int) -> Array:
        """`x` `[T, B, ...]`, padded with zeros and divided along `B` into a shard for each device of all processes."""
        samples = shard * len(self.local)
        padded = x if x.shape[1] == samples else _lengthened(x, samples)
        parts = [
            jax.device_put(padded if len(self.local) == 1 else padded[:, i * shard : (i + 1) * shard], device)
            for i, device in enumerate(self.local)
        ]
        shape = (len(x), shard * self.mesh.size, *x.shape[2:])
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, SECOND), parts)

    def local_copy(self, x: Array) -> Array:
        """This process's copy of an array that all devices have."""
        copies: list[Array] = [shard.data for shard in x.addressable_shards if shard.device == self.local[0]]
        return copies[0]

    def joined(self, x: Array, axis: int, count: int | None = None) -> Array:
        """This process's part of an array that is divided along `axis`, or the first `count` elements of this part."""
        by_device = {shard.device: shard.data for shard in x.addressable_shards}
        parts = [jax.device_put(by_device[device], self.local[0]) for device in self.local]
        array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
        return array if count in (None, array.shape[axis]) else lax.slice_in_dim(array, 0, count, axis=axis)


class SpreadGradients:
    """`programs.gradients` on the devices of all processes; see `JaxBackend.compiled`."""

    def __init__(self, backend: Any, spread: Spread, *fixed: Any) -> None:
        network, loss, penalties, precision, memory, collective, parts = fixed
        self._collective, self._spread = collective, spread
        devices = len(spread.local)
        micro = parts[1].first - parts[0].first if len(parts) > 1 else None
        pieces = list(zip(*pieces_of_all(collective.parts(parts[0].batch), micro), strict=True))
        self._shards = [-(-max(1, *(part.count for part in piece)) // devices) for piece in pieces]

        def program(*args: Any) -> Gradients[Array]:
            device_parts = [
                _shard_of_device(piece, shard, devices) for piece, shard in zip(pieces, self._shards, strict=True)
            ]
            return gradients(backend, network, loss, penalties, precision, memory, collective, device_parts, *args)

        takes = (EVERYWHERE, SECOND, SECOND, EVERYWHERE, SECOND)
        gives: Any = Gradients(EVERYWHERE, EVERYWHERE, SECOND, FIRST, FIRST, EVERYWHERE, FIRST)
        self._compiled = Compiled(_on_mesh(spread.mesh, program, takes, gives), "gradients")

    @property
    def seconds(self) -> float:
        return self._compiled.seconds

    def __call__(
        self, wq: Any, inputs: Any, targets: Any, dropout: Any, padding: Sequence[Any] | None = None
    ) -> Gradients[Array]:
        spread = self._spread
        # The inputs may be encoded only when they are read.
        inputs = list(inputs)
        cut = [list(map(spread.shards, group, self._shards)) for group in (inputs, targets)]
        padded = None
        if padding is not None:
            padded = [
                {name: spread.shards(x, shard) for name, x in group.items()}
                for group, shard in zip(padding, self._shards, strict=True)
            ]
        self._collective.beat("gradients")
        with guarded(self._collective):
            results = self._compiled(jax.tree.map(spread.copies, wq), *cut, dropout, padded)
        counts = [x.shape[1] for x in inputs]
        return Gradients(
            jax.tree.map(spread.local_copy, results.values),
            spread.local_copy(results.squares),
            [spread.joined(x, 1, count) for x, count in zip(results.spikes, counts, strict=True)],
            [[spread.joined(x, 0, n) for x in group] for group, n in zip(results.counts, counts, strict=True)],
            jax.tree.map(partial(spread.joined, axis=0), results.zeroed),
            jax.tree.map(spread.local_copy, results.statistics),
            jax.tree.map(partial(spread.joined, axis=0), results.penalties),
        )


class SpreadOutput:
    """`programs.output` on the devices of this process."""

    def __init__(self, backend: Any, spread: Spread, *fixed: Any) -> None:
        self._spread = spread
        takes = (EVERYWHERE, SECOND, SECOND)
        program = _on_mesh(spread.mesh, partial(output, backend, *fixed), takes, (SECOND, FIRST))
        self._compiled = Compiled(program, "output")

    @property
    def seconds(self) -> float:
        return self._compiled.seconds

    def __call__(self, wq: Any, x: Array, inside: Array | None = None) -> tuple[Array, list[Array]]:
        spread, count = self._spread, x.shape[1]
        shard = -(-count // len(spread.local))
        inside_shards = None if inside is None else spread.shards(inside, shard)
        spikes, counts = self._compiled(jax.tree.map(spread.copies, wq), spread.shards(x, shard), inside_shards)
        return spread.joined(spikes, 1, count), [spread.joined(sample_counts, 0, count) for sample_counts in counts]


def _on_mesh(mesh: Mesh, program: Callable[..., Any], takes: Any, gives: Any) -> Callable[..., Any]:
    return jax.shard_map(program, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def _shard_of_device(piece: tuple[BatchSlice, ...], shard: int, devices: int) -> Any:
    """The shard of the device that runs the program, as a `BatchSlice` of traced numbers.

    `piece` contains a part for each process.
    """
    shard_starts = [(part, i * shard) for part in piece for i in range(devices)]
    firsts = np.array([part.first + start for part, start in shard_starts]).astype(np.uint32)
    counts = np.array([min(shard, max(0, part.count - start)) for part, start in shard_starts], np.int32)
    device_index = lax.axis_index(AXES)
    count: Any = shard if (counts == shard).all() else jnp.asarray(counts)[device_index]
    return BatchSlice(jnp.asarray(firsts)[device_index], count, piece[0].batch)  # type: ignore[arg-type]


@partial(jax.jit, static_argnums=1)
def _lengthened(x: Array, samples: int) -> Array:
    """`x` `[T, B, ...]`, padded with zeros to `samples` samples."""
    return jnp.pad(x, [(0, samples - n if axis == 1 else 0) for axis, n in enumerate(x.shape)])
