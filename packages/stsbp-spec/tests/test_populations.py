"""Populations that read several projections, each other's past and their own: by hand, in float64 and in fractions.

Whole networks in the notation go through test_oracles.py; here are graphs that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.literal import Literal, LiteralRun
from stsbp_spec.engine.backend import LayerRun
from stsbp_spec.engine.passes import Trace, backward_pass, forward_pass
from stsbp_spec.equations.assembly import NeuronEquations, neuron_equations
from stsbp_spec.models.losses import Hamming
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF, NeuronModel
from stsbp_spec.models.surrogates import Arctan, Rectangle
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node
from stsbp_spec.networks.ops import PSP, Add, AvgPool2d, Conv2d, Dropout, Linear, OneToOne
from stsbp_spec.networks.ops.psp import Biased, SynapticFilter
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Coding, Float32, Float64, Memory, Precision

NUMPY = NumpyBackend()
STEPS, BATCH = 7, 3
SEED = st.integers(0, 2**32 - 1)


def graph(
    *nodes: tuple[str, Any, str], shape: tuple[int, ...] = (6,), coding: Coding = "events", psp: PSP | None = None
) -> Network:
    """Nodes with the names of what they read: `"w1 own@1"` reads `own` a step later."""
    with_input = [Node("input", Input(shape, coding, psp))]
    for name, op, reads in nodes:
        edges = (read.partition("@") for read in reads.split())
        with_input.append(Node(name, op, tuple(Edge(source, int(delay or 0)) for source, _, delay in edges)))
    return Network(tuple(with_input))


def several(kind: str, model: Callable[..., Any]) -> Network:
    """Networks in which populations of `model(tau_s)` read several projections."""
    two, three = Neurons(model(2.0)), Neurons(model(3.0))
    if kind == "one filter":  # of two populations with equal synapses, and of one of them a step later
        return graph(
            ("w1", Linear(5), "input"), ("n1", two, "w1"),
            ("w2", Linear(5), "input"), ("n2", two, "w2"),
            ("w3", Linear(4), "n1"), ("w4", Linear(4), "n2"), ("w5", Linear(4), "n1@2"), ("n3", two, "w3 w4 w5"),
        )  # fmt: skip
    if kind == "two filters":  # a skip connection past a population with another synapse, and a biased one
        return graph(
            ("w1", Linear(5), "input"), ("n1", three, "w1"),
            ("w2", Linear(5, bias=True), "n1"), ("n2", two, "w2"),
            ("w3", Linear(4), "n2"), ("w4", Linear(4, bias=True), "n1"), ("n3", two, "w3 w4"),
            psp=PSP(2.0),
        )  # fmt: skip
    if kind == "image and spikes":  # one input serves all steps, the other one changes
        return graph(
            ("w1", Linear(5), "input"), ("n1", two, "w1"),
            ("w2", Linear(4), "n1"), ("w3", Linear(4), "input"), ("n2", three, "w2 w3"),
            coding="direct",
        )  # fmt: skip
    if kind == "two images":  # both serve all steps, and share a filter
        return graph(
            ("w1", Linear(4), "input"), ("w2", Linear(4), "input"), ("n1", two, "w1 w2"),
            ("w3", Linear(3), "n1"), ("n2", two, "w3"),
            coding="direct",
        )  # fmt: skip
    if kind == "recurrent twice":  # through weights of its own neuron and of all, between two others
        return graph(
            ("w1", Linear(5), "input"), ("own", OneToOne(weight_bits=5), "n1@1"), ("all", Linear(5), "n1@1"),
            ("w2", Linear(5), "input@1"), ("n1", two, "w1 own w2 all"),
            ("w3", Linear(4), "n1"), ("n2", three, "w3"),
        )  # fmt: skip
    assert kind == "image and recurrence", kind
    return graph(
        ("c1", Conv2d(3, 2), "input"), ("own", Conv2d(3, 3, padding=1), "n1@1"), ("n1", two, "c1 own"),
        ("c2", Conv2d(3, 2, bias=True), "input"), ("pool", AvgPool2d(1), "n1"), ("c3", Conv2d(3, 1), "pool"),
        ("n2", three, "c2 c3"), ("sum", Add(), "n1 pool"), ("w", Linear(4), "sum"), ("v", Linear(4), "n2"),
        ("n3", two, "w v"),
        shape=(2, 4, 3), coding="direct",
    )  # fmt: skip


KINDS = ("one filter", "two filters", "image and spikes", "two images", "recurrent twice", "image and recurrence")
MODELS: Mapping[str, Callable[[float], NeuronModel]] = {
    "LIF": lambda tau_s: LIF(3.0, tau_s, 0.4, Arctan()),
    "ALIF, synapses that rise": lambda tau_s: ALIF(3.0, tau_s + 2, 0.3, Arctan(), tau_a=4.0, beta=0.7, tau_rise=1.5),
    "PLIF, soft reset": lambda tau_s: PLIF(3.0, tau_s, 0.4, Arctan(), reset="subtract"),
    "IF": lambda tau_s: IF(tau_s, 0.6, Arctan()),
}


def parameters(network: Network, seed: int = 1, scale: float = 1.2) -> dict[str, Float32]:
    """Weights on their grids, and numbers inside the domains of what neurons learn."""
    rng, values = np.random.default_rng(seed), dict[str, Float32]()
    for projection in network.projections:
        drawn = rng.normal(0.15, 1, projection.weight_shape) * scale / projection.fan_in**0.5
        values[projection.name] = NUMPY.weight_grid(projection, drawn.astype(np.float32))[0]
    for name, parameter in network.parameters.items():
        if parameter.learned is not None:
            low, high = (-0.2, 0.3) if name.endswith(".bias") else (0.4, 0.8)
            values[name] = rng.uniform(low, high, parameter.shape).astype(np.float32)
    return values


def inputs(network: Network, seed: int = 2, steps: int = STEPS) -> AnyArray:
    """Encoded, `[1 or T, B, ...]`."""
    rng, shape = np.random.default_rng(seed), (BATCH, *network.values["input"].shape)
    if network.values["input"].static:
        return NUMPY.encode(rng.integers(0, 256, shape, np.uint8), "direct")
    return (rng.random((steps, *shape)) < 0.4).astype(np.uint8)


def cotangents(network: Network, seed: int = 3, steps: int = STEPS) -> Float32:
    shape = (steps, BATCH, *network.values[network.nodes[-1].name].shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def walked(
    network: Network,
    weights: Mapping[str, Float32],
    x: AnyArray,
    error: Float32,
    precision: Precision = "fast",
    memory: Memory = "full",
    dropout: tuple[int, int] | None = None,
) -> tuple[Trace[AnyArray], dict[str, Float32], dict[str, AnyArray]]:
    """Both ways: what the passes leave, potentials of each population, and the gradients."""
    trace = forward_pass(NUMPY, network, weights, x, len(error), dropout, memory)
    potentials = {name: residuals.kept["u"] for name, residuals in trace.populations()}
    return trace, potentials, backward_pass(trace, error, precision)


def same(arrays: Mapping[str, AnyArray], expected: Mapping[str, AnyArray]) -> None:
    assert {name: x.tobytes() for name, x in arrays.items()} == {name: x.tobytes() for name, x in expected.items()}


def literally(
    literal: Literal, network: Network, weights: Mapping[str, Float32], x: AnyArray
) -> tuple[dict[str, AnyArray], list[AnyArray], LiteralRun]:
    literal_weights = {name: literal.array(w) for name, w in weights.items()}
    frames = [literal.array(x[t % len(x)]) for t in range(STEPS)]
    return literal_weights, frames, literal.forward(literal_weights, frames)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_against_literal_float64(kind: str, model: str) -> None:
    """Spikes are equal; each potential and each weight's gradient is within the bound of its rounding errors."""
    network = several(kind, MODELS[model])
    weights, x, error = parameters(network), inputs(network), cotangents(network)
    literal = Literal(network)
    literal_weights, _, run = literally(literal, network, weights, x)
    targets = [o - BATCH * e for o, e in zip(run.values[network.nodes[-1].name], error.astype(np.float64), strict=True)]
    expected = literal.backward(Hamming(), literal_weights, run, targets)
    trace, potentials, gradients = walked(network, weights, x, error)
    layers = {name: LayerRun(trace.spikes[name], u) for name, u in potentials.items()}
    frames = np.rint(x[0] * 256).astype(np.uint8) if len(x) == 1 else x
    simulated = roundoff.membrane_potentials(network, weights, frames, layers)
    for name, u in potentials.items():
        spikes = np.stack(run.o[name])
        assert 0.02 < spikes.mean() < 0.95
        assert np.array_equal(trace.spikes[name], spikes)
        agree(simulated[name].value, np.stack(run.u[name]))
        assert (np.abs(u - simulated[name].value) <= simulated[name].bound).all()
    near = roundoff.gradients(network, weights, frames, layers, roundoff.exact(error), potentials="float64")
    _, _, reproducible = walked(network, weights, x, error, "reproducible")
    assert set(gradients) == set(reproducible) == set(near) == set(expected)
    for name, gradient in expected.items():
        assert np.count_nonzero(gradient) > 0.3 * gradient.size
        agree(near[name].value, gradient)
        for computed in (gradients, reproducible):
            assert (np.abs(computed[name] - gradient) <= near[name].bound).all(), name


