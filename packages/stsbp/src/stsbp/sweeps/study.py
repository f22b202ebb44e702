"""The study of a sweep in Optuna: where it is stored, what it is, and its trials.

A study is stored in a database or in a journal file. Its first attribute says what is varied and for which objectives,
with an identity that no other study has. Every process that joins the study must ask for the same. A trial belongs to
the worker that began it: the folder of a sweep. Optuna keeps the heartbeats of running trials in databases. If they
end, another worker marks the trial as failed, and the same values are tried again as a new trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.engine
import sqlalchemy.exc
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from stsbp_spec.validation import listed, shown

from stsbp import records
from stsbp.config import RunConfig, SettingsSource, differences, resolve
from stsbp.errors import CheckpointError, ConfigError, FileError, StsbpError, printable
from stsbp.sweeps.journal import Journal, check_file, open_journal
from stsbp.sweeps.methods import TrialHeartbeat, name_of_run
from stsbp.sweeps.objectives import OBJECTIVES, Objective
from stsbp.sweeps.show import TrialRow
from stsbp.sweeps.vary import NumberRange, Variation, grid_values, variation_of

__all__ = ["OpenTrial", "Study", "StudyIdentity", "open_storage", "quiet"]

_IDENTITY = "stsbp"
"""Attribute of a study that says what it is."""
_FORMAT = 1
_MOST_RETRIES = 3
"""How often the values of a lost trial are tried again."""
_POPULATION = 16
"""Number of trials of a generation of NSGA-II and NSGA-III. Optuna's own default, 50, is more than most sweeps have."""
_WAIT = 10.0
"""Longest time in seconds to wait until the process that has just made the study says what it is."""
_LONGEST_REASON = 300
"""Largest number of characters of the reason why a storage cannot be read."""
_MAXIMIZE = optuna.study.StudyDirection.MAXIMIZE
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, Optuna prints only warnings, and its errors of the storage are `FileError`."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The worker records the heartbeats itself.
            warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with Study.optimize")
            yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise FileError(f"the storage of the sweep failed: {error}".splitlines()[0]) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Within it, whatever Optuna raises when it reads the storage `name` is a `FileError`.

    Optuna checks little of what it reads, so that a damaged storage ends in errors of any type.
    """
    try:
        yield
    except (StsbpError, MemoryError):
        raise
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise FileError(f"cannot read the storage {name}: {_first_line(error)}") from error
    except Exception as error:
        raise FileError(
            f"the storage {name} is damaged, or was not made by stsbp sweep: {type(error).__name__}: "
            f"{_first_line(error)}; put it back from a copy, or name another one with --storage"
        ) from error


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), "")[:_LONGEST_REASON])


def _name_of(storage: BaseStorage) -> str:
    """The path or URL of a storage, without its password."""
    if isinstance(storage, Journal):
        return str(storage.path)
    if not isinstance(storage, RDBStorage):
        return type(storage).__name__
    url = storage.engine.url
    is_file = url.drivername.startswith("sqlite") and url.database
    return str(url.database) if is_file else url.render_as_string(hide_password=True)


def open_storage(
    storage: str | None,
    folder: Path,
    heartbeat: TrialHeartbeat,
    *,
    make: bool = True,
    warn: Callable[[str], object] = lambda _: None,
) -> BaseStorage:
    """The storage: a database by its URL, the journal in a file, or by default `study.db` in the folder of the sweep.

    Args:
        storage: URL of the database, or path of the journal; None: the default.
        folder: folder of the sweep.
        heartbeat: how often running trials record that they are alive.
        make: whether trials will be added. A storage that is missing is then made.
        warn: function that receives warnings.

    Raises:
        ConfigError: the URL is none, or a module for its database is missing.
        FileError: it cannot be opened, or is damaged.
    """
    path = folder / "study.db"
    if storage is None and not check_file(path) and not make:
        raise FileError(f"{folder} has no {path.name}; name the storage of the sweep with --storage")
    if storage is not None and "://" not in storage:
        with _reading(storage):
            return open_journal(storage, warn, make=make)
    of_stale_trials: dict[str, Any] = {_of_stale_trials(): _retry}
    try:
        if storage is None:
            url = sqlalchemy.engine.URL.create("sqlite", database=str(path.absolute())).render_as_string(
                hide_password=False
            )
        else:
            url = storage
            parts = sqlalchemy.engine.make_url(url)
            database = parts.database or ":memory:"
            if parts.drivername.startswith("sqlite") and not database.startswith((":", "file:")):
                check_file(Path(database))
        # Other processes may be writing.
        connect = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
        beats = {"heartbeat_interval": heartbeat.interval, "grace_period": heartbeat.grace}
        return _database(url, {"engine_kwargs": connect, **beats, **of_stale_trials})
    except ImportError as error:
        # Optuna's own message leaves out which module is missing.
        module = getattr(error.__cause__, "name", None) or "of its database"
        raise ConfigError(
            f"--storage {(storage or '').partition(':')[0]!r}: it needs the module {module}; install it, or name "
            "another driver in the URL, as in postgresql+psycopg2://"
        ) from error
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        # A port that is no number is a `ValueError`.
        raise ConfigError(
            "--storage is a file, or the URL of a database such as postgresql://user:password@host/name"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, OSError) as error:
        name = (
            str(path) if storage is None else sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
        )
        raise FileError(f"cannot open the storage {name}: {_first_line(error)}") from error


def _database(url: str, arguments: Mapping[str, Any]) -> RDBStorage:
    """Open a database, and make its tables if it has none."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            return RDBStorage(url, **arguments)
        except sqlalchemy.exc.DBAPIError as error:
            # Another worker is making the tables at the same time. A server that does not answer is another error.
            is_made = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
            if not is_made or time.monotonic() > end:
                raise
            time.sleep(0.2)


