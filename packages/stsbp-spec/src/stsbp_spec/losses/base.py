"""What a loss is: a distance between output spike trains and target spike trains, and its error as an equation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.expr import Expr, Names, Recurrence, unsnapped, variable
from stsbp_spec.lengths import inside
from stsbp_spec.printers import numpy_function
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64, UInt8
from stsbp_spec.values import real

__all__ = ["AHEAD", "STEP", "Loss", "LossStep", "joined"]

AHEAD = ("o", "target")
STEP = (*AHEAD, "count", "target_count", "r")
"""`AHEAD`: the values that a step of the forward pass may use. `STEP`: those for the backward pass and the distance."""


@dataclass(frozen=True)
class LossStep:
    """The new value of each state of a pass over time, and what the step gives."""

    states: Mapping[str, Expr]
    value: Expr


@dataclass(frozen=True)
class Loss(ABC):
    """A distance of spike trains. The loss of a batch is the mean over its samples.

    Samples may have different numbers of steps (lengths.py): a sample of length `L` has the distance and the errors
    that it would have alone, with `T = L`, and an error of zero at every padded step.

    The error `dL/do` is computed in up to two passes over time. `ahead` runs from the first step to the last and gives
    `r`. `back` runs from the last step to the first and gives the error. Most losses only need `back`.

    A subclass is a frozen dataclass. It defines the distance either in `measure`, as an expression, or in `distance`,
    in numpy. A loss that a run stores as data (`--loss module:Class`) must use `measure`.

    Attributes:
        name: in settings and messages.
        parameters: names of the constants of both passes.
        states, back_states: names of the states of each pass, zero before its first step.
        of_potentials: whether it reads the potentials of a readout instead of spikes (cross_entropy.py).
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]] = ()
    back_states: ClassVar[tuple[str, ...]] = ()
    of_potentials: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for each in fields(self):
            check = each.metadata.get("check", _plain)
            object.__setattr__(self, each.name, check(each.name, getattr(self, each.name)))

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        """Distance of each sample, float64.

        Every backend reports losses through this function, from spikes that are the same bits everywhere. A sample's
        distance does not depend on the others of its batch, nor on the layout of the arrays.

        Args:
            spikes: output spike trains, `[T, ...B, N]`.
            targets: target spike trains, broadcastable to it.
            psp: the output layer's synaptic filter.

        Returns:
            Distances, `[...B]`: the sum of `measure` over steps and neurons.
        """
        parts = self.parts(spikes, targets, psp)
        if parts is None:
            raise SpecError(f"the loss {self.name} has no distance: write `measure`, or `distance` in numpy")
        return joined(parts)

    def distances(self, spikes: UInt8, targets: UInt8, psp: PSP, lengths: Int64 | None = None) -> Float64:
        """`distance` of samples with different numbers of steps.

        `lengths` are broadcastable to `[...B]`; of each sample, only so many of its first steps count. None: all have
        `T` steps.
        """
        if lengths is None:
            return self.distance(spikes, targets, psp)
        parts = self.parts(spikes, targets, psp, lengths)
        if parts is not None:
            return joined(parts)
        shape = np.broadcast_shapes(spikes.shape, targets.shape)
        o, target = (np.broadcast_to(x, shape) for x in (spikes, targets))
        found, each = np.empty(shape[1:-1]), np.broadcast_to(lengths, shape[1:-1])
        for length in np.unique(each):
            which = each == length
            found[which] = self.distance(o[:length, which], target[:length, which], psp)
        return found

    def measure(self, p: Names, x: Names) -> Expr | None:
        """What one step of a neuron adds to the distance, float64. `x` has the values that `back` has, and `p` are the
        constants for a batch of one sample. None: `distance` is written in numpy instead."""
        return None

    def parts(self, spikes: UInt8, targets: UInt8, psp: PSP, lengths: Int64 | None = None) -> Float64 | None:
        """What each step and neuron adds to the distance, `[T, ...B, N]`; `joined` adds it up.

        With these parts, a filter runs only once over outputs that are compared with several targets. None: the
        distance is not such a sum, or computing it directly costs no more. Padded steps (see `lengths`) add nothing.
        """
        if (measuring := _measuring(self)) is None:
            return None
        ahead, measured = measuring
        shape = np.broadcast_shapes(spikes.shape, targets.shape)
        o, target = (np.broadcast_to(x, shape).astype(np.float64) for x in (spikes, targets))
        if lengths is None:
            p: tuple[Any, ...] = tuple(np.float64(x) for x in _by_name(self, self.constants(psp, len(spikes), 1)))
        else:
            each = np.broadcast_to(lengths, shape[1:-1])
            within = inside(each, shape[0])[..., None]
            o, target = o * within, target * within
            p = tuple(x[..., None] for x in self.constants_of(psp, each, 1).values())
        count, target_count = o.sum(axis=0), target.sum(axis=0)
        states: tuple[Any, ...] = tuple(np.zeros(shape[1:]) for _ in self.states)
        r = np.zeros(shape[1:])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for now, wanted in zip(o, target, strict=True):
                if ahead is not None:
                    states, (r,) = ahead(*p, now, wanted, *states)
                _, (now[...],) = measured(*p, now, wanted, count, target_count, r)
        if lengths is not None:
            o = np.where(within, o, 0.0)
        if not np.isfinite(o).all():
            step = int(np.argwhere(~np.isfinite(o))[0][0])
            raise NumericError(f"the loss {self.name} measures a distance that is not finite, first at step {step}")
        return o

    def mean(self, spikes: AnyArray, targets: UInt8, psp: PSP, lengths: Int64 | None = None) -> float:
        """Loss of a batch: the mean of its distances, whose sum is rounded once, so their order does not matter."""
        distances = self.distances(spikes, targets, psp, lengths)
        if not np.isfinite(distances).all():
            raise NumericError(f"the loss {self.name} gives a distance that is not finite")
        return math.fsum(distances.flat) / distances.size

    @abstractmethod
    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        """The numbers of the two passes by name, rounded once to float32, for a batch of `batch` samples.

        `steps` is the number of steps of a sample: its own length, if samples have different lengths.
        """

    def constants_of(self, psp: PSP, lengths: AnyArray, batch: int) -> dict[str, Float64]:
        """`constants` of each sample of a batch, float64, of the shape of `lengths`, in the order of `parameters`."""
        different, which = np.unique(lengths, return_inverse=True)
        rows = [_by_name(self, self.constants(psp, int(length), batch)) for length in different]
        columns = np.array(rows, np.float64).reshape(len(different), len(self.parameters)).T
        each = which.reshape(np.shape(lengths))
        return {name: column[each] for name, column in zip(self.parameters, columns, strict=True)}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep | None:
        """A step of the forward pass, from `x.o` and `x.target`. `p`: constants, `s`: states. None: no such pass."""
        return None

    @abstractmethod
    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        """One step of the backward pass, which gives `dL/do`. It may use `x.o`, `x.target`, `x.r`, and the numbers of
        spikes of a neuron over all steps, `x.count` and `x.target_count`."""


