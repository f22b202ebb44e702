"""stsbp's layers as `nn.Module`s: ordinary torch code, ordinary torch optimisers, the spec's bits.

Spike trains are float32 tensors of 0 and 1, `[T, B, C, H, W]` or `[T, B, N]`. Each module wraps a pair of the backend
in an `autograd.Function`, so its forward pass gives the same spikes as every backend and its backward pass the spec's
gradients.

    net = Network(NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    loss = spike_loss(VanRossum(), net(frames), targets, psp=net.spec.output_psp)
    loss.backward()
    optimizer.step()
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import torch
from stsbp_spec.backend import NeuronResiduals
from stsbp_spec.checks import check_loss
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.graph import Projection, Values
from stsbp_spec.grid import FLOOR, weight_grid
from stsbp_spec.init import DEFAULT_GAIN, initial_weights
from stsbp_spec.losses import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.neurons import LIF as LIFSpec
from stsbp_spec.neurons import NeuronModel
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d, Linear
from stsbp_spec.synapses.axes import PerAxis
from stsbp_spec.synapses.psp import SynapticFilter
from stsbp_spec.typing import Precision

from stsbp_torch.backend import TorchBackend
from stsbp_torch.checks import check_finite, check_inputs, check_precision, check_steps, check_trains

__all__ = ["LIF", "Network", "SpikingAvgPool2d", "SpikingConv2d", "SpikingLinear", "backend_of", "spike_loss"]


@cache
def _backend(device: str) -> TorchBackend:
    return TorchBackend(device)


def backend_of(x: torch.Tensor) -> TorchBackend:
    """The backend that computes on the device of `x`."""
    return _backend("cpu" if x.device.type == "cpu" else f"cuda:{x.device.index or 0}")


class _LifFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        neuron: NeuronModel,
        filter: SynapticFilter,
        steps: int,
        precision: Precision,
        *learned: torch.Tensor,
    ) -> torch.Tensor:
        names = (*filter.learned(), *neuron.learned())
        given = {name: x.detach() for name, x in zip(names, learned, strict=True)}
        spikes, residuals = backend_of(z).neuron_forward(neuron, filter, z, steps, given)
        ctx.neuron, ctx.filter, ctx.precision, ctx.static = neuron, filter, precision, residuals.static
        ctx.kept, ctx.learned, ctx.counts = tuple(residuals.kept), tuple(residuals.learned), [len(x) for x in learned]
        ctx.save_for_backward(spikes, *residuals.kept.values(), *residuals.learned.values())
        return spikes.float()

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        spikes, *arrays = ctx.saved_tensors
        backend, values = backend_of(spikes), iter(arrays)
        kept, learned = ({name: next(values) for name in names} for names in (ctx.kept, ctx.learned))
        residuals = NeuronResiduals(kept, spikes, ctx.static, learned)
        dz, terms = backend.neuron_backward(ctx.neuron, ctx.filter, residuals, errors[0])
        gradients = (
            backend.learned_gradient(x, count, ctx.precision)
            for x, count in zip(terms.values(), ctx.counts, strict=True)
        )
        return dz, None, None, None, None, *gradients


class _SynapseFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: torch.Tensor, w: torch.Tensor, synapse: Conv2d | Linear, precision: Precision, bits: int
    ) -> torch.Tensor:
        z, residuals = backend_of(s).rule(synapse).forward(synapse, s.detach(), w.detach())
        ctx.synapse, ctx.precision, ctx.bits = synapse, precision, bits
        *tensors, ctx.shape = residuals if len(residuals) == 3 else (*residuals, None)
        ctx.save_for_backward(*tensors)
        ctx.kind = type(residuals)
        return z

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dz = errors[0]
        backend = backend_of(dz)
        if ctx.precision == "reproducible":
            dz, _ = backend.error_grid(dz, ctx.bits)
        tensors = ctx.saved_tensors
        residuals = ctx.kind(*tensors) if ctx.shape is None else ctx.kind(*tensors, ctx.shape)
        ds, dw = backend.rule(ctx.synapse).backward(
            ctx.synapse, residuals, dz, precision=ctx.precision, need_input=ctx.needs_input_grad[0]
        )
        return ds, backend.rounded(dw), None, None, None


class _PoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: torch.Tensor, pool: AvgPool2d) -> torch.Tensor:
        ctx.pool = pool
        pooled, ctx.residuals = backend_of(s).rule(pool).forward(pool, s)
        return pooled

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return backend_of(errors[0]).rule(ctx.pool).backward(ctx.pool, ctx.residuals, errors[0]), None


class _GridFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w: torch.Tensor, bits: int, input_exponent: int, input_max: float, layer: str
    ) -> torch.Tensor:
        # Of a copy: storage that numpy has seen cannot be resized any more, as FSDP does with that of parameters.
        wq, _ = weight_grid(
            w.detach().clone().cpu().numpy(),
            weight_bits=bits,
            input_exponent=input_exponent,
            input_max=input_max,
            layer=layer,
        )
        return torch.from_numpy(wq).to(w.device)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Straight through: the optimiser moves the float32 master weights.
        return errors[0], None, None, None, None


class _LossFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: torch.Tensor, targets: torch.Tensor, loss: Loss, psp: PSP) -> torch.Tensor:
        check_loss(loss)
        ctx.loss, ctx.psp = loss, psp
        ctx.save_for_backward(spikes, targets)
        trains = [x.detach().cpu().numpy().astype(np.uint8) for x in (spikes, targets)]
        return spikes.new_tensor(loss.mean(trains[0], trains[1], psp))

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        spikes, targets = ctx.saved_tensors
        return backend_of(spikes).loss_error(ctx.loss, ctx.psp, spikes, targets) * errors[0], None, None, None


def spike_loss(loss: Loss, spikes: torch.Tensor, targets: torch.Tensor, *, psp: PSP) -> torch.Tensor:
    """Mean distance of spike trains `[T, B, N]`, differentiable in `spikes`.

    Its gradient is the error signal of the spec (for the Hamming distance without the factor 2).

    Raises:
        ShapeError: spikes and targets have different shapes, or one of them is neither 0 nor 1.
        NumericError: one of them is not finite.
    """
    check_trains(spikes, targets)
    result: torch.Tensor = _LossFunction.apply(spikes, targets, loss, psp)  # type: ignore[no-untyped-call]
    return result


class LIF(torch.nn.Module):
    """Neurons of any model after their synaptic filter, spec: neurons/.

    What the model learns are parameters in `learned`, by name. Call `clip_to_domain` after each step of an optimiser.

    Args:
        neuron: model and parameters; None: LIF.
        psp: filter of the layer below; None: inputs are not filtered.
        channels: `C` of the inputs, of a full connection `N`; only a model that learns a number a channel needs it.
    """

    def __init__(self, neuron: NeuronModel | None = None, psp: PSP | None = None, channels: int | None = None) -> None:
        super().__init__()
        self.neuron = neuron or LIFSpec()
        self.psp = psp
        learned = self.neuron.learned()
        if channels is None and any(x.per == "channel" for x in learned.values()):
            raise SpecError(f"the neuron {self.neuron.name} learns a number a channel; give channels=...")
        values = {name: torch.from_numpy(x.values((channels or 1,))) for name, x in learned.items()}
        # A module of nothing would stand in what is printed.
        self.learned: torch.nn.ParameterDict | dict[str, torch.Tensor] = (
            torch.nn.ParameterDict(values) if values else {}
        )

    @torch.no_grad()
    def clip_to_domain(self) -> None:
        """Bring every learned number back between the ends of its domain, as the spec's update does."""
        for name, x in self.neuron.learned().items():
            own = self.learned[name]
            own.copy_(torch.where(own.abs() < FLOOR, 0.0, own).clamp(x.low, x.high))

    def _check_domain(self) -> None:
        for name, x in self.neuron.learned().items():
            low, high = (float(end) for end in torch.aminmax(self.learned[name].detach()))
            if not x.low <= low <= high <= x.high:
                worst = high if high > x.high else low
                raise NumericError(
                    f"{name} of {self.neuron.name} is {worst:g}, outside of its domain from {x.low:g} to {x.high:g}; "
                    "call clip_to_domain() after each step of the optimiser"
                )

    def extra_repr(self) -> str:
        given = ((f.name, getattr(self.neuron, f.name)) for f in fields(self.neuron))  # type: ignore[arg-type]
        values = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in given)
        return ", ".join([*values, f"psp={self.psp}"])

    def forward(
        self,
        z: torch.Tensor,
        steps: int | None = None,
        gain: float = 1.0,
        *,
        bias: torch.Tensor | None = None,
        precision: Precision = "fast",
        checked: bool = False,
    ) -> torch.Tensor:
        """Spikes `[T, B, ...]` from `z = W o`, `[T, B, ...]`, or `[1, B, ...]` with `steps` for a static input.

        Args:
            z: weighted spikes of the layer below.
            steps: `T` of a static input.
            gain: factor of dropout.
            bias: added to `z` before the filter, `[C]`, of a full connection `[N]`; None: nothing.
            precision: of the gradients of what is learned.
            checked: `z` is known to be finite, and is not looked at.

        Raises:
            ShapeError: `steps` is not that of `z`.
            NumericError: a value of `z` or `gain` is not finite, or a learned number is outside of its domain.
        """
        steps = check_steps(z, steps)
        if not math.isfinite(gain):
            raise NumericError(f"the gain of LIF is not finite: {gain}")
        if not checked:
            check_finite("LIF", z)
        self._check_domain()
        values = Values(tuple(z.shape[2:]), pending=self.psp, gain=gain, biased=bias is not None)
        learned = (*(() if bias is None else (bias,)), *self.learned.values())
        spikes: torch.Tensor = _LifFunction.apply(  # type: ignore[no-untyped-call]
            z, self.neuron, values.filter(training=True), steps, precision, *learned
        )
        return spikes


