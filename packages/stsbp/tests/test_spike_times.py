"""Measures of spike times of runs: in `evaluate`, in `metrics.jsonl`, in `compare`, `curves` and reports."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp import measures, records
from stsbp.cli import compare
from stsbp.datasets import load
from stsbp.report.spike_times import spike_time_figures
from stsbp.training.compare import facts
from stsbp.training.timing_text import chance_f1, latency_text, measure_rows, share_rows, timing_text
from stsbp_spec.models.encoders import LabelCode, encode_repeat
from stsbp_spec.models.losses import Hamming, VanRossum
from stsbp_spec.typing import AnyArray

Call = Callable[..., Result]
MOTOR = ("--net", 12, "--epochs", 2, "--batch-size", 4, "--limit", 12, "--steps", 25, "--lr", 0.01)


@pytest.fixture
def motor(stsbp: Call, tmp_path: Path) -> Path:
    """A run whose labels are spike trains."""
    result = stsbp("train", "motor", *MOTOR, "--out", tmp_path / "motor")
    assert result.exit_code == 0, result.output
    return tmp_path / "motor"


def evaluated(stsbp: Call, run: Path, *options: object) -> dict[str, Any]:
    result = stsbp("evaluate", run, *options, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def shuffled(samples: int, seed: int) -> AnyArray:
    """The partners of all shuffles of a split, one after the other."""
    count = min(samples - 1, -(-100 // samples))
    return np.concatenate([measures.partners(samples, seed, shuffle) for shuffle in range(1, count + 1)])


def test_evaluate_measures_the_spike_times_of_a_run(stsbp: Call, motor: Path) -> None:
    test: Any = load("motor", steps=25).test
    samples = np.arange(len(test))
    run = package.load_run(motor, backend="numpy")
    outputs, targets = run.predict(test.inputs(samples)).spikes, test.targets(samples)
    psp = run.network.output_psp
    found = evaluated(stsbp, motor, "--tolerances", "3,0,3", "--cost", 0.5, "--seed", 4)
    measured, chance, by_neuron = found["measures"], found["measures"]["chance"], found["by_neuron"]

    own = measures.SpikeMeasures((0, 3), 0.5)
    own.add(outputs, targets)
    expected = own.record()
    expected["van_rossum"] = {"tau": psp.tau_s, "mean": found["van_rossum"]}
    expected["hamming"] = found["hamming"]
    assert {name: value for name, value in measured.items() if name != "chance"} == expected
    chance_by_neuron = by_neuron.pop("chance")
    assert by_neuron == {"neurons": [str(n) for n in range(16)], **own.record_by_neuron()}

    partner = shuffled(60, 4)
    assert len(partner) == 2 * 60
    repeated, others = np.tile(outputs, (1, 2, 1)), targets[:, partner]
    by_chance = measures.SpikeMeasures((0, 3), 0.5)
    by_chance.add(repeated, others)
    assert chance_by_neuron == by_chance.record_by_neuron()
    expected = {"seed": 4, "shuffles": 2, **by_chance.record()}
    assert chance.pop("van_rossum") == {
        "tau": psp.tau_s,
        "mean": pytest.approx(VanRossum().distances(repeated, others, psp).mean(), rel=1e-12),
    }
    assert chance.pop("hamming") == pytest.approx(Hamming().distances(repeated, others, psp).mean(), rel=1e-12)
    assert chance == expected
    # The figures that were there before have their own tolerance.
    assert found["tolerance"] == 1
    assert found["f1"] == measures.precision_recall_f1(outputs, targets, 1).f1[0]


def test_evaluate_measures_labels_that_are_classes(stsbp: Call, train_tiny: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(run, "--epochs", 20, "--steps", 8, "--label-pattern", "01")
    trained = package.load_run(run, backend="numpy")
    test = load("digits", limit=50, holdout=30).test
    predicted = trained.predict(test.inputs(np.arange(30)))
    targets = encode_repeat(test.labels, 10, 8, LabelCode("01"))
    found = evaluated(stsbp, run)
    own = measures.SpikeMeasures()
    own.add(predicted.spikes, targets, None, test.labels)
    measured, chance = found["measures"], found["measures"]["chance"]
    assert measured["latency"] == own.record()["latency"]
    assert measured["latency"]["of"] == "class neuron"
    assert measured["f1"] == own.record()["f1"]
    assert found["by_neuron"]["neurons"] == list(predicted.names)
    partner = shuffled(30, 0)
    assert (chance["seed"], chance["shuffles"], chance["samples"]) == (0, 4, 120)
    by_chance = measures.SpikeMeasures()
    by_chance.add(np.tile(predicted.spikes, (1, 4, 1)), targets[:, partner], None, test.labels[partner])
    assert chance["latency"] == by_chance.record()["latency"]
    assert chance["f1"] == by_chance.record()["f1"]
    assert chance["accuracy"] == (np.tile(predicted.nearest, 4) == test.labels[partner]).mean()
    assert chance["accuracy_spike_count"] == (np.tile(predicted.counted, 4) == test.labels[partner]).mean()
    assert chance["accuracy"] < 0.2 < found["accuracy"]


def test_measures_do_not_depend_on_the_size_of_batches(stsbp: Call, motor: Path) -> None:
    whole = evaluated(stsbp, motor, "--batch-size", 60)
    for size in (1, 7):
        parts = evaluated(stsbp, motor, "--batch-size", size)
        assert {**parts, "seconds": 0} == {**whole, "seconds": 0}


def test_samples_of_different_lengths_are_compared_in_the_steps_of_both(stsbp: Call, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    inputs = (random.random((12, 10, 6)) < 0.4).astype(np.uint8)
    targets = (random.random((12, 10, 2)) < 0.4).astype(np.uint8)
    lengths = np.array([3, 10, 5, 7, 10, 2, 9, 10, 4, 6, 8, 10])
    arrays: dict[str, Any] = {
        "inputs": inputs,
        "targets": targets,
        "lengths": lengths,
        "split": (np.arange(12) % 2).astype(np.uint8),
    }
    np.savez(tmp_path / "own.npz", **arrays)
    options = ("--net", 8, "--epochs", 3, "--batch-size", 3, "--lr", 0.05, "--out", tmp_path / "run")
    result = stsbp("train", f"sequences:{tmp_path / 'own.npz'}", *options)
    assert result.exit_code == 0, result.output
    run = package.load_run(tmp_path / "run", backend="numpy")
    test_lengths = lengths[1::2]
    outputs = run.predict(inputs[1::2].swapaxes(0, 1), test_lengths).spikes
    wanted = targets[1::2].swapaxes(0, 1)
    found = evaluated(stsbp, tmp_path / "run")["measures"]
    own = measures.SpikeMeasures()
    own.add(outputs, wanted, test_lengths)
    assert found["f1"] == own.record()["f1"]
    assert found["victor_purpura"] == own.record()["victor_purpura"]
    partner = shuffled(6, 0)
    by_chance = measures.SpikeMeasures()
    common = np.minimum(np.tile(test_lengths, 5), test_lengths[partner])
    by_chance.add(np.tile(outputs, (1, 5, 1)), wanted[:, partner], common)
    assert found["chance"]["f1"] == by_chance.record()["f1"]
    assert found["chance"]["victor_purpura"] == by_chance.record()["victor_purpura"]
    assert by_chance.record()["timing_error"]["pairs"] > 0


def test_evaluate_prints_the_measures_beside_chance(stsbp: Call, motor: Path) -> None:
    found = evaluated(stsbp, motor, "--tolerances", "0,4", "--seed", 9)
    text = stsbp("evaluate", motor, "--tolerances", "0,4", "--seed", 9).stdout
    measured = found["measures"]
    chance = measured["chance"]
    for place, name in enumerate(("within 0 steps", "within 4 steps")):
        shares = [measured[key][place] for key in ("precision", "recall", "f1")] + [chance["f1"][place]]
        assert [name, *(f"{share:.2%}" for share in shares)] in [line.split("  ") for line in _squeezed(text)]
    assert f"F1          {found['f1']:.2%}  within 1 step" in text
    for name, key in (("Victor-Purpura", "victor_purpura"), ("van Rossum", "van_rossum")):
        cells = [name, f"{measured[key]['mean']:.4f}", f"{chance[key]['mean']:.4f}"]
        assert cells in [line.split("  ")[:3] for line in _squeezed(text)]
    assert "cost 1 a step" in text
    assert "matches within 4 steps" in text
    (line,) = (line for line in text.splitlines() if line.startswith("F1 within 4 steps by neuron: "))
    assert line.count(", by chance ") == 2
    assert "By chance: for the targets of other samples, shuffled with seed 9." in text


def _squeezed(text: str) -> list[str]:
    """Lines with two spaces between all cells."""
    return ["  ".join(cell.strip() for cell in line.split("  ") if cell.strip()) for line in text.splitlines()]


def test_a_single_sample_has_no_chance_level(stsbp: Call, tmp_path: Path) -> None:
    inputs, targets = np.zeros((3, 6, 4), np.uint8), np.zeros((3, 6, 2), np.uint8)
    inputs[:, 1:4] = targets[:, 3] = 1
    np.savez(tmp_path / "own.npz", inputs=inputs, targets=targets, split=np.array([0, 0, 1], np.uint8))
    stsbp("train", f"sequences:{tmp_path / 'own.npz'}", "--net", 4, "--epochs", 1, "--out", tmp_path / "run")
    assert evaluated(stsbp, tmp_path / "run")["measures"]["chance"] is None
    text = stsbp("evaluate", tmp_path / "run").stdout
    assert "There is no chance level, because there is only one sample." in text
    assert "by chance" not in text
    for command in ("report", "compare", "curves"):
        result = stsbp(command, tmp_path / "run")
        assert result.exit_code == 0, result.output
    assert "only one sample" in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize("option", ["--tolerances=0,1", "--cost=2", "--seed=1"])
def test_options_of_spike_times_are_refused_for_a_readout(
    stsbp: Call, train_tiny: Call, tmp_path: Path, refused: Callable[..., None], option: str
) -> None:
    train_tiny(tmp_path / "run", "--epochs", 1, "--loss", "cross-entropy")
    name = option.partition("=")[0]
    refused(stsbp("evaluate", tmp_path / "run", option), f"{name} applies to output spikes, but the readout")
    found = evaluated(stsbp, tmp_path / "run")
    assert not {"measures", "by_neuron", "tolerance"} & set(found)
    assert stsbp("report", tmp_path / "run").exit_code == 0
    assert "Spike times" not in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--tolerances", "1,x"), "is not a list of numbers of steps below 10^9, such as 0,1,2,5"),
        (("--tolerances", ""), "is not a list of numbers of steps"),
        (("--tolerances", "-1"), "is not a list of numbers of steps"),
        (("--tolerances", "1,1000000000"), "is not a list of numbers of steps"),
        (("--tolerances", ",".join(map(str, range(21)))), "there are 21 tolerances; give at most 20"),
        (("--cost", "nan"), "is not a finite number"),
        (("--cost", "-1"), "is not in the range"),
        (("--seed", "-1"), "is not in the range"),
    ],
)
def test_options_of_spike_times_out_of_range(stsbp: Call, motor: Path, words: tuple[str, ...], reason: str) -> None:
    result = stsbp("evaluate", motor, *words)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.replace("│", " ").split())


# Records


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_evaluations_of_a_run_are_recorded_with_their_measures(stsbp: Call, tmp_path: Path) -> None:
    options = (*MOTOR, "--validation", 4, "--test-every", 1, "--out", tmp_path / "run")
    assert stsbp("train", "motor", *options).exit_code == 0
    evaluations = [line for line in lines_of(tmp_path / "run") if line["kind"] == "evaluation"]
    samples = [(line["epoch"], line["split"], line["measures"]["samples"], line["tolerance"]) for line in evaluations]
    assert samples == [(1, "validation", 4, 1), (1, "test", 60, 1), (2, "validation", 4, 1), (2, "test", 60, 1)]
    assert evaluations[1]["measures"] != evaluations[3]["measures"] == evaluated(stsbp, tmp_path / "run")["measures"]


MEASURES: dict[str, Any] = {
    "samples": 3,
    "tolerances": [0, 2],
    "precision": [0.25, 0.5],
    "recall": [0.5, 1.0],
    "f1": [1 / 3, 2 / 3],
    "timing_error": {
        "tolerance": 2,
        "pairs": 1234,
        "median": -1,
        "quartiles": [-2, 1],
        "errors": [-2, -1, 0, 1, 2],
        "histogram": [400, 400, 34, 400, 0],
    },
    "victor_purpura": {"cost": 0.5, "mean": 1.25},
    "van_rossum": {"tau": 4.0, "mean": 2.5},
    "hamming": 3.0,
    "latency": {"of": "matched spike", "tolerance": 1, "median": 7, "quartiles": [5, 9], "missing": 1},
}
CHANCE = {**copy.deepcopy(MEASURES), "samples": 6, "seed": 0, "shuffles": 2, "f1": [0.125, 0.25], "accuracy": 0.5}
CHANCE["latency"]["missing"] = 3
CHANCE["timing_error"] = {**MEASURES["timing_error"], "pairs": 0, "median": None, "quartiles": None}

LINE: dict[str, Any] = {
    "kind": "evaluation",
    "split": "test",
    "step": 6,
    "epoch": 2,
    "samples": 3,
    "seconds": 0.1,
    "loss": 1.5,
    "rates": {"linear1": 0.1},
    "precision": 0.5,
    "recall": 0.5,
    "f1": 0.5,
    "van_rossum": 2.5,
    "hamming": 3.0,
    "tolerance": 1,
    "measures": {**MEASURES, "chance": CHANCE},
}

FORGED: list[Callable[[dict[str, Any]], object]] = [
    lambda m: m.update(f1=[0.5]),
    lambda m: m.update(precision=[1.5, 1, 1, 1]),
    lambda m: m.update(tolerances=[]),
    lambda m: m.update(chance=3),
    lambda m: m.pop("chance"),
    lambda m: m["chance"].update(tolerances=[0, 6]),
    lambda m: m["chance"].update(seed=2**32),
    lambda m: m["timing_error"].update(histogram=[1]),
    lambda m: m["timing_error"].update(median=None),
    lambda m: m["timing_error"].update(quartiles=[0]),
    lambda m: m["latency"].update(quartiles=None),
    lambda m: m["latency"].update(median="1"),
    lambda m: m["victor_purpura"].update(mean=float("inf")),
    lambda m: m["van_rossum"].pop("tau"),
    lambda m: m.pop("hamming"),
]


@pytest.mark.parametrize("forge", FORGED)
def test_damaged_measures_are_noticed(forge: Callable[[dict[str, Any]], object]) -> None:
    line = copy.deepcopy(LINE)
    assert records.metrics_line(json.dumps(line).encode()) == LINE
    forge(line["measures"])
    with pytest.raises(ValueError, match=r"evaluation\.measures|not finite"):
        records.metrics_line(json.dumps(line).encode().replace(b"Infinity", b"1e999"))


def test_lines_of_earlier_versions_have_no_measures() -> None:
    line = copy.deepcopy(LINE)
    del line["measures"], line["tolerance"]
    assert records.metrics_line(json.dumps(line).encode()) == line


# compare


def test_compare_shows_measures_of_spike_times(stsbp: Call, motor: Path) -> None:
    (fact,) = (facts(motor, print),)
    other = copy.deepcopy(fact)
    other["run"], other["test"]["measures"]["chance"] = "other", None
    other["test"]["measures"]["tolerances"][-1] = 9
    older = copy.deepcopy(fact)
    del older["test"]["measures"]
    table = compare._table([fact, other, older], None)
    rows = {line.partition("  ")[0]: line.split("  ") for line in table.splitlines()}
    cells = {name: [cell.strip() for cell in row[1:] if cell.strip()] for name, row in rows.items()}
    measured = fact["test"]["measures"]
    f1 = [f"{share:.2%}" for share in measured["f1"]]
    assert cells["test F1 within 0 steps"] == [f1[0], f1[0], "-"]
    assert cells["test F1 within 1 step"] == [f"{fact['test']['f1']:.2%}"] * 3
    assert cells["test F1 within 5 steps"] == [f1[3], "-", "-"]
    assert cells["test F1 within 9 steps"] == ["-", f1[3], "-"]
    assert cells["test F1 within 1 step by chance"] == [f"{measured['chance']['f1'][1]:.2%}", "-", "-"]
    assert cells["test timing error within 5 steps"] == [*[timing_text(measured["timing_error"])] * 2, "-"]
    assert cells["test step of first right spike"] == [*[latency_text(measured["latency"])] * 2, "-"]
    assert cells["test Victor-Purpura, cost 1"] == [*[f"{measured['victor_purpura']['mean']:.4f}"] * 2, "-"]
    assert "*" not in table
    assert "test F1 within 1 step by chance " in stsbp("compare", motor).stdout


def test_compare_marks_measures_of_other_samples(stsbp: Call, motor: Path, tmp_path: Path) -> None:
    stsbp("train", "motor", *MOTOR, "--split-seed", 1, "--out", tmp_path / "other")
    rows = [line.partition("  ")[0] for line in stsbp("compare", motor, tmp_path / "other").stdout.splitlines()]
    assert {"test F1 within 0 steps *", "test Victor-Purpura, cost 1 *", "test F1 within 1 step *"} <= set(rows)


# curves


def test_curves_show_chance_and_timing_errors(stsbp: Call, motor: Path) -> None:
    options = ("--noise", "jitter=0,3", "--noise", "lost=0.5")
    record = json.loads(stsbp("curves", motor, *options, "--json").stdout)
    text = stsbp("curves", motor, *options).stdout
    assert record["noise"]["jitter"][0]["measures"] == evaluated(stsbp, motor)["measures"]
    for name in ("jitter", "lost"):
        assert f"F1 within 1 step by {name} (" in text
        assert f"F1 within 1 step by chance, by {name}:" in text
        assert f"timing error, median (quartiles), by {name}:" in text
        for row in record["noise"][name]:
            assert f"{chance_f1(row['measures']):.2%}" in text
            assert timing_text(row["measures"]["timing_error"]) in text


def test_curves_draw_the_chance_level(
    stsbp: Call, motor: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    monkeypatch.setattr("stsbp.cli.curves.save", lambda figure, path: figures.append(figure))
    assert stsbp("curves", motor, "--noise", "jitter=0,3", "--plot", tmp_path / "c.png").exit_code == 0
    record = json.loads(stsbp("curves", motor, "--noise", "jitter=0,3", "--json").stdout)
    (panel,) = figures[0].axes
    assert panel.get_ylabel() == "F1 within 1 step, %"
    own, chance = panel.get_lines()
    assert list(own.get_ydata()) == [100 * row["f1"] for row in record["noise"]["jitter"]]
    assert list(chance.get_ydata()) == [100 * row["measures"]["chance"]["f1"][1] for row in record["noise"]["jitter"]]
    assert [text.get_text() for text in panel.get_legend().get_texts()][-1] == "F1 by chance"


# Reports and text


def test_rows_of_the_measures() -> None:
    assert share_rows({**MEASURES, "chance": None}) == [
        ["spike times", "precision", "recall", "F1", ""],
        ["within 0 steps", "25.00%", "50.00%", "33.33%", ""],
        ["within 2 steps", "50.00%", "100.00%", "66.67%", ""],
    ]
    assert share_rows({**MEASURES, "chance": CHANCE})[1][-2:] == ["12.50%", ""]
    rows = measure_rows({**MEASURES, "chance": CHANCE}, {"accuracy": 0.75})
    assert rows == [
        ["measure", "value", "by chance", ""],
        ["timing error", "-1 (-2 to +1)", "-", "steps, median (quartiles) of 1,234 matches within 2 steps"],
        [
            *("first right spike", "7 (5 to 9)", "7 (5 to 9)"),
            "step, median (quartiles), within 1 step; none in 33.3% of the samples, by chance in 50.0%",
        ],
        ["Victor-Purpura", "1.2500", "1.2500", "a sample, cost 0.5 a step"],
        ["van Rossum", "2.5000", "2.5000", "a sample, time constant 4 steps"],
        ["Hamming", "3.0000", "3.0000", "a sample"],
        ["accuracy", "75.00%", "50.00%", ""],
    ]
    latency = {"of": "class neuron", "tolerance": None, "median": None, "quartiles": None, "missing": 3}
    (row,) = measure_rows({**MEASURES, "chance": None, "latency": latency}, {})[2:3]
    text = "step, median (quartiles), of the neuron of the class; none in 100.0% of the samples"
    assert row == ["first right spike", "-", text]


def test_chance_f1_is_that_of_a_tolerance() -> None:
    assert chance_f1({"chance": CHANCE}, 2) == 0.25
    assert chance_f1({"chance": CHANCE}) is None
    assert chance_f1({"chance": None}, 2) is None


def test_report_draws_spike_times(stsbp: Call, motor: Path) -> None:
    result = stsbp("report", motor)
    assert result.exit_code == 0, result.output
    page = motor.with_suffix(".html").read_text()
    assert "<h2>Spike times</h2>" in page
    for caption in ("F1 of spike times within so many steps", "matches within 5 steps; outlined: by chance"):
        assert caption in page
    assert "F1 within 1 step of each output neuron; in brackets: by chance" in page
    measured = evaluated(stsbp, motor)["measures"]
    assert f"<td>{measured['victor_purpura']['mean']:.4f}</td>" in page
    assert f"<td>{timing_text(measured['chance']['timing_error'])}</td>" in page


def test_figures_of_many_neurons_show_those_with_the_lowest_f1() -> None:
    neurons = 40
    shares = [[0.0] * neurons, [((7 * n) % neurons) / neurons for n in range(neurons)]]
    by_neuron: dict[str, Any] = {"neurons": [f"n{n}" for n in range(neurons)], "f1": shares, "chance": None}
    figures = spike_time_figures({**MEASURES, "chance": CHANCE}, by_neuron)
    captions = [
        "F1 of spike times within so many steps",
        "Timing errors of 1,234 matches within 2 steps",
        "F1 within 2 steps of the 16 output neurons with the lowest",
    ]
    assert [figure.caption for figure in figures] == captions
    drawn = figures[2].chart
    for n in range(neurons):
        assert (f">n{n}<" in drawn) == (shares[1][n] < 16 / neurons)
    (*_, figure) = spike_time_figures({**MEASURES, "chance": CHANCE}, {**by_neuron, "chance": {"f1": shares}})
    assert figure.caption == f"{captions[2]}; in brackets: by chance"
    assert all(f">n{n} ({shares[1][n]:.0%})<" in figure.chart for n in range(neurons) if shares[1][n] < 16 / neurons)
    # A single neuron, and no matches: there is nothing to compare or to count.
    silent = {**MEASURES, "chance": None, "timing_error": CHANCE["timing_error"]}
    assert len(spike_time_figures(silent, {"neurons": ["0"], "f1": [[1], [1]], "chance": None})) == 1


def test_a_long_histogram_is_drawn_around_its_middle() -> None:
    histogram = [0] * 201
    histogram[100], histogram[107] = 30, 10
    errors = {**MEASURES["timing_error"], "pairs": 40, "errors": list(range(-100, 101)), "histogram": histogram}
    figures = spike_time_figures({**MEASURES, "chance": None, "timing_error": errors}, {"neurons": ["0"]})
    drawn = figures[1].chart
    assert "+7: 25.00%" in drawn
    assert ">0: 75.00%" in drawn
    assert ">+7<" in drawn or ">-7<" in drawn or ">+6<" in drawn
    assert ">+8<" not in drawn
