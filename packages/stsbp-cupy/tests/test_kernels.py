"""Kernels compiled by NVRTC for real architectures, without a device: no spills, no fused multiply-add.

PTX is read, not guessed: `mul.rn`, `add.rn` carry their rounding and are never fused by the assembler behind it, bare
`mul`, `add` may be. So each source is also compiled with contraction on, where any plain operator would show.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from functools import cache
from glob import glob
from pathlib import Path

import pytest
from stsbp_cupy.engine import cuda
from stsbp_cupy.engine.cuda import compile_kernels
from stsbp_cupy.engine.source import CudaSource, source_files
from stsbp_cupy.equations.recurrence import kernel
from stsbp_spec import LIF, PSP
from stsbp_spec.equations.assembly import COUNT, filter_equations, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons.alif import ALIF
from stsbp_spec.models.optim import adam, sgd
from stsbp_spec.models.optim.adamw import UPDATE
from stsbp_spec.models.surrogates import SURROGATES

ARCHITECTURES = (
    "sm_75",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("sm_80", "sm_90")),
    "sm_100",
)
"""The oldest, the newest, and two between them."""


def _printed(recurrence: Recurrence, *, summed: tuple[str, ...] = (), in_memory: bool = False) -> CudaSource:
    dtypes = tuple("uint8" if name in ("o", "target") else "float32" for name in recurrence.inputs)
    return kernel(recurrence, dtypes, summed, in_memory)


def _sources() -> dict[str, CudaSource]:
    sources = {source.name: source for source in source_files()}
    first, second = PSP(3).filter(), PSP(3, 2).filter()
    for name, surrogate in SURROGATES.items():
        equations = neuron_equations(first, LIF(surrogate=surrogate()))
        sources["lif-forward"] = _printed(equations.forward)
        sources[f"lif-backward-{name}"] = _printed(equations.backward)
        sources[f"lif-backward-summed-{name}"] = _printed(equations.backward, summed=("dz",))
    alif = neuron_equations(second, ALIF(reset="subtract"))
    sources |= {"alif-forward": _printed(alif.forward), "alif-backward": _printed(alif.backward)}
    alone = filter_equations(first)
    sources |= {"filter-forward": _printed(alone.forward), "filter-backward": _printed(alone.backward)}
    for name, loss in LOSSES.items():
        passes = loss_equations(loss)
        sources |= {} if passes.forward is None else {f"{name}-forward": _printed(passes.forward)}
        sources[f"{name}-backward"] = _printed(passes.backward)
    updates = {"adamw": _printed(UPDATE), "adamw-recorded": _printed(UPDATE, in_memory=True)}
    updates |= {"adam": _printed(adam.UPDATE), "sgd": _printed(sgd.UPDATE)}
    return sources | updates | {"count": _printed(COUNT, summed=("n",))}


SOURCES = _sources()
# expf of the logistic surrogate is a library's own code; that surrogate is not in the exact tier.
INEXACT = {"lif-backward-logistic", "lif-backward-summed-logistic"}
# Registers of lif.cu, which was written by hand: forward, backward (of all exact surrogates), backward of the logistic.
BY_HAND = {"sm_75": (48, 42, 49), "sm_80": (32, 37, 40), "sm_90": (32, 40, 40), "sm_100": (40, 44, 47)}


@pytest.fixture(autouse=True)
def nvrtc() -> None:
    """Skip where NVRTC is not installed."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed ({error}); it comes with stsbp-cupy[nvrtc]")


def registers_of(log: str) -> list[int]:
    return [int(n) for n in re.findall(r"Used (\d+) registers", log)]


@cache
def compiled(source: str, architecture: str, contraction: str = "-fmad=false") -> tuple[bytes, str, str]:
    options = tuple(contraction if flag.startswith("-fmad") else flag for flag in cuda.FLAGS)
    code, ptx, log = compile_kernels(SOURCES[source], architecture, (*options, "--ptxas-options=-v"))
    return code, ptx.decode(), log


def functions(ptx: str) -> dict[str, str]:
    """PTX of each entry point by its name."""
    parts = re.split(r"\.visible \.entry (\w+)\(", ptx)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_with_every_entry_and_spills_nothing(source: str, architecture: str) -> None:
    code, ptx, log = compiled(source, architecture)
    names = {entry.name for entry in SOURCES[source].entries}
    assert "warning" not in log
    assert code[:4] == b"\x7fELF"
    headers, (size, count) = struct.unpack_from("<Q", code, 32)[0], struct.unpack_from("<2H", code, 54)
    assert headers + size * count <= len(code), "the program headers, which end the file, are cut"
    assert set(functions(ptx)) == names
    stack = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(stack) == len(names), log
    assert set(stack) == {("0", "0", "0")}, log
    registers = registers_of(log)
    # 256 threads of 64 registers: four blocks fit a multiprocessor, 1024 threads.
    assert len(registers) == len(names)
    assert max(registers) <= 64, log


