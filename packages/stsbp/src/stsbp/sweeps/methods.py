"""Names of the samplers and pruners of a sweep, and what can be known about them without Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from stsbp.errors import ConfigError, did_you_mean
from stsbp.sweeps.objectives import Objective

__all__ = ["PRUNERS", "SAMPLERS", "TrialHeartbeat", "check_optuna", "chosen_pruner", "chosen_sampler", "name_of_run"]

SAMPLERS = ("tpe", "random", "grid", "qmc", "nsga2", "nsga3")
PRUNERS = ("none", "median", "hyperband", "halving")


@dataclass(frozen=True)
class TrialHeartbeat:
    """How often running trials record that they are alive, in seconds."""

    interval: int = 60

    @property
    def grace(self) -> int:
        """Time in seconds without a heartbeat after which a trial is lost."""
        return 3 * self.interval


def check_optuna() -> None:
    """Raise `ConfigError` if Optuna is missing."""
    if find_spec("optuna") is None:
        raise ConfigError('a sweep needs optuna; install it with: python -m pip install "stsbp[sweep]"')


def chosen_sampler(name: str | None, objectives: Sequence[Objective]) -> str:
    """The sampler: by default, tpe for one objective and nsga2 for several.

    Raises:
        ConfigError: there is no such sampler.
    """
    if name is None:
        return "tpe" if len(objectives) == 1 else "nsga2"
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}{did_you_mean(name, SAMPLERS)}; known: {', '.join(SAMPLERS)}")
    return name


def chosen_pruner(name: str, objectives: Sequence[Objective]) -> str:
    """The pruner.

    Raises:
        ConfigError: there is no such pruner, or it cannot judge these objectives.
    """
    if name not in PRUNERS:
        raise ConfigError(f"unknown pruner {name!r}{did_you_mean(name, PRUNERS)}; known: {', '.join(PRUNERS)}")
    if name == "none":
        return name
    if len(objectives) > 1:
        raise ConfigError(
            f"--pruner {name!r} judges a single objective, but there are {len(objectives)}; leave --pruner out"
        )
    if not objectives[0].each_epoch:
        raise ConfigError(
            f"--pruner {name!r} judges a value of every epoch, but the objective {objectives[0].key} is measured at "
            "the end; leave --pruner out"
        )
    return name


def name_of_run(number: int) -> str:
    """Name of the folder of the run of a trial."""
    return f"trial-{number}"