def agree(computed: Float64, literal: Float64) -> None:
    """Two orders of one sum in float64."""
    assert np.abs(computed - literal).max() <= 1e-13 * np.abs(literal).max()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_literal_gradients_against_finite_differences(kind: str, model: str) -> None:
    """Random cotangents, along random directions of all parameters: nine digits."""
    network = several(kind, MODELS[model])
    literal = Literal(network, smooth=True)
    weights, frames, run = literally(literal, network, parameters(network), inputs(network))
    error = cotangents(network).astype(np.float64)
    targets = [o - e for o, e in zip(run.values[network.nodes[-1].name], error, strict=True)]
    gradients = literal.backward(Hamming(), weights, run, targets)

    def value(direction: Mapping[str, Float64], step: float) -> float:
        moved = {name: w + step * direction[name] for name, w in weights.items()}
        return float(literal.loss(Hamming(), literal.forward(moved, frames), targets))

    def slope(direction: Mapping[str, Float64], step: float) -> float:
        return (value(direction, step) - value(direction, -step)) / (2 * step)

    rng = np.random.default_rng(5)
    directions = [{name: rng.normal(size=w.shape) for name, w in weights.items()} for _ in range(3)]
    directions += [{n: rng.normal(size=w.shape) * (n == name) for n, w in weights.items()} for name in weights]
    size = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    for direction in directions:
        expected = sum(float((gradients[name] * direction[name]).sum()) for name in weights)
        length = np.sqrt(sum(float((x**2).sum()) for x in direction.values()))
        difference_quotient = (4 * slope(direction, 5e-6) - slope(direction, 1e-5)) / 3
        assert abs(difference_quotient - expected) <= 1e-9 * size * max(1.0, length)


