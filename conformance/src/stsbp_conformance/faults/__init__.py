"""Tests of the suite itself: each backend here is wrong in one place, and the suite must fail on each of them.

The faults are rows of tables, in modules by subject. A row has a name, a sentence that says what is wrong, and the
numpy backend with one change, which a function of `changes` makes: for example, `method` replaces a method, and
`equation` an equation. To add a fault, add a row to the table of its subject:

    Fault("TransposedKernel", "A true convolution: the kernel's rows and columns run backwards.",
          rule(Conv2d, forward=lambda correct, conv, s, wq: correct(conv, s, wq[..., ::-1, ::-1])))

`correct` is the function that the change replaces. Only a change that is no short lambda needs a function of its own,
above the table. Then write the published table anew: `python -m stsbp_conformance.faults docs/conformance/faults.json`
prints and writes all faults with the tiers that detect them, and `stsbp_conformance.page` makes docs/conformance.md of
it. `caught(backend)` runs the quick checks of all tiers on one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from stsbp_spec.errors import NumericError
from stsbp_spec.reference.backend import NumpyBackend

from stsbp_conformance.check import Check, Mismatch, Unavailable
from stsbp_conformance.faults import connections, delays, equations, operations, training
from stsbp_conformance.faults.changes import Fault, Miswritten
from stsbp_conformance.tiers import (
    bits,
    elementwise,
    errors,
    expressions,
    gradients,
    neurons,
    pairs,
    parts,
    rational,
    reproducible,
    trainer,
)

__all__ = ["BACKENDS", "FAULTS", "Fault", "caught", "caught_by", "quick_checks"]

FAULTS: tuple[Fault, ...] = (
    *equations.NEURONS,
    *connections.FAULTS,
    *equations.PRINTED,
    *operations.FAULTS,
    *training.FAULTS,
    *delays.FAULTS,
)

BACKENDS: Mapping[str, type[NumpyBackend]] = {fault.name: fault.backend for fault in FAULTS}
"""The faulty backends by the names of their faults."""

_TIERS = (rational, bits, gradients, reproducible, pairs, elementwise, expressions, neurons, trainer, errors, parts)


def quick_checks() -> tuple[Check, ...]:
    """All quick checks of all tiers."""
    checks_by_tier = (module.CHECKS for module in _TIERS)
    return tuple(check for checks in checks_by_tier for check in checks if check.quick)


def _fails(check: Check, backend: NumpyBackend) -> bool:
    """Whether a check fails on a backend. One that cannot run here does not."""
    try:
        with np.errstate(all="ignore"):
            check.run(backend)
    except Unavailable:
        return False
    except Exception as error:  # a mismatch, or an error instead of a result: either fails the suite
        if isinstance(backend, Miswritten) and not isinstance(error, (Mismatch, NumericError)):
            raise  # such a fault gives wrong numbers, and no other errors
        return True
    return False


def caught(backend: NumpyBackend) -> dict[int, list[str]]:
    """Names of the quick checks that fail on a backend, by tier."""
    failed: dict[int, list[str]] = {}
    for check in quick_checks():
        if _fails(check, backend):
            failed.setdefault(check.tier, []).append(check.id)
    return failed


def caught_by(backend: NumpyBackend, name: str) -> bool:
    """Whether the quick check of this name fails on a backend."""
    (check,) = (check for check in quick_checks() if check.id == name)
    return _fails(check, backend)
