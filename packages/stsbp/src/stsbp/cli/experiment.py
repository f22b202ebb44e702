"""`stsbp experiment`: a preset over seeds, and its table."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from stsbp.cli import COMMANDS
from stsbp.cli.common import choose_backend, deadline_in, limit_threads, say, stop_after
from stsbp.cli.settings import SettingsCommand, complete_data_set, complete_experiment, given_settings, settings
from stsbp.config import RunConfig, Source, absolute, named_preset, resolve
from stsbp.datasets import DATASETS, Dataset
from stsbp.datasets.registry import named_path
from stsbp.errors import ConfigError, did_you_mean
from stsbp.experiment.run import Experiment, with_validation
from stsbp.experiment.table import document, markdown
from stsbp.presets import PRESETS
from stsbp.training.build import check_neuron_settings, load_dataset, own_flushes
from stsbp.training.initial import pinned
from stsbp.training.loop import Stopped, stop_on_signals
from stsbp.training.progress import reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.tensorboard import require

__all__ = ["command"]


@click.command("experiment", cls=SettingsCommand, short_help=COMMANDS["experiment"])
@click.argument("name", shell_complete=complete_experiment)
@click.option(
    "--seeds", default=5, show_default=True, type=click.IntRange(1, 10**6), help="How many, from --seed upwards."
)
@click.option("--dataset", help="Another data set that the preset fits.", shell_complete=complete_data_set)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the experiment.  [default: runs/NAME-seeds]")
@click.option("--overwrite", is_flag=True, help="Replace the runs of an earlier experiment in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@stop_after
@settings
def command(
    name: str,
    seeds: int,
    dataset: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    stop_after: float | None,
    **flags: Any,
) -> None:
    """Train the preset NAME (see stsbp presets; or a data set) with several seeds and write a table.

    What was stopped, by Ctrl-C or by a kill, goes on when the same command is given again; with more --seeds it adds
    them. A tenth of the training samples chooses the epoch that is reported, or as many as --validation says (0: the
    last epoch is reported); the test set chooses nothing. All options of stsbp train may change the preset, and the
    table says so. It is printed, and written to experiment.md and experiment.json in the folder.
    """
    deadline = deadline_in(stop_after)
    given = given_settings(flags)
    base, config = map(absolute, _configs(name, dataset, given))
    if not config.test:
        raise ConfigError("the table of an experiment is of test samples: leave test = false (--no-test) out")
    config = pinned(config)
    check_neuron_settings(config, given)
    path = out or _default_folder(name)
    if config.tensorboard:
        require()
    limit_threads(config.threads)
    backend = choose_backend(click.get_current_context().obj)
    for flush in own_flushes(config):
        say(f"warning: {flush}", err=True)
    data = _load(config)
    if "validation" not in given:
        config = with_validation(config, data)
    chosen = tuple(range(config.seed, config.seed + seeds))
    experiment = Experiment.open(path, config, chosen, data, overwrite=overwrite)
    network = experiment.task(config.seed, backend).network
    results: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    folder = RunFolder(path)
    with folder.lock(), stop_on_signals(deadline) as stop:
        if overwrite:
            experiment.clear(folder.files)
        try:
            for result in experiment.results(backend, stop, folder.files):
                results.append(result)
                found = document(name, PRESETS.get(name), base, experiment, network, results, _typed())
                folder.files.write(experiment.json.name, _json(found).encode())
                folder.files.write(experiment.table.name, markdown(found).encode())
        except Stopped as stopped:
            _leave(stopped, f"in seed {chosen[len(results)]}", f"{len(results)} of {seeds} seeds are done")
    say(_json(found) if as_json else markdown(found), nl=False)
    with contextlib.suppress(OSError):
        say(f"written to {experiment.table} and {experiment.json}", err=True)


def _default_folder(name: str) -> Path:
    """`runs/NAME-seeds`, so that it is not where `stsbp train --out runs/NAME` puts a run.

    An experiment from when it was `runs/NAME` goes on there.
    """
    before = Path("runs") / name.replace("/", "-").replace(":", "-")
    path = before.with_name(f"{before.name}-seeds")
    return before if not path.exists() and any(before.glob("seed-*/config.toml")) else path


def _configs(name: str, dataset: str | None, given: dict[str, Any]) -> tuple[RunConfig, RunConfig]:
    """The settings of the preset, and those of the runs."""
    named = _named(name, dataset)
    other = {} if dataset is None else {"dataset": dataset}
    # The test samples are looked at when a run is over.
    rule = Source("experiment", {"test_every": 0})
    return resolve([named]), resolve([named, rule, Source("command line", {**other, **given})])


def _load(config: RunConfig) -> Dataset:
    show = reporter()
    try:
        data = load_dataset(config, show.loading)
        for note in data.notes:
            show.note(note)
        return data
    finally:
        show.close()


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _typed() -> list[str]:
    """What was typed, with the program's name instead of its path."""
    return ["stsbp", *sys.argv[1:]]


def _leave(stopped: Stopped, where: str, done: str) -> NoReturn:
    again = shlex.join(word for word in _typed() if word != "--overwrite")
    with contextlib.suppress(BrokenPipeError):
        say(f"{stopped} {where}, all is saved; {done}. Go on with: {again}", err=True)
    sys.exit(stopped.exit_code)


def _named(name: str, dataset: str | None) -> Source:
    """The settings that a preset or a data set of this name stands for.

    Raises:
        ConfigError: there is neither, or `dataset` does not fit it.
    """
    if name in PRESETS:
        named_preset(name, dataset)
        return named_preset(name, None)
    if name not in DATASETS and named_path(name) is None:
        known = [*PRESETS, *DATASETS]
        raise ConfigError(
            f"unknown experiment {name!r}{did_you_mean(name, known)}; presets and data sets: {', '.join(known)}"
        )
    if dataset not in (None, name):
        raise ConfigError(f"{name} is a data set: leave --dataset {dataset} out, or name a preset")
    return Source(f"preset {name}", {"dataset": name})
