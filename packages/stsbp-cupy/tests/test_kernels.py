"""The .cu files compiled by NVRTC for real architectures, without a device: no spills, no fused multiply-add.

PTX is read, not guessed: `mul.rn`, `add.rn` carry their rounding and are never fused by the assembler behind it, bare
`mul`, `add` may be. So each file is also compiled with contraction on, where any plain operator would show.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
from stsbp_cupy import cuda
from stsbp_cupy.cuda import compile_kernels
from stsbp_cupy.source import entries, source_files
from stsbp_spec.errors import BackendError

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
FILES = {path.name: path for path in source_files()}
# expf of the logistic surrogate is a library's own code; that surrogate is not in the exact tier.
INEXACT = {"lif_backward_logistic"}


@pytest.fixture(autouse=True)
def nvrtc() -> None:
    """Skip where NVRTC is not installed."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed ({error}); it comes with stsbp-cupy[nvrtc]")


@cache
def compiled(file: str, architecture: str, contraction: str = "-fmad=false") -> tuple[bytes, str, str]:
    options = tuple(contraction if flag.startswith("-fmad") else flag for flag in cuda.FLAGS)
    code, ptx, log = compile_kernels(FILES[file].read_text(), file, architecture, (*options, "--ptxas-options=-v"))
    return code, ptx.decode(), log


def functions(ptx: str) -> dict[str, str]:
    """PTX of each entry point by its name."""
    parts = re.split(r"\.visible \.entry (\w+)\(", ptx)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_compiles_with_every_entry_and_spills_nothing(file: str, architecture: str) -> None:
    code, ptx, log = compiled(file, architecture)
    names = {entry.name for entry in entries().values() if entry.file == file}
    assert "warning" not in log
    assert code[:4] == b"\x7fELF"
    assert set(functions(ptx)) == names
    stack = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(stack) == len(names), log
    assert set(stack) == {("0", "0", "0")}, log
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    # 256 threads of 64 registers: four blocks fit a multiprocessor, 1024 threads.
    assert len(registers) == len(names)
    assert max(registers) <= 64, log


@pytest.mark.parametrize("contraction", ["-fmad=false", "-fmad=true"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_rounds_every_operation_by_itself(file: str, architecture: str, contraction: str) -> None:
    _, ptx, _ = compiled(file, architecture, contraction)
    for name, body in functions(ptx).items():
        if name in INEXACT:
            continue
        assert not re.findall(r"\bfma\.\S*f32", body), name
        assert not re.findall(r"\b(?:div|sqrt|rcp|rsqrt|ex2|lg2|sin|cos)\.(?:approx|full)\S*", body), name
        assert not re.findall(r"\.ftz\b", body), name
        if contraction == "-fmad=true":
            # Plain operators, which the assembler may fuse, have no rounding in their name.
            assert not re.findall(r"\b(?:mul|add|sub)\.f(?:32|64)\b", body), name


def test_these_checks_see_a_fused_multiply_add() -> None:
    source = 'extern "C" __global__ void fused(float* x) { x[0] = x[1] * x[2] + x[3]; x[4] = x[5] * x[6]; }'
    _, ptx, _ = compile_kernels(source, "fused.cu", "sm_80", ("-fmad=true",))
    body = functions(ptx.decode())["fused"]
    assert re.findall(r"\bfma\.\S*f32", body)
    assert re.findall(r"\bmul\.f32\b", body)


def test_arithmetic_is_there_where_it_is_expected() -> None:
    forward = functions(compiled("lif.cu", "sm_80")[1])["lif_forward"]
    assert len(re.findall(r"\bmul\.rn\.f32", forward)) >= 3
    assert len(re.findall(r"\badd\.rn\.f32", forward)) >= 2
    update = functions(compiled("adamw.cu", "sm_80")[1])["adamw"]
    assert re.findall(r"\bsqrt\.rn\.f32", update)
    assert re.findall(r"\bdiv\.rn\.f32", update)


def test_moves_four_neurons_at_once() -> None:
    forward = functions(compiled("lif.cu", "sm_80")[1])["lif_forward"]
    assert re.findall(r"\bld\.global\S*\.v4\.(?:f32|b32|u32)", forward)
    assert re.findall(r"\bst\.global\S*\.v4\.(?:f32|b32|u32)", forward)


def test_syntax_error_is_reported_with_its_file_and_line() -> None:
    with pytest.raises(BackendError, match=r"(?s)cannot compile broken\.cu for sm_80.*broken\.cu\(2\): error"):
        compile_kernels("\nvoid f( {", "broken.cu", "sm_80")


def test_portable_code_compiles() -> None:
    code, ptx, _ = compile_kernels(FILES["lif.cu"].read_text(), "lif.cu", "compute_90")
    assert code == b""
    assert b".target sm_90" in ptx
