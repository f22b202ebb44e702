"""Differentiable losses of output spike trains, and the penalty on firing rates.

They can also be traced and mapped (segments.py).
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from stsbp_spec.engine.checks import check_lengths, check_loss, check_psp, swapped_axes
from stsbp_spec.equations.assembly import loss_padding
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import Loss
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.ops import PSP
from stsbp_spec.typing import AnyArray

from stsbp_torch.engine.checks import check_axes, check_inputs, check_tensor
from stsbp_torch.engine.layout import laid_out
from stsbp_torch.engine.segments import backend_of, call_backward_operator, map_by_loop, registered

__all__ = ["rate_penalty", "spike_loss"]

_LOSSES: dict[str, tuple[Loss, PSP]] = {}
"""Losses by their keys. Nothing is removed, because a traced program may use its key at any time."""


def spike_loss(
    loss: Loss, spikes: torch.Tensor, targets: torch.Tensor, *, psp: PSP, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean distance between spike trains `[T, B, N]`, differentiable in `spikes`.

    The gradient is the error signal of the spec (for the Hamming distance without the factor 2).

    Args:
        loss: the distance.
        spikes, targets: spike trains of zeros and ones.
        psp: filter of the output layer, `network.output_psp`.
        lengths: number of steps of each sample, integers `[B]`, 1 to `T`; later steps are ignored. None: all samples
            have `T` steps.

    Raises:
        ShapeError: spikes and targets are not tensors, or have different shapes or values other than 0 and 1, or the
            lengths do not fit.
        NumericError: a value of `spikes` or `targets` is not finite.
        SpecError: the loss reads potentials, or `psp` is not a filter.
    """
    check_loss(loss)
    check_psp(psp)
    if loss.of_potentials:
        raise SpecError(
            f"the loss {loss.name} reads potentials, not spikes; use torch's own loss on the potentials of "
            "net(frames, full=True)"
        )
    check_tensor(spikes, "spikes")
    check_tensor(targets, "targets")
    if lengths is not None:
        check_tensor(lengths, "lengths")
    if spikes.dim() != 3 or spikes.shape != targets.shape:
        shapes = tuple(spikes.shape), tuple(targets.shape)
        raise ShapeError(
            f"spikes and targets must be [T, B, N], got {shapes[0]} and {shapes[1]}{swapped_axes(*shapes)}"
        )
    arguments = _key(loss, psp), spikes, targets, lengths
    result: torch.Tensor = _Distance.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _key(loss: Loss, psp: PSP) -> str:
    # An operator takes tensors, numbers and texts, but no objects. A digest is the same in every process.
    text = f"{type(loss).__module__}.{type(loss).__qualname__} {loss!r} {psp!r}"
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    _LOSSES[key] = loss, psp
    return key


@torch.library.custom_op("stsbp::distance", mutates_args=())
def _distance(
    key: str, spikes: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None
) -> list[torch.Tensor]:
    loss, psp = registered(_LOSSES, key)
    for x in (spikes, targets):
        check_inputs("a loss", x, 0, 1)
    outputs, target_spikes = (x.detach().cpu().numpy().astype(np.uint8) for x in (spikes, targets))
    sample_lengths = None if lengths is None else lengths.cpu().numpy()
    check_lengths(sample_lengths, spikes.shape[1], len(spikes))
    return [
        torch.tensor(loss.mean(outputs, target_spikes, psp, sample_lengths), dtype=torch.float32, device=spikes.device)
    ]


