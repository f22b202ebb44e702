"""Adam (Kingma and Ba 2015) with L2 regularisation, with the schedule and the clipping of AdamW.

Order of operations (`UPDATE`), in float32:

    g = snap(snap(g*clip) + weight_decay*w)
    m = snap(beta1*m + (1-beta1)*g)
    v = snap(beta2*v + (1-beta2)*(g*g))
    w = snap(w - rate*((m*c1) / (sqrt(v*c2) + eps)))

The difference from AdamW is that the moments contain the decay, so weights with large gradients decay less. Learned
parameters of neurons do not decay, and have the update of AdamW (`stsbp_spec.models.optim.adamw.LEARNED_UPDATE`).

Some devices replace subnormal numbers by zero. This changes no result: `weight_decay*w` is added to a gradient that is
0 or at least 2^-100, so a subnormal product is lost in rounding, or snapped with the sum. The same holds for the change
of `w`, because weights are snapped too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from stsbp_spec.equations.expressions import Names, Recurrence, named, snap, variable
from stsbp_spec.models.optim.adamw import LEARNED_UPDATE, Adaptive, adaptive_change
from stsbp_spec.models.optim.base import GradientDecay, Scalars

__all__ = ["UPDATE", "Adam", "AdamScalars"]


@dataclass(frozen=True)
class AdamScalars(Scalars):
    """The float32 constants of one update."""

    clip: np.float32
    weight_decay: np.float32
    beta1: np.float32
    one_minus_beta1: np.float32
    beta2: np.float32
    one_minus_beta2: np.float32
    c1: np.float32
    c2: np.float32
    eps: np.float32
    rate: np.float32

    @property
    def update(self) -> Recurrence:
        return UPDATE

    @property
    def learned_update(self) -> Recurrence:
        return LEARNED_UPDATE


def _update() -> Recurrence:
    names = tuple(field.name for field in fields(AdamScalars))
    c = Names("scalar of Adam", {name: variable(name) for name in names})
    w, g, m, v = (variable(name) for name in ("w", "g", "m", "v"))
    clipped = named("clipped", snap(g * c.clip))
    m, v, change = adaptive_change(c, named("decayed", snap(clipped + c.weight_decay * w)), m, v)
    outputs = {"new_w": snap(w - change), "new_m": m, "new_v": v}
    return Recurrence("adam", names, ("w", "g", "m", "v"), {}, outputs)


UPDATE = _update()
"""One update of a weight: from `w`, its gradient `g` and the moments `m`, `v` to `new_w`, `new_m`, `new_v`."""


@dataclass(frozen=True)
class Adam(Adaptive, GradientDecay):
    """Hyperparameters of the update of Adam, whose weight decay is L2 regularisation, as in `torch.optim.Adam`.

    Args:
        lr, total_steps, warmup_steps, final_fraction: learning rate and its schedule, as for `AdamW`.
        beta1, beta2, eps: as in the literature. `eps` is from 2^-100 to 2^100.
        weight_decay: factor of the weights that is added to their gradients after clipping: 0, or from 2^-100 to 2^100.
        clip_norm: largest global gradient norm, at least 2^-100; None: no clipping.
        delay_lr: peak learning rate of learned delays; None: 100 times `lr`.
    """

    name: ClassVar[str] = "adam"

    lr: float = 2e-3
    total_steps: int | None = None
    warmup_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    delay_lr: float | None = None

    def scalars(self, step: int, clip: np.float32) -> AdamScalars:
        """The constants of update `step`, including the clipping factor."""
        return AdamScalars(
            clip=clip,
            weight_decay=np.float32(self.weight_decay),
            rate=np.float32(self.rate(step)),
            **self.moment_scalars(step),
        )
