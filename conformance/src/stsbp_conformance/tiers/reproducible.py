"""Tier 4: `reproducible` precision: gradients bit for bit, and 20 updates with dropout that end in the same weights.

The numbers of errors that the error grid set to zero are also compared for each layer. They are equal on all backends.
The checksum in the note is SHA-256 of the weights after the last update. It is the same for all backends.
"""

from __future__ import annotations

from dataclasses import replace

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import SGD, Adam, AdamW, Optimizer
from stsbp_spec.models.surrogates import FastSigmoid, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Memory

from stsbp_conformance import reference
from stsbp_conformance.cases import NetworkCase, cifar10
from stsbp_conformance.check import Check, Compared, Verdict
from stsbp_conformance.tiers import bits, elementwise

__all__ = ["CHECKS", "LATE_SATURATED", "OPTIMIZER", "OTHER_OPTIMIZERS", "SATURATED", "SMALL", "TRAINED"]

OPTIMIZER = AdamW(lr=5e-3, total_steps=20, warmup_steps=3, final_fraction=0.1, weight_decay=0.02, clip_norm=0.05)
OTHER_OPTIMIZERS = (
    Adam(lr=5e-3, total_steps=20, warmup_steps=3, final_fraction=0.1, weight_decay=0.02, clip_norm=0.05),
    SGD(lr=0.5, total_steps=20, warmup_steps=3, final_fraction=0.1, weight_decay=0.02, clip_norm=0.05),
)
"""The optimisers that are compared with fewer networks."""

_SOME_LEARNED = ("conv1", "conv1.decay", "linear3.bias", "linear5")
_SOME_DELAYS = ("delay2.steps", "linear2")
_FIRST_NORMALISED = ("conv1", "conv1.scale", "conv1.shift")
_DROPPED = "12C5d0.2-P2-64C5d0.3-P2"


def _small(surrogate: Surrogate, tau: float) -> NetworkCase:
    network = NetworkSpec.parse(
        "6C3p1d0.25-P2-8C3s2p1d0.5-24",
        input_shape=(2, 11, 12),
        outputs=5,
        neuron=LIF(tau_m=tau, tau_s=5 / 3, threshold=0.5, surrogate=surrogate),
    )
    return NetworkCase(f"small, {surrogate.name}", network, steps=12, batch=3)


SMALL = (
    *(_small(s, tau) for s, tau in ((FastSigmoid(), 3.0), (Triangle(0.7), 5.0), (Rectangle(0.8), 3.0))),
    bits.DIRECT,
    *(_small(surrogate, 5.0) for surrogate in elementwise.LATER),
)
# Every second sample is silent. In the others, potentials of the first layer are thousands of thresholds, where the
# surrogate derivative is tiny. Errors then cover more bits than the grid has, and the grid sets two in five to zero.
SATURATED = NetworkCase(
    "saturated layer, silent samples",
    NetworkSpec.parse("16-12", input_shape=(24,), outputs=6, input_max=255, neuron=LIF(5, 5 / 3, 0.5, FastSigmoid())),
    steps=8,
    batch=4,
    gain=40.0,
    density=0.2,
    source="half",
)
# The silent samples have the largest errors, but only the others contribute to the gradients of delays. The grid
# changes a quarter of the errors.
LATE_SATURATED = replace(
    SATURATED,
    id="learned delays, saturated layers, silent samples",
    network=NetworkSpec.parse(
        "T4-16-12", input_shape=(24,), outputs=6, input_max=255, neuron=LIF(5, 5 / 3, 0.5, FastSigmoid())
    ),
)
NMNIST = NetworkCase(
    "N-MNIST network, T=25",
    NetworkSpec.parse(_DROPPED, input_shape=(2, 34, 34), outputs=10, neuron=LIF(8, 5 / 3, 0.5)),
    steps=25,
    batch=1,
)
REAL = replace(NMNIST, id="real N-MNIST input, T=25", source="nmnist", batch=2)
CIFAR10 = NetworkCase(
    "CIFAR-10 network 32C3, T=5", cifar10("32C3-64C3d0.2-P2-128C3-P2-128C3d0.2-256d0.5", 5), 5, 1, gain=3.0
)


_LOSSES_IN_TURN = tuple(LOSSES)

TRAINED = tuple(zip(SMALL, (*LOSSES, *("van-rossum",) * (len(SMALL) - len(LOSSES))), strict=True))
"""Cases and losses for the comparison of updates: each loss at least once, each case once."""


