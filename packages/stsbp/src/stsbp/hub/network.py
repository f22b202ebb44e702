"""Reads a trained network from a folder for the Hugging Face Hub: `config.json` and the weights.

Reading imports nothing and unpickles nothing. The files may come from anybody, so they are read as checkpoints are. The
weights are in `model.safetensors`, or packed into fewer bytes in `model.packed` (packing.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from stsbp_spec.errors import NumericError, ShapeError, StsbpError
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32
from stsbp_spec.validation import shown

from stsbp import budget, records
from stsbp.config import OWN, RunConfig, SettingsSource, resolve
from stsbp.datasets.registry import named_path
from stsbp.errors import CheckpointError
from stsbp.files import GIGABYTE, MEGABYTE, open_regular, read_regular, real
from stsbp.hub.packing import safetensors_bytes, unpack, unpacked_size
from stsbp.training.build import Inputs, build_network
from stsbp.training.trainable import check_trainable

__all__ = [
    "CONFIG",
    "FORMATS",
    "MOST_CONFIG",
    "MOST_WEIGHTS",
    "PACKED",
    "WEIGHTS",
    "HubNetwork",
    "read_folder",
    "read_record",
]

CONFIG, WEIGHTS, PACKED = "config.json", "model.safetensors", "model.packed"
"""The files of a folder that are read: the first one and one of the others."""
MOST_CONFIG = 8 * MEGABYTE
"""Largest size of `config.json` in bytes. A network of nodes is a text of some kilobytes."""
MOST_WEIGHTS = 64 * GIGABYTE
"""Largest size of the weights in bytes."""
FORMATS = {1: WEIGHTS, 2: PACKED}
"""The file of the weights for each `format` of `config.json`."""


class HubNetwork:
    """A network that was read from a folder.

    Attributes:
        name: where it comes from, for messages.
        settings: the settings of its training, without paths.
        inputs: properties of the data that it needs.
        samples: number of the training samples; None: the folder does not say it.
        network: the network.
        weights: its parameters and statistics by name, float32.
        info: facts about the checkpoint, as `Trained.info` has them.
        records: the test of the weights as a record of a run; empty: the folder has none.
    """

    def __init__(self, name: str, record: records.HubRecord, weights: dict[str, Float32], sha256: str) -> None:
        self.name, self.weights = name, weights
        self.settings = _settings(record, name)
        self.inputs = Inputs.of_record(record.inputs)
        self.samples = record.samples
        test = record.tested
        self.records: list[dict[str, Any]] = (
            [] if test is None else [{"kind": "evaluation", "split": "test", **_position(record), **test}]
        )
        self.info: dict[str, Any] = {
            "sha256": sha256,
            **_position(record),
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


def _position(record: records.HubRecord) -> dict[str, int]:
    return {"step": record.step, "epoch": record.epoch}


def read_record(path: Path, name: str) -> tuple[records.HubRecord, str]:
    """What `config.json` says, and the name of the file with the weights.

    Args:
        path: the file.
        name: the name of the network in messages.

    Raises:
        CheckpointError: it cannot be read, or does not describe a network of stsbp.
    """
    try:
        values = records.parse(_read(path, MOST_CONFIG, name))
        if not isinstance(values, dict) or values.get("library_name") != "stsbp":
            raise ValueError("it does not describe a network of stsbp (library_name)")
        form = values.get("format")
        if type(form) is not int or form not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            raise ValueError(f"it has format {shown(form)}, but this stsbp reads the formats {known}")
        record = records.read(records.HubRecord, values)
        if (FORMATS[form] == PACKED) != (record.packed is not None):
            raise ValueError(f"it has format {form}, but its field packed does not fit this format")
    except ValueError as error:
        raise CheckpointError(f"{name}: {CONFIG} cannot be used: {records.reason(error)}") from error
    return record, FORMATS[form]


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

    def path_of(file: str) -> Path:
        return _inside(folder, file, name) if file_of is None else file_of[file]

    record, weights_file = read_record(path_of(CONFIG), name)
    with _opened(path_of(weights_file), MOST_WEIGHTS, name) as file:
        size = os.fstat(file.fileno()).st_size
        tensor_bytes = size if record.packed is None else unpacked_size(record.packed)
        # The tensors lie in the file and once more in the memory.
        budget.check_memory(2 * tensor_bytes, size, f"{name}: {weights_file}")
        data = file.read(size + 1)
    try:
        tensors = None if record.packed is None else unpack(data, record.packed)
    except ValueError as error:
        raise CheckpointError(f"{name}: the weights in {weights_file} are damaged: {error}") from error
    # The SHA-256 of packed weights is that of the numbers, because compressors may write other bytes for them.
    digest = hashlib.sha256(data if tensors is None else safetensors_bytes(tensors)).hexdigest()
    if digest != record.sha256:
        raise CheckpointError(
            f"{name}: {weights_file} has the SHA-256 {digest}, but {CONFIG} says {record.sha256}; download the folder "
            "again"
        )
    if tensors is None:
        tensors = _tensors(data, name)
    return HubNetwork(name, record, tensors, digest)


def _tensors(data: bytes, name: str) -> dict[str, Float32]:
    """The tensors of `model.safetensors`.

    Raises:
        CheckpointError: it is another file, or has tensors of another type.
    """
    try:
        # The library checks that the tensors of the header lie in the file, before it reads them.
        tensors: dict[str, Any] = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{name}: {WEIGHTS} is not a safetensors file: {error}") from error
    if other := next((key for key, x in tensors.items() if x.dtype != np.float32), None):
        raise CheckpointError(f"{name}: the tensor {shown(other)} is {tensors[other].dtype}, not float32")
    return tensors


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
