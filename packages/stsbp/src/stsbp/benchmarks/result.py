"""What a measurement is: one row, and the report that rows and machine make together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from stsbp.benchmarks.timing import Timing
from stsbp.files import OutputKind

__all__ = ["FORMAT", "JSON", "Report", "Row", "Tell"]

FORMAT = 1
"""Of the JSON file."""

JSON = OutputKind("a report of stsbp benchmark", re.compile(rb'\s*{\s*"format":\s*\d+,\s*"machine":'))
"""What the JSON file may replace."""

Tell: TypeAlias = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        group: `kernels`, `step` or `data`.
        case: sizes, for example `T=25 N=2000000`, or a network.
        what: for example `lif forward`.
        timing: times; None where something else was measured.
        floor: name of what it is compared with; empty: nothing.
        ratio: of the floor's speed for kernels (1 is the best), of the floor's time for steps (less is better).
        detail: everything else, as JSON values: bytes moved, bandwidth, spike rates, memory.
    """

    group: str
    case: str
    what: str
    timing: Timing | None = None
    floor: str = ""
    ratio: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the report's file holds it; times in seconds."""
        return {
            "group": self.group,
            "case": self.case,
            "what": self.what,
            "seconds": self.timing.to_json() if self.timing is not None else None,
            "floor": self.floor,
            "ratio": self.ratio,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Report:
    """Rows, and what they were measured on (`device.describe`)."""

    machine: dict[str, Any]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        return {"format": FORMAT, "machine": self.machine, "rows": [row.to_json() for row in self.rows]}

    def write(self, path: Path) -> None:
        """Write the report as JSON.

        Raises:
            FileError: the system refused, or something else is there.
        """
        JSON.write(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())
