"""The matrix as a page: `python -m stsbp_conformance.page RESULTS.json [--faults FAULTS.json] [-o PAGE.md or .html]`.

RESULTS.json comes from `pytest --conformance-json`, and FAULTS.json from `python -m stsbp_conformance.faults`. If there
are several results (for example from two machines), the page shows one after the other.
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import Any

from stsbp_conformance.matrix import TIERS, short

__all__ = ["as_html", "as_markdown"]

Row = list[str]


def _matrix(report: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Headings and tables of one report. The first row of a table is its header."""
    cells: list[dict[str, Any]] = report["cells"]
    columns = list(dict.fromkeys(cell["backend"] for cell in cells))
    about = [["backend", "device", "", "passed", "failed", "skipped", "values compared", "largest margin"]]
    for column in columns:
        column_cells = [cell for cell in cells if cell["backend"] == column]
        backend = report["backends"].get(column, {"device": "", "description": ""})
        margins = [cell["margin"] for cell in column_cells if cell["margin"] is not None]
        counts = [
            str(sum(cell["result"] == result for cell in column_cells)) for result in ("passed", "failed", "skipped")
        ]
        values = f"{sum(cell['values'] for cell in column_cells):,}"
        largest = f"{max(margins):.2f}" if margins else ""
        about.append([column, backend["device"], backend["description"], *counts, values, largest])
    when = f"{report['date']}, {report['system']}, Python {report['python']}"
    sections = [(f"Version {report.get('contract', 1)} of the contract, measured {when}", about)]
    by_place = {(cell["tier"], cell["case"], cell["backend"]): cell for cell in cells}
    for tier in sorted({cell["tier"] for cell in cells}):
        table = [["case", *columns]]
        for case in dict.fromkeys(cell["case"] for cell in cells if cell["tier"] == tier):
            row = [by_place.get((tier, case, column)) for column in columns]
            table.append([case, *("" if cell is None else short(cell) for cell in row)])
        sections.append((f"Tier {tier}: {TIERS[tier]}", table))
    reasons = dict.fromkeys(
        (cell["backend"], str(cell["tier"]), cell["result"], cell["note"])
        for cell in cells
        if cell["result"] != "passed"
    )
    if reasons:
        sections.append(("Failed and skipped", [["backend", "tier", "result", "why"], *map(list, reasons)]))
    return sections


def _faults(report: dict[str, Any]) -> tuple[str, list[Row]]:
    tiers = sorted(report["checks"], key=int)
    table = [["injected fault", *(f"tier {tier} of {report['checks'][tier]}" for tier in tiers)]]
    for row in report["faults"]:
        table.append([row["description"], *(str(row["caught"].get(tier, "")) for tier in tiers)])
    return "Injected faults, and how many quick checks of each tier catch them", table


def as_markdown(title: str, text: str, sections: list[tuple[str, list[Row]]]) -> str:
    """A page in Markdown."""
    lines = [f"# {title}", "", text, ""]
    for heading, (head, *rows) in sections:
        lines += [f"## {heading}", ""]
        for row in (head, ["---"] * len(head), *rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    return "\n".join(lines)


def as_html(title: str, text: str, sections: list[tuple[str, list[Row]]]) -> str:
    """The same page as a standalone HTML file."""
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"]
    parts += [f"<h1>{html.escape(title)}</h1><p>{html.escape(text)}</p>"]
    for heading, rows in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2><table>")
        for i, row in enumerate(rows):
            tag = "td" if i else "th"
            parts.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
        parts.append("</table>")
    return "\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m stsbp_conformance.page", description="Make a page of results.")
    parser.add_argument("results", nargs="+", type=Path, help="written by pytest --conformance-json")
    parser.add_argument("--faults", type=Path, help="written by python -m stsbp_conformance.faults")
    parser.add_argument("-o", "--output", type=Path, default=Path("conformance.md"), help=".md or .html")
    options = parser.parse_args(arguments)
    sections = [part for path in options.results for part in _matrix(json.loads(path.read_text(encoding="utf-8")))]
    if options.faults is not None:
        sections.append(_faults(json.loads(options.faults.read_text(encoding="utf-8"))))
    text = (
        "Each cell is one case on one backend. equal: every value is the same. bound x / y: x is the largest distance "
        "from float64 relative to its bound, which no correct backend exceeds; y is the same distance relative to what "
        "independent roundings add up to. raised: the right error was raised. The other results are FAILED and "
        "skipped. stsbp_conformance.page made this page from data."
    )
    make = as_html if options.output.suffix == ".html" else as_markdown
    options.output.write_text(make("Conformance", text, sections), encoding="utf-8")


if __name__ == "__main__":
    main()
