"""A trained network as a folder for the Hugging Face Hub: `config.json`, the weights and a model card.

`config.json` has everything that a run's `config.toml` and checkpoint say about the network, and no path. network.py
reads the folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.validation import shown

from stsbp.config import RunConfig
from stsbp.files import OutputKind, locked_folder
from stsbp.hub.card import model_card
from stsbp.hub.network import CONFIG, FORMATS, PACKED, WEIGHTS, HubNetwork
from stsbp.hub.packing import MAGIC, on_grids, pack, safetensors_bytes
from stsbp.processes.group import Group
from stsbp.training.build import build_task
from stsbp.training.tracking import tracked_settings
from stsbp.training.trained import Trained, warn_of_contract

__all__ = ["CARD", "hub_settings", "trained_on", "write_folder"]

CARD = "README.md"
"""The model card. It is not read."""

_KINDS = {
    CONFIG: OutputKind("the config.json of a network of stsbp", re.compile(rb'\{\s*"library_name": "stsbp"')),
    WEIGHTS: OutputKind("weights of stsbp", re.compile(rb'.{8}\{"__metadata__":\{"format":"stsbp"', re.DOTALL)),
    PACKED: OutputKind("packed weights of stsbp", re.compile(re.escape(MAGIC))),
    CARD: OutputKind("a model card of stsbp", re.compile(rb"---\r?\nlibrary_name: stsbp\r?\n")),
}
_FIGURES = (
    *("samples", "loss", "rates", "accuracy", "accuracy_spike_count", "precision", "recall", "f1", "van_rossum"),
    *("hamming", "tolerance", "mse", "regression"),
)
"""Results of a test that `config.json` stores."""


def write_folder(
    trained: Trained,
    out: Path,
    name: str,
    metrics: Sequence[Mapping[str, Any]],
    *,
    license: str = "",
    packed: bool = False,
    reference: str = "hub:OWNER/NAME@COMMIT",
    remark: str = "",
) -> list[str]:
    """Write a network as a folder. Returns the messages to print.

    Args:
        trained: the network, on any backend.
        out: the folder, which is made if it is missing.
        name: name of the run.
        metrics: records of the run, from which the card takes the test of this checkpoint.
        license: licence of the weights, for the card; empty: none is stated.
        packed: whether the weights are rounded to their grids, and stored as integers in fewer bytes.
        reference: how commands name the network, for the card.
        remark: sentences about the data, for the card.

    Raises:
        FileError: a file cannot be written, or is there already and no export of stsbp wrote it.
    """
    weights = {key: np.ascontiguousarray(x, np.float32) for key, x in sorted(trained.weights.items())}
    weights = on_grids(trained.network, weights) if packed else weights
    data = safetensors_bytes(weights)
    sha256 = hashlib.sha256(data).hexdigest()
    data, tensors = pack(weights) if packed else (data, None)
    info, inputs = trained.info, trained.task.inputs.to_json()
    values: dict[str, Any] = {
        "library_name": "stsbp",
        "format": 2 if packed else 1,
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
    if (test := _last_test(metrics, int(info["step"]))) is not None:
        values["test"] = {key: test[key] for key in _FIGURES if key in test}
    if tensors is not None:
        values["packed"] = tensors
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    card = model_card(trained, name, values, license, reference, remark)
    files = {FORMATS[values["format"]]: data, CARD: card.encode(), CONFIG: text.encode()}
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


def _last_test(metrics: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    """The last test of the weights, which are those after update `step`."""
    tests = [r for r in metrics if r["kind"] == "evaluation" and r["split"] == "test" and r["step"] == step]
    return tests[-1] if tests else None


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
