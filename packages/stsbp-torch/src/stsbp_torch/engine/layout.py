"""Memory layout on the CPU and on CUDA: logical shape `[T, B, C, H, W]`, stored as `[T, B, H, W, C]` (channels last).

Convolutions are fastest with this layout. The elementwise kernels are equally fast with any layout. Tensors `[T, B, N]`
are contiguous.
"""

from __future__ import annotations

import numpy as np
import torch
from stsbp_cpu.engine.layout import Layout
from stsbp_spec.typing import AnyArray, Shape

__all__ = ["TENSORS", "channels_last", "empty", "flat_frames", "frames", "laid_out", "logical", "rows", "view"]

_TO_MEMORY, _TO_LOGICAL = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)


def laid_out(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if it has the memory layout of this module, else a copy with this layout."""
    if x.ndim != 5:
        return x.contiguous()
    return x.permute(_TO_MEMORY).contiguous().permute(_TO_LOGICAL)


def logical(memory: torch.Tensor) -> torch.Tensor:
    """A contiguous `[T, B, H, W, C]` as a laid-out `[T, B, C, H, W]`, without a copy; other tensors unchanged."""
    return memory.permute(_TO_LOGICAL) if memory.ndim == 5 else memory


def empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised, laid-out tensor of logical shape `shape`."""
    if len(shape) != 5:
        return torch.empty(shape, dtype=dtype, device=device)
    t, b, c, h, w = shape
    return torch.empty((t, b, h, w, c), dtype=dtype, device=device).permute(_TO_LOGICAL)


def rows(x: torch.Tensor) -> torch.Tensor:
    """A laid-out tensor as `[T, M]`, one row per step, without a copy."""
    memory = x.permute(_TO_MEMORY) if x.ndim == 5 else x
    return memory.view(x.shape[0], -1)


def frames(x: torch.Tensor) -> torch.Tensor:
    """A laid-out `[T, B, C, H, W]` as `[T B, C, H, W]` (channels-last strides), without a copy."""
    t, b, c, h, w = x.shape
    return x.permute(_TO_MEMORY).view(t * b, h, w, c).permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """`[n, C, H, W]` with the strides of channels last on every axis, without a copy if its memory has this order.

    On axes of length 1, torch's own `contiguous` leaves any stride as it is.
    """
    n, c, h, w = x.shape
    memory = x.permute(0, 2, 3, 1).contiguous()
    return memory.as_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def flat_frames(x: torch.Tensor) -> AnyArray:
    """A laid-out `[T, B, C, H, W]` in the CPU's memory as a numpy array `[T B, H, W, C]`, without a copy."""
    memory = view(x)
    return memory.reshape(-1, *memory.shape[2:])


def view(x: torch.Tensor) -> AnyArray:
    """A CPU tensor's memory as a numpy array `[T, B, H, W, C]`, `[T, M]`, ..., without a copy."""
    memory = x.permute(_TO_MEMORY) if x.ndim == 5 else x
    array: AnyArray = memory.detach().numpy()
    return array


_CPU = torch.device("cpu")
_TYPES: dict[type[np.generic], torch.dtype] = {np.float32: torch.float32, np.uint8: torch.uint8, np.int32: torch.int32}


class _Tensors(Layout[torch.Tensor]):
    """Gives the kernels of stsbp_cpu access to tensors."""

    def empty(self, shape: Shape, dtype: type[np.generic]) -> torch.Tensor:
        return empty(shape, _TYPES[dtype], _CPU)

    def laid_out(self, x: torch.Tensor) -> torch.Tensor:
        return laid_out(x)

    def view(self, x: torch.Tensor) -> AnyArray:
        return view(x)

    def from_memory(self, memory: AnyArray) -> torch.Tensor:
        return logical(torch.from_numpy(memory))

    def is_bytes(self, x: torch.Tensor) -> bool:
        return x.dtype is torch.uint8


TENSORS = _Tensors()
"""The layout of tensors on the CPU."""
