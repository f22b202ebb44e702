"""`stsbp sweep`: varies settings over many runs, and shows which values are best. `stsbp.sweep` does so in Python."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import MOST_PROCESSES, Choice, choose_backend, deadline_in, meeting, program, say, stop_after
from stsbp.cli.energy import energy_table_option
from stsbp.cli.settings import SettingsCommand, complete_data_set, complete_experiment, given_settings, settings
from stsbp.config import RunConfig
from stsbp.errors import ConfigError
from stsbp.sweeps.methods import PRUNERS, SAMPLERS, TrialHeartbeat, check_optuna
from stsbp.sweeps.objectives import OBJECTIVES
from stsbp.sweeps.worker import TRIALS, SweepRequest, plan_sweep, run_sweep
from stsbp.threads import limit_threads
from stsbp.training.loop import Stopped, stop_on_signals
from stsbp.training.progress import PlainReporter, choose_reporter

__all__ = ["command"]


@click.command("sweep", cls=SettingsCommand, short_help=COMMANDS["sweep"])
@click.argument("name", required=False, shell_complete=complete_experiment)
@click.option(
    "--vary",
    "vary",
    multiple=True,
    metavar="NAME=VALUES",
    help="Vary the setting NAME. VALUES is a range LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int or LOW:HIGH:STEP, or a list "
    "A,B,C. Write A;B;C if values contain commas. You can give this option several times.",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME",
    help="Figure to optimise on the validation samples: "
    + ", ".join(OBJECTIVES)
    + ". Give this option several times for a Pareto front.  [default: accuracy, f1 or mse, as the labels are]",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 10**6),
    help=f"Number of trials. A larger number continues a finished sweep.  [default: {TRIALS}; with --sampler grid, all "
    "points of the grid]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    show_default=True,
    help="Train this many trials at the same time, each in its own process.",
)
@click.option(
    "--sampler",
    type=Choice(SAMPLERS),
    help="How values are chosen.  [default: tpe for one objective, nsga2 for several]",
)
@click.option(
    "--pruner",
    type=Choice(PRUNERS),
    default="none",
    show_default=True,
    help="How trials that do worse than others are ended early.",
)
@click.option(
    "--sampler-seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the sampler. All trials have the same --seed, unless it is varied.",
)
@click.option("--out", type=PathName(path_type=Path), help="Folder of the sweep.  [default: runs/NAME-sweep]")
@click.option(
    "--storage",
    metavar="FILE|URL",
    help="Where the trials are stored, for several machines: the file of a journal, or the URL of a database.  "
    "[default: study.db in the folder of the sweep]",
)
@click.option("--study", metavar="NAME", help="Name of the study in the storage.  [default: NAME-sweep]")
@click.option(
    "--heartbeat",
    type=click.IntRange(1, 10**6),
    default=TrialHeartbeat().interval,
    show_default=True,
    metavar="SECONDS",
    help="Record in the database this often that a trial is running. Other machines begin it anew after three times "
    "this time without a record.",
)
@click.option(
    "--dataset", help="Use this data set instead of the data set of the preset.", shell_complete=complete_data_set
)
@energy_table_option("Energy of operations for the objective energy.")
@click.option(
    "--table",
    "only_table",
    is_flag=True,
    help="Train nothing. Show the trials of the sweep in the folder NAME, or in --storage, from the storage alone.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV.")
@stop_after
@partial(settings, defaults={"validation": "one tenth of the training samples"})
def command(
    name: str | None,
    vary: tuple[str, ...],
    objectives: tuple[str, ...],
    trials: int | None,
    jobs: int,
    sampler: str | None,
    pruner: str,
    sampler_seed: int,
    out: Path | None,
    storage: str | None,
    study: str | None,
    heartbeat: int,
    dataset: str | None,
    energy_table: str | None,
    only_table: bool,
    as_csv: bool,
    stop_after: float | None,
    **flags: Any,
) -> None:
    """Train NAME many times with different settings, and show which values are best on the validation samples.

    NAME is a data set or a preset. The sampler of Optuna chooses the values of the settings that --vary names. All
    other options of `stsbp train` are the same in all trials. This needs pip install "stsbp[sweep]".

    If the command is stopped or killed, repeat it to continue. Every trial is a run in the folder of the sweep. Unless
    you give --validation, one tenth of the training samples is held out for validation. Test samples are never used to
    choose a value.

    The command prints a table of all trials and the command that trains the best one again. It also writes trials.csv
    and sweep.html into the folder of the sweep. With --table, NAME is the folder of an earlier sweep.
    """
    check_optuna()
    beat = TrialHeartbeat(heartbeat)
    if only_table:
        _show_stored(name, storage, study, as_csv=as_csv)
        return
    if name is None:
        raise ConfigError("name a data set or a preset, for example: stsbp sweep digits --vary tau_m=4:16:log")
    options: Globals = click.get_current_context().obj
    deadline = deadline_in(stop_after)
    request = SweepRequest(
        name,
        [_pair(text) for text in vary],
        objectives,
        out,
        trials,
        jobs,
        sampler,
        pruner,
        sampler_seed,
        storage,
        study,
        dataset,
        energy_table,
        beat,
        given_settings(flags),
    )
    rendezvous = meeting(None, 1.0, 0)
    if rendezvous is not None:
        raise ConfigError(
            f"a sweep starts its own processes and cannot use those of {rendezvous.launcher}; start it without them"
        )
    plan = plan_sweep(request, choose_reporter())
    limit_threads(plan.config.threads)
    choose_backend(options)
    try:
        view = run_sweep(plan, options.words, PlainReporter(sys.stderr).note, partial(stop_on_signals, deadline))
    except Stopped as stopped:
        again = shlex.join([program(), *sys.argv[1:]])
        with contextlib.suppress(OSError):
            say(f"{stopped} and saved everything. Continue with: {again}", err=True)
        sys.exit(stopped.exit_code)
    _show(view, as_csv=as_csv)
    with contextlib.suppress(OSError):
        say(f"written to {plan.path / 'trials.csv'} and {plan.path / 'sweep.html'}", err=True)


def _pair(text: str) -> tuple[str, str]:
    name, separator, values = text.partition("=")
    if not separator or not name.strip() or not values.strip():
        raise ConfigError(f"--vary {text!r}: write NAME=VALUES, for example tau_m=4:16:log or threshold=0.5,1")
    return name, values


def _show_stored(name: str | None, storage: str | None, study: str | None, *, as_csv: bool) -> None:
    # Optuna takes half a second to import.
    from stsbp.sweeps.stored import stored_sweep

    if name is None and storage is None:
        raise ConfigError("name the folder of the sweep, or its --storage")
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in (*RunConfig.model_fields, "vary", "trials", "out")}
    typed = [key for key, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if typed:
        raise ConfigError(f"--table trains nothing; leave --{typed[0].replace('_', '-')} out")
    view = stored_sweep(
        None if name is None else Path(name), storage, study, lambda text: say(f"warning: {text}", err=True)
    )
    _show(view, as_csv=as_csv)


def _show(view: Any, *, as_csv: bool) -> None:
    """Print the trials, and how to train the best ones again."""
    if as_csv:
        click.echo(view.csv(), nl=False)
        return
    text = io.StringIO()
    if sys.stdout.isatty():
        view.print_table(sys.stdout)
    else:
        view.print_table(text)
        click.echo(text.getvalue(), nl=False)
    say(f"{len(view.rows)} trials: {view.counts}")
    for row in view.best:
        say(f"trial {row.number} again: {view.command(row, program())}")
