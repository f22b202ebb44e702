"""The runs of an experiment. Each seed has its own folder in the experiment's folder. Each run can be resumed, and is
measured when it is finished.

OUT/seed-N/            a run (training/run_folder.py)
OUT/experiment.json    the results of all finished seeds, and their summary
OUT/experiment.md      the same as a table
OUT/.lock              locked by the process that trains

The run folders contain everything. The two files beside them are made again if they are missing.
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
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.trainer import TrainState
from stsbp_spec.networks.spec import NetworkSpec

from stsbp import records
from stsbp.config import RunConfig, SettingsSource, differences, named_preset, split_start
from stsbp.datasets import DATASETS, Dataset
from stsbp.datasets.base import distinct_count
from stsbp.datasets.registry import is_known
from stsbp.errors import CheckpointError, ConfigError, FileError, did_you_mean
from stsbp.files import MEGABYTE, OpenFolder, OutputKind, has_folder, read_regular, real
from stsbp.presets import PRESETS
from stsbp.processes.group import Group
from stsbp.training import checkpoint
from stsbp.training.build import Data, Inputs, Task, build_network, build_task, cut_validation, has_test_of_training
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.evaluate import evaluate
from stsbp.training.loop import StopRequest, import_checkpoint, is_over, resumed, stop_together, train
from stsbp.training.metrics import read_records
from stsbp.training.operations import synaptic_operations
from stsbp.training.progress import Reporter, group_reporter
from stsbp.training.quality import quality_of
from stsbp.training.run_folder import RunFolder

__all__ = ["FORMAT", "VALIDATION_SHARE", "Experiment", "experiment_settings", "same_command", "with_validation"]

FORMAT = 3
"""Version of `experiment.json`. It is increased when results are added or change their meaning."""
_MOST = 64 * MEGABYTE
_SEED = re.compile(r"seed-[0-9]+")
_FILES = {
    "experiment.json": OutputKind("results of an experiment", re.compile(rb'\s*{\s*"format":')),
    "experiment.md": OutputKind("a table of an experiment", re.compile(rb"# [^\n]+ on [^\n]+\n\n(\*\*|\| figure)")),
}
_OWN = re.compile(rf"{_SEED.pattern}|experiment\.(json|md)|\.lock|\.experiment\..*\.tmp")

VALIDATION_SHARE = 10
"""By default, one of this many training samples is held out for validation."""


def with_validation(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The settings with the usual number of validation samples; none if the test set is the training set."""
    if has_test_of_training(config.dataset):
        return config
    return config.model_copy(update={"validation": distinct_count(dataset.train) // VALIDATION_SHARE})


def experiment_settings(name: str, dataset: str | None) -> SettingsSource:
    """The settings of the preset or data set with this name.

    Raises:
        ConfigError: there is no such preset or data set, or `dataset` does not fit it.
    """
    if name in PRESETS:
        named_preset(name, dataset)
        return named_preset(name, None)
    if not is_known(name):
        known_names = [*PRESETS, *DATASETS]
        raise ConfigError(
            f"unknown experiment {name!r}{did_you_mean(name, known_names)}; presets and data sets: "
            f"{', '.join(known_names)}"
        )
    if dataset not in (None, name):
        raise ConfigError(f"{name} is a data set: leave --dataset {dataset} out, or name a preset")
    return SettingsSource(f"preset {name}", {"dataset": name})


def same_command(words: Sequence[str]) -> str:
    """What to call a command that is to be run again: without `--overwrite`, which would remove its results."""
    return "the same command" + " without --overwrite" * ("--overwrite" in words)


@dataclass(frozen=True)
class Experiment:
    """Settings with several seeds, and the folder of their runs.

    Attributes:
        path: folder of the experiment.
        config: settings of all runs, except the seed.
        seeds: seeds of the runs.
        data: the data on which they are trained.
    """

    path: Path
    config: RunConfig
    seeds: tuple[int, ...]
    data: Data

    @classmethod
    def open(
        cls, path: Path, config: RunConfig, seeds: tuple[int, ...], dataset: Dataset, *, overwrite: bool = False
    ) -> Experiment:
        """Begin or continue an experiment in the folder `path`.

        With `overwrite`, existing runs may have other settings. Call `clear` before `results` in this case.

        Raises:
            ConfigError: a run in the folder has other settings (the message names all differences), or `overwrite`
                would remove the run from whose weights the new runs begin, or a run outside of the folder.
            FileError: the folder contains something else, or cannot be written.
            CheckpointError: the settings of a run in the folder are missing or damaged.
        """
        folder = RunFolder(path)
        for seed in seeds:
            try:
                has_folder(path / f"seed-{seed}")
            except OSError as error:
                raise FileError(
                    f"cannot write {error.filename}: {error.strerror}; remove it, or choose another --out"
                ) from error
        runs = cls._folders(path)
        if not any(run.is_run for run in runs) and not folder.is_free:
            if any(not _OWN.fullmatch(entry.name) for entry in path.iterdir()):
                raise FileError(f"{path} is not empty and holds no experiment; choose another --out")
            for name, kind in _FILES.items():
                kind.target_path(path / name)
        folder.check_writable()
        if (
            overwrite
            and config.init_from
            and real(split_start(config.init_from)[0]) in {real(run.path) for run in runs}
        ):
            raise ConfigError(f"--overwrite would remove the run that --init-from {config.init_from!r} begins with")
        if overwrite and (links := [run.path for run in runs if run.path.is_symlink()]):
            # Clearing a run follows the link, and would remove a run that is not in this folder.
            raise ConfigError(
                f"{links[0]} is a link to {real(links[0])}, whose run --overwrite would remove; remove the link, or "
                "choose another --out"
            )
        for run in () if overwrite else runs:
            if run.is_free:
                continue
            if not run.is_run:
                raise CheckpointError(
                    f"{run.path} is not empty but has no {run.config.name}; put it back, replace the runs with "
                    "--overwrite, or choose another --out"
                )
            run_config = run.read_config()
            if differences(run_config, {"dataset": config.dataset}):
                raise ConfigError(
                    f"{run.path} holds a run on the data set {run_config.dataset}, not on {config.dataset}; remove it, "
                    "replace the runs with --overwrite, or choose another --out"
                )
            if run.path.name != f"seed-{run_config.seed}":
                raise CheckpointError(
                    f"{run.path} holds the run of seed {run_config.seed}; rename it back, or remove it to "
                    "train that seed anew"
                )
            requested = config.model_copy(update={"seed": run_config.seed}).model_dump()
            if changed := differences(run_config, requested):
                raise ConfigError(
                    f"the runs in {path} were begun with other settings; give the same settings to continue, "
                    "replace the runs with --overwrite, or choose another --out:"
                    + "".join(f"\n  {line}" for line in changed)
                )
        return cls(path, config, seeds, cut_validation(dataset, config))

    @staticmethod
    def _folders(path: Path) -> list[RunFolder]:
        """The folders of the existing seeds."""
        return [
            RunFolder(path_of_seed)
            for path_of_seed in sorted(path.glob("seed-*"))
            if _SEED.fullmatch(path_of_seed.name) and path_of_seed.is_dir()
        ]

    def clear(self, parent: OpenFolder) -> None:
        """Remove the existing runs, and nothing else.

        Args:
            parent: the folder of the experiment, which is kept open.

        Raises:
            FileError: a file cannot be removed, a run's folder contains other files, or another process trains in one.
        """
        folders = self._folders(self.path)
        # Check all of them before the first one is changed.
        for folder in folders:
            folder.own_files()
        for folder in folders:
            with folder.lock(parent):
                folder.clear()
        try:
            for path in (self.json, self.table):
                with contextlib.suppress(FileNotFoundError):
                    parent.remove(path.name)
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error

    @property
    def json(self) -> Path:
        """Path of the results."""
        return self.path / "experiment.json"

    @property
    def table(self) -> Path:
        """Path of the results as Markdown."""
        return self.path / "experiment.md"

    def task(self, seed: int, backend: AbstractBackend, group: Group | None = None) -> Task:
        """The training task for a seed."""
        config = self.config.model_copy(update={"seed": seed})
        return build_task(config, self.data.inputs, backend, len(self.data.train), group)

    def folder(self, seed: int) -> RunFolder:
        """The folder of a seed's run."""
        return RunFolder(self.path / f"seed-{seed}")

    def results(
        self, backend: AbstractBackend, stop: StopRequest, parent: OpenFolder | None, group: Group | None = None
    ) -> Iterator[dict[str, Any]]:
        """Train each seed, or continue where it was stopped. Yields the results of each seed when it is finished.

        Results in `experiment.json` that belong to the same checkpoint and match their digest are not measured again.

        Args:
            backend: the backend that computes.
            stop: a request to stop.
            parent: the folder of the experiment, which is kept open. If it was removed, no further run is begun. With
                several processes, only rank 0 passes the folder. The others pass None, and get no results.
            group: the processes that compute together; None: only this one.

        Raises:
            Stopped: a stop was requested. The state is saved.
        """
        group = Group() if group is None else group
        network = build_network(self.config, self.data.inputs)
        stored_results = _stored_results(self.json, network, self.data.inputs) if parent is not None else {}
        for number, seed in enumerate(self.seeds, 1):
            folder = self.folder(seed)
            reported = None if parent is None else self.reported(folder)
            if reported is not None:
                # A run that was killed just when it ended may have left its previous checkpoint. Remove it.
                with folder.lock(parent, make=False):
                    for name in ("last", "best"):
                        checkpoint.remove_leftovers(folder.files, name)
            is_known = (
                reported is not None and stored_results.get(seed, {}).get("checkpoint") == reported.info["sha256"]
            )
            is_changed = is_known and not _is_intact(stored_results[seed])
            is_known, is_over = group.share(
                (is_known and not is_changed, reported is not None) if group.leads else None
            )
            if is_known:
                if group.leads:
                    yield stored_results[seed]
                continue
            # Each seed gets a new reporter, so that its bar starts again.
            reporter, task = group_reporter(group), self.task(seed, backend, group)
            try:
                reporter.note(f"seed {seed} ({number} of {len(self.seeds)}), {folder.path}")
                if is_changed:
                    reporter.warn(
                        f"{self.json}: the results of seed {seed} were edited or damaged, because they do not match "
                        "their digest; they are measured again"
                    )
                if not is_over:
                    with folder.lock(parent) if parent is not None else contextlib.nullcontext():
                        _train(task, self.data, folder, reporter, stop)
                if parent is not None and reported is None:
                    reported = self.reported(folder)
                    if reported is None:
                        parent.check()
                        raise CheckpointError(
                            f"{folder.path} was removed or replaced just after its run ended; put it back, or run "
                            f"{same_command(sys.argv)} again to train that seed anew"
                        )
                figures = _figures(task, self.data, folder, reported, reporter, stop)
                if figures is not None:
                    figures = {"seed": seed, **figures}
                    yield {**figures, "digest": records.digest_of(figures)}
            finally:
                reporter.close()

    def reported(self, folder: RunFolder) -> Checkpoint | None:
        """The checkpoint whose results are reported: the one of the best epoch in validation, else of the last epoch.

        None if the run is not finished.

        Raises:
            CheckpointError: the checkpoint is damaged, or was trained with other settings or on other data.
        """
        if not folder.has_checkpoint:
            return None
        config = folder.read_config()
        last = checkpoint.load_of(config, folder.path, "last")
        progress = checkpoint.progress_of(last, folder.path)
        # A run that was extended had finished earlier, with fewer epochs or less patience.
        if not is_over(self.config, progress):
            return None
        if differs := self.data.unlike(progress):
            raise CheckpointError(
                f"the data are not those that the run in {folder.path} was trained on; different: {differs}. Give the "
                "same --data-dir, or choose another --out"
            )
        return last if self.data.validation is None else checkpoint.load_of(config, folder.path, "best")


def _stored_results(path: Path, network: NetworkSpec, inputs: Inputs) -> dict[int, dict[str, Any]]:
    """The results of the seeds in `experiment.json`. Empty if it is missing, damaged or of another version."""
    try:
        stored_seeds = records.seeds(read_regular(path, _MOST), FORMAT)
    except OSError:
        return {}
    return {seed["seed"]: seed for seed in stored_seeds if _of_network(seed, network, inputs)}


def _is_intact(seed_results: dict[str, Any]) -> bool:
    """Whether the results of a seed are those that were written."""
    return bool(
        seed_results["digest"] == records.digest_of({key: x for key, x in seed_results.items() if key != "digest"})
    )


def _of_network(seed_results: dict[str, Any], network: NetworkSpec, inputs: Inputs) -> bool:
    """Whether the results of a seed belong to a network with these layers and labels."""
    parts = [
        seed_results[name] for name in ("test", "last", "validation", "best_tested") if seed_results[name] is not None
    ]
    operations = {block.name for block in network.blocks if not block.static}
    return all(_has_layers(part, network, inputs) for part in parts) and set(seed_results["operations"]) == operations


def _has_layers(figures: dict[str, Any], network: NetworkSpec, inputs: Inputs) -> bool:
    """Whether an evaluation belongs to a network with these layers and labels."""
    layers = {block.name for block in network.blocks}
    key = "mse" if inputs.real_targets else "f1" if inputs.sequences else "accuracy"
    return set(figures["rates"]) == layers and quality_of(figures).key == key


def _train(task: Task, data: Data, folder: RunFolder, reporter: Reporter, stop: StopRequest) -> None:
    saved = None
    if task.group.leads:
        saved = checkpoint.load(folder.path, "last") if folder.has_checkpoint else None
        if saved is None:
            folder.write_config(task.config)
        else:
            # A checkpoint that is refused must leave all files as they are.
            resumed(task.config, task, data, saved, folder)
        step = 0 if saved is None else int(saved.info["step"])
        folder.note_start(task.backend, sys.argv, step, task.group.size)
        if saved is not None:
            reporter.note(f"continuing {folder.path} after update {step}")
    train(task, data, folder, reporter, stop, saved)


def _figures(
    task: Task, data: Data, folder: RunFolder, reported: Checkpoint | None, reporter: Reporter, stop: StopRequest
) -> dict[str, Any] | None:
    """The reported results of a run: validation and test at the reported epoch, test at the last epoch, and cost.

    None in processes other than rank 0, which have not read the checkpoint.
    """

    def on_progress(samples_done: int) -> None:
        reporter.loading("evaluating test", samples_done, len(data.test))
        stop_together(stop, task.group, clock=False)

    state = _shared_state(task, folder, reported)
    test = evaluate(task, state, data.test, task.config.batch_size, on_progress)
    if reported is None:
        return None
    entries = read_records(folder.path, task.config, reporter.warn)
    evaluations = [r for r in entries if r["kind"] == "evaluation" and _has_layers(r, task.network, task.inputs)]
    tests = [r for r in evaluations if r["split"] == "test"]
    seconds = [r["seconds"] for r in entries if r["kind"] == "epoch"]
    last_epoch = checkpoint.recorded_of(checkpoint.described(folder.path, "last"), folder.path).epoch
    if not tests or tests[-1]["epoch"] != last_epoch or not seconds:
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
    """The test of a run with the best result in its quality measure. If several are equal, the earliest."""
    quality = quality_of(tests[0])
    return (max if quality.is_share else min)(tests, key=lambda test: test[quality.key])


def _shared_state(task: Task, folder: RunFolder, reported: Checkpoint | None) -> TrainState:
    """The state of the checkpoint that rank 0 has read, for all processes."""
    if reported is None:
        return task.trainer.import_state(safetensors.numpy.load(task.group.share_bytes(None)))
    state = import_checkpoint(task, reported, folder)
    if task.group.size > 1:
        task.group.share_bytes(checkpoint.as_bytes(task.trainer.export_state(state)))
    return state
