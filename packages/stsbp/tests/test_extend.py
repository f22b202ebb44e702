"""Runs that go on: with more epochs, with the weights of another run, and without a test set."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import RunConfig, read_toml, resolve
from stsbp.datasets import DATASETS, load
from stsbp.training import checkpoint, execute, loop
from stsbp.training.build import load_dataset
from stsbp.training.initial import first_weights
from stsbp_spec import AdamW
from stsbp_spec.engine.trainer import Trainer

Call = Callable[..., Result]
Records = Callable[[Path], list[dict[str, Any]]]
SameRun = Callable[[Path, Path], None]

_UPDATES = 2
"""Of an epoch of a tiny run."""


@pytest.fixture
def without_epochs(forge: Callable[..., None]) -> Callable[[Path], None]:
    """Make the descriptions what they were when they did not say of how many epochs the run was."""

    def change(run: Path) -> None:
        for name in ("last", "best"):
            forge(run, lambda description: description.pop("epochs"), name)

    return change


@pytest.mark.parametrize("old", [False, True])
def test_extended_run_ends_like_one_that_was_so_long(
    stsbp: Call, train_tiny: Call, tmp_path: Path, same_run: SameRun, old: bool, without_epochs: Callable[[Path], None]
) -> None:
    # Without a schedule the bits are those of the longer run; with one they cannot be.
    constant = ("--schedule", "constant")
    assert train_tiny(tmp_path / "long", *constant, "--epochs", 5).exit_code == 0
    run = tmp_path / "run"
    assert train_tiny(run, *constant).exit_code == 0
    if old:
        without_epochs(run)
    done = stsbp("train", "--resume", run, "--epochs", 5)
    assert done.exit_code == 0, done.output
    assert "5 epochs instead of 3" in done.stderr
    assert "schedule" not in done.stderr
    same_run(run, tmp_path / "long")
    assert (run / "config.toml").read_text() == (tmp_path / "long" / "config.toml").read_text()
    for name in ("last", "best"):
        assert stsbp("evaluate", run, "--checkpoint", name).exit_code == 0
    assert stsbp("train", "--resume", run).exit_code == 0


def test_learning_rate_of_an_extended_run_is_that_of_the_longer_schedule(
    stsbp: Call, train_tiny: Call, tmp_path: Path, records: Records
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run).exit_code == 0
    done = stsbp("train", "--resume", run, "--epochs", 5)
    assert "from here on the learning rate follows the longer schedule" in done.stderr
    rates = {line["step"]: line["learning_rate"] for line in records(run) if line["kind"] == "epoch"}
    short, long = (AdamW(lr=0.01, total_steps=epochs * _UPDATES) for epochs in (3, 5))
    for epoch in range(1, 6):
        schedule = short if epoch <= 3 else long
        assert rates[epoch * _UPDATES] == schedule.rate(epoch * _UPDATES - 1)
    # Half a cosine from the peak to 0: the rate rises where a run at its end becomes one in its middle.
    assert math.isclose(rates[8], 0.01 * (1 + math.cos(math.pi * 7 / 10)) / 2)
    assert rates[8] > rates[6]


def test_best_of_an_extended_run_is_that_of_all_its_epochs(
    stsbp: Call, train_tiny: Call, tmp_path: Path, records: Records
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    stsbp("train", "--resume", run, "--epochs", 5)
    accuracies = [r["accuracy"] for r in records(run) if r["kind"] == "evaluation" and r["split"] == "validation"]
    assert len(accuracies) == 5
    best = json.loads((run / "best.json").read_text())["best"]
    assert best["value"] == max(accuracies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", 2), "epochs: 3 in the run, 2 asked"),
        (("--epochs", 5, "--lr", 0.5), "lr: 0.01 in the run, 0.5 asked"),
    ],
)
def test_only_epochs_may_grow(
    stsbp: Call, train_tiny: Call, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    contents = {path.name: path.read_bytes() for path in run.iterdir()}
    done = stsbp("train", "--resume", run, *options)
    assert done.exit_code == 1
    assert message in done.output
    assert "--epochs may grow" in done.output
    assert {path.name: path.read_bytes() for path in run.iterdir()} == contents


def test_checkpoint_of_more_epochs_than_the_run_has_is_not_its_own(
    stsbp: Call, train_tiny: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("epochs = 3", "epochs = 2"))
    done = stsbp("evaluate", run)
    assert done.exit_code == 1
    assert "is not what the checkpoint 'last' was trained with" in done.output


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("old", [False, True])
def test_run_that_was_killed_while_it_was_extended(
    stsbp: Call,
    train_tiny: Call,
    tmp_path: Path,
    same_run: SameRun,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    without_epochs: Callable[[Path], None],
) -> None:
    constant = ("--schedule", "constant")
    assert train_tiny(tmp_path / "long", *constant, "--epochs", 4).exit_code == 0
    assert train_tiny(tmp_path / "finished", *constant).exit_code == 0
    if old:
        without_epochs(tmp_path / "finished")
    replace, kills = os.replace, 0
    for place in range(20):
        run = tmp_path / f"killed-{place}"
        shutil.copytree(tmp_path / "finished", run)
        count = 0

        def mortal(*arguments: Any, place: int = place, **named: Any) -> None:
            nonlocal count
            count += 1
            if count > place:
                raise _Killed
            replace(*arguments, **named)

        monkeypatch.setattr(os, "replace", mortal)
        died = False
        try:
            stsbp("train", "--resume", run, "--epochs", 4)
        except _Killed:
            died = True
        monkeypatch.setattr(os, "replace", replace)
        kills += died
        for name in ("last", "best"):
            assert stsbp("evaluate", run, "--checkpoint", name).exit_code == 0
        done = stsbp("train", "--resume", run, "--epochs", 4)
        assert done.exit_code == 0, (place, done.output)
        same_run(run, tmp_path / "long")
        if not died:
            break
    # Settings and last.json twice at least; an old run writes both descriptions anew.
    assert kills >= (6 if old else 4)


def test_run_that_is_extended_again_before_it_went_on(
    stsbp: Call, train_tiny: Call, tmp_path: Path, same_run: SameRun
) -> None:
    constant = ("--schedule", "constant")
    assert train_tiny(tmp_path / "long", *constant, "--epochs", 5).exit_code == 0
    assert train_tiny(tmp_path / "run", *constant).exit_code == 0

    def stop(*_: Any) -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "train", stop)
        with pytest.raises(_Killed):
            stsbp("train", "--resume", "run", "--epochs", 4)
    assert "epochs = 4" in (tmp_path / "run" / "config.toml").read_text()
    done = stsbp("train", "--resume", "run", "--epochs", 5)
    assert done.exit_code == 0, done.output
    same_run(tmp_path / "run", tmp_path / "long")


def weights(run: Path, name: str = "last") -> dict[str, Any]:
    saved = checkpoint.load(run, name).tensors
    return {key: x for key, x in saved.items() if key.startswith("weight/")}


@pytest.mark.parametrize(("suffix", "name"), [("", "last"), (":last", "last"), (":best", "best")])
def test_init_from_begins_with_the_weights_of_a_run(
    stsbp: Call, train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str
) -> None:
    # Later epochs are worse in validation: last and best are others.
    assert train_tiny(tmp_path / "a", "--lr", 0.2, "--epochs", 4).exit_code == 0
    begun: list[dict[str, Any]] = []

    def first(*arguments: Any) -> Any:
        begun.append(first_weights(*arguments))
        return begun[-1]

    monkeypatch.setattr(loop, "first_weights", first)
    done = train_tiny(tmp_path / "b", "--init-from", f"a{suffix}", "--seed", 5)
    assert done.exit_code == 0, done.output
    (initial,) = begun
    expected = weights(tmp_path / "a", name)
    assert {f"weight/{key}" for key in initial} == set(expected)
    for key, x in initial.items():
        assert np.array_equal(x, expected[f"weight/{key}"])
    config = resolve([read_toml(tmp_path / "b" / "config.toml")], with_preset=False)
    assert config.init_from == f"{tmp_path / 'a'}:{name}"
    file = json.loads((tmp_path / "a" / f"{name}.json").read_text())["file"]
    assert config.init_sha256 == hashlib.sha256((tmp_path / "a" / file).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a:last", "a:best"])
def test_init_from_a_folder_with_the_name_of_a_checkpoint(train_tiny: Call, tmp_path: Path, name: str) -> None:
    train_tiny(tmp_path / name)
    done = train_tiny(tmp_path / "b", "--init-from", name)
    assert done.exit_code == 0, done.output
    config = resolve([read_toml(tmp_path / "b" / "config.toml")], with_preset=False)
    assert config.init_from == f"{tmp_path / name}:last"


def test_a_run_that_begins_with_the_checkpoint_of_other_settings_is_told(train_tiny: Call, tmp_path: Path) -> None:
    """A folder with the settings of one run and the weights of another is that of no run. Only weights are wanted."""
    train_tiny(tmp_path / "a")
    train_tiny(tmp_path / "c", "--seed", 7)
    for path in (tmp_path / "a").glob("last*"):
        path.unlink()
    for path in (tmp_path / "c").glob("last*"):
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    told = train_tiny(tmp_path / "b", "--init-from", tmp_path / "a")
    assert told.exit_code == 0, told.output
    settings = tmp_path / "a" / "config.toml"
    assert (
        f"warning: {settings} is not what the checkpoint 'last' was trained with. This run begins with its weights, "
        "which may be those of another run"
    ) in told.stderr
    # The other checkpoint is still that of the settings.
    assert "warning" not in train_tiny(tmp_path / "d", "--init-from", f"{tmp_path / 'a'}:best").stderr


def test_more_epochs_do_not_need_the_weights_of_the_best_checkpoint(
    stsbp: Call, train_tiny: Call, tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run")
    (weights_of_best,) = (tmp_path / "run").glob("best-*.safetensors")
    weights_of_best.unlink()
    done = stsbp("train", "--resume", tmp_path / "run", "--epochs", 5)
    assert done.exit_code == 0, done.output


def test_run_from_other_weights_has_a_fresh_optimiser(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "a")

    def stop(*arguments: Any) -> None:
        raise _Killed

    monkeypatch.setattr(loop._TrainingLoop, "update", stop)
    with pytest.raises(_Killed):
        train_tiny(tmp_path / "b", "--init-from", tmp_path / "a")
    saved = checkpoint.load(tmp_path / "b", "last").tensors
    assert int(saved["step"]) == 0
    moments = [x for key, x in saved.items() if key.startswith("adamw.")]
    assert moments
    assert not any(x.any() for x in moments)


def test_run_from_other_weights_does_not_need_them_any_more(
    stsbp: Call, train_tiny: Call, tmp_path: Path, same_run: SameRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "a")
    start = ("--init-from", "a", "--seed", 3)
    assert train_tiny(tmp_path / "whole", *start).exit_code == 0
    monkeypatch.setattr(loop._TrainingLoop, "end_epoch", lambda self: (_ for _ in ()).throw(_Killed))
    with pytest.raises(_Killed):
        train_tiny(tmp_path / "b", *start, "--checkpoint-every", 0)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "a")
    done = train_tiny(tmp_path / "b", *start, "--checkpoint-every", 0, "--resume")
    assert done.exit_code == 0, done.output
    same_run(tmp_path / "b", tmp_path / "whole")


def test_config_of_a_run_from_other_weights_is_repeated_from_the_same_ones_only(
    stsbp: Call, train_tiny: Call, tmp_path: Path, same_run: SameRun
) -> None:
    train_tiny(tmp_path / "a")
    assert train_tiny(tmp_path / "b", "--init-from", "a").exit_code == 0
    assert stsbp("train", "--config", "b/config.toml", "--out", "c").exit_code == 0
    same_run(tmp_path / "c", tmp_path / "b")
    assert train_tiny(tmp_path / "a", "--seed", 9, "--overwrite").exit_code == 0
    done = stsbp("train", "--config", "b/config.toml", "--out", "d")
    assert done.exit_code == 1
    assert "are not the expected ones" in done.output
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--net", "13"), "linear1: [12, 64] there, [13, 64] here"),
        (("--net", "12-7"), "linear3: no such layer there, [10, 7] here"),
        (("--init-sha256", "0" * 64), "are not the expected ones"),
        (("--init-from", "nothing"), "there is no run folder"),
        (("--init-from", "a:best:best"), "there is no run folder"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(
    train_tiny: Call, tmp_path: Path, arguments: tuple[Any, ...], message: str
) -> None:
    train_tiny(tmp_path / "a")
    done = train_tiny(tmp_path / "b", "--init-from", "a", *arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert not (tmp_path / "b").exists()


def test_overwrite_keeps_the_run_that_is_begun_with(train_tiny: Call, tmp_path: Path) -> None:
    run = tmp_path / "a"
    train_tiny(run)
    contents = {path.name: path.read_bytes() for path in run.iterdir()}
    done = train_tiny(run, "--init-from", "a:best", "--overwrite")
    assert done.exit_code == 1
    assert "--overwrite would remove the run" in done.output
    assert {path.name: path.read_bytes() for path in run.iterdir()} == contents


def test_sha256_without_a_run_is_refused(train_tiny: Call, tmp_path: Path) -> None:
    done = train_tiny(tmp_path / "a", "--init-sha256", "0" * 64)
    assert done.exit_code == 1
    assert "names no run" in done.output


def test_experiment_begins_every_seed_with_the_weights_of_a_run(
    stsbp: Call, train_tiny: Call, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "a")
    command = ("experiment", "digits", *tiny, "--seeds", 2, "--out", "e", "--init-from", "a")
    assert stsbp(*command).exit_code == 0
    shas = {
        resolve([read_toml(tmp_path / "e" / f"seed-{seed}" / "config.toml")], with_preset=False).init_sha256
        for seed in (0, 1)
    }
    assert shas == {json.loads((tmp_path / "a" / "last.json").read_text())["sha256"]}


def test_experiment_refuses_a_start_before_it_writes_or_removes(
    stsbp: Call, train_tiny: Call, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "a")
    command = ("experiment", "digits", *tiny, "--seeds", 1, "--out", "e")
    refused = stsbp(*command, "--init-from", "a", "--net", 20)
    assert "do not fit the network" in refused.stderr
    assert not (tmp_path / "e").exists()
    assert stsbp(*command).exit_code == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to("e/seed-0")
    for arguments in (("--init-from", "link:best"), ("--init-from", "a", "--net", 20)):
        refused = stsbp(*command, *arguments, "--overwrite")
        assert refused.exit_code == 1
        assert "--overwrite would remove the run" in refused.stderr or "do not fit the network" in refused.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()} == contents


# Weights beyond the grid, at once or after their layer is scaled to a rate.
HUGE = (("--init-gain", "1e308"), ("--init-gain", "1e30", "--threshold", "1e33", "--init-rate", 0.5))


@pytest.mark.parametrize("gain", HUGE, ids=["gain", "rate"])
@pytest.mark.parametrize("command", ["train", "experiment"])
def test_overwrite_keeps_the_old_runs_if_the_first_weights_are_unusable(
    stsbp: Call, tiny: tuple[str, ...], tmp_path: Path, command: str, gain: tuple[Any, ...], refused: Call
) -> None:
    command_line = (command, "digits", *tiny, "--out", "e", *(("--seeds", 1) if command == "experiment" else ()))
    assert stsbp(*command_line).exit_code == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()}
    refused(stsbp(*command_line, *gain, "--overwrite"), "linear1")
    assert {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()} == contents


def test_first_state_that_memory_does_not_hold_leaves_the_old_run(
    train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_tiny(tmp_path / "a").exit_code == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "init", full)
    assert train_tiny(tmp_path / "a", "--overwrite").exit_code != 0
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == contents


NO_TEST = ("--holdout", 0, "--no-test")


@pytest.mark.parametrize("validation", [0, 10])
def test_training_without_a_test_set(
    stsbp: Call, train_tiny: Call, tmp_path: Path, records: Records, validation: int
) -> None:
    run = tmp_path / "run"
    done = train_tiny(run, *NO_TEST, "--limit", 0, "--epochs", 1, "--validation", validation)
    assert done.exit_code == 0, done.output
    assert "no test set (--no-test): nothing was tested" in done.stdout
    assert "no test set is used, as requested" in done.stderr
    assert "held out" not in done.stderr
    proposed = shlex.split(done.stdout.splitlines()[-1].partition(": stsbp ")[2])
    assert proposed == ["evaluate", str(run), "--split", "validation" if validation else "train"]
    assert stsbp(*proposed).exit_code == 0
    lines = records(run)
    assert next(line for line in lines if line["kind"] == "epoch")["samples"] == 1797 - validation
    assert [line["split"] for line in lines if line["kind"] == "evaluation"] == ["validation"] * bool(validation)
    best = json.loads((run / "best.json").read_text())["best"]
    assert best["by"] == ("validation accuracy" if validation else "training loss")
    refused = stsbp("evaluate", run)
    assert refused.exit_code == 1
    assert "no test split, because it was trained with --no-test" in refused.output
    assert stsbp("evaluate", run, "--split", "train").exit_code == 0
    assert stsbp("train", "--resume", run).exit_code == 0
    assert stsbp("compare", run).exit_code == 0
    assert stsbp("report", run).exit_code == 0
    shown = (tmp_path / "run.html").read_text()
    assert ("validation sample" if validation else "train sample") in shown


@pytest.mark.parametrize("name", ["digits", pytest.param("digits-events", marks=pytest.mark.long), "motor", "patterns"])
def test_data_set_without_a_test_set_has_all_samples_to_train_on(name: str, tmp_path: Path) -> None:
    steps = 2 if DATASETS[name].extra or name == "digits-events" else 50
    held, undivided = (
        load(name, steps=steps, cache_dir=tmp_path, train_only=train_only) for train_only in (False, True)
    )
    assert len(undivided.test) == 0
    of_training = name == "patterns"
    assert len(undivided.train) == len(held.train) + (0 if of_training else len(held.test))
    assert "held out" not in " ".join(undivided.notes)
    config = RunConfig.model_validate({"dataset": name, "steps": steps, "test": False})
    assert load_dataset(config).notes[-1] == "no test set is used, as requested, so nothing is tested"


def test_files_of_rasters_without_a_test_set(stsbp: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(0, 2, (10, 20, n), dtype=np.uint8) for n in (6, 3))
    for name, split in (("all", np.zeros(10)), ("two", np.arange(10) % 2)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, inputs=inputs, targets=targets, split=split.astype(np.uint8))
        assert len(load(f"sequences:{path}", steps=20, train_only=True).train) == 10 - int(split.sum())


@pytest.mark.parametrize("option", [("--holdout", 5), ("--test-on", "digits-events")])
def test_no_test_contradicts_a_test_set(train_tiny: Call, tmp_path: Path, option: tuple[Any, ...]) -> None:
    done = train_tiny(tmp_path / "run", *NO_TEST, *option)
    assert done.exit_code == 1
    assert "leave out test_on and holdout" in done.output


def test_experiment_needs_a_test_set(stsbp: Call, tiny: tuple[str, ...]) -> None:
    done = stsbp("experiment", "digits", *tiny, *NO_TEST)
    assert done.exit_code == 1
    assert "shows results on test samples" in done.output


@pytest.mark.parametrize("folder_options", [(), ("--data-dir", ".")])
def test_embedded_data_of_the_run_are_no_other_data(
    stsbp: Call, train_tiny: Call, tmp_path: Path, folder_options: tuple[str, ...]
) -> None:
    train_tiny(tmp_path / "run")
    done = stsbp("evaluate", "run", "--on", "digits", *folder_options)
    assert done.exit_code == 1
    assert "leave --on out to test it on samples that it has not seen" in done.output
    assert "--data-dir" not in done.output  # which would change nothing
