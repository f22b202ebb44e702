"""`stsbp export`: writes a trained network in a file for other programs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, Finite, checkpoint_option, say, say_warning
from stsbp.errors import ConfigError
from stsbp.interop.program import About, program
from stsbp.training.run_folder import RunFolder

__all__ = ["FORMS", "OPTIONS", "command"]

FORMS = {
    "nir": "stsbp.interop.nir_file",
    "onnx": "stsbp.interop.onnx_file",
    "c": "stsbp.interop.c_source",
}
"""Export formats, with the module whose `write(program, about, out)` writes the file and returns the text to print."""

OPTIONS = {
    **dict.fromkeys(("layers", "states"), "onnx"),
    **dict.fromkeys(("dt", "fold", "threshold_below", "pool"), "nir"),
}
"""Options that apply to one format only, with that format. Its `write` takes them as keyword arguments."""


@click.command("export", short_help=COMMANDS["export"])
@click.argument("run", type=PathName(path_type=Path))
@click.option("--to", "form", required=True, type=Choice(list(FORMS)), help="Format to write.")
@click.option(
    "--out", required=True, type=PathName(path_type=Path), help="File to write. For --to c, a folder to write."
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
def command(run: Path, form: str, out: Path, checkpoint: str, **options: Any) -> None:
    """Read the trained network from the folder RUN, and write it in a format for other programs.

    The formats are:

    \b
    - nir: a graph in the Neuromorphic Intermediate Representation
    - onnx: an ONNX model with standard operators
    - c: a header and a source file in C99, without memory allocation

    Unless a message says otherwise, the exported network gives the same spikes as stsbp, bit for bit. If a format
    cannot express a part of the network, an error names the part.
    """
    given_options = {name: value for name, value in options.items() if value is not None}
    for name in given_options:
        if OPTIONS[name] != form:
            raise ConfigError(f"--{name.replace('_', '-')} is for --to {OPTIONS[name]} alone, got --to {form}")
    # Imported here, because the help page does not need the code for training.
    from stsbp_spec.reference.backend import NumpyBackend

    from stsbp.training.trained import load_trained

    trained = load_trained(RunFolder(run), checkpoint, NumpyBackend(), warn=say_warning)
    about = About(run.absolute().name, trained.info["sha256"], trained.settings.steps, trained.names)
    exported = program(trained.network, trained.weights)
    for line in importlib.import_module(FORMS[form]).write(exported, about, out, **given_options):
        say(line)
