"""The kernels of stsbp-cupy as NVRTC's PTX in the interpreter: a runtime in place of the device `host`.

As a pytest plugin (`-p emulator.cupy_kernels`) it replaces the runtime of that device: numpy is still the array module,
but every launch has the geometry of the device `cuda`, and every finding is an error of the launch. `$PTX_ARCH`
(sm_80) is the target, `$PTX_SEED` chooses a random order of warps, branches, blocks and atomics, and
`$PTX_TENSOR_CORES=1` takes the half-precision path.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import numpy as np
from stsbp_cupy.engine import cuda, host
from stsbp_cupy.engine.runtime import Array, Runtime
from stsbp_cupy.engine.source import CudaSource, KernelEntry
from stsbp_spec.typing import AnyArray, Shape

from emulator.mutants import changed
from emulator.ptx.machine import launch
from emulator.ptx.memory import poison
from emulator.ptx.parse import Module, parse

__all__ = ["PtxFinding", "PtxRuntime", "install"]

_HostRuntime = host.HostRuntime


class PtxFinding(AssertionError):
    """A launch did something that a device answers with an error, with undefined bits, or only sometimes."""


@cache
def module_of(source: CudaSource, architecture: str) -> Module:
    """The kernels of a source, compiled by NVRTC with the flags of the device `cuda`."""
    source, flags = changed(source, cuda.FLAGS)
    _, ptx, _ = cuda.compile_kernels(source, architecture, (*flags, "-lineinfo"))
    return parse(ptx.decode())


class PtxRuntime(Runtime):
    """The runtime of the device `host` with the constants and the launches of the device `cuda`.

    Attributes:
        architecture: target of NVRTC.
        seed: of a random order; None: the order of the program.
        launches: number of launches of each kernel.
        notes: what launches did that is no error, such as reads of registers whose value is dropped later.
    """

    xp: Any = np
    warp_size: ClassVar[int] = cuda.CudaRuntime.warp_size
    reduction_threads: ClassVar[int] = cuda.CudaRuntime.reduction_threads
    chunk_bytes: ClassVar[int] = _HostRuntime.chunk_bytes
    architecture: str = os.environ.get("PTX_ARCH", "sm_80")
    seed: int | None = int(os.environ["PTX_SEED"]) if "PTX_SEED" in os.environ else None
    tensor_cores: bool = os.environ.get("PTX_TENSOR_CORES") == "1"
    launches: ClassVar[Counter[str]] = Counter()
    notes: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        self._uninitialised: dict[int, weakref.ref[Any]] = {}
        super().__init__()

    def compiled(self, *sources: CudaSource) -> Iterator[tuple[KernelEntry, Any]]:
        for source in sources:
            module = module_of(source, self.architecture)
            for entry in source.entries:
                yield entry, module.kernels[entry.name]

    def start(self, function: Any, threads: int, arguments: list[Any]) -> None:
        grid = (threads + cuda.BLOCK - 1) // cuda.BLOCK
        fresh = [isinstance(x, np.ndarray) and self._is_fresh(x) for x in arguments]
        self.launches[function.name] += 1
        seed = None if self.seed is None else self.seed + self.launches.total()
        result = launch(function, (grid,), (cuda.BLOCK,), arguments, seed=seed, fresh=fresh)
        self.notes.update(result.notes)
        if result.findings:
            raise PtxFinding("\n".join(map(str, result.findings)))

    def gemm(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> None:
        _HostRuntime.gemm(self, a, b, out, accumulate=accumulate)  # type: ignore[arg-type]  # it uses nothing of self

    def numpy(self, x: Array) -> AnyArray:
        return x

    def empty(self, shape: Shape, dtype: Any) -> Array:
        array: Array = self.xp.empty(shape, dtype)
        owner, key = _owner(array), id(_owner(array))
        if array.size:
            poison(owner)
        self._uninitialised[key] = weakref.ref(owner, lambda _: self._uninitialised.pop(key, None))
        return array

    def _is_fresh(self, x: AnyArray) -> bool:
        owner = _owner(x)
        reference = self._uninitialised.get(id(owner))
        return reference is not None and reference() is owner


def _owner(x: AnyArray) -> AnyArray:
    """The array whose memory `x` is a view of."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def install() -> None:
    """Run the device `host` in the interpreter from now on."""
    host.HostRuntime = PtxRuntime  # type: ignore[assignment,misc]


def pytest_configure() -> None:
    """Install the runtime before tests import that of the device `host`."""
    install()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many launches there were."""
    runtime = PtxRuntime
    total, names = runtime.launches.total(), {name.rsplit("_", 1)[0] for name in runtime.launches}
    order = "in the order of the program" if runtime.seed is None else f"in a random order (seed {runtime.seed})"
    terminalreporter.write_line(f"PTX {runtime.architecture}, {order}: {total} launches of {len(names)} kernels")
