"""The suite tested itself: backends that are wrong in one place each; every one must make the suite fail.

Each fault is the numpy reference with one method replaced. `caught(fault)` runs the quick checks of every tier on it;
`python -m stsbp_conformance.faults FILE.json` prints and writes the table of faults and the tiers that catch them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec import grid
from stsbp_spec.backend import Batch, RunResult, ValueAndGrad
from stsbp_spec.grid import WeightGrid, snap
from stsbp_spec.losses import LOSSES, Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.neurons import LIF
from stsbp_spec.optim.adamw import AdamWScalars
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.reference.neurons import lif
from stsbp_spec.surrogates import SURROGATES, Surrogate, Triangle, parse_surrogate
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d, Filter, Linear
from stsbp_spec.trainer import StepResult, Trainer, TrainState
from stsbp_spec.typing import AnyArray, Coding, Float32, Float64, Int64, Native, Precision, Shape, UInt8

from stsbp_conformance.check import Check, Unavailable
from stsbp_conformance.tiers import bits, errors, gradients, pairs, rational, reproducible, trainer

__all__ = ["FAULTS", "Fault", "caught", "quick_checks"]


def _rounded(x: Float64) -> Float32:
    return x.astype(np.float32)


def _forward(
    neuron: LIF,
    filter: Filter,
    z: Float32,
    steps: int,
    *,
    fires: Callable[[AnyArray, np.float32], AnyArray] = np.greater_equal,
    add_filtered: Callable[[Filter, Float32, Float32], Float32] | None = None,
    add_membrane: Callable[[np.float32, Float32, AnyArray, Float32], Float32] | None = None,
    floor: Callable[[Float32], Float32] = snap,
) -> tuple[UInt8, lif.Residuals]:
    """neurons/lif.py with its steps open to change."""
    km, vth = neuron.decay, np.float32(neuron.threshold)
    u, spikes = np.empty((steps, *z.shape[1:]), np.float32), np.empty((steps, *z.shape[1:]), np.uint8)
    i, previous, fired = (np.zeros(z.shape[1:], np.float32) for _ in range(3))
    for t in range(steps):
        x = z[t % len(z)]
        i = floor(filter.decay * i + filter.gain * x if add_filtered is None else add_filtered(filter, i, x))
        kept = np.where(fired != 0, np.float32(0), km * previous)
        u[t] = floor(kept + i if add_membrane is None else add_membrane(km, previous, fired, i))
        spikes[t] = fires(u[t], vth)
        previous, fired = u[t], spikes[t]
    return spikes, lif.Residuals(u, spikes, static=len(z) == 1 and steps > 1)


def _backward(
    neuron: LIF,
    filter: Filter,
    residuals: lif.Residuals,
    ds: Float32,
    *,
    reset: float = 1.0,
    detached: bool = True,
    late: bool = False,
    surrogate: Surrogate | None = None,
    floor: Callable[[Float32], Float32] = snap,
    first_to_last: bool = False,
    fused: bool = False,
) -> Float32:
    """The adjoint with its steps open to change."""
    u, spikes, static = residuals
    km, vth, h_of = neuron.decay, np.float32(neuron.threshold), surrogate or neuron.surrogate
    dz = np.zeros((1, *u.shape[1:]) if static else u.shape, np.float32)
    d, e = np.zeros(u.shape[1:], np.float32), np.zeros(u.shape[1:], np.float32)
    order = range(len(u)) if first_to_last else reversed(range(len(u)))
    for t in order:
        h = h_of.derivative(u[t] - vth)
        d1 = floor(km * d)
        of_reset = u[min(t + 1, len(u) - 1)] if late else u[t]
        p = floor(np.float32(reset) * (of_reset * d1))
        r = floor(h * (ds[t] - p))
        d = r + (np.where(spikes[t] != 0, np.float32(0), d1) if detached else d1)
        if fused:
            e = floor(_rounded(np.float64(filter.decay) * e + d))
        else:
            e = floor(filter.decay * e + d)
        dz[0 if static else t] += filter.gain * e
    return dz


def _next(x: np.float32) -> np.float32:
    following: np.float32 = np.nextafter(x, np.float32(2), dtype=np.float32)
    return following


class FusedFilter(NumpyBackend):
    """A fused multiply-add in the synaptic filter: k*i + c*z with k*i not rounded."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        def add(f: Filter, i: Float32, x: Float32) -> Float32:
            return _rounded(np.float64(f.decay) * i + (f.gain * x).astype(np.float64))

        return _forward(neuron, filter, z, steps, add_filtered=add)


