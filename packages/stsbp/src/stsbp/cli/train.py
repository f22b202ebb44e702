"""`stsbp train`: combines the settings from preset, file and options, makes the run's folder, and trains."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.networks.spec import NetworkSpec

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    OptionalPaths,
    choose_backend,
    deadline_in,
    limit_threads,
    meeting,
    processes,
    program,
    say,
    stop_after,
)
from stsbp.cli.settings import (
    SettingsCommand,
    allow_imports,
    complete_data_set,
    complete_preset,
    given_settings,
    settings,
)
from stsbp.config import (
    FREE,
    RunConfig,
    SettingsSource,
    absolute,
    check_imports,
    differences,
    named_preset,
    read_toml,
    resolve,
    split_start,
    to_toml,
)
from stsbp.datasets.registry import is_known, named_path
from stsbp.errors import ConfigError, FileError
from stsbp.files import as_argument, real
from stsbp.processes.group import PER_PROCESS, Group, join
from stsbp.training import checkpoint
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import (
    TOLERANCE,
    Data,
    Task,
    build_task,
    check_patience,
    check_typed,
    check_typed_labels,
    decoders,
    load_data,
    own_flushes,
)
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.initial import pinned
from stsbp.training.loop import Outcome, Stopped, first_state, is_over, resumed, stop_on_signals, train, why_early
from stsbp.training.optimizer import describe_frozen
from stsbp.training.overlap import warn_of_borrowed_tests, warn_of_other_settings, warn_of_trained_tests
from stsbp.training.progress import Reporter, shown_by
from stsbp.training.run_folder import RunFolder
from stsbp.training.tensorboard import require

__all__ = ["command"]

_HERE = ""
"""Value of `--resume` without a folder. It means the folder of `--out`."""


class _Train(OptionalPaths, SettingsCommand):
    """The command."""


@click.command("train", cls=_Train, short_help=COMMANDS["train"])
@click.argument("dataset", required=False, shell_complete=complete_data_set)
@click.option("--out", type=PathName(path_type=Path), help="Folder of the run.  [default: runs/DATASET-DATE-TIME]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_HERE,
    metavar="[RUN]",
    help="Continue the run in RUN. Without RUN, continue the run in --out.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option(
    "--preset",
    "preset_name",
    metavar="NAME",
    help="Use the settings of a published experiment. `stsbp presets` lists the names.",
    shell_complete=complete_preset,
)
@click.option("--config", "file", type=PathName(path_type=Path), metavar="FILE", help="Read settings from a TOML file.")
@allow_imports
@click.option("--show-config", is_flag=True, help="Print the resulting settings as TOML, without training.")
@stop_after
@processes
@settings
def command(
    dataset: str | None,
    out: Path | None,
    resume: str | None,
    overwrite: bool,
    preset_name: str | None,
    file: Path | None,
    allow_imports: bool,
    show_config: bool,
    stop_after: float | None,
    processes: int | None,
    rank_timeout: float,
    **flags: Any,
) -> None:
    """Train a network on DATASET.

    DATASET is one of the names that `stsbp datasets` lists. For your own files, give folder:PATH (images), events:PATH
    (recordings of events) or sequences:PATH (spike rasters).

    Settings come from five places: the defaults shown below, the default settings of the data set (see `stsbp datasets
    NAME`), --preset, --config, and the options. Each place overrides the places before it.
    """
    options: Globals = click.get_current_context().obj
    deadline = deadline_in(stop_after)
    if resume is not None and is_known(resume) and dataset is None and out is not None:
        # `--resume digits --out RUN`: the name of the data set was taken for a folder.
        dataset, resume = resume, _HERE
    given_options = given_settings(flags)
    if dataset is not None:
        given_options["dataset"] = dataset
    sources = ([read_toml(file)] if file is not None else []) + [SettingsSource("command line", given_options)]
    if preset_name is not None:
        named = next((str(s.values["dataset"]) for s in reversed(sources) if "dataset" in s.values), None)
        sources.insert(0, named_preset(preset_name, named))
    if resume is not None and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it; give one of them")
    typed = {"out": out and str(out), "resume": resume, "overwrite": overwrite or None}
    resume, overwrite = _after_restart(resume, out, overwrite)

    rendezvous = None if show_config else meeting(processes, rank_timeout, _threads(sources))
    begin = partial(_plan, sources, out, resume, overwrite, allow_imports=allow_imports)
    plan = None if rendezvous is not None else begin(show_config=show_config)
    if show_config:
        assert plan is not None
        click.echo(to_toml(plan.config), nl=False)
        return
    limit_threads(_threads(sources) if plan is None else plan.config.threads)
    backend = choose_backend(options, rendezvous)
    with join(backend, rendezvous, rank_timeout) as group:
        group.compare_settings({**_typed_settings(sources), **{name: x for name, x in typed.items() if x is not None}})
        if plan is None and group.leads:
            plan = begin()
        plan = _shared(plan, group, sources)
        if rendezvous is not None:
            # The threads of the resumed run were not known before.
            limit_threads(plan.config.threads)
        _train(plan, sources, backend, group, deadline, overwrite=overwrite)


@dataclass(frozen=True)
class _RunPlan:
    """What to do: the settings, the folder of the run, and its previous content.

    Attributes:
        saved: the checkpoint to continue from; only on rank 0.
        goes_on: whether there is such a checkpoint.
        existed, begun: whether the folder existed, and whether it contained a run; only on rank 0.
    """

    config: RunConfig
    folder: RunFolder
    saved: Checkpoint | None = None
    goes_on: bool = False
    existed: bool = True
    begun: tuple[bool, bool] = (False, False)


def _plan(
    sources: list[SettingsSource],
    out: Path | None,
    resume: str | None,
    overwrite: bool,
    *,
    allow_imports: bool,
    show_config: bool = False,
) -> _RunPlan:
    """The plan for the options, unless something prevents it."""
    folder, saved = None, None
    if resume is not None:
        folder, saved = _run_to_resume(resume, out)
    if folder is not None and folder.is_run:
        config = _resumed(folder, sources)
    else:
        config = resolve(sources)
        if not allow_imports:
            check_imports(config, sources)
        config = pinned(absolute(config))
        check_typed(config, sources[-1].values)
        folder = folder or RunFolder(out or _new_folder(config.dataset))
    if show_config:
        return _RunPlan(config, folder)
    if saved is None and not folder.is_free:
        if overwrite:
            folder.own_files()
        elif resume is not None and folder.is_run:
            folder.check_settings()
        else:
            advice = "; continue that run with --resume, replace it with --overwrite, or"
            advice = advice if folder.has_traces else ", but holds no run;"
            raise FileError(f"{folder.path} exists and is not empty{advice} choose another --out")
    if overwrite and config.init_from and real(split_start(config.init_from)[0]) == real(folder.path):
        raise ConfigError(f"--overwrite would remove the run that --init-from {config.init_from} begins with")
    check_patience(config)
    if config.tensorboard:
        require()
    begun, exists = _begun(folder), folder.path.exists()
    folder.check_writable()
    return _RunPlan(config, folder, saved, saved is not None, exists, begun)


def _begun(folder: RunFolder) -> tuple[bool, bool]:
    """Whether the folder is free, and whether it contains a checkpoint."""
    return folder.is_free, (folder.path / "last.json").exists()


def _shared(plan: _RunPlan | None, group: Group, sources: list[SettingsSource]) -> _RunPlan:
    """The plan of rank 0 in every process, together with the options of that process."""
    if group.size == 1:
        assert plan is not None
        return plan
    values = None if plan is None else (plan.config.model_dump(), str(plan.folder.path), plan.goes_on)
    config, path, goes_on = group.share(values)
    if plan is not None:
        return plan
    own_settings = {key: value for key, value in _typed_settings(sources).items() if key in PER_PROCESS}
    return _RunPlan(absolute(RunConfig(**{**config, **own_settings})), RunFolder(Path(path)), goes_on=goes_on)


def _threads(sources: list[SettingsSource]) -> int:
    """The requested number of threads; 0: not requested."""
    threads = _typed_settings(sources).get("threads", 0)
    return threads if isinstance(threads, int) else 0


def _after_restart(resume: str | None, out: Path | None, overwrite: bool) -> tuple[str | None, bool]:
    """The effective `--resume` and `--overwrite`. A run that torchrun restarts continues from its checkpoint.

    Raises:
        ConfigError: torchrun may restart the run, and would then not find its folder.
    """
    restarts, most = (_count(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if most and out is None and resume is None:
        raise ConfigError("torchrun --max-restarts continues in the folder of the run; name that folder with --out")
    if restarts and resume is None and out is not None:
        return (_HERE, False) if RunFolder(out).is_run else (None, overwrite)
    return resume, overwrite


def _count(name: str) -> int:
    """An environment variable that contains a number; 0 if it is not set."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _train(
    plan: _RunPlan,
    sources: list[SettingsSource],
    backend: AbstractBackend,
    group: Group,
    deadline: float | None,
    *,
    overwrite: bool,
) -> None:
    """Train as planned, together with the other processes."""
    config, folder, saved = plan.config, plan.folder, plan.saved
    show = shown_by(group)
    try:
        moved = _typed_settings(sources).get("data_dir") if plan.goes_on else None
        data = group.one_by_one(lambda: load_data(config, show.loading, moved, plan.goes_on))
        group.compare_data(data.contents)
        for note in data.dataset.notes:
            show.note(note)
        if not plan.goes_on:
            check_typed_labels(config, data.inputs, sources[-1].values)
        task = build_task(config, data.inputs, backend, len(data.train), group)
        if frozen := describe_frozen(task.network, task.trainer.frozen):
            show.note(frozen)
        first = None
        if group.leads:
            warn_of_blank(config.dataset, data.inputs.coding, data.splits(), show, config.test_on)
            warn_of_trained_tests(config, data, show)
            for flush in own_flushes(config) if saved is None else ():
                show.warn(flush)
            if saved is None:
                # Before anything is written or removed: weights may be unusable, and memory may not suffice.
                first = first_state(task, data)
                if config.init_from:
                    warn_of_other_settings(config, show)
                    warn_of_borrowed_tests(config, data, backend, show)
        held = folder.lock(make=not plan.existed) if group.leads else contextlib.nullcontext()
        # All processes follow the clock of rank 0.
        with held, stop_on_signals(deadline if group.leads else None) as stop:
            if group.leads:
                saved = _begin(plan, task, data, show, overwrite=overwrite)
            group.advise(f"; the last checkpoint is untouched. Continue with: {_resume_command(folder)}")
            try:
                outcome = train(task, data, folder, show, stop, saved, first)
            except Stopped as stopped:
                show.close()
                if group.leads:
                    with contextlib.suppress(OSError):
                        say(f"{stopped} and saved. Continue with: {_resume_command(folder)}", err=True)
                sys.exit(stopped.exit_code)
    finally:
        show.close()
    if group.leads:
        _result(folder, outcome, task.network, show)