# Seeds were searched for cases in which every population fires, gradients are not zero, and no intermediate result
# needs more than 24 bits.
EXACT = {
    "one filter": 1, "two filters": 4, "image and spikes": 7, "two images": 6, "recurrent twice": 1,
    "image and recurrence": 21,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_float32_against_fractions_tolerance_zero(kind: str) -> None:
    pairs = exactly(kind, 4, EXACT[kind])
    assert pairs is not None
    for name, (got, fractions) in pairs.items():
        assert [Fraction(x) for x in got.reshape(-1).tolist()] == list(fractions.reshape(-1)), name


def exactly(kind: str, steps: int, seed: int) -> dict[str, tuple[AnyArray, AnyArray]] | None:
    """Spikes, potentials and gradients in float32 and in fractions; None where a population is silent or saturated."""
    network = several(kind, lambda tau_s: LIF(2.0, 2.0 ** (tau_s - 2), 0.5, Rectangle(2)))
    rng = np.random.default_rng(seed)
    weights = {
        p.name: rng.integers(-3, 4, p.weight_shape).astype(np.float32) / np.float32(4) for p in network.projections
    }
    for name, parameter in network.parameters.items():
        if parameter.learned is not None:
            weights[name] = rng.integers(1, 3, parameter.shape).astype(np.float32) / np.float32(2)
    shape = (2, *network.values["input"].shape)
    if network.values["input"].static:
        x = NUMPY.encode(rng.integers(0, 4, shape).astype(np.uint8) * np.uint8(64), "direct")
    else:
        x = rng.integers(0, 2, (steps, *shape)).astype(np.uint8)
    error = rng.integers(-2, 3, (steps, 2, *network.values[network.nodes[-1].name].shape)).astype(np.float32)
    literal = Literal(network, Fraction)
    literal_weights = {name: literal.array(w) for name, w in weights.items()}
    run = literal.forward(literal_weights, [literal.array(x[t % len(x)]) for t in range(steps)])
    targets = [o - 2 * literal.array(e) for o, e in zip(run.values[network.nodes[-1].name], error, strict=True)]
    gradients = literal.backward(Hamming(), literal_weights, run, targets)
    trace, potentials, got = walked(network, weights, x, error, "reproducible")
    if not all(0.1 <= s.mean() <= 0.9 for s in trace.spikes.values()):
        return None
    if not all((g != 0).mean() >= 0.3 for g in gradients.values()):
        return None
    compared = {f"spikes of {name}": (s, np.stack(run.o[name])) for name, s in trace.spikes.items()}
    compared |= {f"potentials of {name}": (u, np.stack(run.u[name])) for name, u in potentials.items()}
    return compared | {name: (got[name], g) for name, g in gradients.items()}


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("kind", KINDS)
def test_little_memory_gives_the_same_numbers(kind: str, precision: Precision) -> None:
    network = several(kind, MODELS["PLIF, soft reset"])
    weights, x, error = parameters(network), inputs(network), cotangents(network)
    full, potentials, gradients = walked(network, weights, x, error, precision)
    low, lean_potentials, lean_gradients = walked(network, weights, x, error, precision, "low")
    same(lean_potentials, potentials)
    same({**low.spikes}, {**full.spikes})
    same(lean_gradients, gradients)
    same(low.zeroed, full.zeroed)


# The equations of several projections.

FILTERS = {"none": PSP(1.0), "3": PSP(3.0), "5/3": PSP(5 / 3), "rises": PSP(4.0, 1.5)}
NEURON = LIF(3.0, 2.0, 0.5, Arctan())
SHAPE = (2, 5)


def sums(seed: int, count: int, steps: int = STEPS) -> list[Float32]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((steps, *SHAPE)).astype(np.float32) for _ in range(count)]


