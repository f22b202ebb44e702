"""`stsbp import`: makes a run from a network in a file of another program, for evaluation and further training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.checks import check_weights
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.errors import NetworkError, NumericError, ShapeError
from stsbp_spec.networks.notation import written_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.validation import listed, shown

from stsbp.cli import COMMANDS, PathName
from stsbp.cli.common import Choice, Finite, program, say
from stsbp.cli.settings import SettingsCommand, allow_imports, complete_data_set, given_settings, settings
from stsbp.config import RunConfig, SettingsSource, absolute, check_imports, read_toml, resolve
from stsbp.errors import ConfigError, DataError
from stsbp.files import as_argument
from stsbp.interop.nir_import import Imported, import_graph, likely_step
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import NirGraph, read_graph
from stsbp.training.build import Data, build_loss, build_neuron, build_task, check_typed_labels, load_data
from stsbp.training.initial import pinned
from stsbp.training.loop import begin_with
from stsbp.training.progress import choose_reporter
from stsbp.training.run_folder import RunFolder

__all__ = ["OF_THE_FILE", "command", "said_step"]

OF_THE_FILE = (
    *("net", "padding", "dropout", "neuron", "neuron_model", "tau_m", "tau_rise", "psp_gain", "threshold"),
    *("input_tau_s", "init_gain", "init_rate", "init_from", "init_sha256"),
)
"""Settings without an option, because the file already defines them."""


@click.command("import", cls=SettingsCommand, short_help=COMMANDS["import"])
@click.argument("file", type=PathName(path_type=Path))
@click.option("--out", required=True, type=PathName(path_type=Path), help="Folder of the run.")
@click.option(
    "--dataset",
    metavar="DATASET",
    help="Data set of the new run. You can omit this option if --config names a data set.",
    shell_complete=complete_data_set,
)
@click.option(
    "--dt",
    type=Finite(0, 1e9, min_open=True),
    metavar="SECONDS",
    help="Duration of a step. NIR files give time constants in seconds, not in steps.  [default: from FILE; required "
    "if FILE does not give the duration]",
)
@click.option(
    "--reset",
    default="zero",
    show_default=True,
    type=Choice(["zero", "subtract"]),
    help="Reset after a spike. NIR defines a reset to zero, but some programs subtract the threshold.",
)
@click.option(
    "--threshold-above",
    is_flag=True,
    help="Raise each threshold slightly. Use this if FILE comes from a program whose neurons spike only above the "
    "threshold, not at it.",
)
@click.option(
    "--config", "config_file", type=PathName(path_type=Path), metavar="FILE", help="Read settings from a TOML file."
)
@allow_imports
@partial(settings, hidden=OF_THE_FILE)
def command(
    file: Path,
    out: Path,
    dataset: str | None,
    dt: float | None,
    reset: str,
    threshold_above: bool,
    config_file: Path | None,
    allow_imports: bool,
    **flags: Any,
) -> None:
    """Make a run from the network in FILE, a graph in the Neuromorphic Intermediate Representation (NIR).

    You can use the run directly with `stsbp evaluate` and `stsbp predict`. `stsbp train --resume` trains the run
    further. `stsbp train --init-from` starts another run from the weights of this one.

    Settings that are not in FILE, such as the loss and the label sequences, come from three places: the default
    settings of the data set, --config, and the options. Each place overrides the places before it. If stsbp does not
    support a node, the error names the node.
    """
    if dataset is None and config_file is None:
        raise ConfigError("no data set is named: give --dataset, for example --dataset digits, or --config")
    given_options = given_settings(flags)
    if typed := [f"--{name.replace('_', '-')}" for name in OF_THE_FILE if name in given_options]:
        raise ConfigError(f"{', '.join(typed)}: {file} already defines the network and its weights; leave this out")
    if dataset is not None:
        given_options["dataset"] = dataset
    sources = ([read_toml(config_file)] if config_file is not None else []) + [
        SettingsSource("command line", given_options)
    ]
    folder = RunFolder(out)
    folder.check_new()
    graph = read_graph(file)
    of_run, run_messages = _of_a_run(graph, file)
    network_defaults = {name: RunConfig.model_fields[name].default for name in OF_THE_FILE}
    config = resolve([SettingsSource(str(file), of_run), *sources]).model_copy(update=network_defaults)
    if not allow_imports:
        check_imports(config, sources)
    config = pinned(absolute(config))
    surrogate = build_neuron(config).surrogate
    choices = Choices(_step_of(graph, file, dt), reset, config.tau_s, surrogate, config.weight_bits, threshold_above)
    reporter = choose_reporter()
    try:
        data = load_data(config, reporter.loading)
        for note in data.dataset.notes:
            reporter.note(note)
        check_typed_labels(config, data.inputs, given_options)
        run_messages += _other_classes(graph, file, data)
        built = _built(file, graph, config, data, choices)
        task = build_task(built.config, data.inputs, NumpyBackend(), len(data.train))
        messages = [*run_messages, *_import_messages(built.imported, task.network)]
        with folder.new_run(built.config, task.backend):
            begin_with(built.imported.weights, task, data, folder, reporter)
    finally:
        reporter.close()
    for message in messages:
        say(message)
    name = click.format_filename(as_argument(out))
    next_commands = ([program(), "evaluate", name], [program(), "train", "--resume", name])
    say(f"run {click.format_filename(out)}: {', '.join(map(shlex.join, next_commands))}")


@dataclass(frozen=True)
class _Built:
    """A graph as a network for certain data, and the settings of a run with it."""

    imported: Imported
    config: RunConfig


def said_step(graph: NirGraph) -> float | None:
    """Length of a step in seconds from the file's own metadata; None if they do not contain it."""
    step = graph.metadata.get("dt")
    is_step = isinstance(step, np.ndarray) and step.size == 1 and 0 < step.flat[0] < 1e9
    return float(step.flat[0]) if isinstance(step, np.ndarray) and is_step else None


