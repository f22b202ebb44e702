"""`stsbp experiment`: trains a preset with several seeds, and makes a table of the results."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from stsbp_spec.engine.backend import AbstractBackend

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import (
    MOST_PROCESSES,
    choose_backend,
    deadline_in,
    meeting,
    processes,
    program,
    say,
    stop_after,
)
from stsbp.cli.settings import SettingsCommand, complete_data_set, complete_experiment, given_settings, settings
from stsbp.config import RunConfig, SettingsSource, absolute, resolve
from stsbp.datasets import Dataset
from stsbp.errors import ConfigError
from stsbp.experiment.jobs import SideBySide
from stsbp.experiment.run import Experiment, experiment_settings, with_validation
from stsbp.experiment.table import document, markdown
from stsbp.presets import PRESETS
from stsbp.processes.group import Group, join
from stsbp.threads import limit_threads
from stsbp.training.blank import warn_of_blank
from stsbp.training.build import Inputs, check_typed, check_typed_labels, cut_validation, load_dataset, own_flushes
from stsbp.training.initial import pinned
from stsbp.training.loop import Stopped, first_state, stop_on_signals
from stsbp.training.overlap import warn_of_borrowed_tests, warn_of_other_settings, warn_of_trained_tests
from stsbp.training.progress import PlainReporter, group_reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.trackers import require_trackers

__all__ = ["command"]


@click.command("experiment", cls=SettingsCommand, short_help=COMMANDS["experiment"])
@click.argument("name", shell_complete=complete_experiment)
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    type=click.IntRange(1, 10**6),
    help="Number of seeds. The seeds are consecutive numbers that begin with --seed.",
)
@click.option(
    "--dataset", help="Use this data set instead of the data set of the preset.", shell_complete=complete_data_set
)
@click.option("--out", type=PathName(path_type=Path), help="Folder of the experiment.  [default: runs/NAME-seeds]")
@click.option("--overwrite", is_flag=True, help="Replace the runs of an earlier experiment in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    show_default=True,
    help="Train this many seeds at the same time, each in its own process.",
)
@stop_after
@processes
@partial(settings, defaults={"validation": "one tenth of the training samples"})
def command(
    name: str,
    seeds: int,
    dataset: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    jobs: int,
    stop_after: float | None,
    processes: int | None,
    rank_timeout: float,
    **flags: Any,
) -> None:
    """Train the preset NAME with several seeds and write a table of the results.

    NAME is a preset that `stsbp presets` lists, or a data set. If the command is stopped or killed, repeat it
    without --overwrite to continue. To add seeds, repeat the command with a larger --seeds.

    Unless you give --validation, one tenth of the training samples is held out for validation. The table reports the
    test results of the epoch with the best validation result. With --validation 0, the table reports the test results
    of the last epoch. The test set is never used to choose the reported epoch.

    You can also give options of `stsbp train`. They replace settings of the preset. The table lists the replaced
    settings. The command prints the table, and also writes it to experiment.md and experiment.json in the folder of the
    experiment.
    """
    options: Globals = click.get_current_context().obj
    deadline = deadline_in(stop_after)
    given_options = given_settings(flags)
    base, config = map(absolute, _configs(name, dataset, given_options))
    if not config.test:
        raise ConfigError(
            "the table of an experiment shows results on test samples; leave test = false (--no-test) out"
        )
    if config.seed + seeds > 2**32:
        raise ConfigError(
            f"--seed {config.seed} and --seeds {seeds} need seeds up to {config.seed + seeds - 1}, but the largest "
            f"possible seed is {2**32 - 1}; give a smaller --seed or --seeds"
        )
    config = pinned(config)
    check_typed(config, given_options)
    path = out or _default_folder(name)
    require_trackers(config)
    if jobs > 1:
        # Each seed has its own processes. This process only measures the trained networks.
        side_by_side = SideBySide(jobs, options.words, processes, rank_timeout, PlainReporter(sys.stderr).note)
    rendezvous = meeting(None if jobs > 1 else processes, rank_timeout, config.threads)
    if jobs > 1 and rendezvous is not None:
        raise ConfigError(
            f"--jobs starts its own processes and cannot use those of {rendezvous.launcher}; leave --jobs out"
        )
    limit_threads(config.threads)
    backend = choose_backend(options, rendezvous)
    with join(backend, rendezvous, rank_timeout) as group:
        experiment_options = {
            "name": name,
            "seeds": seeds,
            "out": str(path),
            "overwrite": overwrite,
            **config.model_dump(),
        }
        group.compare_settings(experiment_options)
        for flush in own_flushes(config) if group.leads else ():
            say(f"warning: {flush}", err=True)
        data = group.one_by_one(lambda: _load(config, group))
        check_typed_labels(config, Inputs.of(data), given_options)
        if "validation" not in given_options:
            config = with_validation(config, data)
        seed_range = tuple(range(config.seed, config.seed + seeds))
        if group.leads:
            experiment = Experiment.open(path, config, seed_range, data, overwrite=overwrite)
        else:
            experiment = Experiment(path, config, seed_range, cut_validation(data, config))
        group.compare_data(experiment.data.contents)
        task = experiment.task(config.seed, backend)
        network = task.network
        if group.leads and (config.init_from or overwrite):
            # Before anything is written or removed: weights may be unusable, and memory may not suffice.
            first_state(task, experiment.data)
        overlaps = _overlaps(experiment, backend, group) if group.leads else []
        results: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        folder = RunFolder(path)
        lock = folder.lock() if group.leads else contextlib.nullcontext()
        with lock, stop_on_signals(deadline if group.leads else None) as stop:
            open_folder = folder.files if group.leads else None
            if overwrite and open_folder is not None:
                experiment.clear(open_folder)
            group.barrier()
            try:
                if jobs > 1:
                    side_by_side.train(experiment, stop)
                for result in experiment.results(backend, stop, open_folder, group):
                    results.append(result)
                    summary = document(name, PRESETS.get(name), base, experiment, network, results, _typed(), overlaps)
                    folder.files.write(experiment.json.name, _json(summary).encode())
                    folder.files.write(experiment.table.name, markdown(summary).encode())
            except Stopped as stopped:
                if group.leads:
                    _print_stop(stopped, experiment, None if jobs > 1 else len(results))
                sys.exit(stopped.exit_code)
    if group.leads:
        say(_json(summary) if as_json else markdown(summary), nl=False)
        with contextlib.suppress(OSError):
            say(f"written to {experiment.table} and {experiment.json}", err=True)


def _default_folder(name: str) -> Path:
    """`runs/NAME-seeds`. It differs from `runs/NAME`, which `stsbp train --out runs/NAME` would use.

    An older experiment in `runs/NAME` continues there.
    """
    former_folder = Path("runs") / name.replace("/", "-").replace(":", "-")
    path = former_folder.with_name(f"{former_folder.name}-seeds")
    return former_folder if not path.exists() and any(former_folder.glob("seed-*/config.toml")) else path


def _configs(name: str, dataset: str | None, given_options: dict[str, Any]) -> tuple[RunConfig, RunConfig]:
    """The settings of the preset, and the settings of the runs."""
    named = experiment_settings(name, dataset)
    dataset_setting = {} if dataset is None else {"dataset": dataset}
    # Test samples are only used after a run is over.
    rule = SettingsSource("experiment", {"test_every": 0})
    return resolve([named]), resolve(
        [named, rule, SettingsSource("command line", {**dataset_setting, **given_options})]
    )


def _load(config: RunConfig, group: Group) -> Dataset:
    reporter = group_reporter(group)
    try:
        data = load_dataset(config, reporter.loading)
        for note in data.notes:
            reporter.note(note)
        return data
    finally:
        reporter.close()


def _overlaps(experiment: Experiment, backend: AbstractBackend, group: Group) -> list[str]:
    """Warn of test samples that the networks are trained on, blank data, and weights of other settings. Returns the
    warnings."""
    reporter, config, data = group_reporter(group), experiment.config, experiment.data
    try:
        return [
            *warn_of_blank(config.dataset, data.inputs.coding, data.splits(), reporter, config.test_on),
            *warn_of_trained_tests(config, data, reporter),
            *warn_of_other_settings(config, reporter),
            *warn_of_borrowed_tests(config, data, backend, reporter),
        ]
    finally:
        reporter.close()


def _json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def _typed() -> list[str]:
    """The typed words, with the program's name instead of its path."""
    return ["stsbp", *sys.argv[1:]]


def _print_stop(stopped: Stopped, experiment: Experiment, seeds_done: int | None) -> None:
    """Print where the experiment was stopped, and how to continue it.

    Args:
        stopped: the stop.
        experiment: the experiment.
        seeds_done: number of seeds with results; None: the seeds are trained side by side.
    """
    command = shlex.join([program(), *(word for word in sys.argv[1:] if word != "--overwrite")])
    seeds = experiment.seeds
    if seeds_done is None:
        trained = sum(experiment.reported(experiment.folder(seed)) is not None for seed in seeds)
        progress = f"{stopped} and saved everything; {trained} of {len(seeds)} seeds are trained"
    else:
        progress = (
            f"{stopped} in seed {seeds[seeds_done]} and saved everything; {seeds_done} of {len(seeds)} seeds are done"
        )
    with contextlib.suppress(OSError):
        say(f"{progress}. Continue with: {command}", err=True)
