"""The device `cuda`: kernels compiled by NVRTC, launched by CuPy, matrix products by cuBLAS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from stsbp_spec.errors import BackendError
from stsbp_spec.typing import AnyArray

from stsbp_cupy.engine.runtime import Array, Runtime
from stsbp_cupy.engine.source import KERNELS, CudaSource, KernelEntry, built

__all__ = ["CudaRuntime", "Gemm", "compile_kernels", "gemm_layout", "problem"]

# -fmad=false although every product is an intrinsic. The floor at 2^-100 would also allow -ftz=true.
FLAGS = ("-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", f"-I{KERNELS}")
BLOCK = 256
_INSTALL = "python -m pip install 'stsbp-cupy[cuda12]' (or [cuda13], as the driver allows)"
_INSTEAD = "; without a GPU use --device host, which runs the same kernels on the CPU"


def problem() -> str | None:
    """The reason why CUDA cannot be used here, with a remedy; None: it can be used."""
    try:
        import cupy
    except ImportError as error:
        # If CuPy is installed but broken, show its own error message.
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        cause = "CuPy is not installed" if missing else f"CuPy cannot be imported ({_first_line(error)})"
        return f"{cause}; {_INSTALL}{_INSTEAD}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        name = str(error)
        if "InsufficientDriver" in name:
            return f"no CUDA driver is installed, or it is too old for this CuPy ({_first_line(error)}){_INSTEAD}"
        if "NoDevice" in name:
            return f"the CUDA driver sees no GPU ({_first_line(error)}){_INSTEAD}"
        return f"CUDA does not start ({_first_line(error)}){_INSTEAD}"
    if count == 0:
        return f"the CUDA driver sees no GPU{_INSTEAD}"
    try:
        from cupy.cuda import nvrtc
        from cupy_backends.cuda.libs import cublas

        nvrtc.getVersion()
        cublas.CUBLAS_COMPUTE_32F  # noqa: B018  # the attribute loads the library
    except (ImportError, RuntimeError) as error:
        return f"CuPy finds no cuBLAS or NVRTC ({_first_line(error)}); {_INSTALL}"
    return None


def descriptions() -> list[str]:
    """Name and memory of every GPU."""
    import cupy

    texts = []
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        name, gib = properties["name"].decode(), properties["totalGlobalMem"] / 2**30
        texts.append(f"{name}, {gib:.0f} GiB, sm_{properties['major']}{properties['minor']}")
    return texts


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def compile_kernels(source: CudaSource, architecture: str, options: Sequence[str] = FLAGS) -> tuple[bytes, bytes, str]:
    """Compile a source with NVRTC. This needs neither a device nor a driver.

    Args:
        source: the text, and its name for messages.
        architecture: for example `sm_80`.
        options: options of the compiler.

    Returns:
        The machine code (empty for a `compute_` architecture), the PTX and the log.

    Raises:
        BackendError: NVRTC refuses it.
    """
    from cupy.cuda import nvrtc

    name = f"{source.name}.cu"
    program = nvrtc.createProgram(source.text, name, [], [])
    try:
        nvrtc.compileProgram(program, (*options, f"-arch={architecture}"))
        # CuPy drops the last byte as the end of a string, but in a cubin it belongs to the program headers.
        code = nvrtc.getCUBIN(program) + b"\0" if architecture.startswith("sm_") else b""
        return code, nvrtc.getPTX(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()[:2000]
        raise BackendError(f"NVRTC cannot compile {name} for {architecture}: {_first_line(error)}\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)


def choose_architecture(capability: str, supported: Sequence[int]) -> str:
    """Compilation target for a device of `capability` ("90"): its machine code, or PTX of the newest known target."""
    if int(capability) in supported:
        return f"sm_{capability}"
    return f"compute_{max(a for a in supported if a <= int(capability))}"


class Gemm(NamedTuple):
    """A row-major product as cuBLAS sees it: `out^T = b^T a^T`, all column-major. `first` is `b`, `second` is `a`."""

    transpose_first: bool
    transpose_second: bool
    m: int
    n: int
    k: int
    first_stride: int
    second_stride: int
    out_stride: int


def gemm_layout(a: Any, b: Any, out: Any) -> Gemm:
    """Arguments of a column-major GEMM for the row-major `out = a b`. `a` and `b` are contiguous or transposed views.

    Raises:
        TypeError: a matrix is neither of these, which is a bug of the caller.
    """
    (n, k), m = a.shape, b.shape[1]
    if b.shape[0] != k or out.shape != (n, m) or not out.flags.c_contiguous:
        raise TypeError(f"no product of {a.shape} and {b.shape} fits {out.shape} with strides {out.strides}")
    layouts = []
    for x in (b, a):
        rows, columns = x.shape
        if x.flags.c_contiguous:
            layouts.append((False, columns))
        elif x.flags.f_contiguous:
            layouts.append((True, rows))
        else:
            raise TypeError(f"a matrix of shape {x.shape} has strides {x.strides}; it must be contiguous")
    (first, first_stride), (second, second_stride) = layouts
    return Gemm(first, second, m, n, k, first_stride, second_stride, m)


class CudaRuntime(Runtime):
    """One GPU.

    Args:
        index: CUDA's number of the device. It becomes the current device of the calling thread.

    Attributes:
        cublas_library: name of the cuBLAS library that CuPy has loaded, for the dynamic linker.
        recorded_gemm: function that calls `cublasGemmEx`, while a stream is captured (graphs.py); None: use CuPy.

    Raises:
        BackendError: the kernels cannot be compiled.
    """

    warp_size: ClassVar[int] = 32
    reduction_threads: ClassVar[int] = 1024 * BLOCK
    chunk_bytes: ClassVar[int] = 512 * 2**20
    recorded_gemm: Callable[..., None] | None = None

    def __init__(self, index: int) -> None:
        import cupy
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cublas

        self.xp: Any = cupy
        self._cublas, self._handle = cublas, device.get_cublas_handle
        cupy.cuda.Device(index).use()
        self._capability = str(cupy.cuda.Device(index).compute_capability)
        super().__init__()

    @property
    def cublas_library(self) -> str:
        return f"libcublas.so.{self._cublas.getVersion(self._handle()) // 10000}"

    def compiled(self, *sources: CudaSource) -> Iterator[tuple[KernelEntry, Any]]:
        for source in sources:
            module = self.xp.RawModule(path=str(_compiled(source, self._capability)))
            for entry in source.entries:
                yield entry, module.get_function(entry.name)

    def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
        function(((threads + BLOCK - 1) // BLOCK,), (BLOCK,), tuple(arguments))

    def gemm(self, a: Any, b: Any, out: Any, *, accumulate: bool = False) -> None:
        if out.ndim == 3:
            for matrices in zip(a, b, out, strict=True):
                self.gemm(*matrices, accumulate=accumulate)
            return
        # gemmEx with an explicit precision, so that neither CUPY_TF32 nor a math mode can select TF32.
        blas, layout = self._cublas, gemm_layout(a, b, out)
        compute = blas.CUBLAS_COMPUTE_64F if out.dtype == np.float64 else blas.CUBLAS_COMPUTE_32F
        alpha, beta = np.array(1.0, out.dtype), np.array(1.0 if accumulate else 0.0, out.dtype)
        operand, result = _CUDA_TYPES[a.dtype.char], _CUDA_TYPES[out.dtype.char]
        call = self.recorded_gemm or partial(blas.gemmEx, self._handle())
        call(
            blas.CUBLAS_OP_T if layout.transpose_first else blas.CUBLAS_OP_N,
            blas.CUBLAS_OP_T if layout.transpose_second else blas.CUBLAS_OP_N,
            layout.m, layout.n, layout.k, alpha.ctypes.data,
            b.data.ptr, operand, layout.first_stride,
            a.data.ptr, operand, layout.second_stride,
            beta.ctypes.data, out.data.ptr, result, layout.out_stride,
            compute, blas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def numpy(self, x: Array) -> AnyArray:
        result: AnyArray = self.xp.asnumpy(x)
        return result


# cudaDataType_t of library_types.h, by the numpy character of the dtype.
_CUDA_TYPES = {"f": 0, "d": 1, "e": 2}


@cache
def _compiled(source: CudaSource, capability: str) -> Path:
    from cupy.cuda import nvrtc

    architecture = choose_architecture(capability, nvrtc.getSupportedArchs())
    version = ".".join(map(str, nvrtc.getVersion()))
    flags = re.sub(r"-I\S+", "", " ".join(FLAGS))
    suffix = ".cubin" if architecture.startswith("sm_") else ".ptx"

    def build(scratch: Path) -> None:
        machine, ptx, _ = compile_kernels(source, architecture)
        scratch.write_bytes(machine or ptx)

    parts = (version, architecture, flags, source.text, "complete cubin")  # earlier files lack their last byte
    return built(f"{source.name}-{architecture}", parts, suffix, build)
