"""The operations of a network (`Op`), and the arrays that pass between them (`Values`). graph.py combines them.

Each operation derives the shape, the unit and the largest value of its output from those of its inputs. These bounds
guarantee that sums are exact. They belong to the edges, so an error can point at the operation that violates a bound.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic

import numpy as np

from stsbp_spec.contract.arrays import NUMPY, ArrayArithmetic
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.networks.ops.axes import PerAxis, per_axis, rows_and_columns
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.networks.ops.psp import IDENTITY, PSP, Biased, SynapticFilter
from stsbp_spec.typing import Array, Int64, Shape
from stsbp_spec.validation import integer, shown

__all__ = [
    "MAX_DELAY",
    "Derived",
    "Merge",
    "Op",
    "Passing",
    "Pool2d",
    "Rule",
    "Values",
    "Weighted",
    "normalisation",
    "weight_bits",
]


MAX_DELAY = 2**16
"""Largest delay in steps."""


@dataclass(frozen=True)
class Values:
    """The values on an edge for one sample and step: multiples of `2^-exponent` in `[0, maximum]`.

    Attributes:
        shape: `(C, H, W)` or `(N,)`.
        exponent: the values are multiples of `2^-exponent`.
        maximum: the largest value.
        static: whether the same array is used at all steps (images).
        pending: synaptic filter of the neurons that sent the values. It is applied after the weights; None: none.
        gain: training factor that has not been applied yet: the `1/(1 - rate)` of dropout.
        divisor: divisor that has not been applied yet, in training and evaluation. It comes from pooling windows whose
            sums were taken.
        weighted: whether the values are weighted sums, of either sign. Unit and maximum are then those of the summands.
        biased: whether a bias must still be added to the sums.
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
        """The smallest `b` with all values at most `2^b` units."""
        return math.ceil(math.log2(min(self.maximum, sys.float_info.max))) + self.exponent

    def factor(self, *, training: bool) -> float:
        """The factor that has not been applied yet: always the division, and in training also the gain."""
        return (self.gain if training else 1.0) / self.divisor

    def filter(self, *, training: bool) -> SynapticFilter:
        """The pending synaptic filter with the factor that has not been applied yet, and the bias before it."""
        gain = self.factor(training=training)
        if self.biased:
            pending_filter = IDENTITY if self.pending is None else self.pending.filter()
            return Biased(pending_filter, type(IDENTITY.gain)(gain))
        if self.pending is not None:
            return self.pending.filter(gain)
        return replace(IDENTITY, gain=type(IDENTITY.gain)(gain))


class Op(ABC):
    """An operation of a network: a frozen dataclass of its parameters.

    Attributes:
        makes_spikes: whether its output is spikes that no input had: a spike of it is counted by itself.
        keeps_bytes: whether its output is bytes if all its inputs are bytes.
    """

    makes_spikes: ClassVar[bool] = False
    keeps_bytes: ClassVar[bool] = False

    @abstractmethod
    def infer(self, *inputs: Values) -> Values:
        """The output of the operation for these inputs.

        Raises:
            SpecError: the inputs do not fit.
        """

    def reached(self, counts: Int64, shapes: Sequence[Shape]) -> tuple[Int64, ...]:
        """Numbers of weights that a spike at each place of the inputs reaches, from the `counts` of the output.

        Args:
            counts: number of weights that each value of the output reaches, in the shape of the output.
            shapes: shapes of the inputs.
        """
        return tuple(counts.reshape(shape) for shape in shapes)

    def check_position(self, position: int) -> None:  # noqa: B027
        """Raise `SpecError` unless the operation may stand at this position in a network (`BoundNode.position`)."""

    def only_input(self, inputs: tuple[Values, ...]) -> Values:
        """The only input. Raises `SpecError` unless there is exactly one."""
        if len(inputs) != 1:
            raise SpecError(f"{type(self).__name__} takes one input, got {len(inputs)}")
        return inputs[0]

    def spikes(self, inputs: tuple[Values, ...]) -> Values:
        """The only input, which must not be weighted. Otherwise raises `SpecError`."""
        values = self.only_input(inputs)
        if values.weighted:
            raise SpecError(
                f"{type(self).__name__} takes spikes, but its input is weighted sums; put Neurons between them"
            )
        return values


