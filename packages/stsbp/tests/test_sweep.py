"""Sweeps with the real Optuna: values, trials in processes of their own, kills, pruning, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stsbp as package
from click.testing import Result
from stsbp.config import SettingsSource, resolve
from stsbp.energy.table import energy_table
from stsbp.errors import CheckpointError, ConfigError, FileError
from stsbp.processes.job import Job
from stsbp.sweeps.methods import TrialHeartbeat
from stsbp.sweeps.objectives import OBJECTIVES, figures_of
from stsbp.sweeps.show import TrialRow, best_rows, train_words
from stsbp.sweeps.vary import NumberRange, ValueList, grid_values, read_variations
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder

optuna = pytest.importorskip("optuna")

from stsbp.sweeps import journal as journals  # noqa: E402 - it imports optuna
from stsbp.sweeps import study as studies  # noqa: E402
from stsbp.sweeps.journal import open_journal  # noqa: E402
from stsbp.sweeps.study import Study, StudyIdentity, open_storage, quiet  # noqa: E402

Call = Callable[..., Result]
DIGITS = (
    "digits",
    "--net",
    "8",
    "--steps",
    "3",
    "--epochs",
    "2",
    "--batch-size",
    "20",
    "--limit",
    "50",
    "--lr",
    "0.01",
)
TWO = ("--vary", "threshold=0.5,1")


@pytest.fixture
def sweep(stsbp: Call, tmp_path: Path) -> Call:
    """`stsbp sweep digits` with few samples into the folder `s`."""

    def call(*arguments: Any) -> Result:
        return stsbp("sweep", *DIGITS, "--out", "s", *arguments)

    return call


def identity(**changes: Any) -> StudyIdentity:
    """What a study of thresholds is."""
    config = resolve([SettingsSource("test", {"dataset": "digits", "validation": 10, "epochs": 4})])
    values = {"sampler": "random", "pruner": "none", "objectives": (OBJECTIVES["accuracy"],), **changes}
    return StudyIdentity(config, read_variations([("threshold", "0.5:2")]), **values)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tau_m", "4:16", NumberRange(4.0, 16.0)),
        ("--tau-m", "4:16:log", NumberRange(4.0, 16.0, log=True)),
        ("tau_m", "4:16:int", NumberRange(4.0, 16.0, whole=True)),
        ("tau_m", "4:16:0.5", NumberRange(4.0, 16.0, step=0.5)),
        ("steps", "4:16", NumberRange(4, 16, whole=True)),
        ("steps", "4:16:log", NumberRange(4, 16, whole=True, log=True)),
        ("learning-rate", "0.001, 0.01", ValueList((0.001, 0.01))),
        ("batch_size", "10,20", ValueList((10, 20))),
        ("augment_flip", "yes,no", ValueList((True, False))),
        ("surrogate", "arctan,triangle:width=0.5", ValueList(("arctan", "triangle:width=0.5"))),
        ("freeze", "conv1;conv1,conv2", ValueList(("conv1", "conv1,conv2"))),
        ("tau_m", [4, 8], ValueList((4.0, 8.0))),
    ],
)
def test_read_variations(name: str, text: Any, expected: object) -> None:
    (variation,) = read_variations([(name, text)]).values()
    assert variation == expected
    assert {type(x) for x in variation.ends} == {type(x) for x in expected.ends}


def test_the_values_of_a_grid() -> None:
    variations = read_variations([("tau_m", "1:2:0.25"), ("steps", "3:5"), ("threshold", "0.5,1")])
    assert grid_values(variations) == {"tau_m": [1, 1.25, 1.5, 1.75, 2], "steps": [3, 4, 5], "threshold": [0.5, 1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing is varied; give --vary NAME=VALUES"),
        (("--vary", "tau_m"), "--vary 'tau_m': write NAME=VALUES"),
        (("--vary", "taum=4:16"), "there is no such setting (did you mean tau_m?); settings that can be varied: net,"),
        (("--vary", "tau_m=0.5:4"), "--vary 'tau_m': tau_m = 0.5: input should be greater than or equal to 1"),
        (("--vary", "tau_m=4:x"), "LOW and HIGH are numbers"),
        (("--vary", "tau_m=16:4"), "LOW must be below HIGH"),
        (("--vary", "tau_rise=0:3:log"), "LOW of a logarithmic range must be above 0"),
        (("--vary", "tau_m=4:16:log:2"), "a logarithmic range has no STEP"),
        (("--vary", "tau_m=4:16:20"), "STEP is one of the numbers above 0 and at most HIGH - LOW"),
        (("--vary", "tau_m=4:16:1e-30"), "a range in steps has at most 1,000,000,000 values"),
        (("--vary", "tau_m=4:16:1e-320"), "a range in steps has at most 1,000,000,000 values"),
        (("--vary", "tau_m=4.5:16:int"), "whole numbers with int"),
        (("--vary", "steps=2.5:8"), "LOW and HIGH are whole numbers"),
        (("--vary", "threshold=1,1.0"), "at least two different values"),
        (("--vary", "weight_bits=8,x"), 'weight_bits = "x": input should be a valid integer'),
        (("--vary", "psp_gain=unit,norm"), "psp_gain = \"norm\": input should be 'normalised' or 'unit'"),
        (("--vary", "neuron=lif,lfi"), "--vary 'neuron'"),
        (("--vary", "threads=1,2"), "this setting is not varied, because it does not change what is trained"),
        (("--vary", "validation=5,10"), "results on different samples cannot be compared"),
        ((*TWO, *TWO), "--vary 'threshold' is given twice"),
        ((*TWO, "--threshold", 1), "--threshold fixes a setting that --vary 'threshold' varies"),
        (("--vary", "momentum=0.5,0.9"), "--vary 'momentum': --momentum is that of --optimizer sgd"),
        ((*TWO, "--objective", "acuracy"), "unknown objective 'acuracy' (did you mean accuracy?); known: accuracy, f1"),
        ((*TWO, "--objective", "mse"), "the labels of these data are classes, which do not have it"),
        (
            (*TWO, "--loss", "cross-entropy", "--objective", "f1"),
            "with --loss 'cross-entropy' the network has a readout, which has none; choose accuracy or loss",
        ),
        (
            (*TWO, "--vary", "loss=hamming,cross-entropy-max", "--objective", "latency"),
            "--objective 'latency' is one of output spikes, but with --loss 'cross-entropy-max'",
        ),
        (("--vary", "tau_s=3,4", "--objective", "loss"), "is measured with the settings tau_s, which are varied"),
        ((*TWO, "--validation", 0), "a sweep chooses by validation samples, but there are none"),
        ((*TWO, "--pruner", "median", "--objective", "energy"), "judges a value of every epoch"),
        (
            (*TWO, "--pruner", "median", "--objective", "accuracy", "--objective", "energy"),
            "--pruner 'median' judges a single objective, but there are 2",
        ),
        (("--vary", "tau_m=4:16", "--sampler", "grid"), "a grid needs a list of values or a range in steps"),
        ((*TWO, "--energy-table", "int8"), "--energy-table is for the objective energy"),
    ],
)
def test_refused_sweeps(sweep: Call, tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
    refused = sweep(*arguments)
    assert refused.exit_code == 1, refused.output
    assert message in refused.stderr
    assert not (tmp_path / "s").exists()


def test_refused_places(stsbp: Call, sweep: Call, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("mine")
    assert "s is not empty and holds no sweep" in sweep(*TWO).stderr
    assert "all samples of patterns are training samples" in stsbp("sweep", "patterns", *TWO).stderr
    assert "unknown experiment 'digit' (did you mean digits?)" in stsbp("sweep", "digit", *TWO).stderr
    assert "name a data set or a preset" in stsbp("sweep", *TWO).stderr
    assert "nowhere has no study.db" in stsbp("sweep", "nowhere", "--table").stderr
    assert "there is no journal nowhere" in stsbp("sweep", "--table", "--storage", "nowhere").stderr
    assert "--table trains nothing; leave --lr out" in stsbp("sweep", "s", "--table", "--lr", 1).stderr
    assert "--storage is a file, or the URL" in sweep(*TWO, "--out", "t", "--storage", "no://such:thing:x").stderr


def test_without_optuna_the_extra_is_named(sweep: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.sweeps.methods.find_spec", lambda _: None)
    assert 'python -m pip install "stsbp[sweep]"' in sweep(*TWO).stderr
    with pytest.raises(ConfigError, match=re.escape("stsbp[sweep]")):
        package.sweep("digits", {"threshold": [0.5, 1]})
    with pytest.raises(ConfigError, match=re.escape("stsbp[sweep]")):
        package.load_sweep("s")


def killed(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Kill a process as soon as something is true."""
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no SIGKILL")
def test_a_sweep_that_is_killed_twice_ends_with_all_trials(
    process: Callable[..., subprocess.Popen[str]], stsbp: Call, tmp_path: Path
) -> None:
    """Its table comes from the storage alone, and its trials continue from their checkpoints."""
    varied = ("--vary", "tau_m=4:16:log", *TWO)
    words = ("--backend", "numpy", "sweep", *DIGITS, "--epochs", 30, *varied, "--trials", 5, "--jobs", 2, "--out", "s")
    folder = tmp_path / "s"

    def has_records(*numbers: int) -> bool:
        files = [folder / f"trial-{number}" / "metrics.jsonl" for number in numbers]
        return all(file.is_file() and b'"evaluation"' in file.read_bytes() for file in files)

    killed(process(*words, cwd=tmp_path), lambda: has_records(0, 1))
    killed(process(*words, cwd=tmp_path), lambda: has_records(2))
    last = process(*words, cwd=tmp_path)
    table, progress = last.communicate(timeout=300)
    assert last.returncode == 0, progress
    assert re.search(r"continuing trial \d", progress), progress
    assert "5 trials: 5 finished\n" in table
    rows = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))
    assert [row["trial"] for row in rows] == list("01234")
    for row in rows:
        run = folder / row["run"]
        config = RunFolder(run).read_config()
        assert (repr(config.tau_m), repr(config.threshold)) == (row["tau_m"], row["threshold"])
        records = read_records(run, config)
        values = {
            r["epoch"]: r["accuracy"] for r in records if r["kind"] == "evaluation" and r["split"] == "validation"
        }
        assert len(values) == 30
        # The best result on validation samples, never on test samples.
        assert float(row["accuracy"]) == values[int(row["epoch"])] == max(values.values())
    # At least one trial had begun before a kill.
    starts = [len(RunFolder(folder / row["run"]).starts()) for row in rows]
    assert max(starts) > 1, starts
    # Repeated, the command has nothing to do.
    before = (folder / "trials.csv").read_bytes()
    again = stsbp(*words[2:])
    assert again.stdout == table, again.stderr
    for run in folder.glob("trial-*"):
        shutil.rmtree(run)
    (folder / "trials.csv").unlink()
    shown = stsbp("sweep", "s", "--table")
    assert shown.stdout == table, shown.stderr
    assert stsbp("sweep", "s", "--table", "--csv").stdout.encode() == before
    # The printed command trains the best trial again, to the same result.
    (line,) = re.findall(r"trial (\d+) again: stsbp (.*)", table)[:1]
    best = rows[int(line[0])]
    assert stsbp(*line[1].split()[2:-1], tmp_path / "again").exit_code == 0
    assert json.loads((tmp_path / "again" / "best.json").read_text())["best"]["value"] == float(best["accuracy"])


