"""Types of arrays inside `jax.shard_map`: whether an array differs between devices or is the same on all of them.

Inside `shard_map`, JAX tracks over which mesh axes each array varies. All arrays that a loop carries must vary over the
same axes. The same holds for the arguments of a function with its own derivative. Outside of `shard_map`, no array
varies.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from stsbp_spec.typing import Shape

__all__ = ["match_replication", "result_like"]

Tree = TypeVar("Tree")


def match_replication(tree: Tree, *references: Any) -> Tree:
    """The arrays of `tree`, converted so that all vary over the same axes.

    These are all axes over which any array of `tree` or `references` varies. The gradient of an array that was the same
    on all devices is the sum over these axes.
    """
    all_axes: frozenset[Any] = frozenset().union(*(_axes(x) for x in jax.tree.leaves((tree, references))))
    if not all_axes:
        return tree
    converted: Tree = jax.tree.map(lambda x: _spread(x, all_axes - _axes(x)), tree)
    return converted


def result_like(shape: Shape, dtype: np.dtype[Any], arrays: tuple[jax.Array, ...]) -> jax.ShapeDtypeStruct:
    """Type of a result of a call. It varies over the same axes as the arguments (`match_replication`)."""
    struct: Any = jax.ShapeDtypeStruct
    varies: dict[str, Any] = {}
    if arrays and _axes(arrays[0]):
        kind: Any = jax.typeof(arrays[0])
        name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
        spec: Any = PartitionSpec
        # JAX looks up the axes in the mesh.
        varies = {name: getattr(kind, name), "sharding": NamedSharding(kind.sharding.mesh, spec())}
    result: jax.ShapeDtypeStruct = struct(shape, dtype, **varies)
    return result


def _axes(x: Any) -> frozenset[Any]:
    if not isinstance(x, jax.Array):
        return frozenset()
    # In jax 0.10, `manual_axis_type.varying` contains what was `vma` before.
    kind: Any = jax.typeof(x)
    axes: frozenset[Any] = getattr(
        getattr(kind, "manual_axis_type", kind), "varying", getattr(kind, "vma", frozenset())
    )
    return axes


def _spread(x: Any, axes: frozenset[Any]) -> Any:
    if not axes:
        return x
    # `pvary` came with these types, and `pcast` replaced it later.
    cast: Any = getattr(lax, "pcast", None)
    return lax.pvary(x, tuple(axes)) if cast is None else cast(x, tuple(axes), to="varying")  # type: ignore[attr-defined]