def plus(a: Float32, b: Float32) -> Float32:
    total = a + b
    return np.where(np.abs(total) < np.float32(2.0**-100), np.float32(0), total)


def population(
    filters: tuple[SynapticFilter, ...], zs: list[Float32], error: Float32, static: tuple[bool, ...] = ()
) -> tuple[NeuronEquations, AnyArray, Float32, tuple[AnyArray, ...]]:
    equations = neuron_equations(filters, NEURON, static)
    spikes, residuals = NUMPY.population_forward(equations, zs, len(error), {})
    errors, _ = NUMPY.population_backward(equations, residuals, error, static or (False,) * len(zs))
    return equations, spikes, residuals.kept["u"], errors


@given(seed=SEED, psps=st.lists(st.sampled_from(sorted(FILTERS)), min_size=2, max_size=4, unique=True))
@settings(deadline=None)
def test_currents_of_different_synapses_are_added_in_the_order_of_the_inputs(seed: int, psps: list[str]) -> None:
    """Each filter by itself (`psp_forward`), then neurons without one; backwards the same way."""
    *zs, error = sums(seed, len(psps) + 1)
    filters = tuple(FILTERS[name].filter() for name in psps)
    equations, spikes, u, errors = population(filters, zs, error)
    names = ["z", *(f"z{j + 2}" for j in range(len(psps) - 1))]
    assert equations.inputs == tuple(names)
    assert equations.errors == tuple(f"d{name}" for name in names)
    total, *other_currents = (NUMPY.psp_forward(FILTERS[name], z) for name, z in zip(psps, zs, strict=True))
    for current in other_currents:
        total = plus(total, current)
    expected, residuals = NUMPY.neuron_forward(NEURON, PSP(1.0).filter(), total, STEPS)
    assert spikes.tobytes() == expected.tobytes()
    assert np.array_equal(u, residuals.kept["u"])
    grad_current, _ = NUMPY.neuron_backward(NEURON, PSP(1.0).filter(), residuals, error)
    for name, grad in zip(psps, errors, strict=True):
        assert np.array_equal(grad, NUMPY.psp_backward(FILTERS[name], grad_current))


def test_the_order_of_the_inputs_shows() -> None:
    *zs, error = sums(1, 4)
    names = ("3", "5/3", "rises")
    _, _, u, _ = population(tuple(FILTERS[name].filter() for name in names), zs, error)
    _, _, other, _ = population(tuple(FILTERS[name].filter() for name in names[::-1]), zs[::-1], error)
    assert (u != other).any()
    assert np.abs(u - other).max() < 1e-5


@given(seed=SEED, psp=st.sampled_from(sorted(FILTERS)), count=st.integers(2, 4))
@settings(deadline=None)
def test_equal_synapses_are_one_that_takes_the_sum_in_the_order_of_the_inputs(seed: int, psp: str, count: int) -> None:
    *zs, error = sums(seed, count + 1)
    filter = FILTERS[psp].filter(1.25)
    equations, spikes, u, errors = population((filter,) * count, zs, error)
    assert equations.errors == ("dz",) * count
    total = zs[0]
    for z in zs[1:]:
        total = plus(total, z)
    expected, residuals = NUMPY.neuron_forward(NEURON, filter, total, STEPS)
    assert spikes.tobytes() == expected.tobytes()
    assert np.array_equal(u, residuals.kept["u"])
    grad_input, _ = NUMPY.neuron_backward(NEURON, filter, residuals, error)
    assert all(np.array_equal(grad, grad_input) for grad in errors)