def test_a_grid_tries_every_point_and_lost_trials_again(
    sweep: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = Job.__init__, list[str]()

    def killed_once(self: Any, name: str, *arguments: Any) -> None:
        begin(self, name, *arguments)
        if not begun:
            os.kill(self.process.pid, signal.SIGKILL)
        begun.append(name)

    monkeypatch.setattr(Job, "__init__", killed_once)
    ended = sweep(*TWO, "--vary", "weight_bits=8,12", "--sampler", "grid", "--trials", 9)
    assert ended.exit_code == 0, ended.stderr
    rows = package.load_sweep(tmp_path / "s").trials
    assert begun == [f"trial {number}" for number in range(5)]
    assert [row["state"] for row in rows] == ["tried again", *["finished"] * 4]
    finished = [(row["threshold"], row["weight_bits"]) for row in rows[1:]]
    assert sorted(finished) == [(0.5, 8), (0.5, 12), (1.0, 8), (1.0, 12)]
    (again,) = (row for row in rows if row["tries_again"] == 0)
    assert (again["threshold"], again["weight_bits"]) == (rows[0]["threshold"], rows[0]["weight_bits"])
    assert rows[0]["reason"] == "its process was ended by signal 9"
    # The lost trial keeps its folder, and the new one has its own.
    assert {again["run"], "trial-0"} <= {path.name for path in (tmp_path / "s").iterdir()}
    assert again["run"] != "trial-0"


def test_several_objectives_have_a_pareto_front(stsbp: Call, sweep: Call, tmp_path: Path) -> None:
    objectives = [word for name in ("accuracy", "energy", "spikes", "latency") for word in ("--objective", name)]
    ended = sweep("--vary", "threshold=0.25:4:log", "--trials", 3, "--jobs", 2, *objectives)
    assert ended.exit_code == 0, ended.stderr
    found = package.load_sweep(tmp_path / "s")
    for row in found.trials:
        measured = json.loads(
            stsbp(
                "evaluate", f"s/{row['run']}", "--checkpoint", "best", "--split", "validation", "--energy", "--json"
            ).stdout
        )
        assert row["accuracy"] == measured["accuracy"]
        assert row["energy"] == measured["energy"]["pj"]["total"]
        assert row["latency"] == (measured["measures"]["latency"]["median"] or 3)
        spikes = 3 * (8 * measured["rates"]["linear1"] + 10 * measured["rates"]["linear2"])
        assert row["spikes"] == pytest.approx(spikes, rel=1e-12)
    costs = {row["trial"]: (-row["accuracy"], row["energy"], row["spikes"], row["latency"]) for row in found.trials}
    front = {
        n
        for n, own in costs.items()
        if not any(o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in costs.values())
    }
    assert {row["trial"] for row in found.best} == front
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert page.count("<svg") == 6
    assert "Pareto front" in page
    assert f"trial {found.best[0]['trial']} again: stsbp --backend numpy train digits" in ended.stdout


PRICES = """name = "mine"
[pj]
add = 0.25
multiply = 2.0
compare = 0.25
"""


def test_two_energy_tables_of_one_name_are_not_mixed(sweep: Call, tmp_path: Path) -> None:
    asked = (*TWO, "--objective", "energy", "--energy-table", "own.toml")
    (tmp_path / "own.toml").write_text(PRICES)
    assert sweep(*asked, "--trials", 1).exit_code == 0
    run = package.load_run(tmp_path / "s" / "trial-0")
    prices = energy_table(str(tmp_path / "own.toml")).digest()
    assert figures_of(run.folder, run.settings, prices)["energy"] > 0
    (tmp_path / "own.toml").write_text(PRICES.replace("2.0", "3.0"))
    other = energy_table(str(tmp_path / "own.toml")).digest()
    # Energies by these prices would be compared with those of the first trial.
    ended = sweep(*asked, "--trials", 2)
    assert ended.exit_code == 1
    assert f"the prices of the energy table 'mine': SHA-256 {prices[:16]}... in the study" in ended.stderr
    assert f"{other[:16]}... asked" in ended.stderr
    assert "energy" not in figures_of(run.folder, run.settings, other)
    # A table of the same prices is the same table, whatever its source says.
    (tmp_path / "own.toml").write_text(PRICES.replace("[pj]", 'source = "a paper"\n[pj]'))
    assert sweep(*asked, "--trials", 1).exit_code == 0


def test_a_study_of_before_has_the_prices_of_the_first_that_joins(tmp_path: Path) -> None:
    with quiet():
        first = Study.join(open_storage(None, tmp_path, TrialHeartbeat()), "s", identity(energy_table="mine"))
        record = {key: value for key, value in first.identity.record.items() if key != "energy_sha256"}
        first.study.set_user_attr("stsbp", record)
        assert Study.read(first.storage, "s").identity.energy_sha256 == ""
        joined = Study.join(first.storage, "s", identity(energy_table="mine", energy_sha256="a" * 64))
        assert joined.identity.id == first.identity.id
        assert Study.read(first.storage, "s").identity.energy_sha256 == "a" * 64
        with pytest.raises(
            ConfigError, match=r"the energy table 'mine': SHA-256 a{16}... in the study, b{16}... asked"
        ):
            Study.join(first.storage, "s", identity(energy_table="mine", energy_sha256="b" * 64))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(0.9, 5.0), (0.8, 3.0), (0.7, 4.0), (0.9, 6.0)], [0, 1]),
        ([(0.5, 1.0), (0.5, 1.0)], [0, 1]),
        ([], []),
    ],
)
def test_best_rows(values: list[tuple[float, float]], expected: list[int]) -> None:
    rows = [TrialRow(n, "finished", {}, v, {}, None, None, "", None, "") for n, v in enumerate(values)]
    rows.append(TrialRow(9, "pruned", {}, (), {}, 1.0, 1, "", None, ""))
    objectives = (OBJECTIVES["accuracy"], OBJECTIVES["energy"])
    assert [row.number for row in best_rows(rows, objectives)] == expected
    assert [row.number for row in best_rows(rows[:1], objectives[::-1])] == [0][: len(values)]


