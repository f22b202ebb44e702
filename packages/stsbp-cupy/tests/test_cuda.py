"""The device `cuda` without one: what is said, how products reach cuBLAS, and the whole backend on a stand-in for CuPy.

The stand-in keeps arrays in host memory, runs the kernels of device `host`, and multiplies what its `gemmEx` finds at
the addresses it is given. It proves the Python code of cuda.py (launches, layouts, precisions), and nothing about GPUs.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.engine import cuda, graphs
from stsbp_cupy.engine.cuda import choose_architecture, gemm_layout
from stsbp_cupy.engine.host import HostRuntime
from stsbp_cupy.engine.source import CudaSource
from stsbp_spec import LIF, AdamW, Batch, Linear, NetworkSpec, VanRossum, initial_weights, open_backend
from stsbp_spec.contract.arrays import NAMES
from stsbp_spec.engine.plan import rule_of
from stsbp_spec.errors import BackendError
from stsbp_spec.networks.ops import Concat
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Memory


class DeviceArray(np.ndarray[Any, Any]):
    """An array that must not be mixed with numpy's own without a transfer, and whose casts flush as CuPy's do."""

    def astype(self, dtype: Any, *arguments: Any, **options: Any) -> Any:
        """CuPy compiles its own kernels with `-ftz=true`."""
        x = super().astype(dtype, *arguments, **options)
        if self.dtype == np.float64 and x.dtype == np.float32:
            x[np.abs(x) < np.float32(2.0**-126)] = 0
        return x

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)


class Guarded(np.ndarray[Any, Any]):
    """Bytes of an uninitialised array, all of them 255 (NaN in floats), with a tail that no thread may write."""

    TAIL = 64
    tails = itertools.cycle(range(1, 255))  # another byte for each array, so that a copied tail shows

    @classmethod
    def empty(cls, shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + cls.TAIL, 255, np.uint8).view(cls)
        raw[size:] = next(cls.tails)
        array: np.ndarray[Any, Any] = np.asarray(raw[:size]).view(dtype).reshape(shape)
        return array

    @classmethod
    def intact(cls, x: Any) -> bool:
        """Whether nothing was written after the last element of `x`; true of arrays that are not guarded."""
        while x is not None and not (isinstance(x, cls) and not isinstance(x.base, cls)):
            x = x.base
        return x is None or len(set(x[-cls.TAIL :].tolist())) == 1


_FORMATS: dict[int, Any] = {0: np.float32, 1: np.float64, 2: np.float16}


def _column_major(address: int, rows: int, columns: int, stride: int, kind: int) -> np.ndarray[Any, Any]:
    """The `rows x columns` matrix at an address, one column every `stride` values."""
    dtype = np.dtype(_FORMATS[kind])
    raw = (ctypes.c_char * (stride * columns * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype).reshape(columns, stride)[:, :rows].T


def _gemm_ex(
    handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int,
    b: int, b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    """cublasGemmEx by its documentation: C = alpha op(A) op(B) + beta C, column-major."""
    assert handle == 7
    scalar: Any = ctypes.c_double if c_type == 1 else ctypes.c_float
    assert compute == (1001 if c_type == 1 else 1000), "the precision of the sums must be named"
    op_a = _column_major(a, k, m, lda, a_type).T if ta else _column_major(a, m, k, lda, a_type)
    op_b = _column_major(b, n, k, ldb, b_type).T if tb else _column_major(b, k, n, ldb, b_type)
    out = _column_major(c, m, n, ldc, c_type)
    product = op_a.astype(out.dtype) @ op_b.astype(out.dtype)
    scaled, beta_value = scalar.from_address(alpha).value * product, scalar.from_address(beta).value
    out[...] = scaled + beta_value * out if beta_value else scaled  # BLAS: with beta 0 the old C is not read


def _stand_in(count: Callable[[], int]) -> tuple[dict[str, ModuleType], Callable[[CudaSource, str], str]]:
    """Modules in CuPy's place, and what takes the place of `cuda._compiled`."""
    host = HostRuntime()
    streams: list[SimpleNamespace] = []

    def capturing() -> bool:
        return any(stream.capturing for stream in streams)

    class RuntimeError_(RuntimeError):
        pass

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            # Every argument must arrive in the kernel's own type: CuPy passes it on unchanged.
            entry, function = host._kernels[self.name]
            for parameter, value in zip(entry.parameters, arguments, strict=True):
                assert value.dtype == parameter.dtype
                assert isinstance(value, DeviceArray) == parameter.pointer, parameter.name
            host.start(function, grid[0] * block[0], list(arguments))
            assert all(map(Guarded.intact, arguments)), f"{self.name} wrote after the last element"

    def compiled(source: CudaSource, capability: str) -> str:
        assert capability == "90"
        host.load(source)
        return source.name

    def module(name: str, **names: Any) -> ModuleType:
        created = ModuleType(name)
        for key, value in names.items():
            setattr(created, key, value)
        return created

    def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a, **k: np.asarray(function(*a, **k)).view(DeviceArray)

    def asarray(x: Any) -> Any:
        assert isinstance(x, DeviceArray) or not capturing(), "nothing can be sent while a stream is captured"
        return np.asarray(x).view(DeviceArray)

    def asnumpy(x: Any) -> Any:
        assert not capturing(), "nothing can be read while a stream is captured"
        return np.array(np.asarray(x))

    def together(function: Callable[..., Any]) -> Callable[..., Any]:
        """Of more than 8 arrays CuPy sends the addresses to the device."""

        def checked(arrays: Any) -> Any:
            assert len(arrays) <= 8 or not capturing()
            return np.asarray(function(arrays)).view(DeviceArray)

        return checked

    def gemm_ex(*arguments: Any) -> None:
        if capturing():
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        _gemm_ex(*arguments)

    class Stream(SimpleNamespace):
        def __init__(self, non_blocking: bool) -> None:
            assert non_blocking, "the default stream cannot be captured"
            super().__init__(ptr=3, capturing=False)
            streams.append(self)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

        def synchronize(self) -> None:
            assert not self.capturing

        def begin_capture(self) -> None:
            self.capturing = True

        def end_capture(self) -> Any:
            # What was captured has run already, on the same arrays.
            self.capturing = False
            return SimpleNamespace(launch=lambda: None)

    cublas = module(
        "cublas", gemmEx=gemm_ex, getVersion=lambda handle: 130001, CUBLAS_COMPUTE_32F=1000, CUBLAS_COMPUTE_64F=1001,
        CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_GEMM_DEFAULT=-1,
    )  # fmt: skip
    nvrtc = module("nvrtc", getVersion=lambda: (12, 9), getSupportedArchs=lambda: (75, 80, 90))
    properties = {"name": b"Stand-in", "totalGlobalMem": 2**33, "major": 9, "minor": 0}
    runtime = SimpleNamespace(
        deviceSynchronize=lambda: None,
        getDeviceCount=count,
        CUDARuntimeError=RuntimeError_,
        getDeviceProperties=lambda index: properties,
    )
    device = module("device", get_cublas_handle=lambda: 7)
    one = SimpleNamespace(use=lambda: None, compute_capability="90")
    cuda_module = module(
        "cupy.cuda", runtime=runtime, nvrtc=nvrtc, device=device, Device=lambda index: one, Stream=Stream,
        MemoryPool=lambda: SimpleNamespace(malloc=None), using_allocator=lambda malloc: nullcontext(),
        alloc=lambda size: SimpleNamespace(ptr=5),
    )  # fmt: skip
    raw = SimpleNamespace(get_function=Kernel)
    types = {name for name in NAMES if isinstance(getattr(np, name, None), type)}
    functions = {"ascontiguousarray", "empty_like", "minimum", "packbits", "rint", "unpackbits", *NAMES} - types
    functions -= {"astype", "concat", "cumulative_sum"}  # which not every CuPy has
    cupy = module(
        "cupy", **{name: getattr(np, name) for name in types},
        **{name: on_device(getattr(np, name)) for name in functions},
    )  # fmt: skip
    vars(cupy).update(
        cuda=cuda_module, RawModule=lambda path: raw, asnumpy=asnumpy, asarray=asarray, stack=together(np.stack),
        concatenate=together(np.concatenate), empty=on_device(Guarded.empty),
    )  # fmt: skip
    libs = module("cupy_backends.cuda.libs", cublas=cublas)
    names = {"cupy": cupy, "cupy.cuda": cuda_module, "cupy_backends.cuda.libs": libs}
    names |= {name: module(name) for name in ("cupy_backends", "cupy_backends.cuda")}
    return names, compiled


