"""The bound of rounding errors against arithmetic that rounds as badly as the model of float32 allows.

The same steps are taken in float64 with every operation off by the unit roundoff, up or down: worse than any float32,
and all that the model assumes. The worst of them come near the bound, so it is not much larger than it need be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.roundoff import TINY, Near, U
from stsbp_conformance.tiers import elementwise
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.engine.backend import NeuronResiduals
from stsbp_spec.equations.expressions import Expr, Names, ordered
from stsbp_spec.models.losses import LOSSES, MeanSquaredError
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.models.surrogates import (
    SURROGATES,
    Arctan,
    FastSigmoid,
    Logistic,
    Rectangle,
    Surrogate,
    Triangle,
    derivative,
)
from stsbp_spec.models.surrogates import equation as surrogate_equation
from stsbp_spec.networks.ops import PSP, Conv2d, Linear
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float64

NUMPY = NumpyBackend()


@dataclass(frozen=True)
class _ThirdPower(Surrogate):
    """`h(x) = 1 / (1 + alpha |x|)^3`, for which there is no analysis by hand."""

    name: ClassVar[str] = "third-power"
    alpha: float = 2.0

    def constants(self) -> Mapping[str, float]:
        return {"alpha": self.alpha}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = 1 + abs(x) * p.alpha
        return 1 / (y * y * y)

    def primitive(self, x: AnyArray) -> AnyArray:
        distance = 1 - 1 / np.square(1 + self.alpha * np.abs(x))
        spike: AnyArray = 0.5 + np.sign(x) * distance / (2 * self.alpha)
        return spike


SURROGATE_CASES = [
    *(cls() for cls in SURROGATES.values()),
    Logistic(0.05),
    FastSigmoid(30),
    Triangle(0.1),
    Arctan(20),
    _ThirdPower(),
]
Rounding = Callable[[Any], Any]


def _roundings(seed: int) -> dict[str, Rounding]:
    rng = np.random.default_rng(seed)
    return {
        "up": lambda x: x * (1 + U),
        "down": lambda x: x * (1 - U),
        "outwards and inwards": lambda x: x * (1 + np.where(x > 0, U, -U)),
        "at random": lambda x: x * (1 + U * rng.choice([-1.0, 1.0], np.shape(x))),
    }


def _snap(x: Float64) -> Float64:
    return np.where(np.abs(x) < FLOOR, 0.0, x)


def _add(x: Any, y: Any, fl: Rounding) -> Any:
    """A sum with zero does not round."""
    return np.where((x == 0) | (y == 0), x + y, fl(x + y))


def _bad_derivative(surrogate: Surrogate, x: Float64, fl: Rounding) -> Any:
    """`h(x)` with each operation of its expression rounded by `fl`, constants too."""
    recurrence = surrogate_equation(surrogate)
    variables = {name: fl(np.float64(value)) for name, value in surrogate.constants().items()} | {"x": x}
    node_values: dict[int, Any] = {}
    for node in ordered(recurrence.roots):
        node_values[id(node)] = _bad_operation(node, [node_values[id(a)] for a in node.args], variables, fl)
    return node_values[id(recurrence.outputs["h"])]


def _bad_operation(node: Expr, a: Sequence[Any], variables: Mapping[str, Any], fl: Rounding) -> Any:
    if node.op == "variable":
        return variables[str(node.name)]
    if node.op == "constant":
        return np.float64(node.value)
    if node.op == "exp":
        z = np.exp(a[0])
        return z + (fl(z) - z) * (2 * roundoff.EXP_ULPS - 2 * a[0])
    return _BAD[node.op](fl, *a)


_BAD: dict[str, Callable[..., Any]] = {
    "add": lambda fl, a, b: _add(a, b, fl),
    "sub": lambda fl, a, b: _add(a, -b, fl),
    "mul": lambda fl, a, b: fl(a * b),
    "div": lambda fl, a, b: fl(a / b),
    "sqrt": lambda fl, a: fl(np.sqrt(a)),
    "neg": lambda fl, a: -a,
    "abs": lambda fl, a: np.abs(a),
    "snap": lambda fl, a: _snap(a),
    "lt": lambda fl, a, b: a < b,
    "ge": lambda fl, a, b: a >= b,
    "where": lambda fl, truth, a, b: np.where(truth, a, b),
}


def _bad_backward(neuron: LIF, psp: PSP, u: Float64, spikes: AnyArray, g: Float64, fl: Rounding) -> Float64:
    """neurons/lif.py, backward, rounded by `fl`, constants too; threshold and `u - V_th` as float32 has them."""
    km, k, c = (fl(np.float64(x)) for x in (1 - 1 / neuron.tau_m, 1 - 1 / psp.tau_s, 1 / psp.tau_s))
    dz = np.zeros_like(u)
    d = e = np.zeros(u.shape[1:])
    for t in reversed(range(len(u))):
        x = (u[t].astype(np.float32) - np.float32(neuron.threshold)).astype(np.float64)
        h = _bad_derivative(neuron.surrogate, x, fl)
        d1 = _snap(fl(km * d))
        p = _snap(fl(u[t] * d1))
        r = _snap(fl(h * _add(g[t], -p, fl)))
        d = _add(r, np.where(spikes[t] != 0, 0, d1), fl)
        e = _snap(_add(fl(k * e), d, fl))
        dz[t] = fl(c * e)
    return dz


@pytest.mark.parametrize("rounding", _roundings(0))
@pytest.mark.parametrize("surrogate", SURROGATE_CASES, ids=str)
def test_neuron_within_the_bound_whatever_the_roundings(
    surrogate: Surrogate, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants may be off by all of `u` here, which those of float32 are not."""

    def constant(wide: float, narrow: Any = None) -> Near:
        return Near(np.float64(wide), np.float64(abs(wide) * U), np.float64(abs(wide) * U))  # type: ignore[arg-type]

    neuron, psp = LIF(3, 2, 0.75, surrogate), PSP(5 / 3)
    rng = np.random.default_rng(1)
    u = rng.normal(0.5, 0.8, (12, 400)).astype(np.float32).astype(np.float64)
    spikes, g = (u >= 0.75).astype(np.uint8), rng.normal(size=u.shape)
    monkeypatch.setattr(roundoff, "_constant", constant)
    near = roundoff.neuron_backward(
        neuron, roundoff.exact_filter(psp), {"u": roundoff.exact(u)}, spikes, roundoff.exact(g), static=False
    )
    bad = _bad_backward(neuron, psp, u, spikes, g, _roundings(2)[rounding])
    ratio = np.abs(bad - near.value) / np.maximum(near.bound, TINY)
    assert ratio.max() <= 1
    if rounding != "at random":
        assert ratio.max() > 0.25, "the bound is wider than it need be"


