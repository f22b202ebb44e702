"""The training loop. It only handles batches, floats and numpy dictionaries. The backend's trainer does the rest.

The order of the samples depends only on seed and epoch. A checkpoint contains epoch, batch and all running sums. A run
that was stopped at any point therefore continues with the same bits. The end of an epoch has this order: evaluation,
metrics, `best`, `last`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.engine.backend import Batch
from stsbp_spec.engine.trainer import StepResult, TrainState
from stsbp_spec.errors import NumericError, ShapeError
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Float32, Int64
from stsbp_spec.validation import listed

from stsbp import records
from stsbp.config import RunConfig
from stsbp.errors import CheckpointError, FileError
from stsbp.files import as_argument
from stsbp.interrupts import PATIENCE, WATCH, handled_by
from stsbp.processes.group import Group
from stsbp.threads import thread_count
from stsbp.training import checkpoint
from stsbp.training.augment import augment
from stsbp.training.build import Data, Task, indices_of_part, padded, updates_per_epoch
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.evaluate import Evaluation, evaluate
from stsbp.training.initial import first_weights
from stsbp.training.metrics import MetricsFile, Sums, Workload, check_records, read_records
from stsbp.training.prefetch import prefetched
from stsbp.training.progress import Course, Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.timing import Measuring
from stsbp.training.timing_text import chance_f1
from stsbp.training.trackers import names_of, open_trackers
from stsbp.training.tracking import OpenTracker
from stsbp.training.trainable import check_trainable

__all__ = [
    "TIME_IS_UP",
    "Outcome",
    "StopRequest",
    "Stopped",
    "begin_with",
    "check_state",
    "first_state",
    "identity_of",
    "import_checkpoint",
    "is_over",
    "out_of_patience",
    "resumed",
    "stop_on_signals",
    "stop_together",
    "train",
    "why_early",
]

SILENT_RATE = 1e-4
"""Mean number of spikes per neuron and step below which a layer passes on almost nothing."""
SATURATED_RATE = 0.9
"""Above this rate, the spikes of a layer carry almost no information."""
ZEROED_SHARE = 0.5
"""Share of a layer's errors that the error grid may set to zero without a report. Consider a weight with ten input
spikes, and independent spikes and errors. At this share, it loses all of its errors in one of a thousand cases. At a
share of 0.94, it does so in more than half of the cases."""
_IN_FULL = 8
"""Number of layers whose warnings are printed in full at a time."""
_SEQUENCE_SUMS = {"matched", "spikes", "targets", "van_rossum", "hamming"}


TIME_IS_UP = 75
"""Exit code of a run that stopped because its time was up: EX_TEMPFAIL of sysexits.h, "try again"."""


class Stopped(Exception):
    """A stop was requested. If `train` raises this error, it has saved the state.

    Attributes:
        reason: name of the signal, or that the time is up.
        exit_code: exit code of the process.
        step: number of finished updates; None if nothing was being trained.
    """

    def __init__(self, reason: str, exit_code: int, step: int | None = None) -> None:
        self.reason, self.exit_code, self.step = reason, exit_code, step
        super().__init__(f"{reason}: stopped" + ("" if step is None else f" after update {step}"))


class Abandoned(Stopped):
    """The first update of a process was interrupted. The last checkpoint is still the state of the run."""


class StopRequest:
    """Whether the run must stop after the current update. A signal or the clock can request this.

    `deadline` is a time of `time.monotonic`. `abandons`: whether a signal interrupts the current update.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.signal_number: int | None = None
        self.deadline = deadline
        self.abandons = False

    @contextlib.contextmanager
    def abandoning(self, allowed: bool) -> Iterator[None]:
        """Let the first signal interrupt the first update of a process, in which backends compile.

        `allowed`: whether the last checkpoint is the state before this update, so that nothing is lost.

        Raises:
            Abandoned: a signal interrupted it.
        """
        if not allowed:
            yield
            return
        needed, WATCH.needed, self.abandons = WATCH.needed, 1, True
        try:
            if self.requested(clock=False) > 0:
                raise KeyboardInterrupt
            yield
        except BaseException:
            # Libraries may replace the error of an interrupt.
            if (signal_number := self.requested(clock=False)) > 0:
                raise Abandoned(signal.Signals(signal_number).name, 128 + signal_number) from None
            raise
        finally:
            WATCH.needed, self.abandons = needed, False

    def requested(self, *, clock: bool = True) -> int:
        """The signal that requests a stop; `-TIME_IS_UP` for the clock; 0: no stop is requested.

        Without `clock`, only signals count.
        """
        if self.signal_number is not None:
            return self.signal_number
        return -TIME_IS_UP if clock and self.deadline is not None and time.monotonic() >= self.deadline else 0

    @staticmethod
    def obey(request: int) -> None:
        """Raise `Stopped` if `request` requests it."""
        if request > 0:
            raise Stopped(signal.Signals(request).name, 128 + request)
        if request < 0:
            raise Stopped("time is up", TIME_IS_UP)


