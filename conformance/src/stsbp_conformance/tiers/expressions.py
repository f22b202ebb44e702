"""Tier 5 for expressions: every operation on extreme numbers, and equations drawn at random.

docs/expressions.md states the rules. NaN, infinities, zeros and overflow follow IEEE 754. A subnormal number is kept,
or treated as the zero of its sign. A NaN has neither sign nor payload.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.equations.expressions import (
    Expr,
    Recurrence,
    constant,
    exp,
    named,
    snap,
    spike,
    sqrt,
    unsnapped,
    variable,
    where,
)
from stsbp_spec.equations.printers import numpy_function
from stsbp_spec.equations.ranges import shown_flushes
from stsbp_spec.typing import AnyArray, Float32

from stsbp_conformance.check import Check, Compared
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.pairs import pair_check

__all__ = ["CHECKS", "HOSTILE", "OPERATIONS", "drawn"]

_TINY, _LARGEST = np.float32(2.0**-126), np.finfo(np.float32).max
HOSTILE: Float32 = np.array(
    [
        *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.1, -3.0, 1 + 2.0**-23, _LARGEST, -_LARGEST, 2.0**127),
        *(
            2.0**-100,
            -(2.0**-100),
            2.0**-100 * (1 - 2.0**-24),
            2.0**-100 * (1 + 2.0**-23),
            2.0**-63,
            2.0**64,
            16777217.0,
        ),
        *(2.0**-126, -(2.0**-126), 2.0**-127, -(2.0**-127), 2.0**-149, 2.0**-126 - 2.0**-149),
    ],
    np.float32,
)
"""Numbers at the limits of every rule."""

_X, _Y = variable("x"), variable("y")
OPERATIONS: Mapping[str, Expr] = {
    "sum": _X + _Y, "difference": _X - _Y, "product": _X * _Y, "quotient": _X / _Y, "root": sqrt(_X),
    "negative": -_X, "magnitude": abs(_X), "snapped": snap(_X),
    "smaller": _X < _Y, "at_least": _X >= _Y, "spikes": spike(_X, _Y),
    "chosen": where(_X < 1, _X, _Y), "other": where(_Y >= 1, _X, _Y),
    "reciprocal": 1 / _X, "twice": _X + _X, "square": _X * _X, "one": _X / _X, "nothing": _X - _X, "by_three": _X / 3,
    "times_zero": _X * 0,
}  # fmt: skip
"""All exact operations by name. Some have the same operand twice, or a constant, which compilers may simplify."""


def _pairs() -> dict[str, Float32]:
    x, y = (grid.ravel() for grid in np.meshgrid(HOSTILE, HOSTILE, indexing="ij"))
    return {"x": x[None, None], "y": y[None, None]}


def _expected(recurrence: Recurrence, inputs: Mapping[str, Float32], *, flush: bool) -> dict[str, AnyArray]:
    """One operation in numpy. Subnormal numbers are kept, or treated as zero when they are read and written."""

    def flush_subnormals(x: AnyArray) -> AnyArray:
        return np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x) if flush and x.dtype == np.float32 else x

    with np.errstate(all="ignore"):
        _, outputs = numpy_function(recurrence)(*(flush_subnormals(inputs[name]) for name in recurrence.inputs))
    return dict(zip(recurrence.outputs, map(flush_subnormals, outputs), strict=True))


def _computed(backend: AbstractBackend, recurrence: Recurrence, inputs: Mapping[str, Float32]) -> dict[str, AnyArray]:
    native = {name: backend.asarray(x) for name, x in inputs.items()}
    return {name: backend.numpy(x) for name, x in backend.recur(recurrence, {}, native, len(inputs["x"])).items()}


def _alike(a: AnyArray, b: AnyArray) -> AnyArray:
    alike: AnyArray = (a == b) | ((a != a) & (b != b))
    return alike


def _operations(backend: AbstractBackend, compared: Compared) -> None:
    inputs = _pairs()
    outputs = {name: x if x.is_condition else unsnapped(x) for name, x in OPERATIONS.items()}
    for name, x in outputs.items():
        recurrence = Recurrence(name, (), ("x", "y"), {}, {name: x})
        computed = _computed(backend, recurrence, inputs)[name]
        expected, flushed = (_expected(recurrence, inputs, flush=flush)[name] for flush in (False, True))
        differs = ~(_alike(computed, expected) | _alike(computed, flushed))
        at = tuple(np.argwhere(differs)[0]) if differs.any() else (0, 0, 0)
        operands = ", ".join(float(inputs[operand][at]).hex() for operand in ("x", "y"))
        compared.values += differs.size
        compared.true(f"{name} of {operands}: expected {expected[at]!r}, got {computed[at]!r}", not differs.any())


def _exponential(backend: AbstractBackend, compared: Compared) -> None:
    recurrence = Recurrence("exponential", (), ("x", "y"), {}, {"v": unsnapped(exp(_X))})
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 200.0, -200.0], np.float32)[None, None]
    values = _computed(backend, recurrence, {"x": x, "y": x})["v"].ravel()
    compared.true(f"exp of NaN is NaN, got {values[0]}", bool(np.isnan(values[0])))
    for got, expected, argument in zip(values[1:], (np.inf, 0.0, 1.0, np.inf, 0.0), x.ravel()[1:], strict=True):
        compared.true(f"exp of {argument}: expected {expected}, got {got}", bool(got == expected))


def drawn(seed: int, count: int = 12) -> dict[str, Expr]:
    """Equations of `x`, `y` and the state `m` whose results do not depend on whether subnormal numbers are flushed."""
    rng = random.Random(seed)
    m = variable("m")

    def random_expression(depth: int) -> Expr:
        if depth == 0 or rng.random() < 0.1:
            return rng.choice((_X, _Y, m, constant(rng.choice((1.0, -0.75, 3.0, 1 / 3, 2.0**-20)))))
        a, b = random_expression(depth - 1), random_expression(depth - 1)
        candidates = (a + b, a - b, a * b, a + (b + a), abs(a), -a, snap(a * b), where(a < b, a, b), 1 / (1 + abs(b)),
                sqrt(abs(a)), named("n", snap(a)), where(a >= b, 1, a), a / (b + 3))  # fmt: skip
        return rng.choice(candidates)

    equations: dict[str, Expr] = {}
    while len(equations) < count:
        x = random_expression(4)
        step = Recurrence("drawn", (), ("x", "y"), {"m": m * 0.5 + _X}, {"v": x})
        if not x.is_condition and not shown_flushes(step, {}):
            equations[f"v{len(equations)}"] = x
    return equations


def _equations(seed: int) -> Check:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        rng = np.random.default_rng(seed)
        exponents = rng.choice([*range(-100, -90), *range(-20, 8), *range(36, 40)], (2, 6, 1, 40))
        x, y = (rng.choice([-1.7, -1.0, 0.0, 1.0, 1.3], exponents.shape) * 2.0**exponents).astype(np.float32)
        x[3, 0, :6] = np.nan, np.inf, -np.inf, 0, _LARGEST, 2.0**-100
        recurrence = Recurrence("drawn", (), ("x", "y"), {"m": variable("m") * 0.5 + _X}, drawn(seed))
        computed = _computed(backend, recurrence, {"x": x, "y": y})
        for name, expected in _computed(NUMPY, recurrence, {"x": x, "y": y}).items():
            differing = int((~_alike(computed[name], expected)).sum())
            compared.values += expected.size
            compared.true(f"equation {name}: {differing} of {expected.size} values differ", differing == 0)

    return pair_check(f"expressions drawn with seed {seed}", body)


CHECKS = (
    pair_check("expressions: every operation on hostile numbers", _operations),
    pair_check("expressions: exp of what is not a number, or infinite", _exponential),
    *(_equations(seed) for seed in (1, 2, 3)),
)
