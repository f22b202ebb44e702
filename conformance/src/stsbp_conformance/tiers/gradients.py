"""Tier 3: `fast` gradients against float64, within a stated bound.

The expectation is the paper's literal form in float64, filter before the weights, on the spikes and potentials of the
float32 forward pass (which tier 2 compares), so that no flipped spike hides in it. The bound of a layer's gradient is

    |fast - float64| <= BOUND * eps * sqrt(n) * max |float64|,    eps = 2^-24,

with `n` the number of summands of one weight's gradient plus those of every data gradient above it. Cotangents are
random: random target trains through each loss, and normal random numbers at the output spikes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.losses import LOSSES, Hamming
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.neurons import LIF
from stsbp_spec.passes import backward_pass, forward_pass
from stsbp_spec.reference.literal import Literal, LiteralRun
from stsbp_spec.surrogates import SURROGATES
from stsbp_spec.typing import AnyArray, Float64

from stsbp_conformance import reference
from stsbp_conformance.cases import NetworkCase, normal
from stsbp_conformance.check import Check, Compared, Verdict
from stsbp_conformance.tiers import bits

__all__ = ["BOUND", "CHECKS", "EPS", "float64_gradients", "summands"]

EPS = 2.0**-24
BOUND = 4.0
"""Found by measurement: the numpy reference and the torch backend reach at most half of it."""


def summands(blocks: tuple[Block, ...], index: int, frames: int) -> int:
    """`n` of the bound: summands of one weight's gradient of block `index`, and of the data gradients above it."""
    of_weight = frames * blocks[index].synapse.summands(blocks[index].synapse_shape)[1]
    return of_weight + sum(b.synapse.summands(b.synapse_shape)[2] for b in blocks[index + 1 :])


@cache
def float64_gradients(case: NetworkCase, loss: str | None) -> dict[str, Float64]:
    """Gradients by layer name in the literal form; `loss` None: for normal random cotangents at the output spikes."""
    network, result = case.network, reference.run(case)
    literal = Literal(network, float)
    inputs, targets = reference.data(case)
    scale = 256.0 if network.coding == "direct" else 1.0
    below = [literal.array(x / scale) for x in ([inputs] * case.steps if scale > 1 else inputs)]
    if network.input_psp is not None:
        below = literal.psp(network.input_psp, below)
    run, weights = LiteralRun([], [], []), {}
    for block in network.blocks:
        layer = result.layers[block.name]
        run.entered.append([literal.before(block, a) for a in below])
        run.u.append([literal.array(u) for u in layer.potentials])
        run.o.append([literal.array(o) for o in layer.spikes])
        below = literal.psp(block.neuron.psp, run.o[-1])
        weights[block.name] = literal.array(reference.NUMPY.weight_grid(block, reference.weights(case)[block.name])[0])
    if loss is not None:
        return literal.backward(LOSSES[loss], weights, run, [literal.array(x) for x in targets])
    # The error of the Hamming distance is (o - target) / B: these "targets" make it the wanted cotangent.
    cotangent = cotangents(case).astype(np.float64)
    return literal.backward(Hamming(), weights, run, list(np.stack(run.o[-1]) - case.batch * cotangent))


def cotangents(case: NetworkCase) -> AnyArray:
    """Normal random `dL/do` of the output, `[T, B, N]`."""
    return normal((case.steps, case.batch, case.network.outputs), case.seed)


def _compare(case: NetworkCase, got: dict[str, AnyArray], expected: dict[str, Float64]) -> Verdict:
    compared = Compared()
    blocks = case.network.blocks
    for block in blocks:
        gradient = expected[block.name]
        frames = case.batch * (1 if block.static else case.steps)
        bound = BOUND * EPS * math.sqrt(summands(blocks, block.index, frames)) * float(np.max(np.abs(gradient)))
        compared.true(f"{block.name}: the gradient is float32", got[block.name].dtype == np.float32)
        compared.within(f"{block.name}: gradient", got[block.name], gradient, bound)
    return compared.verdict()


def _loss_check(case: NetworkCase, loss: str, *, quick: bool) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        result = backend.value_and_grad(case.network, LOSSES[loss], reference.weights(case), reference.data(case))
        return _compare(case, result.gradients, float64_gradients(case, loss))

    return Check(3, f"{case.id}, {loss}", run, quick=quick, by_reference=False)


def _cotangent_check(case: NetworkCase, *, quick: bool) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        network, inputs = case.network, reference.data(case).inputs
        grids = {
            block.name: backend.weight_grid(block, backend.asarray(reference.weights(case)[block.name]))[0]
            for block in network.blocks
        }
        encoded = backend.encode(inputs, network.coding)
        traces = forward_pass(backend, network, grids, encoded, case.steps, None)
        error = backend.asarray(cotangents(case))
        gradients = backward_pass(backend, traces, error, "fast", training=False)
        got = {name: backend.numpy(g) for name, g in gradients.items()}
        return _compare(case, got, float64_gradients(case, None))

    return Check(3, f"{case.id}, random cotangents", run, quick=quick, by_reference=False)


def _surrogate(name: str) -> NetworkCase:
    neuron = LIF(tau_m=3, tau_s=5 / 3, threshold=0.5, surrogate=SURROGATES[name]())
    network = NetworkSpec.parse("6C3p1-P2-8C3s2p1-24", input_shape=(2, 11, 12), outputs=5, neuron=neuron)
    return NetworkCase(f"small, {name}", network, steps=12, batch=3)


CHECKS = (
    *(_loss_check(case, loss, quick=True) for case in (bits.SMALL[1], bits.DIRECT, bits.COUNTS) for loss in LOSSES),
    *(_cotangent_check(_surrogate(name), quick=True) for name in SURROGATES),
    *(_cotangent_check(case, quick=True) for case in (bits.DIRECT, bits.COUNTS, bits.ONE_STEP, bits.FLOOR)),
    *(_cotangent_check(case, quick=False) for case in bits.NMNIST),
    _loss_check(bits.REAL[1], "van-rossum", quick=False),
    _loss_check(bits.NMNIST_LONG, "hamming", quick=False),
    *(_cotangent_check(case, quick=False) for case in bits.CIFAR10_TAUS),
    _loss_check(bits.CIFAR10, "van-rossum", quick=False),
    _loss_check(bits.NINE_LAYERS, "hamming", quick=False),
)