def stop_together(stop: StopRequest, group: Group, *, clock: bool = True) -> None:
    """Raise `Stopped` in all processes if a stop was requested in one of them."""
    stop.obey(_first(group.gather([stop.requested(clock=clock)])[:, 0]))


@contextlib.contextmanager
def stop_on_signals(deadline: float | None = None, *, is_command: bool = True) -> Iterator[StopRequest]:
    """Let Ctrl-C, SIGTERM and SIGHUP request a stop. Another signal, a second later, interrupts without saving.

    A third one ends the process. At `deadline`, a time of `time.monotonic`, the clock also requests a stop. In a
    program that is not the command line (`is_command`), only Ctrl-C requests a stop, and it never ends the process.
    """
    request = StopRequest(deadline)
    signal_times: list[float] = []

    def ask(number: int, _frame: object) -> None:
        now = time.monotonic()
        # A terminal and a shell may both pass the signal on, so several at once count as one.
        if signal_times and now - signal_times[-1] < PATIENCE:
            return
        signal_times.append(now)
        if len(signal_times) == 1:
            request.signal_number = number
            if request.abandons:
                raise KeyboardInterrupt
        elif len(signal_times) == 2 or not is_command:
            raise KeyboardInterrupt
        else:
            os._exit(128 + number)

    with handled_by(ask, *(() if is_command else (signal.SIGINT,))):
        yield request


@dataclass(frozen=True)
class Outcome:
    """The end of a run: number of updates, last evaluation of the test split (if any), and contents of `best.json`."""

    step: int
    test: dict[str, Any]
    best: dict[str, Any]


@dataclass
class _Position:
    """The next epoch and batch. If `batch` is the number of batches, the epoch is trained but not yet evaluated."""

    epoch: int = 0
    batch: int = 0
    sums: Sums = field(default_factory=Sums)
    window: Sums = field(default_factory=Sums)
    best: dict[str, Any] | None = None


def train(
    task: Task,
    data: Data,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopRequest,
    resume: Checkpoint | None = None,
    first: TrainState | None = None,
    trackers: Sequence[OpenTracker] = (),
) -> Outcome:
    """Train to the end, from the beginning or from a checkpoint.

    `first` is the state before the first update, if it was made before (`first_state`). `trackers` are functions that
    open trackers beside those that the settings name.

    With several processes (`Task.group`), rank 0 has the folder and the checkpoint, and sends the others what they
    need.

    Raises:
        Stopped: a signal requested it. The state is saved.
        NumericError: a value is not finite. The message names step and layer. The last checkpoint is kept.
        FileError: a file could not be written. Files that were saved before are unchanged.
        CheckpointError: the checkpoint does not belong to this run.
    """
    loop_class = _TrainingLoop if task.group.leads else _Follower
    return loop_class(task, data, folder, reporter, stop, resume, first, trackers).run()


def first_state(task: Task, data: Data) -> TrainState:
    """The state before the first update of a run. Nothing is written.

    Raises:
        SpecError, NumericError, CheckpointError: no training begins with these weights.
    """
    weights = first_weights(task, data.train)
    check_trainable(task.network, weights)
    return task.trainer.init(weights)


def is_over(config: RunConfig, progress: records.ProgressRecord) -> bool:
    """Whether a run with these settings has nothing left to train."""
    best = None if progress.best is None else progress.best.epoch
    return progress.epoch >= config.epochs or (progress.batch == 0 and out_of_patience(config, progress.epoch, best))


def why_early(config: RunConfig, epoch: int, best: Mapping[str, Any]) -> str:
    """Why a run ended after `epoch` epochs. `best` describes the best one, as `records.Best`."""
    return (
        f"after epoch {epoch} of {config.epochs}, because no epoch was better than epoch {best['epoch']} by "
        f"{best['by']} (--patience {config.patience})"
    )


