"""Implements grid.py and the gradient norm of the spec in plain tensor expressions, for CUDA and `cpu:eager`.

Scales are computed on the device of the tensors, so the host waits for the device only when it reads the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from stsbp_spec.graph import Projection
from stsbp_spec.grid import FINEST_ERROR_EXPONENT, FLOOR, SMALLEST_NORMAL, WeightGrid, fit_weight_grid, magnitude
from stsbp_spec.losses.cross_entropy import CrossEntropy
from stsbp_spec.optim.adamw import norm_bits
from stsbp_spec.typing import AnyArray

__all__ = [
    "Names",
    "error_grid",
    "first_grids",
    "gradient_squares",
    "largest_error",
    "readout_error",
    "sample_grid",
    "weight_grids",
]

_FLOOR_BITS = int(np.float32(FLOOR).view(np.int32))


class Names:
    """torch's functions with numpy's names and arguments, as losses/cross_entropy.py calls them."""

    inf = math.inf
    where = staticmethod(torch.where)
    exp = staticmethod(torch.exp)

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def cumsum(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.cumsum(x, axis)

    def max(self, x: torch.Tensor, axis: int, keepdims: bool = False) -> torch.Tensor:
        return torch.amax(x, axis, keepdims)

    def arange(self, count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.int64, device=self._device)


def _magnitude(x: torch.Tensor) -> torch.Tensor:
    """Bits of the largest magnitude in `x`, an int32 without axes. The bits of NaN are larger than those of numbers."""
    return (x.view(torch.int32) & 0x7FFFFFFF).max()


def _exponent(bits: torch.Tensor) -> torch.Tensor:
    """`frexp(largest)[1]`."""
    return (bits >> 23) - 126


def _power_of_two(q: torch.Tensor) -> torch.Tensor:
    return ((q + 127) << 23).view(torch.float32)


def _unit(largest: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`2^q` and `2^-q` of `grid.error_exponent`; zeros if the largest magnitude is below `FLOOR`."""
    q = (bits - _exponent(largest)).clamp(max=FINEST_ERROR_EXPONENT)
    loud = largest >= _FLOOR_BITS
    return _power_of_two(q) * loud, _power_of_two(-q) * loud


def largest_error(dz: torch.Tensor) -> torch.Tensor:
    """Implements `grid.largest_error`; int32 `[1]`."""
    return _magnitude(dz)[None]


def error_grid(dz: torch.Tensor, bits: int, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Implements `grid.error_grid`. The numbers of zeroed and of non-zero elements are int64 `[2]`."""
    scale, back = _unit(largest[0], bits)
    out = (dz * scale).round_().mul_(back)
    before = dz.abs() >= SMALLEST_NORMAL
    return out, torch.stack([(before & (out == 0)).sum(), before.sum()])


def sample_grid(dz: torch.Tensor, bits: int) -> torch.Tensor:
    """Implements `grid.sample_grid` for `[1, B, ...]`."""
    largest = (dz[0].view(torch.int32) & 0x7FFFFFFF).flatten(1).amax(1)
    scale, back = (x.view(-1, *(1,) * (dz.ndim - 2)) for x in _unit(largest, bits))
    return (dz * scale).round_().mul_(back)


def gradient_squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Implements `optim.gradient_squares`; int64 `[2]`."""
    largest = torch.stack([_magnitude(g) for g in gradients]).max()
    scale, _ = _unit(largest, norm_bits(sum(g.numel() for g in gradients)))
    units = [(g * scale).round_().long() for g in gradients]
    return torch.stack([largest.long(), torch.stack([(x * x).sum() for x in units]).sum()])


def readout_error(
    loss: CrossEntropy, u: torch.Tensor, targets: torch.Tensor, batch: int, inside: torch.Tensor | None
) -> torch.Tensor:
    """`Pairs.readout_error`, computed on the device of the potentials."""
    if inside is None:
        within = torch.ones((*u.shape[:2], 1), dtype=torch.bool, device=u.device)
    else:
        within = inside[..., None] > 0
    found: torch.Tensor = loss.error(u.double(), targets, batch, within, Names(u.device))
    return found.float()


def first_grids(
    backend: object, projections: Sequence[Projection], weights: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights on the finest grids that their bits allow, each with largest magnitude and partial sum, int64 `[2]`."""
    found = []
    for projection, w in zip(projections, weights, strict=True):
        bits = projection.synapse.weight_bits
        largest = _magnitude(w)
        q = bits - 1 - _exponent(largest)
        q = q - ((largest.view(torch.float32) * _power_of_two(q)).round() > 2 ** (bits - 1) - 1).int()
        wq, bound = _rounded(w, _power_of_two(q), _power_of_two(-q))
        found.append((wq, torch.stack([largest.long(), bound])))
    return found


def weight_grids(
    projections: Sequence[Projection],
    weights: Sequence[torch.Tensor],
    first: Sequence[tuple[torch.Tensor, torch.Tensor]],
    read: Callable[[Sequence[torch.Tensor]], list[AnyArray]],
) -> list[tuple[torch.Tensor, WeightGrid]]:
    """`grid.weight_grid` of several layers, from their `first_grids`.

    The host waits for the device only once, unless a layer needs a coarser grid.
    """

    def fitted(
        projection: Projection, w: torch.Tensor, wq: torch.Tensor, numbers: AnyArray
    ) -> tuple[torch.Tensor, WeightGrid]:
        first = [(wq, int(numbers[1]))]

        def rounded(q: int) -> tuple[torch.Tensor, float]:
            if first:
                wq, bound = first.pop()
            else:
                wq, units = _rounded(w, 2.0**q, 2.0**-q)
                bound = int(units)
            return wq, math.ldexp(bound, -q)

        made, grid = fit_weight_grid(
            magnitude(int(numbers[0])),
            rounded,
            summands=w[0].numel(),
            weight_bits=projection.synapse.weight_bits,
            input_exponent=projection.input.exponent,
            input_max=projection.input.maximum,
            layer=projection.name,
        )
        return torch.zeros_like(w) if made is None else made, grid

    numbers = read([each for _, each in first])
    return [fitted(*each) for each in zip(projections, weights, (wq for wq, _ in first), numbers, strict=True)]


def _rounded(
    w: torch.Tensor, scale: torch.Tensor | float, back: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights on a grid, and the largest partial sum of a row in units of the grid, int64."""
    units = (w * scale).round_()
    rows = units.reshape(len(w), -1).double()
    bound = torch.maximum(rows.clamp(min=0).sum(1).max(), -rows.clamp(max=0).sum(1).min())
    return units * back, bound.long()