@pytest.mark.parametrize("source", ["potentials", "errors", "both"])
@pytest.mark.parametrize("surrogate", SURROGATE_CASES, ids=str)
def test_neuron_within_the_bound_where_much_differs(surrogate: Surrogate, source: str) -> None:
    """Potentials and errors of float32 that are far from float64's: terms of second order count."""
    neuron, psp = LIF(3, 2, 0.75, surrogate), PSP(1)
    filter = roundoff.exact_filter(None)
    rng = np.random.default_rng(6)
    shape = (2, 4000)
    u = rng.normal(0.5, 0.8, shape).astype(np.float32).astype(np.float64)
    g = rng.normal(size=shape).astype(np.float32).astype(np.float64)
    u_off = rng.uniform(0.1, 0.5, shape) * (source != "errors")
    g_off = rng.uniform(0.1, 2, shape) * (source != "potentials")
    wide_u, wide_g = (x + off * rng.choice([-1.0, 1.0], shape) for x, off in ((u, u_off), (g, g_off)))
    spikes = rng.integers(0, 2, shape, np.uint8)
    near = roundoff.neuron_backward(
        neuron, filter, {"u": Near(wide_u, u_off, u_off)}, spikes, Near(wide_g, g_off, g_off), static=False
    )
    perturbed = _bad_backward(neuron, psp, u, spikes, g, lambda x: x)
    exact = _bad_backward(neuron, psp, wide_u, spikes, wide_g, lambda x: x)
    # `exact` has float32's threshold and difference, by 2^-23 of the potential; the bound is wider by orders.
    assert np.abs(near.value - exact).max() <= 1e-4 * np.abs(exact).max()
    ratio = np.abs(perturbed - near.value) / np.maximum(near.bound, TINY)
    assert ratio.max() <= 1
    assert ratio.max() > 0.5


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_bound_grows_by_the_neurons_own_factor(factor: float, steps: int) -> None:
    """Not by |h u| + |1 - o|: an error that comes back through the reset is taken off what leaks on."""
    neuron = LIF(1e9, 1, 1.0, Rectangle(16.0))  # h = 1/16, k_m = 1 but for 1e-9
    u = np.full((steps, 1), 16 * (1 - factor), np.float32)
    assert (np.abs(u - 1) < 8).all()
    spikes = np.zeros_like(u, np.uint8)
    g = Near(np.zeros((steps, 1)), np.zeros((steps, 1)), np.zeros((steps, 1)))
    g.value[-1], g.error[-1] = 1.0, 1e-3
    near = roundoff.neuron_backward(
        neuron, roundoff.exact_filter(None), {"u": roundoff.exact(u)}, spikes, g, static=False
    )
    assert near.error[0, 0] == pytest.approx(1e-3 / 16 * factor ** (steps - 1), rel=0.02)


