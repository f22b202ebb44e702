"""Tier 3: `fast` gradients against float64, each weight within its own bound.

The expected result is the paper's literal form in float64, with the filter before the weights. It uses the spikes and
potentials of the float32 forward pass (which tier 2 compares), so that no flipped spike affects it; or the potentials
of a float64 simulation with the same spikes. The bound is that of `stsbp_conformance.oracles.roundoff`, a running error
analysis of the same pass. Float32 arithmetic that rounds each operation once cannot exceed it, in whatever order it
adds.

The bound is wide if sums are long. Distances are therefore also measured in spreads, the size of independent rounding
errors. If all data are random, they must stay below `check.SPREADS` spreads.

Output errors are random: from random target trains and each loss, and normally distributed ones. The cases of
adversarial.py choose them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, LayerRun
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.engine.passes import backward_pass, forward_pass
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.losses import LOSSES, Hamming
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32, Float64

from stsbp_conformance import adversarial, reference
from stsbp_conformance.cases import EXACT_LOSSES, NetworkCase
from stsbp_conformance.check import Check, Compared, Verdict
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.literal import Literal
from stsbp_conformance.oracles.roundoff import Near, Potentials
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers import bits

__all__ = ["CHECKS", "analysed", "computed", "float64_gradients", "near_gradients"]

Dropout = tuple[int, int] | None


@cache
def float64_gradients(case: NetworkCase, loss: str | None) -> dict[str, Float64]:
    """Gradients by layer name in the literal form. If `loss` is None, they are for the case's own output errors."""
    network, result = case.network, reference.run(case)
    literal = Literal(network, float)
    inputs, targets, _ = reference.data(case)
    scale = 256.0 if network.coding == "direct" else 1.0
    frames = [literal.array(x / scale) for x in ([inputs] * case.steps if scale > 1 else inputs)]
    weights = {name: literal.array(x) for name, x in _grids(case).items()}
    recorded = {}
    for block in network.blocks:
        layer = result.layers[block.name]
        resting = np.full(layer.potentials.shape, block.neuron.threshold)
        threshold = _saved(case)[block.name].get("threshold", resting)
        potentials, spikes, thresholds = (list(map(literal.array, x)) for x in (*layer[::-1], threshold))
        recorded[block.population] = potentials, spikes, thresholds
    run = literal.forward(weights, frames, recorded)
    if loss is not None:
        populations = {block.name: block.population for block in network.blocks}
        penalties = {populations[layer]: penalty for layer, penalty in case.rate_penalty}
        return literal.backward(EXACT_LOSSES[loss], weights, run, [literal.array(x) for x in targets], penalties)
    # The error of the Hamming distance is (o - target) / B. These "targets" make it equal to the required error.
    cotangent = case.cotangents().astype(np.float64)
    return literal.backward(Hamming(), weights, run, list(np.stack([*run.o.values()][-1]) - case.batch * cotangent))


@cache
def _saved(case: NetworkCase) -> dict[str, dict[str, Float32]]:
    """Values of the reference's neurons for the backward pass other than potentials, such as a moving threshold."""
    if all(neuron_equations(b.filter(training=False), b.neuron).kept == ("u",) for b in case.network.blocks):
        return {block.name: {} for block in case.network.blocks}
    inputs = NUMPY.encode(reference.data(case).inputs, case.network.coding)
    trace = forward_pass(NUMPY, case.network.graph, _grids(case), inputs, case.steps, None)
    return {block.name: saved.kept for block, (_, saved) in zip(case.network.blocks, trace.populations(), strict=True)}


def _grids(case: NetworkCase) -> dict[str, Float32]:
    """Weights on their grids, other learned parameters, and statistics."""
    return weights_on_grid(NUMPY, case.network.graph, reference.weights(case))[0]


def _layers(case: NetworkCase, dropout: Dropout) -> dict[str, LayerRun]:
    """Spikes and potentials of the reference's forward pass."""
    if dropout is None:
        return reference.run(case).layers
    inputs = NUMPY.encode(reference.data(case).inputs, case.network.coding)
    trace = forward_pass(NUMPY, case.network.graph, _grids(case), inputs, case.steps, dropout)
    return {
        block.name: LayerRun(saved.spikes, saved.kept["u"])
        for block, (_, saved) in zip(case.network.blocks, trace.populations(), strict=True)
    }