def joined(parts: Float64) -> Float64:
    """Distances `[...B]` from `Loss.parts`: over the neurons of a step first, then step by step."""
    # Laid out in rows, because in which order numpy adds a row depends on where its elements lie.
    steps = np.ascontiguousarray(parts).sum(axis=-1)
    total: Float64 = np.zeros(steps.shape[1:])
    for step in steps:
        total += step
    return total


def _plain(name: str, value: object) -> float | str:
    if isinstance(value, str):
        return value
    number = real(name, value)
    if not math.isfinite(number):
        raise SpecError(f"{name} must be a finite number, got {number}")
    return number


def _by_name(loss: Loss, constants: Mapping[str, float]) -> list[float]:
    if missing := [name for name in loss.parameters if name not in constants]:
        raise SpecError(f"the loss {loss.name}: its constants lack {', '.join(missing)}, which `parameters` names")
    return [constants[name] for name in loss.parameters]


@cache
def _measuring(loss: Loss) -> tuple[Any, Any] | None:
    """The pass ahead of a loss (None: there is none) and its measure, if it has one, as functions of float64 arrays."""
    p = Names(f"constant of the loss {loss.name}", {name: variable(name) for name in loss.parameters})
    s = Names(f"state of the loss {loss.name}", {name: variable(name) for name in loss.states})
    x = Names("value of a step", {name: variable(name) for name in STEP})
    value = loss.measure(p, x)
    if value is None:
        return None
    step = loss.ahead(p, s, x)
    ahead = None
    if step is not None:
        outputs = {"r": unsnapped(step.value)}
        ahead = numpy_function(Recurrence("ahead", loss.parameters, AHEAD, step.states, outputs), np.float64)
    measured = Recurrence("distance", loss.parameters, STEP, {}, {"distance": unsnapped(value)})
    return ahead, numpy_function(measured, np.float64)