def _begin(plan: _RunPlan, task: Task, data: Data, show: Reporter, *, overwrite: bool) -> Checkpoint | None:
    """Begin or continue the run in its folder, which is locked. Returns the checkpoint to continue from."""
    config, folder, saved = plan.config, plan.folder, plan.saved
    # Loading takes time, and another process may have trained here meanwhile.
    if saved is not None:
        run_config = folder.read_config()
        # A checkpoint that is refused must leave all files as they are.
        resumed(run_config, task, data, checkpoint.load(folder.path, "last"), folder)
        if (config.epochs, config.patience) != (run_config.epochs, run_config.patience):
            _extend(folder, run_config, config, show)
        saved = checkpoint.load(folder.path, "last")
    elif plan.begun != _begun(folder):
        raise FileError(f"another process has begun a run in {folder.path} meanwhile; choose another --out")
    if saved is None:
        folder.write_config(config, overwrite=overwrite)
    step = 0 if saved is None else int(saved.info["step"])
    if folder.note_start(task.backend, sys.argv, step, task.group.size):
        show.warn(f"{folder.environment} was damaged and is begun anew, so it does not show earlier starts")
    if saved is None:
        return None
    progress = checkpoint.progress_of(saved, folder.path)
    if progress.epoch >= config.epochs:
        show.note(
            f"{folder.path} is finished: all {config.epochs} epochs are done. Its result follows. To "
            "train it longer, give a larger --epochs"
        )
    elif is_over(config, progress):
        assert progress.best is not None
        show.note(
            f"{folder.path} is finished: it ended {why_early(config, progress.epoch, progress.best.model_dump())}. "
            "Its result follows. To train it longer, give a larger --patience, or --patience 0"
        )
    else:
        show.note(f"continuing {folder.path} after update {saved.info['step']}")
    return saved