def test_what_shares_no_filter() -> None:
    """Other factors of training, a bias each, an image beside frames."""
    plain, dropped = PSP(3.0).filter(), PSP(3.0).filter(2.0)
    biased = Biased(plain, np.float32(1))
    for filters, static in (
        ((plain, dropped), ()),
        ((biased, biased), ()),
        ((plain, biased), ()),
        ((plain, plain), (True, False)),
    ):
        assert neuron_equations(filters, NEURON, static).errors == ("dz", "dz2")
    assert neuron_equations((plain, plain), NEURON, (True, True)).errors == ("dz", "dz")
    assert neuron_equations((plain, dropped, plain), NEURON).errors == ("dz", "dz2", "dz")
    assert set(neuron_equations((biased, plain, biased), NEURON).learned) == {"bias", "bias3"}


@given(seed=SEED, psp=st.sampled_from(sorted(FILTERS)))
@settings(deadline=None)
def test_an_image_is_read_at_every_step_and_gets_the_sum_of_the_errors(seed: int, psp: str) -> None:
    image, z, error = sums(seed, 3)
    filters = FILTERS[psp].filter(), FILTERS[psp].filter()
    _, spikes, u, errors = population(filters, [image[:1], z], error, (True, False))
    repeated = np.repeat(image[:1], STEPS, axis=0)
    _, expected, potentials, (image_error, frames_error) = population(filters, [repeated, z], error, (True, False))
    assert spikes.tobytes() == expected.tobytes()
    assert u.tobytes() == potentials.tobytes()
    equations = neuron_equations(filters, NEURON, (True, False))
    _, residuals = NUMPY.population_forward(equations, [repeated, z], STEPS, {})
    stepped = NUMPY.recur(equations.backward, equations.constants, {**residuals.kept, "g": error}, STEPS)
    total = np.zeros((1, *SHAPE), np.float32)
    for t in reversed(range(STEPS)):
        total = total + stepped["dz"][t]
    assert np.array_equal(errors[0], total)
    assert np.array_equal(image_error, total)
    assert np.array_equal(errors[1], stepped["dz2"])
    assert np.array_equal(frames_error, stepped["dz2"])


# Recurrence, delays and sums.


def recurrent(precision: Precision, coding: Coding = "events", memory: Memory = "full") -> None:
    """Both ways through a recurrent population, by whole passes of its equations, one for each step of time."""
    network = NetworkSpec.parse(
        "5Rb{neuron=plif,tau_s=3}-4", input_shape=(6,), coding=coding, neuron=PLIF(3.0, 2.0, 0.4, Arctan())
    ).graph
    weights, x, error = parameters(network), inputs(network), cotangents(network)
    trace, potentials, gradients = walked(network, weights, x, error, precision, memory)
    ops: dict[str, Any] = {node.name: node.op for node in network.nodes}
    values = [network.values[name] for name in ("linear1", "linear1.recurrent")]
    filters = tuple(value.filter(training=False) for value in values)
    equations = neuron_equations(filters, ops["neurons1"].model, (coding == "direct", False))
    learned = {name: weights[f"linear1.{name}"] for name in ("bias", "decay")}
    rule = NUMPY.rules[Linear]

    def product(name: str, s: AnyArray) -> tuple[AnyArray, Any]:
        return rule.forward(ops[name], s, weights[name])

    z, of_input = product("linear1", x)
    spikes = np.zeros((STEPS, BATCH, 5), np.uint8)
    for _ in range(STEPS):
        loop_sums, of_loop = product("linear1.recurrent", np.concatenate([np.zeros_like(spikes[:1]), spikes[:-1]]))
        spikes, residuals = NUMPY.population_forward(equations, [z, loop_sums], STEPS, learned)
    assert spikes.tobytes() == trace.spikes["neurons1"].tobytes()
    assert np.array_equal(residuals.kept["u"], potentials["neurons1"])
    assert 0.05 < spikes.mean() < 0.95

    output_sums, of_output = product("linear2", spikes)
    _, top = NUMPY.neuron_forward(
        ops["neurons2"].model,
        network.values["linear2"].filter(training=False),
        output_sums,
        STEPS,
        {"decay": weights["linear2.decay"]},
    )
    dz, _ = NUMPY.neuron_backward(ops["neurons2"].model, network.values["linear2"].filter(training=False), top, error)
    projections = {projection.name: projection for projection in network.projections}
    zeroed: dict[str, AnyArray] = {}

    def on_grid(name: str, dz: AnyArray) -> AnyArray:
        if precision == "fast":
            return dz
        rounded, zeroed[name] = NUMPY.error_grid(dz, projections[name].error_bits(frames=len(dz) * BATCH))
        return rounded

    def gradient(name: str, of: Any, dz: AnyArray) -> tuple[AnyArray, AnyArray]:
        ds, dw = rule.backward(ops[name], of, on_grid(name, dz), precision=precision, need_input=True)
        return ds, dw.astype(np.float32)

    g, output_gradient = gradient("linear2", of_output, dz)
    assert output_gradient.tobytes() == gradients["linear2"].tobytes()
    loop_errors, static = np.zeros_like(g), (coding == "direct", False)
    for t in reversed(range(STEPS)):
        (_, errors), _ = NUMPY.population_backward(equations, residuals, plus(g, loop_errors), static)
        if t:
            loop_error = errors[t : t + 1]
            if precision == "reproducible":
                bits = projections["linear1.recurrent"].sample_error_bits
                samples = [NUMPY.error_grid(loop_error[:, [b]], bits)[0] for b in range(BATCH)]
                loop_error = np.concatenate(samples, axis=1)
            _, step = product("linear1.recurrent", spikes[:1])
            ds, _ = rule.backward(ops["linear1.recurrent"], step, loop_error, precision=precision, need_input=True)
            loop_errors[t - 1] = ds[0]
    (of_z, errors), terms = NUMPY.population_backward(equations, residuals, plus(g, loop_errors), static)
    for name, of, grad_sums in (("linear1", of_input, of_z), ("linear1.recurrent", of_loop, errors)):
        assert gradient(name, of, grad_sums)[1].tobytes() == gradients[name].tobytes(), name
    same(trace.zeroed, zeroed)
    for name, x in terms.items():
        expected = NUMPY.learned_gradient(x, len(gradients[f"linear1.{name}"]), precision)
        assert np.array_equal(expected, gradients[f"linear1.{name}"]), name


