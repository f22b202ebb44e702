"""Tier 7: invalid arguments are refused, with the right error and a message that names the location.

A loss or a surrogate that is not in the spec is not an error. It is an equation, and every backend computes it to the
same bits. A kind of weights is not an equation. A backend refuses kinds that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, Batch, ValueAndGrad
from stsbp_spec.engine.plan import plan
from stsbp_spec.equations.expressions import Expr, Names, snap, where
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.models.losses import LOSSES, Hamming, Loss, MeanSquaredError
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.models.surrogates import FastSigmoid, Logistic, Surrogate, Triangle
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node, Op, Values
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP, Conv2d, Linear
from stsbp_spec.networks.spec import NetworkSpec, SpikingLayer
from stsbp_spec.typing import AnyArray, Float64, UInt8

from stsbp_conformance import reference
from stsbp_conformance.cases import spikes
from stsbp_conformance.check import Check, Compared, Mismatch, Verdict
from stsbp_conformance.tiers import bits

__all__ = ["CHECKS"]

_CASE = bits.SMALL[1]
_LOSS = LOSSES["hamming"]


@dataclass(frozen=True)
class _Drift(Loss):
    """A leaky sum of early and late spikes, and the difference of the counts."""

    name: ClassVar[str] = "drift"
    parameters: ClassVar[tuple[str, ...]] = ("keep", "late", "often")
    states: ClassVar[tuple[str, ...]] = ("r",)
    leak: float = 0.3
    weight: float = 0.7

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        difference = np.cumsum(spikes.astype(np.int64) - targets, axis=0)
        drifted: Float64 = np.abs(difference).sum(axis=(0, -1)).astype(np.float64)
        return drifted

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"keep": 1 - self.leak, "late": 1 / batch, "often": self.weight / (steps * batch)}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = snap(p.keep * s.r + (x.o - x.target))
        return LossStep({"r": r}, r)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, p.late * x.r + p.often * (x.count - x.target_count))


@dataclass(frozen=True)
class _TwiceHamming(Hamming):
    """Twice its parent's error."""

    name: ClassVar[str] = "twice-hamming"

    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        return {"scale": 2 / batch}


@dataclass(frozen=True)
class _Parabola(Surrogate):
    """`h(x) = height max(0, 1 - (x / width)^2)`, two parameters."""

    name: ClassVar[str] = "parabola"
    width: float = 0.7
    height: float = 1.3

    def constants(self) -> Mapping[str, float]:
        return {"slope": 1 / self.width, "height": self.height}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = x * p.slope
        z = 1 - y * y
        return where(z > 0, z, 0) * p.height

    def primitive(self, x: AnyArray) -> AnyArray:
        y = np.clip(x / self.width, -1, 1)
        spike: AnyArray = 0.5 + self.height * self.width * (y - y**3 / 3)
        return spike


@dataclass(frozen=True)
class _TwiceTriangle(Triangle):
    """Twice its parent's derivative."""

    name: ClassVar[str] = "twice-triangle"

    def expression(self, p: Names, x: Expr) -> Expr:
        return super().expression(p, x) * 2


@dataclass(frozen=True)
class _NoSuchOperation(Op):
    """An operation that no backend knows."""

    def infer(self, *inputs: Values) -> Values:
        return self.spikes(inputs)


@dataclass(frozen=True)
class _NoSuchSynapse(Conv2d):
    pass


def _refused(
    compared: Compared,
    label: str,
    kinds: type[Exception] | tuple[type[Exception], ...],
    word: str,
    call: Callable[[], Any],
) -> None:
    try:
        with np.errstate(all="ignore"):
            call()
    except kinds as error:
        compared.true(f"{label}: the message must name {word!r}, got: {error}", word.lower() in repr(error).lower())
    except Exception as error:
        raise Mismatch(f"{label}: expected {kinds}, got {type(error).__name__}: {error}") from error
    else:
        raise Mismatch(f"{label}: nothing was raised")


