"""`stsbp train`: settings from preset, file and flags; a run folder; the loop."""

from __future__ import annotations

import contextlib
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, Globals
from stsbp.cli.common import choose_backend, deadline_in, limit_threads, say, stop_after
from stsbp.cli.settings import SettingsCommand, complete_data_set, complete_preset, given_settings, settings
from stsbp.config import (
    FREE,
    RunConfig,
    Source,
    absolute,
    differences,
    named_preset,
    read_toml,
    resolve,
    split_start,
    to_toml,
)
from stsbp.datasets import DATASETS
from stsbp.datasets.registry import named_path
from stsbp.errors import ConfigError, FileError
from stsbp.files import real
from stsbp.training import checkpoint
from stsbp.training.build import TOLERANCE, build_task, check_neuron_settings, load_data, own_flushes
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.initial import borrowed_weights, pinned
from stsbp.training.loop import Outcome, Stopped, stop_on_signals, train
from stsbp.training.overlap import warn_of_borrowed_tests, warn_of_trained_tests
from stsbp.training.progress import Reporter, reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.tensorboard import require

__all__ = ["command"]

_HERE = ""
"""What `--resume` without a folder gives: the folder of `--out`."""


@click.command("train", cls=SettingsCommand, short_help=COMMANDS["train"])
@click.argument("dataset", required=False, shell_complete=complete_data_set)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/DATASET-DATE-TIME]")
@click.option("--resume", is_flag=False, flag_value=_HERE, metavar="[RUN]", help="Continue RUN, or the run in --out.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option(
    "--preset",
    "preset_name",
    metavar="NAME",
    help="Settings of a published experiment: see stsbp presets.",
    shell_complete=complete_preset,
)
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Settings in TOML.")
@click.option("--show-config", is_flag=True, help="Print the settings as TOML and do nothing else.")
@stop_after
@settings
def command(
    dataset: str | None,
    out: Path | None,
    resume: str | None,
    overwrite: bool,
    preset_name: str | None,
    file: Path | None,
    show_config: bool,
    stop_after: float | None,
    **flags: Any,
) -> None:
    """Train a network on DATASET.

    Classes: digits, digits-events, nmnist, nmnist-sim, cifar10, images or folder:PATH. Spike trains as labels:
    patterns, patterns-image, motor, or your own in sequences:PATH.

    Settings come from the preset of the data set, then --preset, then --config, then the options below. The defaults
    shown are those without a preset; --show-config shows what a run would take.
    """
    ctx, deadline = click.get_current_context(), deadline_in(stop_after)
    if resume is not None and resume in DATASETS and dataset is None and out is not None:
        # `--resume digits --out RUN`: the name of the data set stood where a folder may stand.
        dataset, resume = resume, _HERE
    given = given_settings(flags)
    if dataset is not None:
        given["dataset"] = dataset
    sources = ([read_toml(file)] if file is not None else []) + [Source("command line", given)]
    if preset_name is not None:
        named = next((str(s.values["dataset"]) for s in reversed(sources) if "dataset" in s.values), None)
        sources.insert(0, named_preset(preset_name, named))

    if resume is not None and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it; give one of them")
    folder, saved = None, None
    if resume is not None:
        folder, saved = _run_to_resume(resume, out)
    if folder is not None and folder.is_run:
        config = _resumed(folder, sources)
    else:
        config = pinned(absolute(resolve(sources)))
        check_neuron_settings(config, given)
        folder = folder or RunFolder(out or _new_folder(config.dataset))
    if show_config:
        click.echo(to_toml(config), nl=False)
        return
    if saved is None and not folder.is_free and not overwrite and not (resume is not None and folder.is_run):
        raise FileError(
            f"{folder.path} exists and is not empty; continue that run with --resume, replace it with --overwrite, or "
            "choose another --out"
        )
    if overwrite and config.init_from and real(split_start(config.init_from)[0]) == real(folder.path):
        raise ConfigError(f"--overwrite would remove the run that --init-from {config.init_from} begins with")
    if config.tensorboard:
        require()
    description = folder.path / "last.json"
    begun, there = (folder.is_free, description.exists()), folder.path.exists()
    folder.check_writable()
    limit_threads(config.threads)
    backend = choose_backend(ctx.obj)
    show = reporter()
    try:
        moved = _asked(sources).get("data_dir") if saved is not None else None
        data = load_data(config, show.loading, moved, saved is not None)
        for note in data.dataset.notes:
            show.note(note)
        warn_of_trained_tests(config, data, show)
        task = build_task(config, data.inputs, backend, len(data.train))
        for flush in own_flushes(config) if saved is None else ():
            show.warn(str(flush))
        if saved is None and config.init_from:
            # Before anything is written or removed.
            borrowed_weights(task.network, config)
            warn_of_borrowed_tests(config, data, backend, show)
        with folder.lock(make=not there), stop_on_signals(deadline) as stop:
            # Loading takes time: another process may have trained here meanwhile.
            if saved is not None:
                _extend(folder, config, show)
                saved = checkpoint.load(folder.path, "last")
            elif begun != (folder.is_free, description.exists()):
                raise FileError(f"another process has begun a run in {folder.path} meanwhile; choose another --out")
            if saved is None:
                if overwrite and not folder.is_free:
                    folder.clear()
                folder.write_config(config)
            folder.note_start(backend, sys.argv, 0 if saved is None else int(saved.info["step"]))
            if saved is not None:
                if checkpoint.progress_of(saved, folder.path).epoch >= config.epochs:
                    show.note(
                        f"{folder.path} is finished, all {config.epochs} epochs of it: what follows is its result; a "
                        "larger --epochs trains it longer"
                    )
                else:
                    show.note(f"continuing {folder.path} after update {saved.info['step']}")
            try:
                outcome = train(task, data, folder, show, stop, saved)
            except Stopped as stopped:
                show.close()
                _leave(folder, stopped)
    finally:
        show.close()
    _result(folder, outcome, show)


