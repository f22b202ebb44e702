"""A trained network, read back from its run folder for evaluation and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stsbp_spec.backend import AbstractBackend
from stsbp_spec.trainer import TrainState

from stsbp.config import RunConfig
from stsbp.datasets import Dataset, Split
from stsbp.errors import CheckpointError, ConfigError
from stsbp.processes.group import Group
from stsbp.training import checkpoint
from stsbp.training.build import Data, Inputs, Task, build_task
from stsbp.training.loop import import_checkpoint
from stsbp.training.run_folder import RunFolder

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """Settings, network and state of a checkpoint, and what else it says."""

    config: RunConfig
    task: Task
    state: TrainState
    info: dict[str, Any]

    def samples(self, data: Data, split: str) -> Split:
        """A split of the data that the run was trained on.

        Raises:
            ConfigError: there is no such split, or these are other data.
        """
        if split not in data.splits():
            how = "with --no-test" if split == "test" else "without --validation"
            raise ConfigError(f"the run has no {split} split, because it was trained {how}; name another --split")
        if data.inputs != self.task.inputs:
            raise ConfigError(
                f"the data are {data.inputs}, the run was trained on {self.task.inputs}; give the same --data-dir"
            )
        if data.fingerprint() != self.info["data"]:
            raise ConfigError(
                "the data are not those that the run was trained on (number, labels or content differ): samples "
                f"of its {split} split may have been trained on; give the same --data-dir"
            )
        return data.splits()[split]

    def other_samples(self, dataset: Dataset) -> Split:
        """The test samples of another data set.

        Raises:
            ConfigError: its inputs or labels are not what the network reads and gives.
        """
        its = Inputs.of(dataset)
        if its != self.task.inputs:
            raise ConfigError(
                f"the run was trained on {self.task.inputs}, {dataset.name} has {its.unlike(self.task.inputs)}"
            )
        return dataset.test


def load_trained(folder: RunFolder, name: str, backend: AbstractBackend, group: Group | None = None) -> Trained:
    """Read the checkpoint `name` (`last` or `best`) of a run for a backend, whichever backend wrote it.

    Raises:
        CheckpointError: there is no such run, or the checkpoint is damaged or does not fit the settings.
    """
    config = folder.read_config()
    saved = checkpoint.load(folder.path, name)
    if not checkpoint.is_of(config, saved.info):
        raise CheckpointError(f"{folder.config} is not what the checkpoint {name!r} was trained with; put it back")
    inputs = Inputs.of_record(checkpoint.trained_of(saved, folder.path, name).inputs)
    task = build_task(config, inputs, backend, group=group)
    return Trained(config, task, import_checkpoint(task, saved, folder), saved.info)
