"""Four ways to the same numbers: float32 in the contract's order, the paper's literal form in float64 and in exact
fractions, central finite differences of a smoothed spike, and torch's autograd in float64.

How far they agree:

- fractions and float32 on dyadic networks: exactly, spikes, potentials and gradients;
- float64 and float32: spikes equal; each potential and each weight's gradient within the bound of its rounding errors;
- float64 and finite differences: nine digits (seven for rectangle and triangle); float64 and torch: thirteen digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from stsbp_conformance.cases import EXACT_LOSSES, delays, real_targets
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.literal import Literal, LiteralRun
from stsbp_spec.contract.random import Stream, bits, uniform
from stsbp_spec.engine.backend import Batch
from stsbp_spec.errors import NetworkError
from stsbp_spec.models.losses import LOSSES, Hamming, Loss, MeanSquaredError
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF, Readout
from stsbp_spec.models.rate_penalty import RatePenalty
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
from stsbp_spec.networks.graph import BoundNode, Neurons, Op, Weighted
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import (
    PSP,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    LearnedDelay,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Coding, Float32, Float64, UInt8

NUMPY = NumpyBackend()
_TAUS = {"2": 2.0, "3": 3.0, "5": 5.0, "5/3": 5 / 3}
_CHAINS = [
    "events",
    "strides",
    "geometry",
    "pooling",
    "biased pooling",
    "direct",
    "filtered",
    "biased",
    "biased images",
]
# Spikes, late means and spikes of another layer; then the neurons of two populations.
_CONCATENATION = """
[[node]]
name = "conv1"
weights = "4C3p1"
from = "input"
[[node]]
name = "one"
neurons = ""
from = "conv1"
[[node]]
name = "pool"
layer = "P2"
from = "one"
[[node]]
name = "conv2"
weights = "3C3s2"
from = "input"
[[node]]
name = "two"
neurons = ""
from = "conv2"
[[node]]
name = "conv3"
weights = "2C1x1"
from = "pool"
[[node]]
name = "three"
neurons = ""
from = "conv3"
[[node]]
name = "channels"
concat = true
from = ["three", {node = "pool", delay = 1}, "three"]
[[node]]
name = "linear4"
weights = "8"
from = "channels"
[[node]]
name = "four"
neurons = ""
from = "linear4"
[[node]]
name = "linear5"
weights = "5"
from = "two"
[[node]]
name = "five"
neurons = ""
from = "linear5"
[[node]]
name = "neurons"
concat = true
from = ["five", "four"]
[[node]]
name = "linear6"
weights = "5"
from = "neurons"
[[node]]
name = "output"
neurons = ""
from = "linear6"
"""
# After a convolution on frames or images come a population whose two projections share a filter, and one that has two.
_GRAPHS = {
    "recurrent": "4C3R3p1-P2-8R-7R{tau_s=4}-5",
    "recurrent images": "4C3R3s2p1b-P2-12Rb-5",
    "recurrent models": (
        "4C3R1s2{neuron=alif,tau_s=4,tau_rise=2}-8R{neuron=plif,reset=subtract,per=channel}b"
        "-7{recurrent=one-to-one,neuron=if,reset=subtract}-5R{neuron=alif,reset=subtract,psp_gain=unit}"
    ),
    "branches": "4C3p1-[4C3p1-4C3p1]+-P2-[8|7-8]+-5",
    "delays": "4C3p1{delay=2}-[4C3p1|4C1{delay=1}-4C3p1]+-P2-8R{delay=3}-5",
    "concatenation": _CONCATENATION,
    "learned delays": "T2-5C3p1-T1-P3-T3-[12R|T2-9-T1-12]+-T2-5",
}
_KINDS = [*_CHAINS, *_GRAPHS]
# Networks that end with a readout.
_READOUTS = {
    "readout": "5C3p1-P2-6C3b-5b{neuron=readout,tau_m=3}",
    "readout after images": "4C3s2p1b-P2-12-5{neuron=readout,tau_s=4,tau_rise=2}",
    "readout after a recurrence": "8R-[8R{neuron=plif}|8{delay=1}]+-5{neuron=readout,tau_m=1,psp_gain=unit}",
}
_STEPS, _BATCH = 9, 2
# Each network with every time constant and, since a loss does not know the network, one loss for each of them.
_EACH = [(kind, tau, [*LOSSES][(i + j) % len(LOSSES)]) for i, kind in enumerate(_KINDS) for j, tau in enumerate(_TAUS)]
_EACH += [(kind, tau, "mse") for kind in _READOUTS for tau in _TAUS]


def _network(kind: str, tau: float, surrogate: Surrogate | None = None) -> NetworkSpec:
    """Pooling, stride and padding with events; direct coding; counts after an input filter; biases; graphs."""
    neuron = LIF(tau, 5 / 3 if tau == 3 else tau, 0.5, surrogate or FastSigmoid())
    if kind in _GRAPHS or kind in _READOUTS:
        coding: Coding = "direct" if kind.endswith("images") else "events"
        return NetworkSpec.parse((_GRAPHS | _READOUTS)[kind], input_shape=(2, 9, 8), coding=coding, neuron=neuron)
    if kind == "events":
        return NetworkSpec.parse("5C3p1-P2-6C3p1-P2-5", input_shape=(2, 9, 8), neuron=neuron)
    if kind == "strides":
        return NetworkSpec.parse("P2-6C3s2p1-7C2s2-12-5", input_shape=(2, 18, 17), neuron=neuron)
    if kind == "geometry":
        notation = "4C2x3p1x2s2{dilation=2x1,groups=2}-8C3p1s1x2{groups=4}-5"
        return NetworkSpec.parse(notation, input_shape=(2, 9, 13), neuron=neuron)
    if kind == "pooling":
        return NetworkSpec.parse("5C3p1-M2-P3x1-6C2x3p1-U2-F-12-5", input_shape=(2, 12, 9), neuron=neuron)
    if kind == "biased pooling":
        notation = "P3-5C3p1b-M1x2-U2-6C3x2b-G-5b"
        return NetworkSpec.parse(notation, input_shape=(2, 10, 19), input_max=3, neuron=neuron)
    if kind == "direct":
        return NetworkSpec.parse("5C3s2p1-P2-6C2-5", input_shape=(3, 11, 12), coding="direct", neuron=neuron)
    if kind == "biased":
        return NetworkSpec.parse("5C3p1b-P2-6C3b-7b-5", input_shape=(2, 9, 8), neuron=neuron)
    if kind == "biased images":
        return NetworkSpec.parse("5C3s2p1b-P2-6C2b-5b", input_shape=(3, 11, 12), coding="direct", neuron=neuron)
    return NetworkSpec.parse("P2-20-5", input_shape=(2, 6, 6), input_psp=PSP(3), input_max=5, neuron=neuron)


def _trains(shape: tuple[int, ...], density: float, seed: int) -> UInt8:
    return (uniform(seed, Stream.ENCODER, math.prod(shape)) < density).astype(np.uint8).reshape(shape)


def _batch(network: NetworkSpec, steps: int = _STEPS, seed: int = 1) -> Batch:
    shape = (_BATCH, *network.input_shape)
    if network.coding == "direct":
        inputs = (uniform(seed, Stream.AUGMENT, math.prod(shape)) * 256).astype(np.uint8).reshape(shape)
    else:
        inputs = _trains((steps, *shape), 0.3, seed) * np.uint8(network.input_max)
    output = (steps, _BATCH, network.outputs)
    return Batch(inputs, real_targets(output, seed + 1) if network.has_readout else _trains(output, 0.4, seed + 1))


def _on_grid(network: NetworkSpec, seed: int = 1) -> dict[str, Float32]:
    weights = initial_weights(network, seed, 2.5)
    grids = {
        projection.name: NUMPY.weight_grid(projection, weights[projection.name])[0]
        for projection in network.graph.projections
    }
    rng = np.random.default_rng(seed)
    biases = (name for name in weights if name.endswith(".bias"))
    drawn = {name: rng.uniform(-0.2, 0.3, weights[name].shape).astype(np.float32) for name in biases}
    for number, name in enumerate(network.graph.delays):
        parameter = network.parameters[name]
        assert parameter.learned is not None
        drawn[name] = delays(parameter.learned, parameter.shape[0], seed, number)
    return weights | grids | drawn


def _frames(literal: Literal, batch: Batch) -> list[AnyArray]:
    if literal.graph.values["input"].static:
        return [literal.array(batch.inputs / 256.0)] * len(batch.targets)
    return [literal.array(x) for x in batch.inputs]


def _literal(
    literal: Literal, weights: dict[str, Float32], batch: Batch
) -> tuple[LiteralRun, dict[str, AnyArray], list[AnyArray]]:
    exact = {name: literal.array(w) for name, w in weights.items()}
    return literal.forward(exact, _frames(literal, batch)), exact, [literal.array(x) for x in batch.targets]


@pytest.mark.parametrize(("kind", "tau", "loss"), _EACH)
def test_float32_against_literal_float64(kind: str, tau: str, loss: str) -> None:
    network = _network(kind, _TAUS[tau])
    weights, batch = _on_grid(network), _batch(network)
    literal = Literal(network)
    run, exact, targets = _literal(literal, weights, batch)
    expected = literal.backward(EXACT_LOSSES[loss], exact, run, targets)
    layers = NUMPY.run(network, weights, batch.inputs, _STEPS).layers
    result = NUMPY.value_and_grad(network, EXACT_LOSSES[loss], weights, batch)
    potentials = roundoff.membrane_potentials(network, weights, batch.inputs, layers)
    value = literal.loss(EXACT_LOSSES[loss], run, targets) * (2 if loss == "hamming" else 1)
    outputs: AnyArray | roundoff.Near = result.spikes
    if loss == "mse":
        # The loss is that of float32's potentials, which are off by at most their bound.
        outputs = potentials[network.blocks[-1].population]
        distance, off = np.abs(outputs.value - batch.targets), outputs.bound
        assert abs(result.loss - value) <= (2 * distance * off + off * off).mean() + 1e-13 * value
        assert result.loss == pytest.approx(value, rel=1e-5)
    else:
        assert result.loss == pytest.approx(value, rel=1e-13)
    error = roundoff.loss_error(EXACT_LOSSES[loss], network.output_psp, outputs, batch.targets)
    near = roundoff.gradients(network, weights, batch.inputs, layers, error, potentials="float64")
    for block in network.blocks:
        o, u = np.stack(run.o[block.population]), np.stack(run.u[block.population])
        assert 0.05 < o.mean() < 0.7 if block.neuron.makes_spikes else not o.any()
        assert np.array_equal(layers[block.name].spikes, o)
        _agree(potentials[block.population].value, u)
        _within(layers[block.name].potentials, u, potentials[block.population].bound)
    for name, gradient in expected.items():
        assert np.count_nonzero(gradient) > 0.3 * gradient.size
        _agree(near[name].value, gradient)
        _within(result.gradients[name], gradient, near[name].bound)


def _within(float32: Float32, literal: Float64, bound: Float64) -> None:
    """As near as the bound says, and as the literal sum is to the exact one: where that cancels, not by zero."""
    assert (np.abs(float32 - literal) <= bound + 1e-15 * np.abs(literal).max()).all()


def _agree(float64: Float64, literal: Float64) -> None:
    """Two orders of one sum in float64."""
    assert np.abs(float64 - literal).max() <= 1e-13 * np.abs(literal).max()


def _dyadic(notation: str, neuron: LIF, **options: Any) -> NetworkSpec:
    return NetworkSpec.parse(notation, neuron=neuron, weight_bits=3, **options)


_WIDE = LIF(2, 2, 0.5, Rectangle(2))
# Steps and seed of each loss: cases in which every layer spikes, gradients are not zero, and no intermediate result
# needs more than 24 bits, so that float32 must give the exact value.
_RATIONAL: list[tuple[str, NetworkSpec, dict[str, tuple[int, int]]]] = [
    (
        "triangle",
        _dyadic("5-3", LIF(2, 2, 0.5, Triangle(2)), input_shape=(6,)),
        {"van-rossum": (2, 1), "hamming": (4, 85), "spike-count": (2, 1)},
    ),
    (
        "tau 1 and 4",
        _dyadic("5{tau_m=4,tau_s=1}-3", LIF(1, 4, 0.5, Rectangle(1)), input_shape=(6,)),
        {"van-rossum": (4, 1), "hamming": (4, 12), "spike-count": (4, 1)},
    ),
    (
        "convolution, padding, pooling",
        _dyadic("3C3p1-P2-3", _WIDE, input_shape=(2, 4, 5)),
        {"van-rossum": (4, 108), "hamming": (4, 5), "spike-count": (4, 5)},
    ),
    (
        "stride",
        _dyadic("3C2s2p1-4", LIF(2, 2, 0.5, Triangle(1)), input_shape=(2, 4, 5)),
        {"van-rossum": (2, 1), "hamming": (4, 37), "spike-count": (4, 64)},
    ),
    (
        "three layers",
        _dyadic("3C2-P2-4-3", _WIDE, input_shape=(1, 5, 5)),
        {"van-rossum": (3, 6), "hamming": (4, 231), "spike-count": (2, 6)},
    ),
    (
        "input filter",
        _dyadic("P2-4-3", _WIDE, input_shape=(1, 4, 4), input_psp=PSP(2), input_max=2),
        {"van-rossum": (4, 94), "hamming": (4, 12), "spike-count": (4, 15)},
    ),
    (
        "direct coding",
        _dyadic("2C3s2-3", _WIDE, input_shape=(2, 5, 5), coding="direct"),
        {"van-rossum": (4, 225), "hamming": (4, 7), "spike-count": (4, 251)},
    ),
]


def _dyadic_batch(network: NetworkSpec, steps: int, seed: int) -> Batch:
    def trains(shape: tuple[int, ...], seed: int) -> UInt8:
        drawn = uniform(seed, Stream.ENCODER, math.prod(shape), substream=1)
        return (drawn < 0.5).astype(np.uint8).reshape(shape)

    shape = (_BATCH, *network.input_shape)
    if network.coding == "direct":
        inputs = (bits(seed, Stream.ENCODER, math.prod(shape)) % 4 * 64).astype(np.uint8).reshape(shape)
    else:
        inputs = trains((steps, *shape), seed) * np.uint8(network.input_max)
    return Batch(inputs, trains((steps, _BATCH, network.outputs), seed + 1))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("network", "chosen"), [row[1:] for row in _RATIONAL], ids=[row[0] for row in _RATIONAL])
def test_float32_against_fractions_tolerance_zero(
    network: NetworkSpec, chosen: dict[str, tuple[int, int]], loss: str
) -> None:
    steps, seed = chosen[loss]
    weights = {
        block.name: (bits(seed, Stream.INIT, math.prod(block.weight_shape), substream=block.index) % 7 - 3.0)
        .astype(np.float32)
        .reshape(block.weight_shape)
        / np.float32(4)
        for block in network.blocks
    }
    batch = _dyadic_batch(network, steps, seed)
    literal = Literal(network, Fraction)
    run, exact, targets = _literal(literal, weights, batch)
    layers = NUMPY.run(network, weights, batch.inputs, steps).layers
    result = NUMPY.value_and_grad(network, LOSSES[loss], weights, batch)
    assert Fraction(result.loss) == literal.loss(LOSSES[loss], run, targets) * (2 if loss == "hamming" else 1)

    def exactly(got: AnyArray, fractions: AnyArray) -> None:
        assert [Fraction(x) for x in got.reshape(-1).tolist()] == list(fractions.reshape(-1))

    for block in network.blocks:
        assert 0.1 <= layers[block.name].spikes.mean() <= 0.9
        exactly(layers[block.name].spikes, np.stack(run.o[block.population]))
        exactly(layers[block.name].potentials, np.stack(run.u[block.population]))
    for name, gradient in literal.backward(LOSSES[loss], exact, run, targets).items():
        assert np.count_nonzero(gradient) >= 0.3 * gradient.size
        exactly(result.gradients[name], gradient)


def _cotangent_targets(run: LiteralRun, seed: int) -> list[AnyArray]:
    """Real-valued "targets" that make the Hamming error normal random numbers."""
    rng = np.random.default_rng(seed)
    return [o + rng.normal(size=o.shape) for o in [*run.o.values()][-1]]


# Widths of 0.8 and 0.9: with 1, neurons at rest (u = 0, threshold 0.5) would stand on the rectangle's edge.
_SURROGATES = [Rectangle(0.8), Triangle(0.9), FastSigmoid(), Arctan(), Logistic()]


# Each network with two of the surrogates, which do not know the network: one with jumps or kinks, and a smooth one.
_WITH = [(kind, _SURROGATES[k]) for i, kind in enumerate(_KINDS) for k in (i % 2, 2 + i % 3)]
# Surrogates that the spec got later.
_LATER = [cls() for cls in SURROGATES.values() if cls not in map(type, _SURROGATES)]
_WITH += [(_KINDS[i % len(_KINDS)], surrogate) for i, surrogate in enumerate(_LATER)]


@pytest.mark.parametrize(("kind", "surrogate"), _WITH, ids=[f"{kind}-{surrogate}" for kind, surrogate in _WITH])
def test_literal_gradient_against_finite_differences(kind: str, surrogate: Surrogate) -> None:
    """Random cotangents; the derivative along 4 random directions of all weights, and at single weights of each layer.

    The spike is the surrogate's primitive, so that the loss is differentiable and its gradient is Eq. (10)-(18) to the
    letter. Learned delays are rounded, so they stay as they are. Nine digits; where the derivative itself has jumps or
    kinks (rectangle, triangle, max pooling) the steps must be short, and rounding leaves seven.
    """
    network = _network(kind, 3.0, surrogate)
    literal = Literal(network, smooth=True)
    batch = _batch(network)
    run, weights, _ = _literal(literal, _on_grid(network), batch)
    smooth = isinstance(surrogate, FastSigmoid | Arctan | Logistic)
    jumps = not smooth or any(isinstance(x, MaxPool2d) for x in network.layers)
    step, digits = (1e-7, 1e-7) if jumps else (1e-5, 1e-9)
    _against_differences(
        literal, Hamming(), weights, _frames(literal, batch), _cotangent_targets(run, 0), step=step, digits=digits
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", _TAUS)
def test_literal_gradient_of_each_loss_against_finite_differences(tau: str, loss: str) -> None:
    network = _network("events", _TAUS[tau], Arctan())
    literal = Literal(network, smooth=True)
    batch = _batch(network)
    _, weights, targets = _literal(literal, _on_grid(network), batch)
    _against_differences(literal, LOSSES[loss], weights, _frames(literal, batch), targets, step=1e-5, digits=1e-9)


@pytest.mark.parametrize("surrogate", [FastSigmoid(), Arctan()], ids=str)
@pytest.mark.parametrize("kind", _READOUTS)
def test_literal_gradient_of_a_readout_against_finite_differences(kind: str, surrogate: Surrogate) -> None:
    """Random cotangents: the targets are the potentials and normal random numbers."""
    network = _network(kind, 3.0, surrogate)
    literal = Literal(network, smooth=True)
    batch = _batch(network)
    run, weights, _ = _literal(literal, _on_grid(network), batch)
    rng = np.random.default_rng(2)
    targets = [u + rng.normal(size=u.shape) for u in run.u[network.blocks[-1].population]]
    frames = _frames(literal, batch)
    _against_differences(literal, MeanSquaredError(), weights, frames, targets, step=1e-5, digits=1e-9)


def _against_differences(
    literal: Literal,
    loss: Loss,
    weights: dict[str, Float64],
    frames: list[AnyArray],
    targets: list[AnyArray],
    *,
    step: float,
    digits: float,
) -> None:
    def value(changed: dict[str, Float64]) -> float:
        return float(literal.loss(loss, literal.forward(changed, frames), targets))

    def slope(direction: dict[str, Float64], step: float) -> float:
        up, down = ({n: w + sign * step * direction[n] for n, w in weights.items()} for sign in (1, -1))
        return (value(up) - value(down)) / (2 * step)

    gradients = literal.backward(loss, weights, literal.forward(weights, frames), targets)
    moved = [name for name in weights if name not in literal.graph.delays]
    rng = np.random.default_rng(5)
    directions = []
    for _ in range(4):
        directions.append({n: rng.normal(size=w.shape) * (n in moved) for n, w in weights.items()})
    for name in moved:
        single = {n: np.zeros(x.shape) for n, x in weights.items()}
        single[name][np.unravel_index(np.abs(gradients[name]).argmax(), weights[name].shape)] = 1
        directions.append(single)
    for direction in directions:
        expected = sum(float((gradients[n] * direction[n]).sum()) for n in weights)
        # Richardson's combination of two steps: the error is of fourth order.
        difference_quotient = (4 * slope(direction, step / 2) - slope(direction, step)) / 3
        scale = math.sqrt(sum(float((gradients[n] ** 2).sum()) for n in weights))
        length = math.sqrt(sum(float((x**2).sum()) for x in direction.values()))
        assert abs(difference_quotient - expected) <= digits * scale * max(1.0, length)


def _torch_gradients(
    network: NetworkSpec,
    weights: dict[str, Float64],
    frames: list[AnyArray],
    loss: str,
    targets: list[AnyArray],
    penalties: Mapping[str, RatePenalty] = MappingProxyType({}),
) -> dict[str, Float64]:
    """The forward model and its loss in torch, differentiated by torch; only the spike's derivative is given, and that
    the derivatives of a learned delay are those of a whole delay and of linear interpolation.

    `penalties` are rate penalties by population.
    """
    torch: Any = pytest.importorskip("torch")

    class Spike(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any, surrogate: Surrogate) -> Any:
            context.h = torch.from_numpy(derivative(surrogate, x.detach().numpy()))
            return (x >= 0).to(x.dtype)

        @staticmethod
        def backward(context: Any, error: Any) -> Any:
            return error * context.h, None

    def exponential(tau: float, factor: float, s: list[Any]) -> list[Any]:
        a: list[Any] = []
        for x in s:
            a.append((1 - 1 / tau) * (a[-1] if a else 0) + x * factor)
        return a

    def psp(filter: PSP | None, s: list[Any]) -> list[Any]:
        if filter is None:
            return s
        if not filter.tau_rise:
            return exponential(filter.tau_s, 1 if filter.gain == "unit" else 1 / filter.tau_s, s)
        factor = 1 if filter.gain == "unit" else 1 / (filter.tau_s - filter.tau_rise)
        slow, quick = (exponential(tau, factor, s) for tau in (filter.tau_s, filter.tau_rise))
        return [x - y for x, y in zip(slow, quick, strict=True)]

    def product(op: Op, w: Any, x: Any) -> Any:
        if isinstance(op, Conv2d):
            return torch.nn.functional.conv2d(x, w, None, op.strides, op.paddings, op.dilations, op.groups)
        return x * w[:, 0] if isinstance(op, OneToOne) else x.flatten(1) @ w.T

    def passed(op: Passing, x: Any) -> Any:
        if isinstance(op, AvgPool2d):
            return torch.nn.functional.avg_pool2d(x, op.sizes)
        if isinstance(op, MaxPool2d):
            return torch.nn.functional.max_pool2d(x, op.sizes)
        if isinstance(op, Upsample2d):
            return torch.nn.functional.interpolate(x, scale_factor=op.factors, mode="nearest")
        assert isinstance(op, Flatten)
        return x.flatten(1)

    def late(x: list[Any], d: Any) -> list[Any]:
        time = torch.stack(x)

        def moved(signal: Any, channel: int, steps: int) -> Any:
            silence = torch.zeros_like(signal[:1, :, channel]).expand(min(steps, len(x)), *signal[0, :, channel].shape)
            return torch.cat([silence, signal[: max(0, len(x) - steps), :, channel]])

        channels = []
        for channel, delay in enumerate(d):
            floor = math.floor(delay.item())
            still = time.detach()
            between = (delay - floor) * (moved(still, channel, floor + 1) - moved(still, channel, floor))
            # The value is that of the whole delay; the derivative with respect to the delay is that of `between`.
            channels.append(moved(time, channel, int(torch.round(delay).item())) + between - between.detach())
        return list(torch.stack(channels, dim=2))

    def fire(bound_node: BoundNode, z: list[Any]) -> list[Any]:
        op, shape = bound_node.node.op, (1, -1, *(1,) * (z[0].ndim - 2))
        assert isinstance(op, Neurons)
        model: Any = op.model
        decay = 1.0 if isinstance(model, IF) else 1 - 1 / model.tau_m
        if isinstance(model, PLIF):
            decay = w[bound_node.parameters["decay"]].view(shape)
        if isinstance(model, Readout):
            potentials = [z[0]]
            for x in z[1:]:
                potentials.append(decay * potentials[-1] + x)
            return potentials
        u, o, v, a, spikes = (torch.zeros_like(z[0]), torch.zeros_like(z[0]), model.threshold, 0, list[Any]())
        for x in z:
            # The whole of a recurrence's filtered spikes anew, to share no step with what is tested.
            for name in network.graph.recurrent.get(bound_node.node.name, ()):
                (synapse,) = (projection.synapse for projection in network.graph.projections if projection.name == name)
                x = x + product(synapse, w[name], psp(model.psp, [torch.zeros_like(u), *spikes])[-1])
            decayed = decay * (u - v * o) if model.reset == "subtract" else decay * u * (1 - o)
            if isinstance(model, ALIF):
                a = (1 - 1 / model.tau_a) * a + o / model.tau_a
                v = model.threshold + model.beta * a
            u = decayed + x
            o = Spike.apply(u - v, model.surrogate)
            spikes.append(o)
        return spikes

    w = {name: torch.tensor(x, requires_grad=True) for name, x in weights.items()}
    values = {"input": [torch.from_numpy(x) for x in frames]}
    ones = [torch.ones(1, dtype=torch.float64)] * len(frames)
    for bound_node in network.graph.bound_nodes:
        node, op = bound_node.node, bound_node.node.op
        edges = [edge for edge in node.inputs if edge.source in values]
        nothing = torch.zeros_like
        read = [
            [values[e.source][t - e.delay] if t >= e.delay else nothing(values[e.source][0]) for t in range(len(ones))]
            for e in edges
        ]
        if isinstance(op, Weighted) and edges:
            entered, response = psp(bound_node.inputs[0].pending, read[0]), psp(bound_node.inputs[0].pending, ones)
            values[node.name] = [product(op, w[node.name], x) for x in entered]
            if op.bias:
                shape = (1, -1, *(1,) * (len(bound_node.output.shape) - 1))
                terms = zip(values[node.name], response, strict=True)
                values[node.name] = [z + share * w[f"{node.name}.bias"].view(shape) for z, share in terms]
        elif isinstance(op, Neurons):
            values[node.name] = fire(bound_node, [sum(x) for x in zip(*read, strict=True)])
        elif isinstance(op, LearnedDelay):
            values[node.name] = late(read[0], w[f"{node.name}.steps"])
        elif isinstance(op, Passing):
            values[node.name] = [passed(op.at(bound_node.inputs[0].shape), x) for x in read[0]]
        elif isinstance(op, Add):
            values[node.name] = [sum(x) for x in zip(*read, strict=True)]
        elif isinstance(op, Concat):
            values[node.name] = [torch.cat(x, dim=1) for x in zip(*read, strict=True)]
    spikes = values[network.graph.nodes[-1].name]
    target_spikes = [torch.from_numpy(x) for x in targets]
    batch = len(targets[0])
    if loss == "mse":
        value = 2 * batch * torch.nn.functional.mse_loss(torch.stack(spikes), torch.stack(target_spikes))
    elif loss == "van-rossum":
        filter = network.output_psp.first_order
        value = sum(((x - y) ** 2).sum() for x, y in zip(psp(filter, spikes), psp(filter, target_spikes), strict=True))
    elif loss == "hamming":
        value = sum(((x - y) ** 2).sum() for x, y in zip(spikes, target_spikes, strict=True))
    else:
        value = ((sum(spikes) / len(spikes) - sum(target_spikes) / len(target_spikes)) ** 2).sum()
    total = value / (2 * batch)
    for name, penalty in penalties.items():
        rates = torch.stack(values[name]).mean(dim=0)
        total = total + penalty.weight * torch.relu(rates - penalty.target).square().mean()
    total.backward()
    return {name: x.grad.numpy() for name, x in w.items()}


@pytest.mark.parametrize(("kind", "tau", "loss"), _EACH)
def test_literal_float64_against_torch_autograd(kind: str, tau: str, loss: str) -> None:
    network = _network(kind, _TAUS[tau])
    literal, batch = Literal(network), _batch(network)
    run, weights, targets = _literal(literal, _on_grid(network), batch)
    if loss == "hamming":
        targets = _cotangent_targets(run, 1)
    gradients = _torch_gradients(network, weights, _frames(literal, batch), loss, targets)
    for name, gradient in literal.backward(EXACT_LOSSES[loss], weights, run, targets).items():
        assert np.abs(gradient).max() > 0
        assert np.abs(gradients[name] - gradient).max() <= 1e-13 * np.abs(gradient).max()


@pytest.mark.parametrize(("kind", "tau", "loss"), _EACH[::3])
def test_rate_penalties_against_torch_autograd(kind: str, tau: str, loss: str) -> None:
    network = _network(kind, _TAUS[tau])
    literal, batch = Literal(network), _batch(network)
    on_grid = _on_grid(network)
    run, weights, targets = _literal(literal, on_grid, batch)
    if loss == "hamming":
        targets = _cotangent_targets(run, 1)
    spiking = network.blocks[:-1] if network.has_readout else network.blocks
    penalties = {block.population: RatePenalty(0.21, 40.0) for block in spiking}
    gradients = _torch_gradients(network, weights, _frames(literal, batch), loss, targets, penalties)
    literal_gradients = literal.backward(EXACT_LOSSES[loss], weights, run, targets, penalties)
    plain = literal.backward(EXACT_LOSSES[loss], weights, run, targets)
    # A readout has no spikes, so its own parameters have no part in the penalty.
    of_readout = network.graph.projections_to(network.blocks[-1].population) if network.has_readout else ()
    apart = tuple(projection.name for projection in of_readout)
    for name, gradient in literal_gradients.items():
        assert np.abs(gradients[name] - gradient).max() <= 1e-13 * np.abs(gradient).max()
        if name.partition(".")[0] in apart:
            assert np.array_equal(gradient, plain[name])
        else:
            assert np.abs(gradient - plain[name]).max() > 0.01 * np.abs(plain[name]).max()


_TWO_POOLINGS = """
[[node]]
name = "conv1"
weights = "4C3p1"
from = "input"
[[node]]
name = "below"
neurons = ""
from = "conv1"
[[node]]
name = "sums"
layer = "P3"
from = "below"
[[node]]
name = "largest"
layer = "M3"
from = "below"
[[node]]
name = "linear1"
weights = "5"
from = "sums"
[[node]]
name = "linear2"
weights = "5b"
from = "largest"
[[node]]
name = "output"
neurons = ""
from = ["linear1", "linear2"]
"""


def test_projections_into_one_population_have_their_own_division() -> None:
    network = NetworkSpec.parse(_TWO_POOLINGS, input_shape=(2, 9, 8), neuron=LIF(3, 5 / 3, 0.5))
    literal, batch = Literal(network), _batch(network)
    run, weights, targets = _literal(literal, _on_grid(network), batch)
    result = NUMPY.value_and_grad(network, LOSSES["van-rossum"], _on_grid(network), batch, precision="reproducible")
    assert np.array_equal(result.spikes, np.stack(run.values["output"]))
    assert 0.05 < result.spikes.mean() < 0.9
    for name, gradient in literal.backward(LOSSES["van-rossum"], weights, run, targets).items():
        assert np.abs(gradient).max() > 0
        assert np.abs(result.gradients[name] - gradient).max() <= 1e-5 * np.abs(gradient).max()
    with pytest.raises(NetworkError, match="the inputs of Add must have the same divisor of pooled sums, got 9 and 1"):
        NetworkSpec.parse("4C3p1-[P3|M3]+-5", input_shape=(2, 9, 9))
