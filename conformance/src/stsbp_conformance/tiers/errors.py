"""Tier 7: what must be refused is refused, with the right error and a message that names the place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from stsbp_spec.backend import AbstractBackend, Batch
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.losses import LOSSES, Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.neurons import LIF
from stsbp_spec.optim import AdamW
from stsbp_spec.surrogates import Logistic
from stsbp_spec.synapses import PSP, Conv2d
from stsbp_spec.typing import Float64, UInt8

from stsbp_conformance import reference
from stsbp_conformance.check import Check, Compared, Mismatch, Verdict
from stsbp_conformance.tiers import bits

__all__ = ["CHECKS"]

_CASE = bits.SMALL[1]
_LOSS = LOSSES["hamming"]


@dataclass(frozen=True)
class _NoSuchLoss(Loss):
    name: ClassVar[str] = "no-such-loss"

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        return np.zeros(spikes.shape[1])


@dataclass(frozen=True)
class _NoSuchSynapse(Conv2d):
    pass


def _refused(
    compared: Compared,
    what: str,
    kinds: type[Exception] | tuple[type[Exception], ...],
    word: str,
    call: Callable[[], Any],
) -> None:
    try:
        with np.errstate(all="ignore"):
            call()
    except kinds as error:
        compared.true(f"{what}: the message must name {word!r}, got: {error}", word.lower() in repr(error).lower())
    except Exception as error:
        raise Mismatch(f"{what}: expected {kinds}, got {type(error).__name__}: {error}") from error
    else:
        raise Mismatch(f"{what}: nothing was raised")


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
    not_finite = tuple((f"a weight that is {x}", "conv2", _changed("conv2", x)) for x in (np.nan, np.inf, -np.inf))
    for kind, cases in ((ShapeError, wrong), (NumericError, not_finite)):
        for what, word, weights in cases:
            run = partial(backend.run, _CASE.network, weights, batch.inputs, _CASE.steps)
            _refused(compared, f"run with {what}", kind, word, run)
            gradients = partial(backend.value_and_grad, _CASE.network, _LOSS, weights, batch)
            _refused(compared, f"value_and_grad with {what}", kind, word, gradients)
    return compared.verdict()


def _batches(backend: AbstractBackend) -> Verdict:
    compared, good, weights = Compared(), reference.data(_CASE), reference.weights(_CASE)
    inputs, targets = good
    for what, word, batch in (
        ("float inputs", "uint8", Batch(inputs.astype(np.float32), targets)),
        ("frames without channels", "(2, 11, 12)", Batch(inputs[:, :, 0], targets)),
        ("frames of another size", "(2, 11, 12)", Batch(inputs[..., 1:], targets)),
        ("fewer steps than targets", "steps", Batch(inputs[1:], targets)),
        ("an empty batch", "empty", Batch(inputs[:, :0], targets[:, :0])),
        ("counts above input_max", "input_max", Batch(inputs * np.uint8(2), targets)),
        ("targets of another batch", "targets", Batch(inputs, targets[:, 1:])),
        ("float targets", "uint8", Batch(inputs, targets.astype(np.float32))),
        ("targets that are no spike trains", "0 and 1", Batch(inputs, targets * np.uint8(2))),
    ):
        _refused(
            compared, what, ShapeError, word, partial(backend.value_and_grad, _CASE.network, _LOSS, weights, batch)
        )
    trainer = backend.trainer(_CASE.network, _LOSS, AdamW())
    state = trainer.init({name: w.copy() for name, w in weights.items()})
    _refused(compared, "predicting too many steps", ShapeError, "steps", lambda: trainer.predict(state, inputs, 13))
    result = trainer.predict(state, inputs, 12)
    expected = list(reference.run(_CASE).layers.values())[-1].spikes
    compared.equal("spikes after the errors", result.spikes, expected)
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
    return compared.verdict()


def _unknown(backend: AbstractBackend) -> Verdict:
    compared, kinds = Compared(), (SpecError, BackendError, LookupError, TypeError, NotImplementedError)
    weights, batch = reference.weights(_CASE), reference.data(_CASE)
    _refused(
        compared,
        "a loss that the backend does not know",
        kinds,
        "NoSuchLoss",
        lambda: backend.value_and_grad(_CASE.network, _NoSuchLoss(), weights, batch),
    )
    s, w = np.zeros((1, 1, 2, 4, 4), np.uint8), np.zeros((1, 2, 3, 3), np.float32)
    _refused(
        compared,
        "weights of a kind that the backend does not know",
        kinds,
        "NoSuchSynapse",
        lambda: backend.synapse_forward(_NoSuchSynapse(1, 3), backend.asarray(s), backend.asarray(w)),
    )
    for name, loss in LOSSES.items():
        compared.true(
            f"the loss {name} is known", backend.value_and_grad(_CASE.network, loss, weights, batch).loss >= 0
        )
    return compared.verdict()


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
    _check("precision", _precision),
    _check("state of another network, not finite", _state),
    _check("operations that are not known", _unknown),
    _check("devices", _devices),
)
