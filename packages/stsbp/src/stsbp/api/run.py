"""A trained run in Python: `stsbp.Run`, which `stsbp.train`, `stsbp.load_run` and `stsbp.save_run` return."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.validation import integer, shown

from stsbp.api.calls import flag, in_python, opened, path_of
from stsbp.api.progress import ProgressArgument, reporter_for, warn_caller
from stsbp.config import is_named
from stsbp.datasets.arrays import ARRAYS, GivenData, given_data
from stsbp.energy.stored import store_energy
from stsbp.errors import CheckpointError, ConfigError
from stsbp.interop.export import export
from stsbp.report.write import Origin, ReportRequest, report_path, write_report
from stsbp.threads import limited_threads
from stsbp.training import compare as comparison
from stsbp.training.evaluate_run import EvaluationRequest, evaluate_run
from stsbp.training.loop import out_of_patience
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained, load_trained

__all__ = ["Exported", "Run", "compared", "opened_run", "read_run"]


@dataclass(frozen=True)
class Exported:
    """A file for other programs, which `Run.export` wrote. It can be used as a path, and `print` shows the lines.

    Attributes:
        path: the file; for `c`, the folder.
        lines: what `stsbp export` prints: what was written, and what is different in the other program.
    """

    path: Path
    lines: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Run(Trained):
    """A trained network, and the folder of its run.

    Attributes:
        folder: the folder of the run.
        checkpoint: name of the checkpoint that was read, `last` or `best`.
    """

    folder: Path = field(kw_only=True)
    checkpoint: Literal["last", "best"] = field(default="last", kw_only=True)

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"{self.info['epoch']} of {self.settings.epochs} epochs"
        return f"Run({str(self.folder)!r}, {self.settings.dataset}, network {self.network}, {state})"

    @property
    def finished(self) -> bool:
        """Whether nothing was left to train when the checkpoint was saved: all epochs were done, or `patience` ended
        the run."""
        epoch, best = self.info["epoch"], self.info.get("best")
        if epoch >= self.settings.epochs:
            return True
        return self.info.get("batch") == 0 and out_of_patience(self.settings, epoch, best and best["epoch"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the run as `metrics.jsonl` has them, without nesting: `pandas.DataFrame(run.metrics)`.

        `kind` is `step` (every `log_every` updates), `epoch` or `evaluation`. Spike rates are `rates.conv1` and so on.

        Raises:
            CheckpointError: the records cannot be read, or are not those of the run.
        """
        with in_python():
            self._check_current()
            return [comparison.flat(record) for record in self._records()]

    def _check_current(self) -> None:
        """Raise `CheckpointError` if the folder's run has other settings than this object, which was loaded before."""
        if RunFolder(self.folder).read_config().digest() != self.settings.digest():
            raise CheckpointError(
                f"{self.folder} was continued or replaced after this object was loaded; load it again: "
                f"stsbp.load_run({str(self.folder)!r})"
            )

    def evaluate(
        self,
        data: Any = None,
        split: str = "test",
        *,
        on: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        tolerance: int | None = None,
        tolerances: Sequence[int] | None = None,
        cost: float | None = None,
        seed: int | None = None,
        energy: bool = False,
        energy_table: str | os.PathLike[str] | None = None,
        neurobench: bool = False,
        progress: ProgressArgument = False,
    ) -> dict[str, Any]:
        """Evaluate the network, as `stsbp evaluate --json` does.

        Args:
            data: other samples, as `stsbp.train` takes them: all of `(inputs, labels)`, or the test samples if there
                are some. None: the data of the run.
            split: split of the data of the run: `test`, `validation` or `train`.
            on: name of another data set, whose test samples are used.
            data_dir: folder of the data set; None: that of the run.
            batch_size: number of samples at a time; None: that of the run.
            tolerance: largest distance in steps at which an output spike matches a target spike; None: 1.
            tolerances: tolerances in steps of the measures of spike times; None: those of the command line.
            cost: cost of moving a spike by one step in the Victor-Purpura distance; None: 1.
            seed: seed with which targets are shuffled between samples, for the chance level; None: 0.
            energy: whether to count operations and estimate their energy, as `stsbp evaluate --energy` does.
            energy_table: `float32`, `int32`, `int8`, or a TOML or JSON file; None: `float32`.
            neurobench: whether to run the harness of NeuroBench too, as `stsbp evaluate --neurobench` does.
            progress: as for `stsbp.train`.

        Returns:
            The results by name: `samples`, `loss`, `rates`, `accuracy`, `confusion` (row: true class), and so on.

        Raises:
            ConfigError: the data are not those of the run, or do not fit it.
            DataError: the data are missing or malformed.
        """
        with in_python(), limited_threads(self.settings.threads):
            if isinstance(data, str):
                data, on = None, self._one_of(data, on)
            other = None if data is None else self._fitting(data)
            request = EvaluationRequest(
                split=split,
                on=self._one_of(ARRAYS.name, on) if other is not None else on,
                data_dir=None if data_dir is None else str(path_of("data_dir", data_dir)),
                other=None if other is None else other.info,
                batch_size=None if batch_size is None else _batch_size(batch_size),
                tolerance=tolerance,
                tolerances=None if tolerances is None else _steps(tolerances),
                cost=cost,
                seed=seed,
                energy=flag("energy", energy),
                energy_table=None if energy_table is None else str(path_of("energy_table", energy_table)),
                neurobench=flag("neurobench", neurobench),
            )
            request.check(self.settings)
            record = evaluate_run(self, request, reporter_for(progress)).record
            if request.energy and request.on is None:
                store_energy(self.folder, record, self.info["sha256"], warn_caller)
        return {"run": str(self.folder), "checkpoint": self.checkpoint, **record}

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        split: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        samples: bool | None = None,
        progress: ProgressArgument = False,
    ) -> Path:
        """Write one HTML file that shows the run, as `stsbp report` does. Returns its path.

        Args:
            path: the file; None: beside the folder of the run.
            split: samples to show; None: the first of test, validation and train that exists.
            data_dir: folder of the data set; None: that of the run.
            samples: whether to include the confusion matrix and samples, for which the data are needed. None: yes,
                unless the run was trained on arrays and `load_run` did not get them.
            progress: as for `stsbp.train`.

        Raises:
            FileError: there is another file, or it cannot be written.
            ConfigError, DataError: as `evaluate`.
        """
        with in_python(), limited_threads(self.settings.threads):
            self._check_current()
            if samples is None:
                samples = self.settings.dataset != ARRAYS.name or self.given is not None
            place = None if data_dir is None else str(path_of("data_dir", data_dir))
            request = ReportRequest(split, place, flag("samples", samples))
            file = report_path(self.folder, None if path is None else path_of("path", path))
            reporter = reporter_for(progress)
            origin = Origin.of_run(RunFolder(self.folder), self.checkpoint, self, reporter.warn)
            write_report(self, origin, file, request, reporter)
            return file

    def export(self, form: str, path: str | os.PathLike[str], **options: Any) -> Exported:
        """Write the network for other programs, as `stsbp export --to FORM` does. Returns the path, and what is
        different in the other program.

        Args:
            form: `c`, `onnx`, `nir` or `hub`.
            path: the file to write; for `c` and `hub`, a folder.
            options: options of the format, by their names on the command line, for example `states=True`.

        Raises:
            ConfigError: the format is unknown, or does not have an option.
            StsbpError: the format cannot express a part of the network, or the file cannot be written.
        """
        with in_python():
            file = path_of("path", path)
            return Exported(file, tuple(export(self, self.folder, form, file, options, self._records)))

    def push_to_hub(self, repository: str, *, private: bool | None = None, license: str = "") -> str:
        """Send the network to a repository of the Hugging Face Hub, as the folder that `export("hub", ...)` writes.

        Args:
            repository: `OWNER/NAME`. It is made if it is missing.
            private: whether a repository that is made is private; None: as the account says.
            license: licence of the weights for the model card, such as `apache-2.0`; empty: none is stated.

        Returns:
            The hash of the commit: `f"hub:{repository}@{commit}"` names the network from then on.

        Raises:
            ConfigError: huggingface_hub is not installed, or a name has another form.
            CheckpointError: the Hub refuses it, for example because there is no login.
        """
        from stsbp.hub.download import push_folder

        with in_python(), tempfile.TemporaryDirectory(prefix="stsbp-") as path:
            options = {"license": license} if license else {}
            export(self, self.folder, "hub", Path(path), options, self._records)
            return push_folder(Path(path), repository, private=private)

    def _records(self) -> list[dict[str, Any]]:
        """The records of the run, as they are stored."""
        return read_records(self.folder, self.settings, warn_caller)

    def _one_of(self, name: str, on: str | None) -> str:
        if on is not None:
            raise ConfigError(f"data and on={on!r} both say what to evaluate on; give one of them")
        return name

    def _fitting(self, data: Any) -> GivenData:
        """Arrays whose classes and counts are those of the run, which they may not contain completely."""
        inputs = self.task.inputs
        return given_data(data, inputs.classes or None, inputs.input_max)


