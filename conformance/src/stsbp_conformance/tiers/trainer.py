"""Tier 6: the trainer: its reports, its exports, and runs that one backend begins and another one continues."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache, partial

import numpy as np
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.trainer import StepResult, Trainer, TrainState
from stsbp_spec.errors import BackendError
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import Optimizer
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import installed_backends, load_backend
from stsbp_spec.typing import AnyArray, Precision

from stsbp_conformance import reference
from stsbp_conformance.cases import EXACT_LOSSES, NetworkCase
from stsbp_conformance.check import Check, Compared, Unavailable, Verdict
from stsbp_conformance.tiers import bits
from stsbp_conformance.tiers.reproducible import OPTIMIZER, OTHER_OPTIMIZERS, SATURATED, SMALL, TRAINED

__all__ = ["CHECKS", "MANY", "MANY_READOUTS", "open_usable", "resume_check", "shuffled"]

CASE = SMALL[0]
_PREFIXES = {"adamw": ("adamw.m", "adamw.v"), "adam": ("adam.m", "adam.v"), "sgd": ("sgd.momentum",)}
"""Names of the moments in exported states, by optimiser. Checkpoints contain them, so they must not change."""


def open_usable(backend: type[AbstractBackend], device: str | None = None) -> AbstractBackend:
    """Open `device`. Without one, open the default device or, if that cannot be used, the first listed usable device.

    Raises:
        BackendError: the device, or every device, cannot be used.
    """
    try:
        return backend(device)
    except BackendError:
        usable = [d.name for d in backend.devices() if d.problem is None]
        if device is not None or not usable:
            raise
        return backend(usable[0])


def _trainer(
    backend: AbstractBackend,
    case: NetworkCase,
    loss: str,
    precision: Precision = "reproducible",
    optimizer: Optimizer = OPTIMIZER,
) -> Trainer:
    return reference.trainer_on(backend, case, loss, optimizer, precision)


def _fresh(case: NetworkCase) -> dict[str, AnyArray]:
    return {name: w.copy() for name, w in reference.weights(case).items()}


def _compare_results(compared: Compared, label: str, got: StepResult, expected: StepResult) -> None:
    compared.same(f"{label}: loss", got.loss, expected.loss)
    compared.same_bytes(f"{label}: spikes", got.spikes, expected.spikes)
    compared.same(f"{label}: spike rates", got.rates, expected.rates)
    compared.same(f"{label}: weight grids", got.grids, expected.grids)
    compared.same(f"{label}: learning rate", got.learning_rate, expected.learning_rate)


def _metrics(case: NetworkCase, loss: str) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        _, expected = reference.trained(case, loss, OPTIMIZER, 20)
        _, results = reference.train(_trainer(backend, case, loss), case, 6)
        for step, (got, expected_result) in enumerate(zip(results, expected[:6], strict=True)):
            _compare_results(compared, f"step {step}", got, expected_result)
            compared.same(f"step {step}: gradient norm", got.gradient_norm, expected_result.gradient_norm)
            compared.same(f"step {step}: zeroed errors", list(got.zeroed.items()), list(expected_result.zeroed.items()))
        # In `fast` precision, the first update starts from the same weights, so its metrics are also the same.
        _, fast = reference.train(_trainer(backend, case, loss, "fast"), case, 1)
        _compare_results(compared, "fast", fast[0], expected[0])
        compared.same("fast: zeroed errors", fast[0].zeroed, {})
        return compared.verdict()

    return Check(6, f"metrics: {case.id}, {loss}", run)


# Without dropout, whose masks depend on the position in the batch, and with enough samples for order to matter in sums.
MANY = NetworkCase(
    "24 samples",
    NetworkSpec.parse("12", input_shape=(20,), outputs=9, neuron=LIF(3, 5 / 3, 0.4)),
    steps=9,
    batch=24,
    density=0.3,
)
MANY_READOUTS = replace(
    MANY,
    id="24 samples, a readout",
    network=NetworkSpec.parse("12-9{neuron=readout}", input_shape=(20,), neuron=LIF(3, 5 / 3, 0.4)),
)


def shuffled(case: NetworkCase, number: int) -> Batch:
    """The case's batch with its samples in another order."""
    order = permutation(number, Stream.SHUFFLE, case.batch)
    inputs, targets, _ = reference.data(case)
    return Batch(inputs[:, order], targets[:, order])