@_distance.register_fake
def _(key: str, spikes: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    return [torch.empty((), dtype=torch.float32, device=spikes.device)]


@torch.library.custom_op("stsbp::distance_back", mutates_args=())
def _distance_back(
    key: str, spikes: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None
) -> list[torch.Tensor]:
    (loss, psp), backend, batch = registered(_LOSSES, key), backend_of(spikes), spikes.shape[1]
    padding = None
    if lengths is not None:
        arrays = loss_padding(loss, psp, lengths.cpu().numpy(), batch, tuple(spikes.shape))
        padding = {name: backend.asarray(x) for name, x in arrays.items()}
    return [backend.loss_error(loss, psp, spikes.contiguous(), targets.contiguous(), batch, padding)]


@_distance_back.register_fake
def _(key: str, spikes: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    return [torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)]


torch.library.register_vmap(_distance, map_by_loop(torch.ops.stsbp.distance))
torch.library.register_vmap(_distance_back, map_by_loop(torch.ops.stsbp.distance_back))


class _Distance(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(key: str, spikes: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        distance: torch.Tensor = torch.ops.stsbp.distance(key, spikes, targets, lengths)[0]
        return distance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.key, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (error,) = call_backward_operator(partial(torch.ops.stsbp.distance_back, ctx.key), *ctx.saved_tensors)
        return None, error * errors[0], None, None


def rate_penalty(
    spikes: torch.Tensor, target: float, weight: float, *, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """The penalty on firing rates above a target, a float32 scalar, differentiable in `spikes`. Add it to your loss.

    It is `weight` times the mean of `max(0, rate - target)^2` over neurons and samples. The gradient has the same bits
    as the one that `Trainer` adds to the errors of a layer (`stsbp_spec.models.rate_penalty`).

    Args:
        spikes: spikes of a layer, zeros and ones, `[T, B, N]` or `[T, B, C, H, W]`.
        target: the largest rate without a penalty, in spikes per step, from 0 to less than 1.
        weight: weight of the penalty, from 2^-100 to 2^100.
        lengths: number of steps of each sample, integers `[B]`, 1 to `T`; later steps are ignored. None: all samples
            have `T` steps.

    Raises:
        ShapeError: spikes are no tensor, or have another shape or values other than 0 and 1, or the lengths do not fit.
        NumericError: a value of `spikes` is not finite.
        SpecError: the target or the weight is outside its domain.
    """
    penalty = RatePenalty(target, weight)
    check_tensor(spikes, "spikes")
    check_axes("rate_penalty", spikes)
    if lengths is not None:
        check_tensor(lengths, "lengths")
    result: torch.Tensor = _Penalty.apply(penalty.target, penalty.weight, spikes, lengths)  # type: ignore[no-untyped-call]
    return result


@torch.library.custom_op("stsbp::rate_penalty", mutates_args=())
def _penalty(target: float, weight: float, spikes: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    check_inputs("rate_penalty", spikes, 0, 1)
    steps, batch = spikes.shape[:2]
    sample_lengths = None if lengths is None else lengths.cpu().numpy()
    check_lengths(sample_lengths, batch, steps)
    counts = backend_of(spikes).spike_counts(_native(spikes), _inside(spikes, sample_lengths))[0].cpu().numpy()
    value = RatePenalty(target, weight).of_counts(counts, steps if sample_lengths is None else sample_lengths)
    return [torch.tensor(value, dtype=torch.float32, device=spikes.device)]


def _native(spikes: torch.Tensor) -> torch.Tensor:
    return laid_out(spikes.detach()).to(torch.uint8)


def _inside(spikes: torch.Tensor, lengths: AnyArray | None) -> torch.Tensor | None:
    """Which steps are not padding, uint8 `[T, B]`. None: no step is padded."""
    return None if lengths is None else backend_of(spikes).asarray(inside(lengths, len(spikes)).astype(np.uint8))


@_penalty.register_fake
def _(target: float, weight: float, spikes: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    return [torch.empty((), dtype=torch.float32, device=spikes.device)]


@torch.library.custom_op("stsbp::rate_penalty_back", mutates_args=())
def _penalty_back(
    target: float, weight: float, spikes: torch.Tensor, lengths: torch.Tensor | None
) -> list[torch.Tensor]:
    penalty, backend, batch = RatePenalty(target, weight), backend_of(spikes), spikes.shape[1]
    if lengths is None:
        error, _ = backend.rate_penalty(penalty, _native(spikes), batch)
        return [error.expand(spikes.shape).contiguous()]
    sample_lengths = lengths.cpu().numpy()
    arrays = penalty.constants_of_lengths(tuple(spikes.shape[2:]), sample_lengths, batch)
    of_lengths = {name: backend.asarray(x) for name, x in arrays.items()}
    is_inside = _inside(spikes, sample_lengths)
    assert is_inside is not None
    error, _ = backend.rate_penalty(penalty, _native(spikes), batch, is_inside, of_lengths)
    return [backend.mask_steps(error, is_inside).contiguous()]


@_penalty_back.register_fake
def _(target: float, weight: float, spikes: torch.Tensor, lengths: torch.Tensor | None) -> list[torch.Tensor]:
    return [torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)]


torch.library.register_vmap(_penalty, map_by_loop(torch.ops.stsbp.rate_penalty))
torch.library.register_vmap(_penalty_back, map_by_loop(torch.ops.stsbp.rate_penalty_back))


class _Penalty(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(target: float, weight: float, spikes: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        value: torch.Tensor = torch.ops.stsbp.rate_penalty(target, weight, spikes, lengths)[0]
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        *ctx.numbers, spikes, lengths = inputs
        ctx.save_for_backward(spikes, lengths)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        operator = partial(torch.ops.stsbp.rate_penalty_back, *ctx.numbers)
        (error,) = call_backward_operator(operator, *ctx.saved_tensors)
        return None, None, error * errors[0], None