def _changed(layer: str, value: float) -> dict[str, Any]:
    weights = {name: w.copy() for name, w in reference.weights(_CASE).items()}
    weights[layer].reshape(-1)[5] = value
    return weights


def _weights(backend: AbstractBackend) -> Verdict:
    compared, batch, good = Compared(), reference.data(_CASE), reference.weights(_CASE)
    wrong: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("a missing layer", "linear3", {name: w for name, w in good.items() if name != "linear3"}),
        ("an unknown layer", "conv9", {**good, "conv9": good["conv1"]}),
        ("a wrong shape", "conv2", {**good, "conv2": good["conv2"][:, :, :, 1:]}),
        ("float64 weights", "float64", {**good, "conv1": good["conv1"].astype(np.float64)}),
    )
    masked = {**good, "conv2": np.ma.masked_array(good["conv2"], good["conv2"] > 0)}
    masks = (("a mask over the weights", "MaskedArray", masked),)
    not_finite = tuple((f"a weight that is {x}", "conv2", _changed("conv2", x)) for x in (np.nan, np.inf, -np.inf))
    too_large = tuple((f"a weight of {x:.3g}", "too large", _changed("conv2", x)) for x in (2.0**100, -1e37, 3.4e38))
    for kind, cases in ((ShapeError, (*wrong, *masks)), (NumericError, (*not_finite, *too_large))):
        for label, word, weights in cases:
            run = partial(backend.run, _CASE.network, weights, batch.inputs, _CASE.steps)
            _refused(compared, f"run with {label}", kind, word, run)
            gradients = partial(backend.value_and_grad, _CASE.network, _LOSS, weights, batch)
            _refused(compared, f"value_and_grad with {label}", kind, word, gradients)
    # Above some size, libraries add or compare in parallel, and may ignore NaN in a maximum.
    wide = NetworkSpec.parse("2", input_shape=(60_000,), coding="direct")
    for value in (np.nan, np.inf):
        weights = {"linear1": np.ones((2, 60_000), np.float32)}
        weights["linear1"][1, 41_234] = value
        run = partial(backend.run, wide, weights, np.ones((1, 60_000), np.uint8), 2)
        _refused(compared, f"a layer of 120,000 weights with one that is {value}", NumericError, "linear1", run)
    case = bits.LEARNED
    for value in (np.nan, -(2.0**-20), 1 + 2.0**-20, 2.0**-101):
        learned = {name: w.copy() for name, w in reference.weights(case).items()}
        learned["conv1.decay"][2] = value
        run = partial(backend.run, case.network, learned, reference.data(case).inputs, case.steps)
        _refused(compared, f"a learned number that is {value}", NumericError, "conv1.decay", run)
    case = bits.LEARNED_DELAYS[1]
    for value in (np.nan, -0.5, 3.0000002):
        late = {name: w.copy() for name, w in reference.weights(case).items()}
        late["delay2.2.steps"][3] = value
        run = partial(backend.run, case.network, late, reference.data(case).inputs, case.steps)
        _refused(compared, f"a learned delay of {value} steps", NumericError, "delay2.2.steps must be from 0 to 3", run)
    return compared.verdict()


