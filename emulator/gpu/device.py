"""A GPU made of host memory and the PTX interpreter, behind libemulated.so (build.py). Import it before cupy.

Everything runs at once, in the order of the calls; a stream that is captured records instead. What a real driver would
refuse is refused with its error number. `LAUNCHES`, `FINDINGS` and `WARNINGS` tell what happened.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import struct
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from stsbp_spec.typing import AnyArray

from emulator.ptx.machine import Finding, launch
from emulator.ptx.memory import Allocation, Memory
from emulator.ptx.parse import Kernel, Module, PtxError, parse

CAPABILITY = int(os.environ.get("PTX_ARCH", "sm_80").split("_")[1])
SEED = os.environ.get("PTX_SEED")
RACES = os.environ.get("PTX_RACES", "1") == "1"
LAUNCHES: Counter[str] = Counter()
CALLS: Counter[str] = Counter()
FINDINGS: list[Finding] = []
WARNINGS: Counter[str] = Counter()
NOTES: set[str] = set()
memory = Memory()
_held: dict[int, Any] = {}
_modules: dict[int, Module] = {}
_functions: dict[int, Kernel] = {}
_streams: dict[int, dict[str, Any]] = {0: {"capturing": None, "blocking": True}}
_graphs: dict[int, list[Any]] = {}
_texts: dict[str, Module] = {}
_handles: dict[int, int] = {}
_counter = [0x1000]
total = 8 << 30
_ERRORS = {0: "cudaSuccess", 1: "cudaErrorInvalidValue", 2: "cudaErrorMemoryAllocation", 100: "cudaErrorNoDevice",
           200: "cudaErrorInvalidKernelImage", 400: "cudaErrorInvalidResourceHandle", 500: "cudaErrorSymbolNotFound",
           600: "cudaErrorNotReady", 700: "cudaErrorIllegalAddress", 719: "cudaErrorLaunchFailure",
           801: "cudaErrorNotSupported",
           900: "cudaErrorStreamCaptureUnsupported", 901: "cudaErrorStreamCaptureInvalidated",
           906: "cudaErrorStreamCaptureImplicit"}  # fmt: skip
_strings = {number: ctypes.c_char_p(text.encode()) for number, text in _ERRORS.items()}


def _text_of(error: int) -> int:
    """Address of the name of an error."""
    return ctypes.cast(_strings.get(i32(error), _strings[1]), ctypes.c_void_p).value or 0


def new() -> int:
    """A number for a handle."""
    _counter[0] += 0x10
    return _counter[0]


def put(address: int, value: int, size: int) -> int:
    """Write an integer to host memory; 0, which means success."""
    ctypes.memmove(address, (value & (2 ** (8 * size) - 1)).to_bytes(size, "little"), size)
    return 0


def get(address: int, size: int) -> int:
    """Read an unsigned integer from host memory."""
    return int.from_bytes(ctypes.string_at(address, size), "little")


def i32(x: int) -> int:
    """The low 32 bits of an integer, as a signed integer."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def warn(text: str) -> None:
    """Count a warning, with the line of the project that led to it."""
    frame: FrameType | None = sys._getframe(2)
    caller = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if "stsbp" in name and "/emulator/" not in name:
            caller = f" ({name.rsplit('/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name})"
            break
        frame = frame.f_back
    WARNINGS[text + caller] += 1


def inside(address: int, size: int, call: str, *, written: bool = False, read: bool = False) -> None:
    """Note a range of device memory that is not within one allocation, or is read before it was written."""
    if size == 0:
        return
    ((allocation, _),) = memory.find(np.array([address], np.uint64))
    if allocation is not None and allocation.written is not None:
        part = slice(address - allocation.start, address - allocation.start + size)
        if written:
            allocation.written[part] = True
        if read and not allocation.written[part].all():
            FINDINGS.append(Finding("uninitialised read", call, "", "", f"of {allocation.name}"))
    if allocation is None or address + size > allocation.start + allocation.size:
        FINDINGS.append(Finding("out of bounds", call, "", "", f"{size} bytes at {address:#x}"))


