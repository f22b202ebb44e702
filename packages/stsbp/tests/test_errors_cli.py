"""What goes wrong says so in one message on standard error, with an exit code, no traceback, and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from stsbp.cli import cli
from stsbp.files import OpenFolder
from stsbp.training.metrics import MetricsFile


def nothing_made(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_unknown_backend(process: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    run = process("--backend", "nosuch", "train", "digits", cwd=tmp_path)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert output == ""
    assert errors.startswith("Error: no backend 'nosuch' is installed; installed: ")
    assert len(errors.splitlines()) == 1
    nothing_made(tmp_path)


def test_backend_that_is_known_but_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[..., None]
) -> None:
    from stsbp_spec import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    result = CliRunner().invoke(cli, ["--backend", "cupy", "train", "digits"])
    refused(result, "no backend 'cupy' is installed", "python -m pip install stsbp-cupy")
    nothing_made(tmp_path)


@pytest.mark.parametrize("words", [("--backend", "numpy"), ("--backend=numpy",), ("--device", "cpu")])
@pytest.mark.parametrize("command", [("train", "digits"), ("evaluate", "run")])
def test_backend_and_device_after_the_command(
    stsbp: Callable[..., Result], refused: Callable[..., None], command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    name = words[0].partition("=")[0]
    refused(
        stsbp(*command, *words),
        f"Error: {name} must be written before the command: stsbp {name} NAME {command[0]} ...",
        code=2,
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", "digits", "--out", ""), "'--out'"),
        (("train", "digits", "--overwrite", "--out="), "'--out'"),
        (("train", "--config", ""), "'--config'"),
        (("evaluate", ""), "'RUN'"),
        (("compare", "run", ""), "'RUN...'"),
        (("curves", "run", "--plot", ""), "'--plot'"),
        (("export", "", "--out", "a.nir"), "'RUN'"),
        (("export", "run", "--out", ""), "'--out'"),
        (("convert", "run", "--out", ""), "'--out'"),
        (("import", "", "--out", "run"), "'FILE'"),
        (("report", "run", "--out", ""), "'--out'"),
        (("predict", "run", ""), "'[FILE...]'"),
        (("predict", "run", "--draw", ""), "'--draw'"),
        (("nir-check", ""), "'FILE'"),
        (("networks", "--plot", ""), "'--plot'"),
        (("experiment", "digits", "--out", ""), "'--out'"),
        (("benchmark", "--json", ""), "'--json'"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    words: tuple[str, ...], named: str, stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(stsbp(*words), f"Invalid value for {named}: it is empty", code=2)
    nothing_made(tmp_path)


def test_unknown_device(stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("--device", "tpu", "train", "digits"), "has the device cpu only, got 'tpu'")
    nothing_made(tmp_path)


@pytest.mark.parametrize("dataset", ["nmnist", "cifar10", "images"])
def test_missing_data_folder(
    dataset: str,
    stsbp: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    monkeypatch.delenv("STSBP_DATA", raising=False)
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    refused(stsbp("train", dataset, "--data-dir", tmp_path / "nosuch"), str(tmp_path / "nosuch"))
    refused(stsbp("train", dataset), "needs", "--data-dir")
    nothing_made(tmp_path)


def test_unknown_data_set(stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "digit"), "unknown data set 'digit'", "digits")
    nothing_made(tmp_path)


def test_no_data_set(stsbp: Callable[..., Result], refused: Callable[..., None]) -> None:
    refused(stsbp("train"), "no data set is named")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs =", "is not valid TOML"),
        ("epoch = 3", "did you mean epochs"),
        ("epochs = 0", "epochs = 0"),
        ('loss = "hammin"', "(did you mean hamming?)"),
    ],
)
def test_broken_config(
    content: str, message: str, stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(content)
    refused(stsbp("train", "digits", "--config", file), str(file), message)
    assert list(tmp_path.iterdir()) == [file]


def test_missing_config(stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "digits", "--config", tmp_path / "nosuch.toml"), "there is no configuration file")


def test_bad_flags(stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "digits", "--epochs", 0), "--epochs 0: input should be greater than or equal to 1")
    refused(stsbp("train", "digits", "--epochs", "many"), "'many' is not a valid integer", code=2)
    refused(stsbp("train", "digits", "--loss", "mae"), "'van-rossum', 'hamming', 'spike-count'", code=2)
    refused(stsbp("train", "digits", "--net", "12C5-X"), "12C5-X\n       ^")
    refused(
        stsbp("train", "digits", "--net", "12C9", "--padding", "valid"), "kernel, 9x9, is larger than its input, 8x8"
    )
    refused(stsbp("train", "digits", "--surrogate", "logistic", "--precision", "reproducible"), "uses exp")
    steep = ("--net", "12", "--surrogate", "arctan:alpha=1e300")
    refused(stsbp("train", "digits", *steep), "scale must be finite in float32, got 1.5708e+300 for Arctan")
    refused(stsbp("train", "digits", "--validation", 5000), "cannot hold out 5000")
    refused(stsbp("networks", "12", "--input-shape", "2x3y"), "2x34x34")
    refused(stsbp("evaluate", tmp_path, "--threads", -1), "-1 is not in the range 0<=x<=1024", code=2)
    for length, message in ((100, "an input shape"), (101, "2x34x34")):
        refused(stsbp("networks", "12", "--input-shape", "1x" * 47 + "1" * (length - 94)), message)
    nothing_made(tmp_path)


def test_existing_run_is_not_overwritten(
    train_tiny: Callable[..., Result], tmp_path: Path, tensors: Callable[..., bytes], refused: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    earlier_tensors = tensors(run)
    refused(train_tiny(run, "--seed", 5), "exists and is not empty", "--resume", "--overwrite")
    assert tensors(run) == earlier_tensors


def test_resume_with_other_settings(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    tensors: Callable[..., bytes],
    refused: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    earlier = tensors(run), (run / "config.toml").read_text()
    result = stsbp("train", "nmnist", "--resume", run, "--epochs", 2, "--seed", 0, "--tau-m", 4)
    refused(
        result, 'dataset: "digits" in the run, "nmnist" asked', "epochs: 3 in the run, 2 asked", "tau_m: 5.0 in the run"
    )
    assert "seed" not in result.stderr
    (tmp_path / "other.toml").write_text("lr = 7.0")
    refused(stsbp("train", "--resume", run, "--config", tmp_path / "other.toml"), "lr: 0.01 in the run, 7.0 asked")
    assert (tensors(run), (run / "config.toml").read_text()) == earlier


def test_resume_of_nothing(stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "--resume", tmp_path / "nosuch"), f"there is no run folder {tmp_path / 'nosuch'}")
    (tmp_path / "empty").mkdir()
    refused(stsbp("train", "--resume", tmp_path / "empty"), "is not a run: it has no config.toml")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused(stsbp("evaluate", tmp_path / "empty"), f"write hub:{tmp_path / 'empty'} for a folder for the Hub")
    refused(stsbp("train", "digits", "--resume"), "--resume RUN or --out RUN --resume")
    refused(stsbp("train", "--resume", "a", "--out", "b"), "name different runs")


@pytest.mark.parametrize("command", ["evaluate", "report", "compare"])
def test_an_experiment_where_a_run_belongs(
    stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None], command: str
) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "config.toml").write_text("")
    refused(stsbp(command, tmp_path), f"is an experiment, not a run: its runs are {tmp_path / 'seed-*'}")


def test_resume_of_a_run_whose_checkpoint_is_gone(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    records = (run / "metrics.jsonl").read_bytes()
    (run / "last.json").unlink()
    refused(stsbp("train", "--resume", run), "its checkpoint last.json is gone", "--overwrite")
    assert (run / "metrics.jsonl").read_bytes() == records
    refused(train_tiny(run, "--resume", "--overwrite"), "give one of them")
    assert train_tiny(run, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    "command", [("train", "--resume"), ("train", "--epochs", 4, "--resume"), ("report", "--no-samples"), ("compare",)]
)
@pytest.mark.parametrize("length", ["longer", "shorter", "edited"])
def test_records_of_another_run(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    refused: Callable[..., None],
    command: tuple[Any, ...],
    length: str,
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    train_tiny(tmp_path / "other", "--seed", 1, "--log-every", 1 if length == "longer" else 6)
    file = run / "metrics.jsonl"
    records = file.read_bytes()
    other = (tmp_path / "other" / "metrics.jsonl").read_bytes()
    file.write_bytes(records.replace(b'"loss": 0', b'"loss": 1') if length == "edited" else other)
    contents = {path.name: path.read_bytes() for path in run.iterdir()}
    refused(stsbp(*command, run), f"{file} does not fit the checkpoint {run / 'last.json'}", f"move {file.name} away")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == contents
    file.unlink()
    without = stsbp(*command, run)
    assert without.exit_code == 0
    assert without.stderr.count(f"{file} lost lines") == 1


def test_records_of_a_run_of_an_earlier_version(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    records: Callable[[Path], list[dict[str, Any]]],
    forge: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    forge(run, lambda description: description.pop("metrics_sha256"))
    earlier_records = records(run)
    for command in (("compare",), ("report", "--no-samples"), ("train", "--epochs", 4, "--resume")):
        result = stsbp(*command, run)
        assert result.exit_code == 0
        assert "metrics.jsonl" not in result.stderr
    assert records(run)[: len(earlier_records)] == earlier_records
    digest = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    assert json.loads((run / "last.json").read_text())["metrics_sha256"] == digest


def test_records_beside_a_damaged_checkpoint(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    (run / "last.json").write_text("{}")
    for command in (("compare", run), ("report", run, "--no-samples", "--checkpoint", "best")):
        result = stsbp(*command)
        assert result.exit_code == 0, result.output
        assert f"{run / 'metrics.jsonl'} is not compared with the last checkpoint: {run / 'last.json'} is damaged" in (
            result.stderr
        )


def test_compare_names_settings_that_are_not_those_of_the_checkpoint(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.01", "lr = 0.02"))
    refused(stsbp("compare", run), "is not what the checkpoint 'last' was trained with")


def test_resume_with_edited_settings_or_other_data(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.01", "lr = 0.02"))
    for command in (("train", "--resume", run), ("evaluate", run), ("predict", run, "x.npy")):
        refused(stsbp(*command), "config.toml")
    (run / "config.toml").write_text(text.replace("dataset", "nonsense"))
    refused(stsbp("train", "--resume", run), "the settings of the run cannot be read")
    (run / "config.toml").write_text(text)
    from stsbp.datasets import digits

    original = digits.read_digits
    monkeypatch.setattr(digits, "read_digits", lambda: (original()[0] // 2, original()[1]))
    refused(stsbp("train", "--resume", run), "the data are not those that the run")


@pytest.mark.parametrize("command", ["train --resume RUN", "evaluate RUN", "predict RUN x.npy"])
def test_damaged_checkpoint(
    command: str,
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    refused: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    (file,) = run.glob("last-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    refused(stsbp(*command.replace("RUN", str(run)).split()), "is damaged", "use the checkpoint 'best'")
    assert stsbp("evaluate", run, "--checkpoint", "best").exit_code == 0


def test_files_that_predict_cannot_read(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    refused(stsbp("predict", run, tmp_path / "nosuch.npy"), "cannot read", "nosuch.npy")
    refused(stsbp("predict", run, tmp_path), "cannot read", f"give its files, for example {tmp_path}/*", "--on DATASET")
    for name, content in (("a.npy", b"rubbish"), ("a.png", b"rubbish"), ("a.txt", b"text"), ("a.bin", b"12345")):
        (tmp_path / name).write_bytes(content)
        refused(stsbp("predict", run, tmp_path / name), name)
    np.save(tmp_path / "b.npy", np.zeros((3, 8, 8), dtype=np.uint8))
    refused(stsbp("predict", run, tmp_path / "b.npy"), "[C, H, W] = [1, 8, 8]")
    np.save(tmp_path / "c.npy", np.zeros((1, 8, 8)))
    refused(stsbp("predict", run, tmp_path / "c.npy"), "must hold uint8 values, got float64; convert")
    np.save(tmp_path / "d.npy", np.array([object()]), allow_pickle=True)
    refused(stsbp("predict", run, tmp_path / "d.npy"), "must hold uint8 values, got object")


def test_out_folder_that_cannot_be_made(
    train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    refused(train_tiny(file), "cannot write", "is a file")
    refused(train_tiny(file / "below"), "cannot write", "is a file")
    assert file.read_text() == "precious"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_out_folder_without_permission(
    train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    refused(train_tiny(closed / "run"), "permission denied")


def test_out_folder_without_permission_is_noticed_before_the_data_are_read(
    train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = train_tiny(tmp_path / "run")
    refused(result, f"permission denied in {tmp_path}")
    assert "digits of scikit-learn" not in result.stderr


def test_out_folder_on_a_read_only_file_system(
    train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    def read_only(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(train_tiny(tmp_path / "run"), f"cannot write {tmp_path / 'run'}: Read-only file system")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.name == "nt" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs the superuser")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_loses_nothing(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    small_disk: Path,
    tmp_path: Path,
    same_run: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    from stsbp.training import loop

    uninterrupted, run, filler = tmp_path / "whole", small_disk / "run", small_disk / "filler"
    assert train_tiny(uninterrupted).exit_code == 0
    original = loop._TrainingLoop.end_epoch

    def fill(self: Any) -> Any:
        if self.next.epoch == 1:
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "end_epoch", fill)
        refused(train_tiny(run), "cannot write", str(run))
    description = json.loads((run / "last.json").read_text())
    assert description["epoch"] == 1
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []
    # Still full: the same message, and the checkpoint is still there.
    refused(stsbp("train", "--resume", run), "cannot write", str(run))
    filler.unlink()
    assert json.loads((run / "last.json").read_text()) == description
    assert stsbp("train", "--resume", run).exit_code == 0
    same_run(run, uninterrupted)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13])
def test_disk_that_is_full_from_some_write_on(
    number: int,
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    same_run: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    calls: list[int] = []
    original = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(train_tiny(run, "--checkpoint-every", 0), "cannot write")
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []
    assert train_tiny(run, "--resume").exit_code == 0
    assert train_tiny(tmp_path / "whole").exit_code == 0
    same_run(run, tmp_path / "whole")


def test_metrics_never_end_in_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stsbp.errors import FileError

    class Full(FileIO):
        full = False

        def write(self, data: Any) -> int:
            if not self.full:
                return super().write(data)
            super().write(data[:4])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stsbp.files.FileIO", Full)
    with OpenFolder(tmp_path) as folder:
        file = MetricsFile(folder)
        file.write({"a": 1})
        monkeypatch.setattr(Full, "full", True)
        with pytest.raises(FileError, match="No space left"):
            file.write({"b": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n'