def _batches(backend: AbstractBackend) -> Verdict:
    compared, good, weights = Compared(), reference.data(_CASE), reference.weights(_CASE)
    inputs, targets, _ = good
    refused: tuple[tuple[str, str, Any], ...] = (
        ("float inputs", "uint8", Batch(inputs.astype(np.float32), targets)),
        ("frames without channels", "(2, 11, 12)", Batch(inputs[:, :, 0], targets)),
        ("frames of another size", "(2, 11, 12)", Batch(inputs[..., 1:], targets)),
        ("fewer steps than targets", "steps", Batch(inputs[1:], targets)),
        ("an empty batch", "empty", Batch(inputs[:, :0], targets[:, :0])),
        ("counts above input_max", "input_max", Batch(inputs * np.uint8(2), targets)),
        ("targets of another batch", "targets", Batch(inputs, targets[:, 1:])),
        ("float targets", "uint8", Batch(inputs, targets.astype(np.float32))),
        ("targets that are no spike trains", "0 and 1", Batch(inputs, targets * np.uint8(2))),
        ("a mask over the inputs", "MaskedArray", Batch(np.ma.masked_array(inputs, inputs > 0), targets)),
        ("lengths of another batch", "lengths", Batch(inputs, targets, np.full(targets.shape[1] + 1, 3))),
        ("a length beyond the steps", "sample 0 has 13", Batch(inputs, targets, np.full(targets.shape[1], 13))),
        ("a mask over the targets", "MaskedArray", Batch(inputs, np.ma.masked_array(targets, targets > 0))),
    )
    for label, word, batch in refused:
        _refused(
            compared, label, ShapeError, word, partial(backend.value_and_grad, _CASE.network, _LOSS, weights, batch)
        )
    trainer = backend.trainer(_CASE.network, _LOSS, AdamW())
    state = trainer.init({name: w.copy() for name, w in weights.items()})
    for label, word, packed in (
        ("packed frames of another size", "(2, 11, 12)", Batch(PackedFrames.of(inputs[..., 1:]), targets)),
        ("packed frames of fewer steps", "steps", Batch(PackedFrames.of(inputs[1:]), targets)),
        ("an empty batch of packed frames", "empty", Batch(PackedFrames.of(inputs[:, :0]), targets[:, :0])),
    ):
        _refused(compared, label, ShapeError, word, partial(trainer.step, state, packed))
    none: Any = (inputs, targets)
    _refused(
        compared,
        "arrays that are no Batch",
        ShapeError,
        "Batch",
        lambda: backend.value_and_grad(_CASE.network, _LOSS, weights, none),
    )
    _refused(compared, "training on arrays that are no Batch", ShapeError, "Batch", lambda: trainer.step(state, none))
    _refused(compared, "predicting too many steps", ShapeError, "steps", lambda: trainer.predict(state, inputs, 13))
    direct, images = bits.DIRECT, reference.data(bits.DIRECT).inputs
    no_step_counts: tuple[Any, ...] = (0, -1, 2**24 + 1, 2**31, 2**64, 10**5000, 1.5, True, None)
    for steps in no_step_counts:
        run = partial(backend.run, direct.network, reference.weights(direct), images, steps)
        _refused(compared, f"{type(steps).__name__} that is no number of steps", ShapeError, "steps", run)
    result = trainer.predict(state, inputs, 12)
    expected = list(reference.run(_CASE).layers.values())[-1].spikes
    compared.equal("spikes after the errors", result.spikes, expected)
    return compared.verdict()


def _real_targets(backend: AbstractBackend) -> Verdict:
    """A loss of real targets, and targets of other types."""
    compared, case = Compared(), bits.READOUT
    weights, (inputs, targets, _) = reference.weights(case), reference.data(case)
    unfinished = [targets.copy() for _ in range(2)]
    unfinished[0][3, 1, 2], unfinished[1][-1, 2, 0] = np.nan, -np.inf
    trainer = backend.trainer(case.network, MeanSquaredError(), AdamW())
    state = trainer.init({name: w.copy() for name, w in weights.items()})
    refused: tuple[tuple[str, type[Exception], str, AnyArray], ...] = (
        ("spike trains as real targets", ShapeError, "float32", spikes(targets.shape, 0.3, 1)),
        ("float64 targets", ShapeError, "float32", targets.astype(np.float64)),
        ("a target that is no number", NumericError, "nan at step 3 of sample 1, output 2", unfinished[0]),
        ("a target that is infinite", NumericError, "-inf at step 8 of sample 2, output 0", unfinished[1]),
        ("a mask over real targets", ShapeError, "MaskedArray", np.ma.masked_array(targets, targets > 0)),
    )
    for label, kind, word, wrong in refused:
        batch = Batch(inputs, wrong)
        gradients = partial(backend.value_and_grad, case.network, MeanSquaredError(), weights, batch)
        _refused(compared, label, kind, word, gradients)
        _refused(compared, f"an update with {label}", kind, word, partial(trainer.step, state, batch))
    for label, word, network, loss in (
        ("a loss of spikes and a readout", "mse", case.network, _LOSS),
        ("a loss of potentials and neurons that spike", "readout", _CASE.network, MeanSquaredError()),
    ):
        _refused(compared, label, SpecError, word, partial(backend.trainer, network, loss, AdamW()))
    _, result = trainer.step(state, Batch(inputs, targets))
    compared.equal("potentials after the errors", result.spikes, [*reference.run(case).layers.values()][-1].potentials)
    return compared.verdict()


