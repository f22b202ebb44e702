"""Checks of the arguments of a backend's public functions. A wrong kind, shape or range raises an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.contract.random import check_seed, check_step
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.results import Batch
from stsbp_spec.equations.assembly import loss_equations, neuron_equations
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.encoders.packed import Inputs, PackedFrames
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.lengths import without_padding
from stsbp_spec.models.losses import LOSSES, OF_POTENTIALS, CrossEntropy
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.rate_penalty import LayerPenalties, RatePenalty
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.ops.batchnorm import STATISTICS
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Precision, Shape
from stsbp_spec.validation import integer, listed, shown

__all__ = [
    "FIT_SAMPLES_FIRST",
    "MAX_STEPS",
    "batch_as_bytes",
    "check_batch",
    "check_dropout",
    "check_frozen",
    "check_inputs",
    "check_lengths",
    "check_loss",
    "check_network",
    "check_output",
    "check_part",
    "check_precision",
    "check_precision_name",
    "check_psp",
    "check_rate_penalty",
    "check_statistic",
    "check_weights",
    "inputs_as_bytes",
    "other_axes",
    "samples_first",
    "swapped_axes",
]  # fmt: skip

MAX_STEPS = 2**24
"""Largest number of time steps of a run. Spikes of a neuron are counted in float32, which is exact up to this
number."""


def check_precision(network: NetworkSpec, precision: Precision) -> None:
    """Raise `SpecError` for an unknown precision, or `reproducible` with a surrogate that is not exact."""
    check_network(network)
    check_precision_name(precision)
    if precision == "fast":
        return
    for block in network.blocks:
        if not block.neuron.surrogate.exact:
            exact = listed(name for name, surrogate in SURROGATES.items() if surrogate().exact)
            raise SpecError(
                f"layer {block.name}: the surrogate {block.neuron.surrogate.name} uses exp, which differs between "
                f"libraries; for reproducible precision take one of {exact}"
            )
        equations = neuron_equations(block.filter(training=False), block.neuron)
        if not (equations.forward.exact and equations.backward.exact):
            raise SpecError(
                f"layer {block.name}: the neuron {block.neuron.name} uses exp, which differs between libraries; for "
                "reproducible precision write it with + - * / and comparisons"
            )


def check_precision_name(precision: object) -> None:
    """Raise `SpecError` for an unknown precision."""
    if precision not in ("fast", "reproducible"):
        raise SpecError(f"precision is 'fast' or 'reproducible', got {shown(precision)}")


def check_network(network: object) -> None:
    """Raise `SpecError` unless `network` is a network."""
    if not isinstance(network, NetworkSpec):
        raise SpecError(f"a network is a NetworkSpec, for example of NetworkSpec.parse, got {shown(network)}")


def check_loss(loss: object, precision: Precision = "fast") -> None:
    """Raise `SpecError` unless `loss` is a loss and, for `reproducible` precision, an exact one."""
    if not isinstance(loss, Loss):
        losses = ", ".join(f"{type(example).__name__}()" for example in LOSSES.values())
        raise SpecError(f"a loss is one of {losses}, got {shown(loss)}")
    if isinstance(loss, CrossEntropy) and precision == "reproducible":
        raise SpecError(
            f"the loss {loss.name} uses exp, which differs between libraries; for reproducible precision take the loss "
            "van-rossum, hamming or spike-count and output neurons that spike, or --precision fast"
        )
    if precision == "fast":
        return
    equations = loss_equations(loss)
    if not all(recurrence is None or recurrence.exact for recurrence in (equations.forward, equations.backward)):
        raise SpecError(
            f"the loss {loss.name} uses exp, which differs between libraries; for reproducible precision write it with "
            "+ - * / and comparisons"
        )


def check_psp(psp: object) -> None:
    """Raise `SpecError` unless `psp` is the synaptic filter of spikes."""
    if not isinstance(psp, PSP):
        raise SpecError(f"psp is a PSP, for example PSP(4) or network.output_psp, got {shown(psp)}")


def check_output(network: NetworkSpec, loss: Loss) -> None:
    """Raise `SpecError` if the output and the loss do not match: a loss of potentials needs a readout, others
    spikes."""
    if loss.of_potentials and not network.has_readout:
        raise SpecError(
            f"the loss {loss.name} reads the potentials of a readout, and the network {network} ends with neurons that "
            f"spike; let it end with {network.outputs}{{neuron=readout}}"
        )
    if network.has_readout and not loss.of_potentials:
        raise SpecError(
            f"the network {network} ends with a readout, which has no spikes, and the loss {loss.name} reads spikes; "
            f"take the loss {' or '.join(OF_POTENTIALS)}, or output neurons that spike"
        )


def check_dropout(dropout: object) -> None:
    """Raise `SpecError` unless `dropout` is None or `(seed, step)`, both integers in `[0, 2**32)`."""
    if dropout is None:
        return
    if not isinstance(dropout, (tuple, list)) or len(dropout) != 2:
        raise SpecError(f"dropout is None or (seed, step), got {shown(dropout)}")
    seed, step = dropout
    check_seed(seed)
    check_step(step)


def _array(label: str, x: object) -> None:
    if not isinstance(x, np.ndarray):
        raise ShapeError(f"{label} must be a numpy array, got {type(x).__name__}")
    if isinstance(x, (np.ma.MaskedArray, np.matrix)):
        raise ShapeError(
            f"{label} must be a plain numpy array, got {type(x).__name__}; convert it with numpy.asarray(...)"
        )


def check_frozen(network: NetworkSpec, frozen: object) -> frozenset[str]:
    """The names of frozen parameters. Raises `SpecError` unless they are some, but not all, of the network's."""
    if isinstance(frozen, str) or not isinstance(frozen, Collection):
        raise SpecError(f"frozen parameters are a collection of names, for example ('conv1',), got {shown(frozen)}")
    if unknown := [name for name in frozen if not isinstance(name, str) or name not in network.parameters]:
        raise SpecError(
            f"the network has no parameter {shown(unknown[0])} to freeze; its parameters are "
            f"{listed(network.parameters)}"
        )
    names = frozenset(frozen)
    if network.parameters and len(names) == len(network.parameters):
        raise SpecError("all parameters of the network are frozen, so nothing is left to train")
    return names


