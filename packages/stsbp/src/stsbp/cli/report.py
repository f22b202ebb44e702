"""`stsbp report`: shows a run in one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from stsbp.cli import COMMANDS, Globals, PathName
from stsbp.cli.common import Choice, checkpoint_option, choose_backend, say, say_warning, threads_option
from stsbp.hub.source import Source
from stsbp.report.write import Origin, ReportRequest, report_path, write_report
from stsbp.threads import limit_threads
from stsbp.training.progress import choose_reporter

__all__ = ["command"]


@click.command("report", short_help=COMMANDS["report"])
@click.argument("run", type=PathName())
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
    run: str,
    out: Path | None,
    checkpoint: str,
    split: str | None,
    data_dir: str | None,
    samples: bool,
    threads: int | None,
) -> None:
    """Write one HTML file that shows the run in the folder RUN. You can open the file offline.

    RUN may also be model:NAME or hub:..., as for stsbp evaluate. The file then has no learning curves.

    The file contains learning curves, the confusion matrix, spike rates, settings, and the command that made the run.
    The file also shows correctly and wrongly classified samples with their rasters and membrane potentials. You can
    make a report while the run is still training.
    """
    request = ReportRequest(split, data_dir, samples)
    source = Source.of(run, checkpoint)
    if samples:
        source.check_data("leave the samples out with --no-samples")
    path = report_path(source.path, out)
    limit_threads(source.settings.threads if threads is None else threads)
    trained = source.trained(choose_backend(options), say_warning)
    reporter = choose_reporter()
    if source.run is None:
        records = source.records(reporter.warn)
        origin = Origin(source.path, records=records, training_command=source.training_command)
    else:
        origin = Origin.of_run(source.run, checkpoint, trained, reporter.warn)
    write_report(trained, origin, path, request, reporter)
    say(click.format_filename(path))
