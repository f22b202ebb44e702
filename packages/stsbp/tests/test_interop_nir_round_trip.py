"""Out and in: a network that is written for NIR and read back has the same weights, spikes and potentials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from nir_files import graph
from small_networks import IMAGE, SMALL, Case, Small, case_of
from stsbp import load_run
from stsbp.interop.nir_file import write
from stsbp.interop.nir_graph import Form, graph_of
from stsbp.interop.nir_import import Imported, import_graph
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import read_graph
from stsbp.interop.program import About, program
from stsbp_spec import NetworkSpec, initial_weights, open_backend
from stsbp_spec.engine.results import RunResult
from stsbp_spec.models.neurons import parse_neuron
from stsbp_spec.networks.ops import PSP

pytest.importorskip("nir")

STEPS = 9
EXACT = (
    *("full", "bias", "if", "plif", "no filter", "dropout", "delay", "branches", "convolution", "geometry"),
    *("average pooling", "average pooling by 3", "image", "image, bias", "image vector", "readout"),
    *("learned delays", "learned delays of maps"),
)
"""Small networks that NIR can say; the others are refused by name, or have batch normalisation."""
FILTERED = ("recurrent", "one to one", "recurrent convolution")
"""Those that NIR can say where their input goes through the same synapse."""
CASES = {
    **{name: SMALL[name] for name in EXACT},
    **{name: Small(**{**vars(SMALL[name]), "input_tau_s": SMALL[name].tau_s}) for name in FILTERED},
    **{
        f"{gain}, tau_s = {tau_s:.3g}": Small("10-8", neuron=f"lif:psp_gain={gain}", tau_s=tau_s, input_tau_s=tau_s)
        for gain in ("unit", "normalised")
        for tau_s in (2.0, 3.5, 10.0)
    },
}
_STORED = {"input_type": "shape", "output_type": "shape"}
"""Parameters of nodes that have another name in a file."""


def round_trip(case: Case, path: Path, **options: Any) -> tuple[Imported, RunResult]:
    """A network that was written and read, run on the same inputs."""
    write(program(case.network, case.weights), About("run", "0" * 64, STEPS), path, **options)
    graph = read_graph(path)
    dt = graph.metadata["dt"]
    assert isinstance(dt, np.ndarray)
    imported = import_graph(graph, case.network.input_shape, Choices(float(dt)))
    network = NetworkSpec(case.network.input_shape, (), case.network.coding, imported.input_psp, nodes=imported.nodes)
    return imported, open_backend("numpy").run(network, dict(imported.weights), case.inputs, STEPS)


@pytest.mark.parametrize(
    ("name", "dt"),
    [*((name, 1e-4) for name in CASES), *((name, dt) for name in ("average pooling", "plif") for dt in (1.0, 3e-3))],
)
def test_weights_spikes_and_potentials_come_back(name: str, dt: float, tmp_path: Path) -> None:
    case = case_of(CASES[name], len(name))
    imported, result = round_trip(case, tmp_path / "graph.nir", dt=dt)
    for layer, other in zip(case.run.layers.values(), result.layers.values(), strict=True):
        assert np.array_equal(layer.spikes, other.spikes)
        assert layer.potentials.tobytes() == other.potentials.tobytes()
    assert any(layer.spikes.any() for layer in case.run.layers.values())
    for key, values in case.weights.items():
        if key.endswith(".steps"):
            assert np.array_equal(imported.weights[key.replace(".3", "_3")], np.rint(values)), key
        if key.endswith((".bias", ".decay")) and np.unique(values).size > 1:
            same = key.replace(".", "_").replace("_bias", ".bias").replace("_decay", ".decay")
            assert imported.weights[same].tobytes() == values.tobytes(), key
    written = program(case.network, case.weights).weights
    for key, weights in written.items():
        # Kernels are made square, and groups are written with zeros between them.
        if name != "geometry":
            weights_read = imported.weights[key.replace(".", "_")]
            scale = np.unique(weights_read[weights.values != 0] / weights.values[weights.values != 0])
            assert scale.size == 1, key
            assert np.frexp(scale[0])[0] == 0.5, key
            assert np.array_equal(weights_read, weights.values * scale[0]), key


@pytest.mark.parametrize("gain", ["unit", "normalised"])
def test_weights_come_back_as_they_are_but_for_a_gain_that_is_a_power_of_two(gain: str, tmp_path: Path) -> None:
    for tau_s, factor in ((2.0, 0.5), (3.5, 1.0)):
        case = case_of(CASES[f"{gain}, tau_s = {tau_s:.3g}"])
        imported, _ = round_trip(case, tmp_path / "graph.nir")
        for key, weights in program(case.network, case.weights).weights.items():
            expected = weights.values * (factor if gain == "normalised" else 1.0)
            assert np.array_equal(imported.weights[key], expected), key


@pytest.mark.parametrize(("neuron", "stride"), [("lif", 1), ("plif:per=channel", 37)])
def test_the_gain_of_every_tau_s_comes_back(neuron: str, stride: int) -> None:
    wrong: list[float] = []
    for tau_s in (*map(float, range(1000, 1, -stride)), *np.random.default_rng(0).uniform(1.01, 2000, 200 // stride)):
        model = parse_neuron(neuron, {"tau_m": 5.0, "tau_s": tau_s})
        network = NetworkSpec.parse("2", input_shape=(3,), outputs=2, neuron=model, input_psp=PSP(tau_s))
        exported = program(network, initial_weights(network, 5))
        file = graph_of(exported, Form())
        nodes = {
            name: {"type": node.kind, **{_STORED.get(k, k): x for k, x in node.numbers.items() if k != "metadata"}}
            for name, node in file.nodes.items()
        }
        imported = import_graph(graph(nodes, file.edges), network.input_shape, Choices(Form.dt))
        psp = imported.input_psp
        assert psp is not None
        # Gains that are powers of two are read as part of the weights.
        moved = np.float32(1 / tau_s) if psp.gain == "unit" and np.log2(tau_s) % 1 == 0 else np.float32(1)
        same = moved != 1 or (psp.gain, np.float32(1 / psp.tau_s)) == ("normalised", np.float32(1 / tau_s))
        same &= np.float32(1 - 1 / psp.tau_s) == np.float32(1 - 1 / tau_s)
        if not (same and np.array_equal(imported.weights["linear1"], exported.weights["linear1"].values * moved)):
            wrong.append(tau_s)
    assert not wrong


@pytest.mark.parametrize(("gain", "tau_s"), [("unit", 3.0), ("normalised", 3.0), ("normalised", 42.0)])
@pytest.mark.parametrize("net", ["4C3-P2-6C2", "4C3b-P2-P2-6b", "4C3-P3-6"])
def test_sums_of_windows_come_back_as_means(net: str, gain: str, tau_s: float, tmp_path: Path) -> None:
    case = case_of(Small(net, IMAGE, neuron=f"lif:psp_gain={gain}", tau_s=tau_s, input_tau_s=tau_s))
    _, result = round_trip(case, tmp_path / "graph.nir", pool="sum")
    for layer, other in zip(case.run.layers.values(), result.layers.values(), strict=True):
        assert np.array_equal(layer.spikes, other.spikes)
        assert layer.potentials.tobytes() == other.potentials.tobytes()


def test_twice_out_and_in_is_as_once(tmp_path: Path) -> None:
    case = case_of(CASES["bias"])
    imported, _ = round_trip(case, tmp_path / "one.nir")
    network = NetworkSpec(case.network.input_shape, (), "events", imported.input_psp, nodes=imported.nodes)
    imported_case = Case(network, dict(imported.weights), case.inputs, case.run)
    second, result = round_trip(imported_case, tmp_path / "two.nir")
    assert second.weights.keys() == imported.weights.keys()
    assert all(np.array_equal(x, second.weights[name]) for name, x in imported.weights.items())
    assert [layer.spikes.tobytes() for layer in result.layers.values()] == [
        layer.spikes.tobytes() for layer in case.run.layers.values()
    ]


def test_batch_normalisation_comes_back_as_weights(tmp_path: Path) -> None:
    case = case_of(SMALL["normalised"])
    imported, _ = round_trip(case, tmp_path / "graph.nir")
    assert "conv1.bias" in imported.weights
    assert any(name == "conv1" and "multiplied" in text for name, text in imported.notes)


@pytest.mark.usefixtures("few_recordings")
@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("digits", ("--psp-gain", "unit", "--tau-s", "3")),
        # A synapse of the input whose gain is a power of two is read as `unit`, and the others as `normalised`.
        ("digits-events", ("--psp-gain", "normalised", "--tau-s", "3", "--input-tau-s", "4")),
        ("digits-events", ("--psp-gain", "unit", "--tau-s", "4", "--input-tau-s", "3")),
    ],
    ids=["images", "normalised", "unit"],
)
def test_a_run_goes_out_and_comes_in(
    data: str, options: tuple[str, ...], tiny: tuple[str, ...], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    train = stsbp("train", data, *tiny, "--out", "run", "--net", "12-9", "--tau-m", "5", *options)
    assert train.exit_code == 0, train.output
    assert stsbp("export", "run", "--to", "nir", "--out", "run.nir").exit_code == 0
    result = stsbp("import", "run.nir", "--config", "run/config.toml", "--out", "back")
    assert result.exit_code == 0, result.output
    assert "the weights lie on the grid as they are" in result.stdout
    shown = [stsbp("evaluate", name, "--json") for name in ("run", "back")]
    first, second = (json.loads(evaluated.stdout) for evaluated in shown)
    for key in ("loss", "accuracy", "accuracy_spike_count", "confusion"):
        assert first[key] == second[key]
    shape = (5, 1, 8, 8) if data == "digits" else (3, 5, *load_run("run", backend="numpy").network.input_shape)
    inputs = np.random.default_rng(0).integers(0, 256 if data == "digits" else 2, shape, dtype=np.uint8)
    first, second = (load_run(name, backend="numpy").predict(inputs).spikes for name in ("run", "back"))
    assert np.array_equal(first, second)
    assert stsbp("nir-check", "run.nir", "--expect", "stsbp", "--expect", "spikingjelly").exit_code == 0


def test_a_file_of_a_run_says_its_steps_itself(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    assert train_tiny(tmp_path / "run", "--steps", "5").exit_code == 0
    assert stsbp("export", "run", "--to", "nir", "--out", "run.nir").exit_code == 0
    result = stsbp("import", "run.nir", "--dataset", "digits", "--out", "back")
    assert result.exit_code == 0, result.output
    assert "run.nir was exported from the stsbp run 'run', trained with 5 steps" in result.stdout
    assert load_run("back", backend="numpy").settings.steps == 5
    assert stsbp("import", "run.nir", "--dataset", "digits", "--steps", "6", "--out", "longer").exit_code == 0
    assert load_run("longer", backend="numpy").settings.steps == 6
    missing = stsbp("import", "run.nir", "--out", "none")
    assert (missing.exit_code, "give --dataset, for example --dataset digits" in missing.stderr) == (1, True)


def test_a_file_of_others_is_not_replaced(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    import h5py

    assert train_tiny(tmp_path / "run").exit_code == 0
    for _ in range(2):
        assert stsbp("export", "run", "--to", "nir", "--out", "run.nir").exit_code == 0
    content = Path("run.nir").read_bytes()
    with h5py.File("run.nir", "a") as file:
        del file["node/metadata/writer"]
    theirs = Path("run.nir").read_bytes()
    result = stsbp("export", "run", "--to", "nir", "--out", "run.nir")
    assert (result.exit_code, "stsbp did not write it: it is not replaced" in result.stderr) == (1, True)
    assert Path("run.nir").read_bytes() == theirs
    Path("run.nir").write_bytes(content[:2000])
    assert stsbp("export", "run", "--to", "nir", "--out", "run.nir").exit_code == 1
