"""What every optimiser has: a learning rate with its schedule, clipping of the gradient norm, and its moments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np

from stsbp_spec.contract.elementary import cosine
from stsbp_spec.contract.grid import CEILING, FLOOR
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.typing import Float32
from stsbp_spec.validation import integer, real, shown

__all__ = ["DELAY_FACTOR", "GradientDecay", "Optimizer", "Scalars"]

DELAY_FACTOR = 100.0
"""Default learning rate of learned delays, relative to that of the weights, as in Hammouamri et al. 2023. An adaptive
update is about as large as the learning rate, and delays are many steps long."""

_LARGEST = float(np.finfo(np.float32).max)
_DOMAIN_TEXTS = {
    "lr": "0, or from 2^-100 to the largest float32, 3.4e38",
    "delay_lr": "0, or from 2^-100 to the largest float32, 3.4e38",
    "clip_norm": "at least 2^-100",
    "momentum": "0, or from 2^-100 to less than 1",
}


@dataclass(frozen=True)
class Scalars(ABC):
    """The float32 constants of one update, and the equations that read them.

    The inputs of both equations are the parameter `w`, its gradient `g`, and the moments. Their outputs are the new
    parameter and the new moments, in the same order.
    """

    @property
    @abstractmethod
    def update(self) -> Recurrence:
        """The update of weights and biases."""

    @property
    @abstractmethod
    def learned_update(self) -> Recurrence:
        """The update of learned parameters of neurons and of batch normalisation.

        The result is clipped to the constants `low` and `high`.
        """


class Optimizer(ABC):
    """Hyperparameters of an update.

    Subclasses are frozen dataclasses.

    Attributes:
        name: prefix of the tensors in an exported state, and the value of the setting `optimizer`.
        moments: names of the arrays that belong to each parameter: one or two.
        lr: peak learning rate: 0, or from 2^-100 to the largest float32.
        delay_lr: peak learning rate of learned delays (ops/delay.py), which are in steps. It has the same schedule.
            None: `DELAY_FACTOR lr`.
        total_steps: length of the cosine schedule in updates. None keeps `lr` constant after the warm-up.
        warmup_steps: number of updates over which the learning rate rises linearly from 0.
        final_fraction: learning rate at the end of the schedule, as a fraction of `lr`.
        weight_decay: weight decay, at least 0.
        clip_norm: largest global gradient norm, at least 2^-100; None: no clipping.
    """

    name: ClassVar[str]
    moments: ClassVar[tuple[str, ...]]

    lr: float
    delay_lr: float | None
    total_steps: int | None
    warmup_steps: int
    final_fraction: float
    weight_decay: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        title = type(self).__name__
        for field in fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            if value is None and field.default is None:
                continue
            steps = name in ("warmup_steps", "total_steps")
            number = integer(value) if steps else real(f"{title}: {name}", value)
            if number is None:
                raise SpecError(f"{title}: {name} must be an integer, got {shown(value)}")
            object.__setattr__(self, name, number)
        for name, is_valid in self._domain().items():
            if not is_valid:
                domain_text = f"; it must be {self._domain_texts()[name]}" if name in self._domain_texts() else ""
                raise SpecError(f"{title}: {name} is outside its domain: {shown(getattr(self, name))}{domain_text}")

    def _domain(self) -> dict[str, bool]:
        """Whether each hyperparameter is in its domain, by name."""
        return {
            # In float32, other values would be zero or infinite.
            "lr": self.lr == 0 or FLOOR <= self.lr <= _LARGEST,
            "delay_lr": self.delay_lr is None or self.delay_lr == 0 or FLOOR <= self.delay_lr <= _LARGEST,
            "weight_decay": self.weight_decay >= 0,
            "warmup_steps": self.warmup_steps >= 0,
            "final_fraction": 0 <= self.final_fraction <= 1,
            "total_steps": self.total_steps is None or self.total_steps > 0,
            "clip_norm": self.clip_norm is None or self.clip_norm >= FLOOR,
        }

    def _domain_texts(self) -> Mapping[str, str]:
        """The domains that a message states, by name."""
        return _DOMAIN_TEXTS

    def rate(self, step: int) -> float:
        """Learning rate of update `step = 0, 1, ...`, float64."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.total_steps is None:
            return self.lr
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        falling = 0.5 * (1 + cosine(math.pi * progress))
        return self.lr * (self.final_fraction + (1 - self.final_fraction) * falling)

    @abstractmethod
    def scalars(self, step: int, clip: np.float32) -> Scalars:
        """The constants of update `step`, including the clipping factor."""

    def for_delays(self) -> Self:
        """The optimiser of learned delays: with their learning rate, and without weight decay."""
        lr = min(DELAY_FACTOR * self.lr, _LARGEST) if self.delay_lr is None else self.delay_lr
        return replace(self, lr=lr, weight_decay=0.0)  # type: ignore[type-var]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What precedes `/NAME` in the names of the moments in an exported state, for example `adamw.m`."""
        return tuple(f"{self.name}.{moment}" for moment in self.moments)

    def check_moments(self, name: str, moments: Sequence[Float32]) -> None:
        """Check the moments of the parameter `name` in an exported state.

        Raises:
            NumericError: no update can produce one of them.
        """
        for prefix, x in zip(self.prefixes, moments, strict=True):
            if np.isnan(x).any():
                raise NumericError(f"{prefix} of {name} holds a value that no update can produce")


class GradientDecay(Optimizer):
    """An optimiser whose weight decay is L2 regularisation: `weight_decay w` is added to the gradient."""

    def _domain(self) -> dict[str, bool]:
        # In float32, other values would be zero or infinite.
        return {**super()._domain(), "weight_decay": self.weight_decay == 0 or FLOOR <= self.weight_decay <= CEILING}

    def _domain_texts(self) -> Mapping[str, str]:
        return {**super()._domain_texts(), "weight_decay": "0, or from 2^-100 to 2^100"}
