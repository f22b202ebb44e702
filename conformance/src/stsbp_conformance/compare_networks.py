"""Compare backends with the numpy reference on random networks (random_networks.py).

    python -m stsbp_conformance.compare_networks numpy torch=cpu:eager --count 40 --seed 1 [--minutes 10]
    python -m stsbp_conformance.compare_networks torch=cpu:eager --replay 1:17

For each network, every backend computes: the spikes and potentials of all layers, in one pass, step by step, for one
sample alone and for the samples in another order; `reproducible` gradients with dropout; training updates, of whole
batches and in parts; and `fast` gradients after these updates. All bits must be those of the reference, which computes
whole batches in one pass. Gradients in `fast` precision must be within the bound of `oracles/roundoff.py`.

If a backend differs, the network is printed with the seed and number that draw it again. It is also made smaller, as
long as the difference stays. The exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, Batch, LayerRun, RunResult, ValueAndGrad
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.engine.passes import Trace, backward_pass, forward_pass
from stsbp_spec.engine.results import Prediction, StepResult
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.errors import StsbpError
from stsbp_spec.models.losses import CrossEntropy
from stsbp_spec.models.neurons import ALIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.graph import Network, Neurons
from stsbp_spec.registry import installed_backends, load_backend
from stsbp_spec.typing import AnyArray, Float32, Int64, Memory, Precision, UInt8

from stsbp_conformance.check import Compared, Mismatch
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.roundoff import Near, Potentials
from stsbp_conformance.random_networks import RandomCase, random_case, smaller
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.trainer import open_usable

__all__ = ["CHECKS", "Difference", "Reference", "compare", "first_difference", "main", "shrunk"]

OPTIMIZER = AdamW(lr=0.02, total_steps=6, warmup_steps=1, final_fraction=0.1, weight_decay=0.02, clip_norm=0.5)
_FORGET = 10
"""Number of networks after which backends forget their compiled code."""


@dataclass(frozen=True)
class Trained:
    """The result of training updates: their results, the exported state, and a prediction of the state."""

    results: list[StepResult]
    state: Mapping[str, AnyArray]
    prediction: Prediction


class Reference:
    """The data of a case, and the results of the reference. Each is computed when it is first read."""

    def __init__(self, case: RandomCase) -> None:
        self.case = case
        self.network = case.network

    @cached_property
    def weights(self) -> dict[str, Float32]:
        """Master weights."""
        return self.case.weights()

    @cached_property
    def batch(self) -> Batch:
        """Inputs, targets and lengths."""
        return self.case.data()

    @cached_property
    def run(self) -> RunResult:
        """Spikes and potentials of all layers."""
        return NUMPY.run(self.network, self.weights, self.batch.inputs, self.case.steps)

    @property
    def precision(self) -> Precision:
        """`reproducible` if it can compute the case."""
        return "reproducible" if self.case.exact else "fast"

    @cached_property
    def gradients(self) -> ValueAndGrad:
        """Gradients with dropout."""
        return pulled(NUMPY, self, self.precision)

    @cached_property
    def undropped(self) -> ValueAndGrad:
        """Gradients without dropout."""
        return pulled(NUMPY, self, self.precision, dropped=False)

    @cached_property
    def trained(self) -> Trained:
        """The result of training on whole batches."""
        return trained(trainer(NUMPY, self), self)[0]

    @cached_property
    def late(self) -> tuple[RunResult, dict[str, Near]]:
        """Spikes and potentials with dropout after the updates, and gradients with their bounds."""
        case, network = self.case, self.network
        weights = {name.removeprefix("weight/"): x for name, x in self.trained.state.items() if "weight/" in name}
        wq, grids = weights_on_grid(NUMPY, network.graph, weights)
        trace = forwarded(NUMPY, self, wq, "full")
        layers = {
            block.name: LayerRun(saved.spikes, saved.kept["u"])
            for block, (_, saved) in zip(network.blocks, trace.populations(), strict=True)
        }
        error = roundoff.exact(case.cotangents())
        near = roundoff.gradients(
            network, wq, self.batch.inputs, layers, error, potentials=_potentials(network.graph), dropout=case.dropout
        )
        return RunResult(layers, grids), near


def _potentials(graph: Network) -> Potentials:
    """The potentials with which the error analysis can compute gradients."""
    for bound_node in graph.bound_nodes:
        op = bound_node.node.op
        reads_normalised = any(edge.source in {p.name for p in graph.normalised} for edge in bound_node.node.inputs)
        if isinstance(op, Neurons) and isinstance(op.model, ALIF) and reads_normalised:
            return "float64"
    return "float32"


# What a backend computes.
def pulled(
    backend: AbstractBackend, reference: Reference, precision: Precision, *, dropped: bool = True
) -> ValueAndGrad:
    """Loss, spikes and gradients of the case."""
    dropout = reference.case.dropout if dropped else None
    return backend.value_and_grad(
        reference.network,
        reference.case.loss,
        reference.weights,
        reference.batch,
        precision=precision,
        dropout=dropout,
        rate_penalty=dict(reference.case.rate_penalty),
    )


def trainer(
    backend: AbstractBackend, reference: Reference, memory: Memory = "full", micro_batch: int | None = None
) -> Trainer[Any]:
    """A trainer for the case."""
    return backend.trainer(
        reference.network,
        reference.case.loss,
        OPTIMIZER,
        precision=reference.precision,
        seed=reference.case.dropout[0],
        memory=memory,
        micro_batch=micro_batch,
        rate_penalty=dict(reference.case.rate_penalty),
    )


def trained(trains: Trainer[Any], reference: Reference) -> tuple[Trained, Mapping[str, Any]]:
    """The result of the updates of the case, and the weights as arrays of the backend."""
    inputs, targets, lengths = reference.batch
    state = trains.init({name: w.copy() for name, w in reference.weights.items()})
    results = []
    for step in range(reference.case.updates):
        # Other targets for every update. Classes stay as they are.
        keeps = isinstance(reference.case.loss, CrossEntropy)
        batch = Batch(inputs, targets if keeps else np.roll(targets, step, axis=0), lengths)
        state, result = trains.step(state, batch)
        results.append(result)
    prediction = trains.predict(state, inputs, reference.case.steps, lengths=lengths)
    return Trained(results, trains.export_state(state), prediction), state.weights


def forwarded(backend: AbstractBackend, reference: Reference, wq: Mapping[str, Any], memory: Memory) -> Trace[Any]:
    """The forward pass of the case with dropout, without padding."""
    inputs = backend.encode(reference.batch.inputs, reference.network.coding)
    return forward_pass(
        backend, reference.network.graph, wq, inputs, reference.case.steps, reference.case.dropout, memory
    )


# The comparisons.
def _same_layers(compared: Compared, label: str, got: Mapping[str, LayerRun], expected: Mapping[str, LayerRun]) -> None:
    compared.same(f"{label}: layers", list(got), list(expected))
    for name, layer in expected.items():
        compared.same_bytes(f"{label}: potentials of {name}", got[name].potentials, layer.potentials)
        compared.equal(f"{label}: spikes of {name}", got[name].spikes, layer.spikes)


def _one_pass(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    got = backend.run(reference.network, reference.weights, reference.batch.inputs, reference.case.steps)
    _same_layers(compared, "one pass", got.layers, reference.run.layers)
    compared.same("weight grids", got.grids, reference.run.grids)


def _step_by_step(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    inputs, direct = reference.batch.inputs, reference.network.coding == "direct"
    stream = backend.stream(reference.network, reference.weights, reference.case.batch)
    for t in range(reference.case.steps):
        stream.step((inputs if t == 0 else None) if direct else inputs[t])
        at = {name: LayerRun(x.spikes[t], x.potentials[t]) for name, x in reference.run.layers.items()}
        _same_layers(compared, f"step by step, step {t}", stream.layers, at)


def _samples(inputs: UInt8, reference: Reference, samples: list[int] | Int64) -> UInt8:
    return np.take(inputs, samples, axis=int(reference.network.coding == "events"))


def _sample_alone(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    samples = [reference.case.sample]
    got = backend.run(
        reference.network, reference.weights, _samples(reference.batch.inputs, reference, samples), reference.case.steps
    )
    layers = reference.run.layers
    expected = {name: LayerRun(x.spikes[:, samples], x.potentials[:, samples]) for name, x in layers.items()}
    _same_layers(compared, f"sample {samples[0]} alone", got.layers, expected)


def _another_order(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    order = np.random.default_rng(reference.case.seed).permutation(reference.case.batch)
    inputs, targets, lengths = reference.batch
    batch = Batch(_samples(inputs, reference, order), targets[:, order], None if lengths is None else lengths[order])
    got = backend.value_and_grad(
        reference.network,
        reference.case.loss,
        reference.weights,
        batch,
        precision=reference.precision,
        rate_penalty=dict(reference.case.rate_penalty),
    )
    expected = reference.undropped
    compared.same_bytes("another order: outputs", got.spikes, expected.spikes[:, order])
    compared.same("another order: loss", got.loss, expected.loss)
    _same_gradients(compared, "another order", got, expected, reference)


def _same_gradients(
    compared: Compared, label: str, got: ValueAndGrad, expected: ValueAndGrad, reference: Reference
) -> None:
    compared.same(f"{label}: names of gradients", list(got.gradients), list(expected.gradients))
    compared.same(f"{label}: rate penalties", [*got.penalties.items()], [*expected.penalties.items()])
    if reference.precision == "fast":
        return
    for name, gradient in expected.gradients.items():
        compared.same_bytes(f"{label}: gradient of {name}", got.gradients[name], gradient)
    compared.same(f"{label}: zeroed errors", [*got.zeroed.items()], [*expected.zeroed.items()])


def _gradients(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    for precision in dict.fromkeys((reference.precision, "fast")):
        got = pulled(backend, reference, precision)
        compared.same_bytes(f"{precision} gradients: outputs", got.spikes, reference.gradients.spikes)
        compared.same(f"{precision} gradients: loss", got.loss, reference.gradients.loss)
        if precision == reference.precision:
            _same_gradients(compared, "gradients", got, reference.gradients, reference)


def _updates(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    got, weights = trained(trainer(backend, reference), reference)
    _same_updates(compared, "updates", got, reference)
    if reference.precision == "reproducible":
        _late_gradients(backend, reference, compared, weights)


def _in_parts(backend: AbstractBackend, reference: Reference, compared: Compared) -> None:
    case = reference.case
    got, _ = trained(trainer(backend, reference, case.memory, case.micro_batch), reference)
    _same_updates(compared, "updates in parts", got, reference)


def _same_updates(compared: Compared, label: str, got: Trained, reference: Reference) -> None:
    expected = reference.trained
    # In fast precision, weights differ in their last bits after the first update.
    count = reference.case.updates if reference.precision == "reproducible" else min(1, reference.case.updates)
    for step, (one, other) in enumerate(zip(got.results[:count], expected.results[:count], strict=True)):
        compared.same_bytes(f"{label}: outputs of update {step}", one.spikes, other.spikes)
        compared.same(f"{label}: loss of update {step}", one.loss, other.loss)
        compared.same(f"{label}: rates of update {step}", one.rates, other.rates)
        compared.same(f"{label}: rate penalties of update {step}", one.penalties, other.penalties)
        if reference.precision == "reproducible":
            compared.same(f"{label}: norm of update {step}", one.gradient_norm, other.gradient_norm)
            compared.same(f"{label}: zeroed errors of update {step}", one.zeroed, other.zeroed)
    if reference.precision == "reproducible":
        for name, x in expected.state.items():
            compared.same_bytes(f"{label}: {name}", got.state[name], x)
        compared.same_bytes(f"{label}: outputs of the prediction", got.prediction.spikes, expected.prediction.spikes)
        compared.same(f"{label}: rates of the prediction", got.prediction.rates, expected.prediction.rates)


def _late_gradients(
    backend: AbstractBackend, reference: Reference, compared: Compared, weights: Mapping[str, Any]
) -> None:
    """`fast` gradients with the weights that updates left, in whatever layout these have in memory."""
    expected, near = reference.late
    wq, grids = weights_on_grid(backend, reference.network.graph, weights)
    compared.same("after updates: weight grids", grids, expected.grids)
    trace = forwarded(backend, reference, wq, reference.case.memory)
    for block, (_, saved) in zip(reference.network.blocks, trace.populations(), strict=True):
        layer = expected.layers[block.name]
        spikes, potentials = backend.numpy(saved.spikes), backend.numpy(backend.neuron_potentials(saved))
        compared.equal(f"after updates: potentials of {block.name}", potentials, layer.potentials)
        compared.equal(f"after updates: spikes of {block.name}", spikes.astype(np.uint8), layer.spikes)
    gradients = backward_pass(trace, backend.asarray(reference.case.cotangents()), "fast")
    for name, x in near.items():
        compared.within(f"after updates: fast gradient of {name}", backend.numpy(gradients[name]), x, random=False)


CHECKS: Mapping[str, Callable[[AbstractBackend, Reference, Compared], None]] = {
    "one pass": _one_pass,
    "step by step": _step_by_step,
    "a sample alone": _sample_alone,
    "samples in another order": _another_order,
    "gradients": _gradients,
    "updates": _updates,
    "updates in parts": _in_parts,
}
"""The comparisons by name."""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let the libraries that have threads use `count` of them, if they are imported."""
    numba, torch = sys.modules.get("numba"), sys.modules.get("torch")
    counts = numba and numba.get_num_threads(), torch and torch.get_num_threads()
    if numba:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if numba:
            numba.set_num_threads(counts[0])
        if torch:
            torch.set_num_threads(counts[1])


