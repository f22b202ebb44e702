"""Kernels on arrays of more than 2^31 and 2^32 elements, without the memory: sparse maps, and some of the blocks."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_cupy.engine import cuda
from stsbp_cupy.engine.source import CudaSource, source_files
from stsbp_cupy.equations.recurrence import kernel
from stsbp_spec import LIF, PSP
from stsbp_spec.contract.random import threefry2x32
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray

sys.path[:0] = [str(Path(__file__).parents[2])]

# The emulator is found on the path above.
from emulator.cupy_kernels import PtxRuntime, module_of  # noqa: E402
from emulator.ptx.machine import launch  # noqa: E402

if not sys.platform.startswith("linux"):
    pytest.skip("sparse memory needs MAP_NORESERVE of Linux", allow_module_level=True)
MAP_NORESERVE = 0x4000  # in the module mmap from Python 3.13 on
try:
    from cupy.cuda import nvrtc

    nvrtc.getVersion()
except Exception as error:
    pytest.skip(f"NVRTC is not installed ({error}); it comes with stsbp-cupy[nvrtc]", allow_module_level=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)


def sparse(count: int, dtype: Any) -> AnyArray:
    """Zeros that take memory only where they are written."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE), dtype)


def source_of(name: str) -> CudaSource:
    return next(source for source in source_files() if source.name == name)


def run(source: CudaSource, entry: str, threads: int, arguments: list[Any], blocks: list[int], **options: Any) -> None:
    """Some blocks of a launch; nothing is wrong with them."""
    function = module_of(source, PtxRuntime.architecture).kernels[entry]
    grid = -(-threads // cuda.BLOCK)
    result = launch(function, (grid,), (cuda.BLOCK,), arguments, blocks=blocks, **options)
    assert not result.findings, "\n".join(map(str, result.findings))


def chosen(threads: int, lanes: int) -> tuple[list[int], AnyArray]:
    """Blocks at the ends and around 2^31 and 2^32 elements and bytes, and the elements of their threads."""
    grid, size = -(-threads // cuda.BLOCK), cuda.BLOCK * lanes
    marks = [0, grid - 1, *(2**power // size + distance for power in (30, 31, 32) for distance in (-1, 0))]
    blocks = sorted({block for block in marks if 0 <= block < grid})
    elements = np.concatenate([np.arange(block * size, (block + 1) * size) for block in blocks])
    return blocks, elements[elements < threads * lanes]


@pytest.mark.parametrize("lanes", [1, 4])
def test_lif(rng: np.random.Generator, lanes: int) -> None:
    n, steps = 1_300_000_000, 3
    equations = neuron_equations(PSP(3).filter(), LIF(5 / 3))
    source = kernel(equations.forward, ("float32",), ())
    blocks, elements = chosen(n // lanes, lanes)
    z = sparse(n * steps, np.float32)
    z.reshape(steps, n)[:, elements] = rng.normal(0.4, 1, (steps, len(elements)))
    outputs = {
        name: sparse(n * steps, np.uint8 if x.is_condition else np.float32)
        for name, x in equations.forward.outputs.items()
    }
    numbers = [np.float32(equations.constants[name]) for name in equations.forward.parameters]
    arguments = [np.int64(n), np.int32(steps), z, np.int64(n), *outputs.values(), *numbers, np.int32(lanes)]
    run(source, source.name, n // lanes, arguments, blocks)
    inputs = {"z": z.reshape(steps, n)[:, elements]}
    for name, x in NumpyBackend().recur(equations.forward, equations.constants, inputs, steps).items():
        assert x.tobytes() == outputs[name].reshape(steps, n)[:, elements].tobytes()


def test_dropout(rng: np.random.Generator) -> None:
    n, inner = 5_000_000_001, 1_000_000_007
    blocks, elements = chosen(n, 1)
    s, mask, out = sparse(n, np.uint8), sparse(inner, np.uint8), sparse(n, np.uint8)
    s[elements], mask[elements % inner] = rng.integers(0, 2, (2, len(elements)))
    run(source_of("dropout"), "dropout_u8", n, [s, mask, out, np.int64(n), np.int64(inner)], blocks)
    assert (out[elements] == s[elements] * mask[elements % inner]).all()


def test_dropout_mask() -> None:
    n, area, channels = 4_400_000_000, 1_100_000_000, 4
    blocks, elements = chosen((n + 1) // 2, 2)
    out = sparse(n, np.uint8)
    words = (np.uint32(7), np.uint32(1), np.uint32(3), np.uint64(2**31))
    run(
        source_of("dropout"), "keep_mask", (n + 1) // 2,
        [out, np.int64(n), np.int64(0), np.int64(area), np.int32(channels), *words], blocks,
    )  # fmt: skip
    place = elements % area * channels + elements // area % channels
    pair = threefry2x32((7, 1), ((elements // 2).astype(np.uint32), np.full(len(elements), 3, np.uint32)))
    word = np.where(elements % 2 == 0, *pair)
    assert (out[place] == (word.astype(np.uint64) >= 2**31)).all()


@pytest.mark.parametrize("lanes", [1, 4])
def test_max_pooling(rng: np.random.Generator, lanes: int) -> None:
    frames, height, width, channels = 70, 1024, 1024, 64
    n = frames * height * width * channels // 4
    blocks, elements = chosen(n // lanes, lanes)
    s, out, fired = sparse(4 * n, np.uint8), sparse(n, np.uint8), sparse(n, np.int32)
    position, channel = elements // channels, elements % channels
    x, y, frame = position % (width // 2), position // (width // 2) % (height // 2), position // (height * width // 4)
    rows, columns = np.array([[0], [0], [1], [1]]), np.array([[0], [1], [0], [1]])
    window = ((frame * height + 2 * y + rows) * width + 2 * x + columns) * channels + channel
    s[window] = rng.integers(0, 4, window.shape)
    sizes = map(np.int32, (channels, height, width, 2, 2, lanes))
    run(source_of("maxpool2d"), "maxpool2d_u8", n // lanes, [s, out, fired, np.int64(n), *sizes], blocks)
    assert (out[elements] == s[window].max(0)).all()
    assert (fired[elements] == s[window].argmax(0)).all()


def test_largest_magnitude() -> None:
    n, threads = 4_600_000_000, PtxRuntime.reduction_threads
    x, largest = sparse(n, np.float32), np.zeros(1, np.uint64)
    x[-1] = -7
    block = (n - 1) % threads // cuda.BLOCK  # whose last round meets the last element
    source = next(source for source in source_files() if any(entry.name == "max_abs" for entry in source.entries))
    run(source, "max_abs", threads, [x, largest, np.int64(n)], [block], check_races=False)
    assert largest.view(np.uint32)[0] == np.float32(7).view(np.uint32)
