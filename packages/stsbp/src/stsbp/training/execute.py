"""Trains as planned: loads the data, begins or continues the run in its folder, and runs the training loop.

The command line and `stsbp.train` call `execute`. It prints nothing itself, except through the reporter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.networks.spec import NetworkSpec

from stsbp.config import RunConfig, SettingsSource
from stsbp.datasets import DatasetInfo
from stsbp.errors import FileError
from stsbp.processes.group import Group
from stsbp.rate_penalty import describe_penalties
from stsbp.training import checkpoint
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import Data, Task, build_task, check_reads, check_typed_labels, load_data, own_flushes
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.loop import Outcome, StopRequest, first_state, is_over, resumed, train, why_early
from stsbp.training.optimizer import describe_frozen
from stsbp.training.overlap import warn_of_borrowed_tests, warn_of_other_settings, warn_of_trained_tests
from stsbp.training.plan import RunPlan, content_of, typed_settings
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.tracking import OpenTracker

__all__ = ["Caller", "execute"]


@dataclass(frozen=True)
class Caller:
    """Who asks for the training.

    Attributes:
        command: how the run was started, for its records.
        again: returns the command that continues the run in a folder.
        stopping: makes the context in which a stop can be requested.
        network: the network, if it was given as an object: the data must be those that it reads.
        trackers: functions that open trackers beside those that the settings name.
    """

    command: Sequence[str]
    again: Callable[[RunFolder], str]
    stopping: Callable[[], AbstractContextManager[StopRequest]]
    network: NetworkSpec | None = None
    trackers: Sequence[OpenTracker] = ()


def execute(
    plan: RunPlan,
    sources: list[SettingsSource],
    backend: AbstractBackend,
    group: Group,
    reporter: Reporter,
    caller: Caller,
    *,
    overwrite: bool,
    given: DatasetInfo | None = None,
) -> tuple[Outcome, Task]:
    """Train as planned, together with the other processes. The reporter is closed at the end.

    Args:
        plan: settings and folder.
        sources: where the settings come from.
        backend, group: what computes.
        reporter: shows the progress.
        caller: who asks for the training.
        overwrite: whether the files of an earlier run are removed first.
        given: arrays that take the place of the data set; None: it is loaded by its name.

    Raises:
        Stopped: a stop was requested. The state is saved.
        StsbpError: as `stsbp.training.loop.train`, or the data do not fit the settings.
    """
    config, folder, saved = plan.config, plan.folder, plan.saved
    try:
        new_data_dir: Any = typed_settings(sources).get("data_dir") if plan.goes_on else None
        data = group.one_by_one(lambda: load_data(config, reporter.loading, new_data_dir, plan.goes_on, given))
        group.compare_data(data.contents)
        for note in data.dataset.notes:
            reporter.note(note)
        if not plan.goes_on:
            check_typed_labels(config, data.inputs, sources[-1].values)
        if caller.network is not None:
            check_reads(caller.network, data.inputs)
        task = build_task(config, data.inputs, backend, len(data.train), group)
        if frozen := describe_frozen(task.network, task.trainer.frozen):
            reporter.note(frozen)
        if penalised := describe_penalties(task.trainer.rate_penalty):
            reporter.note(penalised)
        first = None
        if group.leads:
            warn_of_blank(config.dataset, data.inputs.coding, data.splits(), reporter, config.test_on)
            warn_of_trained_tests(config, data, reporter)
            for flush in own_flushes(config) if saved is None else ():
                reporter.warn(flush)
            if saved is None:
                # Before anything is written or removed: weights may be unusable, and memory may not suffice.
                first = first_state(task, data)
                if config.init_from:
                    warn_of_other_settings(config, reporter)
                    warn_of_borrowed_tests(config, data, backend, reporter)
        lock = folder.lock(make=not plan.existed) if group.leads else contextlib.nullcontext()
        with lock, caller.stopping() as stop:
            if group.leads:
                saved = _begin(plan, task, data, reporter, caller.command, overwrite=overwrite)
            group.advise(f"; the last checkpoint is untouched. Continue with: {caller.again(folder)}")
            return train(task, data, folder, reporter, stop, saved, first, caller.trackers), task
    finally:
        reporter.close()


def _begin(
    plan: RunPlan, task: Task, data: Data, reporter: Reporter, command: Sequence[str], *, overwrite: bool
) -> Checkpoint | None:
    """Begin or continue the run in its folder, which is locked. Returns the checkpoint to continue from."""
    config, folder, saved = plan.config, plan.folder, plan.saved
    # Loading takes time, and another process may have trained here meanwhile.
    if saved is not None:
        run_config = folder.read_config()
        # A checkpoint that is refused must leave all files as they are.
        resumed(run_config, task, data, checkpoint.load(folder.path, "last"), folder)
        if (config.epochs, config.patience) != (run_config.epochs, run_config.patience):
            _extend(folder, run_config, config, reporter)
        saved = checkpoint.load(folder.path, "last")
    elif plan.earlier_content != content_of(folder):
        raise FileError(f"another process has begun a run in {folder.path} meanwhile; choose another --out")
    if saved is None:
        folder.write_config(config, overwrite=overwrite)
    step = 0 if saved is None else int(saved.info["step"])
    if folder.note_start(task.backend, list(command), step, task.group.size):
        reporter.warn(f"{folder.environment} was damaged and is begun anew, so it does not show earlier starts")
    if saved is None:
        return None
    progress = checkpoint.progress_of(saved, folder.path)
    if progress.epoch >= config.epochs:
        reporter.note(
            f"{folder.path} is finished: all {config.epochs} epochs are done. Its result follows. To "
            "train it longer, give a larger --epochs"
        )
    elif is_over(config, progress):
        assert progress.best is not None
        reporter.note(
            f"{folder.path} is finished: it ended {why_early(config, progress.epoch, progress.best.model_dump())}. "
            "Its result follows. To train it longer, give a larger --patience, or --patience 0"
        )
    else:
        reporter.note(f"continuing {folder.path} after update {saved.info['step']}")
    return saved


def _extend(folder: RunFolder, run_config: RunConfig, config: RunConfig, reporter: Reporter) -> None:
    """Give the run with the settings `run_config` as many epochs and as much patience as `config` has, by changing the
    file of its settings."""
    # Before the number of epochs grows, checkpoints must record the number for which they were written.
    for name in ("best", "last"):
        if (folder.path / f"{name}.json").exists():
            checkpoint.note_epochs(folder.files, name, run_config.epochs)
    # config.toml and the two checkpoints cannot be replaced at one instant. The checkpoints are valid with the old and
    # with the new number of epochs, so the rename of config.toml alone decides.
    folder.write_config(run_config.model_copy(update={"epochs": config.epochs, "patience": config.patience}))
    rate = "; from here on the learning rate follows the longer schedule" if config.schedule == "cosine" else ""
    if config.epochs != run_config.epochs:
        reporter.note(f"{config.epochs} epochs instead of {run_config.epochs}{rate}")
    if config.patience != run_config.patience:
        reporter.note(f"patience {config.patience or 'off'} instead of {run_config.patience or 'off'}")
