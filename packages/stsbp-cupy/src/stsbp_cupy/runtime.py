"""Where kernels run: an array module (`xp`: cupy or numpy), launches and matrix products.

The launchers of this package are written against `Runtime` alone; host.py and cuda.py are its two kinds. Activations
are channels-last in memory behind the spec's logical shapes: `memory` and `logical` are views wherever they can be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
from stsbp_spec.typing import AnyArray, Shape

from stsbp_cupy.source import Entry, Source, source_files

__all__ = ["Array", "Runtime", "lanes_of", "logical", "memory"]

Array: TypeAlias = AnyArray
"""numpy's array on the device `host`, else CuPy's, which answers to the same names and has no types of its own."""


class Runtime(ABC):
    """A device with compiled kernels: those of the .cu files, and those of sources that were loaded."""

    xp: Any
    """numpy, or cupy which answers to the same names."""
    warp_size: ClassVar[int]
    reduction_threads: ClassVar[int]
    """Threads that share a reduction."""
    element_threads: ClassVar[int] = 2**62
    """Most threads that share the elements of a printed kernel."""
    chunk_bytes: ClassVar[int]
    """Memory for the unfolded windows of a convolution."""
    tensor_cores: bool = False
    """Whether half-precision products with float32 sums have been proved exact on this device."""

    def __init__(self) -> None:
        self._kernels: dict[str, tuple[Entry, Any]] = {}
        self._loaded: set[str] = set()
        self.load(*source_files())

    def load(self, *sources: Source) -> None:
        """Make kernels known to `launch`, compiled unless they are; the name of a source with one is the kernel's.

        Raises:
            BackendError: they cannot be compiled.
        """
        if new := tuple(source for source in sources if source.name not in self._loaded):
            self._kernels |= {entry.name: (entry, function) for entry, function in self.compiled(*new)}
            self._loaded |= {source.name for source in new}

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Run kernel `name` on `threads` threads."""
        entry, function = self._kernels[name]
        self.start(function, threads, entry.arguments(arguments))

    @abstractmethod
    def compiled(self, *sources: Source) -> Iterator[tuple[Entry, Any]]:
        """The kernels of sources, each with what `start` runs."""

    @abstractmethod
    def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
        """Run a kernel of `compiled` with arguments of its parameters' types."""

    @abstractmethod
    def gemm(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        """`out = a b`, or `out += a b`, matrices, or stacks of them; each of `a`, `b` contiguous or a transposed view.

        float32 and float64 in their own precision; float16 operands with a float32 `out` add in float32.
        """

    @abstractmethod
    def numpy(self, x: Array) -> AnyArray:
        """A numpy array of `x`, in its logical layout."""

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised array."""
        made: Array = self.xp.empty(shape, dtype)
        return made

    def empty_like(self, x: Array, dtype: Any = None) -> Array:
        """An uninitialised contiguous array of the shape of `x`."""
        return self.empty(x.shape, x.dtype if dtype is None else dtype)


def memory(rt: Runtime, x: Array) -> Array:
    """Contiguous memory of an activation: `[..., C, H, W]` as `[..., H, W, C]`, fewer than four axes as they are."""
    lying: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(x, -3, -1) if x.ndim >= 4 else x)
    return lying


def logical(rt: Runtime, x: Array) -> Array:
    """Inverse of `memory`, a view."""
    view: Array = rt.xp.moveaxis(x, -1, -3) if x.ndim >= 4 else x
    return view


def lanes_of(n: int, *arrays: Array, most: int = 4) -> int:
    """Values that a thread may handle at once: `most` where `n` and the arrays' addresses allow it, else 1."""
    if n % most:
        return 1
    for x in arrays:
        address = x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr
        if address % min(16, most * x.itemsize):
            return 1
    return most