def _new_folder(dataset: str) -> Path:
    """`runs/DATASET-DATE-TIME`. For `folder:PATH` and `sequences:PATH`, the last part of the path, without colons."""
    named = named_path(dataset)
    name = dataset.replace(":", "-") if named is None else named[1].stem
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _run_to_resume(resume: str, out: Path | None) -> tuple[RunFolder, Checkpoint | None]:
    """The folder to continue in, and its checkpoint; None if the run has not written one."""
    if resume == _HERE and out is None:
        raise ConfigError("--resume needs to know the run: --resume RUN or --out RUN --resume")
    if resume != _HERE and out is not None and Path(resume) != out:
        raise ConfigError(f"--resume {resume} and --out {out} name different runs; give one of them")
    folder = RunFolder(out if resume == _HERE and out is not None else Path(resume))
    if resume != _HERE:
        folder.read_config()
    if not folder.has_checkpoint:
        return folder, None
    return folder, checkpoint.load(folder.path, "last")


def _resumed(folder: RunFolder, sources: list[SettingsSource]) -> RunConfig:
    """The settings of a run, with those settings of `sources` that do not change its result.

    Raises:
        ConfigError: settings would change the result. The message names all of them.
    """
    config = folder.read_config()
    run_settings = SettingsSource(str(folder.config), config.model_dump())
    # This checks names and domains of the requested settings, and reads the file that `net` may name.
    meant = resolve([run_settings, *sources], with_preset=False)
    epochs = max(config.epochs, meant.epochs)
    extended = config.model_copy(update={"epochs": epochs})
    changes = {
        key: value for key, value in _typed_settings(sources).items() if getattr(meant, key) != getattr(extended, key)
    }
    if changed := differences(extended, changes):
        raise ConfigError(
            f"the run in {folder.path} was begun with other settings; to continue it, leave these out "
            "(only --epochs may grow), or begin a new run:\n" + "\n".join(f"  {line}" for line in changed)
        )
    free = SettingsSource("command line", {key: value for key, value in changes.items() if key in FREE})
    return resolve([run_settings, SettingsSource("command line", {"epochs": epochs}), free], with_preset=False)


