"""What a backend is, on one page.

A backend implements the explicit pairs below for arrays of its own library (`Native`) and inherits everything else:
the walk through a network (passes.py), `value_and_grad`, `run` and the trainer (trainer.py). Layout at this door is
time-major, `[T, B, C, H, W]` or `[T, B, N]`; behind it a backend may keep memory as it likes. The file that owns an
equation says what a pair computes and in which order it rounds: synapses/, neurons/, losses/, optim/, grid.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stsbp_spec.equations import COUNT, Constants, filter_equations, loss_equations, neuron_equations
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import WeightGrid, ZeroedErrors
from stsbp_spec.losses.base import Loss
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.neurons.base import NeuronModel
from stsbp_spec.optim.adamw import UPDATE, AdamW, AdamWScalars
from stsbp_spec.passes import BlockTrace, block_backward, block_forward
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.synapses.psp import PSP, SynapticFilter
from stsbp_spec.trainer import Trainer, value_and_grad
from stsbp_spec.typing import AnyArray, Coding, Float32, Memory, Native, Precision, Shape, UInt8

__all__ = ["AbstractBackend", "Batch", "Device", "LayerRun", "NeuronResiduals", "RunResult", "ValueAndGrad"]


class Batch(NamedTuple):
    """Inputs and target spike trains.

    Attributes:
        inputs: uint8; direct coding: images `[B, C, H, W]` of value `x / 256`; events: frames `[T, B, C, H, W]`.
        targets: target spike trains, uint8 `[T, B, N]`; `T` is the number of steps.
    """

    inputs: UInt8
    targets: UInt8


class Device(NamedTuple):
    """A device of a backend, and why it cannot be used (None: it can)."""

    name: str
    description: str
    problem: str | None = None


class LayerRun(NamedTuple):
    """Spikes, uint8, and membrane potentials, float32, of one layer: `[T, B, ...]`."""

    spikes: UInt8
    potentials: Float32


@dataclass(frozen=True)
class RunResult:
    """Every layer's spikes and membrane potentials by name, and the weight grids."""

    layers: dict[str, LayerRun]
    grids: dict[str, WeightGrid]


@dataclass(frozen=True)
class ValueAndGrad:
    """Loss of a batch, output spikes `[T, B, N]` uint8, and the gradient of each layer's master weights.

    `zeroed`: what the error grid took from each layer; empty in `fast` precision, which has none.
    """

    loss: float
    spikes: UInt8
    gradients: dict[str, Float32]
    zeroed: dict[str, ZeroedErrors] = field(default_factory=dict)


class NeuronResiduals(NamedTuple):
    """What a forward pass of neurons leaves for the way back: arrays `[T, B, ...]`.

    Attributes:
        kept: values that `NeuronEquations.kept` names, the membrane potential `u` among them.
        spikes: uint8.
        static: whether one `z` served all steps.
    """

    kept: dict[str, Native]
    spikes: Native
    static: bool


