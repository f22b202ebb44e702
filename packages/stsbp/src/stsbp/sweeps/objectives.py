"""The objectives of a sweep: figures of a run on its validation samples, at its best checkpoint.

The best checkpoint is the one that the run itself chose by its validation samples. Test samples are never read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stsbp.config import RunConfig
from stsbp.energy.stored import stored_energy
from stsbp.energy.text import picojoules
from stsbp.errors import CheckpointError, ConfigError, did_you_mean
from stsbp.training import checkpoint
from stsbp.training.build import Inputs
from stsbp.training.compare import MEASURED
from stsbp.training.metrics import read_records

__all__ = [
    "OBJECTIVES",
    "Objective",
    "check_objectives",
    "figures_of",
    "needs_energy",
    "read_objectives",
    "validations",
]


class Objective(NamedTuple):
    """A figure that a sweep makes as large or as small as possible.

    Attributes:
        key: its name.
        text: what it is, for tables and charts.
        maximise: whether more is better.
        each_epoch: whether the records of every epoch have it. Pruning needs that.
        of_operations: whether it needs the operations of the network, which `stsbp evaluate --energy` counts.
    """

    key: str
    text: str
    maximise: bool = False
    each_epoch: bool = False
    of_operations: bool = False

    def shown(self, value: float) -> str:
        """A value as text."""
        if self.maximise:
            return f"{value:.2%}"
        return picojoules(value) if self.key == "energy" else f"{value:,.6g}"


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        objective.key: objective
        for objective in (
            Objective("accuracy", "validation accuracy", maximise=True, each_epoch=True),
            Objective("f1", "validation F1 of spike times within 1 step", maximise=True, each_epoch=True),
            Objective("mse", "validation mean squared error", each_epoch=True),
            Objective("loss", "validation loss", each_epoch=True),
            Objective("latency", "median step of the first right spike"),
            Objective("energy", "energy of a sample", of_operations=True),
            Objective("operations", "synaptic operations of a sample", of_operations=True),
            Objective("spikes", "spikes of a sample in all layers", of_operations=True),
        )
    }
)
"""All objectives by name."""
_OF_SPIKES = ("f1", "latency")
"""Objectives that need output spikes."""


def read_objectives(names: Iterable[str]) -> tuple[Objective, ...]:
    """The objectives with these names.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    objectives: dict[str, Objective] = {}
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(
                f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}"
            )
        if name in objectives:
            raise ConfigError(f"--objective {name!r} is given twice")
        objectives[name] = OBJECTIVES[name]
    return tuple(objectives.values())


def check_objectives(
    objectives: Sequence[Objective], inputs: Inputs, varied: Iterable[str], readout_loss: str | None = None
) -> None:
    """Check that the data and the networks have these objectives, and that their values can be compared.

    Args:
        objectives: the objectives.
        inputs: the form of the data.
        varied: names of the varied settings.
        readout_loss: name of a loss of the sweep whose networks have a readout, which has no spikes; None: none has.

    Raises:
        ConfigError: the data or a network do not have one of them, or it depends on how a varied setting lets it be
            measured.
    """
    kind = "real numbers" if inputs.real_targets else "spike trains" if inputs.sequences else "classes"
    lacking = {"real numbers": ("accuracy", "f1", "latency"), "spike trains": ("accuracy", "mse"), "classes": ("mse",)}
    varied_names = set(varied)
    for objective in objectives:
        if objective.key in lacking[kind]:
            raise ConfigError(
                f"--objective {objective.key!r}: the labels of these data are {kind}, which do not have it"
            )
        if readout_loss is not None and objective.key in _OF_SPIKES:
            raise ConfigError(
                f"--objective {objective.key!r} is one of output spikes, but with --loss {readout_loss!r} the network "
                "has a readout, which has none; choose accuracy or loss"
            )
        if changed := [name for name in MEASURED.get(objective.key, ()) if name in varied_names]:
            raise ConfigError(
                f"--objective {objective.key!r} is measured with the settings {', '.join(changed)}, which are varied, "
                "so its values could not be compared; choose another objective, or do not vary them"
            )


def needs_energy(objectives: Iterable[Objective]) -> bool:
    """Whether the operations of the network must be counted."""
    return any(objective.of_operations for objective in objectives)


def validations(folder: Path, config: RunConfig) -> dict[int, dict[str, Any]]:
    """The evaluations on validation samples so far, by the number of their epoch. Empty if the run has no records."""
    try:
        return _validations(read_records(folder, config, lambda _: None))
    except CheckpointError:
        # The process that trains may be replacing them.
        return {}


def _validations(records: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {r["epoch"]: r for r in records if r["kind"] == "evaluation" and r.get("split") == "validation"}


def figures_of(folder: Path, config: RunConfig, energy_sha256: str = "") -> dict[str, float]:
    """All figures of a run at its best checkpoint that its folder has.

    `epoch` is the number of that epoch, and `seconds` the time of all updates.

    Energies are those of the last `stsbp evaluate --energy` on the validation samples with this checkpoint.

    Args:
        folder: folder of the run.
        config: its settings.
        energy_sha256: SHA-256 of the prices of operations (`EnergyTable.digest`); "": no energy is needed. Energies by
            other prices are not read.

    Raises:
        CheckpointError: the folder has no best checkpoint, or no record of its validation.
    """
    best = checkpoint.described(folder, "best")
    epoch = best["epoch"]
    entries = read_records(folder, config, lambda _: None)
    record = _validations(entries).get(epoch)
    if record is None:
        raise CheckpointError(f"{folder} has no record of the validation after epoch {epoch}, its best one")
    seconds = sum(r["seconds"] for r in entries if r["kind"] == "epoch")
    figures: dict[str, float] = {"epoch": epoch, "seconds": seconds}
    figures |= {key: float(record[key]) for key in ("accuracy", "f1", "mse", "loss") if key in record}
    with contextlib.suppress(KeyError, TypeError):
        latency = record["measures"]["latency"]["median"]
        # Without any right spike, the answer never comes. All steps of a sample are the largest value.
        figures["latency"] = float(config.steps if latency is None else latency)
    energy = stored_energy(folder) if energy_sha256 else None
    asked = (best["sha256"], "validation", energy_sha256)
    if energy is not None and (energy["sha256"], energy["split"], energy["table_sha256"]) == asked:
        samples, layers = energy["samples"], energy["layers"]
        figures["energy"] = energy["pj"]["total"]
        kinds = ("accumulations", "multiplications")
        figures["operations"] = sum(layer[kind] for layer in layers for kind in kinds) / samples
        # A neuron is updated once in a step, and its rate is the mean over these updates.
        figures["spikes"] = sum(record["rates"][layer["name"]] * layer["updates"] for layer in layers) / samples
    return figures
