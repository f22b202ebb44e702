"""A worker of a sweep: begins trials, each trained by `stsbp train` in its own process and folder, and ends them.

OUT/trial-N/      the run of trial N (training/run_folder.py), with `study.json`
OUT/sweep.json    the study that the runs belong to, and the name of this worker in it
OUT/study.db      the storage, if no other one is named
OUT/trials.csv, OUT/sweep.html    the trials as a table and as a page
OUT/.lock         locked by the worker

A worker that was killed continues its running trials from their checkpoints. All results are in the storage.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stsbp_spec.validation import shown

from stsbp import records
from stsbp.config import RunConfig, SettingsSource, absolute, resolve
from stsbp.datasets import Dataset
from stsbp.energy.table import asked_table
from stsbp.errors import CheckpointError, ConfigError, FileError, StsbpError
from stsbp.experiment.run import experiment_settings, with_validation
from stsbp.files import MEGABYTE, read_regular, write_atomically
from stsbp.processes.job import SIGTERM, Job, end_jobs, run_words, threads_each
from stsbp.sweeps.methods import TrialHeartbeat, check_optuna, chosen_pruner, chosen_sampler, name_of_run
from stsbp.sweeps.objectives import Objective, check_objectives, figures_of, needs_energy, read_objectives, validations
from stsbp.sweeps.vary import Variation, check_variations, grid_size, read_variations
from stsbp.training.build import (
    Inputs,
    build_loss,
    check_typed,
    check_typed_labels,
    cut_validation,
    has_test_of_training,
    load_dataset,
)
from stsbp.training.initial import pinned
from stsbp.training.loop import StopRequest
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import STUDY, RunFolder
from stsbp.training.trackers import require_trackers

__all__ = ["TRIALS", "SweepPlan", "SweepRequest", "plan_sweep", "run_sweep"]

TRIALS = 20
"""Number of trials, unless it is asked for or the sampler is a grid."""
_MARK = "sweep.json"
_OWN = re.compile(r"trial-[0-9]+|sweep\.(json|html)|trials\.csv|study\.db(-journal|-wal|-shm)?|\.lock|\..*\.tmp")
_MOST_FAILURES = 3
"""Number of trials that may fail one after another at the beginning, before the sweep ends with their error."""
_PAUSE = 0.05
_LOOK = 0.3
"""Time in seconds between two looks at the records of a run."""
_LONGEST_WAIT = 120.0
"""Longest time in seconds to wait for the lock of a run whose process is ending."""
_REASON = 2000
"""Largest length in characters of a reason in the storage."""


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep is asked for.

    Attributes:
        name: a data set or a preset.
        vary: names of settings with their values, as text or from Python.
        objectives: names of the objectives; empty: the quality measure of the data.
        out: folder of the sweep; None: `runs/NAME-sweep`.
        trials: number of trials; None: `TRIALS`, or all of a grid.
        jobs: number of parallel runs.
        sampler, pruner: their names; no sampler: `chosen_sampler` decides.
        sampler_seed: seed of the sampler.
        storage: file of a journal, or URL of a database; None: a database in the folder.
        study: name of the study in the storage; None: `NAME-sweep`.
        dataset: data set in place of that of the preset.
        energy_table: energy of operations, for the objective `energy`; None: the default.
        heartbeat: how often running trials record that they are alive.
        settings: the fixed settings that were typed.
    """

    name: str
    vary: Sequence[tuple[str, Any]]
    objectives: Sequence[str] = ()
    out: Path | None = None
    trials: int | None = None
    jobs: int = 1
    sampler: str | None = None
    pruner: str = "none"
    sampler_seed: int = 0
    storage: str | None = None
    study: str | None = None
    dataset: str | None = None
    energy_table: str | None = None
    heartbeat: TrialHeartbeat = field(default_factory=TrialHeartbeat)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do, after everything was checked that can be known before a trial begins.

    Attributes:
        request: what was asked for.
        config: the fixed settings.
        variations: the varied settings.
        objectives: the objectives.
        sampler, pruner: their names.
        trials: number of trials.
        path: folder of the sweep.
    """

    request: SweepRequest
    config: RunConfig
    variations: Mapping[str, Variation]
    objectives: tuple[Objective, ...]
    sampler: str
    pruner: str
    trials: int
    path: Path

    @property
    def study_name(self) -> str:
        """Name of the study in its storage. It does not depend on the folder, which differs between workers."""
        return self.request.study or f"{_plain_name(self.request.name)}-sweep"


def _plain_name(name: str) -> str:
    return name.replace("/", "-").replace(":", "-")


def plan_sweep(request: SweepRequest, reporter: Reporter) -> SweepPlan:
    """The plan of a sweep. Data are loaded to check them, and forgotten. The reporter is closed at the end.

    Raises:
        ConfigError: a setting, a variation, an objective or a method is unknown, or does not fit the others.
        DataError: the data are missing or malformed, or too few.
        FileError: the folder cannot be written, or contains something else.
    """
    try:
        check_optuna()
        variations = read_variations(request.vary)
        typed = {**({} if request.dataset is None else {"dataset": request.dataset}), **request.settings}
        # Test samples are only used after a run is over, and never by the sweep.
        rule = SettingsSource("sweep", {"test_every": 0})
        sources = [
            experiment_settings(request.name, request.dataset),
            rule,
            SettingsSource("command line", typed),
        ]
        config = pinned(absolute(resolve(sources)))
        check_typed(config, request.settings)
        check_variations(variations, sources, request.settings)
        require_trackers(config)
        path = request.out or Path("runs") / f"{_plain_name(request.name)}-sweep"
        _check_folder(path)
        sampler_size = grid_size(variations) if request.sampler == "grid" else None
        objectives = read_objectives(request.objectives)
        data = load_dataset(config, reporter.loading)
        for note in data.notes:
            reporter.note(note)
        check_typed_labels(config, Inputs.of(data), request.settings)
        config = _validated(config, data, request.settings)
        inputs = Inputs.of(data)
    finally:
        reporter.close()
    if not objectives:
        key = "mse" if inputs.real_targets else "f1" if inputs.sequences else "accuracy"
        objectives = read_objectives([key])
    check_objectives(objectives, inputs, variations, _readout_loss(config, variations))
    sampler, pruner = chosen_sampler(request.sampler, objectives), chosen_pruner(request.pruner, objectives)
    if request.energy_table is not None and not needs_energy(objectives):
        raise ConfigError("--energy-table is for the objective energy; leave it out")
    trials = request.trials or sampler_size or TRIALS
    trials = trials if sampler_size is None else min(trials, sampler_size)
    return SweepPlan(request, config, variations, objectives, sampler, pruner, trials, path)


def _readout_loss(config: RunConfig, variations: Mapping[str, Variation]) -> str | None:
    """Name of the first loss of a sweep whose networks have a readout; None: all have output spikes."""
    names = variations["loss"].ends if "loss" in variations else (config.loss,)
    base = SettingsSource("sweep", config.model_dump())
    for name in names:
        trial_config = resolve([base, SettingsSource("trial", {"loss": name})], with_preset=False)
        if build_loss(trial_config).of_potentials:
            return str(name)
    return None


def _validated(config: RunConfig, data: Dataset, typed: Mapping[str, Any]) -> RunConfig:
    """The settings with validation samples, which decide about everything."""
    if has_test_of_training(config.dataset):
        raise ConfigError(
            f"a sweep chooses by validation samples, but all samples of {config.dataset} are training samples; choose "
            "another data set"
        )
    if "validation" not in typed:
        config = with_validation(config, data)
    if config.validation == 0:
        raise ConfigError(
            "a sweep chooses by validation samples, but there are none; give --validation M, the number of training "
            "samples to hold out"
        )
    cut_validation(data, config)
    return config


def _check_folder(path: Path) -> None:
    folder = RunFolder(path)
    if not folder.is_free and any(not _OWN.fullmatch(entry.name) for entry in path.iterdir()):
        raise FileError(f"{path} is not empty and holds no sweep; choose another --out")
    folder.check_writable()


def run_sweep(plan: SweepPlan, options: Sequence[str], print_line: Callable[[str], None], stopping: Any) -> Any:
    """Run the trials that are left, or wait for nothing if there are none. Returns a `stsbp.sweeps.view.SweepView`.

    Args:
        plan: what to do.
        options: options of `stsbp` itself, before the command: backend and device.
        print_line: function that receives lines on the progress.
        stopping: makes the context in which a stop can be requested.

    Raises:
        Stopped: a stop was requested. All runs have saved their states.
        ConfigError: the study or a run in the folder is another one.
        StsbpError: the first trials failed, or no trial could be finished.
    """
    # Optuna is an extra, and imports sqlalchemy.
    from stsbp.sweeps.study import Study, StudyIdentity, open_storage, quiet
    from stsbp.sweeps.view import SweepView

    request = plan.request
    table = asked_table(energy=True, name=request.energy_table) if needs_energy(plan.objectives) else None
    prices = ("", "") if table is None else (table.name, table.digest())
    identity = StudyIdentity(plan.config, plan.variations, plan.objectives, plan.sampler, plan.pruner, *prices)
    folder = RunFolder(plan.path)
    with folder.lock(), quiet(), stopping() as stop:
        storage = open_storage(
            request.storage, plan.path, request.heartbeat, warn=lambda text: print_line(f"warning: {text}")
        )
        study = Study.join(storage, plan.study_name, identity)
        worker = _Worker(plan, study, folder, _worker_name(folder, study), options, print_line)

        def write() -> SweepView:
            view = SweepView.of(study)
            folder.files.write("trials.csv", view.csv().encode())
            folder.files.write("sweep.html", view.html().encode())
            return view

        worker.run(stop, write)
        view = write()
    if not view.best and not view.count("running"):
        reasons = [row.reason for row in view.rows if row.reason]
        raise StsbpError(
            f"no trial of {plan.path} is finished: {view.counts}" + "".join(f"\n{r}" for r in reasons[-1:])
        )
    return view


def _worker_name(folder: RunFolder, study: Any) -> str:
    """The name of this folder in the study. It is made when the first worker begins here.

    Raises:
        ConfigError: the folder belongs to another study.
        CheckpointError: the file that says so is damaged.
    """
    path = folder.path / _MARK
    try:
        mark = records.read(records.SweepMark, records.parse(read_regular(path, MEGABYTE)))
    except FileNotFoundError:
        mark = records.SweepMark(format=1, study=study.identity.id, name=study.name, worker=uuid.uuid4().hex)
        folder.files.write(_MARK, (json.dumps(mark.model_dump()) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged: {records.reason(error)}; put it back, or choose another --out"
        ) from error
    if mark.study != study.identity.id:
        raise ConfigError(
            f"{folder.path} holds runs of another study, {shown(mark.name)}, which was begun separately; choose "
            "another --out, or name its --storage and --study"
        )
    return mark.worker


@dataclass
class _Running:
    """A trial that is running: its run, its process, and whether this is being pruned or evaluated."""

    trial: Any
    config: RunConfig
    path: Path
    job: Job
    evaluates: bool = False
    prunes: bool = False
    looked: float = 0.0
    size: int = -1


class _Worker:
    """The trials of this process.

    Args:
        plan: what to do.
        study: the study.
        folder: folder of the sweep, which is locked.
        name: name of this worker in the study.
        options: options of `stsbp` itself, before the command.
        print_line: function that receives lines on the progress.
    """

    def __init__(
        self,
        plan: SweepPlan,
        study: Any,
        folder: RunFolder,
        name: str,
        options: Sequence[str],
        print_line: Callable[[str], None],
    ) -> None:
        self.plan, self.study, self.folder, self.name = plan, study, folder, name
        self.options, self.print_line = options, print_line
        self.running: list[_Running] = []
        self.failures = 0
        self.has_finished = False
        self.beaten = self.searched = time.monotonic()

    @property
    def is_alone(self) -> bool:
        """Whether the storage is that of this folder, so that no other worker has it."""
        return self.plan.request.storage is None

    def run(self, stop: StopRequest, written: Callable[[], object]) -> None:
        """Run trials until none is left.

        Args:
            stop: a request to stop.
            written: called when a trial has ended.

        Raises:
            Stopped: a stop was requested.
            StsbpError: the first trials failed one after another.
        """
        study, request = self.study, self.plan.request
        study.set_pruner()
        study.next_sampler(request.sampler_seed, parallel=request.jobs > 1)
        with tempfile.TemporaryDirectory(prefix="stsbp-") as settings, self._ending():
            begun = study.own_running(self.name, alone=self.is_alone)
            if begun:
                numbers = ", ".join(str(trial.number) for trial in begun)
                self.print_line(f"continuing trial {numbers}")
            while True:
                while len(self.running) < request.jobs and not stop.requested():
                    if begun:
                        trial = begun.pop(0)
                    elif study.has_work(self.plan.trials):
                        study.next_sampler(request.sampler_seed, parallel=request.jobs > 1)
                        trial = study.ask()
                    else:
                        break
                    self._start(trial, Path(settings))
                if stop_signal := stop.requested():
                    end_jobs([one.job for one in self.running], max(stop_signal, 0) or SIGTERM)
                    self.running.clear()
                    stop.obey(stop_signal)
                if not self.running:
                    return
                time.sleep(_PAUSE)
                self._keep_alive()
                for one in list(self.running):
                    one.job.tell_if_stopped("sweep")
                    if one.job.process.poll() is not None:
                        one.job.wait()
                        self.running.remove(one)
                        self._ended(one)
                        written()
                    elif not one.prunes and not one.evaluates:
                        self._look(one)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End all processes at the end, also after an error."""
        try:
            yield
        finally:
            end_jobs([one.job for one in self.running])

    def _keep_alive(self) -> None:
        """Record that the running trials are alive, and look for trials of other workers that are not."""
        now, interval = time.monotonic(), self.plan.request.heartbeat.interval
        if now - self.beaten >= interval / 2:
            self.beaten = now
            for one in self.running:
                one.trial.beat()
        if not self.is_alone and now - self.searched >= interval:
            self.searched = now
            self.study.fail_lost(self.plan.request.heartbeat)

    def _start(self, trial: Any, settings: Path) -> None:
        """Begin or continue the run of a trial. If its values contradict each other, it fails."""
        name = name_of_run(trial.number)
        trial.belongs(self.name, name, self.options)
        trial.beat()
        try:
            config = pinned(self.study.identity.config(trial.params))
        except StsbpError as error:
            self._failed(trial, str(error))
            return
        path = self.folder.path / name
        self._mark(path, trial.number)
        _wait_until_unlocked(path)
        values = ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
        )
        self.print_line(f"trial {trial.number} of {self.plan.trials}, {path}: {values}")
        words = run_words(config, settings / f"{name}.toml", path)
        self.running.append(_Running(trial, config, path, self._job(trial, config, words)))

    def _job(self, trial: Any, config: RunConfig, words: Sequence[str]) -> Job:
        threads = threads_each(config, self.plan.request.jobs)
        return Job(f"trial {trial.number}", [*self.options, *words], threads, self.print_line)

    def _mark(self, path: Path, number: int) -> None:
        """Note in the folder of a run whose trial it is.

        Raises:
            ConfigError: it is that of another trial or study, or not of a sweep.
        """
        asked = records.TrialMark(format=1, study=self.study.identity.id, trial=number)
        with contextlib.suppress(FileNotFoundError):
            try:
                mark = records.read(records.TrialMark, records.parse(read_regular(path / STUDY, MEGABYTE)))
            except ValueError as error:
                raise CheckpointError(
                    f"{path / STUDY} is damaged: {records.reason(error)}; choose another --out"
                ) from error
            if mark != asked:
                of = "another study" if mark.study != asked.study else f"trial {mark.trial} of this study"
                raise ConfigError(f"{path} holds the run of {of}; move it away, or choose another --out")
            return
        if not RunFolder(path).is_free:
            raise ConfigError(f"{path} holds files of no trial of a sweep; move them away, or choose another --out")
        self.folder.files.check()
        write_atomically(path / STUDY, (json.dumps(asked.model_dump()) + "\n").encode())

    def _look(self, one: _Running) -> None:
        """Report new values of a run, and end it if it is to be pruned."""
        objective = self.plan.objectives[0]
        now = time.monotonic()
        if now - one.looked < _LOOK or len(self.plan.objectives) > 1 or not objective.each_epoch:
            return
        one.looked = now
        try:
            size = (one.path / "metrics.jsonl").stat().st_size
        except OSError:
            return
        if size == one.size:
            return
        one.size = size
        if self._report(one, objective):
            one.prunes = True
            one.job.send_signal(SIGTERM)

    def _report(self, one: _Running, objective: Objective) -> bool:
        evaluations = validations(one.path, one.config)
        values = {epoch: record[objective.key] for epoch, record in evaluations.items() if objective.key in record}
        prunes: bool = one.trial.report(values)
        return prunes

    def _ended(self, one: _Running) -> None:
        """End a trial whose process has ended, or begin the evaluation that its objectives need."""
        code, trial = one.job.process.returncode, one.trial
        if code == 0:
            self._finish(one)
        elif one.prunes:
            with contextlib.suppress(StsbpError):
                figures = figures_of(one.path, one.config)
                self._tell(trial, trial.prune(figures), "pruned")
                return
            self._tell(trial, trial.prune({}), "pruned")
        elif code < 0 or code in (128 + SIGTERM, 128 + 1, 128 + 2):
            reason = f"its process was ended by signal {-code if code < 0 else code - 128}"
            self._tell(trial, trial.lose(reason), f"{reason}; its values are tried again as a new trial")
        else:
            self._failed(trial, f"exit code {code}: {one.job.last_output()}")

    def _finish(self, one: _Running) -> None:
        objectives, trial = self.plan.objectives, one.trial
        try:
            figures = figures_of(one.path, one.config, self.study.identity.energy_sha256)
            if len(objectives) == 1 and objectives[0].each_epoch:
                self._report(one, objectives[0])
        except StsbpError as error:
            self._failed(trial, str(error))
            return
        if needs_energy(objectives) and not one.evaluates and "energy" not in figures:
            table = self.plan.request.energy_table
            words = ["evaluate", str(one.path), "--checkpoint", "best", "--split", "validation", "--energy"]
            words += [] if table is None else ["--energy-table", table]
            one.job, one.evaluates, one.prunes = self._job(trial, one.config, words), True, False
            self.running.append(one)
            return
        if infinite := [x.key for x in objectives if not math.isfinite(figures.get(x.key, 0.0))]:
            self._failed(trial, f"the run has no finite value of {', '.join(infinite)}")
            return
        if lacking := [objective.key for objective in objectives if objective.key not in figures]:
            reason = f"the run has no value of {', '.join(lacking)}"
            if one.evaluates and "energy" not in figures:
                reason += ": its energy was computed with other prices than those of the study; was the table changed?"
            self._failed(trial, reason)
            return
        values = [figures[objective.key] for objective in objectives]
        text = ", ".join(f"{objective.key} {objective.shown(figures[objective.key])}" for objective in objectives)
        self.has_finished = True
        self._tell(trial, trial.complete(values, figures), text)

    def _tell(self, trial: Any, told: bool, text: str) -> None:
        lost = "another worker has declared this trial lost, and its result is not used"
        self.print_line(f"trial {trial.number}: {text if told else lost}")

    def _failed(self, trial: Any, reason: str) -> None:
        """End a trial without a value.

        Raises:
            StsbpError: the first trials failed one after another.
        """
        self._tell(trial, trial.fail(reason[-_REASON:]), f"failed: {reason}")
        self.failures += 1
        if not self.has_finished and self.failures >= _MOST_FAILURES:
            raise StsbpError(f"the first {self.failures} trials failed, so the sweep ends. The last one: {reason}")


def _wait_until_unlocked(path: Path) -> None:
    """Wait until the process of a worker that was killed has saved its run.

    Raises:
        FileError: it does not end.
    """
    end = time.monotonic() + _LONGEST_WAIT
    while True:
        try:
            with RunFolder(path).lock(make=False):
                return
        except FileError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