def test_the_median_pruner_judges_every_epoch(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path, TrialHeartbeat())
    with quiet():
        study = Study.join(storage, "s", identity(pruner="median"))
        study.set_pruner()
        for value in (0.9, 0.8, 0.9, 0.8, 0.9):
            trial = study.ask()
            assert not trial.report({1: value, 2: value})
            assert trial.complete([value], {})
        worse = study.ask()
        assert worse.report({1: 0.2})
        # Told once more, also by a process that was killed before it could end the trial.
        (same,) = study.own_running("", alone=True)
        assert same.report({1: 0.2})
        assert same.prune({"accuracy": 0.2})
        assert [row.state for row in study.rows()] == [*["finished"] * 5, "pruned"]
        assert study.rows()[-1].last == 0.2


def test_a_pruned_run_ends_early(sweep: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_pruner", lambda *_: optuna.pruners.ThresholdPruner(lower=1.1))
    ended = sweep(*TWO, "--epochs", 100_000, "--trials", 2, "--jobs", 2, "--pruner", "hyperband")
    assert ended.exit_code == 1
    assert "no trial of s is finished: 2 pruned" in ended.stderr
    trials = package.load_sweep(tmp_path / "s").trials
    assert [row["state"] for row in trials] == ["pruned", "pruned"]
    assert all(0 <= row["accuracy"] <= 1 for row in trials)
    # A pruned run can be continued by hand.
    assert RunFolder(tmp_path / "s" / "trial-0").has_checkpoint


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "nsga2", "nsga3"])
def test_samplers_do_not_repeat_their_choices_after_an_interruption(name: str, tmp_path: Path) -> None:
    values = []
    for _ in range(4):
        with quiet():
            study = Study.join(open_storage(None, tmp_path, TrialHeartbeat()), "s", identity(sampler=name))
            study.next_sampler(0, parallel=True)
            trial = study.ask()
            values.append(trial.params["threshold"])
            trial.complete([0.5], {})
    assert len(set(values)) == 4
    assert all(0.5 <= value <= 2 for value in values)


