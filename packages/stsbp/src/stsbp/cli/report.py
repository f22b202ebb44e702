"""`stsbp report`: shows a run in one HTML file."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from stsbp_spec.models.encoders.packed import unpacked

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import Choice, checkpoint_option, choose_backend, limit_threads, say, say_warning, threads_option
from stsbp.errors import ConfigError, DataError
from stsbp.files import real
from stsbp.report.collect import Sample, choose, look, survey
from stsbp.report.page import PAGE, Content, render
from stsbp.training.build import load_data
from stsbp.training.metrics import read_records
from stsbp.training.progress import reporter
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained

__all__ = ["command"]


@click.command("report", short_help=COMMANDS["report"])
@click.argument("run", type=PathName(path_type=Path))
@click.option("--out", type=PathName(path_type=Path), metavar="FILE", help="File to write.  [default: RUN.html]")
@checkpoint_option()
@click.option(
    "--split",
    type=Choice(["test", "validation", "train"]),
    help="Samples to show.  [default: the first of test, validation and train that exists]",
)
@click.option("--data-dir", help="Folder of the data set.  [default: the folder that the run used]")
@click.option(
    "--samples/--no-samples",
    default=True,
    help="Include the confusion matrix and the samples. --no-samples needs no data set.  [default: --samples]",
)
@threads_option("Number of processor threads.  [default: that of the run]")
@click.pass_obj
def command(
    options: Globals,
    run: Path,
    out: Path | None,
    checkpoint: str,
    split: str | None,
    data_dir: str | None,
    samples: bool,
    threads: int | None,
) -> None:
    """Write one HTML file that shows the run in the folder RUN. You can open the file offline.

    The file contains learning curves, the confusion matrix, spike rates, settings, and the command that made the run.
    The file also shows correctly and wrongly classified samples with their rasters and membrane potentials. You can
    make a report while the run is still training.
    """
    if not samples:
        for flag, option_value in (("--split", split), ("--data-dir", data_dir)):
            if option_value is not None:
                raise ConfigError(f"{flag} chooses samples, but --no-samples leaves them out; leave {flag} out")
    place = run if run.name not in ("", "..") else real(run)
    path = place.parent / f"{place.name}.html" if out is None else out
    PAGE.place(path)
    folder = RunFolder(run)
    config = folder.read_config()
    if split is None:
        split = "test" if config.test else "validation" if config.validation else "train"
    limit_threads(config.threads if threads is None else threads)
    trained = load_trained(folder, checkpoint, choose_backend(options), warn=say_warning)
    task, classes = trained.task, trained.task.inputs.classes
    show = reporter()
    lines = read_records(folder.path, config, show.warn)
    content = Content(run, config, task.network, lines, folder.starts(), classes)
    projections = task.network.graph.projections
    grids = (
        task.backend.weight_grid(projection, trained.state.weights[projection.parameter])[1]
        for projection in projections
    )
    info = trained.info
    content.checkpoint = f"checkpoint {checkpoint} ({info['epoch']} complete epochs, update {info['step']})"
    content.grids = {
        projection.name: {"bits": grid.bits, "headroom": grid.headroom}
        for projection, grid in zip(projections, grids, strict=True)
    }
    content.learned = {
        name: task.backend.numpy(trained.state.weights[name])
        for name, parameter in task.network.parameters.items()
        if parameter.learned is not None
    }
    try:
        if samples:
            try:
                data = load_data(config, show.loading, data_dir, True)
            except DataError as error:
                raise DataError(f"{error}\n(--no-samples makes the report without the data set)") from error
            chosen = trained.samples(data, split)
            outputs_of_split = survey(
                task,
                trained.state,
                chosen,
                config.batch_size,
                lambda done: show.loading(f"running {split}", done, len(chosen)),
            )
            content.split, content.notes = split, data.dataset.notes
            if outputs_of_split.timing is not None:
                content.measures = outputs_of_split.timing.record()
                content.by_neuron = outputs_of_split.timing.record_by_neuron()
            content.confusion = outputs_of_split.confusion(len(classes)) if classes else None
            kinds: list[list[Sample]] = []
            for numbers in choose(outputs_of_split):
                if not numbers:
                    kinds.append([])
                    continue
                batch, labels = task.batch(chosen, np.array(numbers))
                names = [f"{split} sample {n}" for n in numbers]
                shown = unpacked(batch.inputs), batch.targets, labels.tolist(), batch.lengths
                kinds.append(look(task, trained.state, names, *shown))
            content.wrong, content.right = kinds
    finally:
        show.close()
    PAGE.write(path, render(content).encode())
    say(click.format_filename(path))