def _of_stale_trials() -> str:
    """The keyword of the function for trials whose heartbeat has ended, which Optuna 4.9 has renamed."""
    name = "heartbeat_stale_trial_callback"
    return name if name in inspect.signature(RDBStorage.__init__).parameters else "failed_trial_callback"


def _retried(trial: FrozenTrial) -> list[int]:
    """Numbers of the trials with the same values that were lost before this one."""
    return list(trial.system_attrs.get("retry_history", ()))


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Let the values of a lost trial be tried again as a new trial, which has no run yet."""
    history = [*_retried(trial), trial.number]
    if len(history) > _MOST_RETRIES:
        return
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            # Those of the sampler, and of its grid, belong to the values.
            system_attrs={**trial.system_attrs, "failed_trial": history[0], "retry_history": history},
        )
    )


@dataclass(frozen=True)
class StudyIdentity:
    """What a study is.

    Attributes:
        settings: the fixed settings. Those that are varied have no meaning.
        variations: the varied settings.
        objectives: the objectives.
        sampler, pruner: how values are chosen, and which trials end early.
        energy_table: name of the table of the energy of operations; "": no objective needs it.
        energy_sha256: SHA-256 of its prices (`EnergyTable.digest`), since two tables can have the same name.
        id: a text that no other study has.
    """

    settings: RunConfig
    variations: Mapping[str, Variation]
    objectives: tuple[Objective, ...]
    sampler: str
    pruner: str
    energy_table: str = ""
    energy_sha256: str = ""
    id: str = ""

    def config(self, params: Mapping[str, Any]) -> RunConfig:
        """The settings of a trial with these values."""
        base = SettingsSource("sweep", self.settings.model_dump())
        return resolve([base, SettingsSource("trial", params)], with_preset=False)

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "format": _FORMAT,
            "id": self.id,
            "settings": self.settings.model_dump(),
            "vary": {name: variation.record for name, variation in self.variations.items()},
            "objectives": [objective.key for objective in self.objectives],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "energy_table": self.energy_table,
            "energy_sha256": self.energy_sha256,
        }

    def unlike(self, stored: Mapping[str, Any]) -> list[str]:
        """How the stored identity of a study differs from this one, as texts."""
        own = self.record
        config = RunConfig(**stored["settings"])
        kept = {name: value for name, value in own["settings"].items() if name not in self.variations}
        lines = [line.replace(" in the run", " in the study") for line in differences(config, kept)]
        names = ("vary", "objectives", "sampler", "pruner", "energy_table")
        lines += [
            f"{name}: {json.dumps(stored[name])} in the study, {json.dumps(own[name])} asked"
            for name in names
            if stored[name] != own[name]
        ]
        # A study of an earlier version has no digest (`Study.join`).
        prices = stored.get("energy_sha256", own["energy_sha256"])
        if stored["energy_table"] == own["energy_table"] and prices != own["energy_sha256"]:
            lines.append(
                f"the prices of the energy table {own['energy_table']!r}: SHA-256 {prices[:16]}... in the study, "
                f"{own['energy_sha256'][:16]}... asked; energies by other prices cannot be compared"
            )
        if config.patience != self.settings.patience:
            lines.append(f"patience: {config.patience} in the study, {self.settings.patience} asked")
        return lines


class OpenTrial:
    """A trial that is running."""

    def __init__(self, study: Study, trial: optuna.Trial) -> None:
        self._study, self._trial, self._is_judged = study, trial, False
        self.params = study.suggested(trial)

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self._trial.number

    def belongs(self, worker: str, folder: str, options: Sequence[str]) -> None:
        """Note whose trial it is, the name of the folder of its run, and the options of `stsbp`."""
        self._trial.set_user_attr("worker", worker)
        self._trial.set_user_attr("folder", folder)
        self._trial.set_user_attr("options", list(options))

    def beat(self) -> None:
        """Record that the trial is alive."""
        storage = self._study.storage
        if isinstance(storage, RDBStorage):
            storage.record_heartbeat(self._trial._trial_id)

    def report(self, values: Mapping[int, float]) -> bool:
        """Report values by epoch, those that are new. Returns whether the trial should be pruned."""
        known = self._study.storage.get_trial(self._trial._trial_id).intermediate_values
        # This process may have been killed between the report of a value and the decision.
        prunes = bool(known) and not self._is_judged and self._trial.should_prune()
        self._is_judged = True
        for epoch in sorted(values.keys() - known.keys()):
            self._trial.report(values[epoch], epoch)
            prunes = prunes or self._trial.should_prune()
        return prunes

    def complete(self, values: Sequence[float], figures: Mapping[str, float]) -> bool:
        """End the trial with the values of its objectives. False: another worker has declared it lost."""
        return self._end(TrialState.COMPLETE, {"figures": dict(figures)}, values)

    def prune(self, figures: Mapping[str, float]) -> bool:
        """End the trial early."""
        return self._end(TrialState.PRUNED, {"figures": dict(figures)})

    def fail(self, reason: str) -> bool:
        """End the trial, which has no values. They are not tried again."""
        return self._end(TrialState.FAIL, {"reason": reason})

    def lose(self, reason: str) -> bool:
        """End the trial, whose process was killed. Its values are tried again as a new trial."""
        if not self.fail(reason):
            return False
        _retry(self._study.study, self._study.storage.get_trial(self._trial._trial_id))
        return True

    def _end(self, state: TrialState, attributes: Mapping[str, Any], values: Sequence[float] | None = None) -> bool:
        try:
            for name, value in attributes.items():
                self._trial.set_user_attr(name, value)
            self._study.study.tell(self._trial, values, state)
        except (RuntimeError, ValueError):
            # `tell` raises a `ValueError` if the trial is no longer running, and the storage a `RuntimeError`.
            if self._study.storage.get_trial(self._trial._trial_id).state == TrialState.RUNNING:
                raise
            return False
        return True


class Study:
    """A study that is open.

    Attributes:
        study, storage: those of Optuna.
        identity: what it is.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, identity: StudyIdentity) -> None:
        self.study, self.storage, self.identity = study, storage, identity

    @classmethod
    def join(cls, storage: BaseStorage, name: str, identity: StudyIdentity) -> Study:
        """Make the study, or join it if there is one with this name.

        Raises:
            ConfigError: the study is another one. The message names all differences.
            FileError: the storage is damaged.
        """
        with _reading(_name_of(storage)):
            joined = cls._joined(storage, name, identity)
        # What is checked here is what the samplers read.
        joined.rows()
        return joined

    @classmethod
    def _joined(cls, storage: BaseStorage, name: str, identity: StudyIdentity) -> Study:
        up, down = _MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [up if objective.maximise else down for objective in identity.objectives]
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(storage=storage, study_name=name)
            stored = _awaited_identity(study)
            if stored is not None:
                identity = dataclasses.replace(identity, id=_checked(stored, name, identity))
                if "energy_sha256" not in stored:
                    # An earlier version made the study. From now on, it has the prices of the first one that joins.
                    study.set_user_attr(_IDENTITY, {**stored, "energy_sha256": identity.energy_sha256})
                return cls(study, storage, identity)
            if study.get_trials(deepcopy=False):
                raise ConfigError(
                    f"the study {name!r} was not made by stsbp sweep; choose another name with --study"
                ) from None
        identity = dataclasses.replace(identity, id=uuid.uuid4().hex)
        study.set_user_attr(_IDENTITY, identity.record)
        return cls(study, storage, identity)

    @classmethod
    def read(cls, storage: BaseStorage, name: str | None) -> Study:
        """A study by its name, or the only one of the storage, to show it.

        Raises:
            ConfigError: there is no such study, or none was made by stsbp; or there are several.
            FileError: the storage is damaged.
        """
        with _reading(_name_of(storage)):
            return cls._read(storage, name)

    @classmethod
    def _read(cls, storage: BaseStorage, name: str | None) -> Study:
        names = optuna.get_all_study_names(storage)
        if name is None and len(names) != 1:
            raise ConfigError(
                f"the storage has {len(names)} studies; name one with --study"
                + (f": {', '.join(sorted(names))}" if names else "")
            )
        if name is not None and name not in names:
            raise ConfigError(f"the storage has no study {name!r}; it has: {', '.join(sorted(names)) or 'none'}")
        study = optuna.load_study(storage=storage, study_name=name or names[0])
        stored = study.user_attrs.get(_IDENTITY)
        if stored is None:
            raise ConfigError(f"the study {study.study_name!r} was not made by stsbp sweep")
        return cls(study, storage, _read_identity(stored, study.study_name))

    @property
    def name(self) -> str:
        """Name of the study in its storage."""
        return self.study.study_name

    def next_sampler(self, seed: int, *, parallel: bool) -> None:
        """Make the sampler of the next trial. Random numbers depend on the seed and the number of trials so far.

        A sampler that began anew with the same random numbers after every interruption would repeat its choices.
        """
        count = len(self.study.get_trials(deepcopy=False))
        variations = self.identity.variations
        self.study.sampler = _sampler(self.identity.sampler, variations, seed, count, parallel=parallel)

    def set_pruner(self) -> None:
        """Make the pruner."""
        epochs = None if "epochs" in self.identity.variations else self.identity.settings.epochs
        self.study.pruner = _pruner(self.identity.pruner, epochs)

    def suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        """The values of the varied settings in a trial."""
        params = {name: _suggested(trial, name, x) for name, x in self.identity.variations.items()}
        floats = {name for name in params if RunConfig.model_fields[name].annotation is float}
        return {name: float(value) if name in floats else value for name, value in params.items()}

    def ask(self) -> OpenTrial:
        """Begin the next trial: one that waits to be tried again, or a new one."""
        return OpenTrial(self, self.study.ask())

    def own_running(self, worker: str, *, alone: bool) -> list[OpenTrial]:
        """The running trials of a worker that was killed, to be continued.

        Args:
            worker: the worker.
            alone: whether no other worker has this study, so that trials without a worker are its own.
        """
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        own = [t for t in trials if t.user_attrs.get("worker") == worker or (alone and "worker" not in t.user_attrs)]
        for trial in own:
            if trial.params.keys() != self.identity.variations.keys():
                # The worker was killed while the values were being chosen.
                self.study.sampler.before_trial(self.study, trial)
        return [OpenTrial(self, optuna.Trial(self.study, trial._trial_id)) for trial in own]

    def has_work(self, trials: int) -> bool:
        """Whether a trial waits, or there are fewer than `trials`. Trials that are tried again do not count."""
        stored = self.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in stored):
            return True
        again = {number for trial in stored for number in _retried(trial)}
        return sum(trial.number not in again for trial in stored) < trials

    def fail_lost(self, heartbeat: TrialHeartbeat) -> None:
        """Mark trials of other workers as failed whose heartbeat has ended, and let their values be tried again."""
        optuna.storages.fail_stale_trials(self.study)
        if not isinstance(self.storage, RDBStorage):
            return
        # A worker that was killed before its trial's first heartbeat has left neither a heartbeat nor its name.
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            began = trial.datetime_start
            age = None if began is None else (datetime.now() - began).total_seconds()
            if "worker" not in trial.user_attrs and age is not None and age > heartbeat.grace:
                with contextlib.suppress(RuntimeError):
                    if self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                        _retry(self.study, trial)

    def rows(self) -> list[TrialRow]:
        """All trials in the order of their numbers, from the storage alone.

        Raises:
            CheckpointError: a trial, or the study, is not as `stsbp sweep` has stored it.
            FileError: the storage is damaged.
        """
        with _reading(_name_of(self.storage)):
            stored = self.study.get_trials(deepcopy=False)
            directions = [direction == _MAXIMIZE for direction in self.study.directions]
        if directions != [objective.maximise for objective in self.identity.objectives]:
            raise self._damaged("its directions are not those of its objectives")
        if (numbers := [trial.number for trial in stored]) != [*range(len(stored))]:
            raise self._damaged(
                f"its {len(stored):,} trials should have the numbers from 0 on, but have {listed(numbers)}"
            )
        for trial in stored:
            if problem := self._problem(trial):
                raise self._damaged(f"trial {trial.number} {problem}")
        again = {number for trial in stored for number in _retried(trial)}
        return [self._row(trial, again) for trial in stored]

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"the study {self.name!r} in the storage {_name_of(self.storage)} is damaged: {problem}; put the storage "
            "back from a copy, or begin another study with --study and --out"
        )

    def _problem(self, trial: FrozenTrial) -> str:
        """What of a stored trial no sweep has written; "": nothing. Optuna does not check what it reads."""
        attributes, variations = trial.user_attrs, self.identity.variations
        is_over = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if not trial.params.keys() <= variations.keys() or (is_over and trial.params.keys() != variations.keys()):
            return f"has values of other settings: {', '.join(trial.params) or 'none'}"
        for name, value in trial.params.items():
            if not variations[name].has(value):
                return f"has {name} = {shown(value)}, which is not one of the varied values"
        if trial.state == TrialState.COMPLETE:
            if trial.values is None or len(trial.values) != len(self.identity.objectives):
                return "is finished, but has not one value for each objective"
            if trial.datetime_complete is None:
                return "is finished, but has no time at which it ended"
        for value in (*(trial.values or ()), *trial.intermediate_values.values()):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return f"has the value {shown(value)} of an objective, which is not a finite number"
        if not all(isinstance(epoch, int) and epoch >= 0 for epoch in trial.intermediate_values):
            return "has values of epochs that are no numbers"
        if attributes.get("folder", name_of_run(trial.number)) != name_of_run(trial.number):
            return f"has the run {shown(attributes['folder'])}"
        options, history = attributes.get("options", []), trial.system_attrs.get("retry_history", [])
        if not isinstance(options, (list, tuple)) or not all(isinstance(option, str) for option in options):
            return f"has the options {shown(options)}"
        if not isinstance(history, (list, tuple)) or not all(type(number) is int for number in history):
            return f"tries again what is no list of trials: {shown(history)}"
        try:
            records.read(records.TrialFigures, {"figures": attributes.get("figures", {})})
        except ValueError as error:
            return f"has figures that cannot be read: {records.reason(error)}"
        return ""

    def _row(self, trial: FrozenTrial, again: set[int]) -> TrialRow:
        attributes = trial.user_attrs
        figures = records.read(records.TrialFigures, {"figures": attributes.get("figures", {})}).figures
        finished = trial.state == TrialState.COMPLETE
        history = _retried(trial)
        epochs = max(trial.intermediate_values, default=None)
        return TrialRow(
            trial.number,
            "tried again" if trial.number in again else _STATES[trial.state],
            {name: trial.params.get(name) for name in self.identity.variations},
            tuple(trial.values) if finished else (),
            figures,
            trial.values[0] if trial.state == TrialState.PRUNED and trial.values else None,
            epochs,
            str(attributes.get("folder", "")),
            history[-1] if history else None,
            str(attributes.get("reason", "")),
            tuple(map(str, attributes.get("options", ()))),
        )