def test_trials_without_a_heartbeat_are_tried_again_elsewhere(tmp_path: Path) -> None:
    url, beat = f"sqlite:///{tmp_path}/shared.db", TrialHeartbeat(1)
    with quiet():
        first, second = (Study.join(open_storage(url, tmp_path, beat), "s", identity()) for _ in range(2))
        assert first.identity.id == second.identity.id
        lost, nameless, alive = (first.ask() for _ in range(3))
        for trial in (lost, alive):
            trial.belongs("first", f"trial-{trial.number}", ["--backend", "numpy"])
            trial.beat()
        second.fail_lost(beat)
        assert [row.state for row in second.rows()] == ["running"] * 3
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            time.sleep(0.25)
            alive.beat()
        second.fail_lost(beat)
        states = [row.state for row in second.rows()]
        assert states == ["tried again", "tried again", "running", "waiting", "waiting"]
        again = second.ask()
        assert again.params == lost.params
        assert second.rows()[3].folder == ""
        assert not lost.complete([0.5], {})
        assert not nameless.complete([0.5], {})
        assert alive.complete([0.5], {})
        assert [trial.number for trial in second.own_running("first", alone=False)] == []


def test_workers_that_begin_together_make_one_study(tmp_path: Path) -> None:
    """Each makes the tables of the database and the study, unless another one has made them."""
    url = f"sqlite:///{tmp_path}/shared.db"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from test_sweep import *\n"
        "while not Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
        "with quiet():\n"
        "    storage = open_storage(sys.argv[2], Path(), TrialHeartbeat())\n"
        "    print(Study.join(storage, 's', identity()).identity.id)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), url, str(tmp_path / "go")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    # They wait for each other, after all imports.
    time.sleep(8)
    (tmp_path / "go").touch()
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1


