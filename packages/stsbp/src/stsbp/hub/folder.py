"""A trained network as a folder for the Hugging Face Hub: `config.json`, `model.safetensors` and a model card.

`config.json` has everything that a run's `config.toml` and checkpoint say about the network, and no path. Reading the
folder imports nothing and unpickles nothing. Its files may come from anybody, so they are read as checkpoints are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.errors import NumericError, ShapeError, StsbpError
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32
from stsbp_spec.validation import shown

from stsbp import budget, records
from stsbp.config import OWN, RunConfig, SettingsSource, resolve
from stsbp.datasets.registry import named_path
from stsbp.errors import CheckpointError
from stsbp.files import GIGABYTE, MEGABYTE, OutputKind, locked_folder, open_regular, read_regular, real
from stsbp.hub.card import model_card
from stsbp.processes.group import Group
from stsbp.training.build import Inputs, build_network, build_task
from stsbp.training.initial import check_trainable
from stsbp.training.tracking import tracked_settings
from stsbp.training.trained import Trained, warn_of_contract

__all__ = [
    "CONFIG",
    "MOST_CONFIG",
    "MOST_WEIGHTS",
    "WEIGHTS",
    "HubNetwork",
    "read_folder",
    "trained_on",
    "write_folder",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
"""The files of a folder. Only the first two are read."""
MOST_CONFIG = 8 * MEGABYTE
"""Largest size of `config.json` in bytes. A network of nodes is a text of some kilobytes."""
MOST_WEIGHTS = 64 * GIGABYTE
"""Largest size of the weights in bytes."""
FORMAT = 1

_KINDS = {
    CONFIG: OutputKind("the config.json of a network of stsbp", re.compile(rb'\{\s*"library_name": "stsbp"')),
    WEIGHTS: OutputKind("weights of stsbp", re.compile(rb'.{8}\{"__metadata__":\{"format":"stsbp"', re.DOTALL)),
    CARD: OutputKind("a model card of stsbp", re.compile(rb"---\r?\nlibrary_name: stsbp\r?\n")),
}


class HubNetwork:
    """A network that was read from a folder.

    Attributes:
        name: where it comes from, for messages.
        settings: the settings of its training, without paths.
        inputs: properties of the data that it needs.
        network: the network.
        weights: its parameters and statistics by name, float32.
        info: facts about the checkpoint, as `Trained.info` has them.
    """

    def __init__(self, name: str, record: records.HubRecord, weights: dict[str, Float32], sha256: str) -> None:
        self.name, self.weights = name, weights
        self.settings = _settings(record, name)
        self.inputs = Inputs.of_record(record.inputs)
        self.samples = record.samples
        self.info: dict[str, Any] = {
            "sha256": sha256,
            "step": record.step,
            "epoch": record.epoch,
            "samples": record.samples,
            "contents": record.contents,
            "contract": record.contract,
            "inputs": self.inputs.to_json(),
            "config": self.settings.digest(),
            "data": "",
        }
        try:
            self.network: NetworkSpec = build_network(self.settings, self.inputs)
            check_trainable(self.network, weights)
        except (ShapeError, NumericError) as error:
            raise CheckpointError(f"{name}: the weights do not fit the network: {error}") from error
        except StsbpError as error:
            raise CheckpointError(f"{name}: {CONFIG} describes no network: {error}") from error


def write_folder(
    trained: Trained, out: Path, name: str, metrics: list[dict[str, Any]], *, license: str = ""
) -> list[str]:
    """Write a network as a folder. Returns the messages to print.

    Args:
        trained: the network, on any backend.
        out: the folder, which is made if it is missing.
        name: name of the run.
        metrics: records of the run, from which the card takes the test of this checkpoint.
        license: licence of the weights, for the card; empty: none is stated.

    Raises:
        FileError: a file cannot be written, or is there already and no export of stsbp wrote it.
    """
    weights = {key: np.ascontiguousarray(x, np.float32) for key, x in sorted(trained.weights.items())}
    data = safetensors.numpy.save(weights, metadata={"format": "stsbp"})
    sha256 = hashlib.sha256(data).hexdigest()
    info, inputs = trained.info, trained.task.inputs.to_json()
    values: dict[str, Any] = {
        "library_name": "stsbp",
        "format": FORMAT,
        "stsbp": importlib.metadata.version("stsbp"),
        "contract": info.get("contract", CONTRACT_VERSION),
        "sha256": sha256,
        "step": info["step"],
        "epoch": info["epoch"],
        "samples": info.get("samples"),
        "contents": info.get("contents", {}),
        "inputs": inputs,
        "settings": hub_settings(trained.settings),
    }
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    card = model_card(trained, name, values, metrics, license)
    files = {WEIGHTS: data, CARD: card.encode(), CONFIG: text.encode()}
    with locked_folder(out):
        # Everything is checked before the first file is written. config.json comes last, because it makes the others
        # valid.
        for file in files:
            _KINDS[file].target_path(out / file)
        for file, content in files.items():
            _KINDS[file].write(out / file, content)
    return [f"{shown(str(out))}: {', '.join(files)}; {len(data):,} bytes of weights, SHA-256 {sha256}"]


def hub_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a folder stores: those that affect the result, without paths and without other runs."""
    values = tracked_settings(config)
    return {**values, "init_from": "", "init_sha256": ""}