def _of_a_run(graph: NirGraph, file: Path) -> tuple[dict[str, Any], list[str]]:
    """The number of steps with which the run was trained, from a file of `stsbp export`, as a setting; and messages."""
    steps, run = graph.metadata.get("steps"), graph.metadata.get("run")
    if not (isinstance(steps, np.ndarray) and steps.size == 1 and steps.dtype.kind in "iu"):
        return {}, []
    name = shown(run) if isinstance(run, str) else "without a name"
    contract = graph.metadata.get("contract")
    has_contract = isinstance(contract, np.ndarray) and contract.size == 1 and contract.dtype.kind in "iu"
    version = int(contract.flat[0]) if isinstance(contract, np.ndarray) and has_contract else 0
    contract_warning = (
        f"warning: {file} was exported under version {version} of the exact-arithmetic contract, but this stsbp "
        f"computes under version {CONTRACT_VERSION}, so spikes may differ from those of the run. Update stsbp"
    )
    return {"steps": int(steps.flat[0])}, [
        *([contract_warning] if version > CONTRACT_VERSION else []),
        f"{file} was exported from the stsbp run {name}, trained with {int(steps.flat[0])} steps; "
        "to use its label sequences, loss and --tau-s, give --config with the config.toml of "
        "that run",
    ]


def _other_classes(graph: NirGraph, file: Path, data: Data) -> list[str]:
    """A warning if the run that was exported had classes of other names than the data.

    Raises:
        ConfigError: the classes are the same, but the outputs have another order.
    """
    text = graph.metadata.get("classes")
    try:
        classes: object = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return []
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        return []
    names, dataset = data.inputs.classes, data.dataset.name
    if tuple(classes) == names:
        return []
    file_classes, data_classes = (
        listed(map(shown, class_names)) or "target spike trains" for class_names in (classes, names)
    )
    if {*classes} == {*names}:
        raise ConfigError(
            f"{file}: its outputs are the classes {file_classes}, in this order, but {dataset} has the order "
            f"{data_classes}; give the data the same order"
        )
    return [f"warning: the outputs in {file} were trained as {file_classes}, but {dataset} has {data_classes}"]