def test_values_are_tried_again_only_a_few_times(tmp_path: Path) -> None:
    with quiet():
        study = Study.join(open_storage(None, tmp_path, TrialHeartbeat()), "s", identity())
        for _ in range(4):
            assert study.has_work(1)
            study.ask().lose("killed")
        assert not study.has_work(1)
        assert [row.state for row in study.rows()] == [*["tried again"] * 3, "failed"]


def test_trials_that_fail_are_not_tried_again(sweep: Call, tmp_path: Path) -> None:
    ended = sweep("--vary", "tau_s=1,4", "--tau-rise", 2, "--sampler", "grid")
    assert ended.exit_code == 0, ended.stderr
    states = {row["tau_s"]: (row["state"], row["reason"]) for row in package.load_sweep(tmp_path / "s").trials}
    assert states[4.0] == ("finished", "")
    assert states[1.0][0] == "failed"
    assert "tau_rise" in states[1.0][1]
    failed = sweep("--vary", "tau_s=1:2.01", "--sampler", "random", "--tau-rise", 2, "--out", "t")
    assert failed.exit_code == 1
    assert "the first 3 trials failed, so the sweep ends. The last one: " in failed.stderr


def test_another_study_is_refused(stsbp: Call, sweep: Call, tmp_path: Path) -> None:
    assert sweep(*TWO, "--trials", 1).exit_code == 0
    assert sweep(*TWO, "--trials", 1, "--out", "t").exit_code == 0
    changed = sweep(*TWO, "--trials", 1, "--lr", 0.02, "--pruner", "median", "--threads", 1)
    assert changed.exit_code == 1
    assert "lr: 0.01 in the study, 0.02 asked" in changed.stderr
    assert 'pruner: "none" in the study, "median" asked' in changed.stderr
    assert "threads" not in changed.stderr
    assert "vary: " in sweep("--vary", "threshold=0.5,2", "--trials", 1).stderr
    # The storage of another sweep with the same settings.
    shutil.copy(tmp_path / "s" / "study.db", tmp_path / "own.db")
    shutil.copy(tmp_path / "t" / "study.db", tmp_path / "s" / "study.db")
    assert "s holds runs of another study, 'digits-sweep'" in sweep(*TWO, "--trials", 1).stderr
    shutil.copy(tmp_path / "own.db", tmp_path / "s" / "study.db")
    # A run of another sweep, where the next trial would be.
    shutil.copytree(tmp_path / "t" / "trial-0", tmp_path / "s" / "trial-1")
    refused = sweep(*TWO, "--trials", 2)
    assert refused.exit_code == 1
    assert "trial-1 holds the run of another study" in refused.stderr
    shutil.rmtree(tmp_path / "s" / "trial-1")
    shutil.copytree(tmp_path / "s" / "trial-0", tmp_path / "s" / "trial-1")
    assert "trial-1 holds the run of trial 0 of this study" in sweep(*TWO, "--trials", 2).stderr
    (tmp_path / "s" / "trial-1" / "study.json").unlink()
    assert "trial-1 holds files of no trial" in sweep(*TWO, "--trials", 2).stderr
    shutil.rmtree(tmp_path / "s" / "trial-1")
    (tmp_path / "s" / "trial-1").mkdir()
    assert sweep(*TWO, "--trials", 2).exit_code == 0
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/foreign.db", study_name="digits-sweep")
    study.add_trial(optuna.create_trial(value=1.0))
    foreign = ("--storage", f"sqlite:///{tmp_path}/foreign.db")
    assert "was not made by stsbp sweep" in sweep(*TWO, "--out", "u", *foreign).stderr
    assert "was not made by stsbp sweep" in stsbp("sweep", "--table", *foreign).stderr


