"""A time series that a network continues on its own: each of its predictions becomes its next input.

A data set of a series has one as `Dataset.forecast`. `stsbp evaluate` runs it (`stsbp.training.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from stsbp_spec.typing import Float64, UInt8
from stsbp_spec.validation import integer_between

from stsbp.errors import DataError

__all__ = ["Forecast"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a network must predict, and how its outputs become its inputs.

    Attributes:
        known: the values that the network receives first, `[K]`.
        truth: the values after them, `[M]`, which the network predicts.
        history: number of values from which the input of a step is made, at most K.
        encode: the input of a step, uint8 `[N]`, from the last `history` values, the newest one last.
        next_value: the next value, from the last value and the output of the network.
        unit: number of values in a unit of time in which errors are given, for example a Lyapunov time.
        unit_name: this unit in words, in the singular.

    Raises:
        DataError: there is nothing to predict, or fewer known values than a step needs.
    """

    known: Float64
    truth: Float64
    history: int
    encode: Callable[[Float64], UInt8]
    next_value: Callable[[float, float], float]
    unit: int
    unit_name: str

    def __post_init__(self) -> None:
        integer_between("Forecast: history", self.history, 1)
        integer_between("Forecast: unit", self.unit, 1)
        if self.known.ndim != 1 or self.truth.ndim != 1 or not len(self.truth) or len(self.known) < self.history:
            raise DataError(
                f"Forecast: known [K] must have at least {self.history} values and truth [M] at least one, got "
                f"{list(self.known.shape)} and {list(self.truth.shape)}"
            )

    def known_inputs(self) -> Iterator[UInt8]:
        """The inputs `[N]` of the steps that only know the known values. The last one ends with the last of them."""
        for end in range(self.history, len(self.known) + 1):
            yield self.encode(self.known[end - self.history : end])

    def followed_by(self, history: Float64, output: float) -> Float64:
        """The next history `[history]`, which ends with the value that the network's output predicts."""
        return np.append(history[1:], self.next_value(float(history[-1]), output))
