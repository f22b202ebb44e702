"""The base class of losses: distances between outputs and targets, and their errors as equations.

Outputs and targets are spike trains. With `of_potentials`, outputs are the potentials of a readout, and with
`real_targets`, targets are real numbers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Expr, Names, Recurrence, as_expr, as_exprs, unsnapped, variable
from stsbp_spec.equations.printers import numpy_function
from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.user_classes import Guarded, constants_by_name, declared, returns
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, Float64, Int64
from stsbp_spec.validation import array_of, real

__all__ = ["AHEAD", "STEP", "Loss", "LossStep", "joined", "step_names", "step_values"]

AHEAD = ("o", "target")
_COUNTS = ("count", "target_count")
STEP = (*AHEAD, *_COUNTS, "r")
"""`AHEAD`: values that a step of the forward pass may use. `STEP`: values for the backward pass and the distance."""


@dataclass(frozen=True)
class LossStep:
    """The new value of each state of a pass over time, and the result of the step. Plain numbers are made constants."""

    states: Mapping[str, Expr]
    value: Expr

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", as_exprs("the states of a step", self.states))
        object.__setattr__(self, "value", as_expr(self.value, "the result of a step"))


@dataclass(frozen=True)
class Loss(metaclass=Guarded):
    """A distance between outputs and targets. The loss of a batch is the mean over its samples.

    Samples may have different numbers of steps (lengths.py). A sample of length `L` has the same distance and errors as
    if it were computed alone with `T = L`. Its errors are zero at all padded steps.

    The error `dL/do` is computed in up to two passes over time. `ahead` runs from the first step to the last and gives
    `r`. `back` runs from the last step to the first and gives the error. Most losses only need `back`.

    A subclass is a frozen dataclass. It defines the distance either in `measure`, as an expression, or in `distance`,
    in numpy. A loss that a run stores as data (`--loss module:Class`) must use `measure`.

    Attributes:
        name: name in settings and messages.
        parameters: names of the constants of both passes.
        states, back_states: names of the states of each pass. They are zero before its first step.
        of_potentials: whether the loss reads the potentials of a readout instead of spikes (mean_squared_error.py,
            cross_entropy.py). There are then no spike counts.
        reads_classes: whether the loss only reads which class the targets show (cross_entropy.py). It then computes its
            errors itself.
        real_targets: whether targets are real numbers, float32, instead of spikes. This needs `of_potentials`.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]] = ()
    back_states: ClassVar[tuple[str, ...]] = ()
    of_potentials: ClassVar[bool] = False
    reads_classes: ClassVar[bool] = False
    real_targets: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Guarded.guard(cls, _GUARDS)

    def __post_init__(self) -> None:
        declared(self, name=str, parameters=(tuple, list, str))
        if self.real_targets and not self.of_potentials:
            raise SpecError(
                f"the loss {self.name} has real_targets, so it must read potentials: set of_potentials = True"
            )
        for field in fields(self):
            check = field.metadata.get("check", _plain)
            object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    def distance(self, spikes: AnyArray, targets: AnyArray, psp: PSP) -> Float64:
        """Distance of each sample, float64.

        Every backend reports losses through this function. The spikes are the same bits on all backends. The distance
        of a sample does not depend on the other samples of its batch, nor on the layout of the arrays.

        Args:
            spikes: output spike trains, `[T, ...B, N]`; for a loss of potentials, float32 potentials.
            targets: target spike trains, or real targets, broadcastable to the shape of `spikes`.
            psp: the output layer's synaptic filter.

        Returns:
            Distances, `[...B]`: the sum of `measure` over steps and neurons.
        """
        parts = self.parts(spikes, targets, psp)
        if parts is None:
            raise SpecError(f"the loss {self.name} has no distance: write `measure`, or `distance` in numpy")
        return joined(parts)

    def distances(self, spikes: Any, targets: Any, psp: PSP, lengths: Any = None) -> Float64:
        """`distance` of samples with different numbers of steps. Spikes and targets may be tensors of torch or JAX.

        `lengths` are broadcastable to `[...B]`. Only the first `length` steps of a sample count. None: all samples have
        `T` steps.
        """
        spikes, targets = array_of(spikes), array_of(targets)
        if lengths is None:
            return self.distance(spikes, targets, psp)
        lengths = array_of(lengths)
        parts = self.parts(spikes, targets, psp, lengths)
        if parts is not None:
            return joined(parts)
        shape = np.broadcast_shapes(spikes.shape, targets.shape)
        o, target = (np.broadcast_to(x, shape) for x in (spikes, targets))
        distances, sample_lengths = np.empty(shape[1:-1]), np.broadcast_to(lengths, shape[1:-1])
        for length in np.unique(sample_lengths):
            selected = sample_lengths == length
            distances[selected] = self.distance(o[:length, selected], target[:length, selected], psp)
        return distances

    def measure(self, p: Names, x: Names) -> Expr | None:
        """Contribution of one neuron at one step to the distance, float64. `x` has the same values as in `back`, and
        `p` holds the constants for a batch of one sample. None: the distance is in `distance`, in numpy."""
        return None

    def parts(self, spikes: AnyArray, targets: AnyArray, psp: PSP, lengths: Int64 | None = None) -> Float64 | None:
        """Contribution of each step and neuron to the distance, `[T, ...B, N]`. `joined` adds them.

        If outputs are compared with several targets, these contributions allow a filter to run only once over the
        outputs. None: the distance is not such a sum, or computing it directly is as fast. Padded steps (see `lengths`)
        contribute nothing.
        """
        if (measuring := _measuring(self)) is None:
            return None
        forward, measured = measuring
        shape = np.broadcast_shapes(spikes.shape, targets.shape)
        o, target = (np.broadcast_to(x, shape).astype(np.float64) for x in (spikes, targets))
        if lengths is None:
            constants = self.layer_constants(psp, len(spikes), 1, shape[-1])
            p: tuple[Any, ...] = tuple(np.float64(x) for x in _by_name(self, constants))
        else:
            sample_lengths = np.broadcast_to(lengths, shape[1:-1])
            is_inside = inside(sample_lengths, shape[0])[..., None]
            o, target = o * is_inside, target * is_inside
            p = tuple(x[..., None] for x in self.constants_of(psp, sample_lengths, 1, shape[-1]).values())
        count, target_count = o.sum(axis=0), target.sum(axis=0)
        states: tuple[Any, ...] = tuple(np.zeros(shape[1:]) for _ in self.states)
        r = np.zeros(shape[1:])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for step_outputs, step_targets in zip(o, target, strict=True):
                if forward is not None:
                    states, (r,) = forward(*p, step_outputs, step_targets, *states)
                _, (step_outputs[...],) = measured(*p, step_outputs, step_targets, count, target_count, r)
        if lengths is not None:
            o = np.where(is_inside, o, 0.0)
        if not np.isfinite(o).all():
            step = int(np.argwhere(~np.isfinite(o))[0][0])
            raise NumericError(f"the loss {self.name} measures a distance that is not finite, first at step {step}")
        return o

    def mean(self, spikes: AnyArray, targets: AnyArray, psp: PSP, lengths: Int64 | None = None) -> float:
        """Loss of a batch: the mean of its distances. Their sum is rounded once, so their order does not matter."""
        distances = self.distances(spikes, targets, psp, lengths)
        if not np.isfinite(distances).all():
            raise NumericError(f"the loss {self.name} gives a distance that is not finite")
        return math.fsum(distances.flat) / distances.size

    @abstractmethod
    def constants(self, psp: PSP, steps: int, batch: int) -> Mapping[str, float]:
        """The constants of both passes by name, for a batch of `batch` samples. They are rounded once to float32.

        `steps` is the number of steps of a sample. If samples have different lengths, it is the sample's own length.
        """

    def layer_constants(self, psp: PSP, steps: int, batch: int, neurons: int) -> Mapping[str, float]:
        """`constants`, for losses whose constants also depend on the number of output neurons: override this method."""
        return self.constants(psp, steps, batch)

    def constants_of(self, psp: PSP, lengths: AnyArray, batch: int, neurons: int) -> dict[str, Float64]:
        """`layer_constants` of each sample of a batch, float64, in the shape of `lengths`, in the order of
        `parameters`."""
        different, which = np.unique(lengths, return_inverse=True)
        rows = [_by_name(self, self.layer_constants(psp, int(length), batch, neurons)) for length in different]
        columns = np.array(rows, np.float64).reshape(len(different), len(self.parameters)).T
        row_indices = which.reshape(np.shape(lengths))
        return {name: column[row_indices] for name, column in zip(self.parameters, columns, strict=True)}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep | None:
        """One step of the forward pass, from `x.o` and `x.target`. `p`: constants, `s`: states. None: no such pass."""
        return None

    @abstractmethod
    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        """One step of the backward pass, which gives `dL/do`. It may use `x.o`, `x.target`, `x.r`, and the spike
        counts of a neuron over all steps, `x.count` and `x.target_count`."""