@pytest.mark.parametrize("coding", ["events", "direct"])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_recurrence_step_by_step(precision: Precision, coding: Coding) -> None:
    recurrent(precision, coding)
    recurrent(precision, coding, "low")


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("notation", ["5R-4", "5{recurrent=one-to-one}-4", "2C2R1-4"])
def test_a_recurrence_without_weights_is_none(notation: str, precision: Precision) -> None:
    """Its own gradient is that of what it would have read."""
    shape = (1, 3, 3) if "C" in notation else (6,)
    with_loop, without = (
        NetworkSpec.parse(text, input_shape=shape, neuron=LIF(3, 2, 0.4)).graph
        for text in (notation, notation.replace("R1", "").replace("R", "").replace("{recurrent=one-to-one}", ""))
    )
    weights, x, error = parameters(with_loop), inputs(with_loop), cotangents(with_loop)
    (loop,) = (name for name in weights if name.endswith(".recurrent"))
    weights[loop] = np.zeros_like(weights[loop])
    trace, potentials, gradients = walked(with_loop, weights, x, error, precision)
    expected, same_potentials, plain = walked(without, weights, x, error, precision)
    assert gradients.pop(loop).any()
    assert np.array_equal(trace.output, expected.output)
    assert all(np.array_equal(u, same_potentials[name]) for name, u in potentials.items())
    assert all(np.array_equal(g, plain[name]) for name, g in gradients.items())


@given(at=st.integers(0, STEPS - 1), seed=SEED)
@settings(deadline=None, max_examples=25)
def test_nothing_is_felt_before_it_happens(at: int, seed: int) -> None:
    """Spikes before a changed frame stay, and a frame that feels no error any more gets none."""
    network = several("recurrent twice", MODELS["LIF"])
    weights, x = parameters(network), inputs(network, seed)
    changed = x.copy()
    changed[at] = 1 - changed[at]
    first, second = (forward_pass(NUMPY, network, weights, frames, STEPS, None).spikes for frames in (x, changed))
    for name in first:
        assert np.array_equal(first[name][:at], second[name][:at])
    error = cotangents(network)
    error[at:] = 0
    _, _, gradients = walked(network, weights, x, error)
    _, _, other = walked(network, weights, changed, error)
    same(gradients, other)


