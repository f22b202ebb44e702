"""Inputs and outputs of a backend: batches, runs, gradients and the results of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, NamedTuple

from stsbp_spec.contract.grid import WeightGrid, ZeroedErrors
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.typing import AnyArray, Array, Float32, Int64, UInt8

__all__ = [
    "Batch",
    "Device",
    "LayerRun",
    "NeuronResiduals",
    "Prediction",
    "Resumed",
    "RunResult",
    "StepResult",
    "TrainState",
    "ValueAndGrad",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    In = TypeVar("In", bound=Inputs, covariant=True, default=UInt8)
else:
    from typing import TypeVar

    In = TypeVar("In", bound=Inputs, covariant=True)
"""Type of the inputs of a batch. Plain `Batch` has arrays."""


class Batch(NamedTuple, Generic[In]):
    """Inputs and targets.

    Attributes:
        inputs: uint8. With direct coding: images `[B, C, H, W]` of value `x / 256`. With events: frames
            `[T, B, C, H, W]` or `[T, B, N]`, or frames of zeros and ones as bits (`PackedFrames`).
        targets: target spike trains, uint8 `[T, B, N]`; for a loss with `real_targets`, float32. `T` is the number of
            steps.
        lengths: number of steps of each sample, int64 `[B]`, 1 to `T`. Later steps are padding (lengths.py), and their
            inputs and targets do not matter. None: all samples have `T` steps.
    """

    inputs: In
    targets: AnyArray
    lengths: Int64 | None = None


class Device(NamedTuple):
    """A device of a backend. `problem` states why it cannot be used; None: it can be used."""

    name: str
    description: str
    problem: str | None = None


class LayerRun(NamedTuple):
    """Spikes (uint8) and membrane potentials (float32) of one layer, both `[T, B, ...]`."""

    spikes: UInt8
    potentials: Float32


@dataclass(frozen=True)
class RunResult:
    """Every layer's spikes and membrane potentials by name, and the weight grids."""

    layers: dict[str, LayerRun]
    grids: dict[str, WeightGrid]


@dataclass(frozen=True)
class ValueAndGrad:
    """Loss of a batch, output spikes `[T, B, N]` uint8, and the gradient of the master weights of each layer.

    `zeroed` counts the errors of each layer that the error grid set to zero. It is empty in `fast` precision, which has
    no error grid. `penalties` are the rate penalties by layer. They are not in the loss, but in the gradients.
    """

    loss: float
    spikes: UInt8
    gradients: dict[str, Float32]
    zeroed: dict[str, ZeroedErrors] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)


class NeuronResiduals(NamedTuple, Generic[Array]):
    """Values that the backward pass of neurons needs from their forward pass: arrays `[T, B, ...]`.

    Attributes:
        kept: the values that `NeuronEquations.kept` names. They include the membrane potential `u`.
        spikes: uint8.
        static: whether the same `z` was used for all steps.
        learned: learned parameters of each element, `[1, B, ...]`, as inputs of the equations.
    """

    kept: dict[str, Array]
    spikes: Array
    static: bool
    learned: Mapping[str, Array] = MappingProxyType({})


class Resumed(NamedTuple, Generic[Array]):
    """Results of neurons that continued from given states.

    Attributes:
        neurons: values for the backward pass.
        first: spikes of the step before the first step, `[1, B, ...]`.
        after: spikes of the last step, and the states after it, `[1, B, ...]`.
        error: error of the potentials, `[T, B, ...]`; None: there is none.
    """

    neurons: NeuronResiduals[Array]
    first: Array
    after: tuple[Array, ...]
    error: Array | None = None


@dataclass
class TrainState(Generic[Array]):
    """Master weights and optimiser state as native arrays by layer name. The training loop does not read them.

    Attributes:
        step: number of updates.
        weights: weights and other parameters, and running statistics.
        m: first moments; for SGD, the momentum.
        v: second moments; empty for SGD.
    """

    step: int
    weights: dict[str, Array]
    m: dict[str, Array]
    v: dict[str, Array]


@dataclass(frozen=True)
class StepResult:
    """Numbers that one update reports.

    Attributes:
        spikes: output spike trains before the update, `[T, B, N]` uint8, including padded steps. If the network ends
            with a readout, these are its potentials, float32. The same holds for `ValueAndGrad` and `Prediction`.
        rates: mean number of spikes per neuron and step for each layer, without padded steps.
        grids: weight grid of each layer.
        gradient_norm: global norm of the gradients before clipping.
        learning_rate: learning rate of this update.
        measure: function that computes `loss`. It is called only on request, because it filters all steps.
        zeroed: for each layer, the errors that the error grid set to zero. Empty in `fast` precision, which has no
            error grid.
        penalties: rate penalty of each penalised layer before the update. `loss` does not contain them.
    """

    spikes: UInt8
    rates: dict[str, float]
    grids: dict[str, WeightGrid]
    gradient_norm: float
    learning_rate: float
    measure: Callable[[], float] = field(repr=False, compare=False)
    zeroed: dict[str, ZeroedErrors] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch before the update."""
        return self.measure()


@dataclass(frozen=True)
class Prediction:
    """Output spike trains `[T, B, N]` uint8, and mean spikes per neuron and step of each layer, as in `StepResult`."""

    spikes: UInt8
    rates: dict[str, float]