def read_folder(folder: Path, name: str, file_of: Mapping[str, Path] | None = None) -> HubNetwork:
    """Read a network from a folder.

    Args:
        folder: the folder.
        name: its name in messages.
        file_of: the paths of the files, if a download has put them elsewhere.

    Raises:
        CheckpointError: a file is missing, too large, damaged or a link that leads out of the folder, or the network
            cannot be used.
    """
    paths = {file: _inside(folder, file, name) for file in (CONFIG, WEIGHTS)} if file_of is None else file_of
    try:
        values = records.parse(_read(paths[CONFIG], MOST_CONFIG, name))
        if not isinstance(values, dict) or values.get("library_name") != "stsbp":
            raise ValueError("it does not describe a network of stsbp (library_name)")
        if values.get("format") != FORMAT:
            raise ValueError(f"it has format {shown(values.get('format'))}, but this stsbp reads format {FORMAT}")
        record = records.read(records.HubRecord, values)
    except ValueError as error:
        raise CheckpointError(f"{name}: {CONFIG} cannot be used: {records.reason(error)}") from error
    with _opened(paths[WEIGHTS], MOST_WEIGHTS, name) as file:
        size = os.fstat(file.fileno()).st_size
        # The tensors lie in the file and once more in the memory.
        budget.check_memory(2 * size, size, f"{name}: {WEIGHTS}")
        data = file.read(size + 1)
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise CheckpointError(
            f"{name}: {WEIGHTS} has the SHA-256 {digest}, but {CONFIG} says {record.sha256}; download the folder again"
        )
    try:
        # The library checks that the tensors of the header lie in the file, before it reads them.
        tensors: dict[str, Any] = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{name}: {WEIGHTS} is not a safetensors file: {error}") from error
    if other := next((key for key, x in tensors.items() if x.dtype != np.float32), None):
        raise CheckpointError(f"{name}: the tensor {shown(other)} is {tensors[other].dtype}, not float32")
    return HubNetwork(name, record, tensors, digest)


def trained_on(
    network: HubNetwork, backend: AbstractBackend, group: Group | None, warn: Callable[[str], object]
) -> Trained:
    """A network from a folder as a trained network on a backend.

    Raises:
        StsbpError: the backend cannot compute it.
    """
    warn_of_contract(network.name, network.info["contract"], group, warn)
    task = build_task(network.settings, network.inputs, backend, max(1, network.samples or 1), group)
    return Trained(network.settings, task, task.trainer.init(dict(network.weights)), network.info)


def _inside(folder: Path, file: str, name: str) -> Path:
    """The path of a file of a folder. A link may lead only into the folder, or into the cache of downloads beside it.

    The cache of `huggingface_hub` keeps the files of `snapshots/COMMIT` as links into `blobs`.
    """
    top, path = real(folder), real(folder / file)
    allowed = (top, top.parent.parent / "blobs") if top.parent.name == "snapshots" else (top,)
    if not any(path.is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{name}: {file} is a link that leads out of the folder; copy the file into it")
    return path


def _read(path: Path, max_bytes: int, name: str) -> bytes:
    try:
        return read_regular(path, max_bytes)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot read {path.name}: {error.strerror or error}") from error


def _opened(path: Path, max_bytes: int, name: str) -> Any:
    try:
        return open_regular(path, max_bytes)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot read {path.name}: {error.strerror or error}") from error


def _settings(record: records.HubRecord, name: str) -> RunConfig:
    """The settings of a folder. None of them may read a file of this machine, or import a module.

    Raises:
        CheckpointError: a setting is unknown or outside its domain, is a path, or names a class that is not stored.
    """
    values = record.settings
    # Checked here, because pydantic does not name a key that is not valid Unicode, which JSON may have.
    if unknown := [key for key in values if key not in RunConfig.model_fields]:
        raise CheckpointError(f"{name}: the settings cannot be used: unknown setting {shown(unknown[0])}")
    try:
        net = values.get("net")
        # A name of a file would be read.
        if isinstance(net, str) and net.endswith(".toml") and not is_nodes(net):
            raise ValueError(f"net names a file, {shown(net)}")
        config = resolve([SettingsSource(CONFIG, values, is_file=True)], with_preset=False)
    except (StsbpError, ValueError) as error:
        raise CheckpointError(f"{name}: the settings cannot be used: {error}") from error
    for setting in ("data_dir", "init_from", "init_sha256", "track"):
        if getattr(config, setting):
            raise CheckpointError(f"{name}: the settings must not have {setting}, which is about one machine")
    for setting in ("dataset", "test_on"):
        named = named_path(getattr(config, setting))
        if named is not None and str(named[1]) != named[1].name:
            raise CheckpointError(f"{name}: {setting} has a path, {shown(getattr(config, setting))}")
    for setting, user_class in OWN.items():
        if user_class.names_a_class(getattr(config, setting)) and not getattr(config, user_class.model):
            raise CheckpointError(
                f"{name}: {setting} names the class {shown(getattr(config, setting))}, but {user_class.model} does not "
                "store it. stsbp does not import modules that a folder names"
            )
    return config
