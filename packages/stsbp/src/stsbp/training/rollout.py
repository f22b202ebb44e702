"""A network continues a series on its own: its predictions are its next inputs, through the code of the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stsbp_spec.errors import NumericError
from stsbp_spec.typing import AnyArray, Float64

from stsbp.datasets.forecast import Forecast
from stsbp.measures.regression import regression_errors
from stsbp.tables import text_table
from stsbp.training.trained import Trained

__all__ = ["Rollout", "roll_out"]

_BEGINNING = (1, 2, 3)
"""Units of time from the beginning of a forecast whose errors are given separately."""


@dataclass(frozen=True)
class Rollout:
    """The values with which a network continued a series.

    Attributes:
        values: the predictions, `[M]`.
        forecast: the series.
    """

    values: Float64
    forecast: Forecast

    def smape(self, predictions: Float64) -> dict[str, float]:
        """sMAPE in percent of predictions `[M]`: of all of them, `all`, and of the first units of time, `1` and so on.

        A beginning that is as long as the forecast, or longer, is left out.
        """
        forecast = self.forecast
        ends = {str(units): units * forecast.unit for units in _BEGINNING if units * forecast.unit < len(predictions)}
        return {
            name: regression_errors(_as_outputs(predictions[:end]), _as_outputs(forecast.truth[:end])).smape
            for name, end in {**ends, "all": len(predictions)}.items()
        }

    @property
    def baselines(self) -> dict[str, Float64]:
        """Two predictions without a network, `[M]`: the mean of the known values, and the last one."""
        known = self.forecast.known
        return {
            "mean": np.full(len(self.values), known.mean()),
            "last_value": np.full(len(self.values), known[-1]),
        }

    def record(self) -> dict[str, Any]:
        """The values, their errors, and those of the baselines, as JSON values."""
        return {
            "unit": self.forecast.unit_name,
            "points_in_unit": self.forecast.unit,
            "smape": self.smape(self.values),
            "baselines": {name: self.smape(values) for name, values in self.baselines.items()},
            "values": self.values.tolist(),
            "truth": self.forecast.truth.tolist(),
        }

    def text(self) -> list[str]:
        """The errors as a table."""
        names = {"mean": "the mean of the known values", "last_value": "the last known value"}
        rows = {"network": self.values, **{names[name]: values for name, values in self.baselines.items()}}
        errors = {name: self.smape(values) for name, values in rows.items()}
        unit = self.forecast.unit_name
        heads = [
            f"{len(self.values)} values" if key == "all" else f"{key} {unit}{'' if key == '1' else 's'}"
            for key in errors["network"]
        ]
        table = [["sMAPE", *heads], *([name, *(f"{x:.2f} %" for x in row.values())] for name, row in errors.items())]
        return ["the series continued by the network on its own:", *(f"  {line}" for line in text_table(table))]


def roll_out(trained: Trained, forecast: Forecast) -> Rollout:
    """Let a network continue a series, step by step (`Trained.stream`), so with the same bits on every backend.

    The network first receives the known values. Its last output then predicts the first value after them, which
    becomes a part of its next input.

    Raises:
        NumericError: an output is not finite.
    """
    stream = trained.stream()
    output = 0.0
    for inputs in forecast.known_inputs():
        output = _output(stream.step(inputs[np.newaxis]))
    history, values = forecast.known[-forecast.history :], list[float]()
    for number in range(len(forecast.truth)):
        if number:
            output = _output(stream.step(forecast.encode(history)[np.newaxis]))
        history = forecast.followed_by(history, output)
        values.append(float(history[-1]))
    return Rollout(np.array(values), forecast)


def _output(outputs: AnyArray) -> float:
    """The output of a network with one output neuron, from `[1, 1]`."""
    output = float(outputs[0, 0])
    if not np.isfinite(output):
        raise NumericError("an output of the network is not finite, so the series cannot be continued")
    return output


def _as_outputs(values: Float64) -> Float64:
    return values.reshape(-1, 1, 1)