@given(delay=st.integers(0, STEPS + 2), precision=st.sampled_from(["fast", "reproducible"]))
@settings(deadline=None)
def test_a_delay_is_an_input_that_comes_later(delay: int, precision: Precision) -> None:
    def network(delay: int) -> Network:
        return NetworkSpec.parse(f"5{{delay={delay}}}-4", input_shape=(6,), neuron=LIF(3, 2, 0.3)).graph

    weights, x, error = parameters(network(0)), inputs(network(0)), cotangents(network(0))
    later = np.concatenate([np.zeros((delay, *x.shape[1:]), x.dtype), x])[:STEPS]
    trace, _, gradients = walked(network(delay), weights, x, error, precision)
    expected, _, shifted = walked(network(0), weights, later, error, precision)
    assert np.array_equal(trace.output, expected.output)
    same(gradients, shifted)


@given(seed=SEED, steps=st.integers(-9, 9), length=st.integers(1, 7), dtype=st.sampled_from([np.uint8, np.float32]))
def test_shifted_is_its_own_adjoint_the_other_way(seed: int, steps: int, length: int, dtype: type[Any]) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(0, 9, (length, 2, 3)).astype(dtype) for _ in range(2))
    later = NUMPY.shift_time(x, steps)
    assert (later.shape, later.dtype) == (x.shape, x.dtype)
    for t in range(length):
        assert np.array_equal(later[t], x[t - steps] if 0 <= t - steps < length else np.zeros((2, 3)))
    earlier = NUMPY.shift_time(y, -steps)
    assert (later.astype(float) * y).sum() == (x.astype(float) * earlier).sum()


