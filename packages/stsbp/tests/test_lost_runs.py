"""A run folder that is removed, moved or replaced while its run trains: the run stops, and no other run is touched."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from stsbp.errors import FileError
from stsbp.files import OpenFolder
from stsbp.training import execute, loop, run_folder
from stsbp.training.build import load_data
from stsbp.training.metrics import MetricsFile
from stsbp.training.run_folder import RunFolder

Train = Callable[..., Result]
Step = Callable[[], object]


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder with the digest of its bytes."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def stopped(refused: Callable[..., None]) -> Callable[..., None]:
    """Assert that a run ended with one message, which does not say that it is saved."""

    def check(result: Result, *words: str) -> None:
        refused(result, *words)
        assert "saved" not in result.output

    return check


@pytest.fixture
def after_first_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], None]:
    """Let something happen once, after the first epoch of the next run."""

    def plan(step: Step) -> None:
        original, steps_left = loop._TrainingLoop.end_epoch, [step]

        def end_epoch(self: Any) -> Any:
            test_record = original(self)
            if steps_left:
                steps_left.pop()()
            return test_record

        monkeypatch.setattr(loop._TrainingLoop, "end_epoch", end_epoch)

    return plan


def test_removed_folder_is_not_made_again(
    train_tiny: Train, tmp_path: Path, after_first_epoch: Callable[[Step], None], stopped: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    after_first_epoch(lambda: shutil.rmtree(run))
    stopped(train_tiny(run), str(run), "was removed, moved or replaced", "is lost", "another --out")
    assert not run.exists()


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_folder_that_is_removed_while_the_run_reads_its_data(
    option: str, train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Callable[..., None]
) -> None:
    assert train_tiny(tmp_path / "run").exit_code == 0

    def removing(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "run")
        return load_data(*arguments)

    monkeypatch.setattr(execute, "load_data", removing)
    stopped(train_tiny(tmp_path / "run", option), "run, the folder of the run, is gone")
    assert list(tmp_path.iterdir()) == []


def test_stop_request_does_not_make_a_removed_folder_again(
    train_tiny: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    monkeypatch: pytest.MonkeyPatch,
    stopped: Callable[..., None],
) -> None:
    run, signals = tmp_path / "run", list[int]()

    def remove() -> None:
        shutil.rmtree(run)

        def ask(self: Any, *, clock: bool = True) -> int:
            signals.append(signal.SIGINT)
            return signal.SIGINT

        monkeypatch.setattr(loop.StopRequest, "requested", ask)

    after_first_epoch(remove)
    stopped(train_tiny(run), "was removed, moved or replaced")
    assert signals == [signal.SIGINT]
    assert not run.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml"])
@pytest.mark.parametrize("kind", ["removed", "moved"])
def test_run_whose_records_or_settings_vanish_stops_and_writes_them_again(
    name: str,
    kind: str,
    train_tiny: Train,
    stsbp: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    same_run: Callable[[Path, Path], None],
    refused: Callable[..., None],
) -> None:
    run, uninterrupted = tmp_path / "run", tmp_path / "whole"
    assert train_tiny(uninterrupted).exit_code == 0
    after_first_epoch((run / name).unlink if kind == "removed" else lambda: (run / name).rename(tmp_path / name))
    result = train_tiny(run)
    refused(result, str(run / name), "removed, replaced or changed", f"has written {name} again", "train --resume")
    assert "saved" not in result.output
    # The second epoch is not lost.
    assert len([line for line in (run / "metrics.jsonl").read_text().splitlines() if '"kind": "epoch"' in line]) == 2
    assert stsbp("train", "--resume", run).exit_code == 0
    assert (run / "config.toml").read_bytes() == (uninterrupted / "config.toml").read_bytes()
    same_run(run, uninterrupted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("metrics.jsonl", kind) for kind in ("emptied", "replaced")),
        *(("config.toml", kind) for kind in ("emptied", "replaced", "lengthened")),
    ],
)
def test_run_whose_records_or_settings_change_stops_and_leaves_them(
    name: str,
    kind: str,
    train_tiny: Train,
    stsbp: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    same_run: Callable[[Path, Path], None],
    refused: Callable[..., None],
) -> None:
    run, uninterrupted, contents = tmp_path / "run", tmp_path / "whole", list[bytes]()
    assert train_tiny(uninterrupted).exit_code == 0

    def change() -> None:
        contents.append((run / name).read_bytes())
        if kind == "replaced":
            (run / name).unlink()
        (run / name).write_bytes(contents[0] + b"# more\n" if kind == "lengthened" else b"")

    after_first_epoch(change)
    result = train_tiny(run)
    refused(result, str(run / name), "removed, replaced or changed", f"Put {name} of this run back", "train --resume")
    if name == "config.toml":
        assert (run / name).read_bytes() == (contents[0] + b"# more\n" if kind == "lengthened" else b"")
        (run / name).write_bytes(contents[0])
    else:
        (run / name).unlink()
    resumed = stsbp("train", "--resume", run)
    assert resumed.exit_code == 0, resumed.output
    if name == "config.toml":
        same_run(run, uninterrupted)


def test_settings_that_are_copied_back_while_a_run_trains_are_the_same(
    train_tiny: Train, tmp_path: Path, after_first_epoch: Callable[[Step], None]
) -> None:
    config = tmp_path / "run" / "config.toml"

    def copy() -> None:
        content = config.read_bytes()
        config.unlink()
        config.write_bytes(content)

    after_first_epoch(copy)
    assert train_tiny(tmp_path / "run").exit_code == 0


def test_moved_folder_goes_on_where_it_is(
    train_tiny: Train,
    stsbp: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    same_run: Callable[[Path, Path], None],
    stopped: Callable[..., None],
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    after_first_epoch(lambda: run.rename(moved))
    stopped(train_tiny(run), "was removed, moved or replaced", "continue in its new place: stsbp train --resume")
    assert not run.exists()
    assert stsbp("train", "--resume", moved).exit_code == 0
    assert train_tiny(tmp_path / "whole").exit_code == 0
    same_run(moved, tmp_path / "whole")


@pytest.mark.parametrize("change", ["removed", "moved"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "between check and write"])
def test_another_run_in_its_place_is_not_touched(
    train_tiny: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    noticed: bool,
    stopped: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    second: list[dict[str, str]] = []

    def replace() -> None:
        if change == "removed":
            shutil.rmtree(run)
        else:
            run.rename(tmp_path / "moved")
        assert train_tiny(run, "--seed", 5).exit_code == 0
        second.append(content(run))
        if not noticed:
            monkeypatch.setattr(run_folder._LockedFolder, "check", lambda _: None)

    after_first_epoch(replace)
    result = train_tiny(run)
    if noticed or change == "removed":
        stopped(result, str(run))
    assert second == [content(run)]


def test_removed_lock_stops_the_run_and_lets_no_other_in(
    train_tiny: Train,
    stsbp: Train,
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    same_run: Callable[[Path, Path], None],
    stopped: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    others: list[Result] = []

    def remove() -> None:
        (run / ".lock").unlink()
        others.extend([stsbp("train", "--resume", run), train_tiny(run, "--overwrite")])

    after_first_epoch(remove)
    stopped(train_tiny(run), "the lock of the run", "removed or replaced", f"stsbp train --resume {run}")
    for other in others:
        stopped(other, "another process is training in")
    assert stsbp("train", "--resume", run).exit_code == 0
    assert train_tiny(tmp_path / "whole").exit_code == 0
    same_run(run, tmp_path / "whole")


def test_removed_lock_of_a_run_whose_name_begins_with_a_dash(
    train_tiny: Train, tmp_path: Path, after_first_epoch: Callable[[Step], None], stopped: Callable[..., None]
) -> None:
    after_first_epoch((tmp_path / "-a run" / ".lock").unlink)
    stopped(train_tiny(Path("-a run")), "stsbp train --resume './-a run'")


@pytest.mark.parametrize("write", ["config", "environment", "metrics", "tensorboard", "checkpoint"])
def test_every_write_checks_the_folder(train_tiny: Train, tmp_path: Path, write: str) -> None:
    from stsbp.training import checkpoint
    from stsbp.training.tensorboard import TensorBoard
    from stsbp_spec.reference.backend import NumpyBackend

    if write == "tensorboard":
        pytest.importorskip("tensorboard")

    run = tmp_path / "run"
    assert train_tiny(run).exit_code == 0
    folder, saved = RunFolder(run), checkpoint.load(run, "last")
    config = folder.read_config()
    with folder.lock():
        files = folder.files
        metrics = MetricsFile(files, (run / "metrics.jsonl").stat().st_size)
        board = TensorBoard(files, []) if write == "tensorboard" else None
        run.rename(tmp_path / "moved")
        content_moved = content(tmp_path / "moved")
        calls: dict[str, Step] = {
            "config": lambda: folder.write_config(config),
            "environment": lambda: folder.note_start(NumpyBackend(), ["stsbp"], 0),
            "metrics": lambda: metrics.write({"a": 1}),
            "tensorboard": partial(TensorBoard.write, board, {"kind": "step", "step": 1, "loss": 1.0}),  # type: ignore[arg-type]
            "checkpoint": lambda: checkpoint.save(files, "best", saved.tensors, {}, step=6),
        }
        with pytest.raises(FileError, match="was removed, moved or replaced"):
            calls[write]()
        metrics.close()
        assert content(tmp_path / "moved") == content_moved
    assert not run.exists()


def test_records_that_the_disk_does_not_take_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with OpenFolder(tmp_path) as folder:
        metrics = MetricsFile(folder)
        metrics.write({"a": 1})
        assert metrics.sync() == len(b'{"a": 1}\n')
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"metrics\.jsonl"):
            metrics.sync()
        metrics.close()


def test_a_run_that_lost_its_records_can_be_killed_again(
    train_tiny: Train, stsbp: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = tmp_path / "run", MetricsFile.write
    assert train_tiny(run, "--epochs", 1).exit_code == 0
    (run / "metrics.jsonl").unlink()

    def killed(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "write", killed)
        assert stsbp("train", "--resume", run, "--epochs", 3).exit_code != 0
    assert (run / "metrics.jsonl").read_bytes()
    assert stsbp("compare", run).exit_code == 0
    done = stsbp("train", "--resume", run)
    assert done.exit_code == 0, done.output
    assert stsbp("compare", run).exit_code == 0


def test_folder_that_is_removed_while_a_checkpoint_is_written(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Callable[..., None]
) -> None:
    run, original = tmp_path / "run", os.fsync
    removed: list[int] = []

    def fsync(descriptor: int) -> None:
        original(descriptor)
        if not removed and (run / "metrics.jsonl").is_file() and list(run.glob(".best-*.tmp")):
            shutil.rmtree(run)
            removed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    stopped(train_tiny(run), "was removed, moved or replaced")
    assert removed
    assert not run.exists()


@pytest.mark.parametrize("when", ["in a seed", "between seeds"])
def test_removed_experiment_is_not_made_again(
    stsbp: Train,
    tiny: tuple[str, ...],
    tmp_path: Path,
    after_first_epoch: Callable[[Step], None],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    stopped: Callable[..., None],
) -> None:
    out = tmp_path / "experiment"
    if when == "in a seed":
        after_first_epoch(lambda: shutil.rmtree(out))
    else:
        original = OpenFolder.write

        def write(self: Any, name: str, data: bytes) -> None:
            original(self, name, data)
            if name == "experiment.md":
                shutil.rmtree(out)

        monkeypatch.setattr(OpenFolder, "write", write)
    stopped(stsbp("experiment", "digits", *tiny, "--seeds", 2, "--out", out), "was removed, moved or replaced")
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "link"), reason="the system has no hard links")
def test_resume_does_not_change_a_snapshot_that_shares_its_files(train_tiny: Train, tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshot"
    assert train_tiny(run, "--epochs", 1).exit_code == 0
    shutil.copytree(run, snapshot, copy_function=os.link)
    content_of_snapshot = content(snapshot)
    assert train_tiny(run, "--resume", "--epochs", 2).exit_code == 0
    assert content(snapshot) == content_of_snapshot
    content_of_run = content(run)
    assert train_tiny(snapshot, "--resume", "--epochs", 1).exit_code == 0
    assert content(run) == content_of_run


@pytest.mark.parametrize("option", [("--data-dir", "a\udcff"), ("--test-on", "folder:a\udcff")])
@pytest.mark.parametrize("replace", [("--overwrite",), ()])
def test_a_path_that_cannot_be_stored_leaves_the_run_as_it_is(
    option: tuple[str, str], replace: tuple[str, ...], train_tiny: Train, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    if replace:
        assert train_tiny(tmp_path / "run").exit_code == 0
    earlier_content = content(tmp_path)
    stopped(train_tiny(tmp_path / "run", *replace, *option), "is not valid UTF-8")
    assert content(tmp_path) == earlier_content


def test_a_resumed_run_reads_its_data_below_a_path_that_cannot_be_stored(
    train_tiny: Train, stsbp: Train, tmp_path: Path
) -> None:
    # Digits need no folder, so it need not exist.
    assert train_tiny(tmp_path / "run", "--epochs", 1).exit_code == 0
    result = train_tiny(tmp_path / "run", "--epochs", 2, "--resume", "--data-dir", "a\udcff")
    assert result.exit_code == 0, result.output
    assert stsbp("evaluate", tmp_path / "run", "--data-dir", "a\udcff").exit_code == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_lock_that_is_no_file(train_tiny: Train, tmp_path: Path, stopped: Callable[..., None]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / ".lock")
    stopped(train_tiny(run), "cannot write", "a pipe")
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_not_reported_as_removed(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Callable[..., None]
) -> None:
    # What a folder such as /proc answers, of which `os.access` says to root that it may be written.
    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(Path, "mkdir", refuse)
    done = train_tiny(tmp_path / "run")
    stopped(done, f"cannot make the folder {tmp_path / 'run'}", "choose another --out")
    assert "gone" not in done.stderr