def check_rate_penalty(network: NetworkSpec, penalties: object) -> LayerPenalties:
    """The penalties of a network's layers, in the order of the layers. Raises `SpecError` if a layer has no spikes."""
    if not isinstance(penalties, Mapping):
        raise SpecError(
            f"rate penalties are a dict by layer, for example {{'conv1': RatePenalty(0.1, 1)}}, got {shown(penalties)}"
        )
    blocks = {block.name: block for block in network.blocks}
    for name, penalty in penalties.items():
        if name not in blocks:
            raise SpecError(
                f"the network has no layer {shown(name)} for a rate penalty; its layers are {listed(blocks)}"
            )
        if not blocks[name].neuron.makes_spikes:
            raise SpecError(f"layer {name} is a readout, which does not spike; leave out its rate penalty")
        if not isinstance(penalty, RatePenalty):
            raise SpecError(f"the rate penalty of layer {name} is RatePenalty(target, weight), got {shown(penalty)}")
    return tuple((name, penalties[name]) for name in blocks if name in penalties)


def check_weights(
    network: NetworkSpec, weights: dict[str, AnyArray], label: str = "weights", *, moments: bool = False
) -> None:
    """Raise `ShapeError` unless `weights` has the names and shapes of all parameters of the network, in float32.

    The parameters include running statistics, except for `moments` of an optimiser. Raises `NumericError` if a learned
    parameter or a statistic is outside its domain.
    """
    check_network(network)
    shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
    if not moments:
        shapes |= {name: x.shape for name, x in network.statistics.items()}
    if not isinstance(weights, Mapping):
        raise ShapeError(f"{label} must be numpy arrays by layer name, got {type(weights).__name__}")
    if set(weights) != set(shapes):
        raise ShapeError(f"{label} must have the layers {listed(shapes)}, got {listed(map(str, weights)) or 'none'}")
    for name, shape in shapes.items():
        _array(f"{label} of {name}", weights[name])
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            raise ShapeError(
                f"{label} of {name} must be float32 {shape}, got {weights[name].dtype} {weights[name].shape}"
            )
    if moments:
        return
    for name, parameter in network.parameters.items():
        if parameter.learned is not None:
            _domain(name, parameter.learned, weights[name])
    for name in network.statistics:
        check_statistic(name, weights[name])


def check_statistic(name: str, x: AnyArray) -> None:
    """Raise `NumericError` unless a running statistic `[C]` is in its domain."""
    _domain(name, STATISTICS[name.rpartition(".")[2]], x)


