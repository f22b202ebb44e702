"""The devices on which kernels run: an array module (`xp`: cupy or numpy), launches and matrix products.

The launchers of this package only use `Runtime`. Its two kinds are in host.py and cuda.py. Activations are
channels-last in memory, but have the logical shapes of the spec. `memory` and `logical` return views where possible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from stsbp_spec.typing import AnyArray, Shape

from stsbp_cupy.engine.source import CudaSource, KernelEntry, source_files

__all__ = ["Array", "Runtime", "joined", "lanes_of", "logical", "memory", "rounded"]

Array: TypeAlias = AnyArray
"""numpy's array on the device `host`, else CuPy's array. The latter has the same methods but no type annotations."""


class Runtime(ABC):
    """A device with compiled kernels: those of the .cu files, and those of loaded sources."""

    xp: Any
    """numpy, or cupy, which has functions of the same names."""
    warp_size: ClassVar[int]
    reduction_threads: ClassVar[int]
    """Number of threads that share a reduction."""
    element_threads: ClassVar[int] = 2**62
    """Largest number of threads that share the elements of a printed kernel."""
    chunk_bytes: ClassVar[int]
    """Memory in bytes for the unfolded windows of a convolution."""
    tensor_cores: bool = False
    """Whether half-precision products with float32 sums were proved to be exact on this device."""

    def __init__(self) -> None:
        self._kernels: dict[str, tuple[KernelEntry, Any]] = {}
        self._loaded: set[str] = set()
        self.load(*source_files())

    def load(self, *sources: CudaSource) -> None:
        """Make kernels available to `launch`. Compiles them if necessary. A source with one kernel has the kernel's
        name.

        Raises:
            BackendError: the kernels cannot be compiled.
        """
        if new := tuple(source for source in sources if source.name not in self._loaded):
            self._kernels |= {entry.name: (entry, function) for entry, function in self.compiled(*new)}
            self._loaded |= {source.name for source in new}

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Run kernel `name` on `threads` threads."""
        entry, function = self._kernels[name]
        self.start(function, threads, entry.arguments(arguments))

    @abstractmethod
    def compiled(self, *sources: CudaSource) -> Iterator[tuple[KernelEntry, Any]]:
        """The kernels of sources, each with the function that `start` runs."""

    @abstractmethod
    def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
        """Run a kernel of `compiled`. The arguments already have the types of its parameters."""

    @abstractmethod
    def gemm(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        """`out = a b`, or `out += a b`, for matrices or stacks of them. `a` and `b` are contiguous or transposed views.

        float32 and float64 are computed in their own precision. float16 operands with a float32 `out` add in float32.
        """

    @abstractmethod
    def numpy(self, x: Array) -> AnyArray:
        """A numpy array of `x`, in its logical layout."""

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised array."""
        array: Array = self.xp.empty(shape, dtype)
        return array

    def empty_like(self, x: Array, dtype: Any = None) -> Array:
        """An uninitialised contiguous array of the shape of `x`."""
        return self.empty(x.shape, x.dtype if dtype is None else dtype)


def memory(rt: Runtime, x: Array) -> Array:
    """An activation as contiguous memory: `[..., C, H, W]` as `[..., H, W, C]`. Unchanged with fewer than four axes."""
    contiguous: Array = rt.xp.ascontiguousarray(rt.xp.moveaxis(x, -3, -1) if x.ndim >= 4 else x)
    return contiguous


def logical(rt: Runtime, x: Array) -> Array:
    """Inverse of `memory`. Returns a view."""
    view: Array = rt.xp.moveaxis(x, -1, -3) if x.ndim >= 4 else x
    return view


def joined(rt: Runtime, arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays concatenated along an axis.

    CuPy's own function sends a table of addresses to the device, which a graph cannot record.
    """
    shape, target_slices = [*arrays[0].shape], [slice(None)] * arrays[0].ndim
    shape[axis], first = sum(x.shape[axis] for x in arrays), 0
    target = rt.empty(tuple(shape), np.result_type(*(x.dtype for x in arrays)))
    for x in arrays:
        target_slices[axis] = slice(first, first + x.shape[axis])
        target[tuple(target_slices)] = x
        first += x.shape[axis]
    return target


def rounded(rt: Runtime, x: Array) -> Array:
    """float64 `x` rounded to float32, with kernels/cast.cu, because CuPy's own cast makes subnormal numbers zero."""
    if x.dtype == np.float32:
        return x
    in_order = x.flags.c_contiguous
    float64_values = x if in_order else memory(rt, x)
    float32_values = rt.empty_like(float64_values, np.float32)
    if float64_values.size:
        rt.launch(
            "round_to_float",
            min(rt.element_threads, float64_values.size),
            float64_values,
            float32_values,
            float64_values.size,
        )
    return float32_values if in_order else logical(rt, float32_values)


def lanes_of(n: int, *arrays: Array, max_lanes: int = 4) -> int:
    """Number of values per thread: `max_lanes` if `n` and the addresses of the arrays allow it, else 1."""
    if n % max_lanes:
        return 1
    for x in arrays:
        address = x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr
        if address % min(16, max_lanes * x.itemsize):
            return 1
    return max_lanes
