"""`stsbp export`: writes a trained network in a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, Finite, checkpoint_option, say, say_warning
from stsbp.interop.export import FORMS, check_options, export

__all__ = ["command"]


@click.command("export", short_help=COMMANDS["export"])
@click.argument("run", type=PathName())
@click.option("--to", "form", required=True, type=Choice(list(FORMS)), help="Format to write.")
@click.option(
    "--out",
    required=True,
    type=PathName(path_type=Path),
    help="File to write. For --to c and --to hub, a folder. An earlier export in the same format is replaced.",
)
@checkpoint_option()
@click.option(
    "--layers", is_flag=True, default=None, help="onnx: also output the spikes and potentials of hidden layers."
)
@click.option(
    "--states",
    is_flag=True,
    default=None,
    help="onnx: give the model an input and an output for each state, so that a call can continue where the previous "
    "call ended.",
)
@click.option("--dt", type=Finite(1e-12, 1e6), metavar="SECONDS", help="nir: duration of a step.  [default: 0.0001]")
@click.option(
    "--fold",
    is_flag=True,
    default=None,
    help="nir: fold gains, biases and normalisation into the weights. This rounds the weights, so spikes can differ "
    "from those of stsbp.",
)
@click.option(
    "--threshold-below",
    is_flag=True,
    default=None,
    help="nir: lower each threshold slightly, for importers whose neurons spike only above the threshold, not at it.",
)
@click.option(
    "--pool",
    type=Choice(["mean", "sum"]),
    help="nir: write average pooling over windows of size 2^n as AvgPool2d (mean) or as SumPool2d (sum).  [default: "
    "mean]",
)
@click.option(
    "--packed",
    is_flag=True,
    default=None,
    help="hub: round the weights to their grids, which changes no spike, and store them in fewer bytes.",
)
@click.option("--license", metavar="NAME", help="hub: licence of the weights for the model card, such as apache-2.0.")
def command(run: str, form: str, out: Path, checkpoint: str, **options: Any) -> None:
    """Read the trained network from the folder RUN, and write it in a format for other programs.

    RUN may also be model:NAME or hub:..., as for stsbp evaluate.

    The formats are:

    \b
    - nir: a graph in the Neuromorphic Intermediate Representation
    - onnx: an ONNX model with standard operators
    - c: a header and a source file in C99, without memory allocation
    - hub: a folder for the Hugging Face Hub, with weights, settings and a model card

    Unless a message says otherwise, the exported network gives the same spikes as stsbp, bit for bit. If a format
    cannot express a part of the network, an error names the part.
    """
    given_options = {name: value for name, value in options.items() if value is not None}
    check_options(form, given_options)
    # Imported here, because the help page does not need the code for training.
    from stsbp_spec.reference.backend import NumpyBackend

    from stsbp.hub.source import Source

    source = Source.of(run, checkpoint)
    trained = source.trained(NumpyBackend(), say_warning)
    for line in export(trained, source.path, form, out, given_options, lambda: source.records(say_warning)):
        say(line)
