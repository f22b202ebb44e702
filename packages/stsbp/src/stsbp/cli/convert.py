"""`stsbp convert`: copies a trained network with another gain of its synapses."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import click

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, checkpoint_option, say, say_warning
from stsbp.errors import ConfigError
from stsbp.interop.gain import with_gain
from stsbp.training import checkpoint
from stsbp.training.metrics import Sums
from stsbp.training.run_folder import RunFolder

__all__ = ["command"]

_NOT_TRAINED = {
    "epoch": 0,
    "batch": 0,
    "finished": False,
    "best": None,
    "metrics_bytes": 0,
    "metrics_sha256": hashlib.sha256().hexdigest(),
    "sums": asdict(Sums()),
    "window": asdict(Sums()),
}
"""The progress of a run that has not done any update."""
_OF_FILE = ("format", "file", "sha256", "tensors", "step")
"""Fields of a checkpoint that describe its own file."""


@click.command("convert", short_help=COMMANDS["convert"])
@click.argument("run", type=PathName(path_type=Path))
@click.option(
    "--psp-gain",
    required=True,
    type=Choice(["normalised", "unit"]),
    help="Scale of the postsynaptic potential: area 1 (normalised) or height 1 (unit).",
)
@click.option("--out", required=True, type=PathName(path_type=Path), help="Folder of the new run.")
@checkpoint_option("name")
def command(run: Path, psp_gain: str, out: Path, name: str) -> None:
    """Copy the run in the folder RUN, and change the gain of the synapses in the copy.

    The command rescales the weights so that the synaptic currents stay the same. If all scaling factors are powers of
    two, the spikes stay the same, bit for bit. Otherwise, rounding changes the new weights slightly, and the spikes can
    differ.

    The new run is at update 0 and has no optimiser state, so `stsbp train --resume` starts with the first epoch.
    """
    # Imported here, because the help page does not need the code for training.
    from stsbp_spec.reference.backend import NumpyBackend

    from stsbp.training.build import build_task
    from stsbp.training.trained import load_trained

    trained = load_trained(RunFolder(run), name, NumpyBackend(), warn=say_warning)
    folder = RunFolder(out)
    folder.check_new()
    config = trained.settings.model_copy(update={"psp_gain": psp_gain})
    task = build_task(config, trained.task.inputs, trained.backend)
    fixed = [p.name for p in task.network.graph.projections if p.sums.pending and p.sums.pending.gain != psp_gain]
    if fixed:
        raise ConfigError(
            f"{run} sets psp_gain of {', '.join(fixed)} separately, in its setting net or neuron; change it there"
        )
    weights, changes = with_gain(trained.network, task.network, trained.weights)
    info = {
        **trained.info,
        **_NOT_TRAINED,
        "config": config.digest(),
        "epochs": config.epochs,
        "network": task.network.notation,
        "backend": trained.backend.name,
    }
    with folder.new_run(config, trained.backend):
        # The moments belong to gradients of another scale.
        tensors = task.trainer.export_state(task.trainer.init(weights))
        checkpoint.save(folder.files, "last", tensors, {k: x for k, x in info.items() if k not in _OF_FILE}, step=0)
    for change in changes:
        say(str(change))
    is_exact = all(change.deviation == 0 for change in changes)
    say(
        "spikes and potentials are those of the run, to the bit"
        if is_exact
        else "spikes can differ from those of the run"
    )
    say("the moments of the optimiser are dropped")
