"""The matrix of cases and backends, as text for the terminal and as JSON for the page."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

from stsbp_spec.contract.grid import CONTRACT_VERSION

from stsbp_conformance import __version__

__all__ = ["TIERS", "save", "short", "text"]

TIERS = {
    1: "rational oracle: exact fractions, tolerance zero",
    2: "spikes and membrane potentials, bit for bit",
    3: "fast gradients against float64, within the bound",
    4: "reproducible gradients and updates, bit for bit",
    5: "each operation's pair alone",
    6: "trainer: metrics, checkpoints, resuming on another backend",
    7: "errors",
    8: "a batch in parts: micro-batches and several processes, bit for bit",
}
"""What each tier proves."""


def short(cell: dict[str, Any]) -> str:
    """One cell: `equal`, `bound 0.31 / 1.9`, `FAILED` or `skipped`.

    For a bound: the largest distance as a fraction of its bound, and as a multiple of its spread.
    """
    if cell["result"] != "passed":
        return "FAILED" if cell["result"] == "failed" else "skipped"
    if cell["margin"] is None:
        return str(cell["kind"])
    spreads = cell.get("spreads")  # results of earlier versions do not have it
    return f"bound {cell['margin']:.2g}" + (f" / {spreads:.1f}" if spreads is not None else "")


def text(cells: list[dict[str, Any]], backends: dict[str, dict[str, Any]]) -> str:
    """The matrix for the terminal."""
    columns = list(dict.fromkeys(cell["backend"] for cell in cells))
    by_place = {(cell["tier"], cell["case"], cell["backend"]): cell for cell in cells}
    cases = list(dict.fromkeys((cell["tier"], cell["case"]) for cell in cells))
    width = max(len(case) for _, case in cases) + 2
    widths = {column: max(len(column), 10) + 2 for column in columns}
    lines = [f"{name}: device {b['device']}, {b['description']}" for name, b in backends.items()]
    for tier in sorted({tier for tier, _ in cases}):
        lines += ["", f"tier {tier}: {TIERS[tier]}"]
        lines.append("  " + "".ljust(width) + "".join(column.ljust(widths[column]) for column in columns))
        for case in (case for t, case in cases if t == tier):
            case_cells = [by_place.get((tier, case, column)) for column in columns]
            row = [
                ("" if cell is None else short(cell)).ljust(widths[column])
                for column, cell in zip(columns, case_cells, strict=True)
            ]
            lines.append(("  " + case.ljust(width) + "".join(row)).rstrip())
    notes = dict.fromkeys(
        f"{cell['backend']}, tier {cell['tier']}, {cell['case']}: {cell['result']}: {cell['note']}"
        for cell in cells
        if cell["result"] != "passed"
    )
    lines += ["", *notes]
    for column in columns:
        column_cells = [cell for cell in cells if cell["backend"] == column]
        count = {
            result: sum(cell["result"] == result for cell in column_cells) for result in ("passed", "failed", "skipped")
        }
        margins = [cell["margin"] for cell in column_cells if cell["margin"] is not None]
        worst = f", largest distance {max(margins):.2f} of its bound" if margins else ""
        values = sum(cell["values"] for cell in column_cells)
        lines.append(
            f"{column}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped; "
            f"{values:,} values compared{worst}"
        )
    return "\n".join(lines)


def save(path: Path, cells: list[dict[str, Any]], backends: dict[str, dict[str, Any]]) -> None:
    """Write the matrix, with a description of backends and devices."""
    report = {
        "suite": __version__,
        "contract": CONTRACT_VERSION,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "backends": backends,
        "cells": cells,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
