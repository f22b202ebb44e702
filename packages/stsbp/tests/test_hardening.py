"""Odd surroundings and forged files: one clear line and an exit code, never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result
from stsbp.datasets.sequences import read_sequences
from stsbp.training import checkpoint
from stsbp.training.progress import TerminalReporter, choose_reporter
from stsbp.training.run_folder import RunFolder
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.reference.backend import NumpyBackend


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `stsbp` (called `$S` in the command) in a shell."""
    environment = {**os.environ, "S": f"{sys.executable} -m stsbp"}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "Error: cannot write the output: No space left on device\n"),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>/dev/full", 1, ""),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, redirection: str, code: int, message: str) -> None:
    result = shell(f"$S networks 8 {redirection}", tmp_path)
    assert (result.returncode, result.stderr) == (code, message)


def test_reporter_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    show = choose_reporter()
    show.note("said to nobody")
    show.close()


def test_bar_shows_brackets_as_they_are(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+", encoding="utf-8") as file:
        show = TerminalReporter(file)
        show._console._force_terminal = True
        show.loading("decoding im/q[/b]x", 1, 2)
        show.close()
        file.seek(0)
        assert "im/q[/b]x" in file.read()


Stsbp = Callable[..., Result]


def forge_tensor(run: Path, name: str, x: Any, forge: Callable[..., None]) -> None:
    """Change a tensor, and all that is said of it."""
    last = checkpoint.load(run, "last")
    data = safetensors.numpy.save({**last.tensors, name: np.asarray(x)})
    digest = hashlib.sha256(data).hexdigest()
    file = f"last-{last.info['step']}-{digest[:12]}.safetensors"
    (run / file).write_bytes(data)
    tensors = {key: [str(t.dtype), list(t.shape)] for key, t in safetensors.numpy.load(data).items()}
    forge(run, lambda d: d.update(file=file, sha256=digest, tensors=tensors))


def nested(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


@pytest.fixture
def run(tiny_run: Path) -> Path:
    """A run that is over."""
    return tiny_run


WRONG: dict[str, list[Any]] = {
    "file": [3, None, "last\0", "../last-6-0.safetensors", "x/last.safetensors", "", "last.json"],
    "metrics_bytes": [-1, 10**30, "3", None, 0.5],
    "epoch": [-1, 4, 2, "1", 10**30, None, True],
    "batch": [-1, 1, "0", 10**30, None],
    "step": [-1, 5, "6", 10**30, None],
    "sums": [{}, None, [], {"rates": {}}],
    "window": [{}, None, []],
    "best": [None, {}, 3, {"epoch": 1}],
    "sha256": [3],
    "tensors": [None],
    "config": [None],
    "data": [None],
    "contract": [-1, "1", None, 0.5, True],
}


@pytest.mark.parametrize("zeroed", [{"linear1": 2}, {"linear2": 1}, {}])
def test_more_zeroed_errors_than_errors(
    run: Path, stsbp: Stsbp, zeroed: dict[str, int], refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    forge(run, lambda description: description["sums"].update(errors={"linear1": 1}, zeroed=zeroed))
    refused(stsbp("train", "--resume", run), "the zeroed errors are not a part of the errors")


@pytest.mark.parametrize("changes", [{key: value} for key, values in WRONG.items() for value in values], ids=str)
def test_forged_description(
    run: Path, stsbp: Stsbp, changes: dict[str, Any], refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    names = sorted(path.name for path in run.iterdir())
    forge(run, lambda description: description.update(changes))
    refused(stsbp("train", "--resume", run), str(run))
    assert sorted(path.name for path in run.iterdir()) == names


def test_best_in_the_place_of_last(run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
    (run / "last.json").write_bytes((run / "best.json").read_bytes())
    refused(stsbp("train", "--resume", run), "which is not a tensor file of the checkpoint 'last'")
    assert len(list(run.glob("last-*.safetensors"))) == 1


@pytest.mark.parametrize("key", ["batch", "epoch", "sums", "window", "best", "metrics_bytes", "step", "file"])
def test_description_that_lacks_a_part(
    run: Path, stsbp: Stsbp, key: str, refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    forge(run, lambda description: description.pop(key))
    refused(stsbp("train", "--resume", run), "is damaged: ")


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("step", np.zeros(3, np.int64)),
        ("step", np.int64(5)),
        ("step", np.float32(6)),
        ("adamw.v/linear1", np.full((12, 64), -1, np.float32)),
        ("adamw.v/linear1", np.full((12, 64), np.nan, np.float32)),
        ("adamw.v/linear1", np.full((12, 64), np.inf, np.float32)),
        ("weight/linear1", np.full((12, 64), np.inf, np.float32)),
        ("adamw.m/linear1", np.full((12, 64), np.nan, np.float32)),
    ],
)
def test_forged_tensors(
    run: Path, stsbp: Stsbp, name: str, x: Any, refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    assert name in checkpoint.load(run, "last").tensors
    forge_tensor(run, name, x, forge)
    prefix, _, layer = name.partition("/")
    negative = prefix == "adamw.v" and np.isfinite(x).all()
    words = (f"{prefix} of {layer}",) if negative else (f"its tensor {name}",)
    refused(stsbp("train", "--resume", run), "the checkpoint in", *words)
    refused(stsbp("evaluate", run), "the checkpoint in", *words)


def test_a_refused_extension_changes_no_settings(
    run: Path, stsbp: Stsbp, refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    forge_tensor(run, "weight/linear1", np.full((12, 64), 1e38, np.float32), forge)
    config = (run / "config.toml").read_bytes()
    refused(stsbp("train", "--resume", run, "--epochs", 4), "linear1: a weight of magnitude 1e+38 is too large")
    assert (run / "config.toml").read_bytes() == config


@pytest.mark.parametrize("epochs", [3, 4])
@pytest.mark.parametrize(
    "forged",
    [
        lambda run, forge: forge_tensor(run, "adamw.m/linear1", np.full((12, 64), 1e30, np.float32), forge),
        lambda run, forge: forge_tensor(run, "adamw.m/linear1", np.full((12, 64), 1e38, np.float32), forge),
        *(partial(lambda size, run, forge: forge(run, lambda d: d.update(metrics_bytes=size)), n) for n in (0, 10)),
    ],
    ids=["m 1e30", "m 1e38", "metrics_bytes 0", "metrics_bytes 10"],
)
def test_a_refused_checkpoint_leaves_all_files(
    run: Path,
    stsbp: Stsbp,
    epochs: int,
    forged: Callable[..., None],
    refused: Callable[..., None],
    forge: Callable[..., None],
) -> None:
    forged(run, forge)
    contents = {path.name: path.read_bytes() for path in run.iterdir()}
    refused(stsbp("train", "--resume", run, "--epochs", epochs), str(run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == contents


@pytest.mark.parametrize("value", [np.nan, 1e38])
def test_an_unusable_start_leaves_the_run_that_it_would_replace(
    run: Path, stsbp: Stsbp, train_tiny: Stsbp, value: float, refused: Callable[..., None], forge: Callable[..., None]
) -> None:
    assert train_tiny(run.parent / "good").exit_code == 0
    good = {path.name: path.read_bytes() for path in (run.parent / "good").iterdir()}
    forge_tensor(run, "weight/linear1", np.full((12, 64), value, np.float32), forge)
    refused(train_tiny(run.parent / "good", "--overwrite", "--init-from", run), "cannot start with the weights of")
    assert {path.name: path.read_bytes() for path in (run.parent / "good").iterdir()} == good


def test_a_state_that_cannot_be_read_back_is_not_saved(
    run: Path, stsbp: Stsbp, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    export, earlier_description = Trainer.export_state, (run / "last.json").read_bytes()

    def overflowed(trainer: Any, state: Any) -> dict[str, Any]:
        tensors = export(trainer, state)
        return {**tensors, "adamw.v/linear1": np.full_like(tensors["adamw.v/linear1"], np.inf)}

    monkeypatch.setattr(Trainer, "export_state", overflowed)
    refused(stsbp("train", "--resume", run, "--epochs", 4), "is not saved, because its tensor adamw.v/linear1")
    description = json.loads((run / "last.json").read_text())
    assert description["file"] == json.loads(earlier_description)["file"]


def test_deeply_nested_files_of_a_run(run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
    for content in ('{"starts": {}}', f'{{"starts": {nested()}}}', f'{{"starts": {nested(900)}}}', nested(), "3"):
        (run / "environment.json").write_text(content)
        resumed = stsbp("train", "--resume", run)
        assert resumed.exit_code == 0
        assert "environment.json was damaged and is begun anew" in resumed.stderr
    assert "damaged" not in stsbp("train", "--resume", run).output
    (run / "last.json").write_text(nested())
    refused(stsbp("train", "--resume", run), "is damaged: ")
    refused(stsbp("evaluate", run), "is damaged: ")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_run_folder_without_permission(run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
    run.chmod(0o600)
    try:
        refused(stsbp("train", "--resume", run), "Permission denied")
        refused(stsbp("evaluate", run), "Permission denied")
    finally:
        run.chmod(0o700)


def test_run_folder_whose_name_is_too_long(stsbp: Stsbp, refused: Callable[..., None]) -> None:
    refused(stsbp("evaluate", "x" * 5000), "File name too long")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--augment-shift", v) for v in ("1025", str(10**30))),
        *(("--warmup", v) for v in ("1e7", "1e308", "nan", "inf")),
        *(("--threads", v) for v in ("-1", "1025", str(10**30))),
        *((flag, str(10**30)) for flag in ("--epochs", "--batch-size", "--steps", "--log-every", "--test-every")),
        *((flag, str(10**30)) for flag in ("--limit", "--holdout", "--validation", "--image-size")),
        *((flag, "1e300") for flag in ("--tau-m", "--tau-s", "--input-tau-s")),
    ],
)
def test_settings_beyond_their_bounds(stsbp: Stsbp, flag: str, value: str, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "digits", flag, value), f"{flag} ", "input should be ")


def test_an_empty_pattern_is_shown(stsbp: Stsbp, refused: Callable[..., None]) -> None:
    refused(stsbp("train", "digits", "--label-pattern", ""), "--label-pattern '': ")


def test_too_many_validation_samples(stsbp: Stsbp, refused: Callable[..., None]) -> None:
    result = stsbp("train", "digits", "--limit", 20, "--validation", 20)
    refused(result, "cannot hold out 20 of 20 samples", "choose another validation")


def npy(header: str, data: bytes = b"") -> bytes:
    """A file of version 1.0 with any header."""
    text = header.encode().ljust(118 if len(header) < 118 else len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def header(shape: str, dtype: str = "'|u1'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00",
        b"\x93NUMPY\x09\x00" + bytes(100),
        npy(""),
        npy("{"),
        npy("(" * 5000),
        npy("[]"),
        npy(header("(8, 8, 1)"), bytes(63)),
        npy(header("(10**9,)")),
        npy(header("(1000000000000, 1000000000000)"), bytes(64)),
        npy(header("(99999999999999999999999999,)")),
        npy(header("(-8, -8)"), bytes(64)),
        npy(header("('a',)")),
        npy(header("(1.5,)")),
        npy(header("3")),
        npy(header("(8, 8)", "'|O'"), bytes(64)),
        npy(header("(8, 8)", "[('a', '|u1', -3)]"), bytes(64)),
        npy(header("(8, 8)", "3"), bytes(64)),
        npy(header(str((1,) * 70)), bytes(1)),
        npy(header(str((2**63, 0)))),
        npy(header(str((0, 2**32, 2**32)))),
    ],
)
def test_forged_arrays(run: Path, stsbp: Stsbp, content: bytes, refused: Callable[..., None]) -> None:
    (run.parent / "x.npy").write_bytes(content)
    refused(stsbp("predict", run, "x.npy"), "x.npy ")


def test_arrays_that_python_2_wrote(run: Path, stsbp: Stsbp) -> None:
    (run.parent / "x.npy").write_bytes(npy(header("(8L, 8L)"), bytes(64)))
    with warnings.catch_warnings(action="error"):
        assert stsbp("predict", run, run.parent / "x.npy").exit_code == 0


def test_rasters_that_python_2_wrote(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("inputs.npy", npy(header("(1L, 3L, 2L)"), bytes(6)))
        archive.writestr("targets.npy", npy(header("(1L, 3L, 1L)"), bytes(3)))
    with warnings.catch_warnings(action="error"):
        inputs, targets, *_ = read_sequences(tmp_path / "x.npz")
    assert (inputs.shape, targets.shape) == ((1, 3, 2), (1, 3, 1))


def test_arrays_in_both_orders(run: Path, stsbp: Stsbp) -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    np.save(run.parent / "x.npy", x)
    expected = stsbp("predict", run, "x.npy", "--json")
    np.save(run.parent / "x.npy", np.asfortranarray(x))
    assert expected.exit_code == 0
    assert stsbp("predict", run, "x.npy", "--json").stdout == expected.stdout


@pytest.mark.parametrize("name", ["images", "nmnist", "cifar10", "sequences"])
def test_data_folder_whose_name_is_too_long(stsbp: Stsbp, name: str, refused: Callable[..., None]) -> None:
    result = stsbp("train", name, "--data-dir", "x" * 5000)
    refused(result, "File name too long")
    assert len(result.stderr) < 1000


@pytest.mark.parametrize("name", ["images", "nmnist"])
def test_class_folder_without_permission(
    stsbp: Stsbp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, refused: Callable[..., None]
) -> None:
    for folder in ("0", "1"):
        (tmp_path / "data" / "Train" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder).mkdir()

    def iterdir(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    out = tmp_path / "new" / "run"
    monkeypatch.setattr("stsbp.training.run_folder.RunFolder.is_free", True)
    result = stsbp("train", name, "--data-dir", tmp_path / "data", "--out", out)
    refused(result, f"cannot read {tmp_path / 'data'}", "Permission denied")


def test_a_file_that_is_no_image(stsbp: Stsbp, tmp_path: Path, refused: Callable[..., None]) -> None:
    pytest.importorskip("PIL")
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "x.png").write_bytes(b"no image")
    result = stsbp("train", f"folder:{tmp_path / 'data'}")
    refused(result, "x.png cannot be read as an image: it is damaged or no JPEG, PNG or BMP")
    assert "BytesIO" not in result.stderr


def test_threads_may_change_in_a_process() -> None:
    pytest.importorskip("numba")
    code = """
from stsbp.threads import limit_threads
limit_threads(1)
import numba
def total(n):
    s = 0
    for i in numba.prange(n):
        s += i
    return s
numba.njit(total, parallel=True)(3)  # launches the threads
limit_threads(2)
print(numba.njit(total)(4))  # compiling reads the environment again
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "6"), done.stderr


def test_starts_of_a_run_are_read_up_to_64_megabytes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock():
        run.note_start(NumpyBackend(), ["stsbp"], 0)
    text = run.environment.read_bytes()
    run.environment.write_bytes(text.ljust(64 * 2**20))
    assert len(run.starts()) == 1
    run.environment.write_bytes(text.ljust(64 * 2**20 + 1))
    assert run.starts() == []
