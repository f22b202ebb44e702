"""Tier 1: the paper's literal equations in exact fractions. Spikes, potentials and gradients must be equal.

The networks are small, and their constants are dyadic (tau 1, 2 and 4, weights of 3 bits, rectangle and triangle
surrogates). All intermediate results have at most 24 bits, so that float32 must give the exact values. The reference
filters before the weights, and the backends after them, so the two share neither code nor order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from stsbp_spec.contract.random import Stream, bits
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.models.neurons import ALIF, IF, LIF, PLIF, NeuronModel
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import Rectangle, Triangle
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32

from stsbp_conformance.cases import EXACT_LOSSES, spikes
from stsbp_conformance.check import Check, Compared, Mismatch, Verdict
from stsbp_conformance.oracles.literal import Literal, LiteralRun

__all__ = ["CASES", "CHECKS", "PENALISED_CASES", "Oracle", "RationalCase", "compare", "oracle"]


@dataclass(frozen=True)
class RationalCase:
    """A dyadic network, its loss, and the seed of its weights, inputs and targets. `target`: that of rate penalties."""

    id: str
    network: NetworkSpec
    loss: str
    steps: int
    batch: int
    seed: int
    target: float | None = None

    @property
    def rate_penalty(self) -> dict[str, RatePenalty]:
        """Penalties of all layers on rates above `target`. Their weights make all factors powers of two."""
        if self.target is None:
            return {}
        sizes = {block.name: math.prod(block.output_shape) for block in self.network.blocks}
        return {name: RatePenalty(self.target, size) for name, size in sizes.items()}

    def weights(self) -> dict[str, Float32]:
        """Multiples of 1/4 from -3/4 to 3/4; delays are multiples of 1/2."""
        weights = {}
        for projection in self.network.graph.projections:
            drawn = bits(self.seed, Stream.INIT, int(np.prod(projection.weight_shape)), substream=projection.index)
            weights[projection.name] = ((drawn % 7).astype(np.float32) - 3).reshape(
                projection.weight_shape
            ) / np.float32(4)
        for number, (name, parameter) in enumerate(self.network.parameters.items()):
            if parameter.is_delay:
                drawn = bits(self.seed, Stream.INIT, parameter.shape[0], substream=100 + number)
                ends = 2 * self.network.graph.delays[name] + 1
                weights[name] = (drawn % ends).astype(np.float32) / np.float32(2)
            elif parameter.learned is not None:
                # 1/2 or 1, so that products have few bits.
                drawn = bits(self.seed, Stream.INIT, parameter.shape[0], substream=100 + number)
                weights[name] = ((drawn % 2).astype(np.float32) + 1) / np.float32(2)
        return weights

    def data(self) -> Batch:
        """Images of 2 bits, or events of density 1/2; targets of density 1/2, or multiples of 1/4 from -1 to 1."""
        network = self.network
        shape = (self.batch, *network.input_shape)
        if network.coding == "direct":
            drawn = bits(self.seed, Stream.ENCODER, int(np.prod(shape)))
            inputs = (drawn % 4 * 64).astype(np.uint8).reshape(shape)
        else:
            inputs = spikes((self.steps, *shape), 0.5, self.seed) * np.uint8(network.input_max)
        output = (self.steps, self.batch, network.outputs)
        if not network.has_readout:
            return Batch(inputs, spikes(output, 0.5, self.seed + 1))
        drawn = bits(self.seed + 1, Stream.ENCODER, int(np.prod(output)), substream=1)
        return Batch(inputs, ((drawn % 9).astype(np.float32) - 4).reshape(output) / np.float32(4))


@dataclass(frozen=True)
class Oracle:
    """The results of the literal equations, in fractions."""

    run: LiteralRun
    loss: Fraction
    gradients: dict[str, AnyArray]
    penalties: dict[str, Fraction]


@cache
def oracle(case: RationalCase) -> Oracle:
    """Run the literal equations on a case."""
    literal = Literal(case.network, Fraction)
    weights = {name: literal.array(w) for name, w in case.weights().items()}
    inputs, targets, _ = case.data()
    scale = 256.0 if case.network.coding == "direct" else 1.0
    frames = [literal.array(x / scale) for x in ([inputs] * case.steps if scale > 1 else inputs)]
    trains = [literal.array(x) for x in targets]
    run = literal.forward(weights, frames)
    loss, populations = EXACT_LOSSES[case.loss], {block.name: block.population for block in case.network.blocks}
    penalties = {populations[layer]: penalty for layer, penalty in case.rate_penalty.items()}
    return Oracle(
        run,
        literal.loss(loss, run, trains),
        literal.backward(loss, weights, run, trains, penalties),
        {
            layer: literal.penalty(penalty, run.values[populations[layer]])
            for layer, penalty in case.rate_penalty.items()
        },
    )


def compare(compared: Compared, label: str, got: AnyArray, expected: AnyArray) -> None:
    """Check that every float equals its fraction exactly."""
    if got.shape != expected.shape:
        raise Mismatch(f"{label}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    pairs: list[tuple[Any, Any]] = list(zip(got.reshape(-1).tolist(), expected.reshape(-1), strict=True))
    different = [(i, x, y) for i, (x, y) in enumerate(pairs) if not np.isfinite(x) or Fraction(x) != y]
    compared.values += len(pairs)
    if different:
        i, x, y = different[0]
        raise Mismatch(
            f"{label}: {len(different)} of {len(pairs)} values differ, the first at {i}: expected {y}, got {x!r}"
        )


def _check(case: RationalCase, *, quick: bool) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        expected = oracle(case)
        compared = Compared()
        weights, batch = case.weights(), case.data()
        layers = backend.run(case.network, weights, batch.inputs, case.steps).layers
        for block, u, o in zip(case.network.blocks, expected.run.u.values(), expected.run.o.values(), strict=True):
            compare(compared, f"{block.name}: membrane potentials", layers[block.name].potentials, np.stack(u))
            compared.unsigned(f"{block.name}: membrane potentials", layers[block.name].potentials)
            compare(compared, f"{block.name}: spikes", layers[block.name].spikes, np.stack(o))
        result = backend.value_and_grad(
            case.network, EXACT_LOSSES[case.loss], weights, batch, rate_penalty=case.rate_penalty
        )
        # The literal loss is half the Hamming distance, so that its gradient is the error of the spec.
        loss = expected.loss * 2 if case.loss == "hamming" else expected.loss
        compared.same("loss", Fraction(result.loss), loss)
        penalties = {layer: Fraction(penalty) for layer, penalty in result.penalties.items()}
        compared.same("rate penalties", penalties, expected.penalties)
        for name, gradient in expected.gradients.items():
            compare(compared, f"{name}: gradient", result.gradients[name], gradient)
            compared.unsigned(f"{name}: gradient", result.gradients[name])
        return compared.verdict()

    return Check(1, case.id, run, quick=quick, by_reference=False)


def _parse(notation: str, neuron: NeuronModel, **options: Any) -> NetworkSpec:
    return NetworkSpec.parse(notation, neuron=neuron, weight_bits=3, **options)


_WIDE = LIF(2, 2, 0.5, Rectangle(2))
_TRIANGLE = LIF(2, 2, 0.5, Triangle(1))
# Means beside late spikes, along the channels; and all neurons of two populations.
_CONCATENATED = """
[[node]]
name = "conv1"
weights = "2C2"
from = "input"
[[node]]
name = "below"
neurons = ""
from = "conv1"
[[node]]
name = "means"
layer = "P2"
from = "below"
[[node]]
name = "conv2"
weights = "1C2s2"
from = "below"
[[node]]
name = "coarse"
neurons = ""
from = "conv2"
[[node]]
name = "both"
concat = true
from = ["means", {node = "coarse", delay = 1}]
[[node]]
name = "linear3"
weights = "4"
from = "both"
[[node]]
name = "four"
neurons = ""
from = "linear3"
[[node]]
name = "flat"
layer = "F"
from = "coarse"
[[node]]
name = "eight"
concat = true
from = ["four", "flat"]
[[node]]
name = "linear4"
weights = "3"
from = "eight"
[[node]]
name = "output"
neurons = ""
from = "linear4"
"""
# Channels, late and as they were; and neurons after a fixed delay.
_LEARNED_DELAYS = """
[[node]]
name = "conv1"
weights = "2C2"
from = "input"
[[node]]
name = "below"
neurons = ""
from = "conv1"
[[node]]
name = "late"
layer = "T2"
from = {node = "below", delay = 1}
[[node]]
name = "both"
concat = true
from = ["late", "below"]
[[node]]
name = "pool"
layer = "P2"
from = "both"
[[node]]
name = "linear2"
weights = "4"
from = "pool"
[[node]]
name = "four"
neurons = ""
from = "linear2"
[[node]]
name = "later"
layer = "T3"
from = "four"
[[node]]
name = "linear3"
weights = "3"
from = "later"
[[node]]
name = "output"
neurons = ""
from = "linear3"
"""
_NETWORKS = {
    "two linear layers": _parse("5-3", LIF(2, 2, 0.5, Triangle(2)), input_shape=(6,)),
    "rectangle": _parse("5-3", _WIDE, input_shape=(6,)),
    "tau 1 and 4": _parse("5{tau_m=4,tau_s=1}-3", LIF(1, 4, 0.5, Rectangle(1)), input_shape=(6,)),
    "convolution, pooling": _parse("3C3p1-P2-3", _WIDE, input_shape=(2, 4, 5)),
    "convolution, stride 2": _parse("3C2s2p1-4", _TRIANGLE, input_shape=(2, 4, 5)),
    "three layers": _parse("3C2-P2-4-3", _WIDE, input_shape=(1, 5, 5)),
    "input filter, counts": _parse("P2-4-3", _WIDE, input_shape=(1, 4, 4), input_psp=PSP(2), input_max=2),
    "direct coding": _parse("2C3s2-3", _WIDE, input_shape=(2, 5, 5), coding="direct"),
    "direct coding, triangle": _parse("P2-4-3", _TRIANGLE, input_shape=(2, 4, 5), coding="direct"),
    "soft reset": _parse("5-3", LIF(2, 2, 0.5, Rectangle(2), reset="subtract"), input_shape=(6,)),
    "soft reset, triangle": _parse("3C2s2p1-4", LIF(2, 2, 0.5, Triangle(1), reset="subtract"), input_shape=(2, 4, 5)),
    "IF": _parse("5-3", IF(2, 0.5, Rectangle(2)), input_shape=(6,)),
    "IF, soft reset": _parse(
        "P2-4-3", IF(2, 0.5, Triangle(1), reset="subtract"), input_shape=(2, 4, 5), coding="direct"
    ),
    "ALIF": _parse("5-3", ALIF(2, 2, 0.5, Rectangle(2), tau_a=2, beta=0.5), input_shape=(6,)),
    "ALIF, soft reset": _parse(
        "3C2-P2-3", ALIF(2, 2, 0.5, Rectangle(2), reset="subtract", tau_a=2, beta=0.5), input_shape=(1, 5, 5)
    ),
    "PLIF": _parse("5-3", PLIF(2, 2, 0.5, Rectangle(2)), input_shape=(6,)),
    "PLIF, soft reset": _parse(
        "3C2-P2-3", PLIF(2, 2, 0.5, Rectangle(2), reset="subtract", per="channel"), input_shape=(1, 5, 5)
    ),
    "geometry": _parse("4C2x3p1x2s1x2{dilation=2x1,groups=2}-P1x2-3", _WIDE, input_shape=(2, 4, 6)),
    "max pooling, upsampling": _parse("M2-4C2-M1x2-U2x1-F-3", _WIDE, input_shape=(1, 6, 10), input_max=2),
    "bias": _parse("5b-3b", _WIDE, input_shape=(6,)),
    "bias, direct coding": _parse("2C3s2b-3", _TRIANGLE, input_shape=(2, 5, 5), coding="direct"),
    "bias, three layers": _parse("3C2b-P2-4b-3", LIF(2, 2, 0.5, Rectangle(2), reset="subtract"), input_shape=(1, 5, 5)),
    "recurrence": _parse(
        "5{recurrent=one-to-one}-3R", ALIF(2, 2, 0.5, Rectangle(2), tau_a=2, beta=0.5), input_shape=(6,)
    ),
    "recurrent convolution, direct coding": _parse("2C3R1s2b-3", _WIDE, input_shape=(2, 5, 5), coding="direct"),
    "branches, delays, recurrence": _parse("4-[4{delay=1}]+-3R{delay=1}", _WIDE, input_shape=(6,)),
    "concatenation": _parse(_CONCATENATED, _WIDE, input_shape=(1, 5, 5)),
    "learned delays": _parse("T4-5-T2-3", _WIDE, input_shape=(6,)),
    "learned delays, recurrence": _parse(
        "T1-4R-[T2-4]+-T1-3", LIF(2, 2, 0.5, Rectangle(2), reset="subtract"), input_shape=(6,)
    ),
    "learned delays, convolution": _parse(_LEARNED_DELAYS, _WIDE, input_shape=(1, 5, 5)),
    "learned delays, readout": _parse("T2-5-T1-4{neuron=readout,tau_m=2,tau_s=2}", _WIDE, input_shape=(6,)),
    "readout": _parse("5-4{neuron=readout,tau_m=2,tau_s=2}", _WIDE, input_shape=(6,)),
    "convolution, readout with a bias": _parse(
        "3C3p1-P2-2b{neuron=readout,tau_m=4,tau_s=1}", _WIDE, input_shape=(2, 4, 5)
    ),
    "direct coding, recurrence, readout": _parse(
        "2C3s2-4R-4{neuron=readout,tau_m=1,tau_s=2}", _TRIANGLE, input_shape=(2, 5, 5), coding="direct"
    ),
}

# Steps and seed of each loss. Seeds were chosen such that every layer spikes in 10 to 90 % of its possible steps, at
# least a third of each gradient is non-zero, and no intermediate result needs more than 24 bits.
_CHOSEN = {
    "two linear layers": {"van-rossum": (2, 1), "hamming": (4, 85), "spike-count": (2, 1)},
    "rectangle": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "tau 1 and 4": {"van-rossum": (4, 1), "hamming": (4, 12), "spike-count": (4, 1)},
    "convolution, pooling": {"van-rossum": (4, 108), "hamming": (4, 5), "spike-count": (4, 5)},
    "convolution, stride 2": {"van-rossum": (2, 1), "hamming": (4, 37), "spike-count": (4, 64)},
    "three layers": {"van-rossum": (3, 6), "hamming": (4, 231), "spike-count": (2, 6)},
    "input filter, counts": {"van-rossum": (4, 94), "hamming": (4, 12), "spike-count": (4, 15)},
    "direct coding": {"van-rossum": (4, 225), "hamming": (4, 7), "spike-count": (4, 251)},
    "direct coding, triangle": {"van-rossum": (2, 49), "hamming": (2, 49), "spike-count": (2, 49)},
    "soft reset": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "soft reset, triangle": {"van-rossum": (3, 1), "hamming": (4, 29), "spike-count": (4, 97)},
    "IF": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "IF, soft reset": {"van-rossum": (2, 1), "hamming": (4, 65), "spike-count": (4, 126)},
    "ALIF": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "ALIF, soft reset": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "PLIF": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "PLIF, soft reset": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "geometry": {"van-rossum": (4, 22), "hamming": (4, 12), "spike-count": (4, 12)},
    "max pooling, upsampling": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "bias": {"van-rossum": (4, 1), "hamming": (4, 1), "spike-count": (4, 1)},
    "bias, direct coding": {"van-rossum": (3, 77), "hamming": (4, 106), "spike-count": (4, 250)},
    "bias, three layers": {"van-rossum": (4, 2), "hamming": (4, 2), "spike-count": (4, 2)},
    "recurrence": {"van-rossum": (4, 16), "hamming": (4, 4), "spike-count": (4, 4)},
    "recurrent convolution, direct coding": {"van-rossum": (4, 40), "hamming": (4, 1), "spike-count": (4, 40)},
    "branches, delays, recurrence": {"van-rossum": (4, 16), "hamming": (4, 16), "spike-count": (4, 16)},
    "concatenation": {"van-rossum": (3, 94), "hamming": (4, 7), "spike-count": (2, 82)},
    "learned delays": {"van-rossum": (4, 1), "hamming": (4, 6), "spike-count": (4, 1)},
    "learned delays, recurrence": {"van-rossum": (3, 2), "hamming": (4, 2), "spike-count": (4, 2)},
    "learned delays, convolution": {"van-rossum": (4, 131), "hamming": (3, 50), "spike-count": (4, 109)},
    "learned delays, readout": {"mse": (4, 1)},
    "readout": {"mse": (4, 2)},
    "convolution, readout with a bias": {"mse": (2, 1)},
    "direct coding, recurrence, readout": {"mse": (2, 242)},
}

CASES = tuple(
    RationalCase(f"{name}, T={steps}, {loss}", _NETWORKS[name], loss, steps, 2, seed)
    for name, chosen in _CHOSEN.items()
    for loss, (steps, seed) in chosen.items()
)

_PENALISED = (
    ("rectangle", "van-rossum", 4, 16, 0.25),
    ("convolution, pooling", "hamming", 2, 5, 0.25),
    ("recurrence", "spike-count", 4, 12, 0.25),
    ("concatenation", "van-rossum", 2, 7, 0.25),
    ("PLIF", "van-rossum", 4, 2, 0.25),
)
PENALISED_CASES = tuple(
    RationalCase(f"rate penalty, {name}, T={steps}, {loss}", _NETWORKS[name], loss, steps, 2, seed, target)
    for name, loss, steps, seed, target in _PENALISED
)
"""The same with rate penalties."""

# Networks and losses rotate, so that each network and each loss is in a third of the quick checks.
CHECKS = (
    *(_check(case, quick=case.loss == "mse" or number % 3 == number // 3 % 3) for number, case in enumerate(CASES)),
    *(_check(case, quick=number < 3) for number, case in enumerate(PENALISED_CASES)),
)
