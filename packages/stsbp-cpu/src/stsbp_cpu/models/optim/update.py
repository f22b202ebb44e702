"""The update of any optimiser."""

from __future__ import annotations

from collections.abc import Sequence

from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.typing import Float32

from stsbp_cpu.models.optim import adamw, sgd

__all__ = ["update"]


def update(scalars: Scalars, arrays: Sequence[Float32], new: Sequence[Float32]) -> None:
    """Fill `new` with weights and moments after an update. `arrays` are weights, gradient and moments, all `[N]`."""
    # Optimisers differ in their printed step. A kernel serves all with the same number of moments.
    of_one_moment = len(new) == 2
    (sgd.update if of_one_moment else adamw.update)(scalars, *arrays, *new)
