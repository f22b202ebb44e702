"""Processes that train the cases of tier 8 together. `started` starts them, and each of them runs `main`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.distributed.rendezvous import free_port
from stsbp_spec.engine.backend import AbstractBackend, Batch
from stsbp_spec.engine.trainer import StepResult
from stsbp_spec.models.encoders import packed
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import load_backend
from stsbp_spec.typing import AnyArray

from stsbp_conformance import reference
from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.check import Mismatch
from stsbp_conformance.tiers.bits import (
    CONCATENATED,
    GEOMETRY,
    LENGTHS,
    NORMALISED_DIRECT,
    PENALISED_LENGTHS,
    READOUT_LENGTHS,
)
from stsbp_conformance.tiers.reproducible import LATE_SATURATED

__all__ = ["CASES", "LEARNED_DELAYS", "NORMALISED", "PENALISED", "RECURRENT", "UPDATES", "Trained", "main", "started"]

_PATIENCE = 900.0
"""Time in seconds in which processes must have compiled and trained, also on a busy machine."""


NORMALISED = NetworkCase(
    "batch normalisation, 7 samples with lengths",
    NetworkSpec.parse("4C3p1bnd0.3-P2-5C3-12bnd0.2", input_shape=(2, 8, 8), outputs=4, neuron=PLIF(3.0, 5 / 3, 0.5)),
    steps=7,
    batch=7,
    lengths=(7, 2, 5, 7, 1, 6, 3),
)

RECURRENT = NetworkCase(
    "recurrence and branches, 6 samples with lengths",
    NetworkSpec.parse("7R{delay=1}-[7{neuron=plif}]+-D0.3", input_shape=(9,), outputs=4, neuron=LIF(3.0, 5 / 3, 0.4)),
    steps=6,
    batch=6,
    gain=3.0,
    density=0.3,
    lengths=(6, 2, 4, 6, 1, 3),
)

PENALISED = NetworkCase(
    "rate penalty, 7 samples",
    NetworkSpec.parse("4C3p1d0.3-P2-5C3R3-12d0.2", input_shape=(2, 8, 8), outputs=4, neuron=PLIF(3.0, 5 / 3, 0.5)),
    steps=7,
    batch=7,
    rate_penalty=(("conv1", RatePenalty(0.05, 10.0)), ("conv2", RatePenalty(0.1, 3.0)), ("linear4", RatePenalty(0, 1))),
)

LEARNED_DELAYS = NetworkCase(
    "learned delays, 7 samples with lengths",
    NetworkSpec.parse("T2-4C3p1bn-T4-P2-D0.3-T3-7R", input_shape=(2, 6, 6), outputs=4, neuron=LIF(3.0, 5 / 3, 0.4)),
    steps=7,
    batch=7,
    gain=3.0,
    density=0.3,
    lengths=(7, 2, 5, 7, 1, 6, 3),
)

CASES = (
    # 45 neurons before the second dropout. The masks of all samples but the first begin in the middle of a random word.
    NetworkCase(
        "events, 7 samples",
        NetworkSpec.parse("4C3p1d0.3-P2-5C3-12d0.2", input_shape=(2, 10, 10), outputs=4, neuron=PLIF(3.0, 5 / 3, 0.5)),
        steps=7,
        batch=7,
    ),
    NetworkCase(
        "direct coding, 2 samples",
        NetworkSpec.parse("4C3-P2-9d0.3", input_shape=(3, 9, 9), outputs=5, coding="direct", neuron=LIF(3, 5 / 3, 0.5)),
        steps=5,
        batch=2,
        gain=3.0,
    ),
    LENGTHS,
    NORMALISED,
    NORMALISED_DIRECT,
    RECURRENT,
    GEOMETRY,
    CONCATENATED,
    PENALISED,
    PENALISED_LENGTHS,
    *READOUT_LENGTHS[1:3],
    LEARNED_DELAYS,
    LATE_SATURATED,
)
_LOSSES = (
    *("van-rossum", "hamming", "spike-count", "van-rossum", "hamming", "van-rossum", "hamming", "van-rossum"),
    *("van-rossum", "hamming", "mse", "mse", "van-rossum", "van-rossum"),
)
UPDATES = {case.id: loss for case, loss in zip(CASES, _LOSSES, strict=True)}
"""The loss with which each case is trained."""


@dataclass(frozen=True)
class Trained:
    """The results of a training run.

    Attributes:
        weights: SHA-256 of weights and moments.
        steps: results of each update: SHA-256 of the spikes, gradient norm, spike rates, zeroed errors, rate
            penalties.
    """

    weights: str
    steps: list[list[Any]]

    @classmethod
    def of(cls, state: Mapping[str, AnyArray], results: Sequence[StepResult]) -> Trained:
        """The results from an exported state and the results of the steps."""
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode() + b"\0" + state[name].tobytes())
        steps = [
            [
                hashlib.sha256(r.spikes.tobytes()).hexdigest(),
                r.gradient_norm,
                *([*numbers.items()] for numbers in (r.rates, r.zeroed, r.penalties)),
            ]
            for r in results
        ]
        return cls(digest.hexdigest(), json.loads(json.dumps(steps)))


def started(backend: AbstractBackend, size: int, updates: int, cases: Sequence[str]) -> list[dict[str, Trained]]:
    """The results of each of `size` processes of a backend, by case.

    Raises:
        Mismatch: a process ended with an error. The message contains it.
    """
    arguments = (backend.name, backend.device, str(free_port()), str(size), str(updates))
    command = [sys.executable, "-m", __spec__.name, *arguments]
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    results = []
    with contextlib.ExitStack() as stack:
        running, outputs, logs = list[subprocess.Popen[bytes]](), list[IO[str]](), list[IO[str]]()
        for rank in range(size):
            # Files, not pipes: a process that fills the buffer of a pipe waits until somebody reads it.
            outputs.append(stack.enter_context(tempfile.TemporaryFile("w+")))
            logs.append(stack.enter_context(tempfile.TemporaryFile("w+")))
            process = subprocess.Popen(
                [*command, str(rank), *cases], stdout=outputs[-1], stderr=logs[-1], env={**os.environ, **threads}
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        end = time.monotonic() + _PATIENCE
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(command, _PATIENCE)
            time.sleep(0.05)
        # The process that ends first has the cause. The others only miss it, and end later.
        if any(codes):
            raise Mismatch("; ".join(_failure(rank, code, logs[rank]) for rank, code in enumerate(codes) if code))
        for output in outputs:
            output.seek(0)
            last_line = output.read().splitlines()[-1]
            results.append({name: Trained(**fields) for name, fields in json.loads(last_line).items()})
    return results


def _failure(rank: int, code: int, log: IO[str]) -> str:
    log.seek(0)
    return f"rank {rank} ended with exit code {code}: {log.read().strip()[-2000:]}"


def _part_of_batch(case: NetworkCase, collective: Collective, step: int) -> Batch[packed.Inputs]:
    """The inputs of this process's part of a batch, and the targets of the whole batch."""
    inputs, targets, lengths = reference.rolled(case, step)
    part, axis = collective.parts(case.batch)[collective.rank], int(case.network.coding == "events")
    return Batch(packed.of_part(inputs, part, axis), targets, lengths)


def main(arguments: Sequence[str]) -> None:
    """Train cases together with the other processes, and print the results as JSON."""
    from stsbp_conformance.tiers.reproducible import OPTIMIZER

    name, device, port, size, updates, rank, *cases = arguments
    rendezvous = Rendezvous(int(rank), int(size), int(rank), "127.0.0.1", int(port))
    kind = load_backend(name)
    kind.connect(rendezvous, device)
    backend = kind(device)
    collective = backend.join(rendezvous)
    trained = {}
    for case in CASES:
        if case.id in cases:
            trainer = reference.trainer_on(backend, case, UPDATES[case.id], OPTIMIZER, collective=collective)
            state = trainer.init({name: w.copy() for name, w in reference.weights(case).items()})
            results = []
            for step in range(int(updates)):
                state, result = trainer.step(state, _part_of_batch(case, collective, step))
                results.append(result)
            trained[case.id] = asdict(Trained.of(trainer.export_state(state), results))
    collective.close()
    print(json.dumps(trained))


if __name__ == "__main__":
    main(sys.argv[1:])
