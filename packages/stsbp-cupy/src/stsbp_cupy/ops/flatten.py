"""The ops/flatten.py of the spec: converts the channels-last order of memory to the order of the spec."""

from __future__ import annotations

from stsbp_spec.networks.ops.flatten import Flatten
from stsbp_spec.typing import Shape

from stsbp_cupy.engine.runtime import Array, Runtime, logical, memory

__all__ = ["backward", "forward"]


def forward(rt: Runtime, flatten: Flatten, s: Array) -> tuple[Array, Shape]:
    """`[T, B, N]`. The residual is the shape of the input."""
    flat: Array = rt.xp.ascontiguousarray(s).reshape(*s.shape[:2], -1)
    return flat, s.shape


def backward(rt: Runtime, flatten: Flatten, shape: Shape, d: Array) -> Array:
    """The same numbers in the shape of the input."""
    return logical(rt, memory(rt, d.reshape(shape)))
