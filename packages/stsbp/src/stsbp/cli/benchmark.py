"""`stsbp benchmark`: measures a backend, and compares it with the limits of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, Finite, choose_backend, threads_option
from stsbp.errors import ConfigError
from stsbp.files import real
from stsbp.threads import limit_threads

__all__ = ["command"]

_GROUPS = {"surrogate": ("step",), "data_dir": ("step", "data")}
"""Options that apply to some groups only, with those groups."""


@click.command("benchmark", short_help=COMMANDS["benchmark"])
@click.argument("group", default="all", type=Choice(["kernels", "step", "startup", "data", "all"]))
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    type=Finite(0, 1, min_open=True),
    help="Multiply the number of neurons, the batch size and the number of samples by this factor. Values below 1 are "
    "only for a quick trial.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1, 10**6), help="Number of timed rounds.")
@click.option(
    "--data-dir",
    type=PathName(exists=True, file_okay=False, path_type=Path),
    help="Folder of N-MNIST and CIFAR-10.",
)
@click.option("--surrogate", help='Replace the surrogate derivative of the networks in the group "step".')
@threads_option("Number of processor threads. 0 lets the numerical libraries choose.", default=0, show_default=True)
@click.option("--json", "json_file", type=PathName(path_type=Path), metavar="FILE", help="Write the report as JSON.")
@click.option("--plot", "plot_file", type=PathName(path_type=Path), metavar="FILE.png", help="Draw the report.")
@click.pass_context
def command(
    ctx: click.Context,
    group: str,
    scale: float,
    rounds: int,
    data_dir: Path | None,
    surrogate: str | None,
    threads: int,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure a backend and compare it with the limits of this machine.

    The groups are:

    \b
    - kernels: memory bandwidth of the fused LIF kernels, compared with that of a memory copy
    - step: time of training steps, compared with that of the same networks with
      identity functions in place of neurons
    - startup: start-up times (the group "step" also measures them)
    - data: training time with the real data loader, compared with training on batches in memory

    Use a machine that does nothing else. The report contains the load average of the machine. Without --data-dir, the
    handwritten digits of scikit-learn replace N-MNIST and CIFAR-10.
    """
    from stsbp import plots
    from stsbp.benchmarks import data, kernels, show, startup, step
    from stsbp.benchmarks.device import describe, threads_used
    from stsbp.benchmarks.result import JSON, Report, Row
    from stsbp.config import SettingsSource, resolve

    for name, groups in _GROUPS.items():
        if ctx.params[name] is not None and group not in (*groups, "all"):
            flag, groups_with_it = "--" + name.replace("_", "-"), " and ".join(groups)
            raise ConfigError(f"{flag} applies only to {groups_with_it}, not to {group}; leave it out")
    if surrogate is not None:
        # This checks it before anything is measured.
        resolve([SettingsSource("command line", {"dataset": "digits", "surrogate": surrogate})])
    if json_file is not None:
        JSON.target_path(json_file)
    if plot_file is not None:
        plots.check_plots()
        if json_file is not None and real(json_file) == real(plot_file):
            raise ConfigError(f"--json and --plot would write the same file {plot_file}; choose another name")
        plots.PLOT.target_path(plot_file)
    limit_threads(threads)
    backend = choose_backend(ctx.obj)
    settings = {"group": group, "scale": scale, "rounds": rounds}
    settings["data_dir"] = data_dir.name if data_dir else None
    settings |= {"surrogate": surrogate, "threads": threads_used()}
    # The load of the machine before the measurements themselves add to it.
    machine = describe(backend, settings)
    rows: list[Row] = []

    def announce(measured: str) -> None:
        click.echo(measured, err=True)

    if group in ("kernels", "all"):
        rows += kernels.measure(backend, scale=scale, rounds=rounds, announce=announce)
    if group in ("step", "all"):
        rows += step.measure(
            backend, scale=scale, rounds=rounds, data_dir=data_dir, surrogate=surrogate, announce=announce
        )
    if group in ("step", "startup", "all"):
        rows += startup.measure(backend, rounds=rounds, announce=announce)
    if group in ("data", "all"):
        rows += data.measure(backend, scale=scale, rounds=rounds, data_dir=data_dir, announce=announce)
    report = Report(machine, rows)
    show.print_report(report)
    if json_file is not None:
        report.write(json_file)
    if plot_file is not None:
        show.plot(report, plot_file)
