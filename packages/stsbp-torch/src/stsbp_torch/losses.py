"""Losses of output spike trains, differentiable, also where they are traced or mapped (segments.py)."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from stsbp_spec.checks import check_loss
from stsbp_spec.errors import ShapeError
from stsbp_spec.losses import Loss
from stsbp_spec.synapses import PSP

from stsbp_torch.checks import check_inputs
from stsbp_torch.segments import backend_of, known, once, one_by_one

__all__ = ["spike_loss"]

_LOSSES: dict[str, tuple[Loss, PSP]] = {}


def spike_loss(loss: Loss, spikes: torch.Tensor, targets: torch.Tensor, *, psp: PSP) -> torch.Tensor:
    """Mean distance of spike trains `[T, B, N]`, differentiable in `spikes`.

    Its gradient is the error signal of the spec (for the Hamming distance without the factor 2).

    Raises:
        ShapeError: spikes and targets have different shapes, or one of them is neither 0 nor 1.
        NumericError: one of them is not finite.
    """
    check_loss(loss)
    if spikes.dim() != 3 or spikes.shape != targets.shape:
        raise ShapeError(f"spikes and targets must be [T, B, N], got {tuple(spikes.shape)} and {tuple(targets.shape)}")
    result: torch.Tensor = _Distance.apply(_key(loss, psp), spikes, targets)  # type: ignore[no-untyped-call]
    return result


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _key(loss: Loss, psp: PSP) -> str:
    text = f"{type(loss).__module__}.{type(loss).__qualname__} {loss!r} {psp!r}"
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    _LOSSES[key] = loss, psp
    return key


@torch.library.custom_op("stsbp::distance", mutates_args=())
def _distance(key: str, spikes: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    loss, psp = known(_LOSSES, key)
    for x in (spikes, targets):
        check_inputs("a loss", x, 0, 1)
    outputs, wanted = (x.detach().cpu().numpy().astype(np.uint8) for x in (spikes, targets))
    return [torch.tensor(loss.mean(outputs, wanted, psp), dtype=torch.float32, device=spikes.device)]


@_distance.register_fake
def _(key: str, spikes: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty((), dtype=torch.float32, device=spikes.device)]


@torch.library.custom_op("stsbp::distance_back", mutates_args=())
def _distance_back(key: str, spikes: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    loss, psp = known(_LOSSES, key)
    return [backend_of(spikes).loss_error(loss, psp, spikes.contiguous(), targets.contiguous())]


@_distance_back.register_fake
def _(key: str, spikes: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty(spikes.shape, dtype=torch.float32, device=spikes.device)]


torch.library.register_vmap(_distance, one_by_one(torch.ops.stsbp.distance))
torch.library.register_vmap(_distance_back, one_by_one(torch.ops.stsbp.distance_back))


class _Distance(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(key: str, spikes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.stsbp.distance(key, spikes, targets)[0]
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[str, torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.key, *trains = inputs
        ctx.save_for_backward(*trains)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (error,) = once(partial(torch.ops.stsbp.distance_back, ctx.key), *ctx.saved_tensors)
        return None, error * errors[0], None