def is_device(address: int) -> bool:
    """Whether an address lies in an allocation of the device."""
    if not memory.allocations:
        return False
    ((allocation, _),) = memory.find(np.array([address], np.uint64))
    return allocation is not None and address < allocation.start + max(allocation.size, 1)


# Streams: a captured stream records, any other runs at once.


def enqueue(stream: int, work: Any, call: str) -> int:
    """Do the work of a call on a stream now, or record it if the stream is captured. Returns CUDA's status."""
    stream = 0 if stream in (0, 1) else stream
    state = _streams.get(stream)
    if state is None:
        return 400
    if state["capturing"] is not None:
        state["capturing"].append((work, call))
        return 0
    capturing = [s for s, other in _streams.items() if other["capturing"] is not None]
    if capturing:
        if stream == 0 and any(_streams[s]["blocking"] for s in capturing):
            return 906
        warn(f"{call} outside the stream that is captured")
    status: int = work() or 0
    return status


def synchronises(call: str) -> int:
    """Whether a wait for the device is refused."""
    if any(state["capturing"] is not None for state in _streams.values()):
        warn(f"{call} while a stream is captured")
        return 900
    return 0


# Memory.


def allocate(pointer: int, size: int) -> int:
    """`cudaMalloc`. Its memory counts as not written."""
    if any(state["capturing"] is not None for state in _streams.values()):
        warn("cudaMalloc while a stream is captured")
    used = sum(a.size for a in memory.allocations)
    if used + size > total:
        return 2
    raw = np.full(size + 1024, 0xFF, np.uint8)
    start = -(-raw.ctypes.data // 512) * 512
    data = raw[start - raw.ctypes.data :][:size]
    _held[start] = raw
    memory.add(Allocation(f"allocation of {size} bytes", data, start, start, shadow=True))
    put(pointer, start, 8)
    return 0


def free(address: int) -> int:
    """`cudaFree`. An address that was not allocated is an error."""
    if address:
        if address not in _held:
            return 1
        memory.remove(address)
        del _held[address]
    return 0


def copy(to: int, source: int, size: int, kind: int) -> int:
    """`cudaMemcpy`, with the kinds of CUDA: 1 to the device, 2 from it, 3 within it, 4 by the addresses."""
    if size:
        if kind in (1, 3) or (kind == 4 and is_device(to)):
            inside(to, size, "cudaMemcpy to", written=True)
        if kind in (2, 3) or (kind == 4 and is_device(source)):
            inside(source, size, "cudaMemcpy from", read=True)
        if kind == 3 and abs(to - source) < size and to != source:
            FINDINGS.append(Finding("overlap", "cudaMemcpy", "", "", "source and target overlap"))
        ctypes.memmove(to, source, size)
    return 0


def fill(address: int, value: int, size: int) -> int:
    """`cudaMemset`."""
    inside(address, size, "cudaMemset", written=True)
    ctypes.memset(address, value & 255, size)
    return 0


def properties(pointer: int) -> int:
    """`cudaGetDeviceProperties`: the fields that CuPy reads."""
    raw = bytearray(1032)
    raw[: len(b"PTX interpreter")] = b"PTX interpreter"
    # The fields of cudaDeviceProp from totalGlobalMem to minor, and from textureAlignment on.
    threads, grid = (1024, 1024, 1024, 64), (2**31 - 1, 65535, 65535)
    most, capability = (total, 48 << 10, 65536, 32, 2**31 - 1), (CAPABILITY // 10, CAPABILITY % 10)
    struct.pack_into("<QQiiQi3i3iiQii", raw, 288, *most, *threads, *grid, 1000000, 65536, *capability)
    struct.pack_into("<QQii", raw, 368, 512, 32, 1, 8)
    ctypes.memmove(pointer, bytes(raw), len(raw))
    return 0


ATTRIBUTES = {75: CAPABILITY // 10, 76: CAPABILITY % 10, 10: 32, 16: 8, 1: 1024, 2: 1024, 3: 1024, 4: 64,
              5: 2**31 - 1, 6: 65535, 7: 65535, 8: 48 << 10, 12: 65536,
              39: 2048, 81: 64 << 10, 97: 48 << 10}  # fmt: skip


# Kernels.


def load(pointer: int, text: bytes) -> int:
    """`cuModuleLoadData` of PTX. Machine code and instructions that are not known are refused."""
    if text[:4] == b"\x7fELF":
        warn("machine code was loaded, which cannot be interpreted; ask for PTX")
        return 200
    key = text.split(b"\0")[0].decode()
    if key not in _texts:
        try:
            _texts[key] = parse(key)
        except PtxError as error:
            warn(f"PTX not understood: {error}")
            return 200
    module = _texts[key]
    if module.target > CAPABILITY:
        return 200
    number = new()
    _modules[number] = module
    put(pointer, number, 8)
    return 0


def function(pointer: int, module: int, name: str) -> int:
    """`cuModuleGetFunction`."""
    kernel = _modules[module].kernels.get(name)
    if kernel is None:
        return 500
    number = new()
    _functions[number] = kernel
    put(pointer, number, 8)
    return 0


def start(a: list[int]) -> int:
    """`cuLaunchKernel`, from its arguments. Findings become a status where CUDA has one."""
    kernel = _functions[a[0]]
    grid, block = tuple(x & 0xFFFFFFFF for x in a[1:4]), tuple(x & 0xFFFFFFFF for x in a[4:7])
    shared, stream, pointers = a[7] & 0xFFFFFFFF, a[8], a[9]
    if 0 in grid or 0 in block:
        warn(f"{kernel.name}: launch of grid {grid} block {block}")
        return 1
    values = []
    for i, parameter in enumerate(kernel.parameters):
        values.append(ctypes.string_at(get(pointers + 8 * i, 8), parameter.size))

    def work() -> int:
        seed = None if SEED is None else int(SEED) + LAUNCHES.total()
        LAUNCHES[kernel.name] += 1
        try:
            result = launch(kernel, grid, block, values, memory=memory, shared=shared, seed=seed, check_races=RACES)
        except PtxError as error:
            FINDINGS.append(Finding("not interpreted", kernel.name, "", "", str(error)))
            return 719
        NOTES.update(result.notes)
        FINDINGS.extend(result.findings)
        return 700 if any(f.kind in ("out of bounds", "misaligned") for f in result.findings) else 0

    return enqueue(stream, work, f"launch of {kernel.name}")


# cuBLAS.

_FORMATS: dict[int, np.dtype[Any]] = {0: np.dtype("f4"), 1: np.dtype("f8"), 2: np.dtype("f2")}


def _matrix(address: int, rows: int, columns: int, stride: int, kind: int, operand: str) -> AnyArray:
    dtype = _FORMATS[kind]
    count = (columns - 1) * stride + rows
    inside(address, count * dtype.itemsize, operand)
    ((allocation, _),) = memory.find(np.array([address], np.uint64))
    if allocation is not None and allocation.written is not None:
        written = allocation.written[address - allocation.start :]
        written = np.lib.stride_tricks.as_strided(
            written, (columns, rows * dtype.itemsize), (stride * dtype.itemsize, 1)
        )
        if operand[-1] == "C":
            written[...] = True
        elif not written.all():
            FINDINGS.append(Finding("uninitialised read", operand, "", "", f"of {allocation.name}"))
    raw = np.frombuffer(memoryview((ctypes.c_char * (count * dtype.itemsize)).from_address(address)), dtype)
    return np.lib.stride_tricks.as_strided(raw, (rows, columns), (dtype.itemsize, stride * dtype.itemsize))


def gemm_ex(a: list[int]) -> int:
    """`cublasGemmEx` of half precision, float32 or float64, from its arguments, computed by numpy."""
    handle, ta, tb, m, n, k = a[0], *map(i32, a[1:6])
    alpha, a_address, ltype, lda, b_address, rtype, ldb = (
        a[6],
        a[7],
        i32(a[8]),
        i32(a[9]),
        a[10],
        i32(a[11]),
        i32(a[12]),
    )
    beta, out, otype, ldc, compute = a[13], a[14], i32(a[15]), i32(a[16]), i32(a[17])
    if handle not in _handles or min(m, n, k) < 0:
        return 7
    if lda < max(1, k if ta else m) or ldb < max(1, n if tb else k) or ldc < max(1, m):
        warn(f"cublasGemmEx: strides {lda} {ldb} {ldc} of m {m} n {n} k {k} transposed {ta} {tb}")
        return 7
    if compute not in (68, 70) or ltype != rtype:
        return 15
    if (compute == 70) != (otype == 1) or ltype not in ((1,) if compute == 70 else (0, 2)):
        return 15
    size = 8 if compute == 70 else 4
    x, y = (np.frombuffer(ctypes.string_at(p, size), f"f{size}")[0] for p in (alpha, beta))
    for address, kind in ((a_address, ltype), (b_address, rtype), (out, otype)):
        if address % _FORMATS[kind].itemsize:
            return 7

    def work() -> int:
        LAUNCHES["cublasGemmEx"] += 1
        if m == 0 or n == 0:
            return 0
        c = _matrix(out, m, n, ldc, otype, "cublasGemmEx C")
        if k == 0:
            c[...] = y * c if y else 0
            return 0
        p = _matrix(a_address, *((k, m) if ta else (m, k)), lda, ltype, "cublasGemmEx A")
        q = _matrix(b_address, *((n, k) if tb else (k, n)), ldb, rtype, "cublasGemmEx B")
        product = (p.T if ta else p).astype(c.dtype) @ (q.T if tb else q).astype(c.dtype)
        c[...] = x * product + y * c if y else x * product
        return 0

    return enqueue(_handles[handle], work, "cublasGemmEx")


def memcpy_async(a: list[int]) -> int:
    """`cudaMemcpyAsync`, from its arguments. A captured copy from or to the host is warned of."""
    to, source, size, kind, stream = a[0], a[1], a[2], i32(a[3]), a[4]
    host = (not is_device(source) and source) or (not is_device(to) and to)
    if host and _streams.get(stream, {}).get("capturing") is not None:
        warn("a copy between host and device is captured; the graph keeps the host's address")
    return enqueue(stream, lambda: copy(to, source, size, kind), "cudaMemcpyAsync")


def begin(stream: int) -> int:
    """`cudaStreamBeginCapture`. The legacy stream cannot be captured."""
    if stream in (0, 1) or _streams[stream]["capturing"] is not None:
        return 900
    _streams[stream]["capturing"] = []
    return 0


def end(stream: int, pointer: int) -> int:
    """`cudaStreamEndCapture`: the recorded work is a graph."""
    recorded = _streams[stream]["capturing"]
    if recorded is None:
        return 400
    _streams[stream]["capturing"] = None
    number = new()
    _graphs[number] = recorded
    put(pointer, number, 8)
    return 0


def instantiate(pointer: int, graph: int) -> int:
    """`cudaGraphInstantiate`."""
    number = new()
    _graphs[number] = list(_graphs[graph])
    put(pointer, number, 8)
    return 0


def replay(graph: int, stream: int) -> int:
    """`cudaGraphLaunch`: the recorded work in its order, until one fails."""
    LAUNCHES["cudaGraphLaunch"] += 1
    for work, _ in _graphs[graph]:
        status: int = work() or 0
        if status:
            return status
    return 0


def stream_new(pointer: int, flags: int) -> int:
    """`cudaStreamCreateWithFlags`. Flag 1: a stream that does not wait for the legacy stream."""
    number = new()
    _streams[number] = {"capturing": None, "blocking": not flags & 1}
    put(pointer, number, 8)
    return 0


def attributes(pointer: int, address: int) -> int:
    """`cudaPointerGetAttributes`: whether memory is the device's."""
    device = is_device(address)
    put(pointer, 2 if device else 0, 4)
    put(pointer + 4, 0, 4)
    put(pointer + 8, address if device else 0, 8)
    put(pointer + 16, 0 if device else address, 8)
    return 0


def handle_new(pointer: int) -> int:
    """`cublasCreate`."""
    number = new()
    _handles[number] = 0
    put(pointer, number, 8)
    return 0


def set_handle_stream(handle: int, stream: int) -> int:
    """`cublasSetStream`."""
    _handles[handle] = stream
    return 0


FUNCTIONS: dict[str, Any] = {
    "cudaGetDeviceCount": lambda a: put(a[0], 1, 4),
    "cudaGetDevice": lambda a: put(a[0], 0, 4),
    "cudaSetDevice": lambda a: 0 if i32(a[0]) == 0 else 101,
    "cudaGetDeviceProperties_v2": lambda a: properties(a[0]),
    "cudaDeviceGetAttribute": lambda a: put(a[0], ATTRIBUTES.get(i32(a[1]), 0), 4),
    "cudaDriverGetVersion": lambda a: put(a[0], 12090, 4),
    "cudaRuntimeGetVersion": lambda a: put(a[0], 12090, 4),
    "cudaGetLastError": lambda a: 0,
    "cudaGetErrorName": lambda a: _text_of(a[0]),
    "cudaGetErrorString": lambda a: _text_of(a[0]),
    "cuGetErrorName": lambda a: put(a[1], _text_of(a[0]), 8) or 0,
    "cuGetErrorString": lambda a: put(a[1], _text_of(a[0]), 8) or 0,
    "cudaMalloc": lambda a: allocate(a[0], a[1]),
    "cudaMallocAsync": lambda a: allocate(a[0], a[1]),
    "cudaFree": lambda a: free(a[0]),
    "cudaFreeAsync": lambda a: free(a[0]),
    "cudaMemGetInfo": lambda a: put(a[0], total // 2, 8) or put(a[1], total, 8),
    "cudaMemcpy": lambda a: synchronises("cudaMemcpy") or copy(a[0], a[1], a[2], i32(a[3])),
    "cudaMemcpyAsync": memcpy_async,
    "cudaMemset": lambda a: enqueue(0, lambda: fill(a[0], a[1], a[2]), "cudaMemset"),
    "cudaMemsetAsync": lambda a: enqueue(a[3], lambda: fill(a[0], a[1], a[2]), "cudaMemsetAsync"),
    "cudaDeviceSynchronize": lambda a: synchronises("cudaDeviceSynchronize"),
    "cudaStreamSynchronize": lambda a: synchronises("cudaStreamSynchronize"),
    "cudaStreamQuery": lambda a: 0,
    "cudaStreamCreate": lambda a: stream_new(a[0], 0),
    "cudaStreamCreateWithFlags": lambda a: stream_new(a[0], i32(a[1])),
    "cudaStreamCreateWithPriority": lambda a: stream_new(a[0], i32(a[1])),
    "cudaStreamDestroy": lambda a: 0,
    "cudaStreamIsCapturing": lambda a: (
        put(a[1], _streams[0 if a[0] in (0, 1) else a[0]]["capturing"] is not None, 4) or 0
    ),
    "cudaStreamBeginCapture": lambda a: begin(a[0]),
    "cudaStreamEndCapture": lambda a: end(a[0], a[1]),
    "cudaStreamWaitEvent": lambda a: 0,
    "cudaGraphInstantiate": lambda a: instantiate(a[0], a[1]),
    "cudaGraphLaunch": lambda a: enqueue(a[1], lambda: replay(a[0], a[1]), "cudaGraphLaunch"),
    "cudaGraphDestroy": lambda a: 0,
    "cudaGraphExecDestroy": lambda a: 0,
    "cudaGraphUpload": lambda a: 0,
    "cudaEventCreateWithFlags": lambda a: put(a[0], new(), 8),
    "cudaEventCreate": lambda a: put(a[0], new(), 8),
    "cudaEventDestroy": lambda a: 0,
    "cudaEventRecord": lambda a: 0,
    "cudaEventQuery": lambda a: 0,
    "cuInit": lambda a: 100,  # NVRTC asks too, and would go on to functions that are not there
    "cuDriverGetVersion": lambda a: put(a[0], 12090, 4),
    "cudaEventSynchronize": lambda a: 0,
    "cudaPointerGetAttributes": lambda a: attributes(a[0], a[1]),
    "cudaHostAlloc": lambda a: allocate_host(a[0], a[1]),
    "cudaFreeHost": lambda a: int(_held.pop(a[0], None) is None),
    "cuCtxGetCurrent": lambda a: put(a[0], 0xC0, 8),
    "cuCtxGetDevice": lambda a: put(a[0], 0, 4),
    "cuStreamGetCtx": lambda a: put(a[1], 0xC0, 8),
    "cuModuleLoad": lambda a: load(a[0], Path(ctypes.string_at(a[1]).decode()).read_bytes()),
    "cuModuleLoadData": lambda a: load(
        a[0], b"\x7fELF" if ctypes.string_at(a[1], 4) == b"\x7fELF" else ctypes.string_at(a[1])
    ),
    "cuModuleUnload": lambda a: 0,
    "cuModuleGetFunction": lambda a: function(a[0], a[1], ctypes.string_at(a[2]).decode()),
    "cuLaunchKernel": start,
    "cuFuncGetAttribute": lambda a: put(a[0], {0: 1024}.get(i32(a[1]), 0), 4),
    "cuFuncSetAttribute": lambda a: 0,
    "cublasCreate_v2": lambda a: handle_new(a[0]),
    "cublasDestroy_v2": lambda a: 0,
    "cublasSetStream_v2": lambda a: set_handle_stream(a[0], a[1]),
    "cublasGetStream_v2": lambda a: put(a[1], _handles[a[0]], 8),
    "cublasSetWorkspace_v2": lambda a: 0 if a[1] % 256 == 0 and is_device(a[1]) else 7,
    "cublasGetVersion_v2": lambda a: put(a[1], 120901, 4),
    "cublasSetMathMode": lambda a: 0,
    "cublasGetMathMode": lambda a: put(a[1], 0, 4),
    "cublasSetPointerMode_v2": lambda a: 0,
    "cublasGetPointerMode_v2": lambda a: put(a[1], 0, 4),
    "cublasGemmEx": gemm_ex,
}


def allocate_host(pointer: int, size: int) -> int:
    """`cudaHostAlloc`."""
    raw = np.zeros(size + 64, np.uint8)
    _held[raw.ctypes.data] = raw
    put(pointer, raw.ctypes.data, 8)
    return 0


def _handle(name: bytes, arguments: Any) -> int:
    word = name.decode()
    CALLS[word] += 1
    a = [x & (2**64 - 1) for x in arguments[:20]]
    f = FUNCTIONS.get(word)
    if f is None:
        warn(f"{word} is not there")
        return 801
    try:
        return int(f(a))
    except Exception as error:
        print(f"emulated GPU: {word}: {type(error).__name__}: {error}", file=sys.stderr)
        traceback.print_exc()
        return 719


_handler = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_char_p, ctypes.POINTER(ctypes.c_long))(_handle)
_library = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
_library.emulated_set(_handler)
atexit.register(_library.emulated_set, None)  # what CuPy frees later needs no answer
