"""`stsbp import` and `stsbp nir-check`: from a file to a run that is evaluated and trained, and a table of programs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from nir_files import chain, cuba, full, graph, lif, written
from safetensors.numpy import load
from stsbp import load_run
from stsbp.cli import import_
from stsbp.config import RunConfig
from stsbp.interop.nir_check import IMPORTERS, check
from stsbp.interop.nir_import import import_graph
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_readings import READINGS, simulate

pytest.importorskip("h5py")

ENDS = {"input": {"type": "Input", "shape": [6]}, "output": {"type": "Output", "shape": [3]}}
EDGES = chain("input", "a", "n", "b", "last", "output")


def nodes(neurons: Callable[..., dict[str, Any]] = lif) -> dict[str, Any]:
    weights = {"a": {"type": "Linear", "weight": full(5, 6)}, "b": {"type": "Linear", "weight": full(3, 5, 1)}}
    return {**ENDS, **weights, "n": neurons(5), "last": neurons(3)}


@pytest.fixture
def rasters(tmp_path: Path) -> str:
    """A data set of spike trains, six in and three out."""
    rng = np.random.default_rng(0)
    inputs, targets = ((rng.random((10, 8, n)) < 0.4).astype(np.uint8) for n in (6, 3))
    np.savez(tmp_path / "rasters.npz", inputs=inputs, targets=targets)
    return f"sequences:{tmp_path / 'rasters.npz'}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "graph.nir", nodes(), EDGES, metadata={"dt": 1e-3})


@pytest.fixture
def imported(stsbp: Callable[..., Result], file: Path, rasters: str) -> Callable[..., Result]:
    def call(*arguments: Any, of: Path = file) -> Result:
        usual = ("--dataset", rasters, "--out", "run", "--steps", "8", "--epochs", "1", "--batch-size", "4")
        return stsbp("import", of, *usual, *arguments)

    return call


def weights_of(run: Path) -> dict[str, Any]:
    tensors = load((run / json.loads((run / "last.json").read_text())["file"]).read_bytes())
    return {name.removeprefix("weight/"): x for name, x in tensors.items() if name.startswith("weight/")}


def test_a_run_is_evaluated_and_trained(stsbp: Callable[..., Result], imported: Callable[..., Result]) -> None:
    result = imported()
    assert result.exit_code == 0, result.output
    assert "the weights lie on the grid as they are" in result.stdout
    assert "run run: stsbp evaluate run, stsbp train --resume run" in result.stdout
    assert "run -run: stsbp evaluate ./-run, stsbp train --resume ./-run" in imported("--out", "-run").stdout
    imported_weights = weights_of(Path("run"))
    assert np.array_equal(imported_weights["a"], full(5, 6))
    assert np.array_equal(imported_weights["b"], full(3, 5, 1))
    assert stsbp("evaluate", "run").exit_code == 0
    assert stsbp("train", "--config", "run/config.toml", "--init-from", "run", "--out", "other").exit_code == 0
    resumed = stsbp("train", "--resume", "run")
    assert resumed.exit_code == 0, resumed.output
    assert "continuing run after update 0" in resumed.stderr
    for name, x in weights_of(Path("run")).items():
        assert not np.array_equal(x, imported_weights[name]), name
        assert np.array_equal(x, weights_of(Path("other"))[name]), name


def test_weights_that_do_not_fit_leave_no_folder(
    imported: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    biased = {**nodes(), "a": {"type": "Affine", "weight": full(5, 6), "bias": np.full(5, 1e-38)}}
    tiny = written(tmp_path / "tiny.nir", biased, EDGES, metadata={"dt": 1e-3})
    result = imported(of=tiny)
    assert result.exit_code == 1
    assert "tiny.nir: a.bias must be from" in " ".join(result.stderr.split())
    assert not Path("run").exists()

    def with_a_row_less(*arguments: Any) -> Any:
        network = import_graph(*arguments)
        return replace(network, weights={**network.weights, "b": network.weights["b"][1:]})

    monkeypatch.setattr(import_, "import_graph", with_a_row_less)
    result = imported()
    assert result.exit_code == 1
    assert "graph.nir: weights of b must be" in " ".join(result.stderr.split())
    assert not Path("run").exists()


def test_the_network_computes_what_the_file_says(imported: Callable[..., Result], rasters: str) -> None:
    assert imported().exit_code == 0
    run = load_run("run", backend="numpy")
    x = (np.random.default_rng(3).random((8, 2, 6)) < 0.4).astype(np.float32)
    reading, spikes = READINGS["spikingjelly"].neurons["LIF"], x
    for weights, neurons in ((full(5, 6), lif(5)), (full(3, 5, 1), lif(3))):
        parameters = {key: np.asarray(value) for key, value in neurons.items() if key != "type"}
        _, spikes = simulate(reading, parameters, 1e-3, spikes @ weights.T)
    assert np.array_equal(run.predict(x.astype(np.uint8)).spikes, spikes)
    assert 0 < spikes.mean() < 1


def test_settings_are_those_of_the_file_or_are_asked_for(imported: Callable[..., Result]) -> None:
    assert imported("--tau-s", "7", "--surrogate", "triangle", "--weight-bits", "9", "--lr", "0.5").exit_code == 0
    run = load_run("run", backend="numpy")
    assert (run.settings.lr, run.settings.neuron, run.settings.input_tau_s) == (0.5, "lif", 0.0)
    (first, last) = run.network.blocks
    assert (last.neuron.tau_s, first.neuron.tau_s) == (7.0, 1.0)
    assert {str(block.neuron.surrogate) for block in run.network.blocks} == {"triangle:width=1"}
    assert {block.synapse.weight_bits for block in run.network.blocks} == {9}


def test_the_synapse_of_the_input_is_a_setting(
    imported: Callable[..., Result], tmp_path: Path, stsbp: Callable[..., Result]
) -> None:
    file = written(tmp_path / "cuba.nir", nodes(cuba), EDGES)
    assert imported("--dt", "1e-3", of=file).exit_code == 0
    run = load_run("run", backend="numpy")
    assert (run.settings.input_tau_s, run.settings.psp_gain) == (4.0, "unit")
    assert np.array_equal(run.weights["a"], full(5, 6))
    result = stsbp("import", file, "--dataset", "digits", "--dt", "1e-3", "--out", "other")
    assert result.exit_code == 1
    assert not Path("other").exists()


def test_images_have_no_synapse(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    ends = {"input": {"type": "Input", "shape": [64]}, "output": {"type": "Output", "shape": [10]}}
    node_table = {**ends, "a": {"type": "Linear", "weight": full(10, 64)}}
    for neurons, code in ((lif(10, r=np.ones(10)), 0), (cuba(10), 1)):
        file = written(tmp_path / "images.nir", {**node_table, "n": neurons}, chain("input", "a", "n", "output"))
        result = stsbp("import", file, "--dataset", "digits", "--dt", "1e-3", "--out", f"run{code}")
        assert result.exit_code == code, result.output
    assert (
        "read the input through a synapse of 4 steps, but images have no synapse; use a data set of events"
        in result.stderr
    )
    assert load_run("run0", backend="numpy").network.input_shape == (1, 8, 8)


def test_a_readout_is_for_a_loss_of_potentials(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    ends = {"input": {"type": "Input", "shape": [64]}, "output": {"type": "Output", "shape": [10]}}
    node_table = {**ends, "a": {"type": "Linear", "weight": full(10, 64)}}
    file = written(tmp_path / "readout.nir", node_table, chain("input", "a", "output"))
    command = ("import", file, "--dataset", "digits", "--dt", "1e-3", "--out", "run")
    result = stsbp(*command)
    assert result.exit_code == 1
    assert "ends with potentials, for --loss cross-entropy; --loss van-rossum does not fit" in result.stderr
    assert stsbp(*command, "--loss", "cross-entropy").exit_code == 0
    spiking = written(tmp_path / "spiking.nir", {**node_table, "n": lif(10)}, chain("input", "a", "n", "output"))
    result = stsbp("import", spiking, *command[2:-1], "other", "--loss", "cross-entropy")
    assert result.exit_code == 1
    assert "ends with spikes" in result.stderr


def test_rounding_to_the_grid_is_reported(imported: Callable[..., Result], tmp_path: Path) -> None:
    odd = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)
    file = written(tmp_path / "odd.nir", {**nodes(), "a": {"type": "Linear", "weight": odd}}, EDGES)
    result = imported("--dt", "1e-3", "--weight-bits", "4", of=file)
    # Steps of 1/4 or 1/8: the largest distance is half of one.
    assert "rounding to 4 bits moves weights by up to 0.1" in result.stdout
    assert "of the largest of their layer (a): spikes may differ from those of other programs" in result.stdout
    assert np.array_equal(weights_of(Path("run"))["a"], odd)


def test_factors_of_weights_are_reported(imported: Callable[..., Result], tmp_path: Path) -> None:
    file = written(tmp_path / "one.nir", {**nodes(), "n": lif(5, r=np.ones(5))}, EDGES)
    result = imported("--dt", "1e-3", of=file)
    assert "a: its weights are multiplied by 0.5, because of nodes between it and n" in result.stdout


def test_the_step_is_asked_for_where_the_file_does_not_say_it(imported: Callable[..., Result], tmp_path: Path) -> None:
    file = written(tmp_path / "plain.nir", nodes(), EDGES)
    result = imported(of=file)
    assert result.exit_code == 1
    assert "give --dt SECONDS; its neurons have r = tau/dt with --dt 0.001" in result.stderr
    for dt in (0.0, -1.0, np.nan, [1e-3, 1e-3], "x"):
        file = written(tmp_path / "said.nir", nodes(), EDGES, metadata={"dt": dt})
        assert "does not say how long a step is" in imported(of=file).stderr
    assert imported("--dt", "1e-3", of=file).exit_code == 0


def test_a_given_step_comes_before_that_of_the_file(imported: Callable[..., Result]) -> None:
    assert imported("--dt", "5e-4").exit_code == 0
    assert load_run("run", backend="numpy").network.blocks[0].neuron.written()["tau_m"] == "4.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--net", "5"), "already defines the network and its weights; leave this out"),
        (("--tau-m", "5", "--init-gain", "2"), "already defines the network"),
        (("--neuron", "if"), "already defines the network"),
        (("--psp-gain", "unit"), "already defines the network"),
        (("--dataset", "digits"), r"shape is [6], but the data have the shape [1, 8, 8]"),
        (("--dataset", "gone"), "gone"),
        (("--dt", "1"), "tau is 0.002 s, which is less than a step of 1 s"),
        (("--loss", "cross-entropy"), "--loss cross-entropy does not fit"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[str, ...], message: str, imported: Callable[..., Result]
) -> None:
    result = imported(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("run").exists()


def test_outputs_of_another_number_are_refused(imported: Callable[..., Result], tmp_path: Path) -> None:
    other = {**nodes(), "b": {"type": "Linear", "weight": full(4, 5)}, "last": lif(4)}
    result = imported("--dt", "1e-3", of=written(tmp_path / "four.nir", other, EDGES))
    assert result.exit_code == 1
    assert "has 4 outputs, but sequences:" in result.stderr
    assert "3 target spike trains" in result.stderr


@pytest.fixture
def imported_for_abc(imported: Callable[..., Result], tmp_path: Path) -> Callable[[str], Result]:
    """Imports a file with `classes` in its metadata for a data set of the classes a, b and c."""
    path = tmp_path / "named.npz"
    inputs = (np.random.default_rng(0).random((9, 8, 6)) < 0.4).astype(np.uint8)
    np.savez(path, inputs=inputs, labels=np.arange(9) % 3, classes=np.array(["a", "b", "c"]))

    def call(classes: str) -> Result:
        named = written(tmp_path / "named.nir", nodes(), EDGES, metadata={"dt": 1e-3, "classes": classes})
        return imported("--dataset", f"sequences:{path}", of=named)

    return call


def test_classes_in_another_order_are_refused_and_other_names_told(imported_for_abc: Callable[[str], Result]) -> None:
    other = imported_for_abc('["b", "a", "c"]')
    assert other.exit_code == 1
    assert "named.nir: its outputs are the classes 'b', 'a', 'c', in this order, but" in other.stderr
    assert "has the order 'a', 'b', 'c'; give the data the same order" in other.stderr
    assert not Path("run").exists()
    long = imported_for_abc('["b", "a", "c"' + " " * 2000 + "]")
    assert "in this order, but" in long.stderr
    renamed = imported_for_abc('["x", "y", "z"]')
    assert renamed.exit_code == 0, renamed.output
    assert "warning: the outputs in" in renamed.stdout
    assert "were trained as 'x', 'y', 'z', but" in renamed.stdout


@pytest.mark.parametrize("classes", ['["a", "b", "c"]', "[", "3", "[1]", "[]"])
def test_the_same_classes_or_none_need_no_word(classes: str, imported_for_abc: Callable[[str], Result]) -> None:
    result = imported_for_abc(classes)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output


def test_an_error_names_the_file(imported: Callable[..., Result], tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.nir", {**nodes(), "n": lif(5, v_leak=np.ones(5))}, EDGES)
    result = imported("--dt", "1e-3", of=bad)
    assert result.stderr.splitlines()[-1].startswith(f"Error: {bad}: node n (LIF): v_leak is 1, but must be 0")
    alone = written(tmp_path / "alone.nir", {**nodes(), "x": {"type": "Linear", "weight": full(2, 6)}}, EDGES)
    assert f"{alone}: node x (Linear)" in imported("--dt", "1e-3", of=alone).stderr


def test_a_folder_that_is_not_empty_is_left_alone(imported: Callable[..., Result]) -> None:
    Path("run").mkdir()
    Path("run/mine").write_text("mine")
    result = imported()
    assert result.exit_code == 1
    assert "run exists and is not empty; choose another --out" in result.stderr
    assert [path.name for path in Path("run").iterdir()] == ["mine"]
    Path("run/mine").unlink()
    assert imported().exit_code == 0


def test_settings_may_come_from_a_file(imported: Callable[..., Result], rasters: str) -> None:
    """Those of the network, which every file of settings of a run has, are left alone."""
    assert imported("--lr", "0.25").exit_code == 0
    settings = Path("run/config.toml").read_text().replace('neuron = "lif"', 'neuron = "alif"')
    Path("settings.toml").write_text(settings)
    result = imported("--config", "settings.toml", "--out", "other")
    assert result.exit_code == 0, result.output
    first, second = (load_run(name, backend="numpy").settings for name in ("run", "other"))
    assert first == second.model_copy(update={})
    assert second.neuron == RunConfig.model_fields["neuron"].default


def test_thresholds_above(imported: Callable[..., Result]) -> None:
    assert imported("--threshold-above").exit_code == 0
    run = load_run("run", backend="numpy")
    assert {np.float32(block.neuron.threshold) for block in run.network.blocks} == {np.nextafter(np.float32(1), 2)}


def test_soft_reset(imported: Callable[..., Result]) -> None:
    assert imported("--reset", "subtract").exit_code == 0
    run = load_run("run", backend="numpy")
    assert {block.neuron.written()["reset"] for block in run.network.blocks} == {"subtract"}


CHOICES = Choices(1e-3)


def words(neurons: dict[str, Any], choices: Choices = CHOICES) -> dict[str, str]:
    checked = check(graph({"n": neurons}, []), choices)
    return {name: verdict.word for name, verdict in checked.nodes["n"].items()}


def test_neurons_are_compared_with_the_equations() -> None:
    same = {"stsbp": "same", "spikingjelly": "same", "norse": "same", "sinabs": "left out", "spyx": "others"}
    assert same.items() <= words(cuba(4)).items()
    # It has a step of its own, and asks for r = tau_mem/dt in it.
    assert words(cuba(4))["snntorch"] == "refused"
    tenth = {key: x * 0.1 if key.startswith("tau") else x for key, x in cuba(4).items()}
    assert words(tenth, Choices(1e-4))["snntorch"] == "same"
    fast = {**tenth, "w_in": np.full(4, 2.0)}
    assert {"stsbp": "same", "spikingjelly": "refused", "snntorch": "scaled"}.items() <= words(
        fast, Choices(1e-4)
    ).items()
    assert {"stsbp": "same", "spikingjelly": "same", "norse": "others"}.items() <= words(lif(4)).items()
    assert words(lif(4, r=np.ones(4)))["norse"] == "same"
    assert {"stsbp": "scaled", "norse": "same"}.items() <= words(
        lif(4, r=np.ones(4), v_threshold=np.array([1.0, 2, 1, 2]))
    ).items()
    assert {"stsbp": "refused", "norse": "same"}.items() <= words(lif(4, r=np.ones(4), v_leak=np.full(4, 0.25))).items()


def test_the_reason_of_a_verdict_is_given() -> None:
    interpretations = check(graph({"n": cuba(4, w_in=np.ones(4))}, []), CHOICES).nodes["n"]
    assert interpretations["spikingjelly"].why == "it asks for w_in = tau_syn / dt"
    assert interpretations["spyx"].why.endswith("ignores r, w_in, v_leak, v_reset")
    assert " of 960 steps differ, " in interpretations["spyx"].much
    assert interpretations["sinabs"].why == READINGS["sinabs"].otherwise


def test_neurons_that_nothing_makes_spike_are_not_judged() -> None:
    assert set(words(lif(4, r=np.zeros(4))).values()) - {"left out", "refused"} == {"unknown"}


def test_other_nodes_are_read_or_left_out() -> None:
    nir_graph = graph(
        {"a": {"type": "Linear", "weight": full(2, 2)}, "b": {"type": "Nothing"}, "c": {"type": "Linear"}}, []
    )
    checked = check(nir_graph, CHOICES).nodes
    assert {name: interpretation.word for name, interpretation in checked["a"].items()} == {
        name: "left out" if name == "sinabs" else "read" for name in IMPORTERS
    }
    assert checked["b"]["stsbp"].word == "refused"
    assert {checked["b"][name].word for name in READINGS} == {"left out"}
    assert checked["c"]["stsbp"].why == "it has no weight"


def test_nodes_that_are_read_but_not_simulated_are_unknown() -> None:
    node = {"type": "LI", **{name: np.ones(4) for name in ("tau", "r", "v_leak")}}
    interpretations = check(graph({"n": node}, []), CHOICES).nodes["n"]
    for name in ("sinabs", "rockpool", "spyx"):
        assert (interpretations[name].word, interpretations[name].why) == (
            "unknown",
            READINGS[name].not_simulated["LI"],
        )
        assert not interpretations[name].faithful
    assert {interpretations[name].word for name in ("spikingjelly", "snntorch", "norse")} == {"left out"}


def test_parameters_that_are_the_same_for_all_neurons_take_no_memory() -> None:
    n = 1 << 20
    same = {key: np.broadcast_to(value.flat[0], n) for key, value in cuba(4).items() if key != "type"}
    tau = np.random.default_rng(0).uniform(1e-3, 2e-3, n)
    nir_graph = graph({"n": {**cuba(4), **same, "tau_mem": tau}}, [])
    tracemalloc.start()
    interpretations = check(nir_graph, CHOICES).nodes["n"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Reading the node as stsbp does takes four such arrays. A copy of each parameter would take seven more.
    assert peak < 5 * tau.nbytes
    assert interpretations["spikingjelly"].why.endswith("; r = tau_mem / dt")


def test_numbers_that_no_program_reads_are_refused_for_all() -> None:
    for odd in (lif(4, r=np.arange(1.0, 4)), lif(4, v_leak=np.full(4, np.nan)), {"type": "LIF"}):
        assert set(words(odd).values()) == {"refused"}


def test_a_graph_that_is_no_network_of_stsbp(file: Path) -> None:
    nir_graph = graph(nodes(), [*EDGES, ("n", "a")])
    checked = check(nir_graph, CHOICES)
    assert "node a (Linear)" in checked.refusal
    assert not checked.faithful("stsbp")
    assert check(graph(nodes(), EDGES), CHOICES).faithful("stsbp")


def test_the_table_of_programs(stsbp: Callable[..., Result], file: Path) -> None:
    result = stsbp("nir-check", file)
    assert result.exit_code == 0, result.output
    first, header, *rows = result.stdout.splitlines()
    assert first == f"{file}: 6 nodes and 5 edges, written by nir 1.0.8; a step of 0.001 s, as the file says"
    assert header.split() == ["node", "kind", *IMPORTERS]
    table = {row.split()[0]: row.split()[1:] for row in rows[:6]}
    assert list(table) == ["input", "a", "n", "b", "last", "output"]
    assert table["n"][:3] == ["LIF", "same", "same"]
    assert "stsbp: stsbp import, a step of 0.001 s" in rows
    assert "  does all that the file says" in rows
    assert any(row.startswith("  n (") and "others: " in row for row in rows)
    assert not any(row.startswith("  (") for row in rows)
    assert "  (An IF leaks" in stsbp("nir-check", file, "--notes").stdout


def test_the_table_as_json(stsbp: Callable[..., Result], file: Path) -> None:
    table = json.loads(stsbp("nir-check", file, "--json").stdout)
    assert (table["dt"], table["version"], table["refused_as_a_whole"]) == (1e-3, "1.0.8", "")
    assert {"stsbp", "spikingjelly"} <= set(table["faithful"])
    assert [node["name"] for node in table["nodes"]] == ["input", "a", "n", "b", "last", "output"]
    assert table["nodes"][2]["importers"]["stsbp"]["word"] == "same"
    assert table["edges"] == [list(edge) for edge in EDGES]


def test_a_program_may_be_expected_to_do_all(stsbp: Callable[..., Result], file: Path) -> None:
    assert stsbp("nir-check", file, "--expect", "stsbp", "--expect", "spikingjelly").exit_code == 0
    result = stsbp("nir-check", file, "--expect", "spyx", "--expect", "stsbp", "--expect", "norse")
    assert result.exit_code == 1
    assert f"Error: {file}: not read as the file says by spyx, norse" in result.stderr
    assert "node" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "of", "step"),
    [
        (("--dt", "5e-4"), {"dt": 1e-3}, "a step of 0.0005 s, as asked for"),
        ((), {}, "a step of 0.001 s, with which r = tau/dt"),
    ],
)
def test_the_step_of_a_check(
    arguments: tuple[str, ...], of: dict[str, float], step: str, stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    file = written(tmp_path / "graph.nir", nodes(), EDGES, **({"metadata": of} if of else {}))
    assert step in stsbp("nir-check", file, *arguments).stdout
    usual = written(tmp_path / "usual.nir", {**nodes(), "n": lif(5, r=np.full(5, 7.0))}, EDGES)
    assert "a step of 0.0001 s, which is usual; the file does not say it" in stsbp("nir-check", usual).stdout


def test_many_nodes_and_long_names_are_cut(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    names = [f"{i}" + "x" * 900 for i in range(260)]
    node_table: dict[str, Any] = {**ENDS, **{name: {"type": "Scale", "scale": 1.0} for name in names}}
    file = written(tmp_path / "many.nir", node_table, chain("input", *names, "output"))
    result = stsbp("nir-check", file, "--dt", "1")
    assert result.exit_code == 0
    assert "... and 62 nodes more" in result.stdout
    assert len(result.stdout) < 50_000


def test_a_check_refuses_what_is_no_graph(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "x.nir").write_bytes(b"x" * 100)
    result = stsbp("nir-check", tmp_path / "x.nir")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {tmp_path / 'x.nir'}: not read as a NIR graph")


def test_an_input_synapse_that_is_too_long_for_a_setting_is_refused(
    rasters: str, stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    """A run that stored it could not be read again."""
    slow = {**nodes(), "n": cuba(5, tau_syn=2e9), "last": cuba(3, tau_syn=4.0)}
    file = written(tmp_path / "slow.nir", slow, EDGES)
    result = stsbp("import", file, "--dataset", rasters, "--steps", 8, "--dt", "1e-3", "--out", "back")
    assert result.exit_code == 1, result.output
    assert "slow.nir: input_tau_s" in result.stderr, result.stderr
    assert not (tmp_path / "back").exists()
