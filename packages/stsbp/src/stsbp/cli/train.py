"""`stsbp train`: reads the options, starts further processes, and prints the result. `stsbp.train` trains in Python."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    OptionalPaths,
    choose_backend,
    deadline_in,
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
from stsbp.config import SettingsSource, to_toml
from stsbp.datasets.registry import is_known
from stsbp.errors import ConfigError
from stsbp.files import as_argument
from stsbp.processes.group import join
from stsbp.threads import limit_threads
from stsbp.training.build import TOLERANCE, decoders
from stsbp.training.execute import Caller, execute
from stsbp.training.loop import Outcome, Stopped, stop_on_signals
from stsbp.training.plan import SAME, check_resume, plan_run, settings_sources, shared, typed_settings
from stsbp.training.progress import group_reporter
from stsbp.training.regression_text import errors_text
from stsbp.training.run_folder import RunFolder

__all__ = ["command"]


class _Train(OptionalPaths, SettingsCommand):
    """The command."""


@click.command("train", cls=_Train, short_help=COMMANDS["train"])
@click.argument("dataset", required=False, shell_complete=complete_data_set)
@click.option("--out", type=PathName(path_type=Path), help="Folder of the run.  [default: runs/DATASET-DATE-TIME]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=SAME,
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
    (recordings of events), sequences:PATH (spike rasters) or hf:PATH (a data set of Hugging Face on the disk).

    Settings come from five places: the defaults shown below, the default settings of the data set (see `stsbp datasets
    NAME`), --preset, --config, and the options. Each place overrides the places before it.
    """
    options: Globals = click.get_current_context().obj
    deadline = deadline_in(stop_after)
    if resume is not None and is_known(resume) and dataset is None and out is not None:
        # `--resume digits --out RUN`: the name of the data set was taken for a folder.
        dataset, resume = resume, SAME
    given_options = given_settings(flags)
    if dataset is not None:
        given_options["dataset"] = dataset
    sources = settings_sources("command line", given_options, preset_name, file)
    check_resume(resume, overwrite=overwrite)
    typed = {"out": out and str(out), "resume": resume, "overwrite": overwrite or None}
    resume, overwrite = _after_restart(resume, out, overwrite)

    rendezvous = None if show_config else meeting(processes, rank_timeout, _threads(sources))
    begin = partial(plan_run, sources, out, resume, overwrite, allow_imports=allow_imports)
    plan = None if rendezvous is not None else begin(show_config=show_config)
    if show_config:
        assert plan is not None
        click.echo(to_toml(plan.config), nl=False)
        return
    limit_threads(_threads(sources) if plan is None else plan.config.threads)
    backend = choose_backend(options, rendezvous)
    with join(backend, rendezvous, rank_timeout) as group:
        group.compare_settings({**typed_settings(sources), **{name: x for name, x in typed.items() if x is not None}})
        if plan is None and group.leads:
            plan = begin()
        plan = shared(plan, group, sources)
        if rendezvous is not None:
            # The threads of the resumed run were not known before.
            limit_threads(plan.config.threads)
        caller = Caller(sys.argv, _resume_command, partial(stop_on_signals, deadline if group.leads else None))
        try:
            # All processes follow the clock of rank 0.
            outcome, task = execute(plan, sources, backend, group, group_reporter(group), caller, overwrite=overwrite)
        except Stopped as stopped:
            if group.leads:
                with contextlib.suppress(OSError):
                    say(f"{stopped} and saved. Continue with: {_resume_command(plan.folder)}", err=True)
            sys.exit(stopped.exit_code)
    if group.leads:
        _result(plan.folder, outcome, has_readout=task.network.has_readout)


def _threads(sources: list[SettingsSource]) -> int:
    """The requested number of threads; 0: not requested."""
    threads = typed_settings(sources).get("threads", 0)
    return threads if isinstance(threads, int) else 0


def _after_restart(resume: str | None, out: Path | None, overwrite: bool) -> tuple[str | None, bool]:
    """The effective `--resume` and `--overwrite`. A run that torchrun restarts continues from its checkpoint.

    Raises:
        ConfigError: torchrun may restart the run, and would then not find its folder.
    """
    restarts, max_restarts = (_count(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if max_restarts and out is None and resume is None:
        raise ConfigError("torchrun --max-restarts continues in the folder of the run; name that folder with --out")
    if restarts and resume is None and out is not None:
        return (SAME, False) if RunFolder(out).is_run else (None, overwrite)
    return resume, overwrite


def _count(name: str) -> int:
    """An environment variable that contains a number; 0 if it is not set."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _resume_command(folder: RunFolder) -> str:
    """The command that continues the run."""
    chosen: Globals = click.get_current_context().obj
    return shlex.join([program(), *chosen.words, "train", "--resume", click.format_filename(as_argument(folder.path))])


def _result(folder: RunFolder, outcome: Outcome, *, has_readout: bool) -> None:
    test, best = outcome.test, outcome.best
    rule, count_rule = decoders(has_readout)
    if not test:
        click.echo("no test set (--no-test): nothing was tested")
    elif "regression" in test:
        errors = errors_text(test["regression"])
        click.echo(f"test {errors}, loss {test['loss']:.6g}, {test['samples']} samples")
    elif "accuracy" not in test:
        click.echo(
            f"test precision {test['precision']:.2%}, recall {test['recall']:.2%}, F1 {test['f1']:.2%} "
            f"(spike times within {TOLERANCE} step), loss {test['loss']:.4f}, {test['samples']} samples"
        )
    else:
        click.echo(
            f"test accuracy {test['accuracy']:.2%} ({rule}), {test['accuracy_spike_count']:.2%} "
            f"({count_rule}), loss {test['loss']:.4f}, {test['samples']} samples"
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