class Passing(Op):
    """An operation on spikes without weights and neurons. It may come before weights."""

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output for an input of `shape`. Raises `SpecError` if the input does not fit."""

    def learned(self) -> Mapping[str, Learned]:
        """Its learned parameters by name: delays in steps (delay.py), and none of other operations."""
        return {}

    def at(self, shape: Shape) -> Passing:
        """The operation in the form that backends use, for an input of `shape`."""
        return self


@dataclass(frozen=True)
class Pool2d(Passing):
    """Pooling with stride equal to the window.

    Args:
        size: rows and columns of the window, an integer or a pair.
    """

    size: PerAxis

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", per_axis("a pooling window", self.size, 1))

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the window."""
        return rows_and_columns(self.size)

    @property
    def area(self) -> int:
        """Number of inputs of a window."""
        rows, columns = self.sizes
        return rows * columns

    def output_shape(self, shape: Shape) -> Shape:
        """`(C, H // rows, W // columns)`. Raises `SpecError` if the window does not fit."""
        if len(shape) != 3:
            raise SpecError(f"pooling needs an input (C, H, W), got {shape}")
        (c, h, w), (rows, columns) = shape, self.sizes
        if h < rows or w < columns:
            raise SpecError(f"the window, {rows}x{columns}, is larger than its input, {h}x{w}")
        return (c, h // rows, w // columns)


@dataclass(frozen=True)
class Rule(Generic[Array]):
    """The two functions that compute an operation.

    Attributes:
        forward: `forward(op, *inputs) -> output, residuals`. For `Weighted` operations `forward(op, s, w)`, with the
            weights on their grid.
        backward: `backward(op, residuals, error) -> error of the input`, or a tuple of errors for several inputs. For
            `Weighted` operations `backward(op, residuals, dz, precision=..., need_input=...,
            need_weights=True) -> ds, dw`. Each of the two is None, and is not computed, if it is not needed. In
            `reproducible` precision, `dz` is on its grid and sums are in float64. `ds` is rounded once. `dw` stays
            float64, because the gradients of other samples may be added to it (`Operations.rounded`).
    """

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., Any]


class Derived(Op):
    """An operation that every backend computes from the arithmetic of its arrays, without a rule of its own for it.

    A backend that has a rule for the operation nevertheless (`Operations.rules`) uses the rule.
    """

    @abstractmethod
    def forward(self, arithmetic: ArrayArithmetic[Array], *inputs: Array) -> tuple[Array, Any]:
        """`Rule.forward`: the output for native arrays `[1 or T, B, ...]`, and what `backward` needs."""

    @abstractmethod
    def backward(self, arithmetic: ArrayArithmetic[Array], residuals: Any, error: Array) -> Any:
        """`Rule.backward`: the error of the input, or a tuple of errors for several inputs."""


