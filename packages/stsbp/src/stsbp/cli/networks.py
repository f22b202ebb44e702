"""`stsbp networks`: shows a network as a table."""

from __future__ import annotations

from pathlib import Path

import click
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Coding

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, parse_shape, say
from stsbp.config import network_text

__all__ = ["command"]


@click.command("networks", short_help=COMMANDS["networks"])
@click.argument("notation")
@click.option("--input-shape", default="2x34x34", show_default=True, metavar="CxHxW", help="Shape of an input.")
@click.option(
    "--outputs", default=10, show_default=True, type=click.IntRange(1, 10**9 - 1), help="Number of output neurons."
)
@click.option(
    "--coding",
    default="events",
    show_default=True,
    type=Choice(["events", "direct"]),
    help="Kind of input: event frames or spike trains (events), or images (direct).",
)
@click.option(
    "--padding",
    default="valid",
    show_default=True,
    type=Choice(["valid", "same"]),
    help="Padding of convolutions for which NOTATION gives none.",
)
@click.option("--weight-bits", default=12, show_default=True, type=int, help="Number of bits of the weight grid.")
@click.option("--dropout", default=0.0, show_default=True, type=float, help="Dropout rate after every hidden layer.")
@click.option(
    "--plot", "plot_file", type=PathName(path_type=Path), metavar="FILE.png", help="Draw the network as a graph."
)
def command(
    notation: str,
    input_shape: str,
    outputs: int,
    coding: Coding,
    padding: str,
    weight_bits: int,
    dropout: float,
    plot_file: Path | None,
) -> None:
    """Show the network NOTATION as a table.

    NOTATION is a network such as 12C5-P2-64C5-P2, or a file FILE.toml that lists the nodes of the network.

    The table shows the shape, the number of parameters, the multiply-adds per step, and the headroom of each layer
    (column "guaranteed"). Sums in float32 are exact only up to a limit. The headroom is the distance, in bits,
    between this limit and the largest sum that is possible with any values of the weights. If this sum exceeds the
    limit, the headroom is negative. This is not an error. Training computes the largest sum that is possible with the
    actual weights. If that sum exceeds the limit, training rounds the weights to fewer bits.
    """
    network = NetworkSpec.parse(
        network_text(notation),
        input_shape=parse_shape(input_shape),
        outputs=outputs,
        coding=coding,
        padding=padding,
        weight_bits=weight_bits,
        dropout=dropout,
    )
    if plot_file is not None:
        from stsbp.plots import PLOT, check_plots, plot_network

        check_plots()
        PLOT.target_path(plot_file)
        plot_network(network, plot_file)
    say(network.table())