def test_a_journal_is_a_storage(stsbp: Call, sweep: Call, tmp_path: Path) -> None:
    storage = ("--storage", "deep/journal.log", "--study", "mine")
    ended = sweep(*TWO, "--sampler", "grid", *storage)
    assert ended.exit_code == 0, ended.stderr
    assert not (tmp_path / "s" / "study.db").exists()
    assert stsbp("sweep", "--table", "--storage", "deep/journal.log").stdout == ended.stdout
    assert "has no study 'yours'; it has: mine" in stsbp("sweep", "--table", *storage[:2], "--study", "yours").stderr


@pytest.mark.skipif(importlib.util.find_spec("MySQLdb") is not None, reason="this machine has the module MySQLdb")
def test_missing_module_of_a_database_is_named(sweep: Call) -> None:
    assert (
        "--storage 'mysql': it needs the module MySQLdb" in sweep(*TWO, "--storage", "mysql://root@localhost/x").stderr
    )


def test_a_stop_saves_everything(sweep: Call, tmp_path: Path) -> None:
    stopped = sweep(*TWO, "--trials", 1, "--stop-after", 1e-9)
    assert stopped.exit_code == 75
    assert "time is up: stopped and saved everything. Continue with: " in stopped.stderr
    assert sweep(*TWO, "--trials", 1).exit_code == 0


