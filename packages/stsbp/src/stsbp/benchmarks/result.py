"""The result of a measurement: a row; and the report, which consists of rows and a description of the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from stsbp.benchmarks.timing import Timing
from stsbp.files import OutputKind

__all__ = ["FORMAT", "JSON", "Announce", "Report", "Row"]

FORMAT = 1
"""Format version of the JSON file."""

JSON = OutputKind("a report of stsbp benchmark", re.compile(rb'\s*{\s*"format":\s*\d+,\s*"machine":'))
"""The kind of file that the JSON file may replace."""

Announce: TypeAlias = Callable[[str], None]
"""Function that receives what is measured next."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        group: `kernels`, `step` or `data`.
        case: sizes, for example `T=25 N=2000000`, or a network.
        what: what was measured, for example `lif forward`.
        timing: times; None if something else was measured.
        floor: name of the lower bound to compare with; empty: there is none.
        ratio: for kernels, the speed as a fraction of the bound's (1 is best). For steps, the time as a multiple of the
            bound's (less is better).
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
        """The row in the form of the report's file. Times are in seconds."""
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
    """Rows, and a description of the machine (`device.describe`)."""

    machine: dict[str, Any]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        return {"format": FORMAT, "machine": self.machine, "rows": [row.to_json() for row in self.rows]}

    def write(self, path: Path) -> None:
        """Write the report as JSON.

        Raises:
            FileError: the system refused, or an existing file is of another kind.
        """
        JSON.write(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())