@pytest.fixture
def stand_in(backend: CupyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's stand-in with one GPU, kernels built for device `host`."""
    modules, compiled = _stand_in(lambda: 1)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda, "_compiled", compiled)


@pytest.mark.usefixtures("stand_in")
def test_stand_in_opens_and_proves_tensor_cores() -> None:
    backend = CupyBackend()
    assert backend.device == "cuda"
    assert backend.rt.tensor_cores
    assert backend.notes == ("forward pass on tensor cores, proved exact at start-up",)
    first, second = CupyBackend.devices()
    assert (first.name, first.description, first.problem) == ("cuda", "Stand-in, 8 GiB, sm_90", None)
    assert second.name == "host"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("frame", [(4, 3), ()])
def test_channels_are_concatenated_without_a_function_that_graphs_cannot_record(
    frame: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(*_: Any, **__: Any) -> Any:
        raise AssertionError("CuPy's concatenate sends a table of addresses")

    monkeypatch.setattr(sys.modules["cupy"], "concatenate", recorded)
    backend, rng = CupyBackend(), np.random.default_rng(0)
    s = (rng.random((5, 2, 3, *frame)) < 0.4).astype(np.uint8)
    means = rng.integers(0, 16, (5, 2, 4, *frame)).astype(np.float32) / np.float32(16)
    rule = rule_of(backend, Concat())
    concatenated, residuals = rule.forward(Concat(), backend.asarray(s), backend.asarray(means))
    expected = np.concatenate([s.astype(np.float32), means], axis=2)
    assert np.array_equal(backend.numpy(concatenated), expected)
    one, other = rule.backward(Concat(), residuals, backend.asarray(expected))
    assert np.array_equal(backend.numpy(one), expected[:, :, :3])
    assert np.array_equal(backend.numpy(other), means)


def test_machine_code_is_kept_under_compiler_and_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def compile_kernels(source: CudaSource, architecture: str) -> tuple[bytes, bytes, str]:
        calls.append((source.name, architecture))
        return b"machine code" if architecture.startswith("sm_") else b"", b"PTX", ""

    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9), getSupportedArchs=lambda: (75, 80, 90))
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nvrtc=nvrtc))
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda, "compile_kernels", compile_kernels)
    compiled = cuda._compiled.__wrapped__
    source = CudaSource("dropout", "a text")
    path = compiled(source, "90")
    assert path.read_bytes() == b"machine code"
    assert compiled(source, "90") == path
    assert calls == [("dropout", "sm_90")]
    assert compiled(source, "120").read_bytes() == b"PTX"
    assert compiled(CudaSource("dropout", "another text"), "90") != path
    nvrtc.getVersion = lambda: (13, 0)
    assert compiled(source, "90") != path
    assert len(calls) == 4