def analysed(case: NetworkCase, loss: str | None, potentials: Potentials, dropout: Dropout) -> dict[str, Near]:
    """Gradients by layer name with the filter after the weights, in float64, with their bounds and spreads."""
    network, (inputs, targets, _) = case.network, reference.data(case)
    layers = _layers(case, dropout)
    if loss is None:
        error = roundoff.exact(case.cotangents())
    else:
        last, output = network.blocks[-1], layers[network.blocks[-1].name]
        read: AnyArray | Near = output.potentials if network.has_readout else output.spikes
        if network.has_readout and potentials == "float64":
            read = roundoff.membrane_potentials(network, _grids(case), inputs, layers, dropout)[last.population]
        error = roundoff.loss_error(EXACT_LOSSES[loss], network.output_psp, read, targets)
    populations = {block.name: block.population for block in network.blocks}
    penalties = {
        populations[layer]: roundoff.penalty_error(penalty, layers[layer].spikes)
        for layer, penalty in (case.rate_penalty if loss is not None else ())
    }
    return roundoff.gradients(
        network, _grids(case), inputs, layers, error, potentials=potentials, dropout=dropout, penalties=penalties
    )


@cache
def near_gradients(
    case: NetworkCase, loss: str | None, potentials: Potentials = "float32", dropout: Dropout = None
) -> dict[str, Near]:
    """`analysed` gradients. With float32 potentials and without dropout, values are those of the literal form."""
    near = analysed(case, loss, potentials, dropout)
    if potentials == "float32" and dropout is None:
        return {name: replace(near[name], value=g) for name, g in float64_gradients(case, loss).items()}
    return near


def computed(
    backend: AbstractBackend, case: NetworkCase, loss: str | None, dropout: Dropout = None
) -> dict[str, AnyArray]:
    """`fast` gradients of a backend."""
    network, (inputs, *_) = case.network, reference.data(case)
    if loss is not None:
        return dict(reference.gradients_on(backend, case, loss, "fast", dropout).gradients)
    native = {name: backend.asarray(x) for name, x in reference.weights(case).items()}
    grids, _ = weights_on_grid(backend, network.graph, native)
    trace = forward_pass(backend, network.graph, grids, backend.encode(inputs, network.coding), case.steps, dropout)
    gradients = backward_pass(trace, backend.asarray(case.cotangents()), "fast")
    return {name: backend.numpy(g) for name, g in gradients.items()}


def _check(
    case: NetworkCase,
    loss: str | None = None,
    *,
    quick: bool,
    potentials: Potentials = "float32",
    dropout: Dropout = None,
) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        got = computed(backend, case, loss, dropout)
        for name, near in near_gradients(case, loss, potentials, dropout).items():
            compared.true(f"{name}: the gradient is float32", got[name].dtype == np.float32)
            # Constants that float32 rounds cause similar errors of potentials in all neurons.
            # So do mean and variance of a batch.
            random = case.random and potentials == "float32" and not (dropout and case.network.statistics)
            compared.within(f"{name}: gradient", got[name], near, random=random)
            if loss is not None:
                compared.unsigned(f"{name}: gradient", got[name])
        return compared.verdict()

    description = "random cotangents" if loss is None else loss
    if type(case) is not NetworkCase and loss is None:
        description = "chosen cotangents"
    parts = [
        case.id,
        description,
        *(["dropout"] if dropout else []),
        *(["float64 potentials"] if potentials != "float32" else []),
    ]
    return Check(3, ", ".join(parts), run, quick=quick, by_reference=False)


def _surrogate(name: str) -> NetworkCase:
    neuron = LIF(tau_m=3, tau_s=5 / 3, threshold=0.5, surrogate=SURROGATES[name]())
    network = NetworkSpec.parse("6C3p1-P2-8C3s2p1-24", input_shape=(2, 11, 12), outputs=5, neuron=neuron)
    return NetworkCase(f"small, {name}", network, steps=12, batch=3)