class AbstractBackend(ABC):
    """A way to compute the spec. Public methods take and return numpy; underscored pairs work on native arrays."""

    name: ClassVar[str]

    def __init__(self, device: str | None = None) -> None:
        """Open `device` (None: the backend's default).

        Raises:
            BackendError: the device is unknown or cannot be used; the message says why and what would.
        """
        self.device = self.open(device)

    # What is there.
    @classmethod
    @abstractmethod
    def devices(cls) -> tuple[Device, ...]:
        """Devices of this backend, also those that cannot be used here."""

    @abstractmethod
    def open(self, device: str | None) -> str:
        """Prepare a device and return its name, or raise `BackendError`."""

    # Arrays.
    @abstractmethod
    def asarray(self, x: AnyArray) -> Native:
        """A native array of the same dtype and (logical) shape."""

    @abstractmethod
    def numpy(self, x: Native) -> AnyArray:
        """A numpy array in the layout of the spec; may share memory."""

    @abstractmethod
    def encode(self, inputs: UInt8, coding: Coding) -> Native:
        """Inputs `[B, ...]` (direct) or `[T, B, ...]` (events) as `[1 or T, B, ...]`, as the weights meet them."""

    # Pairs: forward -> outputs, residuals; backward(residuals, cotangents) -> cotangents.
    @abstractmethod
    def synapse_forward(self, synapse: Conv2d | Linear, s: Native, wq: Native) -> tuple[Native, Any]:
        """`z = W s`, `[T, B, ...]`: synapses/conv2d.py, synapses/linear.py."""

    @abstractmethod
    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Native, *, precision: Precision, need_input: bool
    ) -> tuple[Native | None, Native]:
        """`(ds, dW)`; `ds` is None where `need_input` is false. `reproducible`: sums in float64, rounded once."""

    @abstractmethod
    def avgpool2d_forward(self, pool: AvgPool2d, s: Native) -> tuple[Native, Any]:
        """Pooled spikes: synapses/avgpool2d.py."""

    @abstractmethod
    def avgpool2d_backward(self, pool: AvgPool2d, residuals: Any, d: Native) -> Native:
        """Adjoint of the pooling."""

    @abstractmethod
    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> Native:
        """`random.keep_mask` as a native array of `shape` `[B, ...]`."""

    @abstractmethod
    def dropout(self, mask: Native, s: Native) -> Native:
        """`s * mask`, its own adjoint: synapses/dropout.py."""

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Native],
        steps: int,
        *,
        summed: bool = False,
    ) -> dict[str, Native]:
        """Run an equation over time, or, with one step and no states, over the elements of arrays.

        Each operation rounds once to float32, as it is written. States are zero before the first step.

        Args:
            recurrence: the equation, which the backend prints in its language (printers.py).
            constants: its parameters by name.
            inputs: its inputs by name, float32 or uint8, `[steps, ...]`, or `[1, ...]` for the same at every step.
            steps: how many; from the last to the first where the recurrence runs in reverse.
            summed: add the outputs, which are numbers, over the steps in the order in which they come.

        Returns:
            The outputs by name, `[steps, ...]`, or `[1, ...]` where `summed`; float32, conditions uint8.
        """
        raise NotImplementedError

    # The contract.
    @abstractmethod
    def weight_grid(self, block: Block, w: Native) -> tuple[Native, WeightGrid]:
        """Weights of the forward pass: `grid.weight_grid`."""

    @abstractmethod
    def error_grid(self, dz: Native, bits: int) -> tuple[Native, Native]:
        """Errors rounded for `reproducible` precision, and how many of them were zeroed: `grid.error_grid`.

        The numbers are integers `[..., 2]`, whose sum over the leading axes counts; nothing waits for them until the
        end of the step.
        """

    @abstractmethod
    def gradient_norm(self, gradients: Sequence[Native]) -> float:
        """`optim.gradient_norm`."""

    @abstractmethod
    def spike_rate(self, s: Native) -> float:
        """Mean of spikes over all axes."""

    # What follows from it; a backend may override these with something faster.
    def neuron_forward(
        self, neuron: NeuronModel, filter: SynapticFilter, z: Native, steps: int
    ) -> tuple[Native, NeuronResiduals]:
        """Spikes `[T, B, ...]` from `z` `[1 or T, B, ...]`: neurons/, synapses/psp.py."""
        equations = neuron_equations(filter, neuron)
        found = self.recur(equations.forward, equations.constants, {"z": z}, steps)
        spikes = found.pop("o")
        return spikes, NeuronResiduals(found, spikes, static=len(z) == 1 and steps > 1)

    def neuron_backward(
        self, neuron: NeuronModel, filter: SynapticFilter, residuals: NeuronResiduals, ds: Native
    ) -> Native:
        """`dL/dz`, the shape of `z`, from `dL/do`."""
        equations = neuron_equations(filter, neuron)
        inputs = {**residuals.kept, "g": ds}
        return self.recur(equations.backward, equations.constants, inputs, len(ds), summed=residuals.static)["dz"]

    def neuron_potentials(self, residuals: NeuronResiduals) -> Native:
        """Membrane potentials `[T, B, ...]` of a forward pass."""
        return residuals.kept["u"]

    def psp_forward(self, psp: PSP, s: Native) -> Native:
        """Postsynaptic potentials `[T, ...]` of spike trains: synapses/psp.py."""
        equations = filter_equations(psp.filter())
        return self.recur(equations.forward, equations.constants, {"o": s}, len(s))["a"]

    def psp_backward(self, psp: PSP, da: Native) -> Native:
        """Adjoint of the filter."""
        equations = filter_equations(psp.filter())
        return self.recur(equations.backward, equations.constants, {"da": da}, len(da))["do"]

    def loss_error(self, loss: Loss, psp: PSP, s: Native, targets: Native) -> Native:
        """`dL/do` of the batch loss at the output, `[T, B, N]`: losses/."""
        steps, batch = s.shape[:2]
        equations = loss_equations(loss)
        constants = {name: np.float32(value) for name, value in loss.constants(psp, steps, batch).items()}
        values = {"o": s, "target": targets}
        for name, counted in (("count", s), ("target_count", targets)):
            if name in equations.backward.inputs:
                values[name] = self.recur(COUNT, {}, {"o": counted}, steps, summed=True)["n"]
        if equations.forward is not None:
            values["r"] = self.recur(equations.forward, constants, values, steps)["r"]
        return self.recur(equations.backward, constants, values, steps)["do"]

    def adamw(self, scalars: AdamWScalars, w: Native, g: Native, m: Native, v: Native) -> tuple[Native, Native, Native]:
        """New `(w, m, v)`: optim/adamw.py. May work in place."""
        constants = {name: getattr(scalars, name) for name in UPDATE.parameters}
        inputs = {"w": w[None], "g": g[None], "m": m[None], "v": v[None]}
        new = self.recur(UPDATE, constants, inputs, 1)
        return new["new_w"][0], new["new_m"][0], new["new_v"][0]

    def block_forward(
        self, block: Block, s: Native, wq: Native, steps: int, dropout: tuple[int, int] | None
    ) -> BlockTrace:
        """One block of the forward pass: `passes.block_forward`."""
        return block_forward(self, block, s, wq, steps, dropout)

    def pack_spikes(self, s: Native) -> Any:
        """Spikes, zeros and ones, as bits."""
        x = self.numpy(s)
        return np.packbits(x.astype(np.uint8)), x.shape, x.dtype

    def unpack_spikes(self, packed: Any) -> Native:
        """Inverse of `pack_spikes`."""
        bits, shape, dtype = packed
        return self.asarray(np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(dtype))

    def block_backward(
        self, trace: BlockTrace, ds: Native, precision: Precision, *, training: bool
    ) -> tuple[Native | None, Native]:
        """One block of the backward pass: `passes.block_backward`."""
        return block_backward(self, trace, ds, precision, training=training)

    def value_and_grad(
        self,
        network: NetworkSpec,
        loss: Loss,
        weights: dict[str, Float32],
        batch: Batch,
        *,
        precision: Precision = "fast",
        dropout: tuple[int, int] | None = None,
    ) -> ValueAndGrad:
        """Loss, output spikes and gradients of a batch; numpy in and out.

        Args:
            network: the network.
            loss: the loss.
            weights: master weights by layer name, float32, shapes `network.weight_shapes`.
            batch: inputs and targets.
            precision: of the backward pass.
            dropout: `(seed, step)` of the masks; None: evaluation, no dropout.

        Raises:
            ShapeError: an array has the wrong shape or dtype.
            SpecError: an unknown loss or precision, or a seed or step of dropout outside `[0, 2**32)`.
            NumericError: a weight or a gradient is not finite; names the layer.
        """
        return value_and_grad(self, network, loss, weights, batch, precision, dropout)

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        """Run a network without dropout and return every layer's spikes and membrane potentials, numpy in and out."""
        from stsbp_spec.trainer import run

        return run(self, network, weights, inputs, steps)

    def trainer(
        self,
        network: NetworkSpec,
        loss: Loss,
        optimizer: AdamW,
        *,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
    ) -> Trainer:
        """The object that the training loop drives: `init`, `step`, `predict`, `export_state`, `import_state`."""
        return Trainer(self, network, loss, optimizer, precision, seed, memory)
