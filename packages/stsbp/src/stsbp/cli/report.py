"""`stsbp report`: shows a run in one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import Choice, checkpoint_option, choose_backend, say, say_warning, threads_option
from stsbp.report.write import ReportRequest, report_path, write_report
from stsbp.threads import limit_threads
from stsbp.training.progress import choose_reporter
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
    request = ReportRequest(split, data_dir, samples)
    path = report_path(run, out)
    folder = RunFolder(run)
    config = folder.read_config()
    limit_threads(config.threads if threads is None else threads)
    trained = load_trained(folder, checkpoint, choose_backend(options), warn=say_warning)
    write_report(trained, folder, checkpoint, path, request, choose_reporter())
    say(click.format_filename(path))
