"""stsbp's layers as `nn.Module`s. They work with ordinary torch code and optimisers, and compute the spec's bits.

Spike trains are float32 tensors of 0 and 1, `[T, B, C, H, W]` or `[T, B, N]`. Each module is a segment of a network
(segments.py), so its forward pass gives the same spikes as every backend, and its backward pass gives the spec's
gradients.

    net = Network(NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    loss = spike_loss(VanRossum(), net(frames), targets, psp=net.spec.output_psp)
    loss.backward()
    optimizer.step()
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import EllipsisType
from typing import Any, NamedTuple, NoReturn, Self, TypeAlias

import numpy as np
import torch
from stsbp_spec.contract.grid import EXACT_LIMIT_BITS, FLOOR
from stsbp_spec.contract.random import check_seed, check_step
from stsbp_spec.engine.checks import check_psp, check_weights, other_axes, samples_first
from stsbp_spec.engine.plan import plan
from stsbp_spec.errors import NetworkError, NumericError, ShapeError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons import ALIF as ALIFSpec
from stsbp_spec.models.neurons import IF as IFSpec
from stsbp_spec.models.neurons import LIF as LIFSpec
from stsbp_spec.models.neurons import PLIF as PLIFSpec
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.networks.graph import Edge, Input, Projection, Values
from stsbp_spec.networks.graph import Neurons as NeuronsOp
from stsbp_spec.networks.initial_weights import DEFAULT_GAIN, initial_weights
from stsbp_spec.networks.layers import Layer, SpikingLayer
from stsbp_spec.networks.ops import PSP, AvgPool2d, Conv2d, Dropout, GlobalAvgPool, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops.axes import PerAxis
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Precision, Shape
from stsbp_spec.validation import integer, integer_between, real, shown
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils.weak import WeakTensorKeyDictionary

from stsbp_torch.engine.checks import ONE_INPUT, RETURNED, check_axes, check_precision, check_steps, check_tensor
from stsbp_torch.engine.segments import (
    SegmentKey,
    StandaloneLayer,
    TorchSegment,
    TorchSegmentOutput,
    TorchSegmentSettings,
    backend_of,
    compute,
    segment_key_of,
)
from stsbp_torch.models.losses import spike_loss

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "PLIF",
    "Network",
    "Neurons",
    "Output",
    "Sequential",
    "SpikingAvgPool2d",
    "SpikingConv2d",
    "SpikingGlobalAvgPool",
    "SpikingLinear",
    "SpikingMaxPool2d",
    "SpikingUpsample2d",
    "State",
    "backend_of",
    "spike_loss",
]

_GRID_HINT = (
    "; input_exponent says how fine they are (0: spikes, 2: spikes after 2x2 pooling, 8: images of value x / 256), "
    "input_max how large. For any real numbers, use torch.nn.Linear or torch.nn.Conv2d, and LIF() behind it"
)
State: TypeAlias = dict[str, tuple[torch.Tensor, ...]]
"""The state after the steps of a call, float32 by name. For each population, it contains the spikes of the last step
and the states of filter and neurons, `[1, B, ...]`. For each delayed edge, it contains the spikes that have not arrived
yet, `[delay, B, ...]`."""


class Output(NamedTuple):
    """The full output of a module.

    Attributes:
        spikes: spikes of the last layer, `[T, B, ...]`.
        potentials: membrane potentials of each population by name, `[T, B, ...]`; losses may use them.
        state: the state for the next call. No gradient flows back through it.
        layer_spikes: spikes of each population by the same names as the potentials, `[T, B, ...]`; losses may use them.
            A readout has none.
    """

    spikes: torch.Tensor
    potentials: dict[str, torch.Tensor]
    state: State
    layer_spikes: dict[str, torch.Tensor]


_UNLIMITED = 2.0**16
"""A largest value that is too large for spikes and counts."""


@torch.no_grad()
def _clip(x: torch.Tensor, learned: Learned) -> None:
    x.copy_(torch.where(x.abs() < FLOOR, 0.0, x).clamp(learned.low, learned.high))


def _arrays(states: Sequence[tuple[str, int]], state: State | None) -> list[torch.Tensor]:
    """The arrays of a state in the order in which a segment takes them; an empty list for None."""
    if state is None:
        return []
    if not isinstance(state, Mapping):
        raise ShapeError(f"a state must be a dict of arrays by name, got {type(state).__name__}; {RETURNED}")
    tensors: list[torch.Tensor] = []
    for name, count in states:
        arrays = state.get(name, ())
        if not isinstance(arrays, (tuple, list)) or not all(isinstance(x, torch.Tensor) for x in arrays):
            raise ShapeError(f"{name} in the state must be a tuple of tensors, got {type(arrays).__name__}; {RETURNED}")
        if len(arrays) != count:
            raise ShapeError(
                f"the state has {len(arrays)} arrays of {name}, not {count}; it belongs to another module, or to the "
                "other mode (training or evaluation)"
            )
        tensors += arrays
    for x in tensors:
        if x.requires_grad:
            raise SpecError("gradients do not flow into earlier calls; give a detached state, as modules return it")
        if x.is_meta:
            raise ShapeError(f"an array of the state is on the device meta, which stores no values; {RETURNED}")
    return tensors


def _return_value(results: TorchSegmentOutput, name: str, full: bool) -> Any:
    """The return value of a layer that is used on its own."""
    if not full:
        return results.outputs[0]
    assert results.potentials is not None
    return Output(results.outputs[0], {name: results.potentials}, results.state, {name: results.outputs[0]})


_UNFILTERED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For the memory of spikes that a module returned, the synaptic filter that the next weights must apply."""

_MARK = "stsbp.unfiltered"
"""Key in the metadata of an autograd node that returned spikes: number of the output, of its elements, and filter."""

_NODES = 8
"""Number of autograd nodes in which `_missing` looks for spikes, for example of a dropout and a copy."""


def _memory(x: torch.Tensor) -> torch.Tensor:
    """The tensor of which `x` is a view, or `x`."""
    return x if x._base is None else x._base


def _metadata(node: Any) -> dict[str, tuple[int, int, PSP | None]]:
    metadata: dict[str, tuple[int, int, PSP | None]] = node.metadata
    return metadata


def _mark(spikes: torch.Tensor, psp: PSP | None) -> None:
    """Remember the filter of spikes, for `_missing`. It is not known in programs that torch traces or transforms."""
    if _is_traced():
        return
    # With these time constants, the filter returns its input.
    psp = None if psp is None or (psp.tau_s, psp.tau_rise) == (1, 0) else psp
    if psp is not None:
        _UNFILTERED[_memory(spikes)] = psp
    if spikes.grad_fn is not None:
        _metadata(spikes.grad_fn)[_MARK] = spikes.output_nr, spikes.numel(), psp