def _precision(backend: AbstractBackend) -> Verdict:
    compared, weights = Compared(), reference.weights(_CASE)
    unknown: Any = "float16"
    _refused(
        compared,
        "an unknown precision",
        SpecError,
        "float16",
        lambda: backend.value_and_grad(_CASE.network, _LOSS, weights, reference.data(_CASE), precision=unknown),
    )
    network = NetworkSpec.parse("4-3", input_shape=(5,), neuron=LIF(surrogate=Logistic()))
    _refused(
        compared,
        "reproducible precision with an inexact surrogate",
        SpecError,
        "logistic",
        lambda: backend.trainer(network, _LOSS, AdamW(), precision="reproducible"),
    )
    return compared.verdict()


def _state(backend: AbstractBackend) -> Verdict:
    compared = Compared()
    trainer = backend.trainer(_CASE.network, _LOSS, AdamW())
    exported = trainer.export_state(trainer.init({n: w.copy() for n, w in reference.weights(_CASE).items()}))
    missing = {name: x for name, x in exported.items() if name != "adamw.v/conv2"}
    _refused(compared, "a state with a part missing", ShapeError, "adamw.v", lambda: trainer.import_state(missing))
    other = {**exported, "weight/conv1": exported["weight/conv1"][:3]}
    _refused(compared, "a state of another network", ShapeError, "conv1", lambda: trainer.import_state(other))
    broken = {**exported, "weight/linear3": np.full_like(exported["weight/linear3"], np.nan)}
    _refused(
        compared,
        "an update with weights that are not finite",
        NumericError,
        "linear3",
        lambda: trainer.step(trainer.import_state(broken), reference.data(_CASE)),
    )
    _refused(
        compared,
        "a prediction with weights that are not finite",
        NumericError,
        "linear3",
        lambda: trainer.predict(trainer.import_state(broken), reference.data(_CASE).inputs, _CASE.steps),
    )
    return compared.verdict()


def _overflow(backend: AbstractBackend) -> Verdict:
    compared = Compared()
    network = NetworkSpec.parse("9", input_shape=(6,), outputs=4, neuron=LIF(surrogate=FastSigmoid(1e-30)))
    weights = initial_weights(network, 0)
    # These weights reach the membrane potential. Its product with the error overflows after a few steps.
    weights["linear2"] = np.copysign(np.float32(1e30), weights["linear2"])
    batch = Batch(spikes((8, 3, 6), 0.3, 1), spikes((8, 3, 4), 0.3, 2))
    trainer = backend.trainer(network, _LOSS, AdamW())
    for label, call in (
        ("value_and_grad", lambda: backend.value_and_grad(network, _LOSS, weights, batch)),
        ("an update", lambda: trainer.step(trainer.init(weights), batch)),
    ):
        _refused(compared, f"{label} whose gradient overflows", NumericError, "the gradient of layer linear", call)
    return compared.verdict()