class Merge(Derived):
    """An operation on the spikes of two or more branches, without weights and neurons.

    The weights above apply one synaptic filter, one gain of training and one divisor to its output. So these must be
    the same for all inputs.

    Attributes:
        key: its name in a network that is written node by node (nodes.py).
        symbol: its name in tables and drawings.
        outcome: what its output is called in messages, in the plural.
        common_property: what the shapes of the inputs must have in common, in words.
    """

    key: ClassVar[str]
    symbol: ClassVar[str]
    outcome: ClassVar[str]
    common_property: ClassVar[str] = "shape"
    keeps_bytes: ClassVar[bool] = True

    @abstractmethod
    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for inputs whose shapes fit."""

    @abstractmethod
    def largest(self, *maxima: float) -> float:
        """The largest value of the output for inputs with these largest values."""

    def fits(self, first: Shape, second: Shape) -> bool:
        """Whether inputs of these shapes can be merged."""
        return first == second

    def infer(self, *inputs: Values) -> Values:
        """The output, in the finest unit of the inputs."""
        first = self._checked(inputs)
        merged = replace(
            first,
            shape=self.output_shape(*(values.shape for values in inputs)),
            exponent=max(values.exponent for values in inputs),
            maximum=self.largest(*(values.maximum for values in inputs)),
        )
        if merged.bits > EXACT_LIMIT_BITS:
            raise ExactnessError(
                f"the {self.outcome} have {merged.bits} bits, but float32 holds only {EXACT_LIMIT_BITS}"
            )
        return merged

    def _checked(self, inputs: Sequence[Values]) -> Values:
        """The first input. Raises `SpecError` unless the inputs fit each other."""
        name = type(self).__name__
        if len(inputs) < 2:
            raise SpecError(f"{name} takes two inputs or more, got {len(inputs)}")
        first = inputs[0]
        for values in inputs:
            if values.weighted:
                message = "takes spikes, but one of its inputs is weighted sums; put Neurons between them"
                raise SpecError(f"{name} {message}")
            for property_name, first_value, second_value in self._unlike(first, values):
                raise SpecError(
                    f"the inputs of {name} must have the same {property_name}, got {first_value} and {second_value}"
                )
            if values.static != first.static:
                raise SpecError(f"{name} takes inputs that change with time, or images, not both")
        return first

    def _unlike(self, first: Values, values: Values) -> Iterator[tuple[str, object, object]]:
        """What must be the same for two inputs but is not: in words, and for each of them."""
        if not self.fits(first.shape, values.shape):
            yield self.common_property, first.shape, values.shape
        for property_name, first_value, second_value in (
            ("synapse", first.pending, values.pending),
            ("factor of dropout", first.gain, values.gain),
            ("divisor of pooled sums", first.divisor, values.divisor),
        ):
            if first_value != second_value:
                yield property_name, first_value, second_value

    def reached(self, counts: Int64, shapes: Sequence[Shape]) -> tuple[Int64, ...]:
        # The adjoint of a linear operation, on one sample and step. Other operations override this.
        _, residuals = self.forward(NUMPY, *(np.zeros((1, 1, *shape), np.int64) for shape in shapes))
        return tuple(input_counts[0, 0] for input_counts in self.backward(NUMPY, residuals, counts[None, None]))


class Weighted(Op):
    """A linear map with weights on a grid of its own, optionally with a bias or batch normalisation."""

    weight_bits: int
    bias: bool
    norm: BatchNorm | None

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the sums for an input of `shape`. Raises `SpecError` if the input does not fit."""

    @abstractmethod
    def weight_shape(self, shape: Shape) -> Shape:
        """Shape of the weights, output axis first."""

    @abstractmethod
    def summands(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of summands: of one output, of the gradient of one weight per frame, of the gradient of one input."""

    def infer(self, *inputs: Values) -> Values:
        """Weighted sums, for which some weight grid makes float32 sums exact.

        Raises:
            ExactnessError: there is no such grid.
        """
        values = self.spikes(inputs)
        shape = self.output_shape(values.shape)
        summands = self.summands(values.shape)[0]
        largest_sum = summands * (2 ** (MIN_WEIGHT_BITS - 1) - 1) * values.maximum
        if math.log2(largest_sum) + values.exponent > EXACT_LIMIT_BITS:
            summand_kind = f"inputs with {values.bits}-bit values" if values.bits > 0 else "spikes (0 or 1)"
            raise ExactnessError(
                f"the sums of {summands} {summand_kind} cannot be exact in float32, "
                f"even with {MIN_WEIGHT_BITS}-bit weights; pool or convolve first"
            )
        sums = replace(values, shape=shape, weighted=True, biased=self.bias)
        # Normalised sums have no pending factor. The gain is in their statistics, and a division has no effect on them.
        return sums if self.norm is None else replace(sums, gain=1.0, divisor=1)


def normalisation(value: object, *, bias: bool) -> BatchNorm | None:
    """`value` as the batch normalisation of weights. Raises `SpecError` unless it is one, or None."""
    if value is None or isinstance(value, BatchNorm):
        if value is not None and bias:
            raise SpecError("batch normalisation subtracts the mean, which cancels a bias; leave the bias out")
        return value
    raise SpecError(f"norm is BatchNorm() or None, got {shown(value)}")


def weight_bits(value: object) -> int:
    """`value` as bits of a weight grid, including the sign. Raises `SpecError` if it is invalid."""
    bits = integer(value)
    if bits is None or not MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS:
        raise SpecError(f"weight bits must be {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}, got {shown(value)}")
    return bits