@pytest.mark.parametrize("contraction", ["-fmad=false", "-fmad=true"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_rounds_every_operation_by_itself(source: str, architecture: str, contraction: str) -> None:
    if source in INEXACT:
        return
    _, ptx, _ = compiled(source, architecture, contraction)
    for name, body in functions(ptx).items():
        assert not re.findall(r"\bfma\.\S*f32", body), name
        assert not re.findall(r"\b(?:div|sqrt|rcp|rsqrt|ex2|lg2|sin|cos)\.(?:approx|full)\S*", body), name
        assert not re.findall(r"\.ftz\b", body), name
        if contraction == "-fmad=true":
            # Plain operators, which the assembler may fuse, have no rounding in their name; an atomic sum is none.
            assert not re.findall(r"(?<![.\w])(?:mul|add|sub)\.f(?:32|64)\b", body), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [name for name in SOURCES if name.startswith("lif-")])
def test_printed_neurons_take_at_most_four_registers_more_than_those_by_hand(source: str, architecture: str) -> None:
    (registers,) = registers_of(compiled(source, architecture)[2])
    forward, backward, logistic = BY_HAND[architecture]
    assert registers <= 4 + (forward if source == "lif-forward" else logistic if source in INEXACT else backward)


def test_these_checks_see_a_fused_multiply_add() -> None:
    source = 'extern "C" __global__ void fused(float* x) { x[0] = x[1] * x[2] + x[3]; x[4] = x[5] * x[6]; }'
    _, ptx, _ = compile_kernels(CudaSource("fused", source), "sm_80", ("-fmad=true",))
    body = functions(ptx.decode())["fused"]
    assert re.findall(r"\bfma\.\S*f32", body)
    assert re.findall(r"\bmul\.f32\b", body)


def test_arithmetic_is_there_where_it_is_expected() -> None:
    _, forward, _ = compiled("lif-forward", "sm_80")
    assert len(re.findall(r"\bmul\.rn\.f32", forward)) >= 3
    assert len(re.findall(r"\badd\.rn\.f32", forward)) >= 2
    _, update, _ = compiled("adamw", "sm_80")
    assert re.findall(r"\bsqrt\.rn\.f32", update)
    assert re.findall(r"\bdiv\.rn\.f32", update)


def test_moves_four_neurons_at_once() -> None:
    _, forward, _ = compiled("lif-forward", "sm_80")
    assert re.findall(r"\bld\.global\S*\.v4\.(?:f32|b32|u32)", forward)
    assert re.findall(r"\bst\.global\S*\.v4\.(?:f32|b32|u32)", forward)


def test_syntax_error_is_reported_with_its_file_and_line() -> None:
    with pytest.raises(BackendError, match=r"(?s)cannot compile broken\.cu for sm_80.*broken\.cu\(2\): error"):
        compile_kernels(CudaSource("broken", "\nvoid f( {"), "sm_80")


def test_portable_code_compiles() -> None:
    code, ptx, _ = compile_kernels(SOURCES["lif-forward"], "compute_90")
    assert code == b""
    assert b".target sm_90" in ptx


def disassembler() -> str:
    """NVIDIA's nvdisasm, of its own package or of Triton's."""
    program = "nvdisasm.exe" if os.name == "nt" else "nvdisasm"
    names = [shutil.which(program), *glob(f"{sysconfig.get_path('purelib')}/nvidia/*/bin/{program}")]
    names += glob(f"{sysconfig.get_path('purelib')}/triton/backends/nvidia/bin/{program}")
    if not (existing := [name for name in names if name]):
        pytest.skip("nvdisasm is not installed; it comes with nvidia-cuda-nvdisasm")
    return existing[0]


def machine_code(code: bytes, path: Path) -> dict[str, Counter[str]]:
    """Instructions of each kernel with their modifiers, such as `FADD.FTZ`, and how often they occur."""
    path.write_bytes(code)
    command = [disassembler(), str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    pattern = re.compile(r"\b((?:FFMA|DFMA|FADD|FMUL|DADD|DMUL|FSETP|FSEL|FMNMX|FFMA2|LDL|STL)[\w.]*)")
    return {name: Counter(pattern.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_machine_code_neither_fuses_nor_flushes(source: str, architecture: str, tmp_path: Path) -> None:
    if source in INEXACT:
        return
    code, ptx, _ = compiled(source, architecture)
    texts = functions(ptx)
    kernels = machine_code(code, tmp_path / "kernels.cubin")
    assert set(texts) <= set(kernels)
    for name, body in texts.items():
        # Divisions and roots are sequences of fused operations with flushing, whose result is rounded correctly.
        if re.findall(r"\b(?:div|rem|sqrt|rcp)\.", body):
            continue
        forbidden = ("FFMA", "DFMA", "LDL", "STL")
        assert not [word for word in kernels[name] if word.startswith(forbidden) or ".FTZ" in word], name


def test_machine_code_of_a_fused_multiply_add_shows(tmp_path: Path) -> None:
    text = 'extern "C" __global__ void fused(float* x) { x[0] = x[1] * x[2] + x[3]; x[4] = x[5] * x[6]; }'
    code, _, _ = compile_kernels(CudaSource("fused", text), "sm_80", ("-fmad=true", "-ftz=true"))
    assert set(machine_code(code, tmp_path / "fused.cubin")["fused"]) >= {"FFMA.FTZ", "FMUL.FTZ"}
