"""Expressions, what is derived from them, and how they are printed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stsbp_spec.equations.adjoint import derive, free_variables, kept_values, simplified
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import (
    Expr,
    Names,
    Recurrence,
    checked_name,
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
from stsbp_spec.equations.printers import LANGUAGES, Language, evaluate, function, lines, numpy_function
from stsbp_spec.errors import SpecError
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP

A, B, C = (variable(name) for name in "abc")


def _recurrence(x: Expr, **more: Any) -> Recurrence:
    return Recurrence("f", (), ("a", "b", "c"), {}, {"y": unsnapped(x)}, **more)


def _text(x: Expr, language: str = "numpy") -> str:
    return lines(_recurrence(x), LANGUAGES[language]).lines[-1].text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (A + B + C, "a + b + c"),
        (A + (B + C), "a + (b + c)"),
        (A - (B - C), "a - (b - c)"),
        (A - B - C, "a - b - c"),
        (A * B + C, "a * b + c"),
        ((A + B) * C, "(a + b) * c"),
        (A * (B * C), "a * (b * c)"),
        (A / (B * C), "a / (b * c)"),
        (A * B / C, "a * b / c"),
        (-(A + B), "-(a + b)"),
        (-A * B, "-a * b"),
        (A - -B, "a - -b"),
        (abs(A - B), "abs(a - b)"),
        (1 - A * 0.5, "number(1.0) - a * number(0.5)"),
        (1 + A, "number(1.0) + a"),
        (2 * A, "number(2.0) * a"),
        (2 / A, "number(2.0) / a"),
        (where(A < B, A, B), "where(a < b, a, b)"),
        (where(A > B, A, 0), "where(b < a, a, number(0.0))"),
        (where(A + B >= C, A, 0), "where(a + b >= c, a, number(0.0))"),
        (where(A >= B + C, A, 0), "where(a >= b + c, a, number(0.0))"),
        (where(A < B + C, A, 0), "where(a < b + c, a, number(0.0))"),
        (snap(sqrt(A) + exp(B)), "snap(sqrt(a) + exp(b))"),
    ],
)
def test_order_of_operations_is_printed_as_it_was_written(x: Expr, text: str) -> None:
    assert _text(x) == f"y = {text}"


def test_languages_write_one_rounding_an_operation() -> None:
    x = snap(A * B + C)
    assert _text(x, "cuda") == "const float y_ = snap(__fadd_rn(__fmul_rn(a_, b_), c_));"
    assert _text(x, "c") == "const float y_ = snap(a_ * b_ + c_);"
    assert _text(A - (B - C), "c") == "const float y_ = a_ - (b_ - c_);"
    assert _text(where(spike(A, B), 0, sqrt(C)), "c") == "const float y_ = (a_ >= b_ ? 0.0f : sqrtf(c_));"
    assert _text(abs(A) * 0.1, "c") == f"const float y_ = fabsf(a_) * {float(np.float32(0.1)).hex()}f;"
    assert _text(x, "jax") == "y = snap(rounded(a * b) + c)"
    assert _text((A - B) * C, "jax") == "y = rounded((a - b) * c)"
    assert _text(A / 3, "triton") == "y = tl.div_rn(a, 3.0)"
    assert _text(where(spike(A, B), 0, C), "numba") == "y = (float32(0.0) if a >= b else c)"
    assert _text(A * 0.1, "cuda") == f"const float y_ = __fmul_rn(a_, {float(np.float32(0.1)).hex()}f);"
    assert _text(A * 16777217.5, "cuda") == "const float y_ = __fmul_rn(a_, 0x1.0000020000000p+24f);"
    assert _text(A * -0.5, "cuda") == "const float y_ = __fmul_rn(a_, (-0x1.0000000000000p-1f));"


def test_the_name_of_a_recurrence_is_one_in_every_language() -> None:
    assert Recurrence("l1-norm", (), ("a",), {}, {"y": A}).name == "l1_norm"
    with pytest.raises(SpecError, match="begins with a letter: '1_norm'"):
        Recurrence("1-norm", (), ("a",), {}, {"y": A})


def test_cuda_and_c_never_decrement() -> None:
    minus = -A
    assert _text(-minus + -constant(-2.0), "cuda") == "const float y_ = __fadd_rn((-(-a_)), (-(-2.0f)));"
    assert _text(-minus - -constant(-2.0), "c") == "const float y_ = -(-a_) - -(-2.0f);"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_negated_sum_is_negated_as_a_whole(language: str) -> None:
    total, product = (_text(x, language) for x in (-(A + B), -(A - B) * C))
    if language == "cuda":
        assert total == "const float y_ = (-__fadd_rn(a_, b_));"
        assert product == "const float y_ = __fmul_rn((-__fsub_rn(a_, b_)), c_);"
    else:
        assert "-(a + b)" in total.replace("_", "")
        assert "-(a - b) * c" in product.replace("_", "")


def test_what_is_used_twice_is_computed_once() -> None:
    x = (A + B) * (A + B)
    assert [line.text for line in lines(_recurrence(x), LANGUAGES["numpy"]).lines] == ["x1 = a + b", "y = x1 * x1"]


def test_what_is_computed_once_keeps_the_name_that_one_of_its_authors_gave() -> None:
    products = {"late": (A + B) * named("total", A + B), "early": named("total", A + B) * (A + B)}
    for name, x in products.items():
        step = Recurrence(name, (), ("a", "b"), {}, {"y": unsnapped(x)})
        text = [line.text for line in lines(step, LANGUAGES["numpy"]).lines]
        assert text == ["total = a + b", "y = total * total"]


def test_names_are_kept_and_never_taken_twice() -> None:
    s = variable("s")
    u = named("a", s + A)  # the name of an input
    step = Recurrence("f", (), ("a",), {"s": unsnapped(u)}, {"a_": unsnapped(u * u), "b": unsnapped(named("s", u + 1))})
    program = lines(step, LANGUAGES["numpy"])
    names = [line.name for line in program.lines]
    assert len({*names, "a", "s"}) == len(names) + 2
    (new,), (square, more) = numpy_function(step)(np.float32(3), np.float32(2))
    assert (new, square, more) == (5, 25, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bool(A < B), "choose with where"),
        (lambda: 0 if A == 0 else B, "no == or !="),
        (lambda: A != B, "no == or !="),
        (lambda: A**2, "write x \\* x"),
        (lambda: float(A), "no value yet"),
        (lambda: list(A), "not a sequence"),
        (lambda: A + "b", "must be a number"),  # type: ignore[operator]
        (lambda: A + float("nan"), "must be finite in float32"),
        (lambda: A * 1e39, "must be finite in float32"),
        (lambda: where(A, B, C), "is a condition"),
        (lambda: variable("2x"), "letters, digits"),
        (lambda: variable("lambda"), "letters, digits"),
        (lambda: variable("_x"), "letters, digits"),
        (lambda: variable("where"), "where is a reserved word in a language"),
        (lambda: Recurrence("f", (), ("a",), {"snap": A}, {}), "snap is a reserved word in a language"),
        (lambda: Recurrence("f", ("len",), ("a",), {}, {"y": A}), "len is a reserved word in a language"),
        (lambda: Recurrence("f", (), ("range",), {}, {"y": A}), "range is a reserved word in a language"),
        (lambda: Recurrence("f", ("a",), ("a",), {}, {"y": A}), "these names are used twice: a"),
        (lambda: Recurrence("f", (), ("a",), {}, {"y": A + B}), "b is neither a parameter nor an input nor a state"),
        (lambda: Recurrence("f", (), ("a",), {}, {"y": A + unsnapped(A)}), "must enclose a whole state or result"),
        (lambda: Recurrence("f", (), ("a",), {"s": A < 1}, {}), "the state s is a condition"),
        (lambda: Names("constant", {"tau": A}).decay, "no constant 'decay'; there are: tau"),
    ],
)
def test_what_is_no_equation_is_refused_with_a_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_a_step_of_too_many_operations_is_refused() -> None:
    sums, choices = [A], [A]
    for number in range(1001):
        sums.append(sums[-1] * B + number if number % 2 else sums[-1] + B)
        choices.append(where(A < B, choices[-1], B))
    # Every second sum has a product too. A comparison is computed once, and a choice counts as five operations.
    assert Recurrence("f", (), ("a", "b"), {}, {"y": unsnapped(sums[667])}).outputs
    assert Recurrence("f", (), ("a", "b"), {}, {"y": unsnapped(choices[199])}).outputs
    with pytest.raises(
        SpecError, match=r"^f has 1,001 operations in one step, more than the 1,000 that are allowed; a "
    ):
        Recurrence("f", (), ("a", "b"), {}, {"y": unsnapped(sums[667] + B)})
    with pytest.raises(SpecError, match=r"^f has 1,001 operations in one step"):
        Recurrence("f", (), ("a", "b"), {}, {"y": unsnapped(choices[200])})


def test_a_condition_that_is_counted_with_is_one_or_zero() -> None:
    x = _recurrence(A + (B < C))
    assert evaluate(x, {"a": np.float32(2), "b": np.float32(0), "c": np.float32(1)}, np.float32)["y"] == 3
    assert evaluate(x, {"a": np.float32(2), "b": np.float32(1), "c": np.float32(1)}, np.float32)["y"] == 2


def test_states_and_results_are_snapped_unless_their_author_vouches_for_them() -> None:
    tiny = np.float32(2.0**-60)
    step = Recurrence("f", (), ("a",), {"s": A * A}, {"y": A * A, "z": unsnapped(A * A), "o": A < 1})
    (s,), (y, z, o) = numpy_function(step)(tiny, np.float32(0))
    assert (s, y, z, o) == (0, 0, 2.0**-120, True)


def test_recurrences_are_equal_if_they_compute_the_same() -> None:
    assert _recurrence(A + B) == _recurrence(named("other", A + B))
    assert hash(_recurrence(A + B)) == hash(_recurrence(variable("a") + variable("b")))
    others = [B + A, A - B, A + B + 0, A + (B + C)]
    assert all(_recurrence(A + B) != _recurrence(x) for x in others)
    assert _recurrence(A + B) != _recurrence(A + B, reverse=True)
    one, two = (neuron_equations(PSP(tau).filter(), LIF(tau, 3, 0.5)) for tau in (2, 3))
    assert one.forward == two.forward
    assert one.constants != two.constants


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_writes_every_operation(language: str) -> None:
    x = where(spike(A, B), exp(A) / sqrt(B), -abs(snap(A - B * C + 1))) + where(A < B, A, B) + where(A >= B, A, C)
    assert "y" in function(_recurrence(x), LANGUAGES[language])


# The way back.


@pytest.mark.parametrize(
    ("x", "slope"),
    [
        (A + B, lambda a, b: (1, 1)),
        (A - B, lambda a, b: (1, -1)),
        (A * B, lambda a, b: (b, a)),
        (A / B, lambda a, b: (1 / b, -a / b**2)),
        (-A * B, lambda a, b: (-b, -a)),
        (abs(A) * B, lambda a, b: (np.sign(a) * b, abs(a))),
        (sqrt(B) * A, lambda a, b: (np.sqrt(b), a / (2 * np.sqrt(b)))),
        (exp(A) * B, lambda a, b: (np.exp(a) * b, np.exp(a))),
        (snap(A) * B, lambda a, b: (b, a)),
        (where(A < B, A * B, A), lambda a, b: (b, a) if a < b else (1, 0)),
        (A * A * A + A, lambda a, b: (3 * a * a + 1, 0)),
        (where(spike(A, B), A, B), lambda a, b: ((a - b) * 7 + (a >= b), (b - a) * 7 + (a < b))),
        (A * spike(A, B), lambda a, b: (a * 7 + (a >= b), -a * 7)),
    ],
)
@pytest.mark.parametrize(("a", "b"), [(1.5, 0.75), (-0.5, 2.0)])
def test_cotangents_are_derivatives(x: Expr, slope: Callable[[float, float], Any], a: float, b: float) -> None:
    """The surrogate derivative is 7 here."""
    derivatives = derive([(x, variable("g"))], [A, B], lambda x: variable("h"))
    step = Recurrence(
        "f", ("g", "h"), ("a", "b"), {}, {n: unsnapped(x) for n, x in zip("xy", derivatives, strict=True)}
    )
    values = {"a": np.float64(a), "b": np.float64(b), "g": np.float64(3), "h": np.float64(7)}
    y = evaluate(step, values, np.float64)
    assert (y["x"] / 3, y["y"] / 3) == pytest.approx(slope(a, b), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "a", "b", "g", "h", "expected"),
    [
        (A * B, -60, -60, -60, 0, (0, 0)),
        (A * (B * B), 0, -60, 60, 0, (0, 2)),
        (A / B, 60, 60, -60, 0, (0, 0)),
        (A / B, -90, -30, -60, 0, (2.0**-30, 0)),
        (exp(-A), 5, 0, -60, 0, (0, 0)),
        (sqrt(A) + B, 120, 0, -60, 0, (0, 2.0**-60)),
        (where(spike(A, B), 2.0**-60, 0), 1, 0, -60, 60, (0, 0)),
        (where(spike(A, B), 1, 0), 1, 0, -60, -60, (0, 0)),
    ],
    ids=["product", "factor", "quotient", "its divisor", "exponential", "root", "what a spike is worth", "surrogate"],
)
def test_products_and_quotients_of_the_way_back_are_snapped(
    x: Expr, a: int, b: int, g: int, h: int, expected: tuple[float, float]
) -> None:
    """Each number is a power of two; what is zero here would be 2^-120 or what is made of it."""
    derivatives = derive([(x, variable("g"))], [A, B], lambda x: variable("h"))
    results = {n: unsnapped(y) for n, y in zip("xy", derivatives, strict=True)}
    step = Recurrence("f", ("g", "h"), ("a", "b"), {}, results)
    values = {name: np.float32(2.0**power) for name, power in (("a", a), ("b", b), ("g", g), ("h", h))}
    y = evaluate(step, values, np.float32)
    assert (float(y["x"]), float(y["y"])) == expected


def test_the_slope_of_abs_at_zero_is_that_of_its_right() -> None:
    (derivative,) = derive([(abs(A), variable("g"))], [A], lambda x: x)
    step = Recurrence("f", ("g",), ("a",), {}, {"x": unsnapped(derivative)})
    slopes = [evaluate(step, {"a": np.float32(a), "g": np.float32(3)}, np.float32)["x"] for a in (-1, 0, 1)]
    assert slopes == [-3, 3, 3]


def test_simplifying_changes_no_number() -> None:
    zero, one, minus = A * 0, A * 0 + 1, -A
    for x, text in ((zero + A, "a"), (A - zero, "a"), (zero - A, "-a"), (one * A, "a"), (A / one, "a"), (-minus, "a")):
        (simple,) = simplified([x])
        assert _text(simple + B) == f"y = {text} + b"
    (x,) = simplified([snap(snap(A) + zero)])
    assert _text(x) == "y = snap(a)"
    assert simplified([A + B])[0].op == "add"
    same, other = simplified([where(A < B, 2, 2), where(A < B, 1, 0)])
    assert (same.op, same.value, other.op) == ("constant", 2, "where")


def test_the_fewest_values_are_kept() -> None:
    u = named("u", A + B)
    v = named("v", u * C)
    free, candidates = {"u": u}, {"v": v, "a": A, "b": B, "c": C}
    saved, replaced = kept_values([v * variable("g")], ["g"], free, candidates)
    assert list(saved) == ["v"]
    assert free_variables(replaced) == ["v", "g"]
    saved, _ = kept_values([u * variable("g")], ["g"], free, candidates)
    assert list(saved) == ["u"]
    saved, _ = kept_values([v * u * A], [], free, candidates)
    assert list(saved) == ["u", "v", "a"]
    with pytest.raises(SpecError, match="name them with named"):
        kept_values([A * C], [], free, {"v": v})


@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_lif_keeps_its_potentials_alone(surrogate: type) -> None:
    equations = neuron_equations(PSP(3).filter(), LIF(surrogate=surrogate()))
    assert equations.kept == ("u",)
    assert equations.forward.parameters == ("k", "c", "km", "vth")
    assert equations.backward.exact == (surrogate.__name__ != "Logistic")


def test_any_name_of_a_model_can_be_printed() -> None:
    step = Recurrence("my-neuron 2", (), ("a",), {}, {"y": unsnapped(A + 1)})
    assert function(step, LANGUAGES["numpy"]).startswith("def my_neuron_2(a):")
    assert numpy_function(step)(np.float32(1))[1] == (2,)


def test_a_changed_recurrence_snaps_nothing_anew() -> None:
    """LIF vouches for its state: `replace` would snap it, and other bits would come out at the floor."""
    step = neuron_equations(PSP(3).filter(), LIF()).forward
    same = step.changed()
    assert same == step
    assert step.changed(outputs={"u": step.outputs["u"]}).states == step.states
    assert dataclasses.replace(step, outputs=dict(step.outputs)) != step


def test_equations_of_two_names_are_printed_each_under_its_own() -> None:
    one, two = (Recurrence(name, (), ("a",), {}, {"y": unsnapped(A * 2)}) for name in ("one", "two"))
    assert one != two
    assert numpy_function(one)(np.float32(3))[1] == numpy_function(two)(np.float32(3))[1] == (6,)


@pytest.mark.parametrize("language", [x for x in LANGUAGES.values() if x.word == "{0}"], ids=lambda x: x.name)
def test_words_of_printed_code_are_no_names(language: Language) -> None:
    """In C and CUDA, names end in `_` instead, so that they are no words."""
    patterns = [
        *language.operations.values(),
        *language.wrappers.values(),
        language.constant(1.5),
        "for in range(len())",
    ]
    for word in set(re.findall(r"(?<![.\w])[A-Za-z]\w*", " ".join(patterns))):
        with pytest.raises(SpecError, match=r"reserved word|letters, digits and _"):
            checked_name(word)