class FusedMembrane(NumpyBackend):
    """A fused multiply-add in the membrane: km*u + i rounded once."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        def add(km: np.float32, previous: Float32, fired: AnyArray, i: Float32) -> Float32:
            return _rounded(np.where(fired != 0, 0, np.float64(km) * previous) + i)

        return _forward(neuron, filter, z, steps, add_membrane=add)


class FusedAdjoint(NumpyBackend):
    """A fused multiply-add in the adjoint of the synaptic filter."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, fused=True)


class StrictThreshold(NumpyBackend):
    """A spike at u > V_th instead of u >= V_th."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        return _forward(neuron, filter, z, steps, fires=np.greater)


class DecayUlp(NumpyBackend):
    """The membrane decay off by one unit in the last place."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        def add(km: np.float32, previous: Float32, fired: AnyArray, i: Float32) -> Float32:
            return np.where(fired != 0, np.float32(0), _next(km) * previous) + i

        return _forward(neuron, filter, z, steps, add_membrane=add)


class SynapticDecayUlp(NumpyBackend):
    """The synaptic decay off by one unit in the last place."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        changed = Filter(_next(filter.decay) if filter.decay > 0 else filter.decay, filter.gain)
        return _forward(neuron, changed, z, steps)


class NoReset(NumpyBackend):
    """The membrane is not reset after a spike."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        def add(km: np.float32, previous: Float32, fired: AnyArray, i: Float32) -> Float32:
            return km * previous + i

        return _forward(neuron, filter, z, steps, add_membrane=add)


class SoftReset(NumpyBackend):
    """Reset by subtraction of the threshold instead of to zero."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        def add(km: np.float32, previous: Float32, fired: AnyArray, i: Float32) -> Float32:
            return km * (previous - np.float32(neuron.threshold) * fired.astype(np.float32)) + i

        return _forward(neuron, filter, z, steps, add_membrane=add)


class NoPspGain(NumpyBackend):
    """The gain c_s of the synaptic filter left out."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        return _forward(neuron, Filter(filter.decay, np.float32(1)), z, steps)


class TimeShifted(NumpyBackend):
    """The input of a layer arrives one step late."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        if len(z) > 1:
            z = np.concatenate([np.zeros_like(z[:1]), z[:-1]])
        return _forward(neuron, filter, z, steps)


class NoFloorForward(NumpyBackend):
    """No floor: states decay into subnormal numbers."""

    def neuron_forward(self, neuron: LIF, filter: Filter, z: Float32, steps: int) -> tuple[UInt8, lif.Residuals]:
        return _forward(neuron, filter, z, steps, floor=lambda x: x)


class NoFloorBackward(NumpyBackend):
    """No floor in the backward pass."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, floor=lambda x: x)


class ResetPathDropped(NumpyBackend):
    """The path of the gradient through the reset, - k_m u_t d~_{t+1}, left out."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, reset=0.0)


class ResetOneStepLate(NumpyBackend):
    """The reset's path takes the potential of the next step."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, late=True)


class LeakThroughSpikes(NumpyBackend):
    """The factor (1 - o_t) left out of the membrane iteration factor."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, detached=False)


class WiderSurrogate(NumpyBackend):
    """The surrogate wider by one part in a million."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        surrogate = neuron.surrogate
        name = str(surrogate).split(":")[0]
        field = str(surrogate).split(":")[1].split("=")[0]
        factor = 1 + 1e-6 if field == "width" else 1 - 1e-6
        changed = parse_surrogate(f"{name}:{field}={surrogate.parameter * factor!r}")
        return _backward(neuron, filter, residuals, ds, surrogate=changed)


