"""Neurons and the filter before them by the fused kernels of stsbp_cpu, which compute in the memory of the tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from stsbp_cpu import neurons, populations
from stsbp_cpu.neurons import NONE_KEPT, NOTHING
from stsbp_cpu.populations import Loop
from stsbp_spec.equations import NeuronEquations
from stsbp_spec.results import NeuronResiduals
from stsbp_spec.typing import Float32

from stsbp_torch.layout import empty, end_to_end, joined, laid_out, rows

__all__ = ["backward", "backward_all", "beside_u", "forward", "forward_all", "numbers"]


def beside_u(kept: Mapping[str, torch.Tensor]) -> Float32:
    """What a forward pass keeps besides the potential, `[K, T, M]`."""
    if len(kept) == 1:
        return NONE_KEPT
    array: Float32 = joined([x for name, x in kept.items() if name != "u"]).numpy()
    return array


def numbers(each: Mapping[str, torch.Tensor]) -> Float32:
    """Laid-out `[1, ...]` for each learned number as `[P, M]`."""
    if not each:
        return NOTHING
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


def forward_all(
    equations: NeuronEquations,
    zs: Sequence[torch.Tensor | None],
    steps: int,
    learned: Mapping[str, torch.Tensor],
    loop: Loop | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`forward` of neurons that read several inputs, of which None is that of `loop`."""
    first = next(z for z in zs if z is not None)
    shape = (steps, *first.shape[1:])
    kept = dict(zip(equations.kept, end_to_end(len(equations.kept), shape, first.device), strict=True))
    spikes = empty(shape, torch.uint8, first.device)
    given = [None if z is None else rows(laid_out(z)).numpy() for z in zs]
    u, fired = rows(kept["u"]).numpy(), rows(spikes).numpy()
    populations.forward(equations, given, u, fired, beside_u(kept), numbers(learned), loop)
    return spikes, kept


def backward_all(
    equations: NeuronEquations,
    residuals: NeuronResiduals[torch.Tensor],
    ds: torch.Tensor,
    static: Sequence[str],
    loop: Loop | None = None,
    bits: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Errors of the inputs by the names of `equations.errors`, of `static` their sums; and `backward`'s terms.

    `loop` and `bits`: see `populations.backward`.
    """
    kept, error = residuals.kept, laid_out(ds)
    moving = [name for name in dict.fromkeys(equations.errors) if name not in static]
    summed = [*static, *equations.terms]
    of_steps = dict(zip(moving, end_to_end(len(moving), tuple(ds.shape), ds.device), strict=True))
    sums = dict(zip(summed, end_to_end(len(summed), (1, *ds.shape[1:]), ds.device), strict=True))
    populations.backward(
        equations, tuple(static), rows(kept["u"]).numpy(), beside_u(kept), rows(error).numpy(),
        joined([*of_steps.values()]).numpy(), numbers(sums), numbers(residuals.learned), loop, bits,
    )  # fmt: skip
    return of_steps | {name: sums[name] for name in static}, {name: sums[name] for name in equations.terms}
