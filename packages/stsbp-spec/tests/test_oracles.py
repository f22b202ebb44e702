"""Four ways to the same numbers: float32 in the contract's order, the paper's literal form in float64 and in exact
fractions, central finite differences of a smoothed spike, and torch's autograd in float64.

How far they agree:

- fractions and float32 on dyadic networks: exactly, spikes, potentials and gradients;
- float64 and float32: spikes equal; each potential and each weight's gradient within the bound of its rounding errors;
- float64 and finite differences: eight digits (seven for rectangle and triangle); float64 and torch: thirteen digits.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from stsbp_spec.backend import Batch
from stsbp_spec.init import initial_weights
from stsbp_spec.losses import LOSSES, Hamming, Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.neurons import LIF
from stsbp_spec.random import Stream, bits, uniform
from stsbp_spec.reference import roundoff
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.reference.literal import Literal, LiteralRun
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d
from stsbp_spec.typing import AnyArray, Float32, Float64, UInt8

NUMPY = NumpyBackend()
_TAUS = {"2": 2.0, "3": 3.0, "5": 5.0, "5/3": 5 / 3}
_KINDS = ["events", "strides", "geometry", "direct", "filtered", "biased", "biased images"]
_STEPS, _BATCH = 9, 2


def _network(kind: str, tau: float, surrogate: Surrogate | None = None) -> NetworkSpec:
    """Pooling, stride and padding with events; direct coding; counts after an input filter; biases."""
    neuron = LIF(tau, 5 / 3 if tau == 3 else tau, 0.5, surrogate or FastSigmoid())
    if kind == "events":
        return NetworkSpec.parse("5C3p1-P2-6C3p1-P2-5", input_shape=(2, 9, 8), neuron=neuron)
    if kind == "strides":
        return NetworkSpec.parse("P2-6C3s2p1-7C2s2-12-5", input_shape=(2, 18, 17), neuron=neuron)
    if kind == "geometry":
        notation = "4C2x3p1x2s2{dilation=2x1,groups=2}-8C3p1s1x2{groups=4}-5"
        return NetworkSpec.parse(notation, input_shape=(2, 9, 13), neuron=neuron)
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
    return Batch(inputs, _trains((steps, _BATCH, network.outputs), 0.4, seed + 1))


def _on_grid(network: NetworkSpec, seed: int = 1) -> dict[str, Float32]:
    weights = initial_weights(network, seed, 2.5)
    grids = {block.name: NUMPY.weight_grid(block, weights[block.name])[0] for block in network.blocks}
    rng = np.random.default_rng(seed)
    biases = (name for name in weights if name.endswith(".bias"))
    return grids | {name: rng.uniform(-0.2, 0.3, weights[name].shape).astype(np.float32) for name in biases}


def _frames(literal: Literal, batch: Batch) -> list[AnyArray]:
    if literal.network.coding == "direct":
        return [literal.array(batch.inputs / 256.0)] * len(batch.targets)
    return [literal.array(x) for x in batch.inputs]


def _literal(
    literal: Literal, weights: dict[str, Float32], batch: Batch
) -> tuple[LiteralRun, dict[str, AnyArray], list[AnyArray]]:
    exact = {name: literal.array(w) for name, w in weights.items()}
    return literal.forward(exact, _frames(literal, batch)), exact, [literal.array(x) for x in batch.targets]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", _TAUS)
@pytest.mark.parametrize("kind", _KINDS)
def test_float32_against_literal_float64(kind: str, tau: str, loss: str) -> None:
    network = _network(kind, _TAUS[tau])
    weights, batch = _on_grid(network), _batch(network)
    literal = Literal(network)
    run, exact, targets = _literal(literal, weights, batch)
    expected = literal.backward(LOSSES[loss], exact, run, targets)
    layers = NUMPY.run(network, weights, batch.inputs, _STEPS).layers
    found = NUMPY.value_and_grad(network, LOSSES[loss], weights, batch)
    value = literal.loss(LOSSES[loss], run, targets) * (2 if loss == "hamming" else 1)
    assert found.loss == pytest.approx(value, rel=1e-13)
    error = roundoff.loss_error(LOSSES[loss], network.output_psp, found.spikes, batch.targets)
    near = roundoff.gradients(network, weights, batch.inputs, layers, error, potentials="float64")
    for block in network.blocks:
        o, u = np.stack(run.o[block.population]), np.stack(run.u[block.population])
        assert 0.05 < o.mean() < 0.7
        assert np.array_equal(layers[block.name].spikes, o)
        (entering,) = (node.inputs for node in network.graph.nodes if node.name == block.name)
        unfiltered = run.values[entering[0].source]
        z = np.stack([literal.product(block.synapse, exact[block.name], x) for x in unfiltered])
        filter = roundoff.exact_filter(block.psp, biased=block.synapse.bias)
        learned = {name: weights[f"{block.name}.{name}"] for name in block.learned}
        potentials = roundoff.neuron_forward(block.neuron, filter, z, layers[block.name].spikes, learned)["u"]
        _agree(potentials.value, u)
        assert (np.abs(layers[block.name].potentials - u) <= potentials.bound).all()
    for name, gradient in expected.items():
        assert np.count_nonzero(gradient) > 0.3 * gradient.size
        _agree(near[name].value, gradient)
        assert (np.abs(found.gradients[name] - gradient) <= near[name].bound).all()


def _agree(found: Float64, literal: Float64) -> None:
    """Two orders of one sum in float64."""
    assert np.abs(found - literal).max() <= 1e-13 * np.abs(literal).max()


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
    found = NUMPY.value_and_grad(network, LOSSES[loss], weights, batch)
    assert Fraction(found.loss) == literal.loss(LOSSES[loss], run, targets) * (2 if loss == "hamming" else 1)

    def exactly(got: AnyArray, fractions: AnyArray) -> None:
        assert [Fraction(x) for x in got.reshape(-1).tolist()] == list(fractions.reshape(-1))

    for block in network.blocks:
        assert 0.1 <= layers[block.name].spikes.mean() <= 0.9
        exactly(layers[block.name].spikes, np.stack(run.o[block.population]))
        exactly(layers[block.name].potentials, np.stack(run.u[block.population]))
    for name, gradient in literal.backward(LOSSES[loss], exact, run, targets).items():
        assert np.count_nonzero(gradient) >= 0.3 * gradient.size
        exactly(found.gradients[name], gradient)


def _cotangent_targets(run: LiteralRun, seed: int) -> list[AnyArray]:
    """Real-valued "targets" that make the Hamming error normal random numbers."""
    rng = np.random.default_rng(seed)
    return [o + rng.normal(size=o.shape) for o in [*run.o.values()][-1]]


# Widths of 0.8 and 0.9: with 1, neurons at rest (u = 0, threshold 0.5) would stand on the rectangle's edge.
_SURROGATES = [Rectangle(0.8), Triangle(0.9), FastSigmoid(), Arctan(), Logistic()]


@pytest.mark.parametrize("surrogate", _SURROGATES, ids=str)
@pytest.mark.parametrize("kind", _KINDS)
def test_literal_gradient_against_finite_differences(kind: str, surrogate: Surrogate) -> None:
    """Random cotangents; the derivative along 4 random directions of all weights, and at single weights of each layer.

    The spike is the surrogate's primitive, so that the loss is differentiable and its gradient is Eq. (10)-(18) to the
    letter. Eight digits; where the derivative itself has jumps or kinks (rectangle, triangle) the steps must be short,
    and rounding leaves seven.
    """
    network = _network(kind, 3.0, surrogate)
    literal = Literal(network, smooth=True)
    batch = _batch(network)
    run, weights, _ = _literal(literal, _on_grid(network), batch)
    step, digits = (1e-7, 1e-7) if isinstance(surrogate, Rectangle | Triangle) else (2e-4, 1e-8)
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
    _against_differences(literal, LOSSES[loss], weights, _frames(literal, batch), targets, step=2e-4, digits=1e-8)


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
    rng = np.random.default_rng(5)
    directions = []
    for _ in range(4):
        directions.append({name: rng.normal(size=w.shape) for name, w in weights.items()})
    for name, w in weights.items():
        single = {n: np.zeros(x.shape) for n, x in weights.items()}
        single[name][np.unravel_index(np.abs(gradients[name]).argmax(), w.shape)] = 1
        directions.append(single)
    for direction in directions:
        expected = sum(float((gradients[n] * direction[n]).sum()) for n in weights)
        # Richardson's combination of two steps: the error is of fourth order.
        found = (4 * slope(direction, step / 2) - slope(direction, step)) / 3
        scale = math.sqrt(sum(float((gradients[n] ** 2).sum()) for n in weights))
        length = math.sqrt(sum(float((x**2).sum()) for x in direction.values()))
        assert abs(found - expected) <= digits * scale * max(1.0, length)


def _torch_gradients(
    network: NetworkSpec, weights: dict[str, Float64], frames: list[AnyArray], loss: str, targets: list[AnyArray]
) -> dict[str, Float64]:
    """The forward model and its loss in torch, differentiated by torch; only the spike's derivative is given."""
    torch: Any = pytest.importorskip("torch")

    class Spike(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any, surrogate: Surrogate) -> Any:
            context.h = torch.from_numpy(surrogate.derivative(x.detach().numpy()))
            return (x >= 0).to(x.dtype)

        @staticmethod
        def backward(context: Any, error: Any) -> Any:
            return error * context.h, None

    def psp(filter: PSP, s: list[Any]) -> list[Any]:
        a: list[Any] = []
        for x in s:
            a.append((1 - 1 / filter.tau_s) * (a[-1] if a else 0) + x / filter.tau_s)
        return a

    w = {name: torch.tensor(x, requires_grad=True) for name, x in weights.items()}
    a = [torch.from_numpy(x) for x in frames]
    if network.input_psp is not None:
        a = psp(network.input_psp, a)
    for block in network.blocks:
        u: Any = 0
        o: Any = 0
        spikes = []
        ones = [torch.ones(1, dtype=torch.float64)] * len(a)
        response = ones if block.psp is None else psp(block.psp, ones)
        for x, constant in zip(a, response, strict=True):
            for layer in block.before:
                assert isinstance(layer, AvgPool2d)
                x = torch.nn.functional.avg_pool2d(x, layer.size)
            synapse, neuron = block.synapse, block.neuron
            assert isinstance(neuron, LIF)
            if isinstance(synapse, Conv2d):
                geometry = synapse.strides, synapse.paddings, synapse.dilations, synapse.groups
                z = torch.nn.functional.conv2d(x, w[block.name], None, *geometry)
            else:
                z = x.flatten(1) @ w[block.name].T
            if synapse.bias:
                z = z + constant * w[f"{block.name}.bias"].view(1, -1, *(1,) * (z.ndim - 2))
            u = (1 - 1 / neuron.tau_m) * u * (1 - o) + z
            o = Spike.apply(u - neuron.threshold, neuron.surrogate)
            spikes.append(o)
        a = psp(block.neuron.psp, spikes)
    wanted = [torch.from_numpy(x) for x in targets]
    batch = len(targets[0])
    if loss == "van-rossum":
        value = sum(((x - y) ** 2).sum() for x, y in zip(a, psp(network.output_psp, wanted), strict=True))
    elif loss == "hamming":
        value = sum(((x - y) ** 2).sum() for x, y in zip(spikes, wanted, strict=True))
    else:
        value = ((sum(spikes) / len(spikes) - sum(wanted) / len(wanted)) ** 2).sum()
    (value / (2 * batch)).backward()
    return {name: x.grad.numpy() for name, x in w.items()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", _TAUS)
@pytest.mark.parametrize("kind", _KINDS)
def test_literal_float64_against_torch_autograd(kind: str, tau: str, loss: str) -> None:
    network = _network(kind, _TAUS[tau])
    literal, batch = Literal(network), _batch(network)
    run, weights, targets = _literal(literal, _on_grid(network), batch)
    if loss == "hamming":
        targets = _cotangent_targets(run, 1)
    found = _torch_gradients(network, weights, _frames(literal, batch), loss, targets)
    for name, gradient in literal.backward(LOSSES[loss], weights, run, targets).items():
        assert np.abs(gradient).max() > 0
        assert np.abs(found[name] - gradient).max() <= 1e-13 * np.abs(gradient).max()
