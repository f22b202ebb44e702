"""Array types and axis letters.

Axis letters, used in every docstring: `T` time steps, `B` samples of a batch, `C` channels, `H` rows, `W` columns,
`N` neurons of a flat layer, `K` classes. Layout is time-major: `[T, B, C, H, W]` or `[T, B, N]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "AnyArray",
    "Array",
    "Coding",
    "Float32",
    "Float64",
    "Int16",
    "Int32",
    "Int64",
    "Memory",
    "NativeArray",
    "Precision",
    "Shape",
    "UInt8",
    "UInt32",
]


class NativeArray(Protocol):
    """What the spec asks of an array of a backend's own library; it never looks inside."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __add__(self, other: Any, /) -> Any: ...

    @property
    def reshape(self) -> Callable[..., Any]:
        """The same values under another shape."""


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Array = TypeVar("Array", bound=NativeArray, default=Any)
else:
    from typing import TypeVar

    Array = TypeVar("Array", bound=NativeArray)
"""The type of a backend's arrays: `torch.Tensor`, `jax.Array`, ... Whoever opens a backend by its name cannot know it,
and leaves it away: `AbstractBackend`."""

UInt8: TypeAlias = npt.NDArray[np.uint8]
UInt32: TypeAlias = npt.NDArray[np.uint32]
Int16: TypeAlias = npt.NDArray[np.int16]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
AnyArray: TypeAlias = npt.NDArray[Any]

Shape: TypeAlias = tuple[int, ...]
Precision: TypeAlias = Literal["fast", "reproducible"]
"""`fast`: float32 matrix products in the backward pass. `reproducible`: the error grid and float64 products, so
gradients are bit-identical on every backend."""

Memory: TypeAlias = Literal["full", "low"]
"""`full`: the forward pass keeps membrane potentials and spikes of the whole batch for the backward pass. `low`: parts
of the batch go both ways one after the other, or keep one bit a spike between the passes and compute each layer again
when the backward pass comes to it (`Trainer`). The numbers are the same, but for last bits of `fast` gradients, which
are sums over parts. A walk (passes.py) knows the second alone, with the same numbers."""

Coding: TypeAlias = Literal["direct", "events"]
"""`direct`: one uint8 image, value `x / 256`, is the input of every step. `events`: uint8 frames `[T, ...]` enter as
they are."""