def compare(backend: AbstractBackend, reference: Reference, checks: Sequence[str] = tuple(CHECKS)) -> None:
    """Compare a backend with the reference on one case.

    Raises:
        Mismatch: a value differs, or the backend raised an error. The message names the comparison.
    """
    compared = Compared()
    with _threads(reference.case.threads), np.errstate(all="ignore"):
        for name in checks:
            try:
                CHECKS[name](backend, reference, compared)
            except Mismatch:
                raise
            except Exception as error:
                raise Mismatch(f"{name}: {type(error).__name__}: {error}") from error


def computable(reference: Reference) -> bool:
    """Whether the reference can compute the case. If not, for example because a gradient overflows, it is left out."""
    try:
        with np.errstate(all="ignore"):
            _ = reference.run, reference.gradients, reference.undropped, reference.trained
            if reference.precision == "reproducible":
                _ = reference.late
    except StsbpError:
        return False
    return True


@dataclass(frozen=True)
class Difference:
    """A network on which a backend differs, and what differs."""

    case: RandomCase
    backend: str
    message: str

    def __str__(self) -> str:
        return f"{self.backend} differs: {self.message}\n{self.case}"


def first_difference(name: str, backend: AbstractBackend, reference: Reference) -> Difference | None:
    """Where a backend differs from the reference; None: nowhere."""
    try:
        compare(backend, reference)
    except Mismatch as error:
        return Difference(reference.case, name, str(error))
    return None