def _awaited_identity(study: optuna.Study) -> dict[str, Any] | None:
    """What a study is. If another process has just made it, wait until it says so. None: it does not."""
    end = time.monotonic() + _WAIT
    while (stored := study.user_attrs.get(_IDENTITY)) is None and not study.get_trials(deepcopy=False):
        if time.monotonic() > end:
            return None
        time.sleep(0.2)
    return stored


def _check_format(stored: object, name: str) -> None:
    """Raise `ConfigError` unless this version of stsbp reads the format of what a study says about itself."""
    if stored != _FORMAT:
        raise ConfigError(
            f"the study {name!r} has format {stored}, but this stsbp reads format {_FORMAT}; use the version "
            "that made it"
        )


def _checked(stored: Mapping[str, Any], name: str, identity: StudyIdentity) -> str:
    """The id of a stored study, which must be what is asked for."""
    _check_format(stored.get("format"), name)
    try:
        changed = identity.unlike(stored)
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"what the study {name!r} says about itself is damaged: {error}") from error
    if changed:
        raise ConfigError(
            f"the study {name!r} was begun with other settings; give the same ones to continue it, or choose another "
            "--out or --study:" + "".join(f"\n  {line}" for line in changed)
        )
    return str(stored["id"])


def _read_identity(stored: Mapping[str, Any], name: str) -> StudyIdentity:
    try:
        _check_format(stored["format"], name)
        return StudyIdentity(
            RunConfig(**stored["settings"]),
            {key: variation_of(record) for key, record in stored["vary"].items()},
            tuple(OBJECTIVES[key] for key in stored["objectives"]),
            str(stored["sampler"]),
            str(stored["pruner"]),
            str(stored["energy_table"]),
            str(stored.get("energy_sha256", "")),
            str(stored["id"]),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"what the study {name!r} says about itself is damaged: {error}") from error


