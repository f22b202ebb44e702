"""Stochastic gradient descent with momentum and L2 regularisation, with the schedule and the clipping of AdamW.

Order of operations (`UPDATE`), in float32:

    g = snap(snap(g*clip) + weight_decay*w)
    m = snap(momentum*m + g)
    w = snap(w - rate*m)

Learned parameters of neurons (`LEARNED_UPDATE`) do not decay, and are clipped to their domain:

    g = snap(g*clip)
    m = snap(momentum*m + g)
    w = w - rate*m
    w = snap(low if w < low, high if w > high, else w)

These are the equations of `torch.optim.SGD` without dampening. The momentum is not corrected for its beginning at zero.
Subnormal numbers change no result, for the reason that adam.py gives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.expressions import Names, Recurrence, named, snap, variable
from stsbp_spec.models.optim.adamw import clipped_to_domain
from stsbp_spec.models.optim.base import GradientDecay, Scalars

__all__ = ["LEARNED_UPDATE", "SGD", "UPDATE", "SGDScalars"]


@dataclass(frozen=True)
class SGDScalars(Scalars):
    """The float32 constants of one update."""

    clip: np.float32
    weight_decay: np.float32
    momentum: np.float32
    rate: np.float32

    @property
    def update(self) -> Recurrence:
        return UPDATE

    @property
    def learned_update(self) -> Recurrence:
        return LEARNED_UPDATE


def _update(*, learned: bool) -> Recurrence:
    names = tuple(field.name for field in fields(SGDScalars) if not (learned and field.name == "weight_decay"))
    names = (*names, "low", "high") if learned else names
    c = Names("scalar of SGD", {name: variable(name) for name in names})
    w, g, m = (variable(name) for name in ("w", "g", "m"))
    g = named("clipped", snap(g * c.clip))
    if not learned:
        g = named("decayed", snap(g + c.weight_decay * w))
    m = named("new_m", snap(c.momentum * m + g))
    updated = w - c.rate * m
    outputs = {"new_w": clipped_to_domain(c, updated) if learned else snap(updated), "new_m": m}
    return Recurrence("sgd_learned" if learned else "sgd", names, ("w", "g", "m"), {}, outputs)


UPDATE = _update(learned=False)
"""One update of a weight: from `w`, its gradient `g` and the momentum `m` to `new_w` and `new_m`."""

LEARNED_UPDATE = _update(learned=True)
"""The same for learned parameters of neurons: no decay, and the result is clipped to `low` and `high`."""


@dataclass(frozen=True)
class SGD(GradientDecay):
    """Hyperparameters of the update of stochastic gradient descent, as in `torch.optim.SGD`.

    Args:
        lr, total_steps, warmup_steps, final_fraction: learning rate and its schedule, as for `AdamW`.
        momentum: factor by which the sum of the earlier gradients shrinks in each update: 0, or from 2^-100 to less
            than 1.
        weight_decay: factor of the weights that is added to their gradients after clipping: 0, or from 2^-100 to 2^100.
        clip_norm: largest global gradient norm, at least 2^-100; None: no clipping.
        delay_lr: peak learning rate of learned delays; None: 100 times `lr`.
    """

    name: ClassVar[str] = "sgd"
    moments: ClassVar[tuple[str, ...]] = ("momentum",)

    lr: float = 2e-3
    total_steps: int | None = None
    warmup_steps: int = 0
    final_fraction: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    delay_lr: float | None = None

    def _domain(self) -> dict[str, bool]:
        return {**super()._domain(), "momentum": self.momentum == 0 or FLOOR <= self.momentum < 1}

    def scalars(self, step: int, clip: np.float32) -> SGDScalars:
        """The constants of update `step`, including the clipping factor."""
        return SGDScalars(
            clip=clip,
            weight_decay=np.float32(self.weight_decay),
            momentum=np.float32(self.momentum),
            rate=np.float32(self.rate(step)),
        )