@pytest.mark.parametrize(
    ("synapse", "shape"),
    [(Linear(3), (7,)), (Conv2d(4, 3, padding=1), (2, 6, 5)), (Conv2d(3, 2, stride=2), (2, 7, 6))],
    ids=["linear", "padding", "stride"],
)
@pytest.mark.parametrize("rounding", _roundings(0))
def test_sums_within_the_bound_in_any_order(synapse: Linear | Conv2d, shape: tuple[int, ...], rounding: str) -> None:
    rng = np.random.default_rng(3)
    fl = _roundings(4)[rounding]
    s = (rng.random((4, 2, *shape)) < 0.4).astype(np.uint8)
    w = np.rint(rng.normal(size=synapse.weight_shape(shape)) * 64).astype(np.float32) / np.float32(64)
    z = NUMPY.rule(synapse).forward(synapse, s, w)[0]
    dz = rng.normal(size=z.shape)
    error = np.abs(dz) * 3 * U * rng.random(dz.shape)
    near_ds, near_dw = roundoff.synapse_backward(synapse, s, w, Near(dz, error, error), need_input=True)
    assert near_ds is not None
    perturbed = dz + error * rng.choice([-1.0, 1.0], dz.shape)
    terms: dict[str, dict[tuple[int, ...], list[float]]] = {"ds": {}, "dw": {}}
    for frame in np.ndindex(*z.shape[:2]):
        for out in np.ndindex(*z.shape[2:]):
            for to, at in _connections(synapse, shape, out):
                terms["dw"].setdefault(to, []).append(fl(perturbed[frame + out] * s[frame + at]))
                terms["ds"].setdefault(frame + at, []).append(fl(perturbed[frame + out] * w[to]))
    for near, summands in ((near_dw, terms["dw"]), (near_ds, terms["ds"])):
        for at, values in summands.items():
            values = [x for x in values if x != 0]
            for order in (values, values[::-1], sorted(values), sorted(values, key=abs)):
                total: Any = 0.0
                for x in order:
                    total = fl(total + x) if total != 0 else x
                assert abs(total - near.value[at]) <= near.bound[at]