def _order(loss: str, case: NetworkCase = MANY) -> Check:
    """The order of the samples must not change the loss, not even in its last bit."""

    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        expected = reference.gradients(case, loss, "fast", None).loss
        for number in range(6):
            batch = shuffled(case, number)
            computed = backend.value_and_grad(case.network, EXACT_LOSSES[loss], reference.weights(case), batch)
            compared.same(f"loss, order {number}", computed.loss, expected)
            trainer = _trainer(backend, case, loss, "fast")
            _, result = trainer.step(trainer.init(_fresh(case)), batch)
            compared.same(f"loss of an update, order {number}", result.loss, expected)
        return compared.verdict()

    return Check(6, f"samples in another order: {loss}", run)


def _packed(case: NetworkCase) -> Check:
    """Frames that are stored as bits must train in the same way as unpacked frames."""

    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        batch = reference.data(case)
        bits = PackedFrames.of(batch.inputs)
        outputs = []
        for inputs in (batch.inputs, bits):
            trainer = _trainer(backend, case, "van-rossum")
            state, result = trainer.step(trainer.init(_fresh(case)), Batch(inputs, batch.targets))
            outputs.append((result, trainer.export_state(state), trainer.predict(state, inputs, case.steps)))
        (result, exported, predicted), (of_bits, exported_of_bits, predicted_of_bits) = outputs
        _compare_results(compared, "bits", of_bits, result)
        compared.same_bytes("spikes of a prediction", predicted_of_bits.spikes, predicted.spikes)
        for name, x in exported.items():
            compared.same_bytes(name, exported_of_bits[name], x)
        return compared.verdict()

    return Check(6, f"frames as bits: {case.id}", run)


def _predict(case: NetworkCase) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        trainer = _trainer(backend, case, "van-rossum")
        state = trainer.init(_fresh(case))
        initial = trainer.export_state(state)
        inputs = reference.data(case).inputs
        prediction = trainer.predict(state, inputs, case.steps)
        layers = reference.run(case).layers
        compared.same_bytes("spikes", prediction.spikes, list(layers.values())[-1].spikes)
        rates = {name: float(np.count_nonzero(x.spikes)) / x.spikes.size for name, x in layers.items()}
        compared.same("spike rates", prediction.rates, rates)
        for name, x in trainer.export_state(state).items():
            compared.same_bytes(f"{name} after predicting", x, initial[name])
        return compared.verdict()

    return Check(6, f"prediction: {case.id}", run)


def _export(optimizer: Optimizer, backend: AbstractBackend) -> Verdict:
    compared = Compared()
    trainer, weights = _trainer(backend, CASE, "van-rossum", optimizer=optimizer), _fresh(CASE)
    state = trainer.init(weights)
    exported = trainer.export_state(state)
    names = {"step", *(f"{part}/{name}" for part in ("weight", *_PREFIXES[optimizer.name]) for name in weights)}
    compared.same("names", sorted(exported), sorted(names))
    compared.same("step", (int(exported["step"]), exported["step"].dtype), (0, np.dtype(np.int64)))
    for name, w in weights.items():
        compared.same_bytes(f"weight/{name}", exported[f"weight/{name}"], w)
        for prefix in _PREFIXES[optimizer.name]:
            compared.true(f"{prefix}/{name} begins at zero", not exported[f"{prefix}/{name}"].any())
    copies = {name: x.copy() for name, x in exported.items()}
    for step in range(3):
        state, _ = trainer.step(state, reference.rolled(CASE, step))
    for name, x in copies.items():
        compared.same_bytes(f"exported {name} after later updates", exported[name], x)
    for name, w in reference.weights(CASE).items():
        compared.same_bytes(f"the caller's {name} after updates", weights[name], w)
    final = trainer.export_state(state)
    compared.same("step after 3 updates", int(final["step"]), 3)
    imported = trainer.import_state({name: x.copy() for name, x in final.items()})
    for name, x in trainer.export_state(imported).items():
        compared.same_bytes(f"{name} imported and exported", x, final[name])
    return compared.verdict()


