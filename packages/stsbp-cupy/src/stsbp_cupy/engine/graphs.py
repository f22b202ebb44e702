"""CUDA graphs of a training step (stsbp_spec/engine/replay.py), with CuPy's streams. They are off unless
`STSBP_CUDA_GRAPHS=1`.

They have not been run on a GPU yet. CuPy refuses cuBLAS while a stream is captured
(https://github.com/cupy/cupy/issues/6290). Recorded products therefore call the same library directly, with their own
handle and workspace, as cuBLAS requires. All recordings share one memory pool, which nothing else uses. This is safe,
because they never run at the same time, and results are copied out before another recording runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.replay import Graphs
from stsbp_spec.errors import BackendError

from stsbp_cupy.engine.cuda import CudaRuntime
from stsbp_cupy.engine.runtime import Array

__all__ = ["Blas", "CupyGraphs"]

Result = TypeVar("Result")

_WORKSPACE = 32 * 2**20
"""Workspace size in bytes that cuBLAS recommends for Hopper."""


class Blas:
    """cuBLAS through its C interface, on one stream.

    Args:
        library: library name for the dynamic linker, such as `libcublas.so.13`.
        stream: address of the stream.
        workspace: address of `_WORKSPACE` bytes on the device.

    Raises:
        BackendError: the library is not found, or it reports an error.
    """

    def __init__(self, library: str, stream: int, workspace: int) -> None:
        try:
            self._library: Any = _load(library)
        except OSError as error:
            raise BackendError(f"CUDA graphs: {library} is not found ({error})") from error
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        # Set the workspace after the stream, because setting the stream resets it.
        size = ctypes.c_size_t(_WORKSPACE)
        self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(workspace), size)

    def gemm_ex(self, *arguments: int) -> None:
        """Call `cublasGemmEx` without its handle: transposes, sizes, and address, type and stride of each matrix."""
        typed = zip(_GEMM, arguments, strict=True)
        self._call("cublasGemmEx", self._handle, *(kind(value) for kind, value in typed))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise BackendError(f"CUDA graphs: {name} returned {status}")


_load: Callable[[str], Any] = ctypes.CDLL
_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
_GEMM: tuple[Any, ...] = (
    *(_INT,) * 5, _POINTER, _POINTER, _INT, _INT, _POINTER, _INT, _INT, _POINTER, _POINTER, _INT, _INT, _INT, _INT,
)  # fmt: skip


class CupyGraphs(Graphs[Array]):
    """Recordings on a GPU."""

    def __init__(self, backend: Operations[Array], rt: CudaRuntime) -> None:
        super().__init__(backend)
        self._rt, self._cuda = rt, rt.xp.cuda
        self._stream = self._cuda.Stream(non_blocking=True)
        self._pool = self._cuda.MemoryPool()
        self._workspace = self._cuda.alloc(_WORKSPACE)
        self._blas = Blas(rt.cublas_library, self._stream.ptr, self._workspace.ptr)

    def twin(self, x: Array) -> Array:
        empty: Array = self._rt.xp.empty_like(x)
        return empty

    def copy(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        for source, target in pairs:
            target[...] = source

    def record(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self._cuda.runtime.deviceSynchronize()
        with self._stream, self._cuda.using_allocator(self._pool.malloc):
            run()  # allocates all memory in the pool, so that nothing is allocated while the stream is captured
            self._stream.synchronize()
            self._stream.begin_capture()
            self._rt.recorded_gemm = self._blas.gemm_ex
            try:
                results = run()
            except BaseException:
                self._rt.recorded_gemm = None
                self._end_quietly()
                raise
            self._rt.recorded_gemm = None
            graph = self._stream.end_capture()
        # On the current stream, like everything else.
        return graph.launch, results

    def _end_quietly(self) -> None:
        """End a capture after an error. Errors of the end itself are ignored."""
        try:
            self._stream.end_capture()
        except self._cuda.runtime.CUDARuntimeError:
            return
