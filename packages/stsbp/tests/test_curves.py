"""Accuracy against time, spikes and noise: what is disturbed, what is decided when, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.cli import curves
from stsbp.datasets import registry
from stsbp.datasets.base import FrameSplit
from stsbp.datasets.sequences import SequenceSplit
from stsbp.errors import FileError
from stsbp.plots import save
from stsbp.training import curves as training_curves
from stsbp.training.curves import over_time
from stsbp.training.evaluate import evaluate
from stsbp.training.noise import KINDS, DisturbedSplit, disturbed, parse_noise
from stsbp.training.operations import activity, synaptic_operations
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.models.encoders.packed import PackedFrames, unpacked
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Int64, UInt8

EVENTS = (np.random.default_rng(0).random((12, 5, 2, 6, 7)) < 0.1).astype(np.uint8)
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 1, 9, 8), dtype=np.uint8)
NUMBERS: Int64 = np.array([3, 0, 11, 7, 5])


def events(name: str, amount: float, **more: Any) -> UInt8:
    """The disturbed events."""
    return unpacked(disturbed(PackedFrames.of(EVENTS), NUMBERS, name, amount, **more))


@pytest.mark.parametrize("name", KINDS["events"])
def test_nothing_is_changed_by_an_amount_of_0(name: str) -> None:
    assert np.array_equal(events(name, 0), EVENTS)


def test_lost_events_are_a_part_of_those_that_were_there() -> None:
    fewer, few = events("lost", 0.3), events("lost", 0.6)
    assert np.all(few <= fewer)
    assert np.all(fewer <= EVENTS)
    assert fewer.sum() / EVENTS.sum() == pytest.approx(0.7, abs=0.1)
    assert events("lost", 1).sum() == 0


def test_moved_events_stay_in_their_pixel_and_within_reach() -> None:
    alone = np.zeros_like(EVENTS)
    alone[6, :, 1, 2, 3] = 1
    times = set()
    for seed in range(20):
        moved = unpacked(disturbed(PackedFrames.of(alone), NUMBERS, "jitter", 2, seed))
        t, _, *place = np.nonzero(moved)
        assert [set(x.tolist()) for x in place] == [{1}, {2}, {3}]
        assert len(t) == len(NUMBERS)
        times |= set(t.tolist())
    assert times == {4, 5, 6, 7, 8}


def test_moved_events_stay_within_the_steps_of_their_sample() -> None:
    lengths: Int64 = np.array([12, 3, 1, 7, 5])
    inputs = EVENTS * (np.arange(12)[:, None] < lengths)[:, :, None, None, None].astype(np.uint8)
    moved = unpacked(disturbed(PackedFrames.of(inputs), NUMBERS, "jitter", 8, lengths=lengths))
    for sample, length in enumerate(lengths):
        assert moved[length:, sample].sum() == 0
        assert moved[:, sample].sum() > 0


@pytest.mark.parametrize("name", KINDS["events"])
def test_events_after_the_end_of_a_sample_are_left_out(name: str) -> None:
    lengths: Int64 = np.array([12, 3, 1, 7, 5])
    inside = (np.arange(12)[:, None] < lengths)[:, :, None, None, None].astype(np.uint8)
    disturbed_inputs = [
        unpacked(disturbed(form(inputs), NUMBERS, name, 0.5 if name != "jitter" else 4, lengths=lengths))
        for form in (PackedFrames.of, np.asarray)
        for inputs in (EVENTS * inside, EVENTS)
    ]
    assert np.array_equal(disturbed_inputs[0], disturbed_inputs[1])
    assert np.array_equal(disturbed_inputs[2], disturbed_inputs[3])


def test_added_events_are_as_many_as_asked_for() -> None:
    silent = np.zeros_like(EVENTS)
    lengths: Int64 = np.array([12, 3, 1, 7, 5])
    counts = unpacked(disturbed(silent, NUMBERS, "added", 0.25, lengths=lengths))
    assert counts.sum(axis=(0, 2, 3, 4)).tolist() == np.rint(0.25 * lengths * 84).astype(int).tolist()
    assert all(counts[length:, sample].sum() == 0 for sample, length in enumerate(lengths))
    more = events("added", 0.02)
    assert np.all(more >= EVENTS)
    assert more.sum() > EVENTS.sum()


def test_events_that_meet_are_one_bit_and_counts_add_up() -> None:
    many = np.zeros((3, 1, 1), np.uint8)
    many[:] = 100
    for seed in range(30):
        # Three that meet are too many for a byte.
        moved = unpacked(disturbed(many, NUMBERS[:1], "jitter", 2, seed))
        assert sorted(moved[moved > 0].tolist()) in ([100, 100, 100], [100, 200], [255])
    bits = unpacked(disturbed(PackedFrames.of(many // 100), NUMBERS[:1], "jitter", 2))
    assert bits.max() == 1
    assert bits.sum() <= 3


def test_a_draw_belongs_to_the_sample_and_not_to_its_batch() -> None:
    for name, amount in (("jitter", 2), ("lost", 0.5), ("added", 0.05)):
        batch = events(name, amount)
        for place in range(len(NUMBERS)):
            one = PackedFrames.of(EVENTS[:, place : place + 1])
            alone = unpacked(disturbed(one, NUMBERS[place : place + 1], name, amount))
            assert np.array_equal(alone[:, 0], batch[:, place])
        assert not np.array_equal(events(name, amount, seed=1), batch)


def test_pixels_change_by_no_more_than_asked_for_and_stay_bytes() -> None:
    numbers: Int64 = np.arange(6)
    noisy = disturbed(IMAGES, numbers, "noise", 40)
    assert isinstance(noisy, np.ndarray)
    change = noisy.astype(int) - IMAGES
    assert np.abs(change).max() <= 40
    assert (change > 20).any()
    assert (change < -20).any()
    lost = disturbed(IMAGES, numbers, "lost", 0.4)
    assert isinstance(lost, np.ndarray)
    zeroed = lost != IMAGES
    assert not lost[zeroed].any()
    assert zeroed.mean() == pytest.approx(0.4, abs=0.06)


def test_inputs_without_rows_are_disturbed_like_images() -> None:
    images = np.random.default_rng(0).integers(1, 256, (6, 10), np.uint8)
    for name, amount in (("lost", 0.5), ("noise", 40)):
        disturbed_inputs = disturbed(images, np.arange(6), name, amount)
        as_images = disturbed(images.reshape(6, 1, 2, 5), np.arange(6), name, amount)
        assert isinstance(disturbed_inputs, np.ndarray)
        assert isinstance(as_images, np.ndarray)
        assert np.array_equal(disturbed_inputs, as_images.reshape(6, 10))
        assert not np.array_equal(disturbed_inputs, images)


def test_a_disturbed_split_keeps_labels_lengths_and_targets() -> None:
    rasters = np.swapaxes(EVENTS, 0, 1)
    lengths: Int64 = np.array([12, 3, 1, 7, 5])
    split = SequenceSplit(rasters, rasters[:, :, 0, 0], np.arange(5), lengths)
    other = DisturbedSplit(split, "added", 0.5)
    some: Int64 = np.array([1, 4])
    assert len(other) == 5
    assert other.labels is split.labels
    assert other.lengths is lengths
    assert np.array_equal(other.targets(some), split.targets(some))
    expected = disturbed(split.stored(some), some, "added", 0.5, lengths=lengths[some])
    assert np.array_equal(other.inputs(some), unpacked(expected))
    plain = DisturbedSplit(FrameSplit(FrameSplit.store(rasters), np.arange(5), 12), "lost", 0.5)
    assert plain.lengths is None


@pytest.mark.parametrize(
    ("text", "coding", "words"),
    [
        ("noise=1", "events", "inputs of this run are events, which take jitter, lost, added"),
        ("jitter=1", "direct", "inputs of this run are images, which take noise, lost"),
        ("jitter=1,0.5", "events", "amounts are whole numbers from 0 to 100000"),
        ("lost=1.5", "events", "amounts are numbers from 0 to 1"),
        ("lost=nan", "events", "got 'nan'"),
        ("lost=", "events", "got ''"),
    ],
)
def test_unknown_disturbances_are_refused(text: str, coding: Any, words: str) -> None:
    with pytest.raises(Exception, match=words):
        parse_noise(text, coding)


def test_amounts_are_sorted_and_begin_with_0() -> None:
    assert parse_noise("lost=0.5,0.1", "direct") == ("lost", (0.0, 0.1, 0.5))
    assert parse_noise("lost", "direct") == ("lost", KINDS["direct"]["lost"].amounts)


@pytest.fixture
def run(train_tiny: Callable[..., Result], tmp_path: Path) -> Path:
    """A run that has learned something."""
    path = tmp_path / "run"
    assert train_tiny(path, "--epochs", 12).exit_code == 0
    return path


def test_the_last_step_decides_like_an_evaluation(run: Path) -> None:
    trained = load_trained(RunFolder(run), "last", NumpyBackend())
    from stsbp.training.build import load_data

    samples = trained.samples(load_data(trained.settings), "test")
    curve = over_time(trained.task, trained.state, samples, 7)
    assert curve.steps.tolist() == [1, 2, 3]
    for step in (1, 2, 3):
        outputs = trained.predict(samples.inputs(np.arange(30))).spikes
        cut = outputs * (np.arange(3) < step)[:, None, None].astype(np.uint8)
        # Of a cut train the counts are those of its first steps.
        expected = (cut.sum(axis=0, dtype=int).argmax(axis=1) == samples.labels).mean()
        assert curve.accuracy_spike_count[step - 1] == expected
        nearest = trained.decode(outputs[:step]).nearest
        assert curve.accuracy[step - 1] == (nearest == samples.labels).mean()
    assert curve.operations[-1] == pytest.approx(
        sum(synaptic_operations(trained.task, trained.state, samples).values())
    )
    spikes = activity(trained.task, trained.state, samples).spikes
    assert curve.spikes[-1] == pytest.approx(sum(x.sum() for x in spikes.values()))
    assert np.all(np.diff(curve.spikes) >= 0)
    classes = np.stack([trained.decode(outputs[:step]).nearest for step in (1, 2, 3)])
    settled = [next(s for s in (1, 2, 3) if (classes[s - 1 :, i] == classes[-1, i]).all()) for i in range(30)]
    assert curve.settled == pytest.approx(np.mean(settled))


def test_the_command_prints_draws_and_gives_json(stsbp: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the curves")
    stsbp("train", "patterns", "--epochs", 1, "--out", "trains")
    result = stsbp("curves", "run", "trains", "--plot", "curves.png", "--json")
    assert result.exit_code == 0, result.output
    of_classes, of_trains = (json.loads(line) for line in result.stdout.splitlines())
    evaluated = json.loads(stsbp("evaluate", "run", "--json").stdout)
    assert of_classes["time"][-1]["accuracy"] == evaluated["accuracy"]
    assert set(of_classes["noise"]) == {"noise", "lost"}
    for rows in of_classes["noise"].values():
        assert rows[0]["amount"] == 0
        assert {key: rows[0][key] for key in ("accuracy", "loss", "f1")} == {
            key: evaluated[key] for key in ("accuracy", "loss", "f1")
        }
        assert rows[-1]["loss"] != rows[0]["loss"]
    assert "time" not in of_trains
    assert [row["amount"] for row in of_trains["noise"]["jitter"]] == [0, 1, 2, 4, 8]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = stsbp("curves", "run", "--noise", "lost=0.5", "--samples", 10).stdout
    assert text.startswith(f"run: 10 test samples of digits, after update {of_classes['step']}")
    assert "accuracy by lost (share of the pixels that are set to 0):" in text
    assert "accuracy by noise" not in text


def test_runs_of_classes_and_of_spike_trains_have_tables_and_panels_of_their_own(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(Path("_a$b$"), "--epochs", 1)
    stsbp("train", "patterns", "--epochs", 1, "--net", 8, "--steps", 20, "--out", "trains")
    pytest.importorskip("matplotlib", reason="draws the curves")
    drawn: list[Any] = []

    def noted(figure: Any, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(curves, "save", noted)
    result = stsbp("curves", "_a$b$", "trains", "--noise", "lost=0.5", "--plot", "curves.png")
    assert result.exit_code == 0, result.output
    headings = [line for line in result.stdout.splitlines() if " by lost" in line]
    assert headings == [
        "accuracy by lost (share of the pixels that are set to 0):",
        "F1 within 1 step by lost (share of the events that are lost):",
        "F1 within 1 step by chance, by lost:",
        "timing error, median (quartiles), by lost:",
    ]
    panels = [panel for panel in drawn[0].axes if panel.get_ylabel()]
    assert [panel.get_ylabel() for panel in panels] == ["accuracy, %"] * 3 + ["F1 within 1 step, %"]
    assert [len(panel.lines) for panel in panels] == [1, 1, 1, 2]
    legend = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert legend == [r"van-rossum, _a\$b\$", "van-rossum, trains", "F1 by chance"]


def test_the_command_refuses_a_plot_before_it_computes_and_prints_before_it_draws(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="draws the curves")
    train_tiny(tmp_path / "run", "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(curves, "load_trained", None)
        (tmp_path / "notes.png").write_text("somebody's own")
        refused(stsbp("curves", "run", "--plot", "notes.png"), "notes.png is there already and is not a plot of stsbp")

    def full(*_: Any) -> None:
        raise FileError("no space left")

    monkeypatch.setattr(curves, "save", full)
    result = stsbp("curves", "run", "--noise", "lost=0.5", "--plot", "curves.png")
    refused(result, "no space left")
    assert "accuracy by lost" in result.stdout


def test_amounts_of_a_noise_that_is_named_twice_are_added_and_none_is_measured_once(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run", "--epochs", 1)
    measured: list[tuple[str, float]] = []

    def noted(task: Any, state: Any, split: DisturbedSplit, *more: Any, **options: Any) -> Any:
        measured.append((split.name, split.amount))
        return evaluate(task, state, split, *more, **options)

    monkeypatch.setattr(training_curves, "evaluate", noted)
    noises = ("--noise", "lost=0.1", "--noise", "noise=9", "--noise", "lost=0.5")
    curves_of_noises = json.loads(stsbp("curves", "run", *noises, "--json").stdout)["noise"]
    assert {name: [row["amount"] for row in rows] for name, rows in curves_of_noises.items()} == {
        "lost": [0, 0.1, 0.5],
        "noise": [0, 9],
    }
    assert curves_of_noises["noise"][0] == curves_of_noises["lost"][0]
    assert measured == [("lost", 0), ("lost", 0.1), ("lost", 0.5), ("noise", 9)]


def test_the_command_takes_the_samples_of_other_data(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for name, count in (("own", 40), ("other", 23)):
        inputs = (random.random((count, 6, 8)) < 0.3).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, labels=np.arange(count) % 3)
    training = ("sequences:own.npz", "--steps", 6, "--epochs", 3, "--net", 12, "--out", "run")
    assert stsbp("train", *training).exit_code == 0
    result = stsbp("curves", "run", "--on", "sequences:other.npz", "--json", "--noise", "lost=1")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    evaluated = json.loads(stsbp("evaluate", "run", "--on", "sequences:other.npz", "--json").stdout)
    assert (
        (figures["samples"], figures["dataset"])
        == (23, "sequences:other.npz")
        == (evaluated["samples"], figures["dataset"])
    )
    assert figures["time"][-1]["accuracy"] == evaluated["accuracy"]
    assert figures["noise"]["lost"][1]["rates"]["linear1"] == 0
    assert figures["seen_in_training"] == 0
    assert stsbp("curves", "run", "--on", "digits").exit_code == 1
    with np.load(tmp_path / "own.npz") as arrays:
        np.savez(tmp_path / "again.npz", **arrays)
    result = stsbp("curves", "run", "--on", "sequences:again.npz", "--json", "--samples", 20, "--noise", "lost=1")
    in_training = json.loads(result.stdout)["seen_in_training"]
    assert 0 < in_training <= 20
    assert f"{in_training} of the 20 samples have the same content as samples that run was trained on" in result.stderr


def test_runs_over_other_samples_are_marked(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="draws the curves")
    random = np.random.default_rng(3)
    for folder in ("pa", "pb", "pc"):
        (tmp_path / folder).mkdir()
        inputs = (random.random((20, 6, 8)) < 0.3).astype(np.uint8)
        np.savez(tmp_path / folder / "sequences.npz", inputs=inputs, labels=np.arange(20) % 2)
    trained: dict[str, tuple[Any, ...]] = {
        "a": ("pa",),
        "again": ("pa", "--seed", 5),
        "other": ("pb",),
        "drawn": ("pa", "--split-seed", 4),
    }
    for name, (folder, *options) in trained.items():
        training = ("sequences", "--data-dir", folder, "--steps", 6, "--epochs", 1, "--net", 8)
        result = stsbp("train", *training, *options, "--out", name)
        assert result.exit_code == 0, result.output
    drawn: list[Any] = []

    def noted(figure: Any, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(curves, "save", noted)
    for others in (("other",), ("drawn",), ("again", "other")):
        result = stsbp("curves", "a", *others, "--noise", "lost=0.5", "--plot", "curves.png")
        assert result.exit_code == 0, result.output
        titles = [line for line in result.stdout.splitlines() if line.endswith(":")]
        assert len(titles) == 5
        assert all(line.endswith(" *:") for line in titles)
        assert result.stdout.splitlines()[-1].startswith("* not comparable: of other samples")
        panels = [panel for panel in drawn[-1].axes if panel.get_ylabel()]
        assert len(panels) == 3
        assert {panel.get_ylabel() for panel in panels} == {"accuracy, % *"}
        assert all(panel.get_xlabel().endswith("\n* not comparable") for panel in panels)
    for comparable in (["a"], ["a", "again"]):
        result = stsbp("curves", *comparable, "--noise", "lost=0.5", "--plot", "curves.png")
        assert "*" not in result.stdout
        assert "*" not in "".join(panel.get_xlabel() + panel.get_ylabel() for panel in drawn[-1].axes)
    # All of them are measured on the same samples.
    result = stsbp("curves", "a", "other", "--on", "sequences:pc", "--noise", "lost=0.5")
    assert result.exit_code == 0, result.output
    assert "*" not in result.stdout


def test_the_command_takes_other_data_where_those_of_the_run_are_not_installed(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stsbp("train", "patterns", "--epochs", 1, "--net", 8, "--steps", 20, "--out", "trains")
    random = np.random.default_rng(0)
    inputs, targets = ((random.random((5, 20, width)) < 0.1).astype(np.uint8) for width in (64, 10))
    np.savez(tmp_path / "other.npz", inputs=inputs, targets=targets)
    monkeypatch.delitem(registry._BUILT_IN, "patterns")
    for command in (("curves", "--noise", "lost=0.5"), ("evaluate",)):
        result = stsbp(*command, "trains", "--on", "sequences:other.npz")
        assert result.exit_code == 0, result.output
        assert "cannot check whether" in result.stderr
        assert "trained on some of these samples: unknown data set 'patterns'" in result.stderr


def test_the_command_refuses(stsbp: Callable[..., Result], run: Path, refused: Callable[..., None]) -> None:
    refused(stsbp("curves", run, "--on", "digits"), f"{run} was trained on digits; leave --on out")
    stsbp("train", "patterns", "--epochs", 1, "--net", 8, "--steps", 20, "--out", "trains")
    result = stsbp("curves", "trains", run, "--noise", "jitter")
    refused(result, "inputs of this run are images")
    assert "trains: jitter" not in result.stderr
    refused(stsbp("curves", "nothing"), "nothing")