def _domain(name: str, learned: Learned, x: AnyArray) -> None:
    inside = (learned.low <= x) & (x <= learned.high) & ((x == 0) | (np.abs(x) >= np.float32(FLOOR)))
    if not inside.all():
        domain_text = f"from {learned.low:g} to {learned.high:g}, and 0 or at least 2^-100 in magnitude"
        raise NumericError(f"{name} must be {domain_text}, got {x[~inside][0]:g}")


def inputs_as_bytes(network: NetworkSpec, inputs: Any) -> Any:
    """`inputs`; spikes that are bool are returned as bytes 0 and 1, without a copy. Images are never bool."""
    return _as_bytes(inputs) if isinstance(network, NetworkSpec) and network.coding == "events" else inputs


def batch_as_bytes(network: NetworkSpec, batch: Any) -> Any:
    """`batch` with bytes in place of spikes that are bool, `inputs_as_bytes`."""
    if not isinstance(batch, Batch):
        return batch
    return batch._replace(inputs=inputs_as_bytes(network, batch.inputs), targets=_as_bytes(batch.targets))


def _as_bytes(x: Any) -> Any:
    return x.view(np.uint8) if isinstance(x, np.ndarray) and x.dtype == np.bool_ else x


def samples_first(shape: Sequence[int], steps: int) -> str:
    """End of a message about inputs of this shape that should have `steps` steps: whether samples are the first axis"""
    if len(shape) < 3 or shape[0] == steps or shape[1] != steps:
        return ""
    return "; they look like [B, T, ...], and time must be the first axis: swap axes 0 and 1"


def swapped_axes(shape: Sequence[int], other: Sequence[int]) -> str:
    """End of a message about two spike trains of other shapes: whether they differ only in the order of axes 0 and 1"""
    if len(shape) != 3 or tuple(other) != (shape[1], shape[0], shape[2]) or shape[0] == shape[1]:
        return ""
    return "; one of them is [B, T, N]: swap its axes 0 and 1, because time is the first axis"


def other_axes(network: NetworkSpec, shape: Sequence[int]) -> str:
    """End of a message about inputs of a shape that the network does not read: what axes they lack or have besides."""
    lead = len(shape) - len(network.input_shape)
    if lead < 0 or tuple(shape[lead:]) != network.input_shape:
        return ""
    if network.coding == "direct":
        hints = {
            0: "; the axis of samples is missing: give one image as x[None]",
            2: '; if these are event frames, [T, B, ...], only a network with coding="events" reads them',
        }
    else:
        hints = {
            0: "; the axes of time and samples are missing",
            1: '; if these are images, [B, ...], only a network with coding="direct" reads them; if they are events, '
            "the axis of time or of samples is missing",
        }
    return hints.get(lead, "")


def check_inputs(network: NetworkSpec, inputs: Inputs, steps: int) -> int:
    """Raise `ShapeError` unless `inputs` fits the network and `steps`. Returns the batch size.

    For arrays, the check reads every frame to find counts that the network does not allow. Packed frames cannot have
    any.
    """
    lead = 1 if network.coding == "direct" else 2
    letters = "[B, ...]" if lead == 1 else "[T, B, ...]"
    if (number := integer(steps)) is None or not 1 <= number <= MAX_STEPS:
        raise ShapeError(f"steps must be an integer from 1 to 2^24, got {shown(steps)}")
    if isinstance(inputs, PackedFrames):
        if lead == 1:
            raise ShapeError("packed frames are a sequence of steps, but a network with direct coding takes images")
    else:
        _array("inputs", inputs)
        if inputs.dtype != np.uint8:
            kind = "pixels from 0 to 255" if lead == 1 else "spikes"
            raise ShapeError(f"inputs must be uint8, got {inputs.dtype}; convert {kind} with inputs.astype(np.uint8)")
    if len(inputs.shape) != lead + len(network.input_shape) or inputs.shape[lead:] != network.input_shape:
        raise ShapeError(
            f"inputs with {network.coding} coding must be {letters}, ... = {network.input_shape}, got {inputs.shape}"
            f"{other_axes(network, inputs.shape)}"
        )
    if inputs.shape[lead - 1] == 0:
        raise ShapeError("the batch is empty")
    if lead == 2 and inputs.shape[0] != steps:
        swapped = samples_first(inputs.shape, steps)
        raise ShapeError(f"inputs have {inputs.shape[0]} steps, expected {steps}{swapped}")
    if not isinstance(inputs, PackedFrames) and lead == 2 and int(inputs.max(initial=0)) > network.input_max:
        raise ShapeError(
            f"an input frame holds the count {int(inputs.max())}, but the network allows at most "
            f"{network.input_max} (input_max)"
        )
    return int(inputs.shape[lead - 1])


