"""Neurons and the filter before them by the fused kernels of stsbp_cpu, which compute in the memory of the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from stsbp_cpu import neurons
from stsbp_spec.equations import NeuronEquations
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.typing import Float32

from stsbp_torch.layout import empty, end_to_end, joined, rows

__all__ = ["backward", "beside_u", "forward", "numbers"]


def beside_u(kept: Mapping[str, torch.Tensor]) -> Float32:
    """What a forward pass keeps besides the potential, `[K, T, M]`."""
    array: Float32 = joined([x for name, x in kept.items() if name != "u"]).numpy()
    return array


def numbers(each: Mapping[str, torch.Tensor]) -> Float32:
    """Laid-out `[1, ...]` for each learned number as `[P, M]`."""
    array: Float32 = joined([*each.values()])[:, 0].numpy()
    return array


def forward(
    equations: NeuronEquations, z: torch.Tensor, steps: int, learned: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Spikes `[T, ...]` and what the way back reads, from a laid-out `z`, `[1 or T, ...]`.

    `learned` is `NeuronResiduals.learned`.
    """
    shape = (steps, *z.shape[1:])
    kept = dict(zip(equations.kept, end_to_end(len(equations.kept), shape, z.device), strict=True))
    spikes = empty(shape, torch.uint8, z.device)
    given, u, fired = (rows(x).numpy() for x in (z, kept["u"], spikes))
    neurons.forward(equations, given, u, fired, beside_u(kept), numbers(learned))
    return spikes, kept


def backward(
    equations: NeuronEquations, residuals: NeuronResiduals[torch.Tensor], ds: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`Pairs.neuron_backward` from a laid-out `ds`."""
    kept, shape = residuals.kept, ds.shape[1:]
    dz = empty((1 if residuals.static else len(ds), *shape), torch.float32, ds.device)
    terms = dict(zip(equations.terms, end_to_end(len(equations.terms), (1, *shape), ds.device), strict=True))
    error, below = rows(ds).numpy(), rows(dz).numpy()
    of_learned = numbers(residuals.learned), numbers(terms)
    neurons.backward(equations, rows(kept["u"]).numpy(), beside_u(kept), error, below, *of_learned)
    return dz, terms