def _suggested(trial: optuna.Trial, name: str, variation: Variation) -> Any:
    if not isinstance(variation, NumberRange):
        return trial.suggest_categorical(name, variation.values)
    if variation.whole:
        step = 1 if variation.step is None else int(variation.step)
        return trial.suggest_int(name, int(variation.low), int(variation.high), step=step, log=variation.log)
    return trial.suggest_float(name, variation.low, variation.high, step=variation.step, log=variation.log)


class _WholeGrid(optuna.samplers.GridSampler):
    """A grid whose end does not stop Optuna's own loop, which a sweep does not use."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing."""


def _sampler(
    name: str, variations: Mapping[str, Variation], seed: int, count: int, *, parallel: bool
) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    # 32 bits, as the samplers take them.
    of_trial = (seed * 1_000_003 + count) % 2**32
    random = samplers.RandomSampler(of_trial)
    if name == "random":
        return random
    if name == "tpe":
        # Settings of trials that are running count as bad, so that parallel trials do not try the same.
        return samplers.TPESampler(seed=of_trial, constant_liar=parallel)
    if name == "grid":
        return _WholeGrid(grid_values(variations), seed % 2**32)
    if name == "qmc":
        # The place in the sequence is in the storage, and belongs to this seed.
        return samplers.QMCSampler(
            seed=seed % 2**32,
            independent_sampler=random,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )
    if name == "nsga2":
        return samplers.NSGAIISampler(population_size=_POPULATION, seed=of_trial)
    if name == "nsga3":
        return samplers.NSGAIIISampler(population_size=_POPULATION, seed=of_trial)
    raise StsbpError(f"there is no sampler {name}")


def _pruner(name: str, epochs: int | None) -> optuna.pruners.BasePruner:
    pruners = optuna.pruners
    if name == "none":
        return pruners.NopPruner()
    if name == "median":
        return pruners.MedianPruner()
    if name == "halving":
        return pruners.SuccessiveHalvingPruner()
    if name == "hyperband":
        return pruners.HyperbandPruner(max_resource="auto" if epochs is None else epochs)
    raise StsbpError(f"there is no pruner {name}")
