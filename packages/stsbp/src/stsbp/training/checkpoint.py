"""Checkpoints: tensors as safetensors, and everything else as JSON. After a crash, there is always a usable pair.

`last.json` names its tensor file. The name of the tensor file contains the step and the digest, so no file that a
description names is ever written again. First the new tensor file is written, then the description that names it. Then
the old tensor file is removed. Whenever a crash happens, the description on the disk names a complete file. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from stsbp_spec.typing import AnyArray

from stsbp import records
from stsbp.config import RunConfig
from stsbp.errors import CheckpointError, FileError
from stsbp.files import GIGABYTE, MEGABYTE, TEMPORARY, OpenFolder, read_regular

__all__ = [
    "TENSOR_FILE",
    "Checkpoint",
    "as_bytes",
    "check_of",
    "described",
    "load",
    "load_of",
    "note_epochs",
    "progress_of",
    "recorded_of",
    "remove_leftovers",
    "save",
    "trained_of",
]

FORMAT = 1
MAX_BYTES = 64 * MEGABYTE
"""Largest size of a description in bytes."""
_MOST_TENSORS = 64 * GIGABYTE
TENSOR_FILE = r"-[0-9]+-[0-9a-f]{12}\.safetensors"
"""How the name of a tensor file goes on after the name of the checkpoint, as a regular expression."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and further information as JSON values."""

    tensors: dict[str, AnyArray]
    info: dict[str, Any]


def as_bytes(tensors: Mapping[str, AnyArray]) -> bytes:
    """Tensors as safetensors."""
    # Use asarray, because ascontiguousarray adds an axis to a scalar.
    return safetensors.numpy.save({key: np.asarray(x, order="C") for key, x in tensors.items()})


def save(folder: OpenFolder, name: str, tensors: Mapping[str, AnyArray], info: Mapping[str, Any], *, step: int) -> None:
    """Replace the checkpoint `name` (`last` or `best`) of a run.

    Raises:
        FileError: the system refused, for example because the disk is full. The old checkpoint still exists.
    """
    data = as_bytes(tensors)
    digest = hashlib.sha256(data).hexdigest()
    file = _file_name(name, step, digest)
    description = {
        "format": FORMAT,
        "file": file,
        "sha256": digest,
        "tensors": {key: [str(x.dtype), list(x.shape)] for key, x in tensors.items()},
        "step": step,
        **info,
    }
    try:
        folder.write(file, data)
        _write_description(folder, name, description)
    finally:
        # Also after a failure: a full disk gets back what the failed attempt took.
        remove_leftovers(folder, name)


