"""Array types and axis letters.

These axis letters are used in all docstrings: `T` time steps, `B` samples of a batch, `C` channels, `H` rows, `W`
columns, `N` neurons of a flat layer, `K` classes. The layout is time-major: `[T, B, C, H, W]` or `[T, B, N]`.
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
    """The properties of a backend's native arrays that the spec needs. The spec never reads their contents."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __add__(self, other: Any, /) -> Any: ...

    @property
    def reshape(self) -> Callable[..., Any]:
        """A function that gives the same values another shape."""


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Array = TypeVar("Array", bound=NativeArray, default=Any)
else:
    from typing import TypeVar

    Array = TypeVar("Array", bound=NativeArray)
"""The type of a backend's arrays: `torch.Tensor`, `jax.Array`, ... Code that opens a backend by its name cannot know
this type, and omits it: `AbstractBackend`."""

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
"""`fast`: float32 matrix products in the backward pass. `reproducible`: the error grid and float64 products. Gradients
are then bit-identical on every backend."""

Memory: TypeAlias = Literal["full", "low"]
"""`full`: the forward pass keeps membrane potentials and spikes of the whole batch for the backward pass. `low`: parts
of the batch go through both passes one after the other; or one bit per spike is kept between the passes, and the
backward pass computes each layer again (`Trainer`). The results are the same, except for the last bits of `fast`
gradients, which are sums over parts. In passes.py, `low` only has the second meaning, with the same results."""

Coding: TypeAlias = Literal["direct", "events"]
"""`direct`: one uint8 image, value `x / 256`, is the input of every step. `events`: uint8 frames `[T, ...]` are the
input as they are."""