def joined(parts: Float64) -> Float64:
    """Distances `[...B]` from `Loss.parts`: the sum over the neurons of each step, then over the steps."""
    # Make the rows contiguous, because numpy's order of addition within a row depends on the memory layout.
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


def _constants(name: str, loss: Loss, returned: object) -> object:
    constants: Any = constants_by_name(name, loss, returned)
    if missing := [name for name in loss.parameters if name not in constants]:
        raise SpecError(f"the loss {loss.name}: its constants lack {', '.join(missing)}, which `parameters` names")
    return constants


def _measured(name: str, _: object, returned: object) -> Expr | None:
    return None if returned is None else as_expr(returned, name)


_GUARDS = {
    "constants": _constants,
    "layer_constants": _constants,
    "measure": _measured,
    "ahead": returns(LossStep, type(None)),
    "back": returns(LossStep),
}


def _by_name(loss: Loss, constants: Mapping[str, float]) -> list[float]:
    return [constants[name] for name in loss.parameters]


def step_values(loss: Loss, *, ahead: bool) -> tuple[str, ...]:
    """Names of what the backward pass and the distance may use. `ahead`: whether the loss has a forward pass."""
    # Potentials and real targets have no counts, and their sums would not be exact.
    missing = (*(_COUNTS if loss.of_potentials else ()), *(() if ahead else ("r",)))
    return tuple(name for name in STEP if name not in missing)


def step_names(loss: Loss, forward_step: LossStep | None) -> Names:
    """`step_values` as variables."""
    names = step_values(loss, ahead=forward_step is not None)
    return Names("value of a step", {name: variable(name) for name in names})


@cache
def _measuring(loss: Loss) -> tuple[Any, Any] | None:
    """The forward pass of a loss (None: there is none) and its `measure`, as functions of float64 arrays.

    None if the loss does not define `measure`.
    """
    p = Names(f"constant of the loss {loss.name}", {name: variable(name) for name in loss.parameters})
    s = Names(f"state of the loss {loss.name}", {name: variable(name) for name in loss.states})
    step = loss.ahead(p, s, Names("value of a step", {name: variable(name) for name in AHEAD}))
    value = loss.measure(p, step_names(loss, step))
    if value is None:
        return None
    forward = None
    if step is not None:
        outputs = {"r": unsnapped(step.value)}
        forward = numpy_function(Recurrence("ahead", loss.parameters, AHEAD, step.states, outputs), np.float64)
    measured = Recurrence("distance", loss.parameters, STEP, {}, {"distance": unsnapped(value)})
    return forward, numpy_function(measured, np.float64)