class ForwardInTime(NumpyBackend):
    """The adjoint runs from the first step to the last."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        return _backward(neuron, filter, residuals, ds, first_to_last=True)


class StaticErrorOfLastStep(NumpyBackend):
    """A static input receives the error of one step instead of the sum over all."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        u, spikes, static = residuals
        dz = _backward(neuron, filter, lif.Residuals(u, spikes, static=False), ds)
        return dz[:1] if static else dz


class StaticErrorOtherOrder(NumpyBackend):
    """The errors of a static input are added from the first step to the last."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        u, spikes, static = residuals
        dz = _backward(neuron, filter, lif.Residuals(u, spikes, static=False), ds)
        if not static:
            return dz
        total = np.zeros_like(dz[:1])
        for x in dz:
            total[0] += x
        return total


class PoolingSums(NumpyBackend):
    """Pooling adds up windows instead of taking their mean."""

    def avgpool2d_forward(self, pool: AvgPool2d, s: AnyArray) -> tuple[Float32, Any]:
        mean, residuals = super().avgpool2d_forward(pool, s)
        return mean * np.float32(pool.size**2), residuals


class PoolingAdjointScaled(NumpyBackend):
    """The adjoint of pooling does not divide by the window."""

    def avgpool2d_backward(self, pool: AvgPool2d, residuals: Any, d: Float32) -> Float32:
        return super().avgpool2d_backward(pool, residuals, d) * np.float32(pool.size**2)


class WeightsOffTheGrid(NumpyBackend):
    """The forward pass uses the master weights."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return w, super().weight_grid(block, w)[1]


class HalvesAwayFromZero(NumpyBackend):
    """The weight grid rounds halves away from zero instead of to even."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        found = super().weight_grid(block, w)[1]
        scaled = np.abs(w) * np.float32(2.0**found.exponent)
        return np.copysign(np.floor(scaled + np.float32(0.5)), w) * np.float32(2.0**-found.exponent), found


class FinerGrid(NumpyBackend):
    """The bound of the weight grid is not checked: no coarser grid is taken."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return grid.weight_grid(
            w, weight_bits=block.layer.weight_bits, input_exponent=0, input_max=1.0, layer=block.name
        )


class StraightThroughBroken(NumpyBackend):
    """The gradient is cut where the weight grid changed a weight by more than a quarter unit."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
        result = super().value_and_grad(*args, **kwargs)
        network, weights = args[0], args[2]
        cut = {}
        for block in network.blocks:
            wq, found = self.weight_grid(block, weights[block.name])
            kept = np.abs(wq - weights[block.name]) < 2.0 ** (-found.exponent - 2)
            cut[block.name] = result.gradients[block.name] * kept
        return replace(result, gradients=cut)


class ErrorGridBit(NumpyBackend):
    """The error grid is coarser by one bit."""

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return super().error_grid(dz, bits - 1)


class ErrorGridMissing(NumpyBackend):
    """No error grid in reproducible precision."""

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return dz, super().error_grid(dz, bits)[1]


class ErrorGridCap(NumpyBackend):
    """The error grid of version 1 of the contract, of at most 24 bits."""

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        return super().error_grid(dz, min(24, bits))


class ZerosCountAsZeroed(NumpyBackend):
    """Errors that were zero before the grid are counted as zeroed by it."""

    def error_grid(self, dz: Float32, bits: int) -> tuple[Float32, Int64]:
        on_grid, _ = super().error_grid(dz, bits)
        return on_grid, np.array([np.count_nonzero(on_grid == 0), np.count_nonzero(dz)], np.int64)


class SinglePrecisionSums(NumpyBackend):
    """Reproducible precision adds in float32."""

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        return super().synapse_backward(synapse, residuals, dz, precision="fast", need_input=need_input)


class HalfPrecisionGradients(NumpyBackend):
    """Fast precision rounds errors to the 11 bits of TF32."""

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        if precision == "fast":
            mantissa, exponent = np.frexp(dz)
            dz = np.ldexp(np.rint(mantissa * np.float32(2048)) / np.float32(2048), exponent).astype(np.float32)
        return super().synapse_backward(synapse, residuals, dz, precision=precision, need_input=need_input)


class TransposedKernel(NumpyBackend):
    """A true convolution: the kernel's rows and columns run backwards."""

    def synapse_forward(self, synapse: Conv2d | Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Any]:
        return super().synapse_forward(synapse, s, wq[..., ::-1, ::-1] if isinstance(synapse, Conv2d) else wq)


