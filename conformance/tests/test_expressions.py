"""The checks of expressions themselves: every operation is there, and a backend that breaks a rule is seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_conformance.check import Mismatch
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.expressions import CHECKS, HOSTILE, OPERATIONS, drawn
from stsbp_spec.equations import expressions
from stsbp_spec.equations.expressions import ordered
from stsbp_spec.equations.ranges import shown_flushes
from stsbp_spec.reference.backend import NumpyBackend

PAGE = Path(__file__).parents[2] / "docs" / "expressions.md"


def test_every_operation_is_tried_on_every_hostile_number() -> None:
    tried = {x.op for expression in OPERATIONS.values() for x in ordered([expression])} - {"variable", "constant"}
    assert tried == set(expressions.OPERATIONS) - {"exp", "unsnapped"}
    assert np.isnan(HOSTILE).any()
    assert {np.inf, -np.inf, 2.0**-149, 2.0**-126, 2.0**-100, float(np.finfo(np.float32).max)} <= set(HOSTILE.tolist())
    assert np.signbit(HOSTILE[HOSTILE == 0]).tolist() == [False, True]


def test_equations_are_drawn_the_same_again_and_use_every_operation() -> None:
    equations = [drawn(seed) for seed in (1, 2, 3)]
    assert [x.op for x in ordered(equations[0].values())] == [x.op for x in ordered(drawn(1).values())]
    used = {x.op for outputs in equations for x in ordered(outputs.values())}
    assert used >= {"add", "sub", "mul", "div", "neg", "abs", "sqrt", "snap", "lt", "ge", "where"}
    for outputs in equations:
        step = expressions.Recurrence(
            "drawn", (), ("x", "y"), {"m": expressions.variable("m") * 0.5 + expressions.variable("x")}, outputs
        )
        assert shown_flushes(step, {}) == ()


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")
def test_the_page_names_every_operation() -> None:
    rows = " ".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    words = {"add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "neg": "-x", "lt": "x < y", "ge": "x >= y"}
    for op in expressions.OPERATIONS:
        assert words.get(op, f"{op}(") in rows, op


BROKEN: dict[str, Any] = {
    "NaN is taken for zero": lambda x: np.where(np.isnan(x), np.float32(0), x),
    "infinities are cut": lambda x: np.where(np.isinf(x), np.copysign(np.float32(3e38), x), x),
    "the floor is too high": lambda x: np.where(np.abs(x) == np.float32(2.0**-100), np.float32(0), x),
    "subnormal numbers become the smallest normal one": lambda x: np.where(
        (x != 0) & (np.abs(x) < np.float32(2.0**-126)), np.float32(2.0**-126), x
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_backend_that_breaks_a_rule_is_seen(name: str) -> None:
    class Broken(NumpyBackend):
        def recur(self, *arguments: Any, **options: Any) -> Any:
            outputs = super().recur(*arguments, **options)
            return {k: BROKEN[name](x).astype(x.dtype) if x.dtype == np.float32 else x for k, x in outputs.items()}

    with pytest.raises(Mismatch, match=r"expected .*, got "):
        CHECKS[0].run(Broken())
    assert CHECKS[0].run(NUMPY).kind == "equal"
