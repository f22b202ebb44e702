"""Data that moved, changed or were damaged between two commands, and two processes that want one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import SettingsSource, resolve
from stsbp.datasets import base, cache, load
from stsbp.datasets.base import FrameSplit, Subset
from stsbp.training import build, execute, overlap, plan
from stsbp_spec.typing import Int64, UInt8

Call = Callable[..., Result]


OPTIONS = ("--net", "8", "--padding", "valid", "--steps", 2, "--epochs", 1, "--holdout", 4)


def draw(root: Path, count: int, seed: int = 0) -> Path:
    """A folder with `count` images of two classes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for number in range(count):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed + number).integers(0, 256, (6, 6), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", 12)


@pytest.fixture
def run(stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    done = stsbp("train", f"folder:{images}", *OPTIONS, "--out", "run")
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def test_evaluate_follows_data_that_moved(stsbp: Call, run: Path, images: Path, tmp_path: Path) -> None:
    images.rename(tmp_path / "elsewhere")
    for command in (("evaluate", run), ("train", "--resume", run)):
        done = stsbp(*command)
        assert done.exit_code == 1
        assert f"data were in {images}. If they have moved, give their new folder with --data-dir" in done.output
    # A new run reads the folder that it names, whatever the data folder is.
    assert "--data-dir" not in stsbp("train", f"folder:{images}", "--out", "new").output
    done = stsbp("evaluate", run, "--data-dir", tmp_path / "elsewhere")
    assert done.exit_code == 0, done.output
    assert stsbp("train", "--resume", run, "--data-dir", tmp_path / "elsewhere").exit_code == 0


def test_on_reads_the_folder_that_it_names_not_that_of_the_run(
    stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    other = draw(tmp_path / "other", 6)
    done = stsbp("train", "images", "--data-dir", images, *OPTIONS, "--out", "run")
    assert done.exit_code == 0, done.output
    done = stsbp("evaluate", "run", "--on", f"folder:{other}", "--json")
    assert json.loads(done.stdout)["samples"] == 6
    assert "not from" not in done.stderr
    # Given both, the name wins, and the output says which folder was not read.
    done = stsbp("evaluate", "run", "--on", f"folder:{other}", "--data-dir", images, "--json")
    assert json.loads(done.stdout)["samples"] == 6
    assert f"read from {other}, as folder:PATH says, not from the data folder {images}" in done.stderr


def test_test_on_reads_the_folder_that_it_names(
    stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    other = draw(tmp_path / "other", 6)
    # Its images are the first 6 of the 12, and none of the 12 is held out.
    test_on = ("--test-on", f"folder:{other}")
    done = stsbp("train", "images", "--data-dir", images, *OPTIONS[:-2], *test_on, "--out", "run")
    assert done.exit_code == 0, done.output
    assert ", 6 samples" in done.output
    assert "held out" not in done.output
    assert "nothing is tested" not in done.output
    assert f"warning: 6 of the 6 test samples of folder:{other} have the same content as samples" in done.stderr
    others = draw(tmp_path / "others", 6, seed=100)
    done = stsbp("train", "images", "--data-dir", images, *OPTIONS[:-2], "--test-on", f"folder:{others}", "--out", "c")
    assert done.exit_code == 0, done.output
    assert "warning" not in done.stderr
    log = (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()
    assert next(line for line in map(json.loads, log) if line["kind"] == "epoch")["samples"] == 12
    # The other way round: the data folder is that of the data set to test on.
    done = stsbp("train", f"folder:{other}", "--data-dir", images, *OPTIONS[:-2], "--test-on", "images", "--out", "b")
    assert done.exit_code == 0, done.output
    assert ", 12 samples" in done.output
    assert "not from" not in done.output


def test_train_reads_the_folder_that_it_names(stsbp: Call, images: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other", 6)
    done = stsbp("train", f"folder:{images}", "--data-dir", other, *OPTIONS, "--out", "run")
    assert done.exit_code == 0, done.output
    assert "12 images of 2 classes" in done.output
    assert f", not from the data folder {other}" in done.output


def test_sequences_are_read_from_the_file_that_is_named(stsbp: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("own", 10), ("other", 4)):
        inputs, targets = (rng.integers(0, 2, (count, 20, n), dtype=np.uint8) for n in (6, 3))
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, targets=targets)
    options = ("--net", "8", "--steps", 20, "--epochs", 1, "--out", "run")
    done = stsbp("train", "sequences", "--data-dir", "own.npz", *options)
    assert done.exit_code == 0, done.output
    done = stsbp("evaluate", "run", "--on", "sequences:other.npz", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["samples"] == 4


@pytest.mark.parametrize("name", ["images", "folder:images"])
def test_a_run_finds_its_data_from_another_folder(
    stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    folder_options = () if ":" in name else ("--data-dir", "images")
    done = stsbp("train", name, *folder_options, *OPTIONS, "--out", "run")
    assert done.exit_code == 0, done.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = stsbp("evaluate", tmp_path / "run")
    assert done.exit_code == 0, done.output
    # The line for a script that is restarted names the data as it did.
    monkeypatch.chdir(tmp_path)
    assert stsbp("train", name, *folder_options, *OPTIONS, "--out", "run", "--resume").exit_code == 0


@pytest.mark.parametrize("name", ["images", "folder:images"])
def test_a_run_with_a_relative_data_folder_is_read_from_there(
    stsbp: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # As runs were begun that kept the folder as it was typed.
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "absolute", lambda config: config)
    folder_options = () if ":" in name else ("--data-dir", "images")
    assert stsbp("train", name, *folder_options, *OPTIONS, "--out", "run").exit_code == 0
    assert stsbp("evaluate", "run").exit_code == 0
    assert stsbp("train", name, *folder_options, *OPTIONS, "--out", "run", "--resume").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = stsbp("evaluate", tmp_path / "run")
    assert done.exit_code == 1
    assert "data folder images is a relative path" in done.output
    assert "--data-dir" in done.output
    assert stsbp("evaluate", tmp_path / "run", "--data-dir", images).exit_code == 0


@pytest.mark.parametrize("name", ["images", "motor", "sequences"])
def test_without_a_test_set_no_note_mentions_held_out_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    data_path = tmp_path / "data.npz"
    if name == "images":
        data_path = draw(tmp_path / "images", 12)
    else:
        bits = np.random.default_rng(0).integers(0, 2, (10, 20, 6), dtype=np.uint8)
        np.savez(data_path, inputs=bits, targets=bits)
    notes = {
        train_only: load(name, data_dir=data_path, steps=20, limit=4, train_only=train_only).notes
        for train_only in (False, True)
    }
    assert any("held out" in note for note in notes[False])
    assert not any("held out" in note for note in notes[True])


def test_the_error_of_a_lost_data_folder_names_the_option(stsbp: Call, images: Path, tmp_path: Path) -> None:
    assert stsbp("train", "images", "--data-dir", images, *OPTIONS, "--out", "run").exit_code == 0
    images.rename(tmp_path / "elsewhere")
    assert (
        f"data were in {images}. If they have moved, give their new folder with --data-dir"
        in stsbp("evaluate", "run").output
    )
    assert stsbp("evaluate", "run", "--data-dir", tmp_path / "elsewhere").exit_code == 0


def test_evaluate_refuses_data_that_changed(stsbp: Call, run: Path, images: Path) -> None:
    (images / "a" / "0.png").unlink()
    done = stsbp("evaluate", run)
    assert done.exit_code == 1
    assert "not those" in done.output


def test_an_unknown_home_is_one_line(stsbp: Call) -> None:
    done = stsbp("train", "folder:~nosuchuser/x", "--out", "run")
    assert done.exit_code == 1
    assert "cannot find ~nosuchuser" in done.output


def test_a_damaged_manifest_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files that changed a moment ago are not remembered; here they are.
    monkeypatch.setattr(cache, "_RACY_NS", -(10**12))
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "a.bin").write_bytes(b"content")
    good = cache.digest_files(tmp_path, ["a.bin"], cache_dir=folder)
    (manifest,) = folder.glob("manifest-*.json")
    content = json.loads(manifest.read_text())
    content["files"]["a.bin"][3] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert cache.digest_files(tmp_path, ["a.bin"], cache_dir=folder) == good


def test_a_run_that_another_process_began_meanwhile_stays(
    stsbp: Call, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build.load_data

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(execute, "load_data", original)
        assert stsbp("train", "digits", *tiny, "--out", "run").exit_code == 0
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "load_data", slow)
    done = stsbp("train", "digits", *tiny, "--seed", 7, "--out", "run")
    assert done.exit_code == 1
    assert "meanwhile" in done.output
    assert "seed = 0" in (tmp_path / "run" / "config.toml").read_text()


def test_experiment_warns_of_test_samples_that_were_trained_on(
    stsbp: Call, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    other = draw(tmp_path / "other", 6)
    arguments = ("experiment", f"folder:{images}", *OPTIONS[:-2], "--seeds", 1, "--out", "e")
    done = stsbp(*arguments, "--test-on", f"folder:{other}", "--init-from", run)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "e" / "experiment.md").read_text()
    for warning in ("are used for training or to choose the best checkpoint", "and this run starts from its weights"):
        assert re.search(rf"warning: \d of the 6 test samples .*{warning}", done.stderr)
        assert re.search(rf"- Data: \d of the 6 test samples .*{warning}\.", table)


def test_testing_on_samples_that_the_start_was_trained_on_is_warned_of(
    stsbp: Call, run: Path, images: Path, tmp_path: Path
) -> None:
    begin = ("train", f"folder:{images}", *OPTIONS, "--init-from", run)
    # The 4 samples of this split's test set that are not held out by the other split.
    held = [_test_samples(images, seed) for seed in (0, 7)]
    shared = len(held[1] - held[0])
    assert shared > 0
    done = stsbp(*begin, "--split-seed", 7, "--out", "other")
    assert done.exit_code == 0, done.output
    assert f"warning: {shared} of the 4 test samples have the same content as samples that {run}" in done.stderr
    same = stsbp(*begin, "--seed", 1, "--out", "same")
    assert same.exit_code == 0, same.output
    assert "warning" not in same.stderr
    # What differs may leave the test samples as they are.
    fewer = stsbp(*begin, "--limit", 4, "--out", "fewer")
    assert fewer.exit_code == 0, fewer.output
    assert "warning" not in fewer.stderr
    untested = stsbp(*begin[:-4], *begin[-2:], "--no-test", "--out", "untested")
    assert untested.exit_code == 0, untested.output
    assert "warning" not in untested.stderr
    # Without the data of the first run no overlap is reported, only that it cannot be checked.
    images.rename(tmp_path / "elsewhere")
    moved = (begin[0], f"folder:{tmp_path / 'elsewhere'}", *begin[2:])
    done = stsbp(*moved, "--out", "moved")
    assert done.exit_code == 0, done.output
    assert f"cannot check whether {run}:last was trained on some of these samples" in done.stderr
    # Nor with settings that are not those of the checkpoint, of which the new run takes only weights.
    settings = run / "config.toml"
    settings.write_text(settings.read_text().replace("split_seed = 0", "split_seed = 3"))
    done = stsbp(*moved, "--out", "changed")
    assert done.exit_code == 0, done.output
    assert f"cannot check whether {run}:last was trained on some of the test samples" in done.stderr


def _test_samples(images: Path, seed: int) -> set[bytes]:
    data = build.load_data(
        resolve([SettingsSource("test", {"dataset": f"folder:{images}", "holdout": 4, "split_seed": seed})])
    )
    return set(overlap.contents(data.test, "direct"))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("digits", "f7c6fe7435b8996bf97c40bbfcf30274c8f8c394f9a14a322dd56059731f2e08"),
        ("patterns", "7f58277078a681fb03cdb1d2966963edd89b8cadd874b44715a28112dcb7eed7"),
    ],
)
def test_the_fingerprint_of_data_is_the_one_that_runs_keep(name: str, digest: str) -> None:
    """A run that was begun by an earlier version goes on only on data of its fingerprint."""
    data = load(name)
    assert build.Data(data, data.train, None, data.test).fingerprint() == digest


def _rasters(path: Path, **changes: Any) -> Path:
    """A file of 60 rasters of 4 steps and 3 neurons, each with a class; 20 of them are test samples."""
    random = np.random.default_rng(0)
    arrays = {
        "inputs": random.integers(0, 2, (60, 4, 3)).astype(np.uint8),
        "labels": np.arange(60) % 2,
        "split": (np.arange(60) >= 40).astype(np.uint8),
        "lengths": np.full(60, 4),
        "classes": np.array(["no", "yes"]),
    }
    np.savez(path, **{**arrays, **{name: change(arrays[name]) for name, change in changes.items()}})
    return path


def _at(sample: int, value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[sample] = value
        return array

    return change


def _swapped(array: Any) -> Any:
    # Both samples have the class 1.
    array[[1, 3]] = array[[3, 1]]
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": _at(1, 0)}, "inputs of the train samples, inputs of the test samples"),
        ({"inputs": _swapped}, "inputs of the train samples"),
        ({"labels": _at(1, 0)}, "labels of the train samples"),
        ({"lengths": _at(41, 3)}, "lengths of the test samples"),
        ({"split": _at(39, 1)}, "number of the train samples"),
        ({"classes": _at(0, "maybe")}, "classes"),
    ],
    ids=["input", "order", "label", "length", "split", "class"],
)
def test_resume_refuses_data_that_changed_anywhere(
    stsbp: Call, tmp_path: Path, change: dict[str, Any], message: str, refused: Callable[..., None]
) -> None:
    path = _rasters(tmp_path / "own.npz")
    options = ("--net", 4, "--steps", 4, "--epochs", 1, "--out", "run")
    assert stsbp("train", f"sequences:{path}", *options).exit_code == 0
    _rasters(path, **change)
    contents = {entry.name: entry.read_bytes() for entry in Path("run").iterdir()}
    refused(
        stsbp("train", "--resume", "run", "--epochs", 2), "are not those that the run in run was begun with", message
    )
    refused(stsbp("evaluate", "run"), message)
    del contents["environment.json"]
    assert {name: (Path("run") / name).read_bytes() for name in contents} == contents


def test_resume_continues_a_run_of_an_earlier_version_with_a_warning(
    stsbp: Call, tmp_path: Path, forge: Callable[..., None], refused: Callable[..., None]
) -> None:
    path = _rasters(tmp_path / "own.npz")
    assert stsbp("train", f"sequences:{path}", "--net", 4, "--steps", 4, "--epochs", 1, "--out", "run").exit_code == 0
    forge(Path("run"), lambda description: description.pop("contents"))
    assert stsbp("evaluate", "run").exit_code == 0
    done = stsbp("train", "--resume", "run", "--epochs", 2)
    assert done.exit_code == 0, done.output
    assert "was begun by an earlier version, which kept a digest of 16 samples" in done.stderr
    # It has now kept a digest of all samples.
    assert "earlier version" not in stsbp("train", "--resume", "run", "--epochs", 3).stderr
    forge(Path("run"), lambda description: description.pop("contents"))
    _rasters(path, labels=_at(1, 0))
    refused(stsbp("train", "--resume", "run", "--epochs", 4), "number, labels or inputs of the samples")


@pytest.mark.usefixtures("few_recordings")
def test_contents_of_a_cache_are_those_of_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read again, and a split of another package without `content` gets a digest of all its inputs."""
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    split = load("digits-events", limit=20).train
    assert isinstance(split, Subset)
    assert isinstance(split.split, Subset)
    stored = split.split.split
    assert isinstance(stored, FrameSplit)
    assert stored.sha256 == hashlib.sha256(np.asarray(stored.frames).tobytes()).hexdigest()
    assert base.content_of(dataclasses.replace(stored, sha256="")) == base.content_of(stored)
    plain = base.content_of(OtherTarget(split, 0))
    assert plain != base.content_of(OtherTarget(Subset(split, np.arange(20)[::-1]), 0))


class OtherTarget:
    """A split with the target of one sample changed."""

    def __init__(self, split: Any, sample: int) -> None:
        self.split, self.sample, self.labels = split, sample, split.labels
        self.inputs, self.stored = split.inputs, split.stored

    def __len__(self) -> int:
        return len(self.split)

    def targets(self, indices: Int64) -> UInt8:
        other: UInt8 = self.split.targets(indices) ^ (indices == self.sample)[:, None].astype(np.uint8)
        return other


def test_another_target_of_any_sample_is_another_fingerprint() -> None:
    data = load("patterns")
    fingerprint = build.Data(data, data.train, None, data.test).fingerprint()
    for sample in (0, 63, 64, len(data.train) - 1):
        assert build.Data(data, OtherTarget(data.train, sample), None, data.test).fingerprint() != fingerprint
