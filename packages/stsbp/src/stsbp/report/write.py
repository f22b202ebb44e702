"""Writes the report of a run, for `stsbp report` and `Run.report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.typing import AnyArray, Int64

from stsbp.config import RunConfig
from stsbp.energy.stored import stored_energy
from stsbp.errors import ConfigError, DataError
from stsbp.files import real
from stsbp.report.collect import Sample, choose, run_samples, survey
from stsbp.report.page import PAGE
from stsbp.report.run_page import Content, DelayCounts, render
from stsbp.training.build import load_data
from stsbp.training.metrics import read_records
from stsbp.training.progress import Reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained

__all__ = ["Origin", "ReportRequest", "report_path", "write_report"]


@dataclass(frozen=True)
class ReportRequest:
    """What a report shows.

    Attributes:
        split: samples to show; None: the first of test, validation and train that exists.
        data_dir: folder of the data; None: that of the run.
        samples: whether the report has the confusion matrix and samples. Without them, no data set is needed.

    Raises:
        ConfigError: samples are chosen, but left out.
    """

    split: str | None = None
    data_dir: str | None = None
    samples: bool = True

    def __post_init__(self) -> None:
        for flag, value in (("--split", self.split), ("--data-dir", self.data_dir)):
            if not self.samples and value is not None:
                raise ConfigError(f"{flag} chooses samples, but --no-samples leaves them out; leave {flag} out")

    def split_of(self, config: RunConfig) -> str:
        """The split whose samples are shown."""
        return self.split or ("test" if config.test else "validation" if config.validation else "train")


def report_path(run: Path, out: Path | None = None) -> Path:
    """The file of the report: `out`, or one beside the run's folder.

    Raises:
        FileError: there is a file that no report is, or it cannot be written.
    """
    named_run = run if run.name not in ("", "..") else real(run)
    path = named_run.parent / f"{named_run.name}.html" if out is None else out
    # Checked before samples are computed, which can take minutes.
    PAGE.target_path(path)
    return path


@dataclass(frozen=True)
class Origin:
    """What is known about the training of a network, besides its settings.

    Attributes:
        path: the folder of the run; for a network that is none of a run, its name.
        checkpoint: name of the checkpoint; empty: the network is none of a run.
        records: lines of metrics.
        starts: entries of the environment file.
        energy: the stored energy of the checkpoint; None: there is none.
        training_command: the command that trains a network that is none of a run; empty: it is that of a run.
    """

    path: Path
    checkpoint: str = ""
    records: Sequence[Mapping[str, Any]] = ()
    starts: Sequence[Mapping[str, Any]] = ()
    energy: Mapping[str, Any] | None = None
    training_command: str = ""

    @classmethod
    def of_run(cls, folder: RunFolder, checkpoint: str, trained: Trained, warn: Callable[[str], object]) -> Origin:
        """What the folder of a run says about its checkpoint.

        Raises:
            CheckpointError: the records cannot be read, or are not those of the run.
        """
        energy = stored_energy(folder.path, warn)
        is_current = energy is not None and energy["sha256"] == trained.info["sha256"]
        records = read_records(folder.path, trained.settings, warn)
        return cls(folder.path, checkpoint, records, folder.starts(), energy if is_current else None)


def write_report(trained: Trained, origin: Origin, path: Path, request: ReportRequest, reporter: Reporter) -> None:
    """Write the report of a run as one HTML file. The reporter is closed at the end.

    Args:
        trained: the network, which computes the samples.
        origin: what is known about its training.
        path: the file (`report_path`).
        request: what to show.
        reporter: shows the progress.

    Raises:
        DataError: the data are missing or malformed.
        ConfigError: the data are not those of the run.
        FileError: the file cannot be written.
    """
    try:
        content = _content(trained, origin)
        if request.samples:
            _add_samples(content, trained, request, reporter)
    finally:
        reporter.close()
    PAGE.write(path, render(content).encode())


def _content(trained: Trained, origin: Origin) -> Content:
    """What the report says without samples."""
    task, info, weights = trained.task, trained.info, trained.state.weights
    content = Content(origin.path, trained.settings, task.network, origin.records, origin.starts, trained.names)
    checkpoint = f"checkpoint {origin.checkpoint}" if origin.checkpoint else f"network {origin.path}"
    content.checkpoint = f"{checkpoint} ({info['epoch']} complete epochs, update {info['step']})"
    content.energy, content.training_command = origin.energy, origin.training_command
    content.grids = {
        projection.name: {"bits": grid.bits, "headroom": grid.headroom}
        for projection in task.network.graph.projections
        for _, grid in [task.backend.weight_grid(projection, weights[projection.parameter])]
    }
    content.learned = {
        name: task.backend.numpy(weights[name])
        for name, parameter in task.network.parameters.items()
        if parameter.learned is not None and not parameter.is_delay
    }
    # Other networks do not say with which weights their training began.
    drew_weights = origin.checkpoint and _drew_weights(content)
    first = initial_weights(task.network, task.config.seed, task.config.init_gain) if drew_weights else None
    content.delays = {
        name: DelayCounts(
            None if first is None else _whole_steps(first[name], maximum),
            _whole_steps(task.backend.numpy(weights[name]), maximum),
        )
        for name, maximum in task.network.graph.delays.items()
    }
    return content


def _drew_weights(content: Content) -> bool:
    """Whether the run began with random weights, and not with those of another run, of a file or of a caller."""
    command = (content.starts[0].get("command") if content.starts else None) or ()
    words = {str(word).partition("(")[0] for word in command}
    return not content.config.init_from and not words & {"import", "convert", "stsbp.save_run"}


def _whole_steps(delays: AnyArray, maximum: int) -> Int64:
    """Number of delays that are rounded to each number of steps, `[maximum + 1]`."""
    counts: Int64 = np.bincount(np.rint(delays).astype(np.int64), minlength=maximum + 1)
    return counts


def _add_samples(content: Content, trained: Trained, request: ReportRequest, reporter: Reporter) -> None:
    """Add the confusion matrix, and correctly and wrongly classified samples."""
    task, config, split = trained.task, trained.settings, request.split_of(trained.settings)
    try:
        data = load_data(config, reporter.loading, request.data_dir, True, trained.given)
    except DataError as error:
        raise DataError(f"{error}\n(--no-samples makes the report without the data set)") from error
    chosen = trained.samples(data, split)
    surveyed = survey(
        task,
        trained.state,
        chosen,
        config.batch_size,
        lambda samples_done: reporter.loading(f"running {split}", samples_done, len(chosen)),
    )
    content.split, content.notes = split, data.dataset.notes
    if surveyed.timing is not None:
        content.measures = surveyed.timing.record()
        content.by_neuron = surveyed.timing.record_by_neuron()
    if surveyed.regression is not None:
        content.regression = surveyed.regression.record()
    classes = len(trained.names)
    content.confusion = surveyed.confusion(classes) if classes else None
    wrong_and_right: list[list[Sample]] = []
    for numbers in choose(surveyed):
        if not numbers:
            wrong_and_right.append([])
            continue
        batch, labels = task.batch(chosen, np.array(numbers))
        names = [f"{split} sample {n}" for n in numbers]
        shown = unpacked(batch.inputs), batch.targets, labels.tolist(), batch.lengths
        wrong_and_right.append(run_samples(task, trained.state, names, *shown))
    content.wrong, content.right = wrong_and_right