@pytest.mark.usefixtures("stand_in")
def test_float64_is_rounded_to_subnormal_float32(reference: NumpyBackend, rng: np.random.Generator) -> None:
    backend = CupyBackend("cuda")
    tiny = np.ldexp(rng.integers(-(2**20), 2**20, (3, 2, 5)).astype(np.float64), -145)
    for x in (tiny, np.moveaxis(tiny, 0, -1), tiny.reshape(1, 3, 2, 1, 5)):
        rounded = backend.numpy(backend.rounded(backend.asarray(x)))
        assert rounded.dtype == np.float32
        assert rounded.tobytes() == x.astype(np.float32).tobytes()
        assert (np.abs(rounded[rounded != 0]) < 2.0**-126).any()
    dz, wq = np.full((1, 2, 6), 2.0**-100, np.float32), np.full((6, 4), 2.0**-40, np.float32)
    s = np.ones((1, 2, 4), np.uint8)
    for b in (backend, reference):
        rule = b.rule(Linear(6))
        _, residuals = rule.forward(Linear(6), b.asarray(s), b.asarray(wq))
        ds, _ = rule.backward(Linear(6), residuals, b.asarray(dz), precision="reproducible", need_input=True)
        assert b.numpy(ds).tolist() == [[[6 * 2.0**-140] * 4] * 2]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("tensor_cores", [True, False])
