"""Neurons and the filter before them by the fused kernels of stsbp_cpu, which compute in the memory of the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from stsbp_cpu import neurons
from stsbp_spec.equations import NeuronEquations
from stsbp_spec.typing import Float32

from stsbp_torch.layout import empty, end_to_end, joined, rows

__all__ = ["backward", "beside_u", "forward"]


def beside_u(kept: Mapping[str, torch.Tensor]) -> Float32:
    """What a forward pass keeps besides the potential, `[K, T, M]`."""
    array: Float32 = joined([x for name, x in kept.items() if name != "u"]).numpy()
    return array


def forward(equations: NeuronEquations, z: torch.Tensor, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Spikes `[T, ...]` and what the way back reads, from a laid-out `z`, `[1 or T, ...]`."""
    shape = (steps, *z.shape[1:])
    kept = dict(zip(equations.kept, end_to_end(len(equations.kept), shape, z.device), strict=True))
    spikes = empty(shape, torch.uint8, z.device)
    neurons.forward(equations, rows(z).numpy(), rows(kept["u"]).numpy(), rows(spikes).numpy(), beside_u(kept))
    return spikes, kept


def backward(
    equations: NeuronEquations, kept: Mapping[str, torch.Tensor], ds: torch.Tensor, *, summed: bool
) -> torch.Tensor:
    """`dL/dz`, `[T, ...]` or, added over the steps, `[1, ...]`, from laid-out `kept` and `ds`."""
    dz = empty((1 if summed else len(ds), *ds.shape[1:]), torch.float32, ds.device)
    neurons.backward(equations, rows(kept["u"]).numpy(), beside_u(kept), rows(ds).numpy(), rows(dz).numpy())
    return dz
