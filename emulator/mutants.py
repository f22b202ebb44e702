"""Kernels with one fault each, and the test that catches it: `python -m emulator.mutants [NAME...]`.

Files stay as they are: `cupy_kernels.module_of` compiles the text that `$PTX_MUTANT` changes. A mutant is caught if its
test passes without it and fails with it. Every test is among those of `nox -s kernels -- --quick`, which continuous
integration runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stsbp_cupy.engine.source import KERNELS, CudaSource

__all__ = ["MUTANTS", "Mutant", "changed"]

OPERATIONS = "packages/stsbp-cupy/tests/test_operations.py"
_CONTRACT = '#include "contract.cuh"'


@dataclass(frozen=True)
class Mutant:
    """A change of a kernel's text.

    Attributes:
        description: the fault.
        old: text that is replaced, in a source or in contract.cuh, wherever it occurs.
        new: what takes its place.
        test: test that fails.
        source: name of the source; empty: every source that includes contract.cuh.
        flags: flags of the compiler that are replaced.
    """

    description: str
    old: str
    new: str
    test: str
    source: str = ""
    flags: tuple[str, str] = ("", "")


MUTANTS = {
    "shuffle": Mutant(
        "a reduction starts its shuffles at a quarter of a warp", "offset = warpSize / 2", "offset = warpSize / 4",
        f"{OPERATIONS}::test_gradient_squares", "gradient_norm",
    ),
    "threads": Mutant(
        "a stride of threads without the size of a block", "static_cast<long long>(gridDim.x) * blockDim.x",
        "static_cast<long long>(gridDim.x)", f"{OPERATIONS}::test_gradient_squares",
    ),
    "alignment": Mutant(
        "vectors of bytes aligned to 16", "alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16)", "alignas(16)",
        f"{OPERATIONS}::test_pooling",
    ),
    "stride": Mutant(
        "windows ignore the stride of their rows", "(rest % g.rows) * g.stride_rows", "(rest % g.rows)",
        f"{OPERATIONS}::test_conv2d", "im2col",
    ),
    "lane": Mutant(
        "two lanes of a warp take the same weights", "int i = threadIdx.x % warpSize", "int i = threadIdx.x % 16",
        f"{OPERATIONS}::test_weight_grid", "weight_grid",
    ),
    "atomic": Mutant(
        "warps store their sum where they should add it", "atomicAdd(total, sum)", "*total = sum",
        f"{OPERATIONS}::test_gradient_squares", "gradient_norm",
    ),
    "fused": Mutant(
        "products and sums that the compiler may fuse", _CONTRACT,
        f"{_CONTRACT}\n#define __fmul_rn(a, b) ((a) * (b))\n#define __fadd_rn(a, b) ((a) + (b))",
        f"{OPERATIONS}::test_lif", flags=("-fmad=false", "-fmad=true"),
    ),
    "flush": Mutant(
        "subnormal numbers are flushed", "static_cast<float>(x[i])", "static_cast<float>(x[i]) * 1.0f",
        f"{OPERATIONS}::test_rounded_keeps_subnormal_numbers", "cast", ("-ftz=false", "-ftz=true"),
    ),
    "index": Mutant(
        "an index of 32 bits", "return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x",
        "return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)",
        "emulator/tests/test_large_arrays.py::test_dropout_mask",
    ),
}  # fmt: skip
BARRIER = "emulator/tests/test_interpreter.py::test_barriers_order_and_their_absence_is_a_race"
"""No kernel of the project has a barrier; this test leaves out those of one that has."""


def changed(source: CudaSource, flags: tuple[str, ...]) -> tuple[CudaSource, tuple[str, ...]]:
    """A source and flags with the change of `$PTX_MUTANT`, if there is one and it is of this source."""
    mutant = MUTANTS.get(os.environ.get("PTX_MUTANT", ""))
    if mutant is None or mutant.source not in ("", source.name):
        return source, flags
    text = source.text
    if not mutant.source:
        # The header is part of the text, so that it can be changed too.
        header = (KERNELS / "contract.cuh").read_text().replace("#pragma once", "")
        text = text.replace(_CONTRACT, _CONTRACT if mutant.old == _CONTRACT else header)
    text = text.replace(mutant.old, mutant.new)
    old, new = mutant.flags
    return CudaSource(source.name, text), tuple(new if flag == old else flag for flag in flags)


def _passes(test: str, name: str) -> bool:
    environment = {**os.environ, "PTX_MUTANT": name, "PTX_ARCH": "sm_80"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "emulator.cupy_kernels", test]
    return subprocess.run(command, env=environment, capture_output=True, cwd=Path(__file__).parents[1]).returncode == 0


def main(names: list[str]) -> int:
    """Try mutants; 0: all are caught."""
    survivors, passed = [], dict[str, bool]()
    for name in names or MUTANTS:
        mutant = MUTANTS[name]
        if mutant.test not in passed:
            passed[mutant.test] = _passes(mutant.test, "")
        caught = passed[mutant.test] and not _passes(mutant.test, name)
        survivors += [] if caught else [name]
        print(f"{name:10} {'caught' if caught else 'SURVIVES'}  {mutant.description}: {mutant.test}", flush=True)
    return int(bool(survivors))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
