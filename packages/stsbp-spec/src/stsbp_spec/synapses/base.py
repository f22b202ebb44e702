"""The operations of a network (`Op`), and the arrays that pass between them (`Values`). graph.py puts them together.

An operation says for itself what it makes of its inputs: shape, unit and largest value of its output. So the bounds of
sums, on which exactness rests, are types of edges, and an error points at the operation that breaks them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from stsbp_spec.synapses.batchnorm import BatchNorm
from stsbp_spec.synapses.bias import Biased
from stsbp_spec.synapses.psp import IDENTITY, PSP, SynapticFilter
from stsbp_spec.typing import Shape
from stsbp_spec.values import integer, shown

__all__ = ["Op", "Passing", "Values", "Weighted", "normalisation", "weight_bits"]


@dataclass(frozen=True)
class Values:
    """What an edge carries for one sample and step: multiples of `2^-exponent` in `[0, maximum]`.

    Attributes:
        shape: `(C, H, W)` or `(N,)`.
        exponent: of their unit.
        maximum: the largest of them.
        static: whether one array serves all steps (images).
        pending: synapse of the neurons they come from, which is applied after the weights; None: none.
        gain: factor of training that has not been applied yet, the `1/(1 - rate)` of dropout.
        divisor: what they are still to be divided by, in training and evaluation: the sizes of pooling windows whose
            sums were taken.
        weighted: whether they are sums of weights, of either sign; unit and maximum are then those of what was added.
        biased: whether a bias is still to be added to the sums.
    """

    shape: Shape
    exponent: int = 0
    maximum: float = 1.0
    static: bool = False
    pending: PSP | None = None
    gain: float = 1.0
    divisor: int = 1
    weighted: bool = False
    biased: bool = False

    @property
    def bits(self) -> int:
        """`b` with all values at most `2^b` units."""
        return math.ceil(math.log2(self.maximum)) + self.exponent

    def factor(self, *, training: bool) -> float:
        """What has not been applied yet: in training the gain, and always the division."""
        return (self.gain if training else 1.0) / self.divisor

    def filter(self, *, training: bool) -> SynapticFilter:
        """The pending synapse with the factor that has not been applied yet, and the bias before it."""
        gain = self.factor(training=training)
        if self.biased:
            plain = IDENTITY if self.pending is None else self.pending.filter()
            return Biased(plain, type(IDENTITY.gain)(gain))
        if self.pending is not None:
            return self.pending.filter(gain)
        return replace(IDENTITY, gain=type(IDENTITY.gain)(gain))


class Op(ABC):
    """An operation of a network: a frozen dataclass of its parameters."""

    @abstractmethod
    def infer(self, *inputs: Values) -> Values:
        """What the operation makes of its inputs.

        Raises:
            SpecError: they do not fit.
        """

    def one(self, inputs: tuple[Values, ...]) -> Values:
        """The only input; `SpecError` unless there is one."""
        if len(inputs) != 1:
            raise SpecError(f"{type(self).__name__} takes one input, got {len(inputs)}")
        return inputs[0]

    def spikes(self, inputs: tuple[Values, ...]) -> Values:
        """The only input, which is not weighted; else `SpecError`."""
        values = self.one(inputs)
        if values.weighted:
            raise SpecError(
                f"{type(self).__name__} takes spikes, but its input is weighted sums; put Neurons between them"
            )
        return values


class Passing(Op):
    """An operation on spikes, without weights and neurons: what may stand before weights."""

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output for an input of `shape`; raises `SpecError` where it does not fit."""

    def at(self, shape: Shape) -> Passing:
        """The operation as backends know it, for an input of `shape`."""
        return self


class Weighted(Op):
    """A linear map by weights on a grid of their own, and a bias or batch normalisation where it is to have one."""

    weight_bits: int
    bias: bool
    norm: BatchNorm | None

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the sums for an input of `shape`; raises `SpecError` where it does not fit."""

    @abstractmethod
    def weight_shape(self, shape: Shape) -> Shape:
        """Shape of the weights, output axis first."""

    @abstractmethod
    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of one weight's gradient per frame, of one input's gradient."""

    def infer(self, *inputs: Values) -> Values:
        """Weighted sums, which some grid of weights makes exact in float32.

        Raises:
            ExactnessError: none does.
        """
        values = self.spikes(inputs)
        shape = self.output_shape(values.shape)
        summands = self.summands(values.shape)[0]
        bound = summands * (2 ** (MIN_WEIGHT_BITS - 1) - 1) * values.maximum
        if math.log2(bound) + values.exponent > EXACT_LIMIT_BITS:
            what = f"inputs with {values.bits}-bit values" if values.bits > 0 else "spikes (0 or 1)"
            raise ExactnessError(
                f"the sums of {summands} {what} cannot be exact in float32, "
                f"even with {MIN_WEIGHT_BITS}-bit weights; pool or convolve first"
            )
        sums = replace(values, shape=shape, weighted=True, biased=self.bias)
        # Normalised sums have no factor any more: the gain is in their statistics, and a division changes nothing.
        return sums if self.norm is None else replace(sums, gain=1.0, divisor=1)


def normalisation(value: object, *, bias: bool) -> BatchNorm | None:
    """`value` as the batch normalisation of weights; `SpecError` unless it is one, or None."""
    if value is None or isinstance(value, BatchNorm):
        if value is not None and bias:
            raise SpecError("batch normalisation subtracts the mean, which cancels a bias; leave the bias out")
        return value
    raise SpecError(f"norm is BatchNorm() or None, got {shown(value)}")


def weight_bits(value: object) -> int:
    """`value` as bits of a weight grid, sign included; `SpecError` unless it is one."""
    bits = integer(value)
    if bits is None or not MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS:
        raise SpecError(f"weight bits must be {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}, got {shown(value)}")
    return bits
