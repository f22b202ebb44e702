"""Memory layout on the CPU and on CUDA: logical `[T, B, C, H, W]`, in memory `[T, B, H, W, C]` (channels last).

Convolutions run fastest on it, and to the elementwise kernels the order is the same as any other. Tensors `[T, B, N]`
are plain contiguous ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from stsbp_spec.typing import AnyArray, Shape

__all__ = ["empty", "end_to_end", "flat_frames", "frames", "joined", "laid_out", "logical", "rows", "view"]

_TO_MEMORY, _TO_LOGICAL = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)


def laid_out(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if it lies in memory as described above, else a copy that does."""
    if x.ndim != 5:
        return x.contiguous()
    return x.permute(_TO_MEMORY).contiguous().permute(_TO_LOGICAL)


def logical(memory: torch.Tensor) -> torch.Tensor:
    """A contiguous `[T, B, H, W, C]` as the laid-out `[T, B, C, H, W]`, without a copy; others as they are."""
    return memory.permute(_TO_LOGICAL) if memory.ndim == 5 else memory


def empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor of logical `shape`."""
    if len(shape) != 5:
        return torch.empty(shape, dtype=dtype, device=device)
    t, b, c, h, w = shape
    return torch.empty((t, b, h, w, c), dtype=dtype, device=device).permute(_TO_LOGICAL)


def end_to_end(count: int, shape: Shape, device: torch.device) -> list[torch.Tensor]:
    """Uninitialised float32 tensors of logical `shape` that lie one after the other."""
    if count < 2:
        return [empty(shape, torch.float32, device) for _ in range(count)]
    memory, steps = empty((count * shape[0], *shape[1:]), torch.float32, device), shape[0]
    return [memory[i * steps : (i + 1) * steps] for i in range(count)]


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Laid-out float32 tensors as `[K, T, M]`, without a copy where they are `end_to_end`."""
    parts = [rows(x) for x in tensors]
    if not parts:
        return torch.empty((0, 1, 1))
    first = parts[0]
    starts = {x.data_ptr() - i * 4 * first.numel() for i, x in enumerate(parts)}
    if len(starts) == 1 and len({x.untyped_storage().data_ptr() for x in parts}) == 1:
        return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(parts)


def rows(x: torch.Tensor) -> torch.Tensor:
    """A laid-out tensor as `[T, M]`, one row per step, without a copy."""
    memory = x.permute(_TO_MEMORY) if x.ndim == 5 else x
    return memory.view(x.shape[0], -1)


def frames(x: torch.Tensor) -> torch.Tensor:
    """A laid-out `[T, B, C, H, W]` as `[T B, C, H, W]` (channels-last strides), without a copy."""
    t, b, c, h, w = x.shape
    return x.permute(_TO_MEMORY).view(t * b, h, w, c).permute(0, 3, 1, 2)


def flat_frames(x: torch.Tensor) -> AnyArray:
    """A laid-out `[T, B, C, H, W]` in the CPU's memory as a numpy array `[T B, H, W, C]`, without a copy."""
    memory = view(x)
    return memory.reshape(-1, *memory.shape[2:])


def view(x: torch.Tensor) -> AnyArray:
    """A CPU tensor's memory as a numpy array `[T, B, H, W, C]`, `[T, M]`, ..., without a copy."""
    memory = x.permute(_TO_MEMORY) if x.ndim == 5 else x
    array: AnyArray = memory.detach().numpy()
    return array
