"""Differentiable losses of output spike trains. They can also be traced and mapped (segments.py)."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from stsbp_spec.engine.checks import check_lengths, check_loss, check_psp, swapped_axes
from stsbp_spec.equations.assembly import loss_padding
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.losses import Loss
from stsbp_spec.networks.ops import PSP

from stsbp_torch.engine.checks import check_inputs, check_tensor
from stsbp_torch.engine.segments import backend_of, call_backward_operator, map_by_loop, registered

__all__ = ["spike_loss"]

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
