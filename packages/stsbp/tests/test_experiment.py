"""Experiments over seeds: what is trained, what is reported, and that any interruption costs nothing but time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp import load_run
from stsbp.config import SettingsSource, resolve
from stsbp.datasets import load
from stsbp.experiment import run as experiment_run
from stsbp.experiment.run import with_validation
from stsbp.experiment.table import markdown
from stsbp.processes.job import Job
from stsbp.training.build import load_data
from stsbp.training.operations import activity, fan_out
from stsbp.training.run_folder import RunFolder
from stsbp_spec import NetworkSpec
from stsbp_spec.engine.cost import node_values
from stsbp_spec.networks.graph import Edge
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Dropout
from stsbp_spec.networks.spec import Block
from stsbp_spec.reference.backend import RULES
from stsbp_spec.typing import Int64, Shape

ROOT = Path(__file__).parents[3]
SMALL = ("--net", "12", "--steps", "3", "--epochs", "2", "--batch-size", "20", "--limit", "50", "--holdout", "30")


@pytest.fixture
def experiment(stsbp: Callable[..., Result]) -> Callable[..., Result]:
    """A tiny experiment on the digits; later options win."""

    def call(*arguments: Any) -> Result:
        return stsbp("experiment", "digits", *SMALL, "--lr", "0.01", "--seeds", 2, "--out", "e", *arguments)

    return call


def figures(path: Path) -> dict[str, Any]:
    """`experiment.json` without what depends on time and command."""
    report: dict[str, Any] = json.loads((path / "experiment.json").read_text())
    report.pop("command")
    report["summary"].pop("seconds_per_epoch")
    for seed in report["seeds"]:
        seed.pop("seconds_per_epoch")
        seed.pop("digest", None)
        for split in ("validation", "last"):
            (seed[split] or {}).pop("seconds", None)
    return report


def test_experiment_reports_the_epoch_that_validation_chose(experiment: Callable[..., Result], tmp_path: Path) -> None:
    result = experiment()
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "e" / "experiment.json").read_text())
    assert report["samples"] == {"train": 45, "validation": 5, "test": 30}
    assert [seed["seed"] for seed in report["seeds"]] == [0, 1]
    for seed in report["seeds"]:
        records = [json.loads(s) for s in (tmp_path / "e" / seed["run"] / "metrics.jsonl").read_text().splitlines()]
        evaluations = [r for r in records if r["kind"] == "evaluation"]
        scores = {r["epoch"]: (r["accuracy"], -r["loss"]) for r in evaluations if r["split"] == "validation"}
        assert seed["epoch"] == max(scores, key=lambda epoch: scores[epoch])
        # The test samples are looked at when everything is over.
        assert [r["epoch"] for r in evaluations if r["split"] == "test"] == [2]
        assert seed["last"]["accuracy"] == evaluations[-1]["accuracy"]
        assert f"| {seed['seed']} | {seed['epoch']} | {seed['validation']['accuracy']:.2%} |" in result.stdout
        assert seed["validation"] == next(
            r for r in evaluations if (r["split"], r["epoch"]) == ("validation", seed["epoch"])
        )
        assert seed["seconds_per_epoch"] == median(r["seconds"] for r in records if r["kind"] == "epoch")
        best = json.loads((tmp_path / "e" / seed["run"] / "best.json").read_text())
        assert (seed["checkpoint"], seed["epoch"]) == (best["sha256"], best["epoch"])
    accuracies = [seed["test"]["accuracy"] for seed in report["seeds"]]
    assert report["summary"]["test"]["accuracy"]["deviation"] == pytest.approx(stdev(accuracies))
    assert result.stdout == (tmp_path / "e" / "experiment.md").read_text() == markdown(report)
    assert "best on 5 validation samples" in result.stdout
    assert "The test set chose nothing" in result.stdout
    assert '`net` "12" instead of "32C3-P2-64C3-128"' in result.stdout


def test_the_best_tested_epoch_is_named_where_every_epoch_is_tested(
    experiment: Callable[..., Result], tmp_path: Path
) -> None:
    options = ("--test-every", 1, "--validation", 0, "--epochs", 8, "--lr", 0.1, "--schedule", "constant")
    text = experiment(*options).stdout
    report = json.loads((tmp_path / "e" / "experiment.json").read_text())
    for seed in report["seeds"]:
        records = [json.loads(s) for s in (tmp_path / "e" / seed["run"] / "metrics.jsonl").read_text().splitlines()]
        tests = [r for r in records if r["kind"] == "evaluation"]
        assert len(tests) == 8
        assert seed["best_tested"] == max(tests, key=lambda r: (r["accuracy"], -r["epoch"]))
        # The last epoch is reported even so.
        assert seed["test"]["accuracy"] == tests[-1]["accuracy"]
    best = [seed["best_tested"]["accuracy"] for seed in report["seeds"]]
    assert best != [seed["test"]["accuracy"] for seed in report["seeds"]]
    assert report["summary"]["best_tested"]["accuracy"]["mean"] == pytest.approx(mean(best))
    assert f"best epoch of each seed by the test set itself | {100 * mean(best):.2f} " in text
    assert "the test set chose nothing, but for the row of its best epochs." in text
    assert "outputs against label sequences" in text
    assert "best epoch" not in experiment("--validation", 0, "--out", "f").stdout


def test_evaluate_gives_the_reported_figures(
    experiment: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    experiment("--seeds", 1, "--seed", 3)
    (seed,) = json.loads((tmp_path / "e" / "experiment.json").read_text())["seeds"]
    assert seed["seed"] == 3
    row = json.loads(stsbp("evaluate", "e/seed-3", "--checkpoint", "best", "--json").stdout)
    assert {key: row[key] for key in ("accuracy", "accuracy_spike_count", "rates")} == {
        key: seed["test"][key] for key in ("accuracy", "accuracy_spike_count", "rates")
    }


def test_stopped_experiment_goes_on_to_the_same_figures(
    experiment: Callable[..., Result], tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    stops = 0
    while (result := experiment("--stop-after", 1e-9)).exit_code == 75:
        stops += 1
        assert "time is up: stopped after update" in result.stderr
        assert "seeds are done. Continue with: stsbp" in result.stderr
        assert stops < 20
    assert result.exit_code == 0, result.output
    # Each call got one update further.
    assert stops >= 2 * 2 * 3 - 2
    experiment("--out", "whole")
    assert figures(tmp_path / "e") == figures(tmp_path / "whole")
    for seed in (0, 1):
        same_run(tmp_path / "e" / f"seed-{seed}", tmp_path / "whole" / f"seed-{seed}")


def test_finished_experiment_is_neither_trained_nor_measured_again(
    experiment: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment()
    first_figures = figures(tmp_path / "e")
    with monkeypatch.context() as patched:
        patched.setattr(experiment_run, "_figures", lambda *_: pytest.fail("measured again"))
        patched.setattr(experiment_run, "_train", lambda *_: pytest.fail("trained again"))
        assert experiment().exit_code == 0
    assert figures(tmp_path / "e") == first_figures
    # More seeds are added; the table can be made again from the runs.
    (tmp_path / "e" / "experiment.json").write_text(json.dumps({"format": 0, "seeds": [{"seed": 0}]}))
    assert experiment("--seeds", 3).exit_code == 0
    repeated = figures(tmp_path / "e")
    assert repeated["seeds"][:2] == first_figures["seeds"]
    assert len(repeated["seeds"]) == repeated["summary"]["seeds"] == 3


@pytest.mark.parametrize("moved", ["e", "e/seed-0"])
def test_folder_that_is_moved_away_when_a_run_has_ended_is_named(
    moved: str, experiment: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = experiment_run._train

    def trained(*arguments: Any) -> None:
        train(*arguments)
        (tmp_path / moved).rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patched:
        patched.setattr(experiment_run, "_train", trained)
        result = experiment("--seeds", 1)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.count("Error: ") == 1
    assert moved in result.stderr.split("Error: ")[1]
    (tmp_path / "elsewhere").rename(tmp_path / moved)
    assert experiment("--seeds", 1).exit_code == 0


def _copied(path: Path) -> None:
    shutil.rmtree(path / "seed-1")
    shutil.copytree(path / "seed-0", path / "seed-1")


def _swapped(path: Path) -> None:
    (path / "seed-0").rename(path / "seed-2")
    (path / "seed-1").rename(path / "seed-0")
    (path / "seed-2").rename(path / "seed-1")


def _own_settings(path: Path) -> None:
    settings = (path / "seed-1" / "config.toml").read_text()
    _copied(path)
    (path / "seed-1" / "config.toml").write_text(settings)
    (path / "experiment.json").unlink()


def _other_records(path: Path) -> None:
    shutil.copyfile(path / "seed-0" / "metrics.jsonl", path / "seed-1" / "metrics.jsonl")
    (path / "experiment.json").unlink()


def _added_records(path: Path) -> None:
    with (path / "seed-1" / "metrics.jsonl").open("ab") as file:
        file.write((path / "seed-0" / "metrics.jsonl").read_bytes())
    (path / "experiment.json").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_copied, "seed-1 holds the run of seed 0; rename it back, or remove it"),
        (_swapped, "seed-0 holds the run of seed 1; rename it back, or remove it"),
        (_own_settings, "e/seed-1/config.toml is not what the checkpoint 'last' was trained with"),
        (_other_records, "e/seed-1/metrics.jsonl does not fit the checkpoint e/seed-1/last.json"),
        (_added_records, "e/seed-1/metrics.jsonl does not fit the checkpoint e/seed-1/last.json"),
    ],
)
def test_the_run_of_another_seed_is_refused(
    experiment: Callable[..., Result], tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    experiment()
    change(tmp_path / "e")
    refused = experiment()
    assert refused.exit_code == 1
    assert says in refused.stderr


def test_leftovers_of_a_run_that_was_killed_when_it_had_ended_go(
    experiment: Callable[..., Result], tmp_path: Path
) -> None:
    experiment()
    run = tmp_path / "e" / "seed-1"
    files_of_run = sorted(path.name for path in run.iterdir())
    for name in ("last-1-0123456789ab.safetensors", ".best.json.0123456789ab.tmp"):
        (run / name).touch()
    assert experiment().exit_code == 0
    assert sorted(path.name for path in run.iterdir()) == files_of_run


@pytest.mark.parametrize(
    "damage",
    [
        lambda seed: seed.pop("test"),
        lambda seed: seed.update(operations=7),
        lambda seed: seed.update(seconds_per_epoch=float("nan")),
        lambda seed: seed["last"].pop("accuracy"),
        lambda seed: seed["test"]["rates"].update(linear1="much"),
        lambda seed: seed["test"]["rates"].pop("linear1"),
        lambda seed: seed["operations"].pop("linear2"),
        lambda seed: seed.pop("epoch"),
        lambda seed: seed["test"].update(accuracy=None, accuracy_spike_count=None),
        lambda seed: seed["test"].update(loss=-1.7e308),
        lambda seed: [seed["last"].pop(name) for name in ("accuracy", "accuracy_spike_count")],
    ],
)
def test_damaged_figures_are_measured_again(
    experiment: Callable[..., Result], tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    experiment("--seeds", 1)
    first_figures = figures(tmp_path / "e")
    report = json.loads((tmp_path / "e" / "experiment.json").read_text())
    damage(report["seeds"][0])
    (tmp_path / "e" / "experiment.json").write_text(json.dumps(report))
    assert experiment("--seeds", 1).exit_code == 0
    assert figures(tmp_path / "e") == first_figures


@pytest.mark.parametrize(
    "edit",
    [
        lambda seed: seed["test"].update(accuracy=0.99),
        lambda seed: seed.update(epoch=seed["epoch"] + 1),
        lambda seed: seed["operations"].update(linear2=1.0),
        lambda seed: seed.update(digest="0" * 64),
    ],
)
def test_edited_figures_are_named_and_measured_again(
    experiment: Callable[..., Result], tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    shown = experiment("--seeds", 1).stdout
    first_figures = figures(tmp_path / "e")
    path = tmp_path / "e" / "experiment.json"
    report = json.loads(path.read_text())
    edit(report["seeds"][0])
    path.write_text(json.dumps(report))
    repeated = experiment("--seeds", 1)
    assert repeated.exit_code == 0
    assert "the results of seed 0 were edited or damaged, because they do not match their digest" in repeated.stderr
    assert figures(tmp_path / "e") == first_figures
    assert repeated.stdout == shown
    assert "do not match" not in experiment("--seeds", 1).stderr


def test_figures_of_an_earlier_version_are_measured_again(experiment: Callable[..., Result], tmp_path: Path) -> None:
    experiment("--seeds", 1)
    first_figures = figures(tmp_path / "e")
    path = tmp_path / "e" / "experiment.json"
    report = json.loads(path.read_text())
    report["format"] = 2
    report["seeds"][0].pop("digest", None)
    report["seeds"][0]["test"]["accuracy"] = 0.99
    path.write_text(json.dumps(report))
    assert experiment("--seeds", 1).exit_code == 0
    assert figures(tmp_path / "e") == first_figures


def test_lost_files_of_a_seed_are_named(experiment: Callable[..., Result], tmp_path: Path) -> None:
    experiment("--seeds", 1)
    config = (tmp_path / "e" / "seed-0" / "config.toml").read_bytes()
    (tmp_path / "e" / "seed-0" / "config.toml").unlink()
    failed = experiment("--seeds", 1, "--lr", 0.5)
    assert failed.exit_code == 1
    assert "seed-0 is not empty but has no config.toml" in failed.stderr
    (tmp_path / "e" / "seed-0" / "config.toml").write_bytes(config)
    (tmp_path / "e" / "seed-0" / "metrics.jsonl").unlink()
    (tmp_path / "e" / "experiment.json").unlink()
    failed = experiment("--seeds", 1)
    assert failed.exit_code == 1
    assert "metrics.jsonl lacks its epochs or its last test" in failed.stderr


def test_overwrite_removes_all_runs_or_none(
    experiment: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    experiment()
    # A report of a seed lies beside its folder.
    assert stsbp("report", "e/seed-1", "--no-samples").exit_code == 0
    (tmp_path / "e" / "seed-1" / "mine.txt").write_text("mine")
    failed = experiment("--lr", 0.02, "--overwrite")
    assert "holds files that no run wrote (mine.txt)" in failed.stderr
    assert (tmp_path / "e" / "seed-0" / "last.json").exists()
    (tmp_path / "e" / "seed-1" / "mine.txt").unlink()
    # A copy of a seed is not a seed.
    shutil.copytree(tmp_path / "e" / "seed-1", tmp_path / "e" / "seed-1-copy")
    files_of_copy = sorted((tmp_path / "e" / "seed-1-copy").iterdir())
    assert experiment("--lr", 0.02, "--overwrite").exit_code == 0
    assert (tmp_path / "e" / "seed-1.html").exists()
    assert sorted((tmp_path / "e" / "seed-1-copy").iterdir()) == files_of_copy
    assert experiment("--lr", 0.02).exit_code == 0


def test_overwrite_with_a_path_that_cannot_be_stored_removes_no_run(
    experiment: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    experiment()
    files_and_times = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "e").rglob("*"))
    refused(experiment("--overwrite", "--data-dir", "a\udcff"), "data_dir is not valid UTF-8")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "e").rglob("*")) == files_and_times


@pytest.mark.parametrize("name", ["experiment.md", "experiment.json"])
@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_notes_in_the_folder_of_an_experiment_are_kept(
    name: str, option: tuple[str, ...], experiment: Callable[..., Result], tmp_path: Path
) -> None:
    notes = tmp_path / "e" / name
    notes.parent.mkdir()
    notes.write_text("# What I mean to try\n")
    failed = experiment("--seeds", 1, *option)
    assert failed.exit_code == 1
    assert f"{name} is there already and is not" in failed.stderr
    assert [path.read_text() for path in notes.parent.iterdir()] == ["# What I mean to try\n"]
    # Its own files are replaced if the runs are gone.
    notes.unlink()
    assert experiment("--seeds", 1).exit_code == 0
    shutil.rmtree(tmp_path / "e" / "seed-0")
    assert experiment("--seeds", 1, *option).exit_code == 0


def test_overwrite_keeps_a_seed_folder_that_is_no_run(experiment: Callable[..., Result], tmp_path: Path) -> None:
    experiment("--seeds", 1)
    foreign = tmp_path / "e" / "seed-99" / "config.toml"
    foreign.parent.mkdir()
    foreign.write_text("x = 1\n")
    failed = experiment("--seeds", 1, "--overwrite")
    assert failed.exit_code == 1
    assert "seed-99 holds files that no run wrote (config.toml)" in failed.stderr
    assert (tmp_path / "e" / "seed-0" / "last.json").exists()
    assert foreign.read_text() == "x = 1\n"


def test_experiment_of_the_former_default_folder_goes_on_there(
    stsbp: Callable[..., Result], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = ("experiment", "digits", *tiny, "--seeds", 1)
    assert stsbp(*arguments, "--out", "runs/digits").exit_code == 0
    assert stsbp(*arguments).exit_code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]


def test_table_of_an_unfinished_experiment_says_so(experiment: Callable[..., Result], tmp_path: Path) -> None:
    experiment()
    report = json.loads((tmp_path / "e" / "experiment.json").read_text())
    report["asked"] = [0, 1, 2]
    assert "**2 of 3 seeds are done**, 2 not yet. Run the same command to continue." in markdown(report)
    # Repeated as it is, it would remove what is done.
    report["command"].append("--overwrite")
    assert "Run the same command without --overwrite to continue." in markdown(report)


def test_jobs_that_end_early_tell_how_to_continue(
    experiment: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment("--seeds", 1).exit_code == 0
    stopped = experiment("--jobs", 2, "--stop-after", 1e-9)
    assert stopped.exit_code == 75, stopped.output
    assert "time is up: stopped and saved everything; 1 of 2 seeds are trained. Continue" in stopped.stderr
    monkeypatch.setattr(sys, "argv", ["stsbp", "experiment", "--overwrite"])
    with RunFolder(tmp_path / "e" / "seed-1").lock():
        failed = experiment("--jobs", 2)
    assert failed.exit_code == 1
    assert "To continue, run the same command without --overwrite again" in failed.stderr


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system does not tell of stopped processes")
def test_jobs_whose_process_is_stopped_say_so_and_end(
    experiment: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, processes = Job.__init__, list[int]()

    def stopped(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        processes.append(self.process.pid)
        os.kill(self.process.pid, signal.SIGSTOP)
        if len(processes) == 2:
            end.start()
            late.start()

    end = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))

    # Otherwise this test would wait for them for ever, as the experiment would.
    def kill() -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)

    late = threading.Timer(60, kill)
    monkeypatch.setattr(Job, "__init__", stopped)
    result = experiment("--jobs", 2)
    assert late.is_alive()
    late.cancel()
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    message = r"seed (\d): its process (\d+) was stopped by a signal, .* to continue it, run: kill -CONT \2\n"
    assert sorted(seed for seed, _ in re.findall(message, result.stderr)) == ["0", "1"], result.stderr


def test_changed_settings_and_foreign_folders_are_refused(experiment: Callable[..., Result], tmp_path: Path) -> None:
    assert experiment("--seeds", 1).exit_code == 0
    failed = experiment("--lr", 0.02, "--validation", 4, "--threads", 1)
    assert failed.exit_code == 1
    assert "lr: 0.01 in the run, 0.02 asked\n  validation: 5 in the run, 4 asked" in failed.stderr
    assert "threads" not in failed.stderr
    (tmp_path / "e" / "seed-0" / "last.json").unlink()
    assert "last.json is gone" in experiment("--seeds", 1).stderr
    assert experiment("--seeds", 1, "--lr", 0.02, "--overwrite").exit_code == 0
    assert figures(tmp_path / "e")["settings"]["lr"] == 0.02
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    failed = experiment("--out", "mine")
    assert failed.exit_code == 1
    assert "mine is not empty and holds no experiment" in failed.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_experiment_that_was_killed_before_its_first_run_begins(
    experiment: Callable[..., Result], tmp_path: Path
) -> None:
    for name in ("seed-0/.lock", ".lock", ".experiment.json.0123456789ab.tmp"):
        path = tmp_path / "e" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert experiment("--seeds", 1).exit_code == 0
    assert not (tmp_path / "e" / name).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nmnist-haming",), "unknown experiment 'nmnist-haming' (did you mean nmnist-hamming?)"),
        (("digits", "--dataset", "nmnist"), "digits is a data set: leave --dataset nmnist out"),
        (("nmnist-hamming", "--dataset", "digits"), "the preset nmnist-hamming is for nmnist"),
        (("nmnist-hamming",), "N-MNIST needs a data folder"),
        (("digits", "--validation", "1500"), "choose another validation"),
        (("digits", "--seed", str(2**32 - 2), "--seeds", "3"), "the largest possible seed is 4294967295"),
    ],
)
def test_mistakes_leave_nothing_behind(
    stsbp: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.delenv("STSBP_DATA", raising=False)
    failed = stsbp("experiment", *arguments)
    assert failed.exit_code == 1
    assert message in failed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_recordings")
@pytest.mark.parametrize("few_recordings", [60], indirect=True)
def test_named_preset_stands_beside_the_published_figure(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    small = ("--net", "8", "--steps", "5", "--epochs", "1", "--limit", "20", "--holdout", "10", "--validation", "0")
    result = stsbp("experiment", "nmnist-tssl", "--dataset", "digits-events", *small, "--seeds", 1)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "runs" / "nmnist-tssl-seeds" / "experiment.md").read_text()
    assert "| 99.28 % |" in table
    assert "the first 30 x 3 ms, stabilised" in table
    assert '`dataset` "digits-events" instead of "nmnist"' in table
    assert "`steps` 5 instead of 30" in table
    assert "Model selection: none. The last epoch" in table
    assert "stabilise" not in table.replace("stabilised", "")


def test_spike_trains_as_labels_have_their_own_figures(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    result = stsbp("experiment", "patterns", "--net", "8", "--steps", "20", "--epochs", "1", "--seeds", 1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    # The test samples are those of training: nothing could be chosen on a part of them.
    assert "validation" not in report["samples"]
    assert set(report["summary"]["test"]) == {"precision", "recall", "f1", "van_rossum", "hamming", "loss"}
    assert "F1 of spike times" in (tmp_path / "runs" / "patterns-seeds" / "experiment.md").read_text()


def naive_fan_out(block: Block) -> Int64:
    """Follow each input neuron to its pooled place, and count the outputs whose window holds it."""
    reached = np.zeros(block.input_shape, dtype=np.int64)
    for place in np.ndindex(*block.input_shape):
        at, shape = place, block.input_shape
        for layer, _ in block.entering:
            if isinstance(layer, AvgPool2d):
                rows, columns = layer.sizes
                at, shape = (at[0], at[1] // rows, at[2] // columns), layer.output_shape(shape)
        if any(i >= n for i, n in zip(at, shape, strict=True)):
            continue
        synapse = block.synapse
        if not isinstance(synapse, Conv2d):
            reached[place] = synapse.units
            continue
        for row, column in np.ndindex(*block.output_shape[1:]):
            first = np.array((row, column)) * synapse.strides - np.array(synapse.paddings)
            window = [first + np.array(tap) * synapse.dilations for tap in np.ndindex(*synapse.kernels)]
            reached[place] += (
                synapse.channels // synapse.groups * sum(tuple(at[1:]) == tuple(position) for position in window)
            )
    return reached


@pytest.mark.parametrize(
    ("notation", "shape"),
    [
        ("3C3p1s2-D0.2-P2-4C2-P2-6", (2, 13, 11)),
        ("2C3-P2-P2-7", (1, 14, 15)),
        ("2C3-P3x2-G-7", (1, 14, 15)),
        ("4C5p2-5", (2, 6, 6)),
        ("6C3x2p3x1s2x1{dilation=2x1}-4C3p2{dilation=2,groups=2}-4", (2, 9, 8)),
        ("8-4", (9,)),
    ],
)
def test_fan_out_is_that_of_a_naive_count(notation: str, shape: Shape) -> None:
    network = NetworkSpec.parse(notation, input_shape=shape, outputs=3)
    source = "input"
    for block in network.blocks:
        ((edge, fan),) = fan_out(network, block).items()
        assert edge == Edge(source)
        assert np.array_equal(fan, naive_fan_out(block))
        source = block.population


def test_fan_out_of_recurrence_and_branches() -> None:
    network = NetworkSpec.parse("4R-[5-4]+-6{recurrent=one-to-one}", input_shape=(3,), outputs=2)
    fan_outs = [fan_out(network, block) for block in network.blocks]
    assert [{edge: x.tolist() for edge, x in fans.items()} for fans in fan_outs] == [
        {Edge("input"): [4] * 3, Edge("neurons1", 1): [4] * 4},
        {Edge("neurons1"): [5] * 4},
        {Edge("neurons2"): [4] * 5},
        {Edge("neurons3"): [6] * 4, Edge("neurons1"): [6] * 4, Edge("neurons4", 1): [1] * 6},
        {Edge("neurons4"): [2] * 6},
    ]


TWO = """
[[node]]
name = "a"
weights = "8"
from = "input"
[[node]]
name = "sum"
add = true
from = ["input", {node = "input", delay = 2}]
[[node]]
name = "b"
weights = "5"
from = {node = "sum", delay = 1}
[[node]]
name = "c"
weights = "8"
from = "m"
[[node]]
name = "m"
neurons = ""
from = "b"
[[node]]
name = "n"
neurons = ""
from = ["a", "c"]
[[node]]
name = "out"
weights = "2"
from = "n"
[[node]]
name = "o"
neurons = ""
from = "out"
"""


def test_every_projection_to_a_population_is_counted_with_its_delay(
    stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    lengths, rng = np.full(20, 6), np.random.default_rng(1)
    inputs = (rng.random((20, 9, 3)) < 0.4).astype(np.uint8)
    np.savez(tmp_path / "seq.npz", inputs=inputs, labels=np.arange(20) % 2, lengths=lengths)
    (tmp_path / "two.toml").write_text(TWO)
    for net in ("two.toml", "4R"):
        out = tmp_path / net.removesuffix(".toml")
        size = ("--steps", 9, "--epochs", 1, "--batch-size", 5, "--net", net, "--no-test", "--init-gain", 4)
        done = stsbp("train", f"sequences:{tmp_path / 'seq.npz'}", *size, "--out", out)
        assert done.exit_code == 0, done.output
        run = load_run(out, backend="numpy")
        counted = activity(run.task, run.state, load_data(run.settings).train)
        # What the padded steps hold does not count.
        x = inputs[:, :6]
        at = [x.sum(axis=(0, 2), dtype=float) / 20] + [x[:, : 6 - d].sum(axis=(0, 2)) / 20 for d in range(1, 6)]
        layers = run.backend.run(run.network, run.weights, x.swapaxes(0, 1), 6).layers
        fired = {name: layer.spikes.sum(axis=(1, 2)) / 20 for name, layer in layers.items()}
        if net == "4R":
            expected = {
                "linear1": 4 * at[0].sum() + 4 * fired["linear1"][:-1].sum(),
                "linear2": 2 * fired["linear1"].sum(),
            }
        else:
            expected = {"b": 5 * (at[1].sum() + at[3].sum()), "a": 8 * at[0].sum() + 8 * fired["b"].sum()}
            expected["out"] = 2 * fired["a"].sum()
            assert counted.operations["b"][:3] == pytest.approx([0, 5 * at[0][0], 5 * at[0][1]])
        assert {name: operations.sum() for name, operations in counted.operations.items()} == pytest.approx(expected)
        assert {name: spikes.sum() for name, spikes in counted.spikes.items()} == pytest.approx(
            {name: spikes.sum() for name, spikes in fired.items()}
        )
        assert min(map(sum, fired.values())) > 0


def test_a_recurrence_of_a_layer_that_reads_pixels_is_counted() -> None:
    network = NetworkSpec.parse("4R", input_shape=(3,), outputs=2, coding="direct")
    assert [{*fan_out(network, block)} for block in network.blocks] == [{Edge("neurons1", 1)}, {Edge("neurons1")}]


@pytest.mark.parametrize("notation", ["M2x3-6C3p1{groups=2}-3", "U2x1-D0.5-M3-U1x2-4C2s2-3", "M2-F-5-3", "U3-7-3"])
def test_operations_behind_max_pooling_and_upsampling_are_those_of_their_output(notation: str) -> None:
    """Weights of 1 add up what spikes meet."""
    network = NetworkSpec.parse(notation, input_shape=(2, 9, 13))
    block = network.blocks[0]
    spikes = (np.random.default_rng(1).random((4, 3, *block.input_shape)) < 0.2).astype(np.uint8)
    ((edge, fan),) = fan_out(network, block).items()
    silent = {x.name: np.zeros((4, 3, *x.output_shape), np.uint8) for x in network.blocks}
    counted = (node_values(network, spikes, silent, (4, 3))[edge.source].sum(axis=(0, 1)) * fan).sum()
    entered = spikes
    for layer, _ in block.entering:
        entered = entered if isinstance(layer, Dropout) else RULES[type(layer)].forward(layer, entered)[0]
    ones = np.ones(block.weight_shape, np.float32)
    assert counted == RULES[type(block.synapse)].forward(block.synapse, entered, ones)[0].sum()


def test_dense_spikes_cost_as_much_as_the_ann_does_at_every_step() -> None:
    # Without padding every multiply-add of a frame is a pair of a spike and a weight.
    network = NetworkSpec.parse("3C3-5C2-7", input_shape=(2, 9, 8), outputs=3)
    for block in network.blocks:
        (fan,) = fan_out(network, block).values()
        assert fan.sum() == block.multiply_adds


def test_synaptic_operations_follow_from_the_spikes(experiment: Callable[..., Result], tmp_path: Path) -> None:
    experiment("--seeds", 1, "--net", "12-9")
    report = json.loads((tmp_path / "e" / "experiment.json").read_text())
    (seed,) = report["seeds"]
    assert report["network"]["pixels"] == {"linear1": 64 * 12}
    # Full connections reach every neuron: spikes a sample times neurons of the next layer.
    rates = seed["test"]["rates"]
    expected = {"linear2": rates["linear1"] * 12 * 3 * 9, "linear3": rates["linear2"] * 9 * 3 * 10}
    assert seed["operations"] == pytest.approx(expected)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
def test_gpu_script_goes_on_until_it_is_done(tmp_path: Path) -> None:
    script = ROOT / "experiments" / "gpu_cifar10.sh"
    if not script.is_file():
        pytest.skip("the script is not beside the packages")
    rng = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(records.tobytes())
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("STSBP_")},
        "PYTHON": sys.executable,
        "BACKEND": "numpy@cpu",
        "PRESETS": "cifar10-tssl-1",
        "SEEDS": "1",
        "OPTIONS": "--net 2C3-P2-4 --epochs 1 --batch-size 10",
    }

    def call(minutes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script), str(tmp_path), str(tmp_path / "out")],
            env={**environment, "MINUTES": minutes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    first = call("0.00001")
    assert first.returncode == 75, first.stderr
    assert "more to do" in first.stderr
    second = call("2")
    assert second.returncode == 0, second.stderr
    assert "continuing" in second.stderr
    assert second.stdout == (tmp_path / "out" / "cifar10-tssl-1" / "experiment.md").read_text()


def test_a_tenth_of_the_training_samples_is_kept_for_validation() -> None:
    data = load("digits")
    config = with_validation(resolve([SettingsSource("command line", {"dataset": "digits"})]), data)
    assert config.validation == len(data.train) // 10 == 143


@pytest.mark.parametrize(
    ("target", "complaint"), [("nothing", "it is a link to nothing"), ("seed-1", "it is a link that leads back to")]
)
def test_a_link_in_the_place_of_a_seed(
    experiment: Callable[..., Result], tmp_path: Path, target: str, complaint: str
) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "seed-1").symlink_to(target)
    result = experiment()
    assert result.exit_code == 1
    text = " ".join(result.stderr.split())
    assert f"cannot write e/seed-1: {complaint}" in text
    assert "gone" not in text
    assert not (tmp_path / "e" / "seed-0").exists()


def test_a_run_of_another_data_set_in_the_place_of_a_seed(
    experiment: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    options = ("--net", 4, "--steps", 20, "--epochs", 1)
    for seed in (0, 3):
        result = stsbp("train", "patterns", *options, "--seed", seed, "--out", tmp_path / "e" / "seed-0")
        assert result.exit_code == 0, result.output
        refused = experiment()
        assert refused.exit_code == 1
        text = " ".join(refused.stderr.split())
        assert "seed-0 holds a run on the data set patterns, not on digits; remove it" in text
        shutil.rmtree(tmp_path / "e")
