"""Finds where an equation depends on whether subnormal numbers are kept, by interval analysis of its expressions.

numpy and numba keep numbers below 2^-126, but XLA and CuPy treat them as zero. States, potentials, named values and all
results of an equation are snapped to zero below 2^-100. This hides the difference. A sum with a large number hides it
too. A product that its author did not snap does not hide it if it is multiplied with a large number, divided by a small
one, or compared. `shown_flushes` follows every operation whose result may be subnormal through a step, and reports
where the two kinds of library differ.

For each number, the analysis knows the smallest and largest magnitude of its non-zero values, a power of two of which
all values are multiples, its sign, and `differ`. `differ` says whether the two kinds of library agree, or else up to
which magnitude the values can be that differ. Inputs and states are assumed to stay below `LARGEST`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.assembly import loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Recurrence, merged
from stsbp_spec.equations.printers import written_out
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.neurons import NEURONS
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.surrogates.functions import Surrogate, equation
from stsbp_spec.networks.ops.psp import PSP, SynapticFilter

__all__ = ["LARGEST", "Flush", "Range", "flushes_of", "shown_flushes"]

LARGEST = 2.0**40
"""Inputs and states are assumed to be smaller. This is far above the values in any network that learns."""
_COUNT = 2.0**24
_NORMAL, _TINIEST, _FLOOR = 2.0**-126, 2.0**-149, float(FLOOR)
_INFINITE = 2.0**128
_ROUNDED_AWAY = 2.0**25
"""If one operand of a sum is larger than the other by this factor, the sum equals the larger operand."""
_MOST_ROUNDS = 8
_MOST_VISITS = 2**15


@dataclass(frozen=True)
class Range:
    """What is known about a number in an equation.

    Attributes:
        smallest, largest: smallest and largest magnitude of its non-zero values.
        unit: a power of two of which every value is a multiple.
        zero: whether it may be zero.
        negative, positive: whether it may be negative, or positive.
        differ: libraries that keep subnormal numbers and libraries that flush them compute the same value, or both
            compute values of at most this magnitude, or anything at all (2^128). For a condition: whether it may
            differ.
    """

    smallest: float = _FLOOR
    largest: float = LARGEST
    unit: float = _FLOOR * 2.0**-23
    zero: bool = True
    negative: bool = True
    positive: bool = True
    differ: float = 0.0

    @classmethod
    def of_number(cls, value: float) -> Range:
        """The range of a constant."""
        size = abs(value)
        if not size:
            return cls(_INFINITE, 0.0, _INFINITE, negative=False, positive=False)
        numerator, denominator = size.as_integer_ratio()
        unit = float(numerator & -numerator) / denominator
        return cls(size, size, unit, zero=False, negative=value < 0, positive=value > 0)

    @classmethod
    def of_bounds(cls, low: float, high: float) -> Range:
        """The range of 0 and of numbers from 2^-100 on."""
        return cls(largest=max(abs(low), abs(high)), negative=low < 0, positive=high > 0)

    @classmethod
    def of_count(cls, largest: float) -> Range:
        """The range of a count."""
        return cls(1.0, largest, 1.0, negative=False)


@dataclass(frozen=True)
class Flush:
    """An operation whose result may be subnormal, so that a library that flushes it gets different results.

    Attributes:
        equation: name of the equation.
        expression: the operation, as text; or an input.
        changed: what then differs, as text.
    """

    equation: str
    expression: str
    changed: str

    def __str__(self) -> str:
        return (
            f"{self.equation}: {self.expression} may be below 2^-126, which some backends treat as "
            f"zero, so that {self.changed} differs; write snap({self.expression})"
        )


def shown_flushes(
    recurrence: Recurrence, constants: Mapping[str, float | np.float32], inputs: Mapping[str, Range] | None = None
) -> tuple[Flush, ...]:
    """All operations of a step that show whether subnormal numbers are kept. Empty for equations that are not exact.

    Args:
        recurrence: the step.
        constants: its parameters.
        inputs: ranges of inputs. Other inputs and all states are 0, or from 2^-100 to `LARGEST`.
    """
    if not recurrence.exact:
        return ()
    nodes, index_of = merged(recurrence.roots)
    input_ranges = {name: Range.of_number(float(np.float32(value))) for name, value in constants.items()}
    input_ranges |= {name: Range() for name in recurrence.inputs} | dict(inputs or {})
    analysis = _Analysis(recurrence, nodes, index_of, input_ranges)
    all_differ, origins = analysis.differing(None)
    if all_differ is None:
        return ()
    # Analyse each operation alone, as long as this does not take seconds.
    tried = origins[: max(1, _MOST_VISITS // len(nodes))]
    differences = [(index, analysis.differing(index)[0]) for index in tried]
    return tuple(
        Flush(recurrence.name, written_out(nodes[index][0]), difference)
        for index, difference in differences
        if difference is not None
    ) or (Flush(recurrence.name, written_out(nodes[origins[0]][0]), all_differ),)


class _Analysis:
    def __init__(
        self,
        recurrence: Recurrence,
        nodes: Sequence[tuple[Expr, tuple[int, ...]]],
        index_of: Mapping[int, int],
        input_ranges: Mapping[str, Range],
    ) -> None:
        self._nodes, self._input_ranges = nodes, input_ranges
        self._states = {name: index_of[id(x)] for name, x in recurrence.states.items()}
        self._results = self._states | {name: index_of[id(x)] for name, x in recurrence.outputs.items()}

    def differing(self, operation: int | None) -> tuple[str | None, list[int]]:
        """Where libraries differ, depending on whether they keep subnormal results of `operation` (None: of any
        operation); and the operations that may have such results. An input that may be subnormal is one of them."""
        states = {name: Range() for name in self._states}
        for _ in range(_MOST_ROUNDS):
            ranges, origins = self._ranges({**self._input_ranges, **states}, operation)
            new = {name: _state_range(states[name], ranges[index]) for name, index in self._states.items()}
            if new == states:
                break
            states = new
        else:
            states = {name: replace(x, smallest=_TINIEST, unit=_TINIEST) for name, x in states.items()}
            ranges, origins = self._ranges({**self._input_ranges, **states}, operation)
        for index, x in enumerate(ranges):
            node = self._nodes[index][0]
            if node.is_condition and x.differ:
                return f"whether {written_out(node)}", origins
        for name, index in self._results.items():
            # For values that are not snapped, the author guarantees that subnormal values have no effect.
            if not self._nodes[index][0].is_condition and ranges[index].differ > _NORMAL:
                return name, origins
        return None, origins

    def _ranges(self, variables: Mapping[str, Range], operation: int | None) -> tuple[list[Range], list[int]]:
        ranges: list[Range] = []
        origins: list[int] = []
        for index, (x, operands) in enumerate(self._nodes):
            if x.op == "variable":
                result_range = variables[str(x.name)]
                if x.name in self._input_ranges and result_range.differ:
                    origins.append(index)
                    result_range = result_range if operation in (None, index) else replace(result_range, differ=0.0)
            elif x.op == "constant":
                result_range = Range.of_number(x.value)
            else:
                result_range = _OPERATIONS[x.op](*(ranges[a] for a in operands), operands[0] == operands[-1])
            if x.op in ("add", "sub", "mul", "div") and result_range.smallest < _NORMAL:
                origins.append(index)
                if operation in (None, index):
                    result_range = replace(result_range, differ=max(result_range.differ, _NORMAL))
            ranges.append(result_range)
        return ranges, origins


def _state_range(old: Range, new: Range) -> Range:
    """The range of a state before a step, from the range assumed so far and the range of the new state."""
    return Range(
        min(old.smallest, new.smallest),
        LARGEST,
        min(old.unit, new.unit),
        differ=max(old.differ, min(new.differ, LARGEST)),
    )


def _spacing(magnitude: float) -> float:
    """A power of two of which every float32 of at least this magnitude is a multiple."""
    return max(_TINIEST, 2.0 ** (math.frexp(magnitude)[1] - 24)) if 0 < magnitude < _INFINITE else _TINIEST


def _rounded(x: Range) -> Range:
    """The range after rounding to float32."""
    vanishes = x.zero or x.smallest < _TINIEST
    smallest, largest = max(x.smallest, _TINIEST), min(x.largest, _INFINITE)
    return replace(x, smallest=smallest, largest=largest, unit=max(x.unit, _spacing(smallest)), zero=vanishes)


def _add(a: Range, b: Range, is_same: bool) -> Range:
    opposite = not is_same and ((a.negative and b.positive) or (a.positive and b.negative))
    unit = min(a.unit, b.unit)
    may_agree = (a.negative and b.negative) or (a.positive and b.positive)
    candidates = [_INFINITE]
    candidates += [max(a.smallest, b.smallest)] if may_agree or is_same else []
    # If numbers cancel, each is at least half the other one, and both are multiples of the spacing there.
    spacing = _spacing(max(a.smallest, b.smallest) / 2)
    candidates += [max(unit, spacing, a.smallest - b.largest, b.smallest - a.largest)] if opposite else []
    candidates += [b.smallest] if a.zero else []
    candidates += [a.smallest] if b.zero else []
    cancels = opposite and a.smallest <= b.largest and b.smallest <= a.largest
    # A difference disappears in a sum with a far larger number. Otherwise the sum was with zero or a similar number.
    differ = sum(
        x.differ if y.smallest >= x.differ * _ROUNDED_AWAY else x.differ * (1 + _ROUNDED_AWAY)
        for x, y in ((a, b), (b, a))
    )
    differ = 0.0 if _is_rounded_away(a, b) and _is_rounded_away(b, a) else min(differ, _INFINITE)
    zero = cancels or (a.zero and b.zero)
    sum_of = Range(
        min(candidates), a.largest + b.largest, unit, zero, a.negative or b.negative, a.positive or b.positive, differ
    )
    return _rounded(sum_of)


def _is_rounded_away(x: Range, addend: Range) -> bool:
    """Whether the differing values of `x` have no effect on a sum with `addend`."""
    return x.differ == 0 or (not addend.zero and addend.smallest >= x.differ * _ROUNDED_AWAY)


def _neg(a: Range) -> Range:
    return replace(a, negative=a.positive, positive=a.negative)


def _sub(a: Range, b: Range, is_same: bool) -> Range:
    if is_same:
        return Range.of_number(0.0)
    return _add(a, _neg(b), is_same=False)


def _signs(a: Range, b: Range, is_same: bool) -> tuple[bool, bool]:
    """Whether a product may be negative, and whether it may be positive."""
    if is_same:
        return False, True
    return (
        (a.negative and b.positive) or (a.positive and b.negative),
        (a.negative and b.negative) or (a.positive and b.positive),
    )


def _times(x: float, y: float) -> float:
    if x == 0 or y == 0:
        return 0.0
    return _INFINITE if max(x, y) >= _INFINITE else min(x * y, _INFINITE)


def _spread(differ: float, largest: float) -> float:
    """The differing part of a product. If a factor may be infinite, it can be anything, as infinity times zero is
    NaN."""
    return _INFINITE if differ and max(differ, largest) >= _INFINITE else _times(differ, largest)


def _mul(a: Range, b: Range, is_same: bool) -> Range:
    differ = _times(a.differ, a.differ) if is_same else max(_spread(a.differ, b.largest), _spread(b.differ, a.largest))
    unit = min(a.unit, _INFINITE) * min(b.unit, _INFINITE)
    smallest = min(a.smallest * b.smallest, _INFINITE)
    return _rounded(
        Range(smallest, _times(a.largest, b.largest), unit, a.zero or b.zero, *_signs(a, b, is_same), differ)
    )


def _div(a: Range, b: Range, is_same: bool) -> Range:
    differ = _INFINITE if b.differ else _quotient_bound(a.differ, b)
    smallest, zero = a.smallest / max(b.largest, _TINIEST), a.zero or b.largest >= _INFINITE
    return _rounded(
        Range(min(smallest, _INFINITE), _quotient_bound(a.largest, b), _TINIEST, zero, *_signs(a, b, is_same), differ)
    )


def _quotient_bound(x: float, b: Range) -> float:
    """The largest quotient."""
    if x == 0:
        return 0.0
    return _INFINITE if b.zero or x >= _INFINITE else min(x / b.smallest, _INFINITE)


def _abs(a: Range, is_same: bool) -> Range:
    return replace(a, negative=False, positive=True)


def _sqrt(a: Range, is_same: bool) -> Range:
    largest, differ = (math.sqrt(x) if x < _INFINITE else x for x in (a.largest, a.differ))
    return _rounded(Range(math.sqrt(a.smallest), largest, _TINIEST, a.zero, negative=False, differ=differ))


def _snap(a: Range, is_same: bool) -> Range:
    hidden = 0.0 if a.differ < _FLOOR else a.differ
    smallest = max(a.smallest, _FLOOR)
    return replace(
        a, smallest=smallest, unit=max(a.unit, _spacing(smallest)), zero=a.zero or a.smallest < _FLOOR, differ=hidden
    )


def _compared(a: Range, b: Range, is_same: bool) -> Range:
    """A comparison of two numbers. A small difference in one cannot change it if the other number is far away."""
    may_differ = not is_same and any(
        x.differ and not (y.differ == 0 and not y.zero and y.smallest > x.differ) for x, y in ((a, b), (b, a))
    )
    return Range(differ=1.0 if may_differ else 0.0)


def _where(condition: Range, a: Range, b: Range, is_same: bool) -> Range:
    differ = max(a.differ, b.differ, _INFINITE if condition.differ else 0.0)
    return Range(
        min(a.smallest, b.smallest), max(a.largest, b.largest), min(a.unit, b.unit), a.zero or b.zero,
        a.negative or b.negative, a.positive or b.positive, differ,
    )  # fmt: skip


_OPERATIONS: Mapping[str, Callable[..., Range]] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "neg": lambda a, is_same: _neg(a), "abs": _abs, "sqrt": _sqrt,
    "snap": _snap, "lt": _compared, "ge": _compared, "spike": _compared, "where": _where,
}  # fmt: skip


def flushes_of(model: NeuronModel | Surrogate | Loss, filter: SynapticFilter | None = None) -> tuple[Flush, ...]:
    """`shown_flushes` of both passes of a neuron model after a filter, of a surrogate, or of the passes of a loss.

    Those of a surrogate include the first ones of a neuron of the spec with it: neurons multiply its result.
    """
    if isinstance(model, Surrogate):
        # Inputs are potentials. Like their thresholds, they are multiples of 2^-123.
        own = shown_flushes(equation(model), model.constants(), {"x": Range(smallest=_spacing(_FLOOR))})
        multiplied = (flushes_of(kind(surrogate=model)) for kind in NEURONS.values())  # type: ignore[call-arg]
        return own or next((flushes for flushes in multiplied if flushes), ())
    if isinstance(model, Loss):
        spike, count = Range.of_count(1.0), Range.of_count(_COUNT)
        inputs = {} if model.of_potentials else {"o": spike, "count": count}
        # A real target may be any number.
        target = Range(smallest=_TINIEST, unit=_TINIEST, differ=_NORMAL) if model.real_targets else spike
        inputs |= {"target": target, "target_count": count}
        passes, constants = loss_equations(model), model.layer_constants(PSP(), 100, 100, 10)
        recurrences = [recurrence for recurrence in (passes.forward, passes.backward) if recurrence is not None]
        return tuple(flush for recurrence in recurrences for flush in shown_flushes(recurrence, constants, inputs))
    equations = neuron_equations(filter or model.psp.filter(), model)
    # Sums of weights are multiples of a grid whose step is a normal number.
    sums = {"z": Range(smallest=_NORMAL, unit=_TINIEST)}
    parameters = model.learned()
    learned = {
        free: Range.of_bounds(parameters[name].low, parameters[name].high) for name, free in equations.learned.items()
    }
    forward = shown_flushes(equations.forward, equations.constants, {**learned, **sums})
    return forward + shown_flushes(equations.backward, equations.constants, learned)