def _missing(spikes: torch.Tensor) -> PSP | None:
    """The filter of spikes of a module, also of their views. None: there is none, or it is not known.

    Where autograd records, the filter is also known after operations on each element, for example a copy, ReLU or
    dropout.
    """
    if _is_traced():
        return None
    psp: PSP | None = _UNFILTERED.get(_memory(spikes))  # type: ignore[no-untyped-call]
    node, output = spikes.grad_fn, spikes.output_nr
    for _ in range(_NODES):
        if psp is not None or node is None:
            break
        if (mark := _metadata(node).get(_MARK)) is not None:
            return mark[2] if mark[:2] == (output, spikes.numel()) else None
        sources = [source for source in node.next_functions if source[0] is not None]
        node, output = sources[0] if len(sources) == 1 else (None, 0)
    return psp


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _check_types(module: str, parameters: Iterable[torch.Tensor]) -> None:
    for x in parameters:
        if x.is_meta:
            raise SpecError(
                f"the parameters of {module} are on the device meta, which holds no values; call .to_empty(device=...) "
                "and load them with load_state_dict"
            )
        if x.dtype != torch.float32:
            raise SpecError(
                f"the parameters of {module} must be float32, in which their sums are exact, got {x.dtype}; "
                "do not call .double(), .half() and the like"
            )


_recorded = torch.inference_mode(False)
"""Decorator of constructors, whose parameters autograd must record later, also if they are made in inference mode."""


class Neurons(torch.nn.Module):
    """Neurons of any model with the synaptic filter before them, as in `stsbp_spec.models.neurons`.

    Learned parameters are in `learned`, by name. Call `clip_to_domain` after each step of an optimiser.

    Args:
        neuron: neuron model with its parameters; None: LIF.
        psp: filter of the layer below; None: inputs are not filtered.
        channels: `C` of the inputs, or `N` of a full connection. Only models with one learned parameter per channel
            need it.
    """

    @_recorded
    def __init__(self, neuron: NeuronModel | None = None, psp: PSP | None = None, channels: int | None = None) -> None:
        super().__init__()
        if not (neuron is None or isinstance(neuron, NeuronModel)):
            raise SpecError(
                f"neuron must be a neuron model, for example stsbp_torch.LIF() or stsbp_spec.models.neurons.LIF(), got "
                f"{shown(neuron)}; stsbp_spec.models.neurons.parse_neuron reads the notation of the command line"
            )
        if psp is not None:
            check_psp(psp)
        self.neuron = neuron or LIFSpec()
        self.psp = psp
        learned = self.neuron.learned()
        if channels is None and any(x.per == "channel" for x in learned.values()):
            raise SpecError(f"the neuron {self.neuron.name} learns one number per channel; give channels=...")
        values = {name: torch.from_numpy(x.values((channels or 1,))) for name, x in learned.items()}
        # An empty ParameterDict would appear in the printed module.
        self.learned: torch.nn.ParameterDict | dict[str, torch.Tensor] = (
            torch.nn.ParameterDict(values) if values else {}
        )
        self._handles: dict[tuple[float, bool], SegmentKey] = {}
        for biased in (False, True):
            self._handle(1.0, biased)

    def _handle(self, gain: float, biased: bool) -> SegmentKey:
        if (gain, biased) not in self._handles:
            values = Values((), pending=self.psp, gain=gain, weighted=True, biased=biased)
            self._handles[gain, biased] = segment_key_of(
                StandaloneLayer(((self.neuron.name, NeuronsOp(self.neuron)),), values)
            )
        return self._handles[gain, biased]

    def clip_to_domain(self) -> None:
        """Clip every learned parameter to its domain, as the spec's update does."""
        for name, x in self.neuron.learned().items():
            _clip(self.learned[name], x)

    def _get_name(self) -> str:
        return type(self.neuron).__name__ if type(self) is Neurons else type(self).__name__

    def extra_repr(self) -> str:
        parameters = ((f.name, getattr(self.neuron, f.name)) for f in fields(self.neuron))  # type: ignore[arg-type]
        values = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in parameters)
        return ", ".join([*values, f"psp={self.psp}"])

    def infer(self, values: Values) -> Values:
        """Description of the neurons' output for weighted sums."""
        return NeuronsOp(self.neuron).infer(values)

    def forward(
        self,
        z: torch.Tensor,
        steps: int | None = None,
        gain: float = 1.0,
        *,
        bias: torch.Tensor | None = None,
        precision: Precision = "fast",
        checked: bool = False,
        state: State | None = None,
        full: bool = False,
    ) -> Any:
        """Spikes from `z = W o`, `[T, B, N]` or `[T, B, C, H, W]`, in the same shape.

        Args:
            z: weighted spikes of the layer below, in a type of at most 32 bits. `T` is 1 for a static input, which has
                the same values at all `steps`.
            steps: number of steps `T` for a static input.
            gain: factor on the weighted spikes, for example for dropout.
            bias: bias that is added to `z` before the filter, `[C]`, or `[N]` for a full connection; None: no bias.
            precision: precision of the gradients of learned parameters.
            checked: True skips the check that `z` is finite.
            state: state after the previous steps; None: the neurons start at rest.
            full: True returns an `Output` with potentials and state.

        Raises:
            ShapeError: `z` has other axes, `steps` does not fit `z`, or the state belongs to another module or batch.
            SpecError: `z` is float64.
            NumericError: a value of `z`, of the state or `gain` is not finite, or a learned parameter is outside its
                domain.
        """
        steps = check_steps(z, steps)
        check_axes(self._get_name(), z)
        check_precision(precision)
        if not math.isfinite(gain):
            raise NumericError(f"the gain of {self._get_name()} is not finite: {gain}")
        if z.dtype == torch.float64:
            raise SpecError(f"{self._get_name()} computes in float32 and would round sums in float64: give .float()")
        parameters = [*([] if bias is None else [bias]), *self.learned.values()]
        _check_types(self._get_name(), parameters)
        biased = bias is not None
        handle = self._handle(gain, biased)
        checked_by = "" if checked else self._get_name()
        settings = TorchSegmentSettings(
            steps, True, precision=precision, full=full or state is not None, checked=checked_by
        )
        results = compute(handle, settings, [z], parameters, _arrays(handle.states[True], state))
        _mark(results.outputs[0], self.neuron.psp)
        return _return_value(results, "neurons", full)


