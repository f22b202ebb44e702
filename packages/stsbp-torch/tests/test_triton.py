"""The Triton kernels without a GPU: in Triton's interpreter for the bits, and compiled for the absence of fused
multiply-adds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

EQUATIONS = """
import numpy as np
from stsbp_spec.equations.assembly import COUNT, loss_equations, neuron_equations
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import ALIF, LIF, PLIF
from stsbp_spec.models.optim.adamw import UPDATE, AdamW
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP
from stsbp_torch.equations import fused_cuda

widths = {"rectangle": 0.7, "triangle": 0.6, "fast-sigmoid": 3.0, "arctan": 2.3}
exact = {name: cls for name, cls in SURROGATES.items() if cls().exact}
surrogates = [cls(widths[name]) if name in widths else cls() for name, cls in exact.items()]
neurons = [LIF(5 / 3, surrogate=s) for s in surrogates]
neurons += [ALIF(3, reset="subtract", tau_rise=2), PLIF(3)]
both = [neuron_equations(PSP(3).filter(), neuron) for neuron in neurons]
"""

BITS = """
import torch
from stsbp_spec.reference.backend import NumpyBackend

def same(equation, constants, inputs, steps, summed=()):
    expected = NumpyBackend().recur(equation, constants, inputs, steps, summed=summed)
    given = {name: torch.from_numpy(x) for name, x in inputs.items()}
    parameters = torch.from_numpy(equation.numbers(constants))
    outputs = fused_cuda.recur(equation, parameters, given, steps, summed=summed)
    for name, x in expected.items():
        assert x.tobytes() == outputs[name].numpy().tobytes(), (equation.name, name, summed)
    return expected

f, rng, steps = np.float32, np.random.default_rng(0), 12
for equations in both:
    for static in (False, True):
        z = (rng.integers(-40, 60, (1 if static else steps, 3, 233)) / 16).astype(f)
        learned = {name: rng.random((1, 3, 233)).astype(f) for name in equations.learned.values()}
        kept = same(equations.forward, equations.constants, {"z": z, **learned}, steps)
        assert 0.1 < kept.pop("o").mean() < 0.9
        g = rng.standard_normal((steps, 3, 233)).astype(f)
        summed = (*(("dz",) if static else ()), *equations.terms.values())
        same(equations.backward, equations.constants, {**kept, **learned, "g": g}, steps, summed)
scalars = AdamW(weight_decay=0.1).scalars(3, f(0.7))
arrays = {name: rng.standard_normal((1, 700)).astype(f) for name in UPDATE.inputs}
arrays["v"] = abs(arrays["v"])
same(UPDATE, {name: getattr(scalars, name) for name in UPDATE.parameters}, arrays, 1)
spikes, targets = ((rng.random((steps, 3, 9)) < 0.4).astype(np.uint8) for _ in range(2))
trains = {"count": spikes, "target_count": targets}
counts = {name: same(COUNT, {}, {"o": x}, steps, ("n",))["n"] for name, x in trains.items()}
for loss in LOSSES.values():
    constants = {name: f(x) for name, x in loss.constants(PSP(3), steps, 3).items()}
    equations, given = loss_equations(loss), {"o": spikes, "target": targets, **counts}
    if equations.forward is not None:
        given["r"] = same(equations.forward, constants, given, steps)["r"]
    same(equations.backward, constants, given, steps)
"""

MASKS = """
import torch
from stsbp_spec.contract.random import keep_mask

shapes = [(3, 5, 4, 6), (2, 1, 3, 3), (7, 11), (1, 300), (4, 3, 7)]
numbers = [(0, 0, 0), (1, 1, 1), (2**32 - 1, 70, 2**31), (2**31 + 5, 1000, 2**32 - 1)]
for shape in shapes:
    for seed, layer, step in numbers:
        for rate, first in ((0.3, 0), (0.5, 1), (0.0, 2), (0.999, 3)):
            expected = keep_mask(seed, layer, step, shape, rate, first)
            mask = fused_cuda.keep_mask(seed, layer, step, shape, rate, first, torch.device("cpu"))
            assert mask.dtype == torch.uint8
            assert (mask.numpy() == expected).all(), (shape, seed, layer, step, rate, first)
            assert mask.ndim != 4 or mask.permute(0, 2, 3, 1).is_contiguous()
"""

PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

cases = [(e.forward, frozenset((*static, *e.learned.values())), ()) for e in both for static in ("", "z")]
cases += [
    (e.backward, frozenset(e.learned.values()), (*dz, *e.terms.values())) for e in both for dz in ((), ("dz",))
]
for equation, static, summed in [*cases, (UPDATE, frozenset(), ())]:
    kernel = fused_cuda.kernel(equation, static, summed)
    signature = {name: "*fp32" for name in kernel.arg_names} | {"_count": "i32", "_steps": "i32", "_BLOCK": "constexpr"}
    signature |= {"_to_o": "*u8"} if "o" in equation.outputs else {}
    source = ASTSource(kernel, signature, {"_BLOCK": fused_cuda.BLOCK})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    ptx = made.asm["ptx"]
    assert "mul.f32" in ptx or "mul.rn.f32" in ptx
    for inexact in ("fma.rn.f32", "mad.f32", "div.full", "div.approx", "sqrt.approx", ".ftz"):
        assert inexact not in ptx, (equation.name, static, summed, inexact)
for size in ("i32", "i64"):
    signature = {name: size for name in fused_cuda._keep_mask_kernel.arg_names} | {"mask": "*u8"}
    source = ASTSource(fused_cuda._keep_mask_kernel, signature)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""

LAUNCHES = """
import torch

class Launches:
    def __init__(self, name):
        self.kernel, self.arg_names = getattr(fused_cuda, name), getattr(fused_cuda, name).arg_names

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            assert options["enable_fp_fusion"] is False
            return self.kernel[grid](*arguments, **options)

        return launch

fused_cuda._keep_mask_kernel = Launches("_keep_mask_kernel")
mask = fused_cuda.keep_mask(1, 2, 3, (7, 11), 0.3, 0, torch.device("cpu"))
assert 0 < mask.sum() < mask.numel()
"""


def run(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EQUATIONS + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_interpreted_kernels_have_the_bits_of_the_reference() -> None:
    run(BITS, TRITON_INTERPRET="1")


def test_interpreted_masks_of_dropout_are_the_specs() -> None:
    run(MASKS, TRITON_INTERPRET="1")


def test_masks_of_dropout_are_launched_without_fused_operations() -> None:
    run(LAUNCHES, TRITON_INTERPRET="1")


def test_compiled_kernels_round_each_operation() -> None:
    run(PTX)
