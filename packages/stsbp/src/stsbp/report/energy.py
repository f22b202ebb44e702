"""The section of a report on energy: bars and a table by layer."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from stsbp.energy.text import energy_rows, energy_summary, picojoules
from stsbp.report import svg
from stsbp.tables import html_table

__all__ = ["energy_section"]


def energy_section(energy: Mapping[str, Any]) -> str:
    """The energy of a run as HTML.

    Args:
        energy: result of `stsbp.energy.stored.stored_energy`.
    """
    source = f" ({escape(energy['source'])})" if energy["source"] else ""
    explanation = (
        f"{energy['samples']:,} {escape(energy['split'])} samples of {escape(energy['dataset'])}. Counts are means. "
        f"Energies are estimates by the table {escape(energy['table'])}{source}."
    )
    layers = energy["layers"]
    totals = np.array([layer["pj"]["total"] for layer in layers])
    names = [f"{layer['name']} ({picojoules(layer['pj']['total'])})" for layer in layers]
    chart = svg.bars(totals / max(totals.sum(), 1e-12), names, range(len(names)), label="energy by layer", percent=True)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in energy_summary(energy))
    return (
        f'<h2>Energy</h2><p class="muted">{explanation}</p><div class="row"><figure><figcaption>Share of each layer'
        f"</figcaption>{chart}</figure><ul>{sentences}</ul></div>{html_table(energy_rows(energy))}"
    )
