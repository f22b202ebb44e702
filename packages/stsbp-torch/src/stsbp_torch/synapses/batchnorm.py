"""Implements synapses/batchnorm.py of the spec, with sums in plain tensor expressions or in fused kernels.

Numbers per channel are computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stsbp_cpu.synapses import batchnorm as fused
from stsbp_spec.expr import Recurrence
from stsbp_spec.grid import FLOOR
from stsbp_spec.synapses import batchnorm
from stsbp_spec.synapses.batchnorm import PIECE_BITS, SQUARE_BITS
from stsbp_spec.typing import AnyArray

from stsbp_torch.layout import laid_out, view

__all__ = ["Wide", "error_moments", "fused_error_moments", "fused_moments", "moments", "normalised"]

_LOW = 2**SQUARE_BITS - 1


class Wide(batchnorm.Wide):
    """Float64 tensors; no operation waits for the device."""

    def float64(self, x: Any) -> torch.Tensor:
        found: torch.Tensor = x.double()
        return found

    def float32(self, x: Any) -> torch.Tensor:
        narrow: torch.Tensor = x.float()
        return narrow.masked_fill(narrow.abs() < FLOOR, 0.0)

    def over(self, a: Any, b: Any) -> torch.Tensor:
        # If one operand is a Python number, torch multiplies by the reciprocal.
        like = a if isinstance(a, torch.Tensor) else b
        a, b = (x if isinstance(x, torch.Tensor) else torch.full_like(like, x) for x in (a, b))
        return torch.div(a, b)

    def root(self, a: Any) -> torch.Tensor:
        # On the CPU, torch would use MKL's square root.
        return torch.from_numpy(np.sqrt(a.numpy())) if a.device.type == "cpu" else torch.sqrt(a)

    def power_of_two(self, exponent: Any) -> torch.Tensor:
        return _power_of_two(exponent)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    return (exponent.long() + 1023 << 52).view(torch.float64)


def _each(k: torch.Tensor) -> tuple[int, ...]:
    """All axes except the axis of the channels."""
    return tuple(axis for axis in range(k.ndim) if axis != 2)


def _units(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    return (z.double() * _power_of_two(exponent)).long()


def moments(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Implements `batchnorm.moments` for `[T, B, C, ...]`; int64 `[3, C]`."""
    k = _units(z, exponent)
    squares = k * k
    total, high, low = (x.sum(_each(x)) for x in (k, squares >> SQUARE_BITS, squares & _LOW))
    return torch.stack([total, high + (low >> SQUARE_BITS), low & _LOW])


def error_moments(dy: torch.Tensor, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Implements `batchnorm.error_moments`; float64 `[3, C]`."""
    k, d = _units(z, exponent), dy.double()
    each = d, d * (k >> PIECE_BITS), d * (k & (2**PIECE_BITS - 1))
    return torch.stack([x.sum(_each(x)) for x in each])


def _rows(x: torch.Tensor) -> AnyArray:
    """`[T, B, C, ...]` on the CPU in memory order, as `[n, C]`."""
    return view(laid_out(x)).reshape(-1, x.shape[2])


def fused_moments(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`moments` by the kernels for the CPU."""
    return torch.from_numpy(fused.moments(_rows(z), int(exponent)))


def fused_error_moments(dy: torch.Tensor, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`error_moments` by the kernels for the CPU."""
    return torch.from_numpy(fused.error_moments(_rows(dy), _rows(z), int(exponent)))


def normalised(
    recurrence: Recurrence, arrays: Mapping[str, torch.Tensor], numbers: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """`Pairs.channelwise` by the kernels for the CPU."""
    given = {name: laid_out(x) for name, x in arrays.items()}
    out = torch.empty_like(next(iter(given.values())))
    rows = {name: _rows(x) for name, x in given.items()}
    fused.normalised(recurrence, rows, {name: x.numpy() for name, x in numbers.items()}, _rows(out))
    return out