class KernelSwapped(NumpyBackend):
    """The weight gradient of a convolution has rows and columns swapped."""

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        ds, dw = super().synapse_backward(synapse, residuals, dz, precision=precision, need_input=need_input)
        return ds, np.ascontiguousarray(dw.swapaxes(2, 3)) if isinstance(synapse, Conv2d) else dw


class StrideIgnored(NumpyBackend):
    """The strided convolution reads the first rows and columns, as if the stride were 1."""

    def synapse_forward(self, synapse: Conv2d | Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Any]:
        z, residuals = super().synapse_forward(synapse, s, wq)
        if isinstance(synapse, Conv2d) and synapse.stride > 1:
            dense, _ = super().synapse_forward(replace(synapse, stride=1), s, wq)
            z = np.ascontiguousarray(dense[..., : z.shape[-2], : z.shape[-1]])
        return z, residuals


class PaddingIgnored(NumpyBackend):
    """The data gradient of a padded convolution is shifted by the padding."""

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Float32, *, precision: Precision, need_input: bool
    ) -> tuple[Float32 | None, Float32]:
        ds, dw = super().synapse_backward(synapse, residuals, dz, precision=precision, need_input=need_input)
        if ds is not None and isinstance(synapse, Conv2d) and synapse.padding:
            ds = np.roll(ds, synapse.padding, axis=-1)
        return ds, dw


class FlattenedOtherwise(NumpyBackend):
    """A full connection flattens (H, W, C) instead of (C, H, W)."""

    def synapse_forward(self, synapse: Conv2d | Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Any]:
        z, residuals = super().synapse_forward(synapse, s, wq)
        if isinstance(synapse, Linear) and s.ndim == 5:
            z, _ = super().synapse_forward(synapse, s.transpose(0, 1, 3, 4, 2), wq)
        return z, residuals


class DropoutShifted(NumpyBackend):
    """The dropout mask is shifted by one element."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> UInt8:
        longer = super().dropout_mask(seed, layer, step, (math.prod(shape) + 1,), rate)
        return longer[1:].reshape(shape)


class DropoutSameEveryStep(NumpyBackend):
    """The dropout mask does not depend on the update."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> UInt8:
        return super().dropout_mask(seed, layer, 0, shape, rate)


class DropoutSameEveryLayer(NumpyBackend):
    """Two layers share the bits of their masks."""

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float) -> UInt8:
        return super().dropout_mask(seed, 0, step, shape, rate)


class DropoutScaled(NumpyBackend):
    """Dropout multiplies spikes by 1/(1 - rate), after which the filter does so again."""

    def dropout(self, mask: UInt8, s: AnyArray) -> AnyArray:
        return s * mask * 2


class BatchNotDivided(NumpyBackend):
    """The loss is a sum over the batch instead of a mean."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        return super().loss_error(loss, psp_, s, targets) * np.float32(s.shape[1])


class HammingTwice(NumpyBackend):
    """The error of the Hamming distance has the factor 2 of the square."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        error = super().loss_error(loss, psp_, s, targets)
        return error * np.float32(2) if isinstance(loss, Hamming) else error