class LIF(Neurons):
    """Leaky integrate-and-fire neurons.

    `psp` and `channels` are the arguments of `Neurons`. All other arguments are those of the spec's `LIF`, for example
    `reset="subtract"`.
    """

    def __init__(
        self,
        tau_m: float = 8.0,
        tau_s: float = 4.0,
        threshold: float = 1.0,
        *,
        psp: PSP | None = None,
        channels: int | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(LIFSpec(tau_m, tau_s, threshold, **parameters), psp, channels)


class IF(Neurons):
    """Integrate-and-fire neurons without a leak. `**parameters` are those of the spec's `IF`; otherwise like `LIF`."""

    def __init__(self, *, psp: PSP | None = None, channels: int | None = None, **parameters: Any) -> None:
        super().__init__(IFSpec(**parameters), psp, channels)


class ALIF(Neurons):
    """LIF neurons whose threshold adapts. `**parameters` are those of the spec's `ALIF`; otherwise like `LIF`."""

    def __init__(self, *, psp: PSP | None = None, channels: int | None = None, **parameters: Any) -> None:
        super().__init__(ALIFSpec(**parameters), psp, channels)


class PLIF(Neurons):
    """LIF neurons that learn their decay. `**parameters` are those of the spec's `PLIF`; otherwise like `LIF`."""

    def __init__(self, *, psp: PSP | None = None, channels: int | None = None, **parameters: Any) -> None:
        super().__init__(PLIFSpec(**parameters), psp, channels)


def _input_range(exponent: object, largest: object) -> tuple[int, float]:
    """`input_exponent` and `input_max`; `SpecError` if they describe no inputs."""
    maximum = real("input_max", largest)
    if not 0 < maximum < math.inf:
        raise SpecError(f"input_max must be a number above 0, got {shown(largest)}")
    return integer_between("input_exponent", exponent, 0, EXACT_LIMIT_BITS), maximum


class _Spiking(torch.nn.Module):
    """A layer of weights, which are rounded to their grid, and the neurons after them."""

    def __init__(
        self,
        synapse: Conv2d | Linear,
        weight: torch.Tensor,
        neuron: NeuronModel | Neurons | None,
        psp: PSP | EllipsisType | None,
        input_exponent: int,
        input_max: float,
    ) -> None:
        super().__init__()
        self.synapse = synapse
        self.weight = weight if isinstance(weight, torch.nn.Parameter) else torch.nn.Parameter(weight)
        self.bias = torch.nn.Parameter(torch.zeros(len(weight), dtype=torch.float32)) if synapse.bias else None
        self._psp_is_open, psp = (True, None) if isinstance(psp, EllipsisType) else (False, psp)
        self.lif = Neurons(neuron.neuron if isinstance(neuron, Neurons) else neuron, psp, len(weight))
        if isinstance(neuron, Neurons):
            self._take_over(neuron)
        self.input_exponent, self.input_max = _input_range(input_exponent, input_max)
        self._handles: dict[float, SegmentKey] = {}
        self._handle(1.0)

    def _take_over(self, neurons: Neurons) -> None:
        """Copy the learned values of a neuron module; `SpecError` if it has another filter or number of channels."""
        if neurons.psp not in (None, self.lif.psp):
            raise SpecError(
                f"the given {neurons._get_name()} has psp={neurons.psp}, but the {self._get_name()} has "
                f"psp={self.lif.psp}; give psp={neurons.psp} to the {self._get_name()}"
            )
        for name, x in neurons.learned.items():
            target = self.lif.learned[name]
            if x.shape != target.shape:
                raise SpecError(
                    f"the given {neurons._get_name()} has channels={len(x)}, but the {self._get_name()} needs "
                    f"channels={len(target)}"
                )
            with torch.no_grad():
                target.copy_(x)

    def _handle(self, gain: float) -> SegmentKey:
        if gain not in self._handles:
            values = Values((), self.input_exponent, self.input_max, pending=self.lif.psp, gain=gain)
            ops = (type(self.synapse).__name__, self.synapse), (self.lif.neuron.name, NeuronsOp(self.lif.neuron))
            self._handles[gain] = segment_key_of(StandaloneLayer(ops, values))
        return self._handles[gain]

    def _get_name(self) -> str:
        return f"Spiking{type(self.synapse).__name__}"

    def extra_repr(self) -> str:
        outputs, inputs, *_ = self.weight.shape
        c = self.synapse
        grid = f"weight_bits={c.weight_bits}, input_exponent={self.input_exponent}, input_max={self.input_max:g}"
        grid = f"bias=True, {grid}" if c.bias else grid
        if isinstance(c, Linear):
            return f"{inputs}, {outputs}, {grid}"
        grid = f"groups={c.groups}, {grid}" if c.groups > 1 else grid
        grid = f"dilation={c.dilation}, {grid}" if c.dilation != 1 else grid
        inputs *= c.groups
        return f"{inputs}, {outputs}, kernel={c.kernel}, stride={c.stride}, padding={c.padding}, {grid}"

    @property
    def _ordered(self) -> list[torch.Tensor]:
        """Parameters in the order in which a segment takes them."""
        return [self.weight, *([] if self.bias is None else [self.bias]), *self.lif.learned.values()]

    def infer(self, values: Values) -> Values:
        """Description of the layer's output for these inputs; `SpecError` if the layer's arguments do not fit them."""
        if values.exponent > self.input_exponent or values.maximum > self.input_max:
            raise SpecError(
                f"its inputs are multiples of 2^-{values.exponent} up to {values.maximum:g}: give input_exponent="
                f"{values.exponent}, input_max={values.maximum:g}"
            )
        if values.pending != self.lif.psp:
            raise SpecError(
                f"its inputs are not to be filtered, but it has psp={self.lif.psp}; leave psp out, or give "
                f"psp={self.lif.psp} also to the Sequential if the inputs of the Sequential are spikes to be filtered"
                if values.pending is None
                else f"its inputs need the synaptic filter {values.pending}, but it has psp={self.lif.psp}"
            )
        if (expected := self.synapse.weight_shape(values.shape)) != tuple(self.weight.shape):
            raise SpecError(f"for inputs {values.shape} it has weights {expected}, got {tuple(self.weight.shape)}")
        return self.lif.infer(self.synapse.infer(values))

    def forward(
        self,
        s: torch.Tensor,
        steps: int | None = None,
        *,
        gain: float = 1.0,
        precision: Precision = "fast",
        checked: bool = False,
        state: State | None = None,
        full: bool = False,
    ) -> Any:
        """Spikes of the layer from inputs `[T, B, ...]` (or `[1, B, ...]` with `steps`).

        Args:
            s: inputs, multiples of `2^-input_exponent` in `[0, input_max]`.
            steps: number of steps `T`, if one input is the same at all steps.
            gain: factor on the weighted inputs, for example for dropout.
            precision: precision of the backward pass.
            checked: True skips the check of the inputs.
            state: state after the previous steps; None: the neurons start at rest.
            full: True returns an `Output` with potentials and state.

        Raises:
            ShapeError: the inputs have a wrong value or shape, `steps` does not fit the inputs, or the state belongs to
                another module or batch.
            SpecError: the precision is unknown, a state requires a gradient, the parameters are not float32, or the
                inputs are spikes of another module and no `psp` was given to this one.
            NumericError: an input, a weight or a value of the state is not finite, or a weight is too large.
        """
        _check_types(self._get_name(), self._ordered)
        steps = check_steps(s, steps)
        check_precision(precision)
        if not checked:
            self._check_shape(s)
        if self._psp_is_open and (needed := _missing(s)) is not None:
            raise SpecError(
                f"the inputs of {self._get_name()} are the spikes of neurons whose synapses have the filter {needed}; "
                f"give psp={needed} to {self._get_name()}, or psp=None if these spikes are meant to act unfiltered; "
                "the first layer of a Sequential needs the same psp as the Sequential"
            )
        if s.dim() not in (3, 5):
            s = s.flatten(2)
        handle = self._handle(gain)
        checked_by = "" if checked else self._get_name()
        full_results = full or state is not None
        settings = TorchSegmentSettings(
            steps, True, precision=precision, full=full_results, checked=checked_by, hint=_GRID_HINT
        )
        results = compute(handle, settings, [s], self._ordered, _arrays(handle.states[True], state))
        _mark(results.outputs[0], self.lif.neuron.psp)
        return _return_value(results, "neurons", full)

    def _check_shape(self, s: torch.Tensor) -> None:
        inputs = self.weight.shape[1]
        if isinstance(self.synapse, Conv2d):
            inputs *= self.synapse.groups
            fits, axes = s.ndim == 5 and s.shape[2] == inputs, f"[T, B, {inputs}, H, W]"
        else:
            fits, axes = s.ndim >= 3 and math.prod(s.shape[2:]) == inputs, f"[T, B, {inputs}]"
        if not fits:
            remedy = ONE_INPUT if s.ndim in (2, 4) else ""
            raise ShapeError(
                f"the inputs of {self._get_name()} have the axes {axes}, got shape {list(s.shape)}{remedy}"
            )


def _kaiming(shape: tuple[int, ...], gain: float = DEFAULT_GAIN) -> torch.Tensor:
    weight = torch.empty(shape, dtype=torch.float32)
    bound = gain * (6 / int(np.prod(shape[1:]))) ** 0.5
    return torch.nn.init.uniform_(weight, -bound, bound)


class SpikingConv2d(_Spiking):
    """Convolution and neurons: spikes `[T, B, C, H, W]` to spikes `[T, B, C', H', W']`.

    Args:
        in_channels: number of input channels, `C`.
        channels, kernel, stride, padding, dilation, groups: the same as for the spec's `Conv2d`.
        neuron: neuron model, from the spec, or a module, whose learned values are copied; None: LIF.
        psp: filter of the layer below; None: inputs are not filtered. By default they are not filtered either, but
            inputs that another module of stsbp_torch returned as spikes are refused.
        weight_bits: bits of the weight grid.
        bias: whether there is a bias per channel.
        input_exponent: inputs are multiples of `2^-input_exponent`: 0 for spikes, 2 for spikes pooled 2x2, 8 for
            images.
        input_max: inputs are in `[0, input_max]`.
    """

    @_recorded
    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        *,
        dilation: PerAxis = 1,
        groups: int = 1,
        neuron: NeuronModel | Neurons | None = None,
        psp: PSP | EllipsisType | None = ...,
        weight_bits: int = 12,
        bias: bool = False,
        input_exponent: int = 0,
        input_max: float = 1.0,
    ) -> None:
        synapse = Conv2d(
            channels, kernel, stride, padding, dilation=dilation, groups=groups, weight_bits=weight_bits, bias=bias
        )
        integer_between("in_channels", in_channels, 1)
        if in_channels % synapse.groups:
            raise SpecError(f"the input's {in_channels} channels cannot be divided into {synapse.groups} groups")
        weight = _kaiming((channels, in_channels // synapse.groups, *synapse.kernels))
        super().__init__(synapse, weight, neuron, psp, input_exponent, input_max)


class SpikingLinear(_Spiking):
    """Full connection and neurons: spikes `[T, B, ...]` to `[T, B, units]`. Arguments are as for `SpikingConv2d`."""

    @_recorded
    def __init__(
        self,
        inputs: int,
        units: int,
        *,
        neuron: NeuronModel | Neurons | None = None,
        psp: PSP | EllipsisType | None = ...,
        weight_bits: int = 12,
        bias: bool = False,
        input_exponent: int = 0,
        input_max: float = 1.0,
    ) -> None:
        synapse = Linear(units, weight_bits=weight_bits, bias=bias)
        integer_between("inputs", inputs, 1)
        super().__init__(synapse, _kaiming((units, inputs)), neuron, psp, input_exponent, input_max)


class _SpikeOperation(torch.nn.Module):
    """An operation on spikes, without weights or neurons."""

    def __init__(self, op: Passing) -> None:
        super().__init__()
        self.op = op
        self._segment_key = segment_key_of(StandaloneLayer((("layer", op),), Values((), maximum=_UNLIMITED)))

    def checking(self, values: Values) -> SegmentKey:
        """A handle whose inputs can be checked against their description."""
        return segment_key_of(StandaloneLayer((("layer", self.op),), values))

    def extra_repr(self) -> str:
        return ", ".join(f"{f.name}={getattr(self.op, f.name)}" for f in fields(self.op))  # type: ignore[arg-type]

    def infer(self, values: Values) -> Values:
        """Description of the operation's output for these inputs."""
        return self.op.infer(values)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Spikes `[T, B, C, H, W]` to `[T, B, C, H', W']`."""
        check_tensor(s)
        passed = compute(self._segment_key, TorchSegmentSettings(len(s)), [s], []).outputs[0]
        _mark(passed, _missing(s))
        return passed


class SpikingAvgPool2d(_SpikeOperation):
    """Average pooling of spikes (ops/avgpool2d.py of the spec).

    If the number `n` of inputs in a window is not a power of two, the output is the sum. The next layer then needs an
    `input_max` that is `n` times as large, and `gain=1 / n` when it is called (`Sequential` does this).
    """

    def __init__(self, size: PerAxis) -> None:
        super().__init__(AvgPool2d(size))


class SpikingMaxPool2d(_SpikeOperation):
    """Max pooling of spikes (ops/maxpool2d.py of the spec)."""

    def __init__(self, size: PerAxis) -> None:
        super().__init__(MaxPool2d(size))


class SpikingGlobalAvgPool(_SpikeOperation):
    """Average pooling over all rows and columns, like `SpikingAvgPool2d` with a window of that size."""

    def __init__(self) -> None:
        super().__init__(GlobalAvgPool())


class SpikingUpsample2d(_SpikeOperation):
    """Upsampling that repeats rows and columns of spikes (ops/upsample2d.py of the spec)."""

    def __init__(self, factor: PerAxis) -> None:
        super().__init__(Upsample2d(factor))


class Sequential(torch.nn.Sequential):
    """A sequence of layers. The arguments of the layers are checked when the sequence is created.

    The arguments of each layer describe its inputs: how fine and how large they are, and their synaptic filter. This
    description is compared with the output of the previous layer, so that all sums are exact and no filter is
    forgotten.

        Sequential(
            SpikingConv2d(2, 8, 5, neuron=LIF(8, 4)),
            SpikingAvgPool2d(2),
            SpikingLinear(392, 10, psp=PSP(4), input_exponent=2),
            input_shape=(2, 18, 18),
        )

    `torch.nn.Dropout` is exact here: it drops spikes, with a new mask at each step, and the next weights apply the
    factor `1 / (1 - p)` after their sums.

    Args:
        layers: layers from this module; between them also `torch.nn.Dropout`, `torch.nn.Flatten(2)` and
            `torch.nn.Identity`.
        input_shape: `(C, H, W)` or `(N,)`.
        input_exponent: inputs are multiples of `2^-input_exponent`.
        input_max: inputs are in `[0, input_max]`.
        psp: synaptic filter of the inputs; None: inputs are not filtered.

    Raises:
        NetworkError: a layer does not fit its inputs. The message names the layer and the missing arguments.
    """

    def __init__(
        self,
        *layers: torch.nn.Module,
        input_shape: Shape,
        input_exponent: int = 0,
        input_max: float = 1.0,
        psp: PSP | None = None,
    ) -> None:
        for layer in layers:
            if not isinstance(layer, torch.nn.Module):
                raise SpecError(f"the layers of a Sequential are modules, got {shown(layer)}")
        if not isinstance(input_shape, Sequence) or any(integer(size) is None for size in input_shape):
            raise SpecError(f"input_shape is (N,) or (C, H, W), the shape of one sample, got {shown(input_shape)}")
        super().__init__(*layers)
        values = Values(tuple(input_shape), *_input_range(input_exponent, input_max), pending=psp)
        self._input_shape = values.shape
        self._inputs = values
        self._first = layers[0].checking(values) if layers and isinstance(layers[0], _SpikeOperation) else None
        self._divisors: list[int] = []
        dropped = ""
        for index, layer in enumerate(layers):
            layer_name = f"layer {index}, {str(layer).partition('(')[0]}"
            self._divisors.append(values.divisor)
            if isinstance(layer, torch.nn.Dropout):
                dropped = layer_name
            elif isinstance(layer, _Spiking):
                dropped = ""
            try:
                if isinstance(layer, (_Spiking, Neurons, _SpikeOperation)):
                    values = layer.infer(values)
                else:
                    values = _of_torch(layer, values)
            except SpecError as error:
                raise NetworkError(f"{layer_name}: {error}") from None
        if dropped:
            raise NetworkError(f"{dropped}: the weights after a dropout apply its factor, but there are none")
        self.makes = values

    @property
    def spec(self) -> NetworkSpec:
        """The sequence as a network, for `stsbp.save_run`: the same spikes, from the inputs as bytes.

        Raises:
            NetworkError: the inputs are neither spikes nor images of bytes, or the last layer is no `SpikingLinear`.
        """
        layers: list[Layer] = []
        for layer in self:
            if isinstance(layer, _Spiking):
                layers.append(SpikingLayer(layer.synapse, layer.lif.neuron))
            elif isinstance(layer, _SpikeOperation):
                layers.append(layer.op)
            elif isinstance(layer, torch.nn.Dropout):
                layers.append(Dropout(layer.p))
        inputs = self._inputs
        if inputs.exponent == 8 and inputs.maximum <= 1 and inputs.pending is None:
            return NetworkSpec(inputs.shape, tuple(layers), "direct")
        if inputs.exponent or inputs.maximum not in range(1, 256):
            raise NetworkError(
                "the inputs of a network are spikes or counts (input_exponent=0, input_max=1 to 255) or images of "
                f"bytes (input_exponent=8, input_max=1), but these have input_exponent={inputs.exponent}, "
                f"input_max={inputs.maximum:g}"
            )
        return NetworkSpec(inputs.shape, tuple(layers), "events", inputs.pending, int(inputs.maximum))

    def named(self) -> dict[str, torch.Tensor]:
        """Parameters by their names in `spec`: `conv1`, `linear2`, `conv1.bias`, `conv1.decay`.

        Raises:
            NetworkError: as `spec`.
        """
        spec, layers = self.spec, [layer for layer in self if isinstance(layer, _Spiking)]
        tensors: dict[str, torch.Tensor] = {}
        for projection, layer in zip(spec.graph.projections, layers, strict=True):
            names = [name for name in spec.parameters if name.split(".")[0] == projection.name]
            tensors.update(zip(names, layer._ordered, strict=True))
        return tensors

    def _fixed(self, *_: Any, **__: Any) -> Any:
        raise NetworkError(
            "the layers of a Sequential are checked together when it is created, and cannot be changed or sliced; "
            "create a new one, for example Sequential(*list(net)[:2], input_shape=...)"
        )

    append = extend = insert = pop = _fixed
    __setitem__ = __delitem__ = __add__ = __iadd__ = __mul__ = __imul__ = __rmul__ = _fixed

    def __getitem__(self, index: Any) -> Any:
        """The layer at an index."""
        return self._fixed() if isinstance(index, slice) else super().__getitem__(index)

    def forward(
        self,
        s: torch.Tensor,
        steps: int | None = None,
        *,
        precision: Precision = "fast",
        state: State | None = None,
        full: bool = False,
    ) -> Any:
        """Spikes of the last layer. The arguments are the same as for a single layer.

        In an `Output`, the names of potentials and states begin with the index of the layer, for example `0.neurons`.

        Raises:
            ShapeError, SpecError, NumericError: as for a single layer, or the inputs have another shape than
                `input_shape`.
        """
        steps = check_steps(s, steps)
        if s.shape[2:] != self._input_shape:
            expected = ", ".join(map(str, self._input_shape))
            raise ShapeError(f"the inputs of this Sequential must be [T, B, {expected}], got {list(s.shape)}")
        potentials: dict[str, torch.Tensor] = {}
        fired: dict[str, torch.Tensor] = {}
        next_state: State = {}
        passing = 1.0
        # For its check that the state is one.
        _arrays((), state)
        for index, layer in enumerate(self):
            if isinstance(layer, torch.nn.Dropout):
                if layer.training and layer.p > 0:
                    s = s * torch.empty(s.shape, dtype=torch.float32, device=s.device).bernoulli_(1 - layer.p)
                    passing *= 1 - layer.p
                continue
            if isinstance(layer, _PLAIN):
                s = layer(s)
                continue
            if isinstance(layer, _SpikeOperation):
                if index == 0 and self._first is not None:
                    settings = TorchSegmentSettings(len(s), checked="Sequential", hint=_GRID_HINT)
                    s = compute(self._first, settings, [s], []).outputs[0]
                else:
                    s = layer(s)
                continue
            layer_state = None if state is None else {"neurons": state.get(f"{index}.neurons", ())}
            gain, passing = 1 / (passing * self._divisors[index]), 1.0
            output = layer(s, steps, gain=gain, precision=precision, checked=index > 0, state=layer_state, full=full)
            s = output.spikes if full else output
            if full:
                potentials |= {f"{index}.{name}": u for name, u in output.potentials.items()}
                fired |= {f"{index}.{name}": x for name, x in output.layer_spikes.items()}
                next_state |= {f"{index}.{name}": arrays for name, arrays in output.state.items()}
        return Output(s, potentials, next_state, fired) if full else s


_PLAIN = (torch.nn.Flatten, torch.nn.Identity)
_INSTEAD = {
    torch.nn.Linear: "SpikingLinear",
    torch.nn.Conv2d: "SpikingConv2d",
    torch.nn.AvgPool2d: "SpikingAvgPool2d",
    torch.nn.MaxPool2d: "SpikingMaxPool2d",
    torch.nn.AdaptiveAvgPool2d: "SpikingGlobalAvgPool",
    torch.nn.Upsample: "SpikingUpsample2d",
}
"""Layers of this module with the purpose of a layer of torch, whose outputs are not on a grid, or not `[T, B, ...]`."""


def _of_torch(layer: torch.nn.Module, values: Values) -> Values:
    """Description of the output of a layer of torch in a `Sequential`; `SpecError` if it is not exact there."""
    if isinstance(layer, torch.nn.Dropout):
        if not 0 <= layer.p < 1:
            raise SpecError(f"its p must be in [0, 1), got {layer.p:g}")
        return values
    if isinstance(layer, torch.nn.Identity):
        return values
    if isinstance(layer, torch.nn.Flatten):
        if (layer.start_dim, layer.end_dim) != (2, -1):
            raise SpecError("it would mix time or samples with neurons; use torch.nn.Flatten(2), or leave it out")
        return replace(values, shape=(math.prod(values.shape),))
    instead = next((name for kind, name in _INSTEAD.items() if isinstance(layer, kind)), None)
    remedy = f"use {instead} here, or " if instead else ""
    raise SpecError(
        "the range of its outputs is unknown, and the next sums may not be exact; "
        f"{remedy}put this layer into a torch.nn.Sequential, before LIF() or after the spiking layers (docs/torch.md)"
    )


def _check_caller(name: str, settings: object) -> None:
    """Raise `NetworkError` unless a `Network` calls its child of this name: only a network gives `settings`."""
    if not isinstance(settings, TorchSegmentSettings):
        raise NetworkError(
            f"{name} is a layer of a Network and cannot be called on its own; call the network with full=True, whose "
            "Output has layer_spikes and potentials of every layer, or create a layer, for example SpikingLinear"
        )


class _NetworkLayer(torch.nn.Module):
    """A layer of a `Network`, `_layer_name` its name there. The network is one graph, whose edges carry no plain
    tensors."""

    _layer_name: str

    def _refuse_hook(self, *_: Any, **__: Any) -> NoReturn:
        # Torch attaches these hooks to the tensors among the arguments and results of a layer. There are none, so it
        # would never call them.
        raise NetworkError(
            f"{self._layer_name} is a layer of a Network, and backward hooks of its layers would not be called; "
            "register the hook on the Network, or on a parameter (register_hook), or build the layers into a module of "
            "your own"
        )

    register_backward_hook = register_full_backward_hook = register_full_backward_pre_hook = _refuse_hook


class _ProjectionLayer(_NetworkLayer, _Spiking):
    """A segment of a network that consists of one projection and its neurons. `name` is its name in the network."""

    def __init__(
        self, name: str, torch_segment: TorchSegment, projection: Projection, parameters: Mapping[str, torch.Tensor]
    ) -> None:
        neurons = torch_segment.segment.steps[-1].bound_nodes[-1].node.op
        synapse, values = projection.synapse, projection.input
        assert isinstance(neurons, NeuronsOp)
        assert isinstance(synapse, (Conv2d, Linear))
        weight = parameters[projection.parameter]
        super().__init__(synapse, weight, neurons.model, values.pending, values.exponent, values.maximum)
        with torch.no_grad():
            for parameter, x in zip(self._ordered[1:], list(parameters.values())[1:], strict=True):
                parameter.copy_(x)
        self._layer_name = name
        self.handle = segment_key_of(torch_segment)

    def forward(  # type: ignore[override]
        self, settings: Any = None, inputs: Any = (), state: State | None = None, **_: Any
    ) -> TorchSegmentOutput:
        """The results of the segment. Other callers than its network get an error, whatever they give."""
        _check_caller(self._layer_name, settings)
        _check_types(self._get_name(), self._ordered)
        arrays = _arrays(self.handle.states[settings.training], state)
        return compute(self.handle, settings, inputs, self._ordered, arrays)

    def statistics(self) -> dict[str, torch.Tensor]:
        """An empty dictionary, because nothing is normalised."""
        return {}


def _is_wrapped(x: torch.Tensor) -> bool:
    """Whether `x` belongs to a transformation of torch.func, and is of no use after it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def _readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy that autograd can read later, if `x` was computed in inference mode."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()


def _counted(step: torch.Tensor) -> torch.Tensor:
    """`step + 1`, computed outside of torch.func's transformations unless `step` belongs to one of them.

    A new tensor, because the backward pass of a compiled program reads the number of its own call.
    """
    if torch.compiler.is_compiling() or _is_wrapped(step) or not torch._C._are_functorch_transforms_active():
        return _readable(step + 1)
    with temporarily_clear_interpreter_stack():
        return _readable(step + 1)


def _free_name(module: torch.nn.Module, name: str) -> str:
    """The name of a new attribute of a module: `name` without dots, with `_` at its end if it is taken."""
    name = name.replace(".", "_")
    while hasattr(module, name):
        name += "_"
    return name


class _SegmentLayer(_NetworkLayer):
    """Any other segment of a network. Parameters are grouped by the projection after which they are named."""

    def __init__(
        self,
        name: str,
        torch_segment: TorchSegment,
        parameters: Mapping[str, torch.Tensor],
        statistics: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self._layer_name = name
        self.handle = segment_key_of(torch_segment)
        self._names: list[tuple[str, str]] = []
        self._statistics: dict[str, str] = {}
        weights, modules = {projection.parameter for projection in torch_segment.projections}, dict[str, str]()
        for name, x in parameters.items():
            owner, _, local_name = (name, "", "weight") if name in weights else name.rpartition(".")
            if owner not in modules:
                modules[owner] = _free_name(self, owner)
                self.add_module(modules[owner], torch.nn.ParameterDict())
            self._names.append((modules[owner], local_name))
            self._parameters_of(modules[owner])[local_name] = x
        for name, x in statistics.items():
            self._statistics[name] = _free_name(self, name)
            self.register_buffer(self._statistics[name], x)

    def _parameters_of(self, module: str) -> torch.nn.ParameterDict:
        parameters = self.get_submodule(module)
        assert isinstance(parameters, torch.nn.ParameterDict)
        return parameters

    def _get_name(self) -> str:
        return "Population"

    @property
    def _ordered(self) -> list[torch.Tensor]:
        """Parameters in the order in which a segment takes them."""
        return [self._parameters_of(module)[local_name] for module, local_name in self._names]

    def statistics(self) -> dict[str, torch.Tensor]:
        """Running statistics by their names in the network."""
        return {name: self.get_buffer(buffer_name) for name, buffer_name in self._statistics.items()}

    def forward(
        self, settings: Any = None, inputs: Any = (), state: State | None = None, **_: Any
    ) -> TorchSegmentOutput:
        """The results of the segment. Updates the running statistics."""
        _check_caller(self._layer_name, settings)
        _check_types(self._get_name(), self._ordered)
        arrays = _arrays(self.handle.states[settings.training], state)
        results = compute(self.handle, settings, inputs, self._ordered, [*self.statistics().values(), *arrays])
        for name, x in results.statistics.items():
            buffer_name = self._statistics[name]
            if _is_wrapped(x) and not _is_wrapped(self.get_buffer(buffer_name)):
                raise SpecError(
                    f"in training mode, batch normalisation cannot update {name} under a transformation of torch.func; "
                    "call net.eval(), or give the buffers to functional_call as an argument of the transformed function"
                )
            setattr(self, buffer_name, _readable(x))
        return results


def _is_segment(module: object, key: str) -> bool:
    return isinstance(module, (_ProjectionLayer, _SegmentLayer)) and module.handle.key == key


class Network(torch.nn.Module):
    """A `NetworkSpec` as a module. Its layers have the same names as in the spec.

    In these names, dots become underscores. A name that the module already uses, for example `step`, gets an underscore
    at its end. If a node is called `step`, the number `step` of a state is called `step_`.

    The layers belong together: a layer cannot be called on its own or replaced. Its spikes and potentials are in the
    `Output`, if the network is called with `full=True`.

    If neurons have learned parameters, or delays are learned, call `clip_to_domain` after each step of the optimiser.
    Batch normalisation updates its running statistics at each call in training mode.

    Args:
        spec: the network.
        seed: seed of the dropout masks and of the initial weights. The initial weights are the same in every backend.
        gain: gain of the initial weights.
        precision: precision of the backward pass.
        weights: weights to use instead of the initial ones, by the names of `initial_weights`, for example
            `stsbp.load_run(...).weights`.

    Attributes:
        step: how often the network was called from rest in training mode. Each such call draws new dropout masks.
    """

    step: torch.Tensor

    @_recorded
    def __init__(
        self,
        spec: NetworkSpec,
        *,
        seed: int = 0,
        gain: float = DEFAULT_GAIN,
        precision: Precision = "fast",
        weights: Mapping[str, AnyArray] | None = None,
    ) -> None:
        super().__init__()
        check_precision(precision)
        self.spec = spec
        self.seed = check_seed(seed)
        self.precision: Precision = precision
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"), persistent=False)
        initial: Any = initial_weights(spec, seed, gain) if weights is None else weights
        check_weights(spec, initial)
        tensors = {name: torch.from_numpy(x.copy()) for name, x in initial.items()}
        # Weights that several projections share are one parameter.
        tensors |= {name: torch.nn.Parameter(tensors[name]) for name in spec.parameters}
        graph = spec.graph
        self._input = next(node.name for node in graph.nodes if isinstance(node.op, Input))
        self._output = graph.nodes[-1].name
        self._drops = any(isinstance(node.op, Dropout) and node.op.rate > 0 for node in graph.nodes)
        self._number = "step"
        while any(node.name == self._number for node in graph.nodes):
            self._number += "_"
        self._walk: list[tuple[str, tuple[str, ...], tuple[tuple[str, int], ...], str | None]] = []
        self._names = {block.population: block.name for block in spec.blocks}
        self._keys: dict[str, str] = {}
        for index in range(len(plan(backend_of(self.step), graph, fused=False).segments)):
            torch_segment = TorchSegment(graph, index)
            segment = torch_segment.segment
            name = self._add(torch_segment, tensors)
            outputs = tuple(zip(segment.outputs, torch_segment.copies, strict=True))
            self._walk.append((name, torch_segment.reads, outputs, segment.population))

    @classmethod
    def from_pretrained(
        cls, reference: str | os.PathLike[str], *, seed: int = 0, precision: Precision = "fast"
    ) -> Self:
        """A network of the package stsbp-models, of a folder that `stsbp export --to hub` wrote, or of a repository of
        the Hugging Face Hub.

        The package `stsbp` reads and checks the files.

        Args:
            reference: `model:NAME`, the folder, or `hub:OWNER/NAME@COMMIT`, where COMMIT is a hash of 40 hexadecimal
                digits.
            seed: seed of the dropout masks.
            precision: precision of the backward pass.

        Raises:
            SpecError: the package `stsbp` is not installed.
            StsbpError: as `stsbp.load_hub`.
        """
        try:
            # This package needs only the spec. Untrusted files are read in one place, by the package stsbp.
            reader = importlib.import_module("stsbp.api.hub")
        except ModuleNotFoundError as error:
            raise SpecError(f'from_pretrained needs the package stsbp ({error}): pip install "stsbp[hub]"') from error
        spec, weights = reader.network_and_weights(reference)
        return cls(spec, seed=seed, precision=precision, weights=weights)

    def _add(self, torch_segment: TorchSegment, tensors: Mapping[str, torch.Tensor]) -> str:
        """Add the module of a segment; returns its name."""
        last = torch_segment.segment.steps[-1]
        parameters = {key: tensors[key] for key in torch_segment.parameters}
        projections = torch_segment.projections
        first, inputs = projections[0] if projections else None, last.bound_nodes[-1].node.inputs
        name = _free_name(self, first.name if first is not None and len(projections) == 1 else last.name)
        layer: _ProjectionLayer | _SegmentLayer
        if (
            first is not None
            and isinstance(first.synapse, (Conv2d, Linear))
            and first.synapse.norm is None
            and last.fires
            and inputs == (Edge(first.name),)
            and len(projections) == 1
            and not any(name in self.spec.graph.delays for name in parameters)
        ):
            layer = _ProjectionLayer(name, torch_segment, first, parameters)
        else:
            layer = _SegmentLayer(
                name, torch_segment, parameters, {key: tensors[key] for key in torch_segment.statistics}
            )
        self.add_module(name, layer)
        self._keys[name] = layer.handle.key
        return name

    def _child(self, name: str) -> Any:
        """The child of this name; `NetworkError` if another module or nothing is in its place."""
        child, key = getattr(self, name, None), self._keys[name]
        if not _is_segment(child, key):
            # A wrapper, for example of FSDP or torch.compile, holds the child.
            inner_modules = child.modules() if isinstance(child, torch.nn.Module) else ()
            if not any(_is_segment(x, key) for x in inner_modules):
                raise NetworkError(
                    f"{name} of the Network was replaced or removed, but its layers are those of its spec; create a "
                    "Network of another NetworkSpec and give it the weights to keep (weights=...), or build the layers "
                    "into a stsbp_torch.Sequential"
                )
        return child

    def _layers(self) -> Iterator[tuple[TorchSegment, _ProjectionLayer | _SegmentLayer]]:
        for index, (name, *_) in enumerate(self._walk):
            layers = (x for x in self._child(name).modules() if isinstance(x, (_ProjectionLayer, _SegmentLayer)))
            yield TorchSegment(self.spec.graph, index), next(layers)

    def named(self) -> dict[str, torch.Tensor]:
        """Parameters and running statistics by their names in the spec: `conv1`, `conv1.decay`, `conv1.mean`."""
        tensors: dict[str, torch.Tensor] = {}
        for torch_segment, layer in self._layers():
            tensors.update(zip(torch_segment.parameters, layer._ordered, strict=True))
            tensors.update(layer.statistics())
        return {name: tensors[name] for name in (*self.spec.parameters, *self.spec.statistics)}

    def clip_to_domain(self) -> None:
        """Clip every learned parameter of the neurons, and every learned delay, to its domain."""
        for name, x in self.named().items():
            parameter = self.spec.parameters.get(name)
            if parameter is not None and parameter.learned is not None:
                _clip(x, parameter.learned)

    def extra_repr(self) -> str:
        populations = [
            bound_node for bound_node in self.spec.graph.bound_nodes if isinstance(bound_node.node.op, NeuronsOp)
        ]
        sizes = (f"{x.node.inputs[0].source} {'x'.join(map(str, x.output.shape))}" for x in populations)
        return f"{self.spec}, {self.spec.coding}, precision={self.precision}, seed={self.seed}\n" + " -> ".join(
            [f"input {'x'.join(map(str, self.spec.input_shape))}", *sizes]
        )

    def forward(
        self,
        inputs: torch.Tensor,
        steps: int | None = None,
        *,
        state: State | None = None,
        full: bool = False,
        step: int | None = None,
    ) -> Any:
        """Output spikes `[T, B, N]` from uint8 frames `[T, B, ...]`, or from uint8 images `[B, ...]` with `steps`.

        In training mode, each call draws new dropout masks (`self.step` counts the calls). A call with a state uses the
        masks of the previous steps.

        Args:
            inputs: frames or images. Images of floating-point numbers need a pixel above 1, because images that were
                scaled to 0 to 1 are refused.
            steps: number of steps `T`, which images need and frames do not.
            state: state after the previous steps, from the `Output` of a call; None: the network starts at rest.
            full: True returns an `Output` with the potentials of every population and the state.
            step: number that selects the dropout masks; None: the number of the state or of `self.step`. A call with a
                number of its own is not counted by `self.step`, and can be repeated.

        Raises:
            ShapeError: the inputs have another shape than the network's, or are not integers from 0 to `input_max`
                (images: 255), `steps` does not fit the inputs, or the state is from another network, batch or mode.
            NetworkError: a layer of the network was replaced or removed.
            SpecError: the parameters are not float32, a state requires a gradient, `step` is not an integer in
                `[0, 2**32)`, or the network ends with a readout and `full` is False.
            NumericError: an input, a weight or a value of the state is not finite, or a weight is too large.
        """
        if self.spec.has_readout and not full:
            raise SpecError(
                f"the network {self.spec} ends with a readout, which has no spikes; call it with "
                f"full=True and use the potentials of {self._names[self._output]}"
            )
        check_tensor(inputs)
        s, images = inputs, self.spec.coding == "direct"
        if images and steps is None:
            raise ShapeError("an image is the same at every step, so give the number of steps: net(images, steps)")
        if images and inputs.dtype == torch.bool:
            raise ShapeError("the values of an image are 0 to 255, got bool; for black and white, give 255 * images")
        if images:
            # Torch would divide integers in its default type, which the user may have set.
            s = (inputs if inputs.is_floating_point() else inputs.float())[None] * 2.0**-8
        self._check_shape(inputs, steps)
        steps = check_steps(s, steps if images else None)
        if self.step.is_meta:
            _check_types(type(self).__name__, self.parameters())
        (number,) = (self.step,) if state is None else _arrays([(self._number, 1)], state)
        counts = self.training and state is None and step is None
        if number.dtype != torch.int64 or number.dim() != 0:
            raise ShapeError(
                f"{self._number} in the state must be an int64 number, got {number.dtype} {list(number.shape)}; "
                f"{RETURNED}"
            )
        if step is not None:
            number = torch.full_like(number, check_step(step))
        masks: torch.Tensor | int = 0
        if self._drops and self.training:
            # A traced program reads the number at each run. Its backward pass must read the same number.
            masks = number if torch.compiler.is_compiling() else check_step(int(number))
        # For each output, the copies that are still to be read.
        values = {self._input: [s] * sum(sources.count(self._input) for _, sources, *_ in self._walk)}
        potentials: dict[str, torch.Tensor] = {}
        fired: dict[str, torch.Tensor] = {}
        next_state: State = {self._number: (number,)}
        full_results = full or state is not None
        for index, (name, sources, output_copies, population) in enumerate(self._walk):
            checked = "Network" if index == 0 else ""
            scaled = images and inputs.is_floating_point()
            settings = TorchSegmentSettings(
                steps, self.training, self.seed, masks, self.precision, full_results, checked, "", scaled
            )
            results = self._child(name)(settings, [values[source].pop(0) for source in sources], state)
            outputs = list(results.outputs)
            for output_name, count in output_copies:
                values[output_name], outputs = outputs[:count], outputs[count:]
            if results.potentials is not None and population is not None:
                potentials[self._names[population]] = results.potentials
                if not (self.spec.has_readout and population == self._output):
                    fired[self._names[population]] = values[population][0]
            next_state |= results.state
        if counts:
            self.step = _counted(self.step)
        (spikes,) = values[self._output]
        if not self.spec.has_readout:
            _mark(spikes, self.spec.output_psp)
        return Output(spikes, potentials, next_state, fired) if full else spikes

    def _check_shape(self, inputs: torch.Tensor, steps: int | None) -> None:
        images, shape = self.spec.coding == "direct", self.spec.input_shape
        axes = ["B"] if images else ["T", "B"]
        if inputs.shape[len(axes) :] != shape:
            expected = ", ".join(map(str, (*axes, *shape)))
            raise ShapeError(
                f"the inputs of a Network with {self.spec.coding} coding must be [{expected}], got {list(inputs.shape)}"
                f"{other_axes(self.spec, inputs.shape)}"
            )
        if images or steps is None or integer(steps) == len(inputs):
            return
        remedy = samples_first(inputs.shape, integer(steps) or 0) or "; leave steps out"
        if len(inputs) == 1:
            remedy += ", or repeat an input that is the same at every step, x.expand(steps, *x.shape[1:])"
        raise ShapeError(f"the inputs have {len(inputs)} steps, but steps is {shown(steps)}{remedy}")
