"""Implements ops/batchnorm.py of the spec: sums by the kernels for the CPU, and numbers per channel in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stsbp_cpu.ops import batchnorm as fused
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.networks.ops import batchnorm
from stsbp_spec.typing import AnyArray

from stsbp_torch.engine.layout import laid_out, view

__all__ = ["TorchFloat64", "error_moments", "moments", "normalised"]


class TorchFloat64(batchnorm.ChannelArithmetic):
    """Float64 tensors; no operation waits for the device."""

    def divide(self, a: Any, b: Any) -> torch.Tensor:
        # If one operand is a Python number, torch multiplies by the reciprocal.
        tensor = a if isinstance(a, torch.Tensor) else b
        a, b = (x if isinstance(x, torch.Tensor) else torch.full_like(tensor, x) for x in (a, b))
        return torch.div(a, b)

    def root(self, a: Any) -> torch.Tensor:
        # On the CPU, torch would use MKL's square root.
        return torch.from_numpy(np.sqrt(a.numpy())) if a.device.type == "cpu" else torch.sqrt(a)


def _rows(x: torch.Tensor) -> AnyArray:
    """`[T, B, C, ...]` on the CPU in memory order, as `[n, C]`."""
    return view(laid_out(x)).reshape(-1, x.shape[2])


def moments(z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`Operations.moments` by the kernels for the CPU."""
    return torch.from_numpy(fused.moments(_rows(z), int(exponent)))


def error_moments(dy: torch.Tensor, z: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`Operations.error_moments` by the kernels for the CPU."""
    return torch.from_numpy(fused.error_moments(_rows(dy), _rows(z), int(exponent)))


def normalised(
    recurrence: Recurrence, arrays: Mapping[str, torch.Tensor], numbers: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """`Operations.channelwise` by the kernels for the CPU."""
    memory_arrays = {name: laid_out(x) for name, x in arrays.items()}
    out = torch.empty_like(next(iter(memory_arrays.values())))
    rows = {name: _rows(x) for name, x in memory_arrays.items()}
    fused.normalised(recurrence, rows, {name: x.numpy() for name, x in numbers.items()}, _rows(out))
    return out
