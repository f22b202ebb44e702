"""Results of the numpy reference for a case. They are computed once per session, and used for all tested backends."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend, Batch, RunResult, ValueAndGrad
from stsbp_spec.engine.trainer import StepResult, Trainer
from stsbp_spec.models.optim import Optimizer
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, Precision

from stsbp_conformance.cases import EXACT_LOSSES, NetworkCase

__all__ = [
    "NUMPY",
    "checksum",
    "data",
    "gradients",
    "gradients_on",
    "rolled",
    "run",
    "train",
    "trained",
    "trainer_on",
    "weights",
]

NUMPY = NumpyBackend()


@lru_cache(maxsize=4)
def weights(case: NetworkCase) -> dict[str, Float32]:
    """The case's master weights. Do not write to them."""
    drawn = case.weights()
    for w in drawn.values():
        w.setflags(write=False)
    return drawn


@cache
def data(case: NetworkCase) -> Batch:
    """The case's inputs and targets. Do not write to them."""
    batch = case.data()
    for x in batch:
        if x is not None:
            x.setflags(write=False)
    return batch


@cache
def run(case: NetworkCase) -> RunResult:
    """`run` of the reference."""
    return NUMPY.run(case.network, weights(case), data(case).inputs, case.steps)


def gradients_on(
    backend: AbstractBackend, case: NetworkCase, loss: str, precision: Precision, dropout: tuple[int, int] | None
) -> ValueAndGrad:
    """`value_and_grad` of a backend."""
    return backend.value_and_grad(
        case.network,
        EXACT_LOSSES[loss],
        weights(case),
        data(case),
        precision=precision,
        dropout=dropout,
        rate_penalty=dict(case.rate_penalty),
    )


@cache
def gradients(case: NetworkCase, loss: str, precision: Precision, dropout: tuple[int, int] | None) -> ValueAndGrad:
    """`value_and_grad` of the reference."""
    return gradients_on(NUMPY, case, loss, precision, dropout)


def trainer_on(
    backend: AbstractBackend,
    case: NetworkCase,
    loss: str,
    optimizer: Optimizer,
    precision: Precision = "reproducible",
    **options: Any,
) -> Trainer:
    """A trainer of a backend for a case. `options` are other arguments of `AbstractBackend.trainer`."""
    return backend.trainer(
        case.network,
        EXACT_LOSSES[loss],
        optimizer,
        precision=precision,
        seed=7,
        rate_penalty=dict(case.rate_penalty),
        **options,
    )


@cache
def trained(
    case: NetworkCase, loss: str, optimizer: Optimizer, steps: int, frozen: tuple[str, ...] = ()
) -> tuple[dict[str, AnyArray], list[StepResult]]:
    """State and results of `steps` updates of the reference in `reproducible` precision."""
    return train(trainer_on(NUMPY, case, loss, optimizer, frozen=frozen), case, steps)


def train(trainer: Trainer, case: NetworkCase, steps: int) -> tuple[dict[str, AnyArray], list[StepResult]]:
    """Exported state and results after `steps` updates, each on a different `rolled` batch."""
    state = trainer.init({name: w.copy() for name, w in weights(case).items()})
    results = []
    for step in range(steps):
        state, result = trainer.step(state, rolled(case, step))
        results.append(result)
    return trainer.export_state(state), results


def rolled(case: NetworkCase, step: int) -> Batch:
    """The case's batch, with its targets shifted by `step` time steps, so that all updates differ."""
    inputs, targets, lengths = data(case)
    return Batch(inputs, np.roll(targets, step, axis=0), lengths)


def checksum(state: dict[str, AnyArray]) -> str:
    """SHA-256 of the weights' bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("weight/")):
        digest.update(name.encode() + b"\0" + state[name].astype("<f4").tobytes())
    return digest.hexdigest()