def _extend(folder: RunFolder, run_config: RunConfig, config: RunConfig, show: Reporter) -> None:
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
        show.note(f"{config.epochs} epochs instead of {run_config.epochs}{rate}")
    if config.patience != run_config.patience:
        show.note(f"patience {config.patience or 'off'} instead of {run_config.patience or 'off'}")


def _typed_settings(sources: list[SettingsSource]) -> dict[str, Any]:
    return {key: value for source in sources for key, value in source.values.items()}


def _resume_command(folder: RunFolder) -> str:
    """The command that continues the run."""
    chosen: Globals = click.get_current_context().obj
    return shlex.join([program(), *chosen.words, "train", "--resume", click.format_filename(as_argument(folder.path))])


def _result(folder: RunFolder, outcome: Outcome, network: NetworkSpec, show: Reporter) -> None:
    test, best = outcome.test, outcome.best
    nearest, counted = decoders(network.has_readout)
    if not test:
        click.echo("no test set (--no-test): nothing was tested")
    elif "accuracy" not in test:
        click.echo(
            f"test precision {test['precision']:.2%}, recall {test['recall']:.2%}, F1 {test['f1']:.2%} "
            f"(spike times within {TOLERANCE} step), loss {test['loss']:.4f}, {test['samples']} samples"
        )
    else:
        click.echo(
            f"test accuracy {test['accuracy']:.2%} ({nearest}), {test['accuracy_spike_count']:.2%} "
            f"({counted}), loss {test['loss']:.4f}, {test['samples']} samples"
        )
        if "f1" in test:
            click.echo(
                f"outputs follow their label sequence with F1 {test['f1']:.2%} (spikes within {TOLERANCE} step), "
                f"Hamming distance {test['hamming']:.4g}"
            )
    click.echo(f"best checkpoint: epoch {best['epoch']}, by {best['by']} {best['value']:.4g}")
    path = click.format_filename(folder.path)
    # If there is no test set, `evaluate` must be told which samples to use.
    split = [] if test else ["--split", "validation" if best["by"].startswith("validation") else "train"]
    evaluate = [program(), "evaluate", click.format_filename(as_argument(folder.path)), *split]
    say(f"run {path}: {shlex.join(evaluate)}")