class _Spiking(torch.nn.Module):
    """Weights on their grid and the neurons after them."""

    def __init__(
        self,
        synapse: Conv2d | Linear,
        weight: torch.Tensor,
        neuron: NeuronModel | None,
        psp: PSP | None,
        input_exponent: int,
        input_max: float,
    ) -> None:
        super().__init__()
        if synapse.norm is not None:
            raise SpecError(
                f"{self._get_name()} has no batch normalisation, whose statistics a training step moves; train such a "
                "network with TorchBackend().trainer(...), and run it with TorchBackend().run(...)"
            )
        self.synapse = synapse
        self.weight = torch.nn.Parameter(weight)
        self.bias = torch.nn.Parameter(torch.zeros(len(weight))) if synapse.bias else None
        self.lif = LIF(neuron, psp, len(weight))
        self.input_exponent, self.input_max = input_exponent, input_max

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

    def forward(
        self,
        s: torch.Tensor,
        steps: int | None = None,
        *,
        gain: float = 1.0,
        precision: Precision = "fast",
        checked: bool = False,
    ) -> torch.Tensor:
        """Spikes of the layer from inputs `[T, B, ...]` (or `[1, B, ...]` with `steps`).

        Args:
            s: inputs, multiples of `2^-input_exponent` in `[0, input_max]`.
            steps: `T` of one input for all steps.
            gain: factor of dropout.
            precision: of the backward pass.
            checked: the inputs are known to be so, and are not looked at.

        Raises:
            ShapeError: an input is something else, or `steps` is not that of the inputs.
            SpecError: there is no such precision.
            NumericError: an input or a weight is not finite, or a weight is too large.
        """
        steps = check_steps(s, steps)
        check_precision(precision)
        if not checked:
            self._check_shape(s)
            check_inputs(self._get_name(), s, self.input_exponent, self.input_max, _HOW_FINE)
        wq = _GridFunction.apply(  # type: ignore[no-untyped-call]
            self.weight, self.synapse.weight_bits, self.input_exponent, self.input_max, type(self.synapse).__name__
        )
        bits = self._error_bits(s) if precision == "reproducible" else 0
        z = _SynapseFunction.apply(s, wq, self.synapse, precision, bits)  # type: ignore[no-untyped-call]
        # Weights on their grid and inputs that were looked at have finite sums.
        spikes: torch.Tensor = self.lif(z, steps, gain, bias=self.bias, precision=precision, checked=True)
        return spikes

    def _check_shape(self, s: torch.Tensor) -> None:
        inputs = self.weight.shape[1]
        if isinstance(self.synapse, Conv2d):
            inputs *= self.synapse.groups
            fits, axes = s.ndim == 5 and s.shape[2] == inputs, f"[T, B, {inputs}, H, W]"
        else:
            fits, axes = s.ndim >= 3 and math.prod(s.shape[2:]) == inputs, f"[T, B, {inputs}]"
        if not fits:
            raise ShapeError(f"the inputs of {self._get_name()} have the axes {axes}, got shape {list(s.shape)}")

    def _error_bits(self, s: torch.Tensor) -> int:
        steps, batch, *shape = s.shape
        values = Values(tuple(shape), self.input_exponent, self.input_max)
        return Projection(self._get_name(), 0, self.synapse, values).error_bits(frames=steps * batch)


