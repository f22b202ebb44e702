"""`stsbp.sweep` and `stsbp.load_sweep`: sweeps in Python, with the trials, files and values of the command line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsbp_spec.registry import default_backend, open_backend
from stsbp_spec.validation import integer, real, shown

from stsbp.api.calls import flag, in_python, path_of
from stsbp.api.progress import warn_caller
from stsbp.api.settings import plain_settings
from stsbp.errors import ConfigError
from stsbp.sweeps.methods import TrialHeartbeat, check_optuna
from stsbp.sweeps.worker import SweepRequest, plan_sweep, run_sweep
from stsbp.training.loop import TIME_IS_UP, Stopped, stop_on_signals
from stsbp.training.progress import PlainReporter

if TYPE_CHECKING:
    from stsbp.sweeps.view import SweepView

__all__ = ["Sweep", "load", "run"]


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep.

    Attributes:
        folder: folder of the sweep, with its runs; None: only its storage was named.
        trials: a row for each trial, `pandas.DataFrame(sweep.trials)`: `trial`, `state`, the varied settings, the
            objectives, `epoch` (the best one), `seconds`, `run` (the folder of its run), `tries_again`, `reason`, and
            all other figures of its run.
        best: the finished trials that no other one beats, best first: for several objectives, the Pareto front.
        commands: for each of these, the command that trains it again, and tests the network.
        view: the same, as the command line shows it.
    """

    folder: Path | None
    trials: list[dict[str, Any]]
    best: list[dict[str, Any]]
    commands: list[str]
    view: SweepView = field(repr=False)

    @property
    def csv(self) -> str:
        """The trials as CSV, as `stsbp sweep --csv` prints them."""
        return self.view.csv()

    def __repr__(self) -> str:
        return f"Sweep({self.view.name!r}, {len(self.trials)} trials: {self.view.counts})"


def _seen(view: SweepView, folder: Path | None) -> Sweep:
    rows, best = view.columns, view.best
    by_number = {row["trial"]: row for row in rows}
    return Sweep(folder, rows, [by_number[row.number] for row in best], [view.command(row) for row in best], view)


def run(
    data: str,
    vary: Mapping[str, str | Sequence[Any]],
    settings: Mapping[str, Any],
    *,
    objective: str | Sequence[str] | None,
    out: str | os.PathLike[str] | None,
    trials: int | None,
    jobs: int,
    sampler: str | None,
    pruner: str,
    sampler_seed: int,
    storage: str | os.PathLike[str] | None,
    study: str | None,
    heartbeat: int,
    dataset: str | None,
    energy_table: str | os.PathLike[str] | None,
    backend: str | None,
    device: str | None,
    progress: bool,
    stop_after: float | None,
) -> Sweep:
    """As `stsbp.sweep`."""
    with in_python():
        check_optuna()
        if not isinstance(data, str):
            raise ConfigError(
                "a sweep trains in other processes, which load the data by their name, such as 'digits' or "
                f"'events:FILE.npz', got {shown(data)}"
            )
        if not isinstance(vary, Mapping):
            raise ConfigError(f"vary is a dict of settings such as {{'tau_m': '4:16:log'}}, got {shown(vary)}")
        names = [] if objective is None else [objective] if isinstance(objective, str) else list(objective)
        request = SweepRequest(
            data,
            [(str(name), values) for name, values in vary.items()],
            [_text("objective", name) for name in names],
            None if out is None else path_of("out", out),
            None if trials is None else _count("trials", trials),
            _count("jobs", jobs),
            None if sampler is None else _text("sampler", sampler),
            _text("pruner", pruner),
            _count("sampler_seed", sampler_seed, least=0),
            None if storage is None else os.fspath(storage),
            study,
            dataset,
            None if energy_table is None else str(path_of("energy_table", energy_table)),
            TrialHeartbeat(_count("heartbeat", heartbeat)),
            plain_settings(settings),
        )
        minutes = None if stop_after is None else real("stop_after", stop_after)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        reporter = PlainReporter(sys.stderr if flag("progress", progress) else None)
        plan = plan_sweep(request, reporter)
        # The processes open it themselves; an error is told here, before any trial begins.
        open_backend(default_backend() if backend is None else backend, device)
        options = [word for name, x in (("--backend", backend), ("--device", device)) if x for word in (name, x)]
        lines = PlainReporter(sys.stderr if progress else None)
        try:
            view = run_sweep(plan, options, lines.note, partial(stop_on_signals, deadline, is_command=False))
        except Stopped as stopped:
            if stopped.exit_code != TIME_IS_UP:
                raise KeyboardInterrupt(f"{stopped} and saved. Call stsbp.sweep again to continue") from None
            view = _stored(plan.path, request.storage, plan.study_name)
        return _seen(view, plan.path)


def load(out: str | os.PathLike[str] | None, storage: str | os.PathLike[str] | None, study: str | None) -> Sweep:
    """As `stsbp.load_sweep`."""
    with in_python():
        check_optuna()
        folder = None if out is None else path_of("out", out)
        return _seen(_stored(folder, None if storage is None else os.fspath(storage), study), folder)


def _stored(folder: Path | None, storage: str | None, study: str | None) -> SweepView:
    # Optuna takes half a second to import.
    from stsbp.sweeps.stored import stored_sweep

    return stored_sweep(folder, storage, study, warn_caller)


def _count(name: str, value: object, least: int = 1) -> int:
    if (number := integer(value)) is None or not least <= number < 2**32:
        raise ConfigError(f"{name} is a whole number, {least} or more, got {shown(value)}")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is a name, got {shown(value)}")
    return value
