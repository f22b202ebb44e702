"""Memory layout: an array of logical shape `[T, B, C, H, W]` is stored as `[T, B, H, W, C]` (channels last).

Arrays `[T, B, N]` are stored in this order. The kernels take numpy arrays in memory order. Modules that combine several
kernels (fused.py, block.py) work on the arrays of any library in the CPU's memory. The library implements `Layout`,
through which the kernels access its arrays.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic

import numpy as np
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.typing import AnyArray, Array, Float32, Shape

from stsbp_cpu.models.neurons import NONE_KEPT, NOTHING

__all__ = ["NUMPY", "Layout", "beside_u", "empty_memory", "learned_numbers", "numbers", "offered_memory", "own_memory"]

_TO_MEMORY, _TO_LOGICAL = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)
# Kernels write past the caches only into lines of the cache. torch's allocator aligns its memory in the same way.
_LINE = 64


class Layout(ABC, Generic[Array]):
    """Gives the kernels access to the arrays of a library without a copy."""

    @abstractmethod
    def empty(self, shape: Shape, dtype: type[np.generic]) -> Array:
        """An uninitialised, laid-out array of logical shape `shape`."""

    @abstractmethod
    def laid_out(self, x: Array) -> Array:
        """`x` itself if it has the memory layout of this module, else a copy with this layout."""

    @abstractmethod
    def view(self, x: Array) -> AnyArray:
        """The memory of a laid-out array as a numpy array, `[T, B, H, W, C]`, `[T, B, N]`, ..."""

    @abstractmethod
    def from_memory(self, memory: AnyArray) -> Array:
        """Inverse of `view`."""

    def is_bytes(self, x: Array) -> bool:
        """Whether `x` contains spikes or event counts, uint8."""
        return self.view(x).dtype == np.uint8

    def rows(self, x: Array) -> AnyArray:
        """A laid-out array as `[T, M]`, one row per step."""
        memory = self.view(x)
        return memory.reshape(len(memory), -1)

    def frames(self, x: Array) -> AnyArray:
        """A laid-out `[T, B, C, H, W]` as `[T B, H, W, C]`."""
        memory = self.view(x)
        return memory.reshape(-1, *memory.shape[2:])

    def end_to_end(self, count: int, shape: Shape) -> list[Array]:
        """Uninitialised float32 arrays of logical shape `shape` that follow each other in memory."""
        if count < 2:
            return [self.empty(shape, np.float32) for _ in range(count)]
        memory: Any = self.empty((count * shape[0], *shape[1:]), np.float32)
        return [memory[i * shape[0] : (i + 1) * shape[0]] for i in range(count)]

    def concatenate(self, arrays: Sequence[Array]) -> Float32:
        """Laid-out float32 arrays as `[K, T, M]`, without a copy if they follow each other in memory."""
        parts = [self.rows(x) for x in arrays]
        if not parts:
            return NONE_KEPT
        first = parts[0]
        if len(parts) == 1:
            return first[None]
        if len({_address(x) - i * first.nbytes for i, x in enumerate(parts)}) == 1:
            strides = (first.nbytes, *first.strides)
            return np.lib.stride_tricks.as_strided(first, (len(parts), *first.shape), strides)
        return np.stack(parts)


def _address(x: AnyArray) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


class _OfferedMemory(threading.local):
    """Arrays for results that `empty_memory` has not returned yet."""

    arrays: Sequence[AnyArray] = ()


_offered = _OfferedMemory()


@contextmanager
def offered_memory(arrays: Sequence[AnyArray]) -> Iterator[None]:
    """In this context, `empty_memory` returns each of these arrays once, on this thread only.

    In a nested context, it returns only the arrays of the nested context.
    """
    outer_arrays = _offered.arrays
    _offered.arrays = list(arrays)
    try:
        yield
    finally:
        _offered.arrays = outer_arrays


def empty_memory(shape: Shape, dtype: type[np.generic]) -> AnyArray:
    """An uninitialised array: one of `offered_memory` of this shape and dtype, else new memory on a cache line."""
    arrays = _offered.arrays
    for i, x in enumerate(arrays):
        if x.shape == shape and x.dtype == dtype:
            _offered.arrays = [*arrays[:i], *arrays[i + 1 :]]
            return x
    return own_memory(shape, dtype)


def own_memory(shape: Shape, dtype: type[np.generic]) -> AnyArray:
    """An uninitialised array on a cache line, for values that are not results. It is none of `offered_memory`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -_address(memory) % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


class _Numpy(Layout[AnyArray]):
    """The layout of numpy arrays."""

    def empty(self, shape: Shape, dtype: type[np.generic]) -> AnyArray:
        if len(shape) != 5:
            return empty_memory(shape, dtype)
        t, b, c, h, w = shape
        return empty_memory((t, b, h, w, c), dtype).transpose(_TO_LOGICAL)

    def laid_out(self, x: AnyArray) -> AnyArray:
        memory = x.transpose(_TO_MEMORY) if x.ndim == 5 else x
        if memory.flags.c_contiguous:
            return x
        copy = self.empty(x.shape, x.dtype.type)
        copy[...] = x
        return copy

    def view(self, x: AnyArray) -> AnyArray:
        return x.transpose(_TO_MEMORY) if x.ndim == 5 else x

    def from_memory(self, memory: AnyArray) -> AnyArray:
        return memory.transpose(_TO_LOGICAL) if memory.ndim == 5 else memory


NUMPY = _Numpy()
"""The layout of numpy arrays."""


def beside_u(layout: Layout[Array], equations: NeuronEquations, saved: Mapping[str, Array]) -> Float32:
    """The values that are kept besides the potential, `[K, T, M]`.

    If the backward pass reads an error signal of the potential, this error signal is included. The order is that of the
    inputs of the backward equation.
    """
    return layout.concatenate([saved[name] for name in equations.backward.inputs if name != "u" and name in saved])


def learned_numbers(layout: Layout[Array], equations: NeuronEquations, learned: Mapping[str, Array]) -> Float32:
    """`NeuronResiduals.learned` as `[P, M]`, in the order of the equations."""
    return numbers(layout, equations.learned.values(), learned)


def numbers(layout: Layout[Array], names: Iterable[str], arrays: Mapping[str, Array]) -> Float32:
    """The laid-out arrays `[1, ...]` of `arrays` as `[P, M]`, in the order of `names`."""
    return layout.concatenate([arrays[name] for name in names])[:, 0] if arrays else NOTHING