_HOW_FINE = (
    "; input_exponent says how fine they are (0: spikes, 2: spikes after 2x2 pooling, 8: images of value x / 256), "
    "input_max how large"
)


def _kaiming(shape: tuple[int, ...], gain: float = DEFAULT_GAIN) -> torch.Tensor:
    weight = torch.empty(shape)
    bound = gain * (6 / int(np.prod(shape[1:]))) ** 0.5
    return torch.nn.init.uniform_(weight, -bound, bound)


class SpikingConv2d(_Spiking):
    """Convolution and LIF neurons: spikes `[T, B, C, H, W]` to spikes `[T, B, C', H', W']`.

    Args:
        in_channels: `C`.
        channels, kernel, stride, padding, dilation, groups: spec: synapses/conv2d.py.
        neuron: parameters of the neurons.
        psp: filter of the layer below; None: inputs are not filtered.
        weight_bits: bits of the weight grid.
        bias: whether a number a channel is added to the sums.
        input_exponent: inputs are multiples of `2^-input_exponent` (0: spikes, 2: spikes pooled 2x2, 8: images) ...
        input_max: ... in `[0, input_max]`.
    """

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
        neuron: NeuronModel | None = None,
        psp: PSP | None = None,
        weight_bits: int = 12,
        bias: bool = False,
        input_exponent: int = 0,
        input_max: float = 1.0,
    ) -> None:
        synapse = Conv2d(
            channels, kernel, stride, padding, dilation=dilation, groups=groups, weight_bits=weight_bits, bias=bias
        )
        if in_channels % synapse.groups:
            raise SpecError(f"the input's {in_channels} channels cannot be divided into {synapse.groups} groups")
        weight = _kaiming((channels, in_channels // synapse.groups, *synapse.kernels))
        super().__init__(synapse, weight, neuron, psp, input_exponent, input_max)


class SpikingLinear(_Spiking):
    """Full connection and LIF neurons: spikes `[T, B, ...]` to `[T, B, units]`; arguments as for `SpikingConv2d`."""

    def __init__(
        self,
        inputs: int,
        units: int,
        *,
        neuron: NeuronModel | None = None,
        psp: PSP | None = None,
        weight_bits: int = 12,
        bias: bool = False,
        input_exponent: int = 0,
        input_max: float = 1.0,
    ) -> None:
        synapse = Linear(units, weight_bits=weight_bits, bias=bias)
        super().__init__(synapse, _kaiming((units, inputs)), neuron, psp, input_exponent, input_max)


class SpikingAvgPool2d(torch.nn.Module):
    """Average pooling of spikes, spec: synapses/avgpool2d.py."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = AvgPool2d(size)

    def extra_repr(self) -> str:
        return f"size={self.pool.size}"

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """`[T, B, C, H, W]` to `[T, B, C, H // size, W // size]`."""
        pooled: torch.Tensor = _PoolFunction.apply(s, self.pool)  # type: ignore[no-untyped-call]
        return pooled


class Network(torch.nn.Module):
    """A `NetworkSpec` as a module; its parameters have the names of the spec's blocks.

    Where neurons learn numbers, call `clip_to_domain` after each step of the optimiser.

    Args:
        spec: the network.
        seed: of the initial weights (the spec's own, the same as every backend's).
        gain: of the initial weights.
        precision: of the backward pass.
    """

    def __init__(
        self, spec: NetworkSpec, *, seed: int = 0, gain: float = DEFAULT_GAIN, precision: Precision = "fast"
    ) -> None:
        super().__init__()
        check_precision(precision)
        self.spec = spec
        self.seed = seed
        self.precision: Precision = precision
        self.step = 0
        weights = initial_weights(spec, seed, gain)
        for block in spec.blocks:
            weight = torch.from_numpy(weights[block.name])
            values = block.input
            layer = _Spiking(block.synapse, weight, block.neuron, block.psp, values.exponent, values.maximum)
            self.add_module(block.name, layer)

    def clip_to_domain(self) -> None:
        """Bring every number that neurons learn back into its domain."""
        for module in self.modules():
            if isinstance(module, LIF):
                module.clip_to_domain()

    def extra_repr(self) -> str:
        sizes = (f"{block.name} {'x'.join(map(str, block.output_shape))}" for block in self.spec.blocks)
        return f"{self.spec}, {self.spec.coding}, precision={self.precision}, seed={self.seed}\n" + " -> ".join(
            [f"input {'x'.join(map(str, self.spec.input_shape))}", *sizes]
        )

    def forward(self, inputs: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Output spikes `[T, B, N]` from uint8 frames `[T, B, ...]`, or from uint8 images `[B, ...]` with `steps`.

        In training mode each call draws new dropout masks (`self.step` counts the calls).

        Raises:
            ShapeError: an input is no whole number from 0 to `input_max` (images: 255), or `steps` is not theirs.
            NumericError: an input or a weight is not finite, or a weight is too large.
        """
        direct = self.spec.coding == "direct"
        check_inputs("Network", inputs, 0, 255 if direct else self.spec.input_max)
        s = inputs[None].float() * 2.0**-8 if direct else inputs.float()
        steps = check_steps(s, steps)
        backend = backend_of(s)
        for block in self.spec.blocks:
            shape = block.input_shape
            for place, layer in enumerate(block.before):
                if isinstance(layer, AvgPool2d):
                    s = _PoolFunction.apply(s, layer)  # type: ignore[no-untyped-call]
                elif self.training and layer.rate > 0:
                    mask = backend.dropout_mask(
                        self.seed, block.dropout_substream(place), self.step, (s.shape[1], *shape), layer.rate
                    )
                    s = s * mask
                shape = layer.output_shape(shape)
            gain = block.input.gain if self.training else 1.0
            s = self.get_submodule(block.name)(s, steps, gain=gain, precision=self.precision, checked=True)
        if self.training:
            self.step += 1
        return s