def _gradient_check(case: NetworkCase, loss: str, dropout: tuple[int, int] | None, *, quick: bool) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        expected = reference.gradients(case, loss, "reproducible", dropout)
        got = reference.gradients_on(backend, case, loss, "reproducible", dropout)
        compared = Compared()
        compared.same("loss", got.loss, expected.loss)
        compared.same("rate penalties", [*got.penalties.items()], [*expected.penalties.items()])
        compared.equal("output spikes", got.spikes, expected.spikes)
        compared.same("layers", list(got.gradients), list(expected.gradients))
        for name, gradient in expected.gradients.items():
            compared.same_bytes(f"{name}: gradient", got.gradients[name], gradient)
        compared.same("zeroed errors", list(got.zeroed.items()), list(expected.zeroed.items()))
        zeroed = sum(counts.zeroed for counts in got.zeroed.values())
        compared.note = f"{zeroed} of {sum(counts.nonzero for counts in got.zeroed.values())} errors zeroed"
        return compared.verdict()

    drop = "" if dropout is None else ", dropout"
    return Check(4, f"gradients: {case.id}, {loss}{drop}", run, quick=quick)


def _training_check(
    case: NetworkCase,
    loss: str,
    *,
    quick: bool,
    memory: Memory = "full",
    optimizer: Optimizer = OPTIMIZER,
    frozen: tuple[str, ...] = (),
) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        expected, results = reference.trained(case, loss, optimizer, 20, frozen)
        trainer = reference.trainer_on(backend, case, loss, optimizer, memory=memory, frozen=frozen)
        got, got_results = reference.train(trainer, case, 20)
        compared = Compared()
        compared.same("losses", [r.loss for r in got_results], [r.loss for r in results])
        compared.same("gradient norms", [r.gradient_norm for r in got_results], [r.gradient_norm for r in results])
        compared.same("zeroed errors", [r.zeroed for r in got_results], [r.zeroed for r in results])
        compared.same("spike rates", [r.rates for r in got_results], [r.rates for r in results])
        compared.same("rate penalties", [r.penalties for r in got_results], [r.penalties for r in results])
        for name, x in expected.items():
            compared.same_bytes(name, got[name], x)
        compared.same("SHA-256 of the weights", reference.checksum(got), reference.checksum(expected))
        for name in frozen:
            compared.same_bytes(f"frozen {name}", got[f"weight/{name}"], reference.weights(case)[name])
        compared.note = f"weights {reference.checksum(got)[:16]}"
        return compared.verdict()

    how = "" if memory == "full" else " in little memory"
    how += "" if isinstance(optimizer, AdamW) else f" of {type(optimizer).__name__}"
    how += f", {' and '.join(frozen)} frozen" if frozen else ""
    return Check(4, f"20 updates{how}: {case.id}, {loss}", run, quick=quick)