def _unknown(backend: AbstractBackend) -> Verdict:
    compared = Compared()
    for synapse in (_NoSuchSynapse(16, 3, padding=1), _NoSuchSynapse(3, 2)):
        layers = (SpikingLayer(synapse), SpikingLayer(Linear(3)))
        network = NetworkSpec((2, 8, 8), layers)
        frames = np.ones((3, 1, 2, 8, 8), np.uint8)
        call = partial(backend.run, network, initial_weights(network, 1), frames, 3)
        _refused(compared, "weights of a kind that the backend does not know", BackendError, "NoSuchSynapse", call)
    nodes = (
        Node("input", Input((6,))),
        Node("hidden", Linear(5), (Edge("input"),)),
        Node("fires", Neurons(LIF()), (Edge("hidden"),)),
        Node("strange", _NoSuchOperation(), (Edge("fires"),)),
        Node("out", Linear(3), (Edge("strange"),)),
        Node("output", Neurons(LIF()), (Edge("out"),)),
    )
    for name in ("NoSuchOperation", repr(backend.name)):
        label = "a network with an operation that the backend does not know"
        _refused(compared, label, BackendError, name, lambda: plan(backend, Network(nodes)))
    return compared.verdict()


def _foreign(loss: Loss, surrogate: Surrogate) -> Callable[[AbstractBackend], Verdict]:
    """Gradients and two updates with a loss or a surrogate that is not in the spec. It must not be taken for
    another."""

    def run(backend: AbstractBackend) -> Verdict:
        compared, optimizer = Compared(), AdamW(lr=0.01)
        network = NetworkSpec.parse("20-5", input_shape=(9,), neuron=LIF(3, 5 / 3, 0.5, surrogate))
        weights = initial_weights(network, 1, 3.0)
        batch = Batch(spikes((6, 2, 9), 0.4, 1), spikes((6, 2, 5), 0.4, 2))

        def computed(backend: AbstractBackend) -> tuple[ValueAndGrad, dict[str, AnyArray]]:
            result = backend.value_and_grad(network, loss, weights, batch, precision="reproducible")
            trainer = backend.trainer(network, loss, optimizer, precision="reproducible")
            state = trainer.init({name: w.copy() for name, w in weights.items()})
            for _ in range(2):
                state, _ = trainer.step(state, batch)
            return result, trainer.export_state(state)

        (expected, state), (got, native_state) = computed(reference.NUMPY), computed(backend)
        compared.same("loss", got.loss, expected.loss)
        for name, gradient in expected.gradients.items():
            compared.true(f"{name} has a gradient", bool(gradient.any()))
            compared.same_bytes(f"{name}: gradient", got.gradients[name], gradient)
        for name, x in state.items():
            compared.same_bytes(f"{name} after two updates", native_state[name], x)
        return compared.verdict()

    return run


def _devices(backend: AbstractBackend) -> Verdict:
    compared = Compared()
    names = [device.name for device in backend.devices()]
    compared.true(f"the open device {backend.device!r} is listed: {names}", backend.device in names)
    usable = [device.name for device in backend.devices() if device.problem is None]
    compared.true(f"the open device is usable: {usable}", backend.device in usable)
    for name in ("nosuch", "cuda:9999"):
        _refused(compared, f"device {name!r}", BackendError, name, partial(type(backend), name))
    for device in backend.devices():
        if device.problem is not None:
            _refused(compared, f"device {device.name}", BackendError, device.name, partial(type(backend), device.name))
    return compared.verdict()


def _check(id: str, run: Callable[[AbstractBackend], Verdict]) -> Check:
    def raised(backend: AbstractBackend) -> Verdict:
        return Verdict("raised", run(backend).values)

    return Check(7, id, raised, by_reference=False)


CHECKS = (
    _check("weights: names, shapes, dtypes, not finite", _weights),
    _check("batches: shapes, dtypes, values", _batches),
    _check("real targets: shapes, dtypes, values", _real_targets),
    _check("precision", _precision),
    _check("state of another network, not finite", _state),
    _check("gradients that overflow", _overflow),
    _check("weights of a kind that is not known", _unknown),
    _check("devices", _devices),
    *(Check(7, f"{loss.name} of somebody else", _foreign(loss, Triangle())) for loss in (_Drift(), _TwiceHamming())),
    *(Check(7, f"{h.name} of somebody else", _foreign(_LOSS, h)) for h in (_Parabola(), _TwiceTriangle())),
)
