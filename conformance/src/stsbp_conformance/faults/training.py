"""Faults in training: dropout, parts of a batch, batch normalisation, losses, encodings, updates, checkpoints.

Also in streams, and in what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CEILING
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.equations.assembly import NeuronEquations
from stsbp_spec.equations.expressions import sqrt, variable
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.losses import Hamming, Loss, MeanSquaredError, SpikeCount, VanRossum
from stsbp_spec.models.optim import AdamScalars, AdamWScalars, SGDScalars
from stsbp_spec.models.optim.adamw import norm_exponent
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import SURROGATES, Triangle
from stsbp_spec.networks.graph import Projection
from stsbp_spec.networks.ops import PSP, Conv2d, batchnorm
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import RULES, NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, UInt8

from stsbp_conformance.cases import EXACT_LOSSES
from stsbp_conformance.faults import changes
from stsbp_conformance.faults.changes import Change, Fault, equation, fused, loss, method, neuron, node, trainer
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers.neurons import with_surrogate

__all__ = ["FAULTS"]

_KNOWN = {type(loss): loss for loss in EXACT_LOSSES.values()}
_ONE = np.float32(1)
_LARGEST = np.nextafter(np.float32(CEILING), np.float32(0))


def _squares_that_round(correct: Change, z: Float32, exponent: AnyArray) -> AnyArray:
    moments: AnyArray = correct(z, exponent)
    k = np.ldexp(np.moveaxis(z, 2, 0).reshape(moments.shape[1], -1).astype(np.float64), exponent[0])
    moments[1], moments[2] = np.divmod((k * k).sum(1), 2**24)
    return moments


def _products_that_round(correct: Change, dy: Float32, z: Float32, exponent: AnyArray) -> AnyArray:
    moments: AnyArray = correct(dy, z, exponent)
    k, d = (np.moveaxis(x, 2, 0).reshape(moments.shape[1], -1).astype(np.float64) for x in (z, dy))
    moments[1], moments[2] = (np.ldexp(k, exponent[0]) * d).sum(1) / 4096, 0
    return moments


class _PowerAsRoot(batchnorm.ChannelArithmetic):
    def root(self, a: Any) -> Any:
        return np.power(a, np.full_like(a, 0.5))


def _statistics(**changed: Any) -> type[NumpyBackend]:
    """Steps after the statistics of batch normalisation get other numbers, if they get numbers of these names."""

    def of_channels(correct: Change, function: Change, *arrays: Any, **fixed: Any) -> Any:
        return correct(function, *arrays, **fixed | {name: x for name, x in changed.items() if name in fixed})

    return method(of_channels=of_channels)


def _scale_of_all_steps(
    correct: Change, loss: Loss, psp: PSP, s: UInt8, targets: UInt8, batch: Any = None, padding: Any = None
) -> Any:
    if padding is not None:
        scale = loss.layer_constants(psp, len(s), batch or s.shape[1], s.shape[2])["scale"]
        padding = padding | {"scale": np.full_like(padding["scale"], scale)}
    return correct(loss, psp, s, targets, batch, padding)


def _penalty(change: Callable[[RatePenalty, UInt8, int], RatePenalty]) -> type[NumpyBackend]:
    """Another penalty, from the penalty, the spikes and the number of samples."""
    return method(
        rate_penalty=lambda correct, penalty, s, batch, *args: correct(change(penalty, s, batch), s, batch, *args)
    )


def _penalty_of_other_steps(
    correct: Change, penalty: RatePenalty, s: UInt8, batch: int, inside: Any = None, of_lengths: Any = None
) -> Any:
    if of_lengths is not None:
        numbers = penalty.constants(math.prod(s.shape[2:]), len(s), batch)
        of_lengths = {name: np.full_like(x, numbers[name]) for name, x in of_lengths.items()}
    return correct(penalty, s, batch, inside, of_lengths)


def _penalties_exchanged(correct: Change, *arguments: Any, rate_penalty: Any = None, **options: Any) -> Any:
    names, penalties = [*(rate_penalty or {})], [*(rate_penalty or {}).values()]
    return correct(*arguments, rate_penalty=dict(zip(names, penalties[::-1], strict=True)), **options)


def _of_real_targets(factor: Callable[[tuple[int, ...]], float]) -> type[NumpyBackend]:
    """The error of `mse` times a factor, a function of the shape `[T, B, N]`."""
    return loss(
        MeanSquaredError,
        lambda correct, loss, psp, u, *args: correct(loss, psp, u, *args) * np.float32(factor(u.shape)),
    )


def _zeroed(x: AnyArray, at: int | slice) -> AnyArray:
    x[at] = 0
    return x


def _stream(forgotten: Callable[[str], bool]) -> type[NumpyBackend]:
    """A network that runs step by step forgets states before each step."""

    def stream(correct: Change, *arguments: Any) -> Any:
        forgetful = correct(*arguments)
        go_on = forgetful._go_on
        forgetful._go_on = lambda x, states: go_on(x, {name: s for name, s in states.items() if not forgotten(name)})
        return forgetful

    return method(stream=stream)


def _bits_reversed(correct: Change, frames: PackedFrames) -> Any:
    reversed_bits = np.packbits(np.unpackbits(frames.bits[..., None], axis=-1, bitorder="little"), axis=-1)[..., 0]
    return correct(PackedFrames(reversed_bits, frames.steps))


def _squares_in_float32(correct: Change, gradients: Any) -> Any:
    squares = correct(gradients)
    exponent = norm_exponent(int(squares[0]), sum(g.size for g in gradients))
    if exponent is not None:
        total = math.fsum(float(np.square(g, dtype=np.float32).sum()) for g in gradients)
        squares[1] = min(math.ldexp(total, 2 * exponent), 2**62)
    return squares


def _decay_in_the_gradient(scalars: AdamWScalars, w: Float32, g: Float32, *moments: Float32) -> Any:
    decay = np.float32((1 - float(scalars.decay)) / max(float(scalars.rate), 1e-30))
    return replace(scalars, decay=_ONE), w, g + decay * w, *moments


def _decoupled_decay(scalars: AdamScalars | SGDScalars, w: Float32, *arrays: Float32) -> Any:
    return replace(scalars, weight_decay=np.float32(0)), w * (1 - scalars.rate * scalars.weight_decay), *arrays


def _updates(kind: type[Any] | tuple[type[Any], ...], change: Callable[..., Any]) -> Change:
    """Replaces `updated`: weights get other arguments from an optimiser whose scalars are of this kind."""

    def updated(correct: Change, scalars: Any, domain: Any, *arrays: Float32) -> Any:
        if domain is None and isinstance(scalars, kind):
            scalars, *arrays = change(scalars, *arrays)
        return correct(scalars, domain, *arrays)

    return updated


def _changed_scalars(**changed: np.float32) -> Callable[..., Any]:
    return lambda scalars, *arrays: (replace(scalars, **changed), *arrays)


def _in_place(correct: Change, scalars: Any, domain: Any, w: Float32, *args: Float32) -> Any:
    new, *moments = correct(scalars, domain, w, *args)
    if domain is None:
        w[...] = new
        new = w
    return new, *moments


def _frozen_decay(correct: Any, state: TrainState[AnyArray], clip: np.float32, grads: Any) -> Any:
    updated = correct(state, clip, grads)
    decay = getattr(correct.__self__.optimizer.scalars(state.step, clip), "decay", _ONE)
    return replace(updated, weights={name: w if name in grads else decay * w for name, w in updated.weights.items()})


def _added_in_order(loss: Loss, psp: PSP, spikes: UInt8, batch: Batch[Any]) -> float:
    distances = loss.distance(spikes, batch.targets, psp)
    return float(np.cumsum(distances)[-1]) / len(distances)


def _gradient_with_loss_in_order(correct: Change, network: NetworkSpec, loss: Loss, *args: Any, **options: Any) -> Any:
    result = correct(network, loss, *args, **options)
    return replace(result, loss=_added_in_order(loss, network.output_psp, result.spikes, args[1]))


def _step_with_loss_in_order(correct: Any, state: TrainState[AnyArray], batch: Batch[Any]) -> Any:
    state, result = correct(state, batch)
    loss, psp = correct.__self__.loss, correct.__self__.network.output_psp
    return state, replace(result, measure=partial(_added_in_order, loss, psp, result.spikes, batch))


def _largest_are_zero(correct: Change, projection: Projection, w: Float32) -> Any:
    wq, units = correct(projection, w)
    return (np.zeros_like(wq) if units.exponent < -90 else wq), units


def _negative_zeros(correct: Change, *args: Any, **kwargs: Any) -> Any:
    result = correct(*args, **kwargs)
    for g in result.gradients.values():
        g[g == 0] = np.float32(-0.0)
    return result


def _out_of_memory(correct: Change, network: Any, weights: Any, inputs: UInt8, steps: int) -> Any:
    if isinstance(steps, int) and steps >= 2**31:
        raise MemoryError("cannot allocate an array")
    return correct(network, weights, inputs, steps)


def _parent_surrogate(equations: NeuronEquations) -> NeuronEquations:
    h = equations.neuron.surrogate
    return changes.with_neuron(
        equations, with_surrogate(equations.neuron, Triangle(h.width) if isinstance(h, Triangle) else h)
    )


def _known_surrogates(equations: NeuronEquations) -> NeuronEquations:
    if type(equations.neuron.surrogate) not in SURROGATES.values():
        raise TypeError("unsupported type")
    return equations


# fmt: off
FAULTS = (
    Fault("DropoutShifted", "The dropout mask is shifted by one element.",
          method(dropout_mask=lambda correct, seed, layer, step, shape, *args, **first: correct(
              seed, layer, step, (math.prod(shape) + 1,), *args)[1:].reshape(shape))),
    Fault("DropoutOfThePart", "The dropout mask counts samples from the first one of a part, not of the batch.",
          method(dropout_mask=lambda correct, *args, first=0: correct(*args))),
    Fault("ErrorGridOfThePart", "Each part of a batch uses its own error grid.",
          method(error_grid=lambda correct, dz, bits, *largest: correct(dz, bits))),
    Fault("LossOfThePart", "The loss is divided by the samples of a part, not of the batch.",
          loss(Loss, lambda correct, loss, psp, s, targets, *args: correct(loss, psp, s, targets))),
    Fault("PartsRounded", "Gradients of parts are rounded to float32 before they are added.",
          method(add=lambda correct, a, b: a.astype(np.float32) + b.astype(np.float32))),
    Fault("FusedNormalisation", "A fused multiply-add in batch normalisation: (z - mean) a + shift rounded once.",
          equation("batchnorm_forward", add=lambda x: node("fma", *x.args[0].args[0].args, x.args[1]))),
    Fault("SquaresInFloat64",
          "Squares in batch normalisation are not split into pieces, so that their float64 sums round.",
          method(moments=_squares_that_round)),
    Fault("StatisticsOfThePart", "Each part of a batch is normalised by its own statistics.",
          method(add=lambda correct, a, b: a * 2 if a.dtype == np.int64 else correct(a, b))),
    Fault("StatisticsOfSilence", "The statistics of batch normalisation include padded steps.",
          method(mask_steps=lambda correct, x, inside: (
              x if x.dtype == np.float32 and x.ndim > 3 else correct(x, inside)))),
    Fault("ErrorsWithoutPieces",
          "Products of errors and sums in batch normalisation are not split into pieces, so float64 rounds their sums.",
          method(error_moments=_products_that_round)),
    Fault("RootAsPower",
          "The square root of batch normalisation is a power with exponent 1/2, whose last bit sometimes differs.",
          method(of_channels=lambda correct, function, *arrays, **fixed: function(_PowerAsRoot(), *arrays, **fixed))),
    Fault("GainNotInStatistics", "The factor of dropout is left out of the statistics of batch normalisation.",
          _statistics(gain=1.0)),
    Fault("StatisticsAsConstants", "The backward pass treats the statistics of the batch as constants.",
          _statistics(training=False)),
    Fault("DropoutSameEveryStep", "The dropout mask does not depend on the update.",
          method(dropout_mask=lambda correct, seed, layer, step, *args, **first: correct(
              seed, layer, 0, *args, **first))),
    Fault("DropoutSameEveryLayer", "Two layers share the bits of their masks.",
          method(dropout_mask=lambda correct, seed, layer, *args, **first: correct(seed, 0, *args, **first))),
    Fault("DropoutScaled", "Dropout multiplies spikes by 1/(1 - rate), and the filter does so again.",
          method(dropout=lambda correct, mask, s: s * mask * 2)),
    Fault("BatchNotDivided", "The loss is a sum over the batch instead of a mean.",
          loss(Loss, lambda correct, loss, psp, s, *args: correct(loss, psp, s, *args) * np.float32(s.shape[1]))),
    Fault("LooksAtPadding", "Outputs and targets at padded steps contribute to the error of the loss.",
          loss(Loss, lambda correct, loss, psp, s, targets, batch=None, *args: correct(loss, psp, s, targets, batch))),
    Fault("RateOfAllSteps",
          "The spike count loss of a sample that ends early divides by the number of steps of the batch.",
          loss(SpikeCount, _scale_of_all_steps)),
    Fault("PenaltyByT", "The error of a rate penalty is divided by the number of steps only once.",
          _penalty(lambda penalty, s, batch: replace(penalty, weight=penalty.weight * len(s)))),
    Fault("PenaltyOfThePart", "The rate penalty is divided by the samples of a part, not of the batch.",
          method(rate_penalty=lambda correct, penalty, s, batch, *args: correct(penalty, s, s.shape[1], *args))),
    Fault("PenaltyOfAllNeurons", "The rate penalty is a sum over the neurons of a layer instead of a mean.",
          _penalty(lambda penalty, s, batch: replace(penalty, weight=penalty.weight * math.prod(s.shape[2:])))),
    Fault("PenaltyCountsPadding", "Spikes at padded steps count in the rate penalty.",
          method(spike_counts=lambda correct, s, inside=None: correct(s))),
    Fault("PenaltyOfAllSteps", "The rate penalty of a sample that ends early divides by the steps of the batch.",
          method(rate_penalty=_penalty_of_other_steps)),
    Fault("PenaltyAtPadding", "The error of the rate penalty also reaches padded steps.",
          method(with_rate_penalty=lambda correct, error, of_penalty, inside=None: correct(error, of_penalty))),
    Fault("PenaltyTwice", "The error of the rate penalty is added twice.",
          method(with_rate_penalty=lambda correct, error, *args: correct(correct(error, *args), *args))),
    Fault("PenaltyOfAnotherLayer", "Layers get the rate penalties of each other.",
          method(value_and_grad=_penalties_exchanged, trainer=_penalties_exchanged)),
    Fault("PenaltyOnBothSides", "The rate penalty also holds for neurons below the target.",
          equation("rate_penalty", where=lambda x: x.args[1])),
    Fault("PenaltyInTheLoss", "The reported loss contains the rate penalty.",
          method(value_and_grad=lambda correct, *args, **options: (
              lambda result: replace(result, loss=result.loss + sum(result.penalties.values())))(
                  correct(*args, **options)))),
    Fault("FusedPenalty", "The product of a rate penalty is fused with the subtraction of the target.",
          equation("rate_penalty", mul=lambda x: (
              node("fma", variable("scale"), variable("n"), -(variable("scale") * variable("limit")))
              if x.args[0].name == "scale" else None))),
    Fault("CountsPaddedSteps", "Spikes at padded steps count in the spike rates.",
          method(mask_steps=lambda correct, x, inside: x)),
    Fault("StatesLost", "A network that runs step by step begins each step at rest.",
          _stream(forgotten=lambda name: True)),
    Fault("DelayedSpikesLost", "A network that runs step by step loses the spikes on its delayed edges.",
          _stream(forgotten=lambda name: ">" in name)),
    Fault("ReadoutOfTheLastStep", "The error of a readout's potentials only reaches their last step.",
          method(readout_error=lambda correct, *arguments: _zeroed(correct(*arguments), slice(-1)))),
    Fault("HammingTwice", "The error of the Hamming distance has the factor 2 of the square.",
          loss(Hamming, lambda correct, *arguments: correct(*arguments) * np.float32(2))),
    Fault("VanRossumNotTwice", "The van Rossum error is filtered only once, without the adjoint filter.",
          loss(VanRossum, lambda correct, loss, psp, s, targets, *args: (
              NUMPY.psp_forward(psp, s.astype(np.float32) - targets) * np.float32(1 / s.shape[1])))),
    Fault("SpikeCountByT", "The error of the spike count is divided by T only once.",
          loss(SpikeCount, lambda correct, loss, psp, s, *args: correct(loss, psp, s, *args) * np.float32(len(s)))),
    Fault("ErrorsOfOutputsAdded", "The mean squared error is a sum over the outputs instead of a mean.",
          _of_real_targets(lambda shape: shape[2])),
    Fault("ErrorsOfStepsAdded", "The mean squared error is a sum over the steps instead of a mean.",
          _of_real_targets(lambda shape: shape[0])),
    Fault("ErrorsOfSamplesAdded", "The mean squared error is a sum over the samples instead of a mean.",
          _of_real_targets(lambda shape: shape[1])),
    Fault("HalfTheSquare", "The error of the mean squared error lacks the factor 2 of the square.",
          _of_real_targets(lambda shape: 0.5)),
    Fault("AwayFromTheTarget", "The mean squared error drives potentials away from their targets.",
          equation("mse_backward", sub=lambda x: node("sub", *x.args[::-1]))),
    Fault("MeanOfAllSteps", "The mean squared error of a sample that ends early divides by the steps of the batch.",
          loss(MeanSquaredError, _scale_of_all_steps)),
    Fault("PaddedTargets", "The mean squared error also compares padded steps.",
          loss(MeanSquaredError, lambda correct, loss, psp, u, targets, batch=None, padding=None: correct(
              loss, psp, u, targets, batch,
              padding if padding is None else padding | {"inside": np.ones_like(padding["inside"])}))),
    Fault("TargetsInBytes", "Real targets are rounded to bytes.",
          loss(MeanSquaredError, lambda correct, loss, psp, u, targets, *args: correct(
              loss, psp, u, np.rint(targets.clip(0, 255)).astype(np.uint8).astype(np.float32), *args))),
    Fault("TargetsInHalfPrecision", "Real targets are rounded to float16.",
          loss(MeanSquaredError, lambda correct, loss, psp, u, targets, *args: correct(
              loss, psp, u, targets.astype(np.float16).astype(np.float32), *args))),
    Fault("DifferencesBelowTheFloor", "The mean squared error does not snap differences below the floor to zero.",
          equation("mse_backward", snap=lambda x: x.args[0])),
    Fault("ErrorOfTheSpikes", "The mean squared error compares spikes, not potentials, with the targets.",
          loss(MeanSquaredError, lambda correct, loss, psp, u, *args: correct(loss, psp, np.zeros_like(u), *args))),
    Fault("BytesWrapAround", "Output minus target is taken in bytes, except by the spike count: it wraps around.",
          method(loss_error=lambda correct, loss, psp, s, targets, *args: (
              correct(loss, psp, s, targets, *args) if isinstance(loss, SpikeCount) else
              correct(loss, psp, (s - targets).astype(np.float32), np.zeros_like(targets), *args)))),
    Fault("PspAdjointForward", "The adjoint of the PSP filter runs forward in time.",
          method(psp_backward=lambda correct, psp, da: NUMPY.psp_forward(psp, da))),
    Fault("ImagesBy255", "Images are divided by 255 instead of 256.",
          method(encode=lambda correct, x, coding: correct(x, coding) if coding == "events" else (
              x[None].astype(np.float32) / np.float32(255)))),
    Fault("FirstStepOnTop", "In frames that are stored as bits, the first of eight steps is read from the highest bit.",
          method(unpack=_bits_reversed)),
    Fault("NormOfSquares", "The gradient norm is a float32 sum of squares.",
          method(gradient_squares=_squares_in_float32)),
    Fault("EpsilonInsideRoot", "AdamW adds epsilon under the square root.",
          equation("adamw", add=lambda x: sqrt(x.args[0].args[0] + x.args[1]) if x.args[0].op == "sqrt" else None)),
    Fault("NoBiasCorrection", "AdamW without bias correction.",
          method(updated=_updates(AdamWScalars, _changed_scalars(c1=_ONE, c2=_ONE)))),
    Fault("DecayInTheGradient", "Weight decay is part of the gradient (Adam with L2) instead of decoupled.",
          method(updated=_updates(AdamWScalars, _decay_in_the_gradient))),
    Fault("FusedAdamW", "A fused multiply-add in AdamW's first moment.",
          equation("adamw", add=lambda x: fused(x, "beta1"))),
    Fault("NoClipping", "Gradients are not clipped.",
          method(updated=_updates(AdamWScalars, _changed_scalars(clip=_ONE)))),
    Fault("DecoupledDecay", "The weight decay of Adam and SGD is decoupled from the gradient, as in AdamW.",
          method(updated=_updates((AdamScalars, SGDScalars), _decoupled_decay))),
    Fault("NoBiasCorrectionInAdam", "Adam without bias correction.",
          method(updated=_updates(AdamScalars, _changed_scalars(c1=_ONE, c2=_ONE)))),
    Fault("NoMomentum", "SGD forgets its momentum.",
          method(updated=_updates(SGDScalars, _changed_scalars(momentum=np.float32(0))))),
    Fault("DampenedMomentum", "SGD multiplies gradients by 1 - momentum before it adds them to the momentum.",
          method(updated=_updates(SGDScalars, lambda scalars, w, g, m: (
              replace(scalars, weight_decay=scalars.weight_decay * (_ONE - scalars.momentum)),
              w, g * (_ONE - scalars.momentum), m)))),
    Fault("FusedSGD", "A fused multiply-add in the momentum of SGD.",
          equation("sgd", add=lambda x: fused(x, "momentum"))),
    Fault("FusedDecay", "A fused multiply-add where Adam adds the decay to the gradient.",
          equation("adam", add=lambda x: fused(x, "weight_decay"))),
    Fault("FrozenDecays", "Weight decay reaches frozen parameters.",
          method(trainer=trainer(_updated=_frozen_decay))),
    Fault("NormOfFrozen", "The gradient norm contains the gradients of frozen parameters.",
          method(trainer=trainer(_of_trained=lambda correct, grads: correct(grads)._replace(
              squares=NUMPY.gradient_squares(list(grads.values.values())))))),
    Fault("LosesPackedSpikes", "The last step of spikes that are stored as bits is lost.",
          method(unpack_spikes=lambda correct, packed: _zeroed(correct(packed), -1))),
    Fault("UpdatesInPlace", "The update writes into the arrays that the caller gave to `init`.",
          method(trainer=trainer(init=lambda correct, w: replace(correct(w), weights=dict(w))), updated=_in_place)),
    Fault("LossAddedInOrder", "The sum of the mean loss rounds at every sample.",
          method(value_and_grad=_gradient_with_loss_in_order, trainer=trainer(step=_step_with_loss_in_order))),
    Fault("MomentsNotImported", "A resumed run begins with moments of zero.",
          method(trainer=trainer(import_state=lambda correct, exported: correct(
              {name: np.zeros_like(x) if name.startswith("adamw.m/") else x for name, x in exported.items()})))),
    Fault("StepNotImported", "A resumed run counts its updates from zero.",
          method(trainer=trainer(import_state=lambda correct, exported: replace(correct(exported), step=0)))),
    Fault("RateOfOneStep", "The spike rate of a layer is that of its last step.",
          method(spike_count=lambda correct, s: np.asarray(np.count_nonzero(s[-1]) * len(s)))),
    Fault("NanAccepted", "Weights that are not finite are treated as zero.",
          method(weight_grid=lambda correct, projection, w: correct(
              projection, np.where(np.isfinite(w), w, np.float32(0))))),
    Fault("HugeWeightsVanish",
          "Steps of the weight grid above 2^90 become zero, as after an overflow of an exponent shift.",
          method(weight_grid=_largest_are_zero)),
    Fault("HugeWeightsAccepted", "Weights of 2^100 and above are clipped to the largest allowed weight.",
          method(weight_grid=lambda correct, projection, w: correct(
              projection, np.where(np.isfinite(w), w.clip(-_LARGEST, _LARGEST), w)))),
    Fault("SignedZeros", "Zeros of a gradient keep the sign from a matrix product.",
          method(value_and_grad=_negative_zeros)),
    Fault("MasksIgnored", "A mask over weights, inputs or targets is silently ignored.",
          method(value_and_grad=lambda correct, network, loss, weights, batch, **options: correct(
              network, loss, {name: np.asarray(w) for name, w in weights.items()}, Batch(*map(np.asarray, batch)),
              **options))),
    Fault("StepsFillTheMemory", "Memory is allocated for any requested number of steps.", method(run=_out_of_memory)),
    Fault("UnknownLossWithoutAName", "A loss that the backend does not know ends in a KeyError.",
          method(loss_error=lambda correct, loss, *args: correct(_KNOWN[type(loss)], *args))),
    Fault("LossTakenForItsParent", "A loss derived from the Hamming distance is computed as the Hamming distance.",
          method(loss_error=lambda correct, loss, psp, s, targets, *args: correct(
              Hamming() if isinstance(loss, Hamming) else loss, psp, s, targets))),
    Fault("SurrogateTakenForItsParent", "A surrogate derived from the triangle is computed as the triangle.",
          neuron(_parent_surrogate, "backward")),
    Fault("UnknownSurrogateWithoutAName", "A surrogate that the backend does not know ends in a TypeError.",
          neuron(_known_surrogates, "backward")),
    Fault("UnknownSynapseTakenForItsParent",
          "Weights of a kind derived from the convolution are computed as a convolution.",
          method(rule=lambda correct, op: RULES[Conv2d] if isinstance(op, Conv2d) else correct(op))),
    Fault("UnknownDeviceFallsBack", "An unknown device is replaced silently.",
          method(open=lambda correct, device: "cpu")),
)
