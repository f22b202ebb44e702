"""The rate penalty: a layer whose neurons fire more often than a target adds to what training minimises.

Neuron `j` of a layer of `N` neurons has the rate `r = n/T_b` in sample `b` of a batch of `B`: `n` is its number of
spikes in the `T_b` steps of the sample that are not padding. The penalty of the layer is

    weight / (N B) * sum_b sum_j max(0, r - target)^2

Error: `dL/do_t = 2 weight max(0, n - target T_b) / (N B T_b^2)`, the same number at every step of the sample, and 0 at
its padded steps. A number depends on one neuron and one sample, so parts of a batch need no messages.

Order of operations: `error = scale*(n - limit)` where `n > limit`, else 0, snapped. `limit = target T_b` and
`scale = 2 weight / (N B T_b^2)` are rounded once from float64. The count `n` is exact. The error is added to the sum of
the errors of the layer's readers, so it is the last summand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stsbp_spec.contract.arrays import snap as snapped
from stsbp_spec.contract.grid import CEILING, FLOOR
from stsbp_spec.equations.expressions import Recurrence, snap, unsnapped, variable, where
from stsbp_spec.errors import SpecError
from stsbp_spec.typing import AnyArray, Float32, Float64, Int64, Shape
from stsbp_spec.validation import real, shown

__all__ = ["ADDED", "EXCESS", "EXCESS_OF_LENGTHS", "UNIT", "LayerPenalties", "RatePenalty"]

UNIT = 2.0**-23
"""Squares of excess rates are reported in multiples of this number, whose sums are exact in any order."""


@dataclass(frozen=True)
class RatePenalty:
    """A penalty on the firing rates of a layer.

    Attributes:
        target: the largest rate without a penalty, in spikes per neuron and step: at least 0, and below 1.
        weight: factor of the mean squared excess: from 2^-100 to 2^100.

    Raises:
        SpecError: a number is outside its domain.
    """

    target: float
    weight: float

    def __post_init__(self) -> None:
        for name in ("target", "weight"):
            object.__setattr__(self, name, real(f"RatePenalty: {name}", getattr(self, name)))
        if not 0 <= self.target < 1:
            raise SpecError(
                "RatePenalty: target must be a rate in spikes per step, from 0 to less than 1, got "
                f"{shown(self.target)}"
            )
        if not FLOOR <= self.weight <= CEILING:
            raise SpecError(f"RatePenalty: weight must be from 2^-100 to 2^100, got {shown(self.weight)}")

    def constants(self, neurons: int, lengths: AnyArray | int, batch: int) -> dict[str, AnyArray]:
        """The constants of `EXCESS`, float32, in the shape of `lengths`.

        Args:
            neurons: number of neurons of the layer.
            lengths: number of steps of a sample, or of each sample.
            batch: number of samples of the whole batch.
        """
        steps = np.asarray(lengths, np.float64)
        numbers = {
            "limit": self.target * steps,
            "scale": 2 * self.weight / (steps * steps * neurons * batch),
            "share": 1 / steps,
        }
        return {name: snapped(x.astype(np.float32)) for name, x in numbers.items()}

    def constants_of_lengths(self, shape: Shape, lengths: Int64, batch: int) -> dict[str, Float32]:
        """The constants of samples of different lengths as inputs of `EXCESS_OF_LENGTHS`, float32 `[1, B, ...]`.

        Args:
            shape: shape of the layer's neurons.
            lengths: lengths of the samples, `[B]`.
            batch: number of samples of the whole batch.
        """
        numbers = self.constants(int(np.prod(shape)), lengths, batch)
        return {
            name: np.broadcast_to(x.reshape(1, -1, *(1,) * len(shape)), (1, len(lengths), *shape)).copy()
            for name, x in numbers.items()
        }

    def value(self, units: int, neurons: int, batch: int) -> float:
        """The penalty from the sum of the squares in multiples of `UNIT`."""
        return self.weight * (units * UNIT / (neurons * batch))

    def of_counts(self, counts: AnyArray, lengths: AnyArray | int) -> float:
        """The penalty of a whole batch, from the numbers of spikes `[B, ...]` and of steps of its samples, float64."""
        steps = np.asarray(lengths, np.float64).reshape(-1, *(1,) * (counts.ndim - 1))
        excess: Float64 = np.maximum(0, counts / steps - self.target)
        return float(self.weight * np.mean(excess * excess))


LayerPenalties = tuple[tuple[str, RatePenalty], ...]
"""The penalties of a network by the names of its layers, in a form that has a hash."""


def _excess(name: str, parameters: tuple[str, ...], inputs: tuple[str, ...]) -> Recurrence:
    n, limit, scale, share = (variable(x) for x in ("n", "limit", "scale", "share"))
    beyond = n - limit
    rate = beyond * share
    return Recurrence(
        name,
        parameters,
        inputs,
        {},
        {
            "error": snap(where(limit < n, scale * beyond, 0)),
            # A square is at least 2^-94, because differences of counts are not smaller.
            "units": unsnapped(where(limit < n, rate * rate * (1 / UNIT), 0)),
        },
    )


_CONSTANTS = ("limit", "scale", "share")

EXCESS = _excess("rate_penalty", _CONSTANTS, ("n",))
"""From the number of spikes `n` of a neuron in a sample to the error, and the square in multiples of `UNIT`."""

EXCESS_OF_LENGTHS = _excess("rate_penalty_of_lengths", (), ("n", *_CONSTANTS))
"""The same for samples of different lengths, whose constants differ."""

ADDED = Recurrence(
    "rate_penalty_added", (), ("g", "error"), {}, {"total": unsnapped(variable("g") + variable("error"))}
)
"""Adds the error of the penalty to `g`, the sum of the errors of the layer's readers. Adding 0 changes no number."""
