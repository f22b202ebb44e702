"""The runs of an experiment: one folder a seed below one folder, each resumable, each measured when it is over.

OUT/seed-N/            a run (training/run_folder.py)
OUT/experiment.json    the figures of all seeds that are done, and what they come to
OUT/experiment.md      the same as a table
OUT/.lock              held by the process that trains

The run folders are the experiment; the two files beside them are made again where they are missing.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.numpy
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.network import NetworkSpec
from stsbp_spec.trainer import TrainState

from stsbp import records
from stsbp.config import RunConfig, differences
from stsbp.datasets import Dataset
from stsbp.errors import CheckpointError, ConfigError, FileError
from stsbp.files import MEGABYTE, OpenFolder, read_regular
from stsbp.processes.group import Group
from stsbp.training import checkpoint
from stsbp.training.build import Data, Task, build_network, build_task, cut_validation, has_test_of_training
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.evaluate import evaluate
from stsbp.training.loop import StopRequest, import_checkpoint, stop_together, train
from stsbp.training.metrics import read_records
from stsbp.training.operations import synaptic_operations
from stsbp.training.progress import Reporter, shown_by
from stsbp.training.run_folder import RunFolder

__all__ = ["FORMAT", "VALIDATION_SHARE", "Experiment", "with_validation"]

FORMAT = 2
"""Of `experiment.json`; counts up when figures are added or change their meaning."""
_MOST = 64 * MEGABYTE
_OWN = re.compile(r"seed-\d+|experiment\.(json|md)|\.lock|\.experiment\..*\.tmp")

VALIDATION_SHARE = 10
"""One training sample in so many is kept for validation where no number is asked for."""


def with_validation(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The settings with the usual number of validation samples; none where the test samples are those of training."""
    if has_test_of_training(config.dataset):
        return config
    return config.model_copy(update={"validation": len(dataset.train) // VALIDATION_SHARE})


@dataclass(frozen=True)
class Experiment:
    """Settings over seeds, and the folder of their runs.

    Attributes:
        path: folder of the experiment.
        config: settings of every run, but for the seed.
        seeds: seeds of the runs.
        data: what they are trained on.
    """

    path: Path
    config: RunConfig
    seeds: tuple[int, ...]
    data: Data

    @classmethod
    def open(
        cls, path: Path, config: RunConfig, seeds: tuple[int, ...], dataset: Dataset, *, overwrite: bool = False
    ) -> Experiment:
        """An experiment that is begun, or goes on, in the folder `path`.

        With `overwrite` the runs that are there may be others: call `clear` before `results`.

        Raises:
            ConfigError: a run in it was begun with other settings; names all that differ.
            FileError: it holds something else, or cannot be written.
            CheckpointError: the settings of a run in it are missing or damaged.
        """
        folder = RunFolder(path)
        begun = any(path.glob("seed-*/config.toml"))
        if not begun and not folder.is_free and any(not _OWN.fullmatch(entry.name) for entry in path.iterdir()):
            raise FileError(f"{path} is not empty and holds no experiment; choose another --out")
        folder.check_writable()
        for run in () if overwrite else cls._folders(path):
            if run.is_free:
                continue
            if not run.is_run:
                raise CheckpointError(
                    f"{run.path} is not empty but has no {run.config.name}; put it back, replace the runs with "
                    "--overwrite, or choose another --out"
                )
            own = run.read_config()
            asked = config.model_copy(update={"seed": own.seed}).model_dump()
            if changed := differences(own, asked):
                raise ConfigError(
                    f"the runs in {path} were begun with other settings; give the same settings to continue, "
                    "replace the runs with --overwrite, or choose another --out:"
                    + "".join(f"\n  {line}" for line in changed)
                )
        return cls(path, config, seeds, cut_validation(dataset, config))

    @staticmethod
    def _folders(path: Path) -> list[RunFolder]:
        """Of the seeds that are there."""
        return [RunFolder(found) for found in sorted(path.glob("seed-*")) if found.is_dir()]

    def clear(self, within: OpenFolder) -> None:
        """Remove the runs that are there, and nothing else.

        Args:
            within: the folder of the experiment, held open.

        Raises:
            FileError: a file cannot be removed, a run's folder holds others, or another process trains in one.
        """
        folders = self._folders(self.path)
        # All of them are looked at before the first one is touched.
        for folder in folders:
            folder.own_files()
        for folder in folders:
            with folder.lock(within):
                folder.clear()
        try:
            for path in (self.json, self.table):
                with contextlib.suppress(FileNotFoundError):
                    within.remove(path.name)
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error

    @property
    def json(self) -> Path:
        """The figures."""
        return self.path / "experiment.json"

    @property
    def table(self) -> Path:
        """The same as Markdown."""
        return self.path / "experiment.md"

    def task(self, seed: int, backend: AbstractBackend, group: Group | None = None) -> Task:
        """What is trained with a seed."""
        config = self.config.model_copy(update={"seed": seed})
        return build_task(config, self.data.inputs, backend, len(self.data.train), group)

    def folder(self, seed: int) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / f"seed-{seed}")

    def results(
        self, backend: AbstractBackend, stop: StopRequest, within: OpenFolder | None, group: Group | None = None
    ) -> Iterator[dict[str, Any]]:
        """Train each seed, or go on where it was stopped; gives the figures of each when it is over.

        Figures that `experiment.json` has of the same checkpoint are not measured again.

        Args:
            backend: what computes.
            stop: says when to stop.
            within: the folder of the experiment, held open: where it is removed, no run is begun any more. Rank 0 of
                several processes has it; the others give None, and are given no figures.
            group: the processes that compute together; None: this one alone.

        Raises:
            Stopped: a stop was asked for; what was trained is saved.
        """
        group = Group() if group is None else group
        known = _known(self.json, build_network(self.config, self.data.inputs)) if within is not None else {}
        for number, seed in enumerate(self.seeds, 1):
            folder = self.folder(seed)
            reported = None if within is None else self.reported(folder)
            if reported is not None:
                # A run that was killed when it had just ended has left its checkpoint from before.
                with folder.lock(within, make=False):
                    for name in ("last", "best"):
                        checkpoint.remove_leftovers(folder.files, name)
            is_known = reported is not None and known.get(seed, {}).get("checkpoint") == reported.info["sha256"]
            is_known, is_over = group.share((is_known, reported is not None) if group.leads else None)
            if is_known:
                if group.leads:
                    yield known[seed]
                continue
            # A reporter for each seed: its bar begins anew.
            show, task = shown_by(group), self.task(seed, backend, group)
            try:
                show.note(f"seed {seed} ({number} of {len(self.seeds)}), {folder.path}")
                if not is_over:
                    with folder.lock(within) if within is not None else contextlib.nullcontext():
                        _train(task, self.data, folder, show, stop)
                if within is not None and reported is None:
                    reported = self.reported(folder)
                    if reported is None:
                        within.check()
                        raise CheckpointError(
                            f"{folder.path} was removed or replaced just after its run ended; put it back, or run the "
                            "same command again to train that seed anew"
                        )
                found = _figures(task, self.data, folder, reported, show, stop)
                if found is not None:
                    yield {"seed": seed, **found}
            finally:
                show.close()

    def reported(self, folder: RunFolder) -> Checkpoint | None:
        """The checkpoint whose figures are reported: of the epoch that was best in validation, else of the last one.

        None where the run is not over.

        Raises:
            CheckpointError: it is damaged, or was trained on other data.
        """
        if not folder.has_checkpoint:
            return None
        last = checkpoint.load(folder.path, "last")
        # A run that was extended was finished before.
        if last.info.get("epoch") != self.config.epochs:
            return None
        if last.info.get("data") != self.data.fingerprint():
            raise CheckpointError(
                f"the data are not those that the run in {folder.path} was trained on (their number, labels or content "
                "differ); give the same --data-dir, or choose another --out"
            )
        return last if self.data.validation is None else checkpoint.load(folder.path, "best")


def _known(path: Path, network: NetworkSpec) -> dict[int, dict[str, Any]]:
    """Figures of the seeds that are in `experiment.json`; none where it is missing, damaged or of another version."""
    try:
        found = records.seeds(read_regular(path, _MOST), FORMAT)
    except OSError:
        return {}
    return {seed["seed"]: seed for seed in found if _of_network(seed, network)}


def _of_network(found: dict[str, Any], network: NetworkSpec) -> bool:
    """Whether the figures of a seed are of these layers."""
    layers = {block.name: block.static for block in network.blocks}
    figures = (found["test"], found["last"], *([] if found["validation"] is None else [found["validation"]]))
    if not all(set(part["rates"]) == set(layers) for part in figures):
        return False
    return set(found["operations"]) == {name for name, static in layers.items() if not static}


def _train(task: Task, data: Data, folder: RunFolder, show: Reporter, stop: StopRequest) -> None:
    saved = None
    if task.group.leads:
        saved = checkpoint.load(folder.path, "last") if folder.has_checkpoint else None
        if saved is None:
            folder.write_config(task.config)
        step = 0 if saved is None else int(saved.info["step"])
        folder.note_start(task.backend, sys.argv, step, task.group.size)
        if saved is not None:
            show.note(f"continuing {folder.path} after update {step}")
    train(task, data, folder, show, stop, saved)


def _figures(
    task: Task, data: Data, folder: RunFolder, reported: Checkpoint | None, show: Reporter, stop: StopRequest
) -> dict[str, Any] | None:
    """What is reported of a run: test and validation at the reported epoch, test at the last one, cost.

    None in a process that has not read the checkpoint, because it is not rank 0.
    """

    def between(done: int) -> None:
        show.loading("evaluating test", done, len(data.test))
        stop_together(stop, task.group, clock=False)

    state = _shared_state(task, folder, reported)
    test = evaluate(task, state, data.test, task.config.batch_size, between)
    if reported is None:
        return None
    lines = read_records(folder.metrics, show.warn)
    evaluations = [r for r in lines if r["kind"] == "evaluation"]
    tests = [r for r in evaluations if r["split"] == "test"]
    seconds = [r["seconds"] for r in lines if r["kind"] == "epoch"]
    if not tests or tests[-1]["epoch"] != task.config.epochs or not seconds:
        raise CheckpointError(
            f"the run is finished, but {folder.metrics} lacks its epochs or its last test; put the "
            f"file back, or remove {folder.path} to train that seed anew"
        )
    name = "last" if data.validation is None else "best"
    epoch = checkpoint.trained_of(reported, folder.path, name).epoch
    return {
        "run": folder.path.name,
        "checkpoint": reported.info["sha256"],
        "epoch": epoch,
        "test": test.means(),
        "validation": next((r for r in evaluations if r["split"] == "validation" and r["epoch"] == epoch), None),
        "last": tests[-1],
        "best_tested": _best_tested(tests) if task.config.test_every else None,
        "seconds_per_epoch": median(seconds),
        "operations": synaptic_operations(task, state, data.test),
    }


def _best_tested(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the tests of a run that with the highest accuracy (of spike trains F1), of equal ones the earliest."""
    return max(tests, key=lambda test: test["accuracy" if "accuracy" in test else "f1"])


def _shared_state(task: Task, folder: RunFolder, reported: Checkpoint | None) -> TrainState:
    """The state of the checkpoint that rank 0 has read, in every process."""
    if reported is None:
        return task.trainer.import_state(safetensors.numpy.load(task.group.share_bytes(None)))
    state = import_checkpoint(task, reported, folder)
    if task.group.size > 1:
        task.group.share_bytes(checkpoint.as_bytes(task.trainer.export_state(state)))
    return state