class VanRossumNotTwice(NumpyBackend):
    """The van Rossum error is filtered once, its adjoint left out."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        if not isinstance(loss, VanRossum):
            return super().loss_error(loss, psp_, s, targets)
        difference = s.astype(np.float32) - targets.astype(np.float32)
        return self.psp_forward(psp_, difference) * np.float32(1 / s.shape[1])


class SpikeCountByT(NumpyBackend):
    """The spike count's error is divided by T once."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        error = super().loss_error(loss, psp_, s, targets)
        return error * np.float32(len(s)) if isinstance(loss, SpikeCount) else error


class BytesWrapAround(NumpyBackend):
    """The spike count's difference is taken in bytes: output minus target wraps around."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        if isinstance(loss, SpikeCount):
            return super().loss_error(loss, psp_, s, targets)
        difference = (s - targets).astype(np.float32)
        zero = np.zeros_like(targets)
        return super().loss_error(loss, psp_, difference, zero)  # type: ignore[arg-type]


class PspAdjointForward(NumpyBackend):
    """The adjoint of the PSP filter runs forward in time."""

    def psp_backward(self, psp_: PSP, da: Float32) -> Float32:
        return self.psp_forward(psp_, da)


class ImagesBy255(NumpyBackend):
    """Images are divided by 255 instead of 256."""

    def encode(self, inputs: UInt8, coding: Coding) -> AnyArray:
        return inputs if coding == "events" else inputs[None].astype(np.float32) / np.float32(255)


class NormOfSquares(NumpyBackend):
    """The gradient norm is a float32 sum of squares."""

    def gradient_norm(self, gradients: Sequence[Float32]) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return math.sqrt(sum(float((g * g).sum()) for g in gradients))


class EpsilonInsideRoot(NumpyBackend):
    """AdamW adds epsilon under the root."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        _, m, v = super().adamw(scalars, w, g, m, v)
        c = scalars
        return c.decay * w - c.rate * ((m * c.c1) / np.sqrt(v * c.c2 + c.eps)), m, v


class NoBiasCorrection(NumpyBackend):
    """AdamW without bias correction."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        return super().adamw(replace(scalars, c1=np.float32(1), c2=np.float32(1)), w, g, m, v)


class DecayInTheGradient(NumpyBackend):
    """Weight decay through the gradient (Adam with L2) instead of decoupled."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        decay = np.float32((1 - float(scalars.decay)) / max(float(scalars.rate), 1e-30))
        return super().adamw(replace(scalars, decay=np.float32(1)), w, g + decay * w, m, v)