def out_of_patience(config: RunConfig, epoch: int, best: int | None) -> bool:
    """Whether a run ends after its first `epoch` epochs, because epoch number `best` is still the best one."""
    return best is not None and 0 < config.patience <= epoch - best


def identity_of(task: Task, data: Data | None) -> dict[str, Any]:
    """What a checkpoint says about its run and its data, which must be the same when it continues.

    None: the data are not known, so the run cannot continue.
    """
    config = task.config
    return {
        "config": config.digest(),
        "epochs": config.epochs,
        "data": "" if data is None else data.fingerprint(),
        "contents": {} if data is None else data.contents,
        "samples": None if data is None else len(data.train),
        "network": task.network.notation,
        "inputs": task.inputs.to_json(),
        "backend": task.backend.name,
        "contract": CONTRACT_VERSION,
        "threads": thread_count(config.threads),
        "processes": task.group.size,
    }


def begin_with(weights: Mapping[str, Float32], task: Task, data: Data, folder: RunFolder, reporter: Reporter) -> None:
    """Write the checkpoint of a run that begins with these weights, without training. The folder must be locked.

    Raises:
        FileError: it could not be written.
    """
    first = task.trainer.init(dict(weights))
    loop = _TrainingLoop(task, data, folder, reporter, StopRequest(), None, first, None)
    try:
        loop.save()
    finally:
        loop.close_records()