def load(folder: Path, name: str) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: it is missing, damaged or of another version. The message says what to do.
    """
    path, description = folder / f"{name}.json", described(folder, name)
    try:
        header = records.read(records.Description, description)
    except ValueError as error:
        raise _damaged(path, records.reason(error), name) from error
    file = header.file
    # The name follows from the other fields. Another name could lead out of the folder, or to another checkpoint's
    # file.
    if file != _file_name(name, header.step, header.sha256):
        raise _damaged(path, f"it names {file!r}, which is not a tensor file of the checkpoint {name!r}", name)
    tensor_path = folder / file
    try:
        data = read_regular(tensor_path, _MOST_TENSORS)
    except FileNotFoundError:
        if described(folder, name) != description:
            # The run is being trained: a newer checkpoint has replaced this one.
            return load(folder, name)
        raise _damaged(path, f"it names {file}, which is missing", name) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {tensor_path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != header.sha256:
        raise _damaged(tensor_path, "its SHA-256 differs from the one recorded when it was saved", name)
    try:
        arrays: dict[str, AnyArray] = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(tensor_path, f"it is not a safetensors file: {error}", name) from error
    tensor_forms = {key: [str(x.dtype), list(x.shape)] for key, x in arrays.items()}
    if tensor_forms != header.tensors:
        raise _damaged(tensor_path, "its tensors are not those that the description lists", name)
    return Checkpoint(arrays, description)


def described(folder: Path, name: str) -> dict[str, Any]:
    """The description of a checkpoint, which matches its own digest. The tensors are not read.

    Raises:
        CheckpointError: it is missing, damaged or of another version. The message says what to do.
    """
    path = folder / f"{name}.json"
    try:
        text = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no checkpoint {name!r} ({path.name} is missing)") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        description: dict[str, Any] = records.parse(text)
        digest = description.pop("digest")
        version = description["format"]
        own_digest = records.digest_of(description)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, "it is not a complete description of a checkpoint", name) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, but this stsbp reads format {FORMAT}; use the version that wrote it"
        )
    if digest != own_digest:
        raise _damaged(path, "its content does not match its own digest", name)
    return description


def note_epochs(folder: OpenFolder, name: str, epochs: int) -> None:
    """Record the run's number of epochs at the time of the checkpoint, if the checkpoint does not contain it.

    Raises:
        CheckpointError, FileError: the checkpoint cannot be read, or cannot be written.
    """
    description = described(folder.path, name)
    if "epochs" not in description:
        _write_description(folder, name, {**description, "epochs": epochs})


def load_of(config: RunConfig, folder: Path, name: str) -> Checkpoint:
    """The checkpoint of a run with these settings.

    Raises:
        CheckpointError: it is missing or damaged, or was trained with other settings.
    """
    saved = load(folder, name)
    check_of(config, saved.info, folder, name)
    return saved


def check_of(config: RunConfig, info: Mapping[str, Any], folder: Path, name: str) -> None:
    """Check that a checkpoint was trained with these settings, perhaps before the run's number of epochs grew.

    Raises:
        CheckpointError: it was not.
    """
    epochs = info.get("epochs", config.epochs)
    fits = isinstance(epochs, int) and epochs <= config.epochs
    if not fits or info.get("config") != config.model_copy(update={"epochs": epochs}).digest():
        raise CheckpointError(
            f"{folder / 'config.toml'} is not what the checkpoint {name!r} was trained with; put the settings back, or "
            "train anew in another folder"
        )


def _write_description(folder: OpenFolder, name: str, description: Mapping[str, Any]) -> None:
    text = _encode({**description, "digest": records.digest_of(description)})
    if len(text) > MAX_BYTES:
        raise FileError(
            f"{folder.path / name}.json is not written: it would have {len(text):,} bytes, but checkpoints are read up "
            f"to {MAX_BYTES:,} bytes; shorten the names of classes and layers"
        )
    folder.write(f"{name}.json", text)


def progress_of(saved: Checkpoint, folder: Path) -> records.ProgressRecord:
    """The position of the run of the checkpoint `last` in `folder`.

    Raises:
        CheckpointError: the description does not contain it, or has invalid values.
    """
    return _part(records.ProgressRecord, saved.info, folder, "last")


def recorded_of(info: Mapping[str, Any], folder: Path) -> records.Recorded:
    """Which records belong to the checkpoint `last` in `folder`, from its description.

    Raises:
        CheckpointError: the description does not contain it, or has invalid values.
    """
    return _part(records.Recorded, info, folder, "last")


def trained_of(saved: Checkpoint, folder: Path, name: str) -> records.CheckpointRecord:
    """The information about the network in the checkpoint `name` in `folder`, which is needed to use the network.

    Raises:
        CheckpointError: the description does not contain it, or has invalid values.
    """
    return _part(records.CheckpointRecord, saved.info, folder, name)


def _part(record_type: type[records.R], info: Mapping[str, Any], folder: Path, name: str) -> records.R:
    try:
        return records.read(record_type, info)
    except ValueError as error:
        raise _damaged(folder / f"{name}.json", records.reason(error), name) from error


def _file_name(name: str, step: int, digest: str) -> str:
    return f"{name}-{step}-{digest[:12]}.safetensors"


def _damaged(path: Path, reason: str, name: str) -> CheckpointError:
    other_name = "best" if name == "last" else "last"
    return CheckpointError(
        f"{path} is damaged: {reason}. Copy the run folder again if it is a copy; "
        f"otherwise use the checkpoint {other_name!r} (evaluate and predict: --checkpoint {other_name!r}), or train "
        "anew"
    )


def _encode(description: Mapping[str, Any]) -> bytes:
    return (json.dumps(description, indent=1, allow_nan=False) + "\n").encode()


def remove_leftovers(folder: OpenFolder, name: str) -> None:
    """Remove tensor files that the description does not name, and temporary files of processes that were killed."""
    # Users put copies beside them, such as best-for-paper.safetensors.
    checkpoint_file = re.compile(rf"{name}{TENSOR_FILE}|\.{name}({TENSOR_FILE}|\.json){TEMPORARY}")
    # A file that cannot be removed only takes up space. A folder that no longer belongs to the run is not changed.
    with contextlib.suppress(OSError, FileError):
        try:
            current = records.parse(folder.read(f"{name}.json", MAX_BYTES))["file"]
        except (ValueError, KeyError, TypeError):
            return
        for file_name in folder.names():
            if file_name != current and checkpoint_file.fullmatch(file_name):
                folder.remove(file_name)