@given(seed=SEED, steps=st.integers(1, 6), reverse=st.booleans())
def test_a_scan_carries_and_keeps_the_order_of_time(seed: int, steps: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    moving, still = rng.normal(size=(steps, 2, 3)), rng.normal(size=(1, 2, 3))

    def step(
        carried: tuple[AnyArray, ...], step_inputs: dict[str, AnyArray]
    ) -> tuple[tuple[AnyArray, ...], dict[str, AnyArray]]:
        assert [x.shape for x in (*carried, *step_inputs.values())] == [(1, 2, 3)] * 3
        total = carried[0] * 2 + step_inputs["moving"] - step_inputs["still"]
        return (total,), {"total": total, "before": carried[0]}

    start = np.ones((1, 2, 3))
    last, outputs = NUMPY.scan(step, (start,), {"moving": moving, "still": still}, steps, reverse=reverse)
    state = start[0]
    for t in reversed(range(steps)) if reverse else range(steps):
        assert np.array_equal(outputs["before"][t], state)
        state = state * 2 + moving[t] - still[0]
        assert np.array_equal(outputs["total"][t], state)
    assert np.array_equal(last[0][0], state)


def test_one_step_of_an_equation_is_the_whole_one_step_at_a_time() -> None:
    """`Recurrence.single`, and the way back with the error of the step's own spikes beside that from above."""
    filters = FILTERS["3"].filter(), FILTERS["rises"].filter()
    z, other, error, loop_error = sums(3, 4)
    equations, _, _, _ = population(filters, [z, other], error)
    over_time = NUMPY.recur(equations.forward, equations.constants, {"z": z, "z2": other}, STEPS)
    states = {name: np.zeros((1, *SHAPE), np.float32) for name in equations.forward.states}
    one = equations.forward_step
    for t in range(STEPS):
        step_outputs = NUMPY.recur(one, equations.constants, {"z": z[[t]], "z2": other[[t]], **states}, 1)
        new_states = [step_outputs[name] for name in [*one.outputs][len(equations.kept) + 1 :]]
        states = dict(zip(states, new_states, strict=True))
        for name in (*equations.kept, "o"):
            assert np.array_equal(step_outputs[name][0], over_time[name][t])
    one, names = equations.backward_step(("dz2",))
    saved = {name: over_time[name] for name in equations.kept}
    expected = NUMPY.recur(
        equations.backward, equations.constants, {**saved, "g": plus(error, loop_error)}, STEPS, summed=("dz2",)
    )
    states = {name: np.zeros((1, *SHAPE), np.float32) for name in names}
    for t in reversed(range(STEPS)):
        step_inputs = {**{name: x[[t]] for name, x in saved.items()}, "g": error[[t]], "back": loop_error[[t]]}
        step_outputs = NUMPY.recur(one, equations.constants, {**step_inputs, **states}, 1)
        states = dict(
            zip(states, [step_outputs[name] for name in [*one.outputs][len(one.outputs) - len(names) :]], strict=True)
        )
        assert np.array_equal(step_outputs["dz"][0], expected["dz"][t])
    assert np.array_equal(states[names[-1]], expected["dz2"])


def test_a_sum_adds_its_branches_and_gives_each_the_error() -> None:
    network = graph(
        ("w1", Linear(5), "input"), ("n1", Neurons(LIF(3, 2, 0.3)), "w1"),
        ("w2", Linear(5), "n1"), ("n2", Neurons(LIF(3, 2, 0.3)), "w2"),
        ("sum", Add(), "n1 n2 n1@2 input"), ("w3", Linear(4), "sum"), ("n3", Neurons(LIF(3, 2, 0.3)), "w3"),
        shape=(5,), psp=PSP(2),
    )  # fmt: skip
    alone = graph(
        ("w1", Linear(5), "input"), ("n1", Neurons(LIF(3, 2, 0.3)), "w1"),
        ("w2", Linear(5), "n1"), ("n2", Neurons(LIF(3, 2, 0.3)), "w2"),
        ("a", Linear(4), "n1"), ("b", Linear(4), "n2"), ("c", Linear(4), "n1@2"), ("d", Linear(4), "input"),
        ("n3", Neurons(LIF(3, 2, 0.3)), "a b c d"),
        shape=(5,), psp=PSP(2),
    )  # fmt: skip
    weights, x, error = parameters(network), inputs(network), cotangents(network)
    apart = {name: w for name, w in weights.items() if name != "w3"} | dict.fromkeys("abcd", weights["w3"])
    assert network.values["sum"].maximum == 4
    trace, potentials, gradients = walked(network, weights, x, error)
    other, same_potentials, branch_gradients = walked(alone, apart, x, error)
    # Sums of weighted spikes are exact, and the projections of one synapse are one.
    same({**trace.spikes}, {**other.spikes})
    same(potentials, same_potentials)
    assert trace.output.any()
    total = sum(branch_gradients[name] for name in "abcd")
    assert np.abs(gradients["w3"] - total).max() <= 1e-6 * np.abs(total).max()
    for name in ("w1", "w2"):
        assert np.abs(gradients[name] - branch_gradients[name]).max() <= 1e-6 * np.abs(branch_gradients[name]).max()


def test_factors_of_dropout_belong_to_their_projections() -> None:
    """In training two projections of one synapse are apart where one of them reads what was dropped."""
    network = graph(
        ("w1", Linear(5), "input"), ("n1", Neurons(LIF(3, 2, 0.3)), "w1"),
        ("drop", Dropout(0.5), "n1"), ("w2", Linear(4), "drop"), ("w3", Linear(4), "n1"),
        ("n2", Neurons(LIF(3, 2, 0.3)), "w2 w3"),
    )  # fmt: skip
    weights, x, error = parameters(network), inputs(network), cotangents(network)
    trace, potentials, _ = walked(network, weights, x, error, dropout=(1, 2))
    mask = NUMPY.dropout_mask(1, 16, 2, (BATCH, 5), 0.5)
    assert 0 < mask.mean() < 1
    fired = trace.spikes["n1"]
    zs = [
        NUMPY.rules[Linear].forward(Linear(4), s, weights[name])[0] for name, s in (("w2", fired * mask), ("w3", fired))
    ]
    filters = PSP(2).filter(2.0), PSP(2).filter()
    _, residuals = NUMPY.population_forward(neuron_equations(filters, LIF(3, 2, 0.3)), zs, STEPS, {})
    assert np.array_equal(potentials["n2"], residuals.kept["u"])
    # In evaluation nothing is dropped, and no filter makes up for it.
    _, evaluated, _ = walked(network, weights, x, error, dropout=None)
    zs = [NUMPY.rules[Linear].forward(Linear(4), fired, weights[name])[0] for name in ("w2", "w3")]
    _, residuals = NUMPY.population_forward(neuron_equations(filters[1:] * 2, LIF(3, 2, 0.3)), zs, STEPS, {})
    assert np.array_equal(evaluated["n2"], residuals.kept["u"])


@given(order=st.permutations(range(8)))
def test_weights_of_a_recurrence_stand_before_their_population_whatever_the_order(order: list[int]) -> None:
    nodes = several("recurrent twice", MODELS["LIF"]).nodes
    network = Network(tuple(nodes[i] for i in order))
    names = [node.name for node in network.nodes]
    assert network.recurrent == {"n1": ("own", "all")}
    at = names.index("n1")
    assert names[at - 2 : at] == ["own", "all"]
    assert {*names[: at - 2]} == {"input", "w1", "w2"}
    assert names[at + 1 :] == ["w3", "n2"]
    assert [p.name for p in network.projections if p.name in ("own", "all")] == ["own", "all"]