CHECKS = (
    *(
        _check(case, loss, quick=j == i % len(LOSSES))
        for i, case in enumerate((bits.SMALL[1], bits.DIRECT, bits.COUNTS, bits.ONE_STEP))
        for j, loss in enumerate(LOSSES)
    ),
    *(_check(case, "van-rossum", quick=True, dropout=(3, 5)) for case in (bits.SMALL[1], bits.DIRECT)),
    *(_check(_surrogate(name), quick=True) for name in SURROGATES),
    _check(_surrogate("logistic"), "van-rossum", quick=True),
    *(_check(_surrogate(name), quick=True, potentials="float64") for name in SURROGATES),
    *(_check(case, quick=True) for case in (bits.DIRECT, bits.COUNTS, bits.ONE_STEP, bits.FLOOR)),
    *(_check(bits.DIRECT, loss, quick=True, potentials="float64") for loss in LOSSES),
    *(
        _check(bits.MODELS, loss, quick=(kind == "float64") == (loss is None), potentials=kind)
        for kind in ("float32", "float64")
        for loss in (None, "van-rossum")
    ),
    *(_check(case, quick=True) for case in (bits.GEOMETRY, bits.GEOMETRY_DIRECT)),
    _check(bits.GEOMETRY, "van-rossum", quick=False, dropout=(3, 5)),
    *(_check(bits.LEARNED, loss, quick=loss is None) for loss in (None, "van-rossum")),
    _check(bits.NORMALISED, quick=True),
    _check(bits.NORMALISED, "van-rossum", quick=False, dropout=(3, 5)),
    _check(bits.NORMALISED_DIRECT, "hamming", quick=True, dropout=(3, 5)),
    *(_check(case, quick=False, potentials="float64") for case in (bits.NORMALISED, bits.NORMALISED_DIRECT)),
    *(_check(case, quick=case is bits.MODELS_DIRECT[-1]) for case in bits.MODELS_DIRECT),
    _check(bits.RECURRENT, "van-rossum", quick=True, dropout=(3, 5)),
    _check(bits.RECURRENT, quick=False),
    _check(bits.CONCATENATED, quick=True),
    _check(bits.CONCATENATED, "van-rossum", quick=False, dropout=(3, 5)),
    _check(bits.CONCATENATED_DIRECT, "hamming", quick=True),
    *(
        _check(case, loss, quick=i in (1, 3) and (loss is None) == (kind == "float64"), potentials=kind)
        for i, case in enumerate(bits.LEARNED_DELAYS)
        for loss in (None, "mse" if case.network.has_readout else "van-rossum")
        for kind in ("float32", "float64")
    ),
    *(_check(bits.LEARNED_DELAYS[i], loss, quick=i == 2, dropout=(3, 5)) for i, loss in ((2, "hamming"), (7, "mse"))),
    *(
        _check(case, loss, quick=number == 0, potentials=potentials, dropout=None if number else (3, 5))
        for number, (case, loss) in enumerate(zip(bits.PENALISED[:3], LOSSES, strict=True))
        for potentials in ("float32", "float64")
    ),
    *(_check(bits.RECURRENT_DIRECT, quick=False, potentials=kind) for kind in ("float32", "float64")),
    *(
        _check(case, loss, quick=loss == "mse" and (kind == "float32" or case is bits.READOUT), potentials=kind)
        for case in bits.READOUTS
        for loss in ("mse", None)
        for kind in ("float32", "float64")
    ),
    *(_check(case, "mse", quick=False, dropout=(3, 5)) for case in bits.READOUTS[1:]),
    *(
        _check(case, loss, quick=True, potentials=potentials)
        for case, loss in adversarial.CASES
        for potentials in ("float32", "float64")
    ),
    *(_check(case, quick=False) for case in bits.NMNIST),
    _check(bits.REAL[1], "van-rossum", quick=False),
    _check(bits.NMNIST_LONG, "hamming", quick=False),
    *(_check(case, quick=False) for case in bits.CIFAR10_TAUS),
    _check(bits.CIFAR10, "van-rossum", quick=False),
    _check(bits.NINE_LAYERS, "hamming", quick=False),
)
