"""Folders of the Hugging Face Hub whose settings, weights or links come from a stranger."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from stsbp.hub.folder import write_folder
from stsbp.hub.network import read_folder
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.registry import open_backend

from campaigns.calls import Complaint
from campaigns.cases import Case, Kind
from campaigns.mutate import json_bytes, mutated_bytes, mutated_json
from campaigns.small_files import EVIL
from campaigns.worlds import World

__all__ = ["HUB_FILES"]

_CONFIG, _WEIGHTS, _PACKED = "config.json", "model.safetensors", "model.packed"
_RUNS = ("pictures", "recordings", "rasters")
_HOSTILE: tuple[tuple[str, Any], ...] = (
    ("neuron", f"{EVIL}:E"),
    ("loss", f"{EVIL}:E"),
    ("surrogate", f"{EVIL}:E"),
    ("track", f"{EVIL}:E"),
    ("net", "../data/odd/fifo.bin.toml"),
    ("net", "settings.toml"),
    ("dataset", "folder:../data/pictures"),
    ("dataset", "sequences:/dev/zero"),
    ("test_on", "events:../data/odd/fifo.bin"),
    ("data_dir", "../data"),
    ("init_from", "runs/pictures"),
    ("init_sha256", "a" * 64),
)
"""Settings that would read a file of this machine, or import a module."""


@cache
def _exported(root: Path, run: str, weights: str) -> dict[str, bytes]:
    """The files of an exported run of the world. `weights` is the file of its weights."""
    folder = root.parent / f"exported-{run}"
    shutil.rmtree(folder, ignore_errors=True)
    source = root / "work" / "runs" / run
    trained = load_trained(RunFolder(source), "last", open_backend("numpy"))
    write_folder(trained, folder, run, (), packed=weights == _PACKED)
    files = {name: (folder / name).read_bytes() for name in (_CONFIG, weights)}
    shutil.rmtree(folder)
    return files


class HubFolders(Kind):
    """Folders with `config.json` and weights, packed or not, damaged before or after the digest is made."""

    name, weight = "hub", 0.02

    def make(self, rng: random.Random, world: World) -> Case:
        weights, how = rng.choice((_WEIGHTS, _WEIGHTS, _PACKED)), dict[str, Any]()
        files = dict(_exported(world.root, rng.choice(_RUNS), weights))
        kinds = ("none", "json", "settings", "bytes", "pickle", "link")
        damage = rng.choice((*kinds, "tensors") if weights == _PACKED else (*kinds, "header", "values"))
        values = json.loads(files[_CONFIG])
        if damage == "json":
            values = mutated_json(rng, values)
        elif damage == "settings":
            key, value = rng.choice(_HOSTILE)
            values["settings"][key] = value
            how["refuse"] = f"its setting {key} reads a file or imports a module"
        elif damage == "tensors":
            tensor = values["packed"][rng.choice(list(values["packed"]))]
            tensor[rng.choice(list(tensor))] = rng.choice((None, [2**30, 2**30], [-1], [], 2**40, -113, 127, 0.5))
        elif damage == "bytes":
            files[weights] = mutated_bytes(rng, files[weights])
        elif damage == "header":
            files[_WEIGHTS] = _other_header(rng, files[_WEIGHTS])
        elif damage == "values":
            files[_WEIGHTS] = _other_values(rng, files[_WEIGHTS])
            how["refuse"] = "a weight is not finite"
        elif damage == "pickle":
            files[weights] = pickle.dumps(os.getcwd)
            how["refuse"] = "its weights are a pickle"
        elif damage == "link":
            how |= {"link": rng.choice((_CONFIG, weights)), "to": rng.choice(("file", "zero", "pipe", "loop"))}
            how["refuse"] = "a file is a link that leads out of the folder, or no file"
        if isinstance(values, dict) and damage != "json" and weights == _WEIGHTS and rng.random() < 0.9:
            values["sha256"] = hashlib.sha256(files[_WEIGHTS]).hexdigest()
        if damage in ("settings", "json"):
            files[_CONFIG] = json_bytes(rng, values) if damage == "json" else json.dumps(values).encode()
        else:
            files[_CONFIG] = json.dumps(values).encode()
        if damage != "link" and rng.random() < 0.1:
            named = {f"work/hub/{name}": content for name, content in files.items()}
            other = ("--on", "digits") if rng.random() < 0.3 else ()
            arguments = ("--backend", "numpy", "evaluate", "hub:hub", *other)
            return Case(
                self.name, arguments=arguments, how=how, files=named, may_make=("work/hub",), may_change=("cache",)
            )
        return Case(self.name, how=how, files=files)

    def read(self, case: Case, world: World) -> None:
        folder = world.outside / "hub-folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        elsewhere = world.outside / "hub-elsewhere"
        try:
            for name, content in case.files.items():
                (folder / name).write_bytes(content)
            if link := case.how.get("link"):
                path = folder / link
                elsewhere.write_bytes(path.read_bytes())
                path.unlink()
                targets = {"file": elsewhere, "zero": Path("/dev/zero"), "loop": path}
                if case.how["to"] == "pipe":
                    os.mkfifo(path)
                else:
                    path.symlink_to(targets[case.how["to"]])
            network = read_folder(folder, "hub")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            elsewhere.unlink(missing_ok=True)
        for name, x in network.weights.items():
            if x.dtype != np.float32 or not np.isfinite(x).all():
                raise Complaint(f"weights that are not finite float32 were accepted\n{name}")
        settings = network.settings
        if settings.track or settings.data_dir or settings.init_from:
            raise Complaint("settings about one machine were accepted")


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _other_header(rng: random.Random, data: bytes) -> bytes:
    """A header that declares other tensors, or another length."""
    header, body = _parts(data)
    names = [name for name in header if name != "__metadata__"]
    name, change = rng.choice(names), rng.randrange(5)
    if change == 0:
        header[name]["shape"] = [rng.choice((2**40, 2**62, 0, -1)), *header[name]["shape"]]
    elif change == 1:
        header[name]["data_offsets"] = [0, rng.choice((2**44, 2**64, -1, 3))]
    elif change == 2:
        header[rng.choice(("../../evil", "evil\0", "", "a" * 70_000))] = header.pop(name)
    elif change == 3:
        header[name]["dtype"] = rng.choice(("F64", "I64", "BOOL", "F8_E4M3", "PICKLE"))
    text = json.dumps(header).encode()
    length = rng.choice((2**63, 2**40, 0, len(text) + 1)) if change == 4 else len(text)
    return struct.pack("<Q", length) + text + body


def _other_values(rng: random.Random, data: bytes) -> bytes:
    """A weight that is not finite."""
    (length,) = struct.unpack("<Q", data[:8])
    file = io.BytesIO(data)
    file.seek(8 + length + 4 * rng.randrange((len(data) - 8 - length) // 4))
    file.write(struct.pack("<f", rng.choice((float("nan"), float("inf"), float("-inf")))))
    return file.getvalue()


HUB_FILES: tuple[Kind, ...] = (HubFolders(),)
"""The kinds of this module."""
