"""Text of the errors of real-valued outputs, beside those of two simple predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["errors_table", "errors_text"]

_PREDICTIONS = {"mean": "the mean of the targets", "last_value": "the target of the step before"}
"""The simple predictions in words."""
_MOST_OUTPUTS = 20
"""Number of outputs whose errors are printed one by one."""


def _cells(errors: Mapping[str, float | None]) -> list[str]:
    forms = {"mse": "{:.4g}", "r2": "{:.4f}", "smape": "{:.2f} %"}
    return ["-" if errors[key] is None else form.format(errors[key]) for key, form in forms.items()]


def errors_text(errors: Mapping[str, float | None]) -> str:
    """The errors of a network in one line."""
    mse, r2, smape = _cells(errors)
    return f"MSE {mse}, R2 {r2}, sMAPE {smape}"


def errors_table(regression: Mapping[str, Any]) -> list[str]:
    """A table of the errors of the network, of simple predictions, and of each output if there are few."""
    rows = [("network", regression)]
    rows += [(_PREDICTIONS[name], errors) for name, errors in regression["baselines"].items()]
    by_neuron = regression["by_neuron"]
    count = len(by_neuron["mse"])
    if 1 < count <= _MOST_OUTPUTS:
        rows += [(f"output {n}", {key: values[n] for key, values in by_neuron.items()}) for n in range(count)]
    table = [["", "MSE", "R2", "sMAPE"], *([name, *_cells(errors)] for name, errors in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
