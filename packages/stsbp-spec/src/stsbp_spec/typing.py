"""Array types and axis letters.

Axis letters, used in every docstring: `T` time steps, `B` samples of a batch, `C` channels, `H` rows, `W` columns,
`N` neurons of a flat layer, `K` classes. Layout is time-major: `[T, B, C, H, W]` or `[T, B, N]`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "AnyArray",
    "Coding",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "Memory",
    "Native",
    "Precision",
    "Shape",
    "UInt8",
    "UInt32",
]

UInt8: TypeAlias = npt.NDArray[np.uint8]
UInt32: TypeAlias = npt.NDArray[np.uint32]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
AnyArray: TypeAlias = npt.NDArray[Any]
Native: TypeAlias = Any
"""An array of a backend's own library (`torch.Tensor`, `cupy.ndarray`, ...); the spec never looks inside."""

Shape: TypeAlias = tuple[int, ...]
Precision: TypeAlias = Literal["fast", "reproducible"]
"""`fast`: float32 matrix products in the backward pass. `reproducible`: the error grid and float64 products, so
gradients are bit-identical on every backend."""

Memory: TypeAlias = Literal["full", "low"]
"""`full`: the forward pass keeps membrane potentials and spikes for the backward pass. `low`: it keeps one bit a spike,
and each layer is computed again when the backward pass comes to it; the numbers are the same."""

Coding: TypeAlias = Literal["direct", "events"]
"""`direct`: one uint8 image, value `x / 256`, is the input of every step. `events`: uint8 frames `[T, ...]` enter as
they are."""