def test_sweep_in_python(stsbp: Call, sweep: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"net": "8", "steps": 3, "epochs": 2, "batch_size": 20, "limit": 50, "lr": 0.01}
    same: dict[str, Any] = {"out": "p", "sampler": "grid", "backend": "numpy", "progress": False, **settings}
    found = package.sweep("digits", {"threshold": [0.5, 1.0]}, **same)
    assert sweep(*TWO, "--sampler", "grid").exit_code == 0
    typed = package.load_sweep("s")
    values = [[(row["threshold"], row["accuracy"], row["figure.loss"]) for row in x.trials] for x in (found, typed)]
    assert values[0] == values[1]
    assert found.best == [row for row in found.trials if row["accuracy"] == max(r["accuracy"] for r in found.trials)]
    assert found.commands[0].startswith("stsbp --backend numpy train digits ")
    assert repr(found) == "Sweep('digits-sweep', 2 trials: 2 finished)"
    assert package.load_run(f"p/{found.best[0]['run']}", backend="numpy").settings.test_every == 0
    assert found.csv == (tmp_path / "p" / "trials.csv").read_text()
    for arguments, message in (
        ((([], []), {}), "which load the data by their name"),
        (("digits", "tau_m=4:16"), "vary is a dict of settings"),
        (("digits", {"tau_m": 4}), "give a range such as '4:16:log' or a list of values"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            package.sweep(*arguments)
    for wrong in ({"trials": 0}, {"jobs": 1.5}, {"heartbeat": 0}, {"sampler": "best"}, {"pruner": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            package.sweep("digits", {"threshold": [0.5, 1.0]}, out="q", **wrong)
    with pytest.raises(FileError, match=r"nowhere has no study\.db"):
        package.load_sweep("nowhere")


def test_damaged_marks_are_told(sweep: Call, tmp_path: Path) -> None:
    assert sweep(*TWO, "--trials", 1).exit_code == 0
    mark = tmp_path / "s" / "sweep.json"
    mark.write_text("{")
    assert "sweep.json is damaged" in sweep(*TWO, "--trials", 1).stderr
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/s/study.db", study_name="digits-sweep")
    study.set_user_attr("stsbp", {"format": 1, "id": "x"})
    with pytest.raises(CheckpointError, match="what the study 'digits-sweep' says about itself is damaged"):
        package.load_sweep(tmp_path / "s")
    study.set_user_attr("stsbp", {"format": 2})
    with pytest.raises(ConfigError, match="has format 2, but this stsbp reads format 1"):
        package.load_sweep(tmp_path / "s")


PAGE = Path(__file__).parents[3] / "docs" / "sweeps.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")
def test_the_commands_of_the_page_run(stsbp: Call, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^stsbp (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)), re.MULTILINE)
    assert len(commands) == 5
    for command in commands[:4]:
        words = command.split(" > ")[0].split()
        if "--trials" in words:
            words[words.index("--trials") + 1] = "2"
            words[words.index("--epochs") + 1] = "1"
        ended = stsbp(*words)
        assert ended.exit_code == 0, ended.stderr
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        code = block.replace("jobs=2,", 'backend="numpy",').replace("epochs=2,", "epochs=1,")
        exec(compile(code, str(PAGE), "exec"), names)
    assert len(names["trials"]) == 2
    assert names["run"].settings.net == "64"


def test_train_words_are_the_settings() -> None:
    typed = {"dataset": "digits", "loss": "hamming", "tau_m": 7.25, "augment_flip": True, "net": "8-8", "test_every": 0}
    config = resolve([SettingsSource("test", typed)])
    words = train_words(config, "runs/x")
    assert words[:2] == ["train", "digits"]
    assert words[-2:] == ["--out", "runs/x"]
    options = {"--loss": "hamming", "--tau-m": "7.25", "--net": "8-8"}
    assert all(words[words.index(name) + 1] == value for name, value in options.items())
    assert "--augment-flip" in words
    assert "--test-every" not in words


def test_trials_have_the_trackers_of_the_sweep(sweep: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from pathlib import Path\n\nclass Lines:\n"
        "    def __init__(self, run):\n        self.file = Path('told').open('a')\n"
        "    def write(self, record):\n        self.file.write(record['kind'] + '\\n')\n"
        "    def close(self, *, finished):\n        self.file.write(f'{finished}\\n')\n        self.file.close()\n"
    )
    (tmp_path / "sweep_tracker.py").write_text(code)
    monkeypatch.delitem(sys.modules, "sweep_tracker", raising=False)
    assert "the module has no 'Line'" in sweep("--vary", "threshold=0.5,1", "--track", "sweep_tracker:Line").stderr
    assert not (tmp_path / "s" / "trial-0").exists()
    done = sweep("--vary", "threshold=0.5,1", "--trials", 1, "--track", "sweep_tracker:Lines")
    assert done.exit_code == 0, done.output
    told = (tmp_path / "told").read_text().splitlines()
    assert "epoch" in told
    assert told[-1] == "True"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the studies of two finished trials: a database and a journal."""
    folder = tmp_path_factory.mktemp("stored")
    with quiet():
        for storage in (None, str(folder / "study.log")):
            study = Study.join(open_storage(storage, folder, TrialHeartbeat()), "s", identity())
            study.next_sampler(0, parallel=False)
            for number in range(2):
                trial = study.ask()
                trial.belongs("w", f"trial-{number}", ["--backend", "cpu"])
                trial.report({1: 0.25, 2: 0.5})
                trial.complete([0.5 + number / 8], {"accuracy": 0.5 + number / 8, "epoch": 2.0})
    return folder


def read_and_join(folder: Path, storage: str | None) -> Iterator[Callable[[], object]]:
    """Reading the study of a folder, to show it and to continue it."""
    yield lambda: package.load_sweep(folder, storage=storage)
    yield lambda: Study.join(open_storage(storage, folder, TrialHeartbeat()), "s", identity())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update trial_values set value='abc'", "trial 0 has the value 'abc' of an objective, which is not a finite"),
        ("update trial_values set value=9e999", "trial 0 has the value inf of an objective"),
        ("update trial_params set param_value=99", "trial 0 has threshold = 99.0, which is not one of the varied"),
        ("update trial_params set distribution_json='{}'", "is damaged, or was not made by stsbp sweep: KeyError"),
        (
            "update trial_params set distribution_json='x'",
            "is damaged, or was not made by stsbp sweep: JSONDecodeError",
        ),
        ("update trial_user_attributes set value_json='{'", "is damaged, or was not made by stsbp sweep"),
        ("update trial_user_attributes set value_json='null'", "trial 0 has the run None"),
        ("update trial_user_attributes set value_json='3' where key='options'", "trial 0 has the options 3"),
        ("update trial_user_attributes set value_json='3' where key='figures'", "trial 0 has figures that cannot be"),
        ("update trial_user_attributes set value_json='\"../x\"' where key='folder'", "trial 0 has the run '../x'"),
        ("update study_user_attributes set value_json='{'", "is damaged, or was not made by stsbp sweep"),
        ("update study_user_attributes set value_json='[1]'", "is damaged"),
        ("update trials set state='X'", "is damaged, or was not made by stsbp sweep: LookupError"),
        ("update trials set datetime_start='x'", "is damaged, or was not made by stsbp sweep: ValueError"),
        ("update trials set datetime_complete=NULL", "trial 0 is finished, but has no time at which it ended"),
        ("update trials set number=7", "should have the numbers from 0 on, but have 7"),
        ("delete from trials where number=0", "should have the numbers from 0 on, but have 1"),
        ("delete from trial_params", "trial 0 has values of other settings: none"),
        ("update study_directions set direction='MINIMIZE'", "its directions are not those of its objectives"),
        ("drop table trial_values", "trial 0 is finished, but has not one value for each objective"),
        ("delete from trial_values", "trial 0 is finished, but has not one value for each objective"),
    ],
)
def test_a_damaged_database_is_named(change: str, message: str, stored: Path, tmp_path: Path) -> None:
    database = sqlite3.connect(shutil.copy(stored / "study.db", tmp_path))
    database.execute(change)
    database.commit()
    database.close()
    for reading in read_and_join(tmp_path, None):
        with pytest.raises((FileError, CheckpointError), match=re.escape(message)) as error, quiet():
            reading()
        assert str(tmp_path / "study.db") in str(error.value) or "about itself is damaged" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"SQLite format 3\0" + b"\x5a" * 5000])
def test_a_file_that_is_no_database_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises((FileError, ConfigError), match=r"study\.db|0 studies"):
        package.load_sweep(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [b"\x80\x81", *lines], "its first line is not the record that makes a study"),
        (lambda lines: lines[1:], "its first line is not the record that makes a study"),
        (lambda lines: [lines[0][:10]], "its first line is not the record that makes a study"),
        (lambda lines: [b"a text\n"], "its first line is not the record that makes a study"),
        (lambda lines: [*lines, b"null\n"], "is damaged, or was not made by stsbp sweep: TypeError"),
        (lambda lines: [*lines, b'{"op_code": 999}\n'], "is damaged, or was not made by stsbp sweep: AssertionError"),
        (lambda lines: [*lines, b'{"op_code": 4}\n'], "is damaged, or was not made by stsbp sweep: KeyError"),
        (lambda lines: [*lines, b"[" * 200_000 + b"\n"], "is damaged, or was not made by stsbp sweep: RecursionError"),
        (lambda lines: [*lines, b"1" * 10_000 + b"\n"], "is damaged, or was not made by stsbp sweep: ValueError"),
        (lambda lines: [*lines[:5], b"{\n", *lines[5:]], "is damaged, or was not made by stsbp sweep: JSONDecodeError"),
        (lambda lines: [x.replace(b"[0.625]", b'["abc"]') for x in lines], "trial 1 has the value 'abc'"),
    ],
)
def test_a_damaged_journal_is_named(change: Any, message: str, stored: Path, tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    content = b"".join(change((stored / "study.log").read_bytes().splitlines(keepends=True)))
    journal.write_bytes(content)
    for reading in read_and_join(tmp_path, str(journal)):
        with pytest.raises((FileError, CheckpointError), match=re.escape(message)) as error, quiet():
            reading()
        assert str(journal) in str(error.value)
    # Joining a study records that it should be made, and never changes what is there.
    assert journal.read_bytes().startswith(content)


@pytest.mark.parametrize("cut", [b'{"op_code": 4, "worker_id":"x"', b'{"op_code": 4, "work\n'])
def test_a_record_that_was_cut_is_told_and_moved_away(cut: bytes, stored: Path, tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    whole = (stored / "study.log").read_bytes()
    journal.write_bytes(whole + cut)
    with pytest.warns(UserWarning, match=r"the last record of .*study\.log was cut, as by a crash .* is left out"):
        assert len(package.load_sweep(storage=journal).trials) == 2
    assert journal.read_bytes() == whole + cut
    texts: list[str] = []
    with quiet():
        study = Study.join(open_storage(str(journal), tmp_path, TrialHeartbeat(), warn=texts.append), "s", identity())
        study.next_sampler(0, parallel=False)
        study.ask().fail("a reason")
    assert len(texts) == 1
    assert re.search(rf"its {len(cut)} bytes were moved to .*study\.log\.cut", texts[0])
    assert (tmp_path / "study.log.cut").read_bytes() == cut.rstrip(b"\n") + b"\n"
    assert journal.read_bytes().startswith(whole)
    assert [row["state"] for row in package.load_sweep(storage=journal).trials] == ["finished", "finished", "failed"]


def test_a_storage_must_be_a_file(sweep: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "s").mkdir()
    for name, kind in (("pipe", "a pipe"), ("/dev/zero", "a device"), (".", "a folder")):
        for storage in (name, f"sqlite:///{name}"):
            assert f"it is {kind}, not a regular file" in sweep(*TWO, "--storage", storage).stderr
    for arguments in (("--storage", "pipe"), ()):
        os.mkfifo(tmp_path / "s" / "study.db") if not arguments else None
        assert "it is a pipe, not a regular file" in sweep(*TWO, *arguments).stderr


def test_the_lock_of_a_killed_sweep_is_removed_and_one_that_leads_nowhere_is_named(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journals, "_LOCK_WAIT", 0.2)
    (tmp_path / "deep").mkdir()
    shutil.copy(stored / "study.log", tmp_path / "deep")
    texts: list[str] = []
    journal = open_journal("deep/study.log", texts.append, make=True)
    lock = tmp_path / "deep" / "study.log.lock"
    journal.lock.acquire()
    # It leads to the journal also if the folder is moved.
    assert os.path.samefile(lock, tmp_path / "deep" / "study.log")
    journal.lock.grace_period = 1
    other = open_journal("deep/study.log", texts.append, make=True)
    other.lock.grace_period = 1
    other.set_study_user_attr(0, "key", 1)
    assert not os.path.lexists(lock)
    assert len(texts) == 1
    assert re.search(
        r"waiting for up to 1 seconds for the lock .*/deep/study\.log\.lock, which a sweep .* killed", texts[0]
    )
    lock.symlink_to("deep/study.log")
    with pytest.raises(FileError, match=r"is a link to deep/study\.log, which is not there; if no other sweep uses"):
        Study.join(open_storage("deep/study.log", tmp_path, TrialHeartbeat()), "s", identity()).ask()