# Of the trainings, those are quick that another quick one does not contain: learned delays with recurrence and branches
# contain RECURRENT, and the trainings with frozen parameters NORMALISED and LEARNED.
CHECKS = (
    *(
        _gradient_check(case, loss, dropout, quick=j == i % len(LOSSES))
        for i, case in enumerate(SMALL)
        for j, loss in enumerate(LOSSES)
        for dropout in (None, (3, 5))
    ),
    *(
        _gradient_check(bits.MODELS, loss, (3, 5) if loss == "hamming" else None, quick=loss == "hamming")
        for loss in LOSSES
    ),
    _gradient_check(bits.GEOMETRY, "van-rossum", (3, 5), quick=True),
    _gradient_check(bits.GEOMETRY_DIRECT, "hamming", None, quick=False),
    _gradient_check(bits.LEARNED, "van-rossum", (3, 5), quick=True),
    *(
        _gradient_check(case, "van-rossum", dropout, quick=case is bits.NORMALISED and dropout is None)
        for case in (bits.NORMALISED, bits.NORMALISED_DIRECT)
        for dropout in (None, (3, 5))
    ),
    *(
        _gradient_check(case, loss, dropout, quick=dropout is None and case is bits.RECURRENT_DIRECT)
        for case, loss in ((bits.RECURRENT, "hamming"), (bits.RECURRENT_DIRECT, "van-rossum"))
        for dropout in (None, (3, 5))
    ),
    *(
        _gradient_check(case, "mse" if case.network.has_readout else _LOSSES_IN_TURN[i % 3], dropout, quick=quick)
        for i, case in enumerate((*bits.LEARNED_DELAYS, *bits.LEARNED_DELAYS_LENGTHS))
        for dropout, quick in ((None, i < 4), ((3, 5), i in (2, 7, 9, 12)))
    ),
    _gradient_check(bits.CONCATENATED, "van-rossum", (3, 5), quick=True),
    _gradient_check(bits.CONCATENATED_DIRECT, "hamming", (3, 5), quick=True),
    *(_gradient_check(case, "van-rossum", None, quick=case is bits.MODELS_DIRECT[-1]) for case in bits.MODELS_DIRECT),
    *(_gradient_check(case, "mse", None, quick=False) for case in bits.READOUTS),
    *(_gradient_check(case, "mse", (3, 5), quick=True) for case in bits.READOUT_LENGTHS),
    _gradient_check(bits.COUNTS, "van-rossum", None, quick=True),
    *(_gradient_check(case, "van-rossum", None, quick=True) for case in (SATURATED, LATE_SATURATED)),
    _gradient_check(bits.FLOOR, "hamming", None, quick=True),
    _gradient_check(bits.ONE_STEP, "spike-count", None, quick=True),
    *(_gradient_check(case, "van-rossum", None, quick=False) for case in bits.NMNIST),
    *(
        _gradient_check(case, loss, dropout, quick=dropout is None or case is bits.PENALISED_LENGTHS)
        for case, loss in zip(bits.PENALISED, ("van-rossum", "hamming", "spike-count", "van-rossum"), strict=True)
        for dropout in (None, (3, 5))
    ),
    _gradient_check(NMNIST, "hamming", (1, 0), quick=False),
    _gradient_check(CIFAR10, "van-rossum", (1, 0), quick=False),
    _gradient_check(bits.CIFAR10, "van-rossum", None, quick=False),
    _gradient_check(bits.NINE_LAYERS, "hamming", None, quick=False),
    *(_training_check(case, loss, quick=True) for case, loss in TRAINED),
    _training_check(bits.MODELS, "van-rossum", quick=True),
    _training_check(bits.LEARNED, "van-rossum", quick=True),
    _training_check(bits.NORMALISED, "van-rossum", quick=False),
    _training_check(bits.NORMALISED_DIRECT, "hamming", quick=False),
    *(_training_check(bits.RECURRENT, "van-rossum", quick=False, memory=m) for m in ("full", "low")),
    _training_check(bits.CONCATENATED, "van-rossum", quick=True, memory="low"),
    _training_check(bits.CONCATENATED_DIRECT, "spike-count", quick=False),
    *(_training_check(bits.RECURRENT_DIRECT, "spike-count", quick=False, memory=m) for m in ("full", "low")),
    *(
        _training_check(case, "mse", quick=(i, memory) in ((1, "full"), (2, "low"), (3, "low")), memory=memory)
        for i, case in enumerate(bits.READOUT_LENGTHS)
        for memory in ("full", "low")
    ),
    *(_training_check(bits.READOUT, "mse", quick=False, optimizer=other) for other in (OPTIMIZER, *OTHER_OPTIMIZERS)),
    _training_check(bits.NORMALISED, "van-rossum", quick=False, memory="low"),
    *(_training_check(bits.LENGTHS, loss, quick=loss == "spike-count") for loss in LOSSES),
    *(_training_check(case, "van-rossum", quick=True, memory="low") for case in (SMALL[0], bits.DIRECT, SATURATED)),
    *(_training_check(bits.GEOMETRY, "van-rossum", quick=memory == "low", memory=memory) for memory in ("full", "low")),
    *(_training_check(bits.LEARNED, "van-rossum", quick=False, optimizer=other) for other in OTHER_OPTIMIZERS),
    *(_training_check(SMALL[0], "hamming", quick=True, memory="low", optimizer=other) for other in OTHER_OPTIMIZERS),
    _training_check(bits.LEARNED, "hamming", quick=True, optimizer=OTHER_OPTIMIZERS[1], frozen=_SOME_LEARNED),
    _training_check(bits.NORMALISED, "van-rossum", quick=True, frozen=_FIRST_NORMALISED),
    *(
        _training_check(case, "van-rossum", quick=(i, memory) in ((0, "low"), (1, "full"), (3, "full")), memory=memory)
        for i, case in enumerate(bits.PENALISED)
        for memory in ("full", "low")
    ),
    *(
        _training_check(
            case,
            "mse" if case.network.has_readout else "van-rossum",
            quick=i in ((3,) if memory == "full" else (2, 4, 9, 12)),
            memory=memory,
        )
        for i, case in enumerate((*bits.LEARNED_DELAYS, *bits.LEARNED_DELAYS_LENGTHS))
        for memory in ("full", "low")
    ),
    *(_training_check(bits.LEARNED_DELAYS[1], "hamming", quick=True, optimizer=other) for other in OTHER_OPTIMIZERS),
    _training_check(bits.LEARNED_DELAYS[1], "van-rossum", quick=True, frozen=_SOME_DELAYS),
    _training_check(NMNIST, "van-rossum", quick=False),
    _training_check(REAL, "van-rossum", quick=False),
    _training_check(CIFAR10, "hamming", quick=False),
)
