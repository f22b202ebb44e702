"""Equations as they are printed for C: compiled, each computes what numpy does, bit for bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from stsbp_spec.equations.assembly import filter_equations, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Recurrence, variable
from stsbp_spec.equations.printers import LANGUAGES, definition, numpy_function
from stsbp_spec.models.losses import LOSSES, OF_REAL_TARGETS
from stsbp_spec.models.neurons import NEURONS, parse_neuron
from stsbp_spec.models.optim.adamw import LEARNED_UPDATE, UPDATE
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP

GCC = shutil.which("gcc") or ""
HEAD = """\
#include <math.h>
#include <stdbool.h>
static float snap(float x) { return fabsf(x) < 0x1p-100f ? 0.0f : x; }
"""
_MODELS = [parse_neuron(f"{name}:surrogate={surrogate}", {}) for name in NEURONS for surrogate in SURROGATES]
_BOTH = [neuron_equations(PSP(4, 2).filter(), model) for model in _MODELS]
_PASSES = [loss_equations(loss) for loss in (LOSSES | OF_REAL_TARGETS).values()]
_A, _B, _C = map(variable, "abc")
_MINUS = -(_A - _B)
NEGATED = Recurrence(
    "negated", (), ("a", "b", "c"), {}, {"total": -(_A + _B), "product": _MINUS * _C, "twice": _C - (-_MINUS)}
)
EQUATIONS: list[Recurrence] = [
    x
    for x in dict.fromkeys(
        [
            *(x for both in _BOTH for x in (both.forward, both.backward)),
            *(x for passes in _PASSES for x in (passes.forward, passes.backward) if x is not None),
            filter_equations(PSP(4).filter()).forward,
            UPDATE,
            LEARNED_UPDATE,
            NEGATED,
        ]
    )
    if x.exact
]


def _call(number: int, x: Recurrence) -> str:
    """A function over rows of numbers: parameters, inputs and states in, states and outputs out."""
    count = len(x.parameters) + len(x.inputs) + len(x.states)
    fields = [*(f"new_{name}_" for name in x.states), *(f"{name}_" for name in x.outputs)]
    args = ", ".join(f"x[{i}]" for i in range(count))
    stores = " ".join(f"y[{i}] = (float)r.{name};" for i, name in enumerate(fields))
    text = definition(x, LANGUAGES["c"]).replace(x.name, f"f{number}")
    return f"""{text}
void run{number}(int n, const float *x, float *y)
{{
    for (; n > 0; n--, x += {count}, y += {len(fields)}) {{ const f{number}_result r = f{number}({args}); {stores} }}
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not GCC:
        pytest.skip("there is no gcc")
    path: Path = tmp_path_factory.mktemp("c") / "equations.so"
    text = HEAD + "\n".join(_call(i, x) for i, x in enumerate(EQUATIONS))
    warned = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-pedantic", "-Werror"]
    command = [GCC, "-std=c99", "-O2", *warned, "-fPIC", "-shared", "-x", "c", "-", "-o", str(path), "-lm"]
    subprocess.run(command, input=text, text=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("number", range(len(EQUATIONS)), ids=[x.name for x in EQUATIONS])
def test_equation_in_c_computes_what_numpy_does(library: ctypes.CDLL, number: int) -> None:
    equation = EQUATIONS[number]
    names = (*equation.parameters, *equation.inputs, *equation.states)
    x = np.random.default_rng(number).normal(0.3, 1.0, (200, len(names))).astype(np.float32)
    y = np.empty((len(x), len(equation.states) + len(equation.outputs)), np.float32)
    library[f"run{number}"](len(x), x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
    with np.errstate(all="ignore"):
        states, outputs = numpy_function(equation)(*x.T)
    for i, column in enumerate((*states, *outputs)):
        np.testing.assert_array_equal(y[:, i], np.broadcast_to(column, len(x)).astype(np.float32), strict=True)
