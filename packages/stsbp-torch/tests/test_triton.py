"""The Triton kernels without a GPU: in Triton's interpreter for the bits, and compiled for the absence of fused
multiply-adds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

BITS = """
import numpy as np, torch
from stsbp_spec.surrogates import Arctan, FastSigmoid, Rectangle, Triangle
from stsbp_torch.neurons import lif, lif_numba, lif_triton
f, t, rng = np.float32, torch.from_numpy, np.random.default_rng(0)
steps, neurons = 12, 700
constants = (f(1 - 1 / 3), f(1 / 3), f(1 - 3 / 5), f(1))
for static in (False, True):
    for surrogate in (Rectangle(0.7), Triangle(0.6), FastSigmoid(3.0), Arctan(2.3)):
        z = (rng.integers(-40, 60, (1 if static else steps, neurons)) / 16).astype(f)
        g = rng.standard_normal((steps, neurons)).astype(f)
        code = lif.surrogate_code(surrogate)
        u, s, dz = np.empty((steps, neurons), f), np.empty((steps, neurons), np.uint8), np.empty_like(z)
        u2, s2, dz2 = u.copy(), s.copy(), dz.copy()
        lif_numba.forward(z, u, s, *constants)
        lif_numba.backward(u, g, dz, *constants, code[0], f(code[1]), f(code[2]))
        lif_triton.forward(t(z), t(u2), t(s2), *constants)
        lif_triton.backward(t(u2), t(s2), t(g), t(dz2), *constants, code)
        assert 0.1 < s.mean() < 0.9
        for a, b in ((u, u2), (s, s2), (dz, dz2)):
            assert a.tobytes() == b.tobytes(), (static, surrogate)
"""

PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stsbp_torch.neurons import lif_triton
pointers = {"z_ptr": "*fp32", "u_ptr": "*fp32", "s_ptr": "*u8", "g_ptr": "*fp32", "dz_ptr": "*fp32"}
scalars = {"constants": "*fp32", "neurons": "i32", "steps": "i32"}
for kernel in (lif_triton._forward, lif_triton._backward):
    for static in (False, True):
        for kind in range(4 if kernel is lif_triton._backward else 1):
            constants = {"STATIC": static, "BLOCK": 256} | ({"KIND": kind} if kernel is lif_triton._backward else {})
            signature = {n: {**pointers, **scalars}.get(n, "constexpr") for n in kernel.arg_names}
            source = ASTSource(kernel, signature, constants)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
            ptx = made.asm["ptx"]
            assert "mul.f32" in ptx or "mul.rn.f32" in ptx
            assert "fma.rn.f32" not in ptx and "mad.f32" not in ptx, (kernel, static, kind)
"""


def run(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_interpreted_kernels_have_the_bits_of_the_cpu_kernels() -> None:
    run(BITS, TRITON_INTERPRET="1")


def test_compiled_kernels_hold_no_fused_multiply_add() -> None:
    run(PTX)