def _step_of(graph: NirGraph, file: Path, dt: float | None) -> float:
    """Length of a step in seconds: the given one, or the one in the file's own metadata.

    Raises:
        ConfigError: neither exists.
    """
    if dt is not None:
        return dt
    if (file_step := said_step(graph)) is not None:
        return file_step
    likely = likely_step(graph)
    hint = "" if likely is None else f"; its neurons have r = tau/dt with --dt {likely:g}"
    raise ConfigError(f"{file} does not say how long a step is: give --dt SECONDS{hint}")


def _built(file: Path, graph: NirGraph, config: RunConfig, data: Data, choices: Choices) -> _Built:
    """The network of a graph for certain data, and the settings of a run with it.

    Raises:
        DataError: a node of the graph cannot be read.
        ConfigError: the network does not fit the data or the loss.
    """
    inputs = data.inputs
    try:
        imported = import_graph(graph, inputs.shape, choices)
        if imported.input_psp is not None and inputs.coding == "direct":
            synapse = f"a synapse of {imported.input_psp.tau_s:g} steps"
            raise DataError(
                f"its neurons read the input through {synapse}, but images have no synapse; use a data set of events"
            )
        network = NetworkSpec(inputs.shape, (), inputs.coding, imported.input_psp, nodes=imported.nodes)
        # Before the folder of the run is made.
        check_weights(network, dict(imported.weights))
    except (DataError, NetworkError, NumericError, ShapeError) as error:
        raise DataError(f"{file}: {error}") from error
    if network.outputs != inputs.outputs:
        raise ConfigError(f"{file} has {network.outputs} outputs, but {config.dataset} has {inputs}")
    if network.has_readout != build_loss(config).of_potentials:
        output_kind = "potentials, for --loss cross-entropy" if network.has_readout else "spikes, for a loss of spikes"
        raise ConfigError(f"{file} ends with {output_kind}; --loss {config.loss} does not fit")
    network_settings: dict[str, Any] = {"net": written_nodes(network.graph.nodes)}
    if imported.input_psp is not None:
        network_settings |= {"input_tau_s": imported.input_psp.tau_s, "psp_gain": imported.input_psp.gain}
    # Checked as if they were typed: a time constant of a file can be longer than that of a setting.
    return _Built(
        imported, resolve([SettingsSource(str(file), config.model_dump() | network_settings)], with_preset=False)
    )


def _import_messages(imported: Imported, network: NetworkSpec) -> Iterator[str]:
    """Messages about an import, including the distance of the weights that the network of the run computes with from
    those in the file."""
    for name, change in imported.notes:
        yield f"{name}: {change}"
    weights = imported.weights
    rounded, _ = weights_on_grid(NumpyBackend(), network.graph, dict(weights))
    deviations: dict[str, float] = {}
    for projection in network.graph.projections:
        # In float64, because a share of subnormal numbers is wrong in float32.
        exact = weights[projection.parameter].astype(np.float64)
        largest = float(np.abs(exact).max(initial=0))
        deviations[projection.name] = float(np.abs(rounded[projection.name] - exact).max(initial=0) / (largest or 1.0))
    name = max(deviations, key=lambda projection_name: deviations[projection_name])
    if deviations[name]:
        yield (
            f"rounding to {network.graph.projections[0].synapse.weight_bits} bits moves weights by up to "
            f"{deviations[name]:.2g} of the largest of their layer ({name}): spikes may differ from those of other "
            "programs"
        )
    else:
        yield "the weights lie on the grid as they are"
