"""Checkpoints: what is read back, what damage is noticed, what a failed write leaves behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.errors import CheckpointError, FileError
from stsbp.files import OpenFolder, read_regular
from stsbp.training import checkpoint
from stsbp_spec.typing import AnyArray

TENSORS: dict[str, AnyArray] = {
    "step": np.asarray(7, dtype=np.int64),
    "weight/conv1": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 1, 0),
    "weight/linear2": np.array([[np.float32(0.1), -0.0, 1e-45]], dtype=np.float32),
}


def save(path: Path, name: str, tensors: Mapping[str, AnyArray], info: Mapping[str, Any], *, step: int) -> None:
    with OpenFolder(path) as folder:
        checkpoint.save(folder, name, tensors, info, step=step)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoint `last`."""
    save(tmp_path, "last", TENSORS, {"epoch": 1, "sums": {"loss": 0.1 + 0.2}}, step=7)
    return tmp_path


def tensor_file(folder: Path) -> Path:
    (path,) = folder.glob("last-*.safetensors")
    return path


def tensor_file_of(folder: Path) -> str:
    """The name of the tensor file in the description of `last`."""
    return str(json.loads((folder / "last.json").read_text())["file"])


def test_reads_back_the_same_bits(saved: Path) -> None:
    loaded = checkpoint.load(saved, "last")
    assert loaded.info["step"] == 7
    assert loaded.info["sums"]["loss"] == 0.1 + 0.2
    assert set(loaded.tensors) == set(TENSORS)
    for name, x in TENSORS.items():
        assert loaded.tensors[name].dtype == x.dtype
        assert loaded.tensors[name].shape == x.shape
        assert loaded.tensors[name].tobytes() == x.tobytes()


def test_replaces_the_one_before(saved: Path) -> None:
    first_file = tensor_file(saved)
    save(saved, "last", {**TENSORS, "step": np.asarray(8)}, {}, step=8)
    assert not first_file.exists()
    assert checkpoint.load(saved, "last").info["step"] == 8


def test_replaced_while_it_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [9, 8]

    def late(path: Path, most: int) -> bytes:
        if path.suffix == ".safetensors" and steps:
            save(saved, "last", TENSORS, {}, step=steps.pop())
        return read_regular(path, most)

    monkeypatch.setattr(checkpoint, "read_regular", late)
    assert checkpoint.load(saved, "last").info["step"] == 9


def test_last_and_best_do_not_touch_each_other(saved: Path) -> None:
    save(saved, "best", TENSORS, {}, step=3)
    save(saved, "last", TENSORS, {}, step=9)
    assert checkpoint.load(saved, "best").info["step"] == 3
    assert checkpoint.load(saved, "last").info["step"] == 9


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_truncated_tensors(saved: Path, length: int) -> None:
    path = tensor_file(saved)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256"):
        checkpoint.load(saved, "last")


def test_any_changed_byte_of_the_tensors(saved: Path) -> None:
    path = tensor_file(saved)
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(saved, "last")


def test_any_changed_byte_of_the_description(saved: Path) -> None:
    path = saved / "last.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if _same_json(path, content):
            continue
        with pytest.raises(CheckpointError):
            checkpoint.load(saved, "last")


def _same_json(path: Path, content: bytes) -> bool:
    """Whether the change is one that JSON does not see."""
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(content))
    except ValueError:
        return False


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": 1}', b"3"])
def test_description_that_is_none(saved: Path, content: bytes) -> None:
    (saved / "last.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved, "last")


def test_missing(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 'best'"):
        checkpoint.load(saved, "best")
    tensor_file(saved).unlink()
    with pytest.raises(CheckpointError, match=r"names last-7-.* which is missing.*--checkpoint 'best'"):
        checkpoint.load(saved, "last")


def test_other_format(saved: Path, forge: Callable[..., None]) -> None:
    forge(saved, lambda description: description.update(format=99))
    with pytest.raises(CheckpointError, match="has format 99"):
        checkpoint.load(saved, "last")


def test_tensors_that_are_not_those_listed(saved: Path, forge: Callable[..., None]) -> None:
    forge(saved, lambda description: description.update(tensors={"step": ["int64", [1]]}))
    with pytest.raises(CheckpointError, match="not those that the description lists"):
        checkpoint.load(saved, "last")


def test_file_name_cannot_leave_the_folder(saved: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    inner = saved / "inner"
    inner.mkdir()
    (inner / "last.json").write_bytes((saved / "last.json").read_bytes())
    forge(inner, lambda description: description.update(file=f"../{tensor_file(saved).name}"))
    with pytest.raises(CheckpointError, match="is not a tensor file of the checkpoint 'last'"):
        checkpoint.load(inner, "last")


def test_nothing_is_unpickled(saved: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    import hashlib

    data = pickle.dumps(Bomb())
    digest = hashlib.sha256(data).hexdigest()
    file = f"last-7-{digest[:12]}.safetensors"
    (saved / file).write_bytes(data)
    forge(saved, lambda description: description.update(sha256=digest, file=file))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(saved, "last")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2])
def test_full_disk_keeps_the_one_before_and_leaves_nothing(
    saved: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in saved.iterdir())
    original = getattr(os, call)
    calls: list[Any] = []

    def full(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        # Calls 1 and 2 of fsync are the tensor file and its folder, those of replace the two files.
        if len(calls) >= (3 if call == "fsync" and number == 2 else number):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **named)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FileError, match="the disk is full"):
        save(saved, "last", TENSORS, {}, step=8)
    monkeypatch.undo()
    assert sorted(path.name for path in saved.iterdir()) == names
    assert checkpoint.load(saved, "last").info["step"] == 7


def test_temporary_file_of_a_killed_process_is_removed(saved: Path) -> None:
    (saved / ".last-9-0123456789ab.safetensors.abcdef012345.tmp").write_bytes(b"half")
    (saved / ".last.json.abcdef012345.tmp").write_bytes(b"half")
    save(saved, "last", TENSORS, {}, step=8)
    assert len(list(saved.iterdir())) == 2


def test_save_removes_only_files_that_it_wrote(saved: Path) -> None:
    copies = (
        "last-for-paper.safetensors",
        "last-7.safetensors",
        "last-8-0123456789ab.safetensors.bak",
        ".last-mine.tmp",
    )
    for name in (*copies, "last-6-0123456789ab.safetensors"):
        (saved / name).touch()
    save(saved, "last", TENSORS, {}, step=8)
    assert {path.name for path in saved.iterdir()} == {*copies, "last.json", tensor_file_of(saved)}


def test_damaged_description_does_not_cost_the_tensors(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_file = tensor_file(saved)
    (saved / "last.json").write_bytes(b"{")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError):
        save(saved, "last", TENSORS, {}, step=8)
    assert first_file.exists()


def test_description_larger_than_what_is_read_is_not_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = (saved / "last.json").read_bytes()
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 2000)
    with pytest.raises(FileError, match=r"last\.json is not written: it would have 2,\d+ bytes"):
        save(saved, "last", {"x": np.zeros(2, np.float32)}, {"classes": "a" * 2000}, step=2)
    assert (saved / "last.json").read_bytes() == description
    checkpoint.load(saved, "last")
