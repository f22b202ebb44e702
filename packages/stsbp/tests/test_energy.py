"""The energy of a run: evaluate, compare, curves and report show it; tables of users; counts at padded steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.datasets import digits
from stsbp.energy import stored
from stsbp.energy.stored import stored_energy
from stsbp.energy.table import TABLES, MemoryEnergy, energy_table
from stsbp.energy.text import energy_text, picojoules
from stsbp.energy.totals import EnergyPrices
from stsbp.errors import ConfigError, FileError
from stsbp.training.build import load_data
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec import NetworkSpec
from stsbp_spec.engine.cost import COUNTS, CostKey, cost_of_run
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.models.lengths import inside
from stsbp_spec.reference.backend import NumpyBackend

Call = Callable[..., Result]
CONVOLUTIONS = ("--net", "3C3-P2-8R-6bn")


@pytest.fixture
def run(train_tiny: Call, tmp_path: Path) -> Path:
    result = train_tiny(tmp_path / "run", *CONVOLUTIONS)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def evaluated(stsbp: Call, run: Path, *options: Any) -> dict[str, Any]:
    result = stsbp("evaluate", run, "--json", *options)
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return record


def counted(folder: Path, split: str = "test") -> dict[CostKey, Any]:
    """The counts of each sample `[T, n]`, from one run of all samples."""
    trained = load_trained(RunFolder(folder), "last", NumpyBackend())
    samples = trained.samples(load_data(trained.settings, lambda *_: None), split)
    batch, _ = trained.task.batch(samples, np.arange(len(samples)))
    inputs = unpacked(batch.inputs)
    layers = trained.backend.run(trained.network, trained.weights, inputs, trained.settings.steps).layers
    return cost_of_run(trained.network, inputs, {name: x.spikes for name, x in layers.items()}, batch.lengths)


def test_the_command_counts_all_samples_in_batches_of_any_size(stsbp: Call, run: Path) -> None:
    costs, energies = counted(run), list[Any]()
    for size in (1, 7, 30):
        energies.append(evaluated(stsbp, run, "--energy", "--batch-size", size)["energy"])
    assert energies[0] == energies[1] == energies[2]
    (energy, *_), table = energies, TABLES["float32"]
    assert (energy["samples"], energy["steps"], energy["table"]) == (30, 90, "float32")
    for layer in energy["layers"]:
        for kind in COUNTS:
            assert layer[kind] == sum(int(x.sum()) for key, x in costs.items() if key[:2] == (layer["name"], kind))
    prices = EnergyPrices(load_trained(RunFolder(run), "last", NumpyBackend()).network, table)
    pj = sum(x.sum(axis=0) * prices.of(key).total for key, x in costs.items())
    assert energy["pj"]["total"] == pytest.approx(pj.mean(), rel=1e-12)
    found = [energy["pj_of_samples"][name] for name in ("smallest", "median", "largest")]
    assert found == pytest.approx([pj.min(), np.median(pj), pj.max()], rel=1e-12)
    assert all(layer["accumulations"] for layer in energy["layers"][1:])
    assert energy["layers"][0]["multiplications"] > 0
    assert energy["layers"][0]["accumulations"] == 0


def test_energies_are_counts_times_the_table(stsbp: Call, run: Path) -> None:
    energy = evaluated(stsbp, run, "--energy")["energy"]
    conv, recurrent, normalised, output = energy["layers"]
    # LIF without a filter: 1 addition, 1 product, 1 comparison.
    assert conv["pj"]["synapses"] == pytest.approx(conv["multiplications"] * 4.6 / 30)
    assert conv["pj"]["neurons"] == pytest.approx(conv["updates"] * (0.9 + 3.7 + 0.9) / 30)
    # 27 weights of 12 bits, and 192 states of 32 bits, are in 8 KB: 10 pJ for 64 bits.
    reads, states = conv["weight_reads"] * 12, conv["state_accesses"] * 32
    assert conv["state_accesses"] == 2 * conv["updates"]
    assert conv["pj"]["memory"] == pytest.approx((reads + states) / 64 * 10 / 30)
    synapses = recurrent["accumulations"] * 0.9 + recurrent["multiplications"] * 4.6 + recurrent["merges"] * 0.9
    assert recurrent["pj"]["synapses"] == pytest.approx(synapses / 30)
    # Two filters are one, because they are equal: 2 states, 3 additions, 3 products, 1 comparison.
    assert recurrent["states"] == 2
    assert recurrent["pj"]["neurons"] == pytest.approx(recurrent["updates"] * (3 * 0.9 + 3 * 3.7 + 0.9) / 30)
    norm = normalised["normalisations"] * (2 * 0.9 + 3.7)
    assert normalised["normalisations"] == 6 * 90
    assert normalised["pj"]["synapses"] == pytest.approx((normalised["accumulations"] * 0.9 + norm) / 30)
    for layer in energy["layers"]:
        assert layer["pj"]["total"] == pytest.approx(
            sum(layer["pj"][part] for part in ("synapses", "neurons", "memory"))
        )
    assert energy["pj"]["total"] == pytest.approx(sum(layer["pj"]["total"] for layer in energy["layers"]))
    assert output["updates"] == 10 * 90


def test_a_dense_network_multiplies_every_value(stsbp: Call, run: Path) -> None:
    dense = evaluated(stsbp, run, "--energy")["energy"]["dense"]
    # Without the zeros around it, an axis of 8 pixels has 22 pairs of a pixel and a weight.
    conv, others = 3 * 22 * 22, 8 * 48 + 8 * 8 + 6 * 8 + 10 * 6
    assert dense["one_frame"]["multiplications"] == conv + others
    # The image is the same at all 3 steps.
    assert dense["every_step"]["multiplications"] == conv + 3 * others
    assert dense["one_frame"]["pj"]["synapses"] == pytest.approx(4.6 * (conv + others))
    assert dense["one_frame"]["pj"]["memory"] == pytest.approx((conv + others) * 12 / 64 * 10)


def test_padded_steps_are_not_counted(stsbp: Call, tmp_path: Path) -> None:
    lengths = np.array([12, 3, 7, 9, 5] * 4)
    random = np.random.default_rng(0)
    inputs = (random.random((20, 12, 8)) < 0.4).astype(np.uint8)
    targets = np.zeros((20, 12, 3), np.uint8)
    inputs[~inside(lengths, 12).T] = 0
    arrays: dict[str, Any] = {
        "inputs": inputs,
        "targets": targets,
        "lengths": lengths,
        "split": (np.arange(20) >= 12).astype(np.uint8),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    result = stsbp(
        "train", f"sequences:{tmp_path / 'data.npz'}", "--steps", 12, "--net", "6", "--epochs", 1, "--out", "r"
    )
    assert result.exit_code == 0, result.output
    energy = evaluated(stsbp, tmp_path / "r", "--energy", "--batch-size", 3)["energy"]
    assert energy["steps"] == lengths[12:].sum()
    assert [layer["updates"] for layer in energy["layers"]] == [6 * energy["steps"], 3 * energy["steps"]]
    assert energy["layers"][0]["accumulations"] == 6 * inputs[12:].sum()
    assert energy["dense"]["every_step"]["multiplications"] == (6 * 8 + 6 * 3) * lengths[12:].mean()


def test_an_evaluation_that_does_not_ask_counts_nothing(
    stsbp: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumpyBackend, "run", None)
    assert "energy" not in evaluated(stsbp, run)
    assert not (run / stored.ENERGY_FILE).exists()


def test_the_energy_is_stored_for_compare_and_report(stsbp: Call, run: Path, train_tiny: Call, tmp_path: Path) -> None:
    assert stored_energy(run) is None
    assert "energy of" not in stsbp("compare", run).stdout
    record = evaluated(stsbp, run, "--energy")
    kept = stored_energy(run)
    assert kept is not None
    assert {name: kept[name] for name in ("split", "dataset", "step")} == {
        "split": "test",
        "dataset": "digits",
        "step": record["step"],
    }
    assert {name: kept[name] for name in record["energy"]} == {
        **record["energy"],
        "dense": {
            name: {**dense, "pj": {**dense["pj"], "neurons": 0.0}} for name, dense in record["energy"]["dense"].items()
        },
    }
    shown = picojoules(record["energy"]["pj"]["total"])
    train_tiny(tmp_path / "other")
    table = stsbp("compare", run, "other").stdout
    (row,) = (
        line.split()
        for line in table.splitlines()
        if line.startswith("energy of 30 test samples of digits, mean, float32 ")
    )
    assert " ".join(row).endswith(f"{shown} -")
    (first, second) = package.compare([run, tmp_path / "other"])
    assert first["energy.pj"] == record["energy"]["pj"]["total"]
    assert (first["energy.table"], first["energy.split"], first["energy.samples"]) == ("float32", "test", 30)
    assert "energy.pj" not in second
    assert stsbp("report", run, "--no-samples").exit_code == 0
    page = (tmp_path / "run.html").read_text()
    assert "<h2>Energy</h2>" in page
    assert shown in page
    assert all(f"<td>{layer['name']}</td>" in page for layer in record["energy"]["layers"])


def test_the_energy_of_an_earlier_checkpoint_is_not_shown(stsbp: Call, run: Path, tmp_path: Path) -> None:
    evaluated(stsbp, run, "--energy")
    text = (run / stored.ENERGY_FILE).read_text()
    values = json.loads(text)
    (run / stored.ENERGY_FILE).write_text(json.dumps({**values, "sha256": "0" * 64}))
    assert "energy of" not in stsbp("compare", run).stdout
    stsbp("report", run, "--no-samples")
    assert "<h2>Energy</h2>" not in (tmp_path / "run.html").read_text()
    for damaged in ("{", json.dumps({**values, "samples": 0}), text.replace('"accumulations"', '"acc"')):
        (run / stored.ENERGY_FILE).write_text(damaged)
        assert stored_energy(run) is None
        for words in (("compare", run), ("report", run, "--no-samples")):
            result = stsbp(*words)
            assert result.exit_code == 0
            message = " ".join(result.stderr.split())
            assert "energy.json is damaged (" in message
            assert "and is left out; stsbp evaluate --energy writes it again" in message
    # No energy is no damage.
    (run / stored.ENERGY_FILE).unlink()
    assert "energy" not in stsbp("compare", run).stderr


def test_a_new_run_in_the_folder_has_no_energy_yet(stsbp: Call, run: Path, train_tiny: Call) -> None:
    evaluated(stsbp, run, "--energy")
    assert (run / stored.ENERGY_FILE).is_file()
    result = train_tiny(run, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not (run / stored.ENERGY_FILE).exists()


def test_a_folder_that_cannot_be_written_is_only_warned_of(
    stsbp: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes, *, own_folder: bool) -> None:
        raise FileError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(stored, "write_atomically", refuse)
    result = stsbp("evaluate", run, "--energy")
    assert result.exit_code == 0
    assert "the energy is not stored for compare and report: cannot write" in result.stderr.replace("\n", " ")


def test_python_counts_what_the_command_counts(stsbp: Call, run: Path, tmp_path: Path) -> None:
    expected = evaluated(stsbp, run, "--energy", "--energy-table", "int8")["energy"]
    (run / stored.ENERGY_FILE).unlink()
    loaded = package.load_run(run, backend="numpy")
    assert "energy" not in loaded.evaluate()
    assert loaded.evaluate(energy=True, energy_table="int8")["energy"] == expected
    assert stored_energy(run) is not None
    (run / stored.ENERGY_FILE).unlink()
    images, labels = digits.read_digits()
    assert loaded.evaluate((images[:20, None], labels[:20]), energy=True)["energy"]["samples"] == 20
    # Those are not the samples of the run, so nothing is stored.
    assert stored_energy(run) is None
    with pytest.raises(ConfigError, match="only energy= counts; add energy="):
        loaded.evaluate(energy_table="int8")


def test_curves_show_the_energy_until_the_decision(stsbp: Call, run: Path, tmp_path: Path) -> None:
    options = ("--noise", "lost=0", "--energy")
    energy = evaluated(stsbp, run, "--energy")["energy"]
    curve = json.loads(stsbp("curves", run, *options, "--json").stdout.splitlines()[-1])
    assert curve["energy_table"] == "float32"
    pj = [row["pj"] for row in curve["time"]]
    assert pj[-1] == pytest.approx(energy["pj"]["total"], rel=1e-12)
    assert 0 < pj[0] < pj[1] < pj[2]
    text = stsbp("curves", run, *options).stdout
    assert "energy of a sample up to then, by the table float32:" in text
    assert picojoules(pj[0]) in text
    plain = json.loads(stsbp("curves", run, "--noise", "lost=0", "--json").stdout.splitlines()[-1])
    assert "pj" not in plain["time"][0]
    pytest.importorskip("matplotlib", reason="draws the curves")
    assert stsbp("curves", run, *options, "--plot", "curves.png").exit_code == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


OWN = """\
name = "mine"
source = "my data sheet"
[pj]
add = 1.0
multiply = 10
compare = 0.0
"""


def test_a_table_of_a_user(stsbp: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    energy = evaluated(stsbp, run, "--energy", "--energy-table", "own.toml")["energy"]
    assert (energy["table"], energy["source"]) == ("mine", "my data sheet")
    conv = energy["layers"][0]
    # Without [memory], accesses cost nothing. A multiply-add is a product and a sum.
    expected = {"synapses": 11 * conv["multiplications"] / 30, "neurons": 11 * conv["updates"] / 30, "memory": 0}
    assert conv["pj"] == pytest.approx({**expected, "total": sum(expected.values())})
    table = energy_table(str(tmp_path / "own.toml"))
    (tmp_path / "own.json").write_text(json.dumps(table.model_dump()))
    assert energy_table(str(tmp_path / "own.json")) == table
    assert (
        "energies by the table mine (my data sheet):"
        in stsbp("evaluate", run, "--energy", "--energy-table", "own.json").stdout
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("add = 1.0", "add = -1.0"), r"pj.add: input should be greater than or equal to 0"),
        (OWN.replace("add = 1.0", "plus = 1.0"), "pj.plus"),
        (OWN.replace("add = 1.0", "add = nan"), "pj.add: input should be a finite number"),
        (OWN.replace('name = "mine"', ""), "name: field required"),
        (OWN + "[memory]\nsizes = [8]\naccess = []\nbeyond = 1", "sizes has 1 entries, but access has 0"),
        (OWN + "[memory]\nsizes = [8, 4]\naccess = [1, 2]\nbeyond = 1", "sizes must be ascending"),
        (OWN + "[memory]\nsizes = [8]\naccess = [1]", "memory.beyond: field required"),
        ("name =", "not valid TOML"),
        (OWN.replace("compare = 0.0", ""), "has no energy of compare, which this network needs"),
    ],
)
def test_a_malformed_table_is_refused(stsbp: Call, run: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    result = stsbp("evaluate", run, "--energy", "--energy-table", "own.toml")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_control_characters_of_a_table_are_not_printed(stsbp: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN.replace("mine", r"\u001b[31m").replace("my data", r"a\nb"))
    for command in (("evaluate", run, "--energy"), ("curves", run, "--energy", "--noise", "lost=0")):
        result = stsbp(*command, "--energy-table", "own.toml")
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.stdout
        assert r"by the table \x1b[31m" in result.stdout
    assert r"mean, \x1b[31m" in stsbp("compare", run).stdout


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"float32, int32, int8, or a file of the name FILE.toml or FILE.json, got 'int16' \(did you mean",
    ):
        energy_table("int16")
    with pytest.raises(ConfigError, match=r"cannot read the energy table nothing.json"):
        energy_table("nothing.json")
    with pytest.raises(ConfigError, match=r"nothing.toml"):
        energy_table("nothing.toml")


def test_a_memory_costs_what_the_smallest_one_costs_that_holds_the_layer() -> None:
    memory = TABLES["float32"].memory
    assert memory is not None
    sizes = (1, 8 * 2**13, 8 * 2**13 + 1, 8 * 2**15, 8 * 2**20, 8 * 2**20 + 1)
    assert [memory.of_bits(64, bits) for bits in sizes] == [10, 10, 20, 20, 100, 1300]
    assert memory.of_bits(12, 1) == 12 / 64 * 10
    assert MemoryEnergy(beyond=640.0, word_bits=32).of_bits(32, 1) == 640


def test_the_built_in_tables_have_the_figures_of_their_source() -> None:
    # Horowitz 2014, figure 1.1.9.
    expected = {"float32": (0.9, 3.7, 4.6), "int32": (0.1, 3.1, 3.2), "int8": (0.03, 0.2, 0.23)}
    operations = ("add", "multiply", "multiply_accumulate")
    assert {name: tuple(table.of(x) for x in operations) for name, table in TABLES.items()} == expected
    for table in TABLES.values():
        assert table.of("accumulate") == table.of("compare") == table.of("add")
        assert table.of("multiply_accumulate") == pytest.approx(table.of("multiply") + table.of("add"))
        with pytest.raises(ConfigError, match="has no energy of exp"):
            table.of("exp")


def test_energies_as_text() -> None:
    values = (0.0, 0.123, 999, 1e3, 2.5e6, 3e9, 4e12, 5e16)
    assert [picojoules(x) for x in values] == [
        "0 pJ", "0.123 pJ", "999 pJ", "1 nJ", "2.5 uJ", "3 mJ", "4 J", "5.000e+04 J",
    ]  # fmt: skip


def test_prices_of_all_counts_of_a_network() -> None:
    network = NetworkSpec.parse("2C3bn-P2-400", input_shape=(1, 6, 6), outputs=3)
    prices = EnergyPrices(network, TABLES["float32"])
    assert prices.of(CostKey("conv1", "merges", "pool2.0")).total == 0.9
    assert prices.of(CostKey("conv1", "normalisations", "conv1")).total == pytest.approx(5.5)
    # 400 x 8 weights of 12 bits are 4,800 bytes, and 400 x 2 states of 32 bits are 3,200.
    assert prices.of(CostKey("linear2", "accumulations", "linear2")).memory == pytest.approx(12 / 64 * 10)
    assert math.isclose(prices.of(CostKey("linear2", "updates", "neurons2")).memory, 2 * 2 * 32 / 64 * 10)


def test_weights_and_states_of_a_large_layer_lie_in_a_larger_memory() -> None:
    network = NetworkSpec.parse("3-1500", input_shape=(4,), outputs=2)
    prices = EnergyPrices(network, TABLES["float32"])
    # 4,500 weights of 12 bits are 6,750 bytes, but 1,500 x 2 states are 12,000.
    assert prices.of(CostKey("linear2", "accumulations", "linear2")).memory == pytest.approx(12 / 64 * 10)
    assert prices.of(CostKey("linear2", "updates", "neurons2")).memory == pytest.approx(2 * 2 * 32 / 64 * 20)
    network = NetworkSpec.parse("100", input_shape=(64,), outputs=2)
    prices = EnergyPrices(network, TABLES["float32"])
    # 6,400 weights are 9,600 bytes, but 100 states are 400.
    assert prices.of(CostKey("linear1", "accumulations", "linear1")).memory == pytest.approx(12 / 64 * 20)
    assert prices.of(CostKey("linear1", "updates", "neurons1")).memory == pytest.approx(2 * 32 / 64 * 10)


def test_the_text_leaves_out_counts_that_are_zero_everywhere(stsbp: Call, run: Path) -> None:
    record = evaluated(stsbp, run, "--energy")["energy"]
    head, columns, *rows = energy_text(record)
    assert head.startswith("energy of a sample, counts as means, energies by the table float32 (Horowitz")
    assert columns.split() == [
        *("layer", "accumulations", "multiplications", "merges", "normalisations", "updates"),
        *("states", "synapses", "neurons", "memory", "total"),
    ]
    assert [row.split()[0] for row in rows[:5]] == ["conv1", "linear2", "linear3", "linear4", "all"]
    for layer in record["layers"]:
        layer["merges"] = 0
    assert "merges" not in energy_text(record)[1]


def _rows_of_energies(stsbp: Call, *runs: str) -> list[tuple[str, list[str]]]:
    """The names of the rows of `stsbp compare` with energies, and which runs have one."""
    lines = [line for line in stsbp("compare", *runs).stdout.splitlines() if line.startswith("energy of")]
    rows = [(line[: line.index("  ")], line[line.index("  ") :].split()) for line in lines]
    return [
        (name, ["-" if word == "-" else "x" for word in words if word != "J" and word[-1] != "J"])
        for name, words in rows
    ]


def test_compare_has_a_row_for_each_version_of_an_energy_table(stsbp: Call, train_tiny: Call, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train_tiny(tmp_path / name)
        prices = OWN.replace("add = 1.0", "add = 2.0") if name == "b" else OWN.replace("my data", "another")
        (tmp_path / "own.toml").write_text(prices)
        evaluated(stsbp, tmp_path / name, "--energy", "--energy-table", "own.toml")
    title = "energy of 30 test samples of digits, mean, mine"
    assert _rows_of_energies(stsbp, "a", "c") == [(title, ["x", "x"])]
    assert _rows_of_energies(stsbp, "a", "b", "c") == [
        (f"{title}, prices version 1", ["x", "-", "x"]),
        (f"{title}, prices version 2", ["-", "x", "-"]),
    ]
    # An earlier version stored no digest of the prices.
    path = tmp_path / "a" / stored.ENERGY_FILE
    values = json.loads(path.read_text())
    assert values.pop("table_sha256") == energy_table(str(tmp_path / "own.toml")).digest()
    path.write_text(json.dumps(values))
    assert _rows_of_energies(stsbp, "a", "c") == [
        (f"{title}, prices not stored: not comparable", ["x", "-"]),
        (title, ["-", "x"]),
    ]


def test_compare_has_a_row_of_energies_for_other_samples(
    stsbp: Call, train_tiny: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "a")
    train_tiny(tmp_path / "b", "--split-seed", 1)
    train_tiny(tmp_path / "c", "--lr", 0.02)
    train_tiny(tmp_path / "d", "--steps", 4)
    for name in "abcd":
        evaluated(stsbp, tmp_path / name, "--energy")
    title = "energy of 30 test samples of digits, mean, float32"
    # The same samples in more steps.
    assert _rows_of_energies(stsbp, "a", "c", "d") == [(title, ["x", "x", "x"])]
    expected = [(f"{title}, samples version 1", ["x", "-", "x"]), (f"{title}, samples version 2", ["-", "x", "-"])]
    assert _rows_of_energies(stsbp, "a", "b", "c") == expected
    # Checkpoints of earlier versions do not describe their data.
    monkeypatch.setattr("stsbp.training.compare._contents", lambda _: {})
    assert _rows_of_energies(stsbp, "a", "b", "c") == expected


def test_the_energy_of_data_with_a_long_path_is_read(stsbp: Call, run: Path) -> None:
    evaluated(stsbp, run, "--energy")
    values = json.loads((run / stored.ENERGY_FILE).read_text())
    (run / stored.ENERGY_FILE).write_text(json.dumps({**values, "dataset": "events:" + "/x" * 2000 + ".npz"}))
    assert stored_energy(run) is not None


def test_curves_refuse_energies_of_runs_without_classes(stsbp: Call, tmp_path: Path) -> None:
    x = (np.random.default_rng(0).random((10, 6, 4)) < 0.4).astype(np.uint8)
    np.savez(tmp_path / "data.npz", inputs=x, targets=x[:, :, :2], split=(np.arange(10) >= 6).astype(np.uint8))
    result = stsbp(
        "train", f"sequences:{tmp_path / 'data.npz'}", "--steps", 6, "--net", "5", "--epochs", 1, "--out", "r"
    )
    assert result.exit_code == 0, result.output
    assert stsbp("curves", "r", "--noise", "lost=0").exit_code == 0
    result = stsbp("curves", "r", "--noise", "lost=0", "--energy")
    assert result.exit_code == 1
    assert "r has no classes; leave --energy out. stsbp evaluate r --energy gives" in " ".join(result.stderr.split())