def test_stand_in_trains_to_the_bits_of_the_reference(
    reference: NumpyBackend, rng: np.random.Generator, tensor_cores: bool
) -> None:
    backend = CupyBackend("cuda:0")
    backend.rt.tensor_cores = tensor_cores
    network = NetworkSpec.parse(
        "8C5-P2-12C3p1s2-20", input_shape=(2, 18, 18), outputs=10, dropout=0.1, neuron=LIF(3, 5 / 3, 0.5)
    )
    batch = Batch(
        (rng.random((6, 3, 2, 18, 18)) < 0.2).astype(np.uint8), (rng.random((6, 3, 10)) < 0.3).astype(np.uint8)
    )
    states = []
    for b in (backend, reference):
        trainer = b.trainer(network, VanRossum(), AdamW(clip_norm=0.5), precision="reproducible", seed=3)
        state = trainer.init(initial_weights(network, 1))
        for _ in range(3):
            state, result = trainer.step(state, batch)
        assert isinstance(result.spikes, np.ndarray)
        states.append((trainer.export_state(state), result.loss, result.rates, result.grids))
    assert states[0][1:] == states[1][1:]
    for name, value in states[1][0].items():
        assert states[0][0][name].tobytes() == value.tobytes(), name
        assert type(states[0][0][name]) is np.ndarray
    fast = backend.trainer(network, VanRossum(), AdamW(clip_norm=0.5), seed=3)
    _, result = fast.step(fast.init(initial_weights(network, 1)), batch)
    _, expected = reference.trainer(network, VanRossum(), AdamW(clip_norm=0.5), seed=3).step(
        reference.trainer(network, VanRossum(), AdamW()).init(initial_weights(network, 1)), batch
    )
    assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-6)


