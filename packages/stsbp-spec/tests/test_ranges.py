"""Where equations show whether subnormal numbers are kept: what is said, and that nothing is missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stsbp_spec.equations.expressions import (
    Expr,
    Names,
    Recurrence,
    constant,
    merged,
    named,
    snap,
    spike,
    sqrt,
    unsnapped,
    variable,
    where,
)
from stsbp_spec.equations.ranges import LARGEST, Range, flushes_of, shown_flushes
from stsbp_spec.models.losses import LOSSES, OF_REAL_TARGETS, MeanSquaredError
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.models.neurons import ALIF, IF, LIF, NEURONS, NeuronModel
from stsbp_spec.models.neurons.base import Step
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.surrogates import SURROGATES, Surrogate, equation
from stsbp_spec.networks.ops import IDENTITY, PSP
from stsbp_spec.typing import AnyArray

X, Y, P = variable("x"), variable("y"), variable("p")


def _shown_expressions(x: Expr | Mapping[str, Expr], **constants: float) -> list[str]:
    outputs = x if isinstance(x, Mapping) else {"v": x}
    step = Recurrence("step", tuple(constants), ("x", "y"), {}, outputs)
    return [flush.expression for flush in shown_flushes(step, constants)]


@pytest.mark.parametrize(
    ("x", "expressions"),
    [
        (X * Y, []),
        (X * Y + X, []),
        (1 + X * Y, []),
        (X * X / Y, ["x * x"]),
        (X * X / (1 + abs(Y)), []),
        (X / (X * X), ["x * x"]),
        (snap(X * Y) / Y, []),
        (X * Y * X, ["x * y"]),
        (X * Y * 2, []),
        (X * Y * 2.0**30, ["x * y"]),
        (sqrt(X * X), ["x * x"]),
        (where(X * Y < 0, 1, 0), ["x * y"]),
        (where(X * Y < 1, 1, 0), []),
        (where(abs(X * Y) >= 2.0**-110, 1, 0), []),
        (where(abs(X * Y) >= 2.0**-126, 1, 0), ["x * y"]),
        (1 / (1 + X * Y), []),
        (1 / (2.0**-101 + X * Y), []),
        (1 / (2.0**-102 + X * Y), ["x * y"]),
        (unsnapped(X * Y), []),
        (unsnapped(X * Y * 2), ["x * y"]),
        (X - Y, []),
        (1 / (X - X), []),
        (X / (X * X) * 0, ["x * x"]),
        (X * Y * 0 * 2.0**30, []),
        ((X * X + snap(where(Y < 0, 2.0**-100, 2.0**-99))) * 2.0**30, []),
        (
            (X * X + snap(where(Y < 0, 2.0**-101, 2.0**-99))) * 2.0**30,
            ["x * x", "x * x + snap(where(y < 0, 3.9443e-31, 1.57772e-30))"],
        ),
        (1 / (X * X) / 2.0**100 / 2.0**100 / 2.0**100, ["x * x"]),
        (sqrt(1 / (X * X)) * 2.0**-60 * 2.0**-80 * 2.0**-100, ["x * x"]),
        (snap(sqrt(1 / abs(X)) * 2.0**-100) * (X * Y), ["x * y"]),
        (snap(snap(1 / X / 2.0**100) / 2.0**60) * (X * Y), ["x * y"]),
        (snap(snap(1 / X * 2.0**-100) * 2.0**-60) * (X * Y), ["x * y"]),
        ((Y * Y + 2.0**100 / (1 / X)) * 2.0**30, ["y * y", "y * y + 1.26765e+30 / (1 / x)"]),
    ],
    ids=str,
)
def test_products_whose_flush_shows_are_named(x: Expr, expressions: list[str]) -> None:
    assert _shown_expressions(x) == expressions


def test_constants_are_known() -> None:
    assert _shown_expressions(X * P * Y, p=1.0) == []
    assert _shown_expressions(X * P * Y, p=2.0**-40) == ["x * p"]
    assert _shown_expressions(X * P / Y, p=0.0) == []


def test_a_message_says_what_differs_and_what_to_write() -> None:
    outputs = {"v": X * Y * X, "w": spike(X * Y, 0)}
    flushes = shown_flushes(Recurrence("step", (), ("x", "y"), {}, outputs), {})
    assert [str(flush) for flush in flushes] == [
        "step: x * y may be below 2^-126, which some backends treat as zero, so that whether x * y >= 0 differs; "
        "write snap(x * y)"
    ]


def test_a_state_that_is_not_snapped_is_followed_through_the_steps() -> None:
    m = variable("m")
    for gain, shows in ((2.0**20, False), (2.0**30, True)):
        step = Recurrence("step", (), (), {"m": unsnapped(m * 2.0**-30)}, {"v": m * constant(gain)})
        assert bool(shown_flushes(step, {})) is shows


def test_inputs_may_be_known_better() -> None:
    step = Recurrence("step", (), ("x", "y"), {}, {"v": X * X / Y})
    assert shown_flushes(step, {}, {"x": Range.of_count(9.0)}) == ()
    assert shown_flushes(step, {}, {"x": Range(smallest=2.0**-63, unit=2.0**-86)}) == ()
    assert shown_flushes(step, {}, {"x": Range(smallest=2.0**-64, unit=2.0**-87)})


@pytest.mark.parametrize("kind", SURROGATES.values(), ids=lambda cls: str(cls.name))
@pytest.mark.parametrize("tau", [1.0, 1.0000001, 3.0, 1e6])
def test_the_specs_models_show_no_flush(kind: type[Surrogate], tau: float) -> None:
    for surrogate in (kind(), kind(0.01), kind(100.0)):  # type: ignore[call-arg]
        assert flushes_of(surrogate) == ()
        for reset in ("zero", "subtract"):
            for neuron in (
                LIF(tau, tau, 0.7, surrogate, reset),
                IF(tau, 0.7, surrogate, reset),
                PLIF(tau, tau, 0.7, surrogate, reset),
                ALIF(tau, tau, 0.7, surrogate, reset, tau_a=tau),
                ALIF(3.0, 2.0, 1e-3, surrogate, reset, tau_a=tau, beta=1e-6),
            ):
                for filter in (PSP(tau).filter(), PSP(5.0, 2.0).filter(), IDENTITY):
                    assert flushes_of(neuron, filter) == ()


def test_every_model_of_the_spec_is_tried() -> None:
    assert set(NEURONS.values()) <= {LIF, IF, ALIF, PLIF}


@pytest.mark.parametrize("loss", [*LOSSES.values(), *OF_REAL_TARGETS.values()], ids=lambda loss: str(loss.name))
def test_the_specs_losses_show_no_flush(loss: Loss) -> None:
    assert flushes_of(loss) == ()


@pytest.mark.parametrize(
    ("error", "expressions"),
    [
        (lambda x: unsnapped(2.0**30 * x.target), ["target"]),
        (lambda x: 2.0**30 * x.target, ["target"]),
        (lambda x: 2.0**25 * x.target, []),
        (lambda x: unsnapped(2.0**30 * snap(x.target)), []),
        (lambda x: unsnapped(0.5 * x.target), []),
        (lambda x: unsnapped(where(x.target < 0, 1, 0)), ["target"]),
        (lambda x: unsnapped(x.o * x.target * 2.0**60), ["target", "o * target"]),
        (lambda x: unsnapped(2.0**30 * (x.o - x.target)), ["target", "o - target"]),
        (lambda x: unsnapped(2.0**30 * snap(x.o - x.target)), []),
    ],
)
def test_a_real_target_may_be_subnormal(error: Callable[[Names], Expr], expressions: list[str]) -> None:
    @dataclass(frozen=True)
    class Real(MeanSquaredError):
        def back(self, p: Names, s: Names, x: Names) -> LossStep:
            return LossStep({}, error(x))

    flushes = flushes_of(Real())
    assert [flush.expression for flush in flushes] == expressions
    assert all(f"write snap({flush.expression})" in str(flush) for flush in flushes)


def test_a_model_a_surrogate_and_a_loss_that_show_one_are_found() -> None:
    @dataclass(frozen=True)
    class Loud(NeuronModel):
        name: ClassVar[str] = "loud"
        states: ClassVar[tuple[str, ...]] = ("m",)

        def constants(self) -> Mapping[str, float]:
            return {"vth": self.threshold, "gain": 2.0**60}

        def step(self, p: Names, s: Names, i: Expr) -> Step:
            u = named("u", s.m + i * i * p.gain * p.gain)
            o = spike(u, p.vth)
            return Step(u, o, {"m": where(o, 0, u)})

    @dataclass(frozen=True)
    class Blind(Surrogate):
        name: ClassVar[str] = "blind"

        def constants(self) -> Mapping[str, float]:
            return {"tiny": 2.0**-120}

        def expression(self, p: Names, x: Expr) -> Expr:
            return 1 / (p.tiny + x * x)

        def primitive(self, x: AnyArray) -> AnyArray:
            raise NotImplementedError

    @dataclass(frozen=True)
    class Sharp(Loss):
        name: ClassVar[str] = "sharp"
        parameters: ClassVar[tuple[str, ...]] = ("a", "b")

        def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
            return {"a": 2.0**-70, "b": 2.0**60}

        def back(self, p: Names, s: Names, x: Names) -> LossStep:
            return LossStep({}, (x.o - x.target) * p.a * p.a * p.b * p.b)

    assert [flush.expression for flush in flushes_of(Loud())] == ["i * i"]
    assert [flush.expression for flush in flushes_of(Blind())] == ["x * x"]
    # What is left of a potential beside a threshold of 1 is at least 2^-24.
    assert flushes_of(LIF(surrogate=Blind())) == ()
    quiet = LIF(threshold=2.0**-90, surrogate=Blind())
    assert [flush.expression for flush in flushes_of(quiet)] == ["(u - vth) * (u - vth)"]
    assert [flush.expression for flush in flushes_of(Sharp())] == ["(o - target) * a * a"]


def test_a_surrogate_whose_result_a_neuron_multiplies_is_found_without_naming_the_neuron() -> None:
    @dataclass(frozen=True)
    class Cubic(Surrogate):
        name: ClassVar[str] = "cubic"

        def constants(self) -> Mapping[str, float]:
            return {"alpha": 2.0}

        def expression(self, p: Names, x: Expr) -> Expr:
            y = 1 + abs(x) * p.alpha
            return 1 / (y * y * y)

        def primitive(self, x: AnyArray) -> AnyArray:
            raise NotImplementedError

    class Snapped(Cubic):
        def expression(self, p: Names, x: Expr) -> Expr:
            return snap(super().expression(p, x))

    assert shown_flushes(equation(Cubic()), Cubic().constants(), {"x": Range(smallest=2.0**-123)}) == ()
    (flush,) = flushes_of(Cubic())
    assert flush.equation == "alif_backward"
    assert "write snap(1 / (" in str(flush)
    assert flushes_of(Snapped()) == ()


# Whatever passes computes the same with and without subnormal numbers: random equations on hostile numbers.

_LEAVES = st.sampled_from([X, Y, *map(constant, (1, -0.75, 2.0**-60, 2.0**-125, 2.0**50))])


def _grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: p[0] * p[1]), pairs.map(lambda p: p[0] + p[1]), pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] / p[1]), inner.map(lambda x: x * x), inner.map(abs), inner.map(lambda x: sqrt(abs(x))),
        inner.map(snap), inner.map(lambda x: 1 / (1 + x * x)),
        st.tuples(inner, inner, inner).map(lambda p: where(p[0] < p[1], p[2], p[0])),
    )  # fmt: skip


EQUATIONS = st.recursive(_LEAVES, _grown, max_leaves=8)


def _computed(recurrence: Recurrence, values: Mapping[str, AnyArray], *, flush: bool) -> dict[str, AnyArray]:
    """The outputs in float32, with subnormal numbers taken for zero where they are written and read, or kept."""
    one = np.float32
    kernels: dict[str, Any] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
        "sqrt": np.sqrt, "lt": np.less, "ge": np.greater_equal, "spike": np.greater_equal, "where": np.where,
        "snap": lambda x: np.where(np.abs(x) < one(2.0**-100), one(0), x),
    }  # fmt: skip

    def flushed(x: AnyArray) -> AnyArray:
        return np.where(np.abs(x) < one(2.0**-126), np.copysign(one(0), x), x) if flush and x.dtype == np.float32 else x

    nodes, of = merged(recurrence.roots)
    arrays: list[AnyArray] = []
    for x, operands in nodes:
        if x.op == "variable":
            array = values[str(x.name)]
        elif x.op == "constant":
            array = np.full(values["x"].shape, x.value, np.float32)
        else:
            array = kernels[x.op](*(arrays[a] for a in operands))
        arrays.append(flushed(array))
    return {name: arrays[of[id(x)]] for name, x in recurrence.outputs.items()}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(equation=EQUATIONS, seed=st.integers(0, 2**32 - 1))
def test_what_passes_computes_the_same_with_and_without_subnormal_numbers(equation: Expr, seed: int) -> None:
    step = Recurrence("step", (), ("x", "y"), {}, {"v": equation})
    if shown_flushes(step, {}):
        return
    rng = np.random.default_rng(seed)
    exponents = rng.choice([*range(-100, -40), *range(-3, 3), *range(20, 40)], (2, 3000))
    drawn = np.ldexp(rng.choice([-1.75, -1.0, -1.0, 1.0, 1.0, 1.5], exponents.shape), exponents).astype(np.float32)
    drawn[:, rng.random(3000) < 0.1] = 0
    assert np.abs(drawn).max() < LARGEST
    values = dict(zip("xy", drawn, strict=True))
    with np.errstate(all="ignore"):
        unflushed, flushed = (_computed(step, values, flush=flush)["v"] for flush in (False, True))
    np.testing.assert_array_equal(unflushed, flushed)
