"""Tests of the suite with faulty printers of the backends. Each fault changes the printed code, and a check must fail.

`faults` changes the printer for numpy. This module applies the same faults to the code that each other backend
prints and compiles in its own language. Compiled code stays as long as the process, so each fault needs its own
process. `python -m stsbp_conformance.printers torch PrinterFuses` prints the check that fails, and ends with an error
if none does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import Language
from stsbp_spec.errors import StsbpError
from stsbp_spec.registry import open_backend

from stsbp_conformance.check import Check, Mismatch
from stsbp_conformance.faults import BACKENDS
from stsbp_conformance.tiers import neurons

__all__ = ["PRINTERS", "RULES", "Printer", "checks", "seen_by"]


class Printer(NamedTuple):
    """The printer of a backend.

    Attributes:
        device: device of the backend.
        module: module whose functions `prints` print code.
        fused: pattern of a fused multiply-add in its language; None: its compiler fuses everything that is not
            protected.
    """

    device: str
    module: str
    prints: tuple[str, ...]
    fused: str | None


PRINTERS = {
    # For numba: in double precision, which holds the exact product of two float32 numbers.
    "torch": Printer(
        "cpu", "stsbp_cpu.equations.printers", ("lines", "function"), "float32({0} * 1.0 * {1} + {2} * 1.0)"
    ),
    "jax": Printer("cpu:xla", "stsbp_jax.equations.recurrence", ("compiled",), None),
    "cupy": Printer("host", "stsbp_cupy.equations.recurrence", ("lines",), "__builtin_fmaf({0}, {1}, {2})"),
}
"""Printers by backend. numpy's printer is tested in `faults`."""

RULES = ("PrinterFuses", "PrinterDropsASnap", "PrinterSwapsOperands")
"""The faults of printers, by name."""


def _spoil(printer: Printer, rule: str) -> None:
    """Make the printer faulty from now on."""
    module: Any = importlib.import_module(printer.module)
    backend: Any = BACKENDS[rule]

    def spoilt(real: Any) -> Any:
        def wrong(recurrence: Recurrence, language: Language, *args: Any) -> Any:
            if rule == "PrinterFuses" and printer.fused is None:
                return real(recurrence, replace(language, wrappers={**language.wrappers, "mul": "{0}"}), *args)
            fused = {} if printer.fused is None else {"fma": printer.fused}
            language = replace(language, operations={**language.operations, **fused})
            return real(backend.written(recurrence), language, *args)

        return wrong

    for name in printer.prints:
        setattr(module, name, spoilt(getattr(module, name)))


def checks() -> Iterator[Check]:
    """The checks that are run: for one model with each reset and one with a moving threshold, but not all
    surrogates."""
    for model in neurons.MODELS:
        yield from (check for check in neurons.checks(model) if not check.id.endswith("every surrogate"))


def seen_by(backend: str, rule: str) -> str | None:
    """The first check that fails on a backend with a faulty printer; None: all pass. Call it once per process."""
    printer = PRINTERS[backend]
    opened = open_backend(backend, printer.device)
    _spoil(printer, rule)
    for check in checks():
        try:
            check.run(opened)
        except (Mismatch, StsbpError) as error:
            return f"{check.id}: {error}"
    return None


def main() -> None:
    """Make the printer of a backend faulty. Backend and fault are arguments."""
    backend, name = sys.argv[1:]
    outcome = seen_by(backend, name)
    print(outcome or "NOT SEEN")
    sys.exit(outcome is None)


if __name__ == "__main__":
    main()
