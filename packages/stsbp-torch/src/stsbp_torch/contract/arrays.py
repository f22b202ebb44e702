"""torch for the array arithmetic of the spec (arrays.py): plain tensor expressions, on any device."""

from __future__ import annotations

import torch
from stsbp_spec.contract.arrays import NAMES, ArrayArithmetic
from stsbp_spec.typing import Shape

__all__ = ["TorchNamespace", "arithmetic"]


class TorchNamespace:
    """torch's functions with the names and arguments of the array API standard.

    Args:
        device: device of new tensors.
    """

    max = staticmethod(torch.amax)
    cumulative_sum = staticmethod(torch.cumsum)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        vars(self).update({name: getattr(torch, name) for name in NAMES if not hasattr(self, name)})

    def astype(self, x: torch.Tensor, dtype: torch.dtype, *, copy: bool = True) -> torch.Tensor:
        """`x` as a tensor of another type."""
        return x.to(dtype, copy=copy)

    def arange(self, count: int, *, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The integers from 0 to `count - 1`."""
        return torch.arange(count, dtype=dtype, device=self._device)

    def take_along_axis(self, x: torch.Tensor, indices: torch.Tensor, *, axis: int) -> torch.Tensor:
        """Elements of `x` at indices along an axis, in the shape of both."""
        return torch.take_along_dim(x, indices.long(), axis)

    def zeros(self, shape: Shape, *, dtype: torch.dtype) -> torch.Tensor:
        """Zeros of a type."""
        return torch.zeros(shape, dtype=dtype, device=self._device)


def arithmetic(device: torch.device) -> ArrayArithmetic[torch.Tensor]:
    """The arithmetic of tensors on a device."""
    return ArrayArithmetic(TorchNamespace(device), torch.Tensor.view)