class FusedAdamW(NumpyBackend):
    """A fused multiply-add in AdamW's first moment."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        c = scalars
        clipped = snap(g * c.clip)
        _, _, new_v = super().adamw(scalars, w, g, m, v)
        new_m = snap(_rounded(np.float64(c.beta1) * m + (c.one_minus_beta1 * clipped).astype(np.float64)))
        return c.decay * w - c.rate * ((new_m * c.c1) / (np.sqrt(new_v * c.c2) + c.eps)), new_m, new_v


class NoClipping(NumpyBackend):
    """Gradients are not clipped."""

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        return super().adamw(replace(scalars, clip=np.float32(1)), w, g, m, v)


class LosesPackedSpikes(NumpyBackend):
    """The last step of the spikes that are kept as bits is lost."""

    def unpack_spikes(self, packed: Any) -> Native:
        s = super().unpack_spikes(packed)
        s[-1] = 0
        return s


class UpdatesInPlace(NumpyBackend):
    """The update writes into the arrays that the caller gave to `init`."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Aliasing(Trainer):
            def init(self, weights: dict[str, Float32]) -> TrainState:
                state = super().init(weights)
                return TrainState(0, dict(weights), state.m, state.v)

        return Aliasing(self, *args, **kwargs)

    def adamw(
        self, scalars: AdamWScalars, w: Float32, g: Float32, m: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        new, m, v = super().adamw(scalars, w, g, m, v)
        w[...] = new
        return w, m, v


class LossAddedInOrder(NumpyBackend):
    """The mean loss rounds with every sample that it adds."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
        result = super().value_and_grad(*args, **kwargs)
        return replace(result, loss=_added_in_order(args[1], args[0].output_psp, result.spikes, args[3]))

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Adding(Trainer):
            def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepResult]:
                state, result = super().step(state, batch)
                loss = _added_in_order(self.loss, self.network.output_psp, result.spikes, batch)
                return state, replace(result, loss=loss)

        return Adding(self, *args, **kwargs)


def _added_in_order(loss: Loss, psp: PSP, spikes: UInt8, batch: Batch) -> float:
    distances = loss.distance(spikes, batch.targets, psp)
    return float(np.cumsum(distances)[-1]) / len(distances)


class MomentsNotImported(NumpyBackend):
    """A resumed run begins with moments of zero."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Forgetful(Trainer):
            def import_state(self, exported: dict[str, AnyArray]) -> TrainState:
                state = super().import_state(exported)
                zero = {name: np.zeros_like(x) for name, x in state.m.items()}
                return TrainState(state.step, state.weights, zero, state.v)

        return Forgetful(self, *args, **kwargs)


class StepNotImported(NumpyBackend):
    """A resumed run counts its updates from zero."""

    def trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        class Restarting(Trainer):
            def import_state(self, exported: dict[str, AnyArray]) -> TrainState:
                state = super().import_state(exported)
                return TrainState(0, state.weights, state.m, state.v)

        return Restarting(self, *args, **kwargs)


class RateOfOneStep(NumpyBackend):
    """The spike rate of a layer is that of its last step."""

    def spike_rate(self, s: UInt8) -> float:
        return float(np.count_nonzero(s[-1])) / math.prod(s.shape[1:])


class NanAccepted(NumpyBackend):
    """Weights that are not finite are taken for zero."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        return super().weight_grid(block, np.nan_to_num(w, nan=0.0, posinf=0.0, neginf=0.0))


class HugeWeightsVanish(NumpyBackend):
    """Steps of the weight grid above 2^90 become zero, as a shift of exponents does that leaves its range."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        wq, found = super().weight_grid(block, w)
        return (np.zeros_like(wq) if found.exponent < -90 else wq), found


class HugeWeightsAccepted(NumpyBackend):
    """Weights of 2^100 and above are cut to the largest one that is allowed."""

    def weight_grid(self, block: Block, w: Float32) -> tuple[Float32, WeightGrid]:
        most = np.nextafter(np.float32(grid.CEILING), np.float32(0))
        return super().weight_grid(block, np.where(np.isfinite(w), w.clip(-most, most), w))


class SignedZeros(NumpyBackend):
    """Zeros of a gradient carry the sign that a matrix product left."""

    def value_and_grad(self, *args: Any, **kwargs: Any) -> ValueAndGrad:
        result = super().value_and_grad(*args, **kwargs)
        for g in result.gradients.values():
            g[g == 0] = np.float32(-0.0)
        return result


class MasksIgnored(NumpyBackend):
    """A mask over weights, inputs or targets is dropped without a word."""

    def value_and_grad(
        self, network: NetworkSpec, loss: Loss, weights: dict[str, Float32], batch: Batch, **kwargs: Any
    ) -> ValueAndGrad:
        plain = {name: np.asarray(w) for name, w in weights.items()}
        return super().value_and_grad(network, loss, plain, Batch(*map(np.asarray, batch)), **kwargs)


class StepsFillTheMemory(NumpyBackend):
    """However many steps are asked for, memory is taken for them."""

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        if isinstance(steps, int) and steps >= 2**31:
            raise MemoryError("cannot allocate an array")
        return super().run(network, weights, inputs, steps)


class UnknownLossWithoutAName(NumpyBackend):
    """A loss that the backend does not know ends in a KeyError."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        kinds: dict[type, Loss] = {type(known): known for known in LOSSES.values()}
        return super().loss_error(kinds[type(loss)], psp_, s, targets)


class LossTakenForItsParent(NumpyBackend):
    """A loss derived from the Hamming distance is computed as the Hamming distance."""

    def loss_error(self, loss: Loss, psp_: PSP, s: UInt8, targets: UInt8) -> Float32:
        return super().loss_error(Hamming() if isinstance(loss, Hamming) else loss, psp_, s, targets)


class SurrogateTakenForItsParent(NumpyBackend):
    """A surrogate derived from the triangle is computed as the triangle."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        h = neuron.surrogate
        return _backward(neuron, filter, residuals, ds, surrogate=Triangle(h.width) if isinstance(h, Triangle) else h)


class UnknownSurrogateWithoutAName(NumpyBackend):
    """A surrogate that the backend does not know ends in a TypeError."""

    def neuron_backward(self, neuron: LIF, filter: Filter, residuals: lif.Residuals, ds: Float32) -> Float32:
        if type(neuron.surrogate) not in SURROGATES.values():
            raise TypeError("unsupported type")
        return super().neuron_backward(neuron, filter, residuals, ds)


class UnknownSynapseTakenForItsParent(NumpyBackend):
    """Weights of a kind derived from the convolution are computed as a convolution."""

    def synapse_forward(self, synapse: Conv2d | Linear, s: AnyArray, wq: Float32) -> tuple[Float32, Any]:
        if isinstance(synapse, Conv2d):
            synapse = Conv2d(synapse.channels, synapse.kernel, synapse.stride, synapse.padding)
        return super().synapse_forward(synapse, s, wq)


class UnknownDeviceFallsBack(NumpyBackend):
    """An unknown device is replaced silently."""

    def open(self, device: str | None) -> str:
        return "cpu"


@dataclass(frozen=True)
class Fault:
    """A wrong backend and what is wrong with it."""

    backend: type[NumpyBackend]

    @property
    def name(self) -> str:
        """The class's name."""
        return self.backend.__name__

    @property
    def description(self) -> str:
        """The class's docstring."""
        return (self.backend.__doc__ or "").strip()


FAULTS = tuple(
    Fault(cls)
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, NumpyBackend) and cls is not NumpyBackend
)