def _through_a_file(exported: dict[str, AnyArray]) -> dict[str, AnyArray]:
    stream = io.BytesIO()
    np.savez(stream, **exported)  # type: ignore[arg-type]
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _train(trainer: Trainer, case: NetworkCase, state: TrainState, steps: range) -> TrainState:
    for step in steps:
        state, _ = trainer.step(state, reference.rolled(case, step))
    return state


@cache
def _partner(name: str) -> AbstractBackend:
    return open_usable(load_backend(name))


def resume_check(other: str, optimizer: Optimizer = OPTIMIZER, case: NetworkCase = CASE) -> Check:
    """A run begun on the tested backend and continued on `other`, and the reverse, must give the reference's
    weights."""

    def run(backend: AbstractBackend) -> Verdict:
        try:
            partner = _partner(other)
        except BackendError as error:
            raise Unavailable(f"{other} cannot run: {error}") from None
        compared = Compared()
        half_way, expected = (reference.trained(case, "van-rossum", optimizer, updates)[0] for updates in (3, 6))
        for first, second in ((backend, partner), (partner, backend)):
            begin, go_on = (_trainer(b, case, "van-rossum", optimizer=optimizer) for b in (first, second))
            state = _train(begin, case, begin.init(_fresh(case)), range(3))
            written = _through_a_file(begin.export_state(state))
            for name, x in half_way.items():
                compared.same_bytes(f"{name} written by {first.name}", written[name], x)
            resumed = go_on.import_state(written)
            inputs = reference.data(case).inputs
            spikes = begin.predict(state, inputs, case.steps).spikes
            compared.same_bytes("spikes after resuming", go_on.predict(resumed, inputs, case.steps).spikes, spikes)
            final = go_on.export_state(_train(go_on, case, resumed, range(3, 6)))
            for name, x in expected.items():
                compared.same_bytes(f"{name}, {first.name} then {second.name}", final[name], x)
        compared.note = f"weights {reference.checksum(expected)[:16]}"
        return compared.verdict()

    # If every backend exchanges states with numpy, all pairs can exchange them. Others are only in the full matrix.
    of = "" if optimizer is OPTIMIZER else f" of {type(optimizer).__name__}"
    of += "" if case is CASE else f" with {case.id}"
    return Check(6, f"a run{of} begun here and resumed on {other}, and back", run, quick=other == "numpy")


CHECKS = (
    *(_metrics(case, loss) for case, loss in TRAINED),
    _metrics(SATURATED, "van-rossum"),
    _metrics(bits.READOUT_LENGTHS[0], "mse"),
    _metrics(bits.LEARNED_DELAYS_LENGTHS[1], "van-rossum"),
    # Hamming distances are integers, which always add exactly.
    *(_order(loss) for loss in ("van-rossum", "spike-count")),
    _order("mse", MANY_READOUTS),
    _packed(bits.SMALL[0]),
    _predict(bits.SMALL[1]),
    _predict(bits.DIRECT),
    _predict(bits.LEARNED_DELAYS[0]),
    Check(6, "export and import", partial(_export, OPTIMIZER)),
    *(Check(6, f"export and import, {type(x).__name__}", partial(_export, x)) for x in OTHER_OPTIMIZERS),
    *(resume_check(name) for name in installed_backends()),
    *(resume_check("numpy", optimizer) for optimizer in OTHER_OPTIMIZERS),
    resume_check("numpy", case=bits.LEARNED_DELAYS[1]),
)
