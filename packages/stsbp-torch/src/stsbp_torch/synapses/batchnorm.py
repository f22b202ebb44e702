"""Batch normalisation, spec: synapses/batchnorm.py: sums as plain tensor expressions, float64 on their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stsbp_spec.grid import FLOOR
from stsbp_spec.synapses import batchnorm
from stsbp_spec.synapses.batchnorm import PIECE_BITS, SQUARE_BITS

__all__ = ["Wide", "error_moments", "moments"]


class Wide(batchnorm.Wide):
    """Float64 tensors; no operation waits for the device."""

    def float64(self, x: Any) -> torch.Tensor:
        found: torch.Tensor = x.double()
        return found

    def float32(self, x: Any) -> torch.Tensor:
        narrow: torch.Tensor = x.float()
        return narrow.masked_fill(narrow.abs() < FLOOR, 0.0)

    def over(self, a: Any, b: Any) -> torch.Tensor:
        # torch multiplies by the reciprocal where one of them is a number.
        like = a if isinstance(a, torch.Tensor) else b
        a, b = (x if isinstance(x, torch.Tensor) else torch.full_like(like, x) for x in (a, b))
        return torch.div(a, b)

    def root(self, a: Any) -> torch.Tensor:
        # On the CPU torch takes what MKL makes of it.
        return torch.from_numpy(np.sqrt(a.numpy())) if a.device.type == "cpu" else torch.sqrt(a)

    def power_of_two(self, exponent: Any) -> torch.Tensor:
        return _power_of_two(exponent)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    return (exponent.long() + 1023 << 52).view(torch.float64)


def _each(k: torch.Tensor) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return tuple(axis for axis in range(k.ndim) if axis != 2)


def _units(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    return (z.double() * _power_of_two(exponent)).long()


def moments(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`batchnorm.moments` of `[T, B, C, ...]`, int64 `[3, C]`."""
    k = _units(z, exponent)
    squares = k * k
    each = k, squares >> SQUARE_BITS, squares & (2**SQUARE_BITS - 1)
    return torch.stack([x.sum(_each(x)) for x in each])


def error_moments(dy: torch.Tensor, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`batchnorm.error_moments`, float64 `[3, C]`."""
    k, d = _units(z, exponent), dy.double()
    each = d, d * (k >> PIECE_BITS), d * (k & (2**PIECE_BITS - 1))
    return torch.stack([x.sum(_each(x)) for x in each])