class _TrainingLoop:
    def __init__(
        self,
        task: Task,
        data: Data,
        folder: RunFolder,
        reporter: Reporter,
        stop: StopRequest,
        resume: Checkpoint | None,
        first: TrainState | None = None,
        trackers: Sequence[OpenTracker] | None = (),
    ) -> None:
        self.trackers_of_caller = trackers
        self.task, self.data, self.folder, self.reporter, self.stop = task, data, folder, reporter, stop
        self.config = task.config
        self.batches = updates_per_epoch(self.config, len(data.train))
        self.has_test = "test" in data.splits()
        self.warned: set[tuple[str, str]] = set()
        self.bits = {projection.name: projection.synapse.weight_bits for projection in task.network.graph.projections}
        self.next = _Position()
        self.step, kept_bytes = self.begin(resume, first)
        self.start_step = self.step
        epochs = self.config.epochs
        self.course = Course(
            epochs * self.batches,
            self.config.batch_size,
            self.evaluations(epochs),
            updates_done=self.step,
            evaluated=self.evaluations(self.next.epoch),
        )
        self.load_of = {"window": Workload(task.group.size), "epoch": Workload(task.group.size)}
        self.has_lost = self.open_records(kept_bytes)
        self.stop_code = 0
        self.saved_at = time.monotonic()

    def begin(self, resume: Checkpoint | None, first: TrainState | None) -> tuple[int, int]:
        """Set the state and the position. Returns the number of updates so far, and how much of the records is kept."""
        if resume is None:
            self.state = first_state(self.task, self.data) if first is None else first
            self.send_start(0)
            return 0, 0
        folder = self.folder
        saved, self.state = resumed(self.config, self.task, self.data, resume, folder)
        if not saved.contents:
            self.reporter.warn(
                f"{folder.path} was begun by an earlier version, which kept a digest of 16 samples of each split. "
                "These samples are the same, but the others may differ. From here on, all samples are compared"
            )
        if not is_over(self.config, saved):
            self.warn_of_changes(saved)
        self.next = _Position(
            saved.epoch,
            saved.batch,
            Sums.from_json(saved.sums.model_dump()),
            Sums.from_json(saved.window.model_dump()),
            None if saved.best is None else saved.best.model_dump(),
        )
        for name in ("last", "best"):
            checkpoint.remove_leftovers(folder.files, name)
        self.send_start(saved.step)
        return saved.step, saved.metrics_bytes

    def send_start(self, step: int) -> None:
        """Send the other processes the position at which the run begins."""
        group = self.task.group
        if group.size > 1:
            group.share({"step": step, "next": dataclasses.asdict(self.next)})
            group.share_bytes(checkpoint.as_bytes(self.task.trainer.export_state(self.state)))

    def open_records(self, kept_bytes: int) -> bool:
        """Open the files of metrics, and keep their first `kept_bytes`. Returns whether some of these are lost."""
        folder, reporter = self.folder, self.reporter
        self.metrics = MetricsFile(folder.files, kept_bytes)
        self.settings = folder.settings()
        self.trackers = None
        if self.trackers_of_caller is not None and (names_of(self.config) or self.trackers_of_caller):
            entries = read_records(folder.path, self.config, reporter.warn)
            self.trackers = open_trackers(folder.files, self.config, entries, self.trackers_of_caller, reporter.warn)
        elif self.metrics.has_lost_lines:
            reporter.warn(f"{folder.metrics} lost lines that were written before the checkpoint")
        return self.metrics.has_lost_lines

    def close_records(self) -> None:
        """Close the files of metrics."""
        self.metrics.close()
        if self.trackers is not None:
            self.trackers.close(finished=self.is_over)

    def record(self, line: dict[str, Any]) -> None:
        """Write a line of metrics."""
        self.metrics.write(line)
        if self.trackers is not None:
            self.trackers.write(line)

    def warn_of_changes(self, saved: records.ProgressRecord) -> None:
        """Print why a resumed run may not end with the same bits as an uninterrupted one."""
        if self.config.precision == "reproducible" and saved.contract != CONTRACT_VERSION:
            self.reporter.warn(
                f"{self.folder.path} was begun under version {saved.contract} of the exact-arithmetic "
                f"contract and continues under version {CONTRACT_VERSION}, so its result will match "
                "neither version bit for bit (docs/exactness.md)"
            )
        threads = thread_count(self.config.threads)
        if self.config.precision == "fast" and saved.threads not in (None, threads):
            self.reporter.note(
                f"threads: {threads} from here on, {saved.threads} before; in fast precision sums are then added in "
                "another order, and the last bits of the result may differ"
            )
        size = self.task.group.size
        if self.config.precision == "fast" and saved.processes != size:
            self.reporter.note(
                f"processes: {size} from here on, {saved.processes} before; in fast precision sums are then added in "
                "another order, and the last bits of the result may differ"
            )

    def run(self) -> Outcome:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close_records)
            # The records of the last checkpoint must be those of the file, also when this process is killed.
            if self.step == 0 or self.has_lost:
                self.save()
            self.reporter.begin(self.config.epochs, self.course)
            try:
                return self.epochs()
            except Stopped as stopped:
                if not isinstance(stopped, Abandoned):
                    self.save()
                raise Stopped(stopped.reason, stopped.exit_code, self.step) from None
            except NumericError as error:
                cause = str(error).removeprefix(f"step {self.step}: ")
                raise NumericError(
                    f"update {self.step + 1} (epoch {self.next.epoch + 1}): {cause}; the last checkpoint, from before, "
                    f"is in {self.folder.path}"
                ) from error

    def epochs(self) -> Outcome:
        test: dict[str, Any] = {}
        with contextlib.closing(prefetched(self.load, self.remaining())) as batches:
            while not self.is_over:
                began = time.perf_counter()
                while self.next.batch < self.batches:
                    (epoch, number, _), (batch, labels) = next(batches)
                    assert (epoch, number) == (self.next.epoch, self.next.batch)
                    self.update(batch, labels, began)
                    began = time.perf_counter()
                    self.stop.obey(self.stop_code or (self.stop.requested() if self.task.group.size == 1 else 0))
                    if self.next.batch < self.batches and self.overdue():
                        self.save()
                        began = time.perf_counter()
                test = self.end_epoch()
        if not test and self.has_test:
            # The run was already finished when it was resumed.
            test = self.evaluate("test").record("test")
        assert self.next.best is not None
        return Outcome(self.step, test, self.next.best)

    @property
    def is_over(self) -> bool:
        """Whether the run has nothing left to train."""
        position = self.next
        best = None if position.best is None else int(position.best["epoch"])
        return position.epoch == self.config.epochs or (
            position.batch == 0 and out_of_patience(self.config, position.epoch, best)
        )

    def remaining(self) -> Iterator[tuple[int, int, Int64]]:
        """Epoch, batch and sample numbers of all remaining updates."""
        n, size = len(self.data.train), self.config.batch_size
        first_epoch, first_batch = self.next.epoch, self.next.batch
        for epoch in range(first_epoch, self.config.epochs):
            order = permutation(self.config.seed, Stream.SHUFFLE, n, step=epoch)
            for number in range(first_batch if epoch == first_epoch else 0, self.batches):
                yield epoch, number, order[number * size : (number + 1) * size]

    def load(self, key: tuple[int, int, Int64]) -> tuple[Batch[Inputs], Int64]:
        epoch, _, indices = key
        group = self.task.group
        group.beat("reading samples")
        part = group.part(len(indices))
        batch, labels = self.task.batch(self.data.train, indices, part)
        augmentation, part_indices = self.task.augmentation, indices_of_part(indices, part)
        inputs = augment(batch.inputs, part_indices, seed=self.config.seed, epoch=epoch, augmentation=augmentation)
        return batch._replace(inputs=inputs), labels

    def update(self, batch: Batch[Inputs], labels: Int64, began: float) -> None:
        group = self.task.group
        group.beat(f"update {self.step + 1}")
        waited = group.waited
        with group.stepping(), self.stop.abandoning(self.step == self.start_step and group.size == 1):
            self.state, result = self.task.trainer.step(self.state, batch)
        score = self.task.score(result.spikes, batch.targets, labels, lengths=batch.lengths)
        loss = math.fsum(score.losses) / len(labels)
        self.step += 1
        self.next.batch += 1
        seconds = time.perf_counter() - began
        self.agree(seconds, group.waited - waited)
        for sums in (self.next.sums, self.next.window):
            sums.add(
                samples=len(labels),
                loss=loss,
                rates=result.rates,
                padded=padded(batch),
                gradient_norm=result.gradient_norm,
                seconds=seconds,
                zeroed=result.zeroed,
                penalties=result.penalties,
                **score.sums,
            )
        self.watch_grids(result)
        if self.step % self.config.log_every == 0:
            self.watch_rates(self.next.window)
            self.watch_zeroed(self.next.window)
            self.record(
                {
                    "kind": "step",
                    "step": self.step,
                    "epoch": self.next.epoch + 1,
                    **self.next.window.training(),
                    **self.load_of["window"].figures(),
                    "learning_rate": result.learning_rate,
                    "grids": {
                        name: {"bits": g.bits, "exponent": g.exponent, "headroom": round(g.headroom, 3)}
                        for name, g in result.grids.items()
                    },
                }
            )
            self.next.window, self.load_of["window"] = Sums(), Workload(group.size)
        self.course.update(len(labels), seconds)
        self.show_course()

    def agree(self, seconds: float, waited: float) -> None:
        """Tell the other processes how long this one worked on an update, and whether it has a request to stop.

        All processes then stop after the same update.
        """
        gathered = self.task.group.gather([self.stop.requested(), seconds - waited, waited])
        self.stop_code = _first(gathered[:, 0])
        for load in self.load_of.values():
            load.add(gathered[:, 1], gathered[:, 2])
        self.course.workload = self.load_of["epoch"]

    def show_course(self, activity: str = "") -> None:
        if compiling := self.course.compiled():
            self.reporter.note(f"compiling the kernels: {compiling:.0f} s")
        sums = self.next.sums
        quality, value = sums.headline
        means = {"loss": sums.loss / sums.samples, quality.key: value} if sums.samples else {}
        self.reporter.step(min(self.next.epoch, self.config.epochs - 1), means, activity)

    def evaluations(self, epochs: int) -> int:
        """Number of samples that are evaluated in the first `epochs` epochs."""
        splits = self.data.splits()
        interval = self.config.test_every
        tests = epochs // interval if interval else 0
        # The last epoch always has a test.
        tests += epochs == self.config.epochs and (not interval or epochs % interval > 0)
        return epochs * len(splits.get("validation", ())) + tests * len(splits.get("test", ()))

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate, record, and keep the best. Returns the record of the test, empty if there was none."""
        config, position = self.config, self.next
        number = position.epoch + 1
        step_and_epoch = {"step": self.step, "epoch": number}
        validation = self.evaluate("validation") if self.data.validation is not None else None
        candidate = self.candidate(position.sums, validation, step_and_epoch)
        is_best = position.best is None or _is_better(candidate, position.best)
        # The position keeps the old one until nothing can stop the end of the epoch, which is then repeated.
        best = candidate if position.best is None or is_best else position.best
        ends_early = number < config.epochs and out_of_patience(config, number, best["epoch"])
        is_last = number == config.epochs or ends_early
        tested = self.has_test and (is_last or (config.test_every > 0 and number % config.test_every == 0))
        test = self.evaluate("test") if tested else None
        self.watch_rates(position.sums)
        self.watch_zeroed(position.sums)

        rate = self.task.trainer.optimizer.rate(max(0, self.step - 1))
        load, self.load_of["epoch"] = self.load_of["epoch"], Workload(self.task.group.size)
        training = {"kind": "epoch", **position.sums.training(), **load.figures(), "learning_rate": rate}
        entries: list[dict[str, Any]] = [training]
        entries += [e.record(name) for name, e in (("validation", validation), ("test", test)) if e is not None]
        for entry in entries:
            self.record({"kind": entry["kind"], **step_and_epoch, **entry})
        self.report(number, position.sums, validation, test)

        position.best = best
        if is_best:
            self.save_best(number, candidate)
        if ends_early:
            self.reporter.note(f"the run ends {why_early(config, number, best)}")
        position.epoch, position.batch, position.sums = number, 0, Sums()
        self.save()
        return entries[-1] if test is not None else {}

    def save_best(self, epoch: int, candidate: dict[str, Any]) -> None:
        """Save the best checkpoint so far."""
        self.task.group.beat("saving best")
        checkpoint.save(
            self.folder.files,
            "best",
            self.exported(),
            {"epoch": epoch, "best": candidate, **self.identity()},
            step=self.step,
        )

    def candidate(self, sums: Sums, validation: Evaluation | None, step_and_epoch: dict[str, int]) -> dict[str, Any]:
        """What decides whether this epoch is the best so far, as `records.Best` reads it."""
        if validation is None:
            loss = sums.loss / sums.samples
            return {**step_and_epoch, "by": "training loss", "value": loss, "loss": loss}
        quality, value = validation.sums.headline
        loss = validation.sums.means()["loss"]
        if not quality.is_share:
            return {**step_and_epoch, "by": "validation loss", "value": loss, "loss": loss}
        return {**step_and_epoch, "by": f"validation {quality.key}", "value": value, "loss": loss}

    def evaluate(self, name: str) -> Evaluation:
        # An interrupted evaluation must start again. The clock may only do this after the run has made progress.
        clock = self.step > self.start_step
        evaluated, batch_start = 0, time.perf_counter()

        def on_progress(samples_done: int) -> None:
            nonlocal evaluated, batch_start
            now = time.perf_counter()
            self.course.evaluate(samples_done - evaluated, now - batch_start)
            evaluated, batch_start = samples_done, now
            self.show_course(name)
            stop_together(self.stop, self.task.group, clock=clock)

        split, batch_size = self.data.splits()[name], self.config.batch_size
        return evaluate(self.task, self.state, split, batch_size, on_progress, measuring=Measuring())

    def report(self, number: int, sums: Sums, validation: Evaluation | None, test: Evaluation | None) -> None:
        means = sums.means()
        quality, value = sums.headline
        measure_texts = [f"train {quality.text(value)}"]
        for name, evaluation in (("valid.", validation), ("test", test)):
            if evaluation is not None:
                text = quality.text(evaluation.sums.headline[1])
                measure_texts.append(f"{name} {text}{_by_chance(evaluation, quality.key)}")
        rate, rates = self.course.rate, means["rates"].values()
        penalties = sums.mean_penalties()
        self.reporter.note(
            f"epoch {number}/{self.config.epochs}  loss {means['loss']:.4f}  "
            + (f"rate penalty {math.fsum(penalties.values()):.4f}  " if penalties else "")
            + f"{quality.name} "
            + " ".join(measure_texts),
            "" if rate is None else f"{rate:.0f} samples/s",
            f"rates {min(rates):.3f} to {max(rates):.3f}",
        )

    def identity(self) -> dict[str, Any]:
        """Values that must be the same in a checkpoint."""
        return identity_of(self.task, self.data)

    def exported(self) -> dict[str, AnyArray]:
        """The state to save, which `import_checkpoint` accepts.

        Raises:
            NumericError: a value is one that `import_checkpoint` refuses: a second moment overflows in silence.
        """
        tensors = self.task.trainer.export_state(self.state)
        try:
            check_state(self.task.network, tensors)
        except NumericError as error:
            raise NumericError(
                f"the state after update {self.step} is not saved, because {error}; lower the learning rate or clip "
                "gradients"
            ) from error
        return tensors

    def save(self) -> None:
        position = self.next
        self.task.group.beat("saving metrics")
        metrics_bytes = self.metrics.sync()
        self.task.group.beat("saving last")
        checkpoint.save(
            self.folder.files,
            "last",
            self.exported(),
            {
                "epoch": position.epoch,
                "batch": position.batch,
                "finished": self.is_over,
                "sums": position.sums.to_json(),
                "window": position.window.to_json(),
                "best": position.best,
                "metrics_bytes": metrics_bytes,
                "metrics_sha256": self.metrics.sha256,
                **self.identity(),
            },
            step=self.step,
        )
        self.saved_at = time.monotonic()
        self.watch_files()

    def watch_files(self) -> None:
        """Stop if another program has removed or changed the records or the settings of the run.

        A file that was removed is written again.

        Raises:
            FileError: it has.
        """
        folder, lost = self.folder, dict[str, bool]()
        if not self.metrics.is_kept:
            lost[folder.metrics.name] = self.metrics.restore()
        if self.settings is not None and folder.settings() != self.settings:
            lost[folder.config.name] = is_missing = folder.files.status(folder.config.name) is None
            if is_missing:
                folder.files.write(folder.config.name, self.settings)
        if lost:
            lost_paths = " and ".join(str(folder.path / name) for name in lost)
            restored_names = [name for name, is_again in lost.items() if is_again]
            missing_names = [name for name, is_again in lost.items() if not is_again]
            raise FileError(
                f"{lost_paths} {'were' if len(lost) > 1 else 'was'} removed, replaced or changed while the run "
                f"trained. The run stops after the checkpoint of update {self.step}. "
                + (f"It has written {' and '.join(restored_names)} again. " if restored_names else "")
                + (f"Put {' and '.join(missing_names)} of this run back. " if missing_names else "")
                + "Then continue with: "
                + shlex.join(["stsbp", "train", "--resume", as_argument(folder.path)])
            )

    def overdue(self) -> bool:
        return time.monotonic() - self.saved_at >= self.config.checkpoint_every

    def watch_grids(self, result: StepResult) -> None:
        # A layer whose weights are all zero needs no bits, so do not report it.
        reduced_bits = {
            name: grid.bits
            for name, grid in result.grids.items()
            if grid.bits < self.bits[name] and np.isfinite(grid.headroom) and grid.headroom < 24
        }
        self.warn_once(
            {
                (name, f"bits {bits}"): f"layer {name}: its weights fell to {bits} of {self.bits[name]} bits at update "
                f"{self.step}, so that its sums stay exact; fewer inputs, pooling or weight decay keep more"
                for name, bits in reduced_bits.items()
            }
        )

    def watch_rates(self, sums: Sums) -> None:
        # A readout has no spikes.
        last = self.task.network.blocks[-1].name if self.task.network.has_readout else None
        rates = {name: sums.rate(name) for name in sums.rates if name != last}
        self.warn_once(
            {
                (name, "silent"): f"layer {name} is silent: {rate:.1e} spikes per neuron and step up to update "
                f"{self.step}; a larger --init-gain, an --init-rate, a lower --threshold or a wider surrogate wakes it"
                for name, rate in rates.items()
                if rate < SILENT_RATE
            }
        )
        self.warn_once(
            {
                (name, "saturated"): f"layer {name} is saturated: {rate:.2f} spikes per neuron and step up to update "
                f"{self.step}; a smaller --init-gain or a higher --threshold reduces its rate"
                for name, rate in rates.items()
                if rate > SATURATED_RATE
            }
        )

    def watch_zeroed(self, sums: Sums) -> None:
        self.warn_once(
            {
                (name, "zeroed"): f"layer {name}: the error grid of reproducible precision zeroed {share:.0%} of its "
                f"errors up to update {self.step}, and gradients may vanish; --precision fast keeps them, and a "
                "smaller --init-gain or a wider surrogate brings them closer together"
                for name, share in sums.zeroed_shares().items()
                if share > ZEROED_SHARE
            }
        )

    def warn_once(self, texts: Mapping[tuple[str, str], str]) -> None:
        """Print warnings by layer and kind, each once. Of many layers at a time, only a few are printed in full."""
        new = [key for key in texts if key not in self.warned]
        self.warned.update(new)
        for key in new[:_IN_FULL]:
            self.reporter.warn(texts[key])
        if further_keys := new[_IN_FULL:]:
            self.reporter.warn(f"the same holds for {listed(name for name, _ in further_keys)}")


def _is_better(new: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether an epoch is better than the best before it.

    With few validation samples, equal accuracies are frequent. The validation loss then decides between them.
    """
    if not new["by"].endswith(" loss") and new["value"] != best["value"]:
        return bool(new["value"] > best["value"])
    return best["loss"] is not None and bool(new["loss"] < best["loss"])


