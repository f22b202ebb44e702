"""Text of the errors of real-valued outputs, beside those of two simple predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stsbp.tables import text_table

__all__ = ["error_cells", "errors_table", "errors_text"]

_PREDICTIONS = {"mean": "the mean of the targets", "last_value": "the target of the step before"}
"""The simple predictions in words."""
_MOST_OUTPUTS = 20
"""Number of outputs whose errors are printed one by one."""


def error_cells(errors: Mapping[str, float | None]) -> list[str]:
    """MSE, R2 and sMAPE as text; `-` if one is missing."""
    forms = {"mse": "{:.4g}", "r2": "{:.4f}", "smape": "{:.2f} %"}
    values = {key: errors.get(key) for key in forms}
    return ["-" if (value := values[key]) is None else form.format(value) for key, form in forms.items()]


def errors_text(errors: Mapping[str, float | None]) -> str:
    """The errors of a network in one line."""
    mse, r2, smape = error_cells(errors)
    return f"MSE {mse}, R2 {r2}, sMAPE {smape}"


def errors_table(regression: Mapping[str, Any]) -> list[str]:
    """A table of the errors of the network, of simple predictions, and of each output if there are few."""
    rows = [("network", regression)]
    rows += [(_PREDICTIONS[name], errors) for name, errors in regression["baselines"].items()]
    by_neuron = regression["by_neuron"]
    count = len(by_neuron["mse"])
    if 1 < count <= _MOST_OUTPUTS:
        rows += [(f"output {n}", {key: values[n] for key, values in by_neuron.items()}) for n in range(count)]
    table = [["", "MSE", "R2", "sMAPE"], *([name, *error_cells(errors)] for name, errors in rows)]
    return text_table(table)
