"""Kernels that are wrong on purpose, compiled by NVRTC: the interpreter names what is wrong. No GPU is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parents[2])]

# The emulator is found on the path above.
from emulator.ptx.machine import launch  # noqa: E402
from emulator.ptx.memory import poison  # noqa: E402
from emulator.ptx.parse import Kernel, PtxError, parse  # noqa: E402

try:
    from cupy.cuda import nvrtc

    nvrtc.getVersion()
except Exception as error:
    pytest.skip(f"NVRTC is not installed ({error}); it comes with stsbp-cupy[nvrtc]", allow_module_level=True)

SEEDS = (None, 1, 2)


def kernel(text: str, *options: str) -> Kernel:
    """The kernel `k` whose parameters and body are given."""
    program = nvrtc.createProgram(f'extern "C" __global__ void k({text}', "k.cu", [], [])
    nvrtc.compileProgram(program, ("-std=c++17", "-arch=sm_80", "-lineinfo", *options))
    return parse(nvrtc.getPTX(program).decode()).kernels["k"]


def kinds(k: Kernel, grid: int, block: int, *arguments: Any, **options: Any) -> set[str]:
    """Kinds of the findings of a launch."""
    return {finding.kind for finding in launch(k, (grid,), (block,), arguments, **options).findings}


def test_contraction_shows() -> None:
    text = "const float* a, float* o) { int i = threadIdx.x; o[i] = a[i] * a[i + 64] + a[i + 128]; }"
    a = np.random.default_rng(1).standard_normal(192).astype(np.float32)
    plain, fused = (np.zeros(64, np.float32) for _ in range(2))
    assert not kinds(kernel(text, "-fmad=false"), 1, 64, a, plain)
    assert not kinds(kernel(text, "-fmad=true"), 1, 64, a, fused)
    expected = a[:64] * a[64:128] + a[128:]
    assert (plain == expected).all()
    assert (fused != expected).any()


def test_flushing_shows() -> None:
    text = "const float* a, float* o) { int i = threadIdx.x; o[i] = a[i] * 0.5f; }"
    a, plain, flushed = np.full(32, 2.0**-126, np.float32), np.zeros(32, np.float32), np.ones(32, np.float32)
    kinds(kernel(text), 1, 32, a, plain)
    kinds(kernel(text, "-ftz=true"), 1, 32, a, flushed)
    assert (plain == 2.0**-127).all()
    assert (flushed == 0).all()


def test_an_access_one_beyond_the_end() -> None:
    k = kernel("const float* a, float* o) { int i = blockIdx.x * blockDim.x + threadIdx.x; o[i] = a[i + 1]; }")
    a, o = np.zeros(128, np.float32), np.zeros(128, np.float32)
    (finding,) = launch(k, (2,), (64,), [a, o]).findings
    assert (finding.kind, finding.count, finding.location) == ("out of bounds", 1, "k.cu:1")
    assert "block 1 thread 63: load of 4 bytes at byte 512 of argument 0, which has 512" in finding.detail


def test_an_index_of_32_bits_that_overflows() -> None:
    text = "float* o, {} count) {{ if (blockIdx.x == 0 && threadIdx.x == 0) o[({})count * 4 / 4 % 8] = 1; }}"
    count, o = 2**30 + 1, np.zeros(8, np.float32)
    assert not kinds(kernel(text.format("long long", "long long")), 1, 32, o, np.int64(count))
    assert o.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    narrow = kernel("float* o, int count) { if (threadIdx.x == 0) o[count * 4] = 1; }")
    assert kinds(narrow, 1, 32, o, np.int32(2**29 + 1)) == {"out of bounds"}


def test_a_vector_at_an_address_that_is_not_aligned() -> None:
    k = kernel("const float4* a, float4* o) { o[threadIdx.x] = a[threadIdx.x]; }")
    raw = np.zeros(140, np.float32)
    first = (-raw.ctypes.data % 16) // 4
    aligned, shifted = raw[first : first + 128], raw[first + 1 : first + 129]
    result = np.zeros(132, np.float32)
    result = result[(-result.ctypes.data % 16) // 4 :][:128]
    assert not kinds(k, 1, 32, aligned, result)
    assert kinds(k, 1, 32, shifted, result) == {"misaligned"}


SUM = """const float* a, float* o) {
    __shared__ float s[128];
    int i = threadIdx.x;
    s[i] = a[i];
    %s
    for (int n = 64; n > 0; n /= 2) { if (i < n) s[i] += s[i + n]; %s }
    if (i == 0) *o = s[0];
}"""
BARRIER = "__syncthreads();"


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_order_and_their_absence_is_a_race(seed: int | None) -> None:
    a, o = np.arange(128, dtype=np.float32), np.zeros(1, np.float32)
    assert not kinds(kernel(SUM % (BARRIER, BARRIER)), 1, 128, a, o, seed=seed)
    assert o[0] == 127 * 64
    assert "race" in kinds(kernel(SUM % ("", BARRIER)), 1, 128, a, o, seed=seed)
    assert "race" in kinds(kernel(SUM % (BARRIER, "")), 1, 128, a, o, seed=seed)


def test_uninitialised_reads() -> None:
    k = kernel("const float* a, float* o) { o[threadIdx.x] = a[threadIdx.x]; }")
    a, o = np.empty(32, np.float32), np.zeros(32, np.float32)
    poison(a)
    assert kinds(k, 1, 32, a, o, fresh=(True, False)) == {"uninitialised read"}
    text = "float* o) {{ __shared__ float s[64]; s[threadIdx.x] = 1; {} o[threadIdx.x] = s[threadIdx.x + 32]; }}"
    assert "uninitialised read" in kinds(kernel(text.format(BARRIER)), 1, 32, o)


def test_races_between_blocks_and_atomics() -> None:
    o = np.zeros(64, np.int32)
    assert kinds(kernel("int* o) { o[threadIdx.x] = 1; }"), 2, 64, o) == {"race between blocks"}
    assert not kinds(kernel("int* o) { atomicAdd(o, 1); }"), 2, 64, o)
    assert o[0] == 129
    assert "race" in kinds(kernel("int* o) { atomicAdd(o, 1); if (threadIdx.x == 5) o[1] = *o; }"), 1, 64, o)


def test_loads_through_the_read_only_cache_of_what_is_written() -> None:
    k = kernel("const float* __restrict__ a, float* __restrict__ o) { o[threadIdx.x] = a[threadIdx.x] + 1; }")
    x = np.zeros(32, np.float32)
    assert "read-only cache" in kinds(k, 1, 32, x, x)
    assert not kinds(k, 1, 32, x, np.zeros(32, np.float32))


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles(seed: int | None) -> None:
    text = "const int* a, int* o) { int v = a[threadIdx.x]; for (int n = 16; n; n /= 2) "
    k = kernel(text + "v += __shfl_xor_sync(~0u, v, n); o[threadIdx.x] = v; }")
    a, o = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    assert not kinds(k, 1, 64, a, o, seed=seed)
    assert (o == np.repeat(a.reshape(2, 32).sum(1), 32)).all()
    partial = kernel("int* o) { if (threadIdx.x < 20) o[threadIdx.x] = __shfl_xor_sync(~0u, o[threadIdx.x], 16); }")
    assert "shuffle" in kinds(partial, 1, 32, o, seed=seed)


def test_a_barrier_that_some_threads_never_reach() -> None:
    text = 'int* o) { if (threadIdx.x < 32) { %s o[0] = 1; %s } else { asm volatile("bar.sync 1;"); o[1] = 2; } }'
    with pytest.raises(PtxError, match="never come"):
        launch(kernel(text % (BARRIER, BARRIER)), (1,), (64,), [np.zeros(2, np.int32)])


@pytest.mark.parametrize(
    ("grid", "block"), [((0, 1, 1), (32, 1, 1)), ((1, 70000, 1), (32, 1, 1)), ((1, 1, 1), (2048, 1, 1))], ids=str
)
def test_launches_that_a_driver_refuses(grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    (finding,) = launch(kernel("int* o) { }"), grid, block, [np.zeros(1, np.int32)]).findings
    assert finding.kind == "geometry"


def test_a_division_by_zero() -> None:
    k = kernel("int* o) { o[threadIdx.x] = 7 / o[threadIdx.x]; }")
    assert kinds(k, 1, 32, np.zeros(32, np.int32)) == {"division by zero"}