def check_part(samples: int, part: BatchSlice) -> None:
    """Raise `ShapeError` unless the inputs have the samples of `part`, or one silent sample if `part` is empty."""
    if samples != max(1, part.count):
        expected = (
            f"samples {part.first} to {part.end - 1}" if part.count else "none and must get one sample of zeros instead"
        )
        raise ShapeError(
            f"of a batch of {part.batch} samples, this process computes {expected}, but it got {samples} samples"
        )


def check_batch(
    network: NetworkSpec, loss: Loss, batch: Batch[Inputs], part_of: Callable[[int], BatchSlice] | None = None
) -> int:
    """Raise `ShapeError` unless inputs and targets fit the network, the loss and each other. Returns `T`.

    If the targets are those of a whole batch, `part_of` returns the part of a batch of this size to which the inputs
    belong.
    """
    if not isinstance(batch, Batch):
        raise ShapeError(f"a batch is a Batch of inputs and targets, got {type(batch).__name__}")
    targets = batch.targets
    _array("targets", targets)
    dtype = np.dtype(np.float32 if loss.real_targets else np.uint8)
    if targets.dtype != dtype or targets.ndim != 3 or targets.shape[0] < 1:
        values = f", real numbers for the loss {loss.name}" if loss.real_targets else ""
        raise ShapeError(f"targets must be {dtype} [T, B, N] with T >= 1{values}, got {targets.dtype} {targets.shape}")
    samples = check_inputs(network, batch.inputs, targets.shape[0])
    if part_of is not None:
        check_part(samples, part_of(targets.shape[1]))
        samples = targets.shape[1]
    expected: Shape = (targets.shape[0], samples, network.outputs)
    if targets.shape != expected:
        raise ShapeError(f"targets must be [T, B, N] = {expected}, got {targets.shape}")
    check_lengths(batch.lengths, samples, targets.shape[0])
    if loss.real_targets:
        _check_real(targets)
    elif int(targets.max()) > 1:
        raise ShapeError("targets are spike trains of 0 and 1")
    if isinstance(loss, CrossEntropy):
        _check_classes(batch)
    return int(targets.shape[0])


def _check_real(targets: AnyArray) -> None:
    """Raise `NumericError` unless real targets, which may be those of padded steps, are finite."""
    if not np.isfinite(targets).all():
        step, sample, neuron = np.argwhere(~np.isfinite(targets))[0]
        raise NumericError(
            f"targets must be finite numbers, got {targets[step, sample, neuron]} at step {step} of sample {sample}, "
            f"output {neuron}"
        )


def _check_classes(batch: Batch[Inputs]) -> None:
    """Raise `ShapeError` unless the targets of every sample determine its class."""
    counts = np.sort(without_padding(batch.targets, batch.lengths).sum(axis=0, dtype=np.int64), axis=-1)
    unclear = counts[:, -1] == (counts[:, -2] if counts.shape[-1] > 1 else 0)
    if unclear.any():
        raise ShapeError(
            f"the targets of sample {int(unclear.argmax())} do not show its class: for a cross "
            "entropy, one neuron must have more target spikes than every other one (see "
            "encode_repeat)"
        )


FIT_SAMPLES_FIRST = "; they fit samples in the first axis, but the first axis of spikes and targets is time, [T, B, N]"
"""End of a message about numbers of samples that are as many as the steps."""


def check_lengths(lengths: object, samples: int, steps: int) -> None:
    """Raise `ShapeError` unless `lengths` is None, or has `samples` numbers of steps from 1 to `steps`."""
    if lengths is None:
        return
    _array("lengths", lengths)
    assert isinstance(lengths, np.ndarray)
    if lengths.dtype.kind not in "iu" or lengths.shape != (samples,):
        raise ShapeError(
            f"lengths must be integers [B] = [{samples}], the steps of each sample, or None; got {lengths.dtype} of "
            f"shape {list(lengths.shape)}{'' if lengths.shape != (steps,) else FIT_SAMPLES_FIRST}"
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if wrong.size:
        raise ShapeError(
            f"lengths must be from 1 to {steps}, the number of steps; sample {wrong[0]} has {lengths[wrong[0]]}"
        )
