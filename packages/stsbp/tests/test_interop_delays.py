"""Networks with learned delays in files of NIR: out and in again, files of others, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from nir_files import chain, full, lif, written
from small_networks import IMAGE, Case, Small, case_of
from stsbp import load_run
from stsbp.errors import DataError
from stsbp.interop.nir_file import write
from stsbp.interop.nir_import import Imported, import_graph
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import read_graph
from stsbp.interop.program import About, program
from stsbp_spec import LearnedDelay, NetworkSpec, open_backend

nir = pytest.importorskip("nir")

DT = 1e-3
NETWORKS = {
    "flattened": "4C3-F-T3-8",
    "before and after flattening": "4C3-T4-F-T3-8",
    "groups": "8C3-T4-8C3{groups=4}-T3-P2-T2-8",
    "depthwise": "4C3-T4-4C3x1{groups=4}-F-T5-8-T3-6",
    "pooled by 3": "4C3p1-P3-T4-8",
    "input": "T5-4C3-8",
    "flattened input": "F-T5-8",
    "branches": "4C3-[F-T3|F]+-8-[T2|T4-T1|]+-6",
    "one after the other": "10-T3-T2-D0.1-T1-8",
}


def exported(case: Case, path: Path, **options: Any) -> Path:
    write(program(case.network, case.weights), About("run", "0" * 64, len(case.inputs)), path, **options)
    return path


def network_of(imported: Imported, case: Case) -> NetworkSpec:
    return NetworkSpec(case.network.input_shape, (), case.network.coding, imported.input_psp, nodes=imported.nodes)


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("name", NETWORKS)
def test_delays_and_their_largest_values_come_back(name: str, pool: str, tmp_path: Path) -> None:
    case = case_of(Small(NETWORKS[name], IMAGE), 5, 20, 2)
    read = read_graph(exported(case, tmp_path / "a.nir", dt=DT, pool=pool))
    imported = import_graph(read, IMAGE, Choices(DT))
    network = network_of(imported, case)
    assert {key.replace("_", "."): most for key, most in network.graph.delays.items()} == case.network.graph.delays
    parameters = network.graph.parameters
    for key, most in case.network.graph.delays.items():
        delays = imported.weights[f"{key.removesuffix('.steps').replace('.', '_')}.steps"]
        assert np.array_equal(delays, np.rint(case.weights[key])), key
        assert delays.max() == most
    assert {key: x.shape for key, x in imported.weights.items()} == {key: parameters[key].shape for key in parameters}
    result = open_backend("numpy").run(network, dict(imported.weights), case.inputs, len(case.inputs))
    for layer, other in zip(case.run.layers.values(), result.layers.values(), strict=True):
        assert layer.spikes.any()
        assert np.array_equal(layer.spikes, other.spikes)
        assert layer.potentials.tobytes() == other.potentials.tobytes()
    again = Case(network, dict(imported.weights), case.inputs, case.run)
    second = import_graph(read_graph(exported(again, tmp_path / "b.nir", dt=DT)), IMAGE, Choices(DT))
    assert network_of(second, case).graph.delays == network.graph.delays
    for key in network.graph.delays:
        assert second.weights[key].tobytes() == imported.weights[key].tobytes()


def test_the_file_has_a_delay_for_each_neuron_in_seconds(tmp_path: Path) -> None:
    case = case_of(Small("4C3-T4-8", IMAGE))
    graph = nir.read(exported(case, tmp_path / "a.nir", dt=DT))
    delays = np.rint(case.weights["delay2.steps"].astype(np.float64))
    node = graph.nodes["delay2"]
    assert node.delay.shape == (4, 6, 6)
    assert np.array_equal(node.delay, np.broadcast_to(delays[:, None, None], node.delay.shape) * DT)
    assert json.loads(graph.metadata["largest_delays"]) == {"delay2": 4}
    plain = nir.read(exported(case_of(Small("10-8{delay=3}")), tmp_path / "b.nir"))
    assert "largest_delays" not in plain.metadata


def test_delays_that_are_all_the_same_are_learned_only_if_the_file_says_so(tmp_path: Path) -> None:
    case = case_of(Small("10-T4-8"))
    case.weights["delay2.steps"][:] = 2.25
    read = read_graph(exported(case, tmp_path / "a.nir"))
    own = import_graph(read, case.network.input_shape, Choices(1e-4))
    assert [node.op.maximum for node in own.nodes if isinstance(node.op, LearnedDelay)] == [4]
    assert own.weights["delay2.steps"].tolist() == [2.0] * 10
    del read.metadata["largest_delays"]  # type: ignore[attr-defined]
    other = import_graph(read, case.network.input_shape, Choices(1e-4))
    assert not any(isinstance(node.op, LearnedDelay) for node in other.nodes)
    assert [edge.delay for node in other.nodes if node.name == "linear2" for edge in node.inputs] == [2]


def foreign(path: Path, delay: Any, **metadata: str) -> Path:
    """A file whose second layer reads the spikes of the first one later."""
    nodes = {
        "input": {"type": "Input", "shape": np.array([5])},
        "a": {"type": "Linear", "weight": full(4, 5)},
        "n": lif(4),
        "late": {"type": "Delay", "delay": np.asarray(delay)},
        "b": {"type": "Linear", "weight": full(3, 4)},
        "o": lif(3),
        "output": {"type": "Output", "shape": np.array([3])},
    }
    return written(path, nodes, chain(*nodes), **({"metadata": metadata} if metadata else {}))


def test_a_file_of_others_has_its_longest_delay_as_the_largest(tmp_path: Path) -> None:
    read = read_graph(foreign(tmp_path / "a.nir", np.array([0, 7, 2, 1], np.float32) * np.float32(DT)))
    imported = import_graph(read, (5,), Choices(DT))
    (delay,) = (node for node in imported.nodes if isinstance(node.op, LearnedDelay))
    assert (delay.name, delay.op) == ("late", LearnedDelay(7))
    assert imported.weights["late.steps"].tolist() == [0, 7, 2, 1]
    assert imported.weights["late.steps"].dtype == np.float32
    assert (
        "late",
        "learned delays of at most 7 steps, its longest, since the file states no maximum",
    ) in imported.notes


WRONG: dict[str, tuple[Any, dict[str, str], str]] = {
    "negative": ([0, -1e-3, 0, 0], {}, "delay is -1 steps of 0.001 s, but must be a whole number of them, at most 65"),
    "fraction": ([0, 1e-3, 2.5e-3, 0], {}, "delay is 2.5 steps of 0.001 s, but must be a whole number"),
    "a little above": ([0, 1e-3, 2.01e-3, 0], {}, "delay is 2.01 steps"),
    "no number": ([0, 1e-3, np.nan, 0], {}, "delay is not finite"),
    "infinite": ([0, 1e-3, np.inf, 0], {}, "delay is not finite"),
    "beyond float64": ([0, 1e-3, 1e308, 0], {}, "delay is inf steps"),
    "1e9": ([0, 1e-3, 1e9, 0], {}, r"delay is 1e\+12 steps"),
    "too long": ([0, 65.537, 1e-3, 0], {}, "delay is 65537 steps"),
    "too few": (np.arange(3) * 1e-3, {}, r"delay has the shape \[3\], but the neurons have the shape \[4\]"),
    "too many": (np.arange(5) * 1e-3, {}, r"delay has the shape \[5\], but the neurons have the shape \[4\]"),
    "empty": (np.zeros(0), {}, "delay is empty, but must be numbers"),
    "too few of one": (np.full(3, 1e-3), {"largest_delays": '{"late": 4}'}, r"delay has the shape \[3\]"),
    "above its maximum": (np.arange(4) * 1e-3, {"largest_delays": '{"late": 2}'}, "a delay is 3 steps, but at most 2"),
    "maximum of 0": (np.arange(4) * 1e-3, {"largest_delays": '{"late": 0}'}, "its largest delay in the metadata is 0"),
    "maximum of 1e9": (np.arange(4) * 1e-3, {"largest_delays": '{"late": 1000000000}'}, "must be a whole number from"),
    "half a maximum": (np.arange(4) * 1e-3, {"largest_delays": '{"late": 3.5}'}, "its largest delay in the metadata"),
    "maximum as text": (np.arange(4) * 1e-3, {"largest_delays": '{"late": "3"}'}, "its largest delay in the metadata"),
}
"""Delays, metadata, and what is said about them."""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_delays_are_refused_with_their_node(name: str, tmp_path: Path) -> None:
    delay, metadata, message = WRONG[name]
    with pytest.raises(DataError, match=rf"node late \(Delay\): .*{message}"):
        import_graph(read_graph(foreign(tmp_path / "a.nir", delay, **metadata)), (5,), Choices(DT))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the metadata largest_delays must be numbers of steps by node, in JSON"),
        ("[" * 100_000, "the metadata largest_delays must be"),
        ("[3]", "the metadata largest_delays must be"),
        ('{"b": 3}', "the metadata largest_delays name 'b', which is not a Delay of the graph"),
        ('{"gone": 3}', "the metadata largest_delays name 'gone', which is not a Delay of the graph"),
    ],
    ids=["no JSON", "deep", "a list", "weights", "no node"],
)
def test_wrong_metadata_are_refused(text: str, message: str, tmp_path: Path) -> None:
    read = read_graph(foreign(tmp_path / "a.nir", np.arange(4) * 1e-3, largest_delays=text))
    with pytest.raises(DataError, match=re.escape(message)):
        import_graph(read, (5,), Choices(DT))


def test_delays_within_a_channel_must_be_the_same(tmp_path: Path) -> None:
    case = case_of(Small("4C3-T4-8", IMAGE))
    graph = nir.read(exported(case, tmp_path / "a.nir", dt=DT))
    graph.nodes["delay2"].delay[1, 2, 3] += DT
    nir.write(tmp_path / "b.nir", graph)
    with pytest.raises(DataError, match=r"node delay2 \(Delay\): delay differs within a channel, but the neurons of a"):
        import_graph(read_graph(tmp_path / "b.nir"), IMAGE, Choices(DT))


@pytest.mark.parametrize("net", ["4C3-F-T3-8", "4C3-T4-F-T3-8", "8C3-T4-8C3{groups=4}-6"])
def test_a_run_goes_out_and_comes_in(net: str, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--net", net, "--steps", 6, "--epochs", 1, "--limit", 60, "--holdout", 20, "--init-gain", 4)
    train = stsbp("train", "digits", *options, "--out", "run")
    assert train.exit_code == 0, train.output
    assert stsbp("export", "run", "--to", "nir", "--out", "run.nir").exit_code == 0
    result = stsbp("import", "run.nir", "--config", "run/config.toml", "--out", "back")
    assert result.exit_code == 0, result.output
    shown = [json.loads(stsbp("evaluate", name, "--json").stdout) for name in ("run", "back")]
    for key in ("loss", "accuracy", "confusion"):
        assert shown[0][key] == shown[1][key]
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    first, second = (load_run(name, backend="numpy").predict(images).spikes for name in ("run", "back"))
    assert np.array_equal(first, second)
    assert stsbp("train", "--resume", "back", "--epochs", 1).exit_code == 0
    assert stsbp("nir-check", "run.nir", "--expect", "stsbp").exit_code == 0


def test_a_refused_file_leaves_no_run(
    stsbp: Callable[..., Result], refused: Callable[..., None], tmp_path: Path
) -> None:
    path = foreign(tmp_path / "a.nir", [0, 1e-3, -2e-3, 0])
    refused(
        stsbp("import", path, "--dataset", "digits", "--dt", DT, "--out", "run"),
        "a.nir",
        "node late (Delay): delay is -2 steps",
    )
    assert not (tmp_path / "run").exists()


def test_parameters_that_do_not_fit_leave_no_run(
    stsbp: Callable[..., Result], refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(Small("4C3-F-T3-8", (1, 8, 8), "direct"))
    exported(case, tmp_path / "a.nir")
    # The delays of flattened neurons would read the neurons themselves.
    monkeypatch.setattr("stsbp.interop.nir_import._Import.flat", lambda self, source: source)
    refused(stsbp("import", "a.nir", "--dataset", "digits", "--out", "run"), "a.nir", "delay2.steps")
    assert not (tmp_path / "run").exists()