def _first(requests: AnyArray) -> int:
    """The first request to stop among those of all processes (`StopRequest.requested`), else 0."""
    return next((int(request) for request in requests if request), 0)


def resumed(
    config: RunConfig, task: Task, data: Data, saved: Checkpoint, folder: RunFolder
) -> tuple[records.ProgressRecord, TrainState]:
    """Position and state of the checkpoint from which a run continues. Nothing is written.

    Args:
        config: the settings in the run's folder.
        task, data: network and samples of the run.
        saved: the checkpoint `last` of the run in `folder`.

    Raises:
        CheckpointError: the checkpoint was made with other settings or data, or is damaged.
    """
    progress = checkpoint.progress_of(saved, folder.path)
    checkpoint.check_of(config, saved.info, folder.path, "last")
    if differs := data.unlike(progress):
        raise CheckpointError(
            f"the data are not those that the run in {folder.path} was begun with; different: {differs}. Give the "
            f"same --data-dir. To train on other data, begin a new run; --init-from {str(folder.path)!r} gives it "
            "these weights"
        )
    state = import_checkpoint(task, saved, folder)
    _check_position(config, progress, len(data.train), folder)
    check_records(progress, folder.path)
    return progress, state


def _check_position(config: RunConfig, saved: records.ProgressRecord, samples: int, folder: RunFolder) -> None:
    """Raise `CheckpointError` if the parts of a checkpoint contradict each other or the run."""
    size, batches = config.batch_size, updates_per_epoch(config, samples)
    consistent = (
        saved.epoch <= config.epochs
        and saved.batch <= (batches if saved.epoch < config.epochs else 0)
        and saved.step == saved.epoch * batches + saved.batch
        and saved.sums.batches == saved.batch
        and saved.sums.samples == min(saved.batch * size, samples)
        and saved.window.batches <= saved.step % config.log_every
        and saved.window.batches <= saved.window.samples <= saved.window.batches * size
        and all(set(sums.sequence) in (set(), _SEQUENCE_SUMS) for sums in (saved.sums, saved.window))
        and (saved.best is None) == (saved.epoch == 0)
    )
    if not consistent:
        raise CheckpointError(
            f"{folder.path / 'last.json'} is damaged: update {saved.step}, epoch {saved.epoch}, batch "
            f"{saved.batch}, sums and best do not fit together. Copy the run folder again if it is a copy; "
            "otherwise train anew with --overwrite"
        )


