"""Learned delays: one delay for each channel of a spike train, a real number of steps from 0 to `maximum`.

Forward, with `r = round(d)`, ties to even: `y[t] = s[t - r]`, and 0 before the first step. So spikes stay spikes, and
the sums of the weights above stay exact. The optimiser updates the real numbers `d`, as it updates master weights that
are rounded to a grid.

Backward, from the error `g` of `y`:

    ds[t] = g[t + r]                                                    the adjoint of the shift; 0 after the last step
    dd    = sum of g[t] (s[t - f - 1] - s[t - f]), with f = floor(d)    over steps, samples, rows and columns

The factor of `g` is the slope of `s` between the two steps on either side of `t - d`, that is, the derivative of linear
interpolation. Forward, there is no interpolation (straight-through estimator). Learned delays of networks with
surrogate gradients: Hammouamri, Khalfaoui-Hassani and Masquelier 2023 (https://arxiv.org/abs/2306.17670), who
interpolate by a Gaussian that narrows during training.

In `reproducible` precision, `g` is rounded to an error grid of `LearnedDelay.error_bits` for the sum `dd`, so that
float64 adds it exactly in any order. `ds` has no sums, so it reads `g` as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stsbp_spec.contract.grid import sum_bits
from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.networks.ops.base import MAX_DELAY, Passing, Values
from stsbp_spec.typing import Shape
from stsbp_spec.validation import integer, shown

__all__ = ["LearnedDelay"]

_FEWEST_BITS = 8


@dataclass(frozen=True)
class LearnedDelay(Passing):
    """A learned delay for each channel of `(C, H, W)`, or for each of `(N,)` values.

    Args:
        maximum: the largest delay in steps, 1 to 2^16. After an update, delays are clipped to `[0, maximum]`.
    """

    keeps_bytes: ClassVar[bool] = True

    maximum: int

    def __post_init__(self) -> None:
        maximum = integer(self.maximum)
        if maximum is None or not 1 <= maximum <= MAX_DELAY:
            raise SpecError(f"the largest learned delay is 1 to {MAX_DELAY} steps, got {shown(self.maximum)}")
        object.__setattr__(self, "maximum", maximum)

    def infer(self, *inputs: Values) -> Values:
        """The values of the input, later."""
        values = self.spikes(inputs)
        if values.static:
            raise SpecError("its input is the same at every step, so delays have no effect; put neurons before them")
        return values

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of the input."""
        return shape

    def learned(self) -> dict[str, Learned]:
        """The domain of the delays, by their name `steps`. initial_weights.py draws their initial values."""
        return {"steps": Learned(0.0, 0.0, float(self.maximum), per="channel")}

    @property
    def kept_steps(self) -> int:
        """Number of earlier steps that the forward and the backward pass of a step can read."""
        return self.maximum + 1

    @staticmethod
    def error_bits(values: Values, *, frames: int) -> int:
        """Bits of the error grid with which float64 adds the gradient of a delay exactly, in any order.

        Args:
            values: the values of the input.
            frames: number of steps of all samples of the batch.

        Raises:
            ExactnessError: the grid would have less than 8 bits.
        """
        summands = frames
        for size in values.shape[1:]:
            summands *= size
        # A slope is a difference of two values, neither of which is negative, so it has no more bits than they have.
        bits = sum_bits(summands) - max(0, values.bits)
        if bits < _FEWEST_BITS:
            raise ExactnessError(
                f"the error grid of delays would keep only {bits} bits and needs {_FEWEST_BITS}; use smaller batches "
                "or fewer steps"
            )
        return bits