def _connections(
    synapse: Linear | Conv2d, shape: tuple[int, ...], out: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of an output: each weight and the input that it meets."""
    if isinstance(synapse, Linear):
        return [((*out, j), (j,)) for j in range(shape[0])]
    connections: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    (down, across), (pad_row, pad_column), (row_dilation, column_dilation) = (
        synapse.strides,
        synapse.paddings,
        synapse.dilations,
    )
    inputs_per_group = shape[0] // synapse.groups
    first = out[0] // (synapse.channels // synapse.groups) * inputs_per_group
    for c, i, j in np.ndindex(inputs_per_group, *synapse.kernels):
        y, x = out[1] * down + i * row_dilation - pad_row, out[2] * across + j * column_dilation - pad_column
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            connections.append(((out[0], c, i, j), (first + c, y, x)))
    return connections


def test_summands_that_are_zero_do_not_count() -> None:
    s = np.zeros((100, 1, 2), np.uint8)
    s[3, 0, 0] = s[:, 0, 1] = 1
    dz = np.ones((100, 1, 1))
    _, dw = roundoff.synapse_backward(Linear(1), s, np.ones((1, 2), np.float32), roundoff.exact(dz), need_input=False)
    assert dw.error[0].tolist() == pytest.approx(
        [float(roundoff.gamma(1)), 100 * float(roundoff.gamma(100))], rel=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0, 5 / 3])
def test_loss_error_within_the_bound(loss: str, tau: float) -> None:
    rng = np.random.default_rng(5)
    s, targets = ((rng.random((40, 3, 50)) < 0.4).astype(np.uint8) for _ in range(2))
    near = roundoff.loss_error(LOSSES[loss], PSP(tau), s, targets)
    grad_spikes = NUMPY.loss_error(LOSSES[loss], PSP(tau), s, targets)
    assert (np.abs(grad_spikes - near.value) <= near.bound).all()
    assert np.abs(near.value).max() > 0
    assert near.error.max() <= 50 * U * np.abs(near.value).max()


def test_error_of_real_targets_within_the_bound() -> None:
    u, targets = elementwise.readout_data((40, 3, 50), 5)
    near = roundoff.loss_error(MeanSquaredError(), PSP(3), u, targets)
    error = NUMPY.loss_error(MeanSquaredError(), PSP(3), u, targets)
    assert (np.abs(error - near.value) <= near.bound).all()
    ordinary = np.abs(near.value) > 2.0**-60
    assert ordinary.mean() > 0.5
    assert (near.error <= 4 * U * np.abs(near.value))[ordinary].all()
    # Potentials with errors: each error comes through, and nothing else changes.
    off = np.full(u.shape, 2.0**-10)
    wide = roundoff.loss_error(MeanSquaredError(), PSP(3), Near(u.astype(np.float64), off, off), targets)
    assert np.array_equal(wide.value, near.value)
    perturbed = 2 / u.size * (u.astype(np.float64) + off - targets)
    assert (np.abs(perturbed - wide.value) <= wide.bound).all()
    assert (wide.error <= near.error + 1.001 * 2 / u.size * off).all()


def test_what_float32_computes_exactly_has_no_error() -> None:
    neuron, filter = LIF(2, 2, 0.5, Rectangle(2)), roundoff.exact_filter(PSP(2))
    for constant in filter.constants:
        assert constant.error == 0
    x = roundoff.exact(np.array([0.1]))
    for power in (roundoff.exact(0.25), roundoff.exact(-2.0)):
        assert roundoff._multiply(power, x).error <= TINY
        assert roundoff._multiply(x, power).error <= TINY
    assert roundoff._add(x, roundoff.exact(np.zeros(1))).error == 0
    u = roundoff.exact(np.array([[0.5], [2.0], [-0.5]]))  # in, and on both edges
    spikes = (u.value >= 0.5).astype(np.uint8)
    g = roundoff.exact(np.array([[0.0], [0.0], [1.0]]))
    near = roundoff.neuron_backward(neuron, filter, {"u": u}, spikes, g, static=False)
    assert not near.value[-1].any()
    assert not near.error[-1].any()


@pytest.mark.parametrize(("threshold", "width", "jumps"), [(0.3, 0.4, True), (0.3, 0.6, False), (0.25, 0.5, False)])
def test_rectangle_jumps_only_where_float32_stands_on_the_other_side(
    threshold: float, width: float, jumps: bool
) -> None:
    """0.5 - 0.3 is below 0.2 in float32 and not in float64; 0 - 0.3 stands on the edge in both."""
    neuron = LIF(2, 2, threshold, Rectangle(width))
    u = roundoff.exact(np.array([[0.5 if width == 0.4 else 0.0]]))
    spikes = (u.value >= threshold).astype(np.uint8)
    near = roundoff.neuron_backward(
        neuron, roundoff.exact_filter(PSP(1)), {"u": u}, spikes, roundoff.exact(np.ones((1, 1))), static=False
    )
    assert near.value[0, 0] == 0
    assert near.error[0, 0] == (pytest.approx(1 / width, rel=1e-5) if jumps else 0)


@pytest.mark.parametrize("off", [1e-9, 1e-3])
def test_rectangle_jumps_where_potentials_differ_across_an_edge(off: float) -> None:
    neuron = LIF(2, 2, 1.0, Rectangle(1.0))
    u = Near(np.array([[1.5 - off / 2, 1.5 - 2 * off, 0.5 + off / 2]]), np.full((1, 3), off), np.full((1, 3), off))
    near = roundoff.neuron_backward(
        neuron, roundoff.exact_filter(PSP(1)), {"u": u}, np.array([[1, 1, 0]], np.uint8),
        roundoff.exact(np.ones((1, 3))), static=False,
    )  # fmt: skip
    assert near.value.tolist() == [[1, 1, 1]]
    assert (near.error[0, [0, 2]] >= 1).all()
    assert near.error[0, 1] < (1e-5 if off > 1e-6 else 2)


@settings(max_examples=200, deadline=None)
@given(
    surrogate=st.sampled_from(SURROGATE_CASES),
    u=st.floats(-50, 50, width=32),
    threshold=st.floats(2.0**-10, 30, width=32),
    off=st.floats(0, 1),
    side=st.floats(-1, 1),
)
def test_derivative_of_potentials_that_differ(
    surrogate: Surrogate, u: float, threshold: float, off: float, side: float
) -> None:
    """Float32 has `u` and rounds; float64 has another potential, no further than `off` away."""
    neuron = LIF(2, 2, threshold, surrogate)
    wide = np.array([u + side * off])
    near = roundoff._derivative(neuron, Near(wide, np.abs(wide - u), np.abs(wide - u)))
    float32 = derivative(surrogate, np.array([u], np.float32) - np.float32(threshold)).astype(np.float64)
    assert near.value == derivative(surrogate, wide - threshold)
    assert np.abs(float32 - near.value) <= near.bound
    assert np.isfinite(near.error).all()


def test_the_floor_and_underflow_are_part_of_the_bound() -> None:
    below_floor = np.float32(FLOOR * 0.99)
    neuron, filter = LIF(1, 1, 1.0, Rectangle(4.0)), roundoff.exact_filter(PSP(2.0**20))
    u = roundoff.exact(np.ones((1, 1)))
    for g in (below_floor, np.float32(FLOOR * 1.5)):
        near = roundoff.neuron_backward(
            neuron, filter, {"u": u}, np.ones((1, 1), np.uint8), roundoff.exact(np.full((1, 1), g)), static=False
        )
        dz = NUMPY.neuron_backward(neuron, PSP(2.0**20).filter(), _residuals(u.value), np.full((1, 1), g, np.float32))[
            0
        ]
        assert dz[0, 0] == 0
        assert near.value[0, 0] > 0
        assert near.value[0, 0] <= near.error[0, 0]
    # A product of two small numbers: below 2^-126 it may be flushed.
    tiny = roundoff._multiply(roundoff.exact(np.array([2.0**-70])), roundoff.exact(np.array([2.0**-80])))
    assert tiny.error >= TINY


def test_a_product_within_one_rounding_of_the_floor_may_be_below_it() -> None:
    """The potential, lower by `off`, times the error of the step after it, rounded down, is the floor."""
    neuron, off, n = LIF(2, 2, 1.0, Rectangle(4.0)), 2.0**-10, 7
    g = np.full((2, n), 16 * FLOOR)
    g[1] = 8 * FLOOR / (1 - off - U) * (1 + U * np.linspace(-1, 0.5, n))  # the surrogate is 1/4, the leak 1/2
    off_at = np.array([[off] * n, [0.0] * n])
    near = roundoff.neuron_backward(
        neuron, roundoff.exact_filter(PSP(1)), {"u": Near(np.ones((2, n)), off_at, off_at)}, np.ones((2, n), np.uint8),
        roundoff.exact(g), static=False,
    )  # fmt: skip
    assert (near.error[0] >= FLOOR / 4).all()
    assert (near.error[0] < FLOOR / 2).all()


def _residuals(u: Float64) -> Any:
    return NeuronResiduals({"u": u.astype(np.float32)}, (u >= 1).astype(np.uint8), static=False)


def test_sums_too_long_for_float32_have_no_bound() -> None:
    assert roundoff.gamma(2**24) == np.inf
    assert roundoff.gamma(2**23) == 1
    assert roundoff.gamma(np.array([0, 1])).tolist() == [0, U / (1 - U)]


def _near(value: float, error: float, spread: float) -> Near:
    return Near(*(np.array([x]) for x in (value, error, spread)))


@pytest.mark.parametrize(
    ("op", "b", "value", "propagated", "spread"),
    [
        ("add", (-5.0, 0.125, 0.0625), -8.0, 0.625, (0.3125,)),
        ("mul", (-5.0, 0.125, 0.0625), 15.0, 0.375 + 2.5 + 0.0625, (3 / 16, 1.25)),
        ("div", (2.0, 0.5, 0.25), -1.5, (1.5 * 0.5 + 0.5) / 1.5, (0.1875, 0.125)),
        ("div", (1.25, 0.5, 0.25), -2.4, 2.4 * 0.5 + 0.5, (0.48, 0.2)),  # no divisor of float32 is below 1
    ],
)
def test_each_operation_carries_the_errors_of_its_operands_and_rounds_once(
    op: str, b: tuple[float, float, float], value: float, propagated: float, spread: tuple[float, ...]
) -> None:
    near = roundoff._NEAR[op](_near(-3.0, 0.5, 0.25), _near(*b))
    assert near.value == pytest.approx(value, rel=1e-15)
    assert near.error == pytest.approx(propagated + U * (abs(value) + propagated), rel=1e-13)
    assert near.spread == pytest.approx(math.hypot(*spread, value * U), rel=1e-13)


def test_products_and_sums_with_a_zero_do_not_round() -> None:
    zero, x = roundoff.exact(np.zeros(1)), roundoff.exact(np.array([0.1]))
    for product in (roundoff._multiply(zero, x), roundoff._multiply(x, zero)):
        assert product.error == product.spread == 0
    s = np.zeros((3, 2, 4), np.uint8)
    ds, dw = roundoff.synapse_backward(
        Linear(2), s, np.zeros((2, 4), np.float32), roundoff.exact(np.ones((3, 2, 2))), need_input=True
    )
    assert ds is not None
    for near in (ds, dw):
        assert not near.error.any()
        assert not near.spread.any()


def test_a_gradient_of_nothing_is_as_near_as_float32_has_numbers() -> None:
    neuron, spikes = PLIF(3, 2, 0.5), np.zeros((4, 2, 3), np.uint8)
    saved = roundoff.neuron_forward(
        neuron,
        roundoff.exact_filter(PSP(2)),
        np.full(spikes.shape, 0.125),
        spikes,
        {"decay": np.array([0.5], np.float32)},
    )
    nothing = roundoff.exact(np.zeros(spikes.shape))
    near = roundoff.learned_gradients(neuron, roundoff.exact_filter(PSP(2)), saved, spikes, nothing)["decay"]
    assert near.value == 0
    assert 0 < near.error <= 2 * TINY
    assert 0 < near.spread <= 2 * TINY