class Cublas:
    """The C interface of cuBLAS: every call returns a status, and takes values of ctypes."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cublasCreate_v2(self, handle: Any) -> int:
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.c_void_p(11)
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        assert (handle.value, stream.value) == (11, 3)
        self.calls.append("stream")
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, memory: Any, size: Any) -> int:
        assert (handle.value, memory.value, size.value) == (11, 5, 32 * 2**20)
        self.calls.append("workspace")
        return 0

    def cublasGemmEx(self, handle: Any, *arguments: Any) -> int:
        assert handle.value == 11
        # A kind of number that does not hold an address would have cut it.
        assert list(map(type, arguments)) == [
            *[ctypes.c_int] * 5, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 2, ctypes.c_void_p,
            *[ctypes.c_int] * 2, *[ctypes.c_void_p] * 2, *[ctypes.c_int] * 4,
        ]  # fmt: skip
        _gemm_ex(7, *(x.value for x in arguments))
        self.calls.append("gemm")
        return 0


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("net", "shape", "memory", "micro_batch"),
    [
        ("8C5-P2-D0.3-12C3p1s2-20", (2, 18, 18), "full", None),
        ("4C3bn-M2-6C3bn", (2, 10, 10), "low", None),
        ("4C3-U2-20", (2, 6, 6), "full", 1),
        ("12R-10", (7,), "full", None),
    ],
)
def test_a_captured_step_has_the_bits_of_the_reference(
    reference: NumpyBackend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
    net: str, shape: tuple[int, ...], memory: Memory, micro_batch: int | None,
) -> None:  # fmt: skip
    library = Cublas()
    loaded: list[str] = []

    def load(name: str) -> Cublas:
        loaded.append(name)
        return library

    monkeypatch.setattr(graphs, "_load", load)
    monkeypatch.setattr(graphs.CupyGraphs, "WARM", 0)
    monkeypatch.setenv("STSBP_CUDA_GRAPHS", "1")
    backend = CupyBackend("cuda")
    assert loaded == ["libcublas.so.13"]
    assert library.calls == ["stream", "workspace"]
    network = NetworkSpec.parse(net, input_shape=shape, outputs=10, dropout=0.1, neuron=LIF(3, 5 / 3, 0.5))
    batch = Batch(
        (rng.random((12, 3, *shape)) < 0.2).astype(np.uint8), (rng.random((12, 3, 10)) < 0.3).astype(np.uint8)
    )
    states = []
    for b in (backend, reference):
        trainer = b.trainer(
            network, VanRossum(), AdamW(), precision="reproducible", seed=3, memory=memory, micro_batch=micro_batch
        )
        state, result = trainer.step(trainer.init(initial_weights(network, 1)), batch)
        states.append((trainer.export_state(state), result.loss, result.rates, result.zeroed))
    assert states[0][1:] == states[1][1:]
    for name, value in states[1][0].items():
        assert states[0][0][name].tobytes() == value.tobytes(), name
    assert backend.graphs is not None
    assert backend.graphs.count == 2
    assert "gemm" in library.calls
    assert isinstance(backend.rt, cuda.CudaRuntime)
    assert backend.rt.recorded_gemm is None


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_captured_is_told_and_leaves_the_device_as_it_was(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Cublas()
    monkeypatch.setattr(graphs, "_load", lambda name: library)
    monkeypatch.setattr(graphs.CupyGraphs, "WARM", 0)
    monkeypatch.setenv("STSBP_CUDA_GRAPHS", "1")
    backend = CupyBackend("cuda")
    monkeypatch.setattr(library, "cublasGemmEx", lambda *_: 13)
    network = NetworkSpec.parse("12", input_shape=(7,), outputs=10)
    batch = Batch((rng.random((4, 3, 7)) < 0.2).astype(np.uint8), (rng.random((4, 3, 10)) < 0.3).astype(np.uint8))
    trainer = backend.trainer(network, VanRossum(), AdamW())
    state = trainer.init(initial_weights(network, 1))
    for _ in range(2):
        with pytest.raises(BackendError, match="CUDA graphs: cublasGemmEx returned 13"):
            trainer.step(state, batch)
    assert isinstance(backend.rt, cuda.CudaRuntime)
    assert backend.rt.recorded_gemm is None
    monkeypatch.setattr(graphs, "_load", ctypes.cdll.LoadLibrary)
    with pytest.raises(BackendError, match=r"CUDA graphs: libcublas\.so\.13 is not found"):
        CupyBackend("cuda")


@pytest.mark.usefixtures("stand_in")
def test_tensor_cores_that_fail_the_proof_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def inexact(*arguments: Any) -> None:
        _gemm_ex(*arguments)
        if arguments[8] == 2:
            _column_major(arguments[14], arguments[3], arguments[4], arguments[16], 0)[0, 0] += 1

    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"].cublas, "gemmEx", inexact)
    backend = CupyBackend("cuda")
    assert not backend.rt.tensor_cores
    (note,) = backend.notes
    assert note.startswith("forward pass in float32: tensor cores are not exact here (1 of 600 sums of 25 ")
    assert note in caplog.text


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("kind", "dtype"), [(0, np.float32), (1, np.float64)], ids=["float32", "float64"])
def test_products_in_another_precision_are_refused(monkeypatch: pytest.MonkeyPatch, kind: int, dtype: Any) -> None:
    """As with `NVIDIA_TF32_OVERRIDE=1`, or with emulated float64."""

    copies: list[Any] = []
    bits_type: Any = np.uint32 if kind == 0 else np.uint64
    dropped = bits_type(13 if kind == 0 else 29)

    def shortened(*arguments: Any) -> None:
        _, _, tb, _, n, k, *_, b, b_type, ldb = arguments[:13]
        if b_type == kind:
            matrix = _column_major(b, *((n, k) if tb else (k, n)), ldb, kind)
            bits = np.asfortranarray(matrix).view(bits_type)
            copies.append((bits >> dropped << dropped).view(dtype))
            arguments = (*arguments[:10], copies[-1].ctypes.data, b_type, len(matrix), *arguments[13:])
        _gemm_ex(*arguments)

    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"].cublas, "gemmEx", shortened)
    with pytest.raises(BackendError, match=rf"cuBLAS does not compute {np.dtype(dtype)} products in their precision"):
        CupyBackend("cuda")


@pytest.mark.usefixtures("stand_in")
def test_device_number_beyond_the_last_gpu() -> None:
    with pytest.raises(BackendError, match=r"cannot use cuda:1: CUDA numbers 1 GPU\(s\) from 0"):
        CupyBackend("cuda:1")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("cudaErrorInsufficientDriver: too old", "no CUDA driver is installed, or it is too old for this CuPy"),
        ("cudaErrorNoDevice: none", "the CUDA driver sees no GPU"),
        ("cudaErrorUnknown: strange", "CUDA does not start (cudaErrorUnknown: strange)"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_without_driver_or_gpu_says_so_and_names_host(
    monkeypatch: pytest.MonkeyPatch, message: str, expected: str
) -> None:
    runtime = sys.modules["cupy"].cuda.runtime

    def fail() -> int:
        raise runtime.CUDARuntimeError(message)

    monkeypatch.setattr(runtime, "getDeviceCount", fail)
    with pytest.raises(BackendError) as caught:
        open_backend("cupy")
    assert str(caught.value).startswith(f"backend 'cupy' cannot use cuda: {expected}")
    assert str(caught.value).endswith("without a GPU use --device host, which runs the same kernels on the CPU")


def test_without_cupy_names_the_package_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match="cannot use cuda: CuPy is not installed; python -m pip install 'stsbp-cupy"):
        CupyBackend()
    device = CupyBackend.devices()[0]
    assert device.name == "cuda"
    assert device.problem is not None
    assert "--device host" in device.problem


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu"])
def test_unknown_device_lists_the_known_ones(device: str) -> None:
    with pytest.raises(BackendError, match="has the devices cuda, cuda:N and host, got"):
        CupyBackend(device)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("n", "k", "m"), [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1)])
def test_gemm_layout_describes_the_product(
    rng: np.random.Generator, n: int, k: int, m: int, transpose_a: bool, transpose_b: bool
) -> None:
    a = rng.integers(-9, 9, (k, n) if transpose_a else (n, k)).astype(np.float32)
    b = rng.integers(-9, 9, (m, k) if transpose_b else (k, m)).astype(np.float32)
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    out = np.full((n, m), 100, np.float32)
    g = gemm_layout(a, b, out)
    # BLAS refuses a stride shorter than a column.
    assert g.first_stride >= (g.k if g.transpose_first else g.m)
    assert g.second_stride >= (g.n if g.transpose_second else g.k)
    alpha, beta = np.array(2, np.float32), np.array(1, np.float32)
    _gemm_ex(
        7, int(g.transpose_first), int(g.transpose_second), g.m, g.n, g.k, alpha.ctypes.data,
        b.ctypes.data, 0, g.first_stride, a.ctypes.data, 0, g.second_stride,
        beta.ctypes.data, out.ctypes.data, 0, g.out_stride, 1000, -1,
    )  # fmt: skip
    assert np.array_equal(out, 2 * (a @ b) + 100)


def test_gemm_layout_refuses_what_is_not_contiguous() -> None:
    a = np.zeros((4, 6), np.float32)
    with pytest.raises(TypeError, match="must be contiguous"):
        gemm_layout(a[:, ::2], np.zeros((3, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(TypeError, match="no product of"):
        gemm_layout(a, np.zeros((3, 2), np.float32), np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(
    ("capability", "expected"), [("80", "sm_80"), ("90", "sm_90"), ("99", "compute_90"), ("130", "compute_120")]
)
def test_architecture_of_a_device_newer_than_the_compiler_is_portable(capability: str, expected: str) -> None:
    assert choose_architecture(capability, (75, 80, 90, 100, 120)) == expected