def _new_folder(dataset: str) -> Path:
    """`runs/DATASET-DATE-TIME`; of `folder:PATH` and `sequences:PATH` the last part of the path."""
    named = named_path(dataset)
    name = dataset if named is None else named[1].stem
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _run_to_resume(resume: str, out: Path | None) -> tuple[RunFolder, Checkpoint | None]:
    """The folder to continue in and its checkpoint; None where the run has not come to its first one."""
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


def _resumed(folder: RunFolder, sources: list[Source]) -> RunConfig:
    """The settings of a run, with those of `sources` that do not change its result.

    Raises:
        ConfigError: a setting would change the result; names all that would.
    """
    config = folder.read_config()
    own = Source(str(folder.config), config.model_dump())
    # Checks names and domains of what is asked for.
    epochs = max(config.epochs, resolve([own, *sources], with_preset=False).epochs)
    asked = _asked(sources)
    extended = config.model_copy(update={"epochs": epochs})
    if changed := differences(extended, asked):
        raise ConfigError(
            f"the run in {folder.path} was begun with other settings; leave these out to continue it (--epochs may "
            "grow), or begin anew:\n" + "\n".join(f"  {line}" for line in changed)
        )
    free = Source("command line", {key: value for key, value in asked.items() if key in FREE})
    return resolve([own, Source("command line", {"epochs": epochs}), free], with_preset=False)


def _extend(folder: RunFolder, config: RunConfig, show: Reporter) -> None:
    """Let the run have as many epochs as `config` has; the file of its settings is where that happens."""
    own = folder.read_config()
    if config.epochs == own.epochs:
        return
    # A checkpoint must say of how many epochs it was before the run has more.
    for name in ("best", "last"):
        if (folder.path / f"{name}.json").exists():
            checkpoint.note_epochs(folder.files, name, own.epochs)
    folder.write_config(own.model_copy(update={"epochs": config.epochs}))
    rate = ": from here on the learning rate is that of the longer schedule" if config.schedule == "cosine" else ""
    show.note(f"{config.epochs} epochs instead of {own.epochs}{rate}")


def _asked(sources: list[Source]) -> dict[str, Any]:
    return {key: value for source in sources for key, value in source.values.items()}


def _leave(folder: RunFolder, stopped: Stopped) -> None:
    chosen: Globals = click.get_current_context().obj
    named = {"--backend": chosen.backend, "--device": chosen.device}
    words = [word for name, value in named.items() if value is not None for word in (name, value)]
    how = shlex.join(["stsbp", *words, "train", "--resume", click.format_filename(folder.path)])
    with contextlib.suppress(BrokenPipeError):
        say(f"{stopped} and saved. Continue with: {how}", err=True)
    sys.exit(stopped.exit_code)


def _result(folder: RunFolder, outcome: Outcome, show: Reporter) -> None:
    test, best = outcome.test, outcome.best
    if not test:
        click.echo("no test set (--no-test): nothing was tested")
    elif "f1" in test:
        click.echo(
            f"test precision {test['precision']:.2%}, recall {test['recall']:.2%}, F1 {test['f1']:.2%} "
            f"(spike times within {TOLERANCE} step), loss {test['loss']:.4f}, {test['samples']} samples"
        )
    else:
        click.echo(
            f"test accuracy {test['accuracy']:.2%} (nearest label sequence), {test['accuracy_spike_count']:.2%} "
            f"(spike count), loss {test['loss']:.4f}, {test['samples']} samples"
        )
    click.echo(f"best checkpoint: epoch {best['epoch']}, by {best['by']} {best['value']:.4g}")
    path = click.format_filename(folder.path)
    # Where there is no test set, `evaluate` must be told of samples that there are.
    split = [] if test else ["--split", "validation" if best["by"].startswith("validation") else "train"]
    say(f"run {path}: {shlex.join(['stsbp', 'evaluate', path, *split])}")