def _batch_size(number: object) -> int:
    if (size := integer(number)) is None or size < 1:
        raise ConfigError(f"batch_size is a number of samples, 1 or more, got {shown(number)}")
    return size


def _steps(tolerances: object) -> tuple[int, ...]:
    if isinstance(tolerances, str) or not isinstance(tolerances, (Sequence, np.ndarray)):
        raise ConfigError(f"tolerances are numbers of steps such as (0, 1, 2), got {shown(tolerances)}")
    return tuple(tolerances)


def opened_run(
    folder: RunFolder,
    checkpoint: Literal["last", "best"],
    backend: AbstractBackend,
    given: GivenData | None = None,
) -> Run:
    """The run in a folder, read for a backend that is open."""
    trained = load_trained(folder, checkpoint, backend, warn=warn_caller)
    own = {entry.name: getattr(trained, entry.name) for entry in fields(Trained)}
    own["given"] = None if given is None else given.info
    return Run(**own, folder=folder.path, checkpoint=checkpoint)


def read_run(
    run: str | os.PathLike[str],
    checkpoint: Literal["last", "best"],
    backend: AbstractBackend | str | None,
    device: str | None,
    data: Any,
) -> Run:
    """As `stsbp.load_run`."""
    with in_python():
        if checkpoint not in ("last", "best"):
            raise ConfigError(f"checkpoint is 'last' or 'best', got {shown(checkpoint)}")
        try:
            folder = RunFolder(Path(run))
        except TypeError as error:
            raise CheckpointError(
                f"a run is the path of its folder, such as 'runs/digits', got {shown(run)}"
            ) from error
        if is_named(str(run)):
            raise CheckpointError(f"{shown(str(run))} has no folder of a run; use stsbp.load_hub")
        folder.read_config()
        given = None if data is None else given_data(data)
        return opened_run(folder, checkpoint, opened(backend, device), given)


def compared(
    runs: Sequence[Run | str | os.PathLike[str]], *, sort: str | None, reverse: bool, short: bool
) -> list[dict[str, Any]]:
    """As `stsbp.compare`."""
    with in_python():
        if isinstance(runs, (str, os.PathLike, Run)) or not isinstance(runs, Sequence):
            raise ConfigError(f"runs are a list of runs or of their folders, got {shown(runs)}")
        folders = [run.folder if isinstance(run, Run) else path_of("a run", run) for run in runs]
        if not isinstance(sort, (str, type(None))):
            raise ConfigError(f"sort is the name of a column, got {shown(sort)}")
        run_facts = [comparison.facts(folder, warn_caller) for folder in folders]
        in_order = comparison.sorted_facts(run_facts, sort, reverse=flag("reverse", reverse))
        return comparison.rows(in_order, short=flag("short", short))
