"""Tier 8: a batch in parts, as micro-batches and in several processes, must give the same bits as the whole batch.

These cases contain every part of a step that depends on the whole batch: dropout masks, the factor 1/B, error grids,
learned parameters and delays, statistics of batch normalisation, clipping by the norm, and the reported values. They
also contain the grids of a recurrence and rate penalties, which do not depend on the batch. Slices are even, uneven and
empty.
Processes are real ones (process.py), connected by the backend's own means.
"""

from __future__ import annotations

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.operations import Operations
from stsbp_spec.registry import installed_backends, load_backend

from stsbp_conformance import process, reference
from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.check import Check, Compared, Unavailable, Verdict
from stsbp_conformance.process import CASES, LEARNED_DELAYS, NORMALISED, PENALISED, RECURRENT, UPDATES
from stsbp_conformance.tiers.bits import (
    CONCATENATED,
    GEOMETRY,
    LENGTHS,
    NORMALISED_DIRECT,
    PENALISED_LENGTHS,
    READOUT_LENGTHS,
)
from stsbp_conformance.tiers.reproducible import LATE_SATURATED, OPTIMIZER

__all__ = ["BEFORE", "CASES", "CHECKS", "UPDATES"]

BEFORE = {
    CASES[0].id: "f2c02fe55cc9b4af3931dc0e1cbd79292cdeaf08fefd5ed03c3289a41a0f8a5c",
    CASES[1].id: "c2e705acd59610a7bd91001117c6edd10833527f7f332b11bc271f757c4a3be4",
}
"""SHA-256 of weights and moments after 20 updates. They were computed at commit bceefbc, before batches had parts."""


def _compare(compared: Compared, label: str, got: process.Trained, expected: process.Trained) -> None:
    compared.same(f"{label}: steps", got.steps, expected.steps)
    compared.same(f"{label}: weights", got.weights, expected.weights)


def _in_one_batch(case: NetworkCase, updates: int) -> process.Trained:
    return process.Trained.of(*reference.trained(case, UPDATES[case.id], OPTIMIZER, updates))


def _micro_batches(case: NetworkCase, size: int) -> Check:
    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        trainer = reference.trainer_on(backend, case, UPDATES[case.id], OPTIMIZER, micro_batch=size)
        trained = process.Trained.of(*reference.train(trainer, case, 3))
        _compare(compared, f"micro-batches of {size}", trained, _in_one_batch(case, 3))
        return compared.verdict()

    small_parts = ((NORMALISED, 3), (PENALISED, 3), (READOUT_LENGTHS[2], 3), (LEARNED_DELAYS, 3), (LATE_SATURATED, 1))
    quick = (case, size) in small_parts or case is PENALISED_LENGTHS
    return Check(8, f"{case.id} in micro-batches of {size}", run, quick=quick)


def _processes(size: int, updates: int, *, quick: bool) -> Check:
    # Rate penalties do not depend on the batch: in a quick check, micro-batches are enough for them.
    cases = [case for case in CASES if not quick or case in (NORMALISED, LEARNED_DELAYS)]

    def run(backend: AbstractBackend) -> Verdict:
        # Processes open a backend by its name.
        if backend.name not in installed_backends() or load_backend(backend.name) is not type(backend):
            raise Unavailable(f"{type(backend).__name__} is not the installed backend {backend.name!r}")
        if type(backend).join is Operations.join:
            raise Unavailable(f"backend {backend.name!r} computes in one process only")
        compared = Compared()
        for rank, trained in enumerate(process.started(backend, size, updates, [case.id for case in cases])):
            for case in cases:
                _compare(compared, f"{case.id}, rank {rank} of {size}", trained[case.id], _in_one_batch(case, updates))
                if updates == 20 and case.id in BEFORE:
                    compared.same(f"{case.id}: weights, before parts", trained[case.id].weights, BEFORE[case.id])
        compared.note = f"weights {_in_one_batch(cases[0], updates).weights[:16]}"
        return compared.verdict()

    return Check(8, f"{size} processes, {updates} updates", run, quick=quick, by_reference=False)


_IN_MICRO_BATCHES = (
    (CASES[0], 3), (CASES[0], 1), (CASES[1], 1), (LENGTHS, 2), (NORMALISED, 3), (NORMALISED, 1), (NORMALISED_DIRECT, 1),
    (RECURRENT, 3), (RECURRENT, 1), (GEOMETRY, 2), (CONCATENATED, 2), (PENALISED, 3), (PENALISED, 1),
    (PENALISED_LENGTHS, 2), (READOUT_LENGTHS[1], 2), (READOUT_LENGTHS[2], 3),
    (LEARNED_DELAYS, 3), (LEARNED_DELAYS, 1), (LATE_SATURATED, 1),
)  # fmt: skip

CHECKS = (
    *(_micro_batches(case, size) for case, size in _IN_MICRO_BATCHES),
    _processes(2, 3, quick=True),
    *(_processes(size, 20, quick=False) for size in (2, 3, 4)),
)