def shrunk(difference: Difference, backend: AbstractBackend, most: int = 60) -> Difference:
    """The difference on a smaller network: the first that still differs takes its place, up to `most` tries."""
    candidates = smaller(difference.case)
    for _ in range(most):
        if (case := next(candidates, None)) is None:
            break
        reference = Reference(case)
        if computable(reference) and (next_one := first_difference(difference.backend, backend, reference)) is not None:
            difference, candidates = next_one, smaller(case)
    return difference


def _numbers(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    if options.replay is not None:
        seed, _, number = options.replay.partition(":")
        yield int(seed), int(number)
        return
    yield from ((options.seed, number) for number in range(options.first, options.first + options.count))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stsbp_conformance.compare_networks",
        description="Compare backends with the reference on random networks.",
    )
    parser.add_argument("backends", nargs="*", metavar="BACKEND[=DEVICE]", help="default: every installed backend")
    parser.add_argument("--count", type=int, default=40, help="number of networks (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the networks (default 1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first network (default 0)")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--replay", metavar="SEED:K", help="compare network K of a seed once more")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print what differs. The exit code is 0 if nothing differs."""
    options = _arguments(arguments)

    def tell(line: str) -> None:
        print(line, flush=True)

    opened: dict[str, AbstractBackend] = {}
    for argument in options.backends or installed_backends():
        name, _, device = argument.partition("=")
        try:
            opened[argument] = open_usable(load_backend(name), device or None)
        except StsbpError as error:
            if options.backends:
                print(f"Error: {error}", file=sys.stderr)
                return 2
            tell(f"{argument} is left out: {error}")
    numbers = list(_numbers(options))
    began, left_out, done = time.monotonic(), 0, 0
    seconds = dict.fromkeys(opened, 0.0)
    differences: list[Difference] = []
    for seed, number in numbers:
        reference = Reference(random_case(seed, number))
        if options.replay is not None:
            tell(str(reference.case))
        if computable(reference):
            for argument, backend in opened.items():
                start = time.monotonic()
                difference = first_difference(argument, backend, reference)
                if difference is not None:
                    tell(f"\n{difference}\n")
                    differences.append(difference)
                    tell(f"smaller: {shrunk(difference, backend)}\n")
                seconds[argument] += time.monotonic() - start
        else:
            left_out += 1
        done += 1
        if done % _FORGET == 0:
            for backend in opened.values():
                backend.forget()
        elapsed = time.monotonic() - began
        remaining = elapsed / done * (len(numbers) - done)
        tell(
            f"network {seed}:{number}: {done} of {len(numbers)}, {60 * done / elapsed:.1f} a minute, "
            f"{remaining / 60:.1f} minutes left, {len(differences)} differences"
        )
        if options.minutes is not None and elapsed > 60 * options.minutes:
            break
    times = ", ".join(
        f"{argument} {backend_seconds / max(1, done):.1f} s" for argument, backend_seconds in seconds.items()
    )
    tell(f"{done} networks, {left_out} left out, {len(differences)} differences; per network: {times}")
    for difference in differences:
        tell(f"{difference.backend}: --replay {difference.case.id}: {difference.message}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