def quick_checks() -> tuple[Check, ...]:
    """Every quick check of every tier."""
    every = (module.CHECKS for module in (rational, bits, gradients, reproducible, pairs, trainer, errors))
    return tuple(check for checks in every for check in checks if check.quick)


def caught(backend: NumpyBackend, *, first: bool = False) -> dict[int, list[str]]:
    """Identifiers of the checks that fail on a backend, by tier; `first`: stop at the first, cheap tiers first."""
    found: dict[int, list[str]] = {}
    checks = (
        sorted(quick_checks(), key=lambda check: (5, 7, 1, 2, 6, 4, 3).index(check.tier)) if first else quick_checks()
    )
    for check in checks:
        try:
            with np.errstate(all="ignore"):
                check.run(backend)
        except Unavailable:
            continue
        except Exception:  # a mismatch, or an error where a result was expected: either fails the suite
            found.setdefault(check.tier, []).append(check.id)
            if first:
                break
    return found


def main() -> None:
    """Print every fault and how many checks of each tier catch it; write it as JSON where a file is named."""
    totals: dict[int, int] = {}
    for check in quick_checks():
        totals[check.tier] = totals.get(check.tier, 0) + 1
    table = []
    for fault in FAULTS:
        tiers = {tier: len(ids) for tier, ids in caught(fault.backend()).items()}
        table.append({"fault": fault.name, "description": fault.description, "caught": tiers})
        print(f"{fault.name:24} {', '.join(f'tier {t}: {n}' for t, n in tiers.items()) or 'NOT CAUGHT'}", flush=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"checks": totals, "faults": table}, indent=1) + "\n", encoding="utf-8")
    if not all(row["caught"] for row in table):
        raise SystemExit("a fault was not caught")


if __name__ == "__main__":
    main()