class _Follower(_TrainingLoop):
    """The loop in a process that is not rank 0. It computes the same, but writes nothing."""

    def begin(self, resume: Checkpoint | None, first: TrainState | None) -> tuple[int, int]:
        group = self.task.group
        start: dict[str, Any] = group.share(None)
        position = start["next"]
        sums = {name: Sums.from_json(position[name]) for name in ("sums", "window")}
        self.next = _Position(**{**position, **sums})
        self.state = self.task.trainer.import_state(safetensors.numpy.load(group.share_bytes(None)))
        return int(start["step"]), 0

    def open_records(self, kept_bytes: int) -> bool:
        return False

    def close_records(self) -> None:
        pass

    def record(self, line: dict[str, Any]) -> None:
        pass

    def save(self) -> None:
        self.saved_at = time.monotonic()

    def save_best(self, epoch: int, candidate: dict[str, Any]) -> None:
        pass


def check_state(network: NetworkSpec, tensors: Mapping[str, AnyArray]) -> None:
    """Check that training can continue from the tensors of a checkpoint, before they are saved and after reading.

    Raises:
        ShapeError: weights have other names or shapes than those of the network.
        NumericError: a value is not finite, or a weight or running statistic is outside its range.
    """
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            raise NumericError(f"its tensor {name} has values that are not finite")
    prefix = "weight/"
    weights = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    check_trainable(network, weights)


def import_checkpoint(task: Task, saved: Checkpoint, folder: RunFolder) -> TrainState:
    """The state of a checkpoint on the task's backend.

    Raises:
        CheckpointError: its tensors do not fit the run's network.
    """
    try:
        step = saved.tensors["step"]
        if step.shape != () or step.dtype != np.int64 or int(step) != saved.info["step"]:
            raise ShapeError(f"its tensor step must be one int64, {saved.info['step']}")
        check_state(task.network, saved.tensors)
        return task.trainer.import_state(saved.tensors)
    except (ShapeError, NumericError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder.path} does not fit the network {task.network}: {error}; was "
            "config.toml changed?"
        ) from error


def _by_chance(evaluation: Evaluation, measure: str) -> str:
    """The chance level of F1, without which its value says little; nothing for accuracies."""
    if measure != "f1" or evaluation.measures is None:
        return ""
    share = chance_f1(evaluation.measures)
    return "" if share is None else f" (by chance {share:.2%})"
