"""Types of arrays within `jax.shard_map`: what differs from device to device, and what is the same on all.

JAX follows there, by mesh axis, which arrays vary, and wants what a loop carries, and what meets in a function with a
derivative of its own, to vary alike. Outside of it nothing varies.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from stsbp_spec.typing import Shape

__all__ = ["alike", "result_like"]

Tree = TypeVar("Tree")


def alike(tree: Tree, *others: Any) -> Tree:
    """The arrays of a tree, of which each varies over all axes over which one of them or of `others` does.

    The gradient of what was the same everywhere is the sum over these axes.
    """
    every: frozenset[Any] = frozenset().union(*(_axes(x) for x in jax.tree.leaves((tree, others))))
    if not every:
        return tree
    found: Tree = jax.tree.map(lambda x: _spread(x, every - _axes(x)), tree)
    return found


def result_like(shape: Shape, dtype: np.dtype[Any], arrays: tuple[jax.Array, ...]) -> jax.ShapeDtypeStruct:
    """Type of a result of a call whose arguments, all `alike`, it varies with."""
    struct: Any = jax.ShapeDtypeStruct
    varies: dict[str, Any] = {}
    if arrays and _axes(arrays[0]):
        kind: Any = jax.typeof(arrays[0])
        name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
        spec: Any = PartitionSpec
        # The axes are looked up in the mesh.
        varies = {name: getattr(kind, name), "sharding": NamedSharding(kind.sharding.mesh, spec())}
    result: jax.ShapeDtypeStruct = struct(shape, dtype, **varies)
    return result


def _axes(x: Any) -> frozenset[Any]:
    if not isinstance(x, jax.Array):
        return frozenset()
    # jax 0.10 keeps in the first what was the second.
    kind: Any = jax.typeof(x)
    found: frozenset[Any] = getattr(
        getattr(kind, "manual_axis_type", kind), "varying", getattr(kind, "vma", frozenset())
    )
    return found


def _spread(x: Any, axes: frozenset[Any]) -> Any:
    if not axes:
        return x
    # The first name came with the types, the other replaced it.
    cast: Any = getattr(lax, "pcast", None)
    return lax.pvary(x, tuple(axes)) if cast is None else cast(x, tuple(axes), to="varying")  # type: ignore[attr-defined]
