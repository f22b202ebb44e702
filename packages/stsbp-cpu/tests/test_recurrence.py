"""Equations over time on the CPU: the bits of the reference, for every kind of array."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_cpu.equations.recurrence import recur
from stsbp_spec.equations.expressions import Recurrence, variable, where
from stsbp_spec.reference.backend import NumpyBackend

X, W, S, D, A = (variable(name) for name in ("x", "w", "s", "d", "a"))
STATES = {"d": A * D + X - W * S, "e": where(D > X, D / 3, S)}
OUTPUTS = {"y": D * W - variable("e"), "o": D > X, "n": abs(D) + S}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 200, 1537])
@pytest.mark.parametrize("steps", [1, 7])
def test_bits_are_those_of_the_reference(steps: int, size: int, *, reverse: bool) -> None:
    equation = Recurrence("several", ("a",), ("x", "w", "s"), STATES, OUTPUTS, reverse=reverse)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((steps, size)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -0.0
    w = rng.standard_normal((1, size)).astype(np.float32)
    s = (rng.random((steps, size)) < 0.5).astype(np.uint8)
    constants = {"a": np.float32(0.7)}
    expected = NumpyBackend().recur(equation, constants, {"x": x, "w": w, "s": s}, steps, summed=("n",))
    outputs = {name: np.full_like(array, 9) for name, array in expected.items()}
    assert {name: array.dtype for name, array in outputs.items()} == {"y": "float32", "o": "uint8", "n": "float32"}
    recur(equation, constants, [x, w, s], outputs, steps, ("n",))
    for name, array in expected.items():
        assert array.tobytes() == outputs[name].tobytes(), name
        assert steps == 1 or np.count_nonzero(array) > 0
