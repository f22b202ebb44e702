"""`stsbp export --to nir`: what the library nir reads of the files, and what it computes as spikingjelly reads it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp
from click.testing import Result
from nir_interpreter import numbers_of, run
from small_networks import NODES, SMALL, Case, Small, case, case_of
from stsbp.errors import ConfigError, FileError
from stsbp.interop.nir_file import write
from stsbp.interop.nir_graph import NO_LEAK
from stsbp.interop.nir_readings import READINGS
from stsbp.interop.program import About, program
from stsbp_spec import initial_weights, open_backend
from stsbp_spec.networks.spec import NetworkSpec

nir = pytest.importorskip("nir", reason="files of NIR need the library nir")

REFUSED = {
    "soft reset": ("neurons1", "reset=subtract"),
    "alif": ("neurons1", "neuron=alif"),
    "second order": ("linear2", "tau_rise=1.5"),
    "max pooling": ("maxpool2.0", "pool by means"),
    "upsampling": ("upsample2.1", "no upsampling"),
    "concatenation": ("maps", "NIR has no concatenation; let the neurons above read each branch through weights of"),
    "image, concatenation": ("large", "no upsampling"),
    "recurrent": ("neurons1", "linear1 and linear1.recurrent", "tau_s"),
    "one to one": ("neurons1", "linear1 and linear1.recurrent", "tau_s"),
    "recurrent convolution": ("neurons1", "conv1 and conv1.recurrent", "tau_s"),
    "nodes": ("both", "late and skip", "tau_s"),
}
FILTERED = {
    f"{name}, filtered input": replace(SMALL[name], input_tau_s=SMALL[name].tau_s)
    for name in ("recurrent", "one to one", "recurrent convolution")
}
DELAYED = """\
[[node]]
name = "a"
weights = "10"
from = "input"

[[node]]
name = "output"
neurons = ""
from = ["a"]

[[node]]
name = "a.b"
weights = "8"
from = [{node = "output", delay = 3}]

[[node]]
name = "a_b"
weights = "8"
from = ["output"]

[[node]]
name = "a.c"
weights = "8"
weights_of = "a.b"
from = ["output"]

[[node]]
name = "sums"
neurons = ""
from = ["a.b", "a_b", "a.c"]

[[node]]
name = "end"
weights = "4"
from = "sums"

[[node]]
name = "last"
neurons = ""
from = ["end"]
"""
TAUS = ((2, 2), (4, 8), (3, 5), (5 / 3, 7), (2.5, 3), (10, 20))


def written(network_case: Case, out: Path, **options: Any) -> tuple[Any, list[str]]:
    """The graph that nir reads of an exported network, and what was said."""
    about = About("a run", "0" * 64, len(network_case.inputs), ("yes", "no"))
    lines = write(program(network_case.network, network_case.weights), about, out, **options)
    return nir.read(out), lines


def differs(network_case: Case, graph: Any, dt: float = 1e-4) -> list[tuple[str, int, float]]:
    """Of each population how many spikes differ from the reference's, and the largest distance of potentials."""
    inputs, steps = network_case.inputs.astype(np.float32), len(next(iter(network_case.run.layers.values())).spikes)
    if network_case.network.coding == "direct":
        inputs = np.broadcast_to(inputs / np.float32(256), (steps, *inputs.shape))
    populations = run(graph, inputs, dt)
    assert len(populations) == len(network_case.run.layers)
    rows = []
    for (name, (potentials, spikes)), layer in zip(populations.items(), network_case.run.layers.values(), strict=True):
        readout = type(graph.nodes[name]).__name__ == "CubaLI"
        count = 0 if readout else int((spikes != layer.spikes).sum())
        rows.append((name, count, float(np.abs(potentials - layer.potentials).max())))
    return rows


@pytest.mark.parametrize("name", [name for name in SMALL if name not in REFUSED])
def test_small_networks_have_the_same_spikes_and_potentials(name: str, tmp_path: Path) -> None:
    graph, lines = written(case(name), tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(case(name), graph)), differs(case(name), graph)
    assert "to the bit" in lines[-3]
    assert any("neurons2: its neurons differ in tau_mem" in line for line in lines) is (name == "plif")


@pytest.mark.parametrize("name", FILTERED)
def test_recurrence_is_an_edge_back(name: str, tmp_path: Path) -> None:
    network_case = case_of(FILTERED[name], 3)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))
    names = [edge[0] for edge in graph.edges if edge[1].endswith("_recurrent")]
    assert names == ["neurons1"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_say_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        written(case(name), tmp_path / "a.nir")
    assert all(part in str(error.value) for part in REFUSED[name]), error.value
    assert not (tmp_path / "a.nir").exists()


@pytest.mark.parametrize(("tau_m", "tau_s"), TAUS)
@pytest.mark.parametrize("gain", ["unit", "normalised"])
def test_time_constants_and_gains(tau_m: float, tau_s: float, gain: str, tmp_path: Path) -> None:
    neuron = f"lif:psp_gain={gain}"
    network_case = case_of(Small("30-20", (40,), neuron=neuron, tau_m=tau_m, tau_s=tau_s), steps=40, samples=4)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))
    has_own_node = gain == "normalised" and tau_s not in (2, 8)
    assert ("neurons2_gain" in graph.nodes) is has_own_node


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 1.0, 0.3e-3])
def test_time_constants_are_seconds_whose_decays_come_out_right(dt: float, tmp_path: Path) -> None:
    network_case = case("bias")
    graph, lines = written(network_case, tmp_path / "a.nir", dt=dt)
    node = graph.nodes["neurons2"]
    assert type(node).__name__ == "CubaLIF"
    for tau, decay in ((node.tau_mem, 1 - 1 / 3.0), (node.tau_syn, 1 - 3 / 5)):
        assert tau.dtype == np.float64
        assert tau.shape == (8,)
        assert ((1 - dt / tau).astype(np.float32) == np.float32(decay)).all()
    assert np.allclose(node.r, node.tau_mem / dt, rtol=1e-12)
    assert np.allclose(node.w_in, node.tau_syn / dt, rtol=1e-12)
    assert not node.v_leak.any()
    assert not node.v_reset.any()
    assert (node.v_threshold == 1).all()
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph, dt))
    assert f"a step of {dt:g} s" in lines[0]
    assert float(graph.metadata["dt"]) == dt


def test_a_network_with_unit_gain_is_weights_and_neurons(tmp_path: Path) -> None:
    network_case = case_of(Small("10", neuron="lif:psp_gain=unit"), 1)
    graph, lines = written(network_case, tmp_path / "a.nir")
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds == {
        "input": "Input",
        "linear1": "Affine",
        "neurons1": "CubaLIF",
        "linear2": "Affine",
        "neurons2": "CubaLIF",
        "output": "Output",
    }
    chain = ["input", "linear1", "neurons1", "linear2", "neurons2", "output"]
    assert sorted(graph.edges) == sorted(itertools.pairwise(chain))
    exported = program(network_case.network, network_case.weights)
    for name in ("linear1", "linear2"):
        assert graph.nodes[name].weight.dtype == np.float32
        assert np.array_equal(graph.nodes[name].weight, exported.weights[name].values)
        assert not graph.nodes[name].bias.any()
    # The first layer reads what has no filter: a current that is forgotten after a step.
    assert (graph.nodes["neurons1"].tau_syn == 1e-4).all()
    assert lines[1] == "input: spikes, 0 or 1, a frame a step"


def test_exported_nodes_meet_the_checks_of_importers(tmp_path: Path) -> None:
    for name in ("full", "no filter", "if", "average pooling"):
        graph, _ = written(case(name), tmp_path / f"{name}.nir")
        for node in graph.nodes.values():
            for importer in ("spikingjelly", "snntorch"):
                reading = READINGS[importer].neurons.get(type(node).__name__)
                if reading is not None and (importer, type(node).__name__) != ("snntorch", "IF"):
                    asks = [ask.text for ask in reading.asks if not ask.holds(numbers_of(node), 1e-4)]
                    assert asks == [], importer


def test_metadata_say_where_a_graph_comes_from(tmp_path: Path) -> None:
    graph, _ = written(case("full"), tmp_path / "a.nir")
    metadata = graph.metadata
    assert metadata["run"] == "a run"
    assert metadata["checkpoint_sha256"] == "0" * 64
    assert json.loads(metadata["classes"]) == ["yes", "no"]
    assert metadata["writer"] == f"stsbp {stsbp.__version__}"
    assert (int(metadata["contract"]), int(metadata["steps"])) == (2, 9)
    assert graph.nodes["neurons2_gain"].metadata == {"stsbp": "gain"}
    first = (tmp_path / "a.nir").read_bytes()
    written(case("full"), tmp_path / "a.nir")
    assert (tmp_path / "a.nir").read_bytes() == first


def test_thresholds_below(tmp_path: Path) -> None:
    plain, _ = written(case("if"), tmp_path / "a.nir")
    lowered, lines = written(case("if"), tmp_path / "b.nir", threshold_below=True)
    for name in ("neurons1", "neurons2"):
        assert (plain.nodes[name].v_threshold == 1).all()
        assert (lowered.nodes[name].v_threshold == np.nextafter(np.float32(1), np.float32(0))).all()
    assert np.array_equal(plain.nodes["linear1"].weight, lowered.nodes["linear1"].weight)
    assert "v > v_threshold" in lines[-1]


def test_integrate_and_fire(tmp_path: Path) -> None:
    graph, _ = written(case("if"), tmp_path / "a.nir")
    assert type(graph.nodes["neurons1"]).__name__ == "IF"
    assert (graph.nodes["neurons1"].r == 1e4).all()
    assert type(graph.nodes["neurons2"]).__name__ == "CubaLIF"
    assert (graph.nodes["neurons2"].tau_mem == NO_LEAK * 1e-4).all()


def test_sums_of_windows(tmp_path: Path) -> None:
    network_case = case("average pooling")
    means, _ = written(network_case, tmp_path / "a.nir")
    sums, _ = written(network_case, tmp_path / "b.nir", pool="sum")
    assert [type(means.nodes[name]).__name__ for name in ("pool2_0", "pool3_0")] == ["AvgPool2d", "SumPool2d"]
    assert [type(sums.nodes[name]).__name__ for name in ("pool2_0", "pool3_0")] == ["SumPool2d", "SumPool2d"]
    assert np.array_equal(means.nodes["conv2"].weight, sums.nodes["conv2"].weight * 4)
    assert np.array_equal(means.nodes["linear3"].weight, sums.nodes["linear3"].weight)
    assert all(count == distance == 0 for _, count, distance in differs(network_case, sums))


def test_sums_of_windows_meet_no_others(tmp_path: Path) -> None:
    network_case = case_of(Small("4C3p1-[P2|4C3p1s2]+-6", (2, 8, 8)), 2)
    with pytest.raises(ConfigError, match=r"add3\.\d.*--pool mean"):
        written(network_case, tmp_path / "a.nir", pool="sum")
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


@pytest.mark.parametrize("name", ["bias", "normalised", "average pooling by 3", "image, bias"])
def test_folded_networks_say_what_is_rounded(name: str, tmp_path: Path) -> None:
    network_case = case(name)
    exact, _ = written(network_case, tmp_path / "a.nir")
    folded, lines = written(network_case, tmp_path / "b.nir", fold=True)
    extra = {n for n in exact.nodes if n.endswith(("_gain", "_bias", "_mean", "_scale", "_shift"))}
    assert extra
    assert set(folded.nodes) == set(exact.nodes) - extra
    assert lines[-1] == "so spikes can differ from those of the run"
    assert any("folded into weights and bias" in line for line in lines)
    assert 0 < max(distance for *_, distance in differs(network_case, folded)) < 1e-5
    assert "folded" in folded.metadata["notes"]


def test_folded_weights_are_products(tmp_path: Path) -> None:
    network_case = case("normalised")
    folded, _ = written(network_case, tmp_path / "a.nir", fold=True)
    conv = program(network_case.network, network_case.weights).weights["conv1"]
    assert conv.norm is not None
    a = conv.norm.a.astype(np.float64)
    assert np.array_equal(folded.nodes["conv1"].weight, (conv.values * a[:, None, None, None]).astype(np.float32))
    shift = (conv.norm.shift - conv.norm.mean.astype(np.float64) * a).astype(np.float32)
    assert np.allclose(folded.nodes["conv1"].bias, shift, rtol=1e-6)


def test_folding_a_power_of_two_rounds_nothing(tmp_path: Path) -> None:
    network_case = case_of(Small("10", tau_s=4.0), 1)
    graph, lines = written(network_case, tmp_path / "a.nir", fold=True)
    assert "to the bit" in lines[-3]
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))
    weights = program(network_case.network, network_case.weights).weights["linear2"].values
    assert np.array_equal(graph.nodes["linear2"].weight * 4, weights)


def test_geometry_is_written_as_nir_checks_it(tmp_path: Path) -> None:
    network_case = case_of(Small("4C3x5p1x2s2x1-4C3x1p1x0{dilation=2}-8C3p1{groups=4}", (2, 9, 11)), 5)
    graph, _ = written(network_case, tmp_path / "a.nir")
    shapes = [graph.nodes[name].weight.shape for name in ("conv1", "conv2", "conv3")]
    assert shapes == [(4, 2, 5, 5), (4, 4, 3, 3), (8, 4, 3, 3)]
    assert [int(graph.nodes[name].groups) for name in ("conv1", "conv2", "conv3")] == [1, 1, 1]
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


def test_a_kernel_that_cannot_be_square_says_how_to_read_it(tmp_path: Path) -> None:
    network_case = case_of(Small("4C1x2-6", (2, 1, 9)), 5)
    about = About("r", "0" * 64, 9)
    lines = write(program(network_case.network, network_case.weights), about, tmp_path / "a.nir")
    assert any("conv1" in line and "type_check=False" in line for line in lines)
    graph = nir.read(tmp_path / "a.nir", type_check=False)
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


def test_names_and_delays(tmp_path: Path) -> None:
    network_case = case_of(Small(DELAYED, neuron="lif:psp_gain=unit", tau_s=4.0), 4)
    graph, lines = written(network_case, tmp_path / "a.nir")
    assert {"output_", "a_b", "a_b_", "a_c", "output__delay3"} <= set(graph.nodes)
    assert np.allclose(graph.nodes["output__delay3"].delay, 3e-4)
    assert np.array_equal(graph.nodes["a_b"].weight, graph.nodes["a_c"].weight)
    assert any("Delay" in line for line in lines)
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


TWO = """\
[[node]]
name = "a"
weights = "10"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = ["a"]

[[node]]
name = "b"
weights = "8"
from = "fires"

[[node]]
name = "c"
weights = "8"
from = "fires"

[[node]]
name = "both"
neurons = ""
from = ["b", "c"]

[[node]]
name = "both_gain"
weights = "4"
from = "both"

[[node]]
name = "last"
neurons = ""
from = ["both_gain"]
"""


def test_two_sums_have_no_order(tmp_path: Path) -> None:
    network_case = case_of(Small(TWO), 4)
    weights = {**network_case.weights, "b": network_case.weights["b"] * np.float32(2.0**-20)}
    network_case = Case(
        network_case.network,
        weights,
        network_case.inputs,
        open_backend("numpy").run(network_case.network, weights, network_case.inputs, 9),
    )
    graph, lines = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))
    assert "to the bit" in lines[-3]
    # A name that the network has itself.
    assert graph.nodes["both_gain"].weight.shape == (4, 8)
    assert graph.nodes["both_gain_"].weight.shape == (8, 8)


def test_sums_of_weights_are_delayed(tmp_path: Path) -> None:
    text = TWO.replace('from = ["b", "c"]', 'from = ["b", {node = "c", delay = 2}]')
    network_case = case_of(Small(text), 4)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert graph.nodes["c_delay2"].delay.shape == (8,)
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))
    biased = text.replace('"c"\nweights = "8"', '"c"\nweights = "8b"')
    with pytest.raises(ConfigError, match="both cannot be written: it reads c with a delay and a bias"):
        written(case_of(Small(biased), 4), tmp_path / "a.nir", fold=True)


def test_biases_have_currents_of_their_own(tmp_path: Path) -> None:
    text = TWO.replace('weights = "8"', 'weights = "8b"')
    network_case = case_of(Small(text), 4)
    with pytest.raises(ConfigError, match="both: the currents of b and c are added before the synapse"):
        written(network_case, tmp_path / "a.nir")
    network_case = case_of(Small(text, tau_s=1.0), 4)
    graph, _ = written(network_case, tmp_path / "b.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


def test_three_currents_of_their_own_are_refused(tmp_path: Path) -> None:
    text = DELAYED.replace('weights = "8"', 'weights = "8b"')
    network_case = case_of(Small(text, tau_s=1.0), 4)
    with pytest.raises(ConfigError, match="sums: its currents may be added in any order"):
        written(network_case, tmp_path / "a.nir")


POOLED = """\
[[node]]
name = "small"
layer = "P3"
from = "input"

[[node]]
name = "a"
weights = "4C1"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = ["a"]

[[node]]
name = "pooled"
layer = "P3"
from = "fires"

[[node]]
name = "b"
weights = "4C1"
from = "small"

[[node]]
name = "c"
weights = "4C1"
from = "pooled"

[[node]]
name = "both"
neurons = ""
from = ["b", "c"]

[[node]]
name = "d"
weights = "4"
from = "both"

[[node]]
name = "last"
neurons = ""
from = ["d"]
"""


def test_an_image_has_a_current_of_its_own(tmp_path: Path) -> None:
    network_case = case_of(Small(POOLED, (2, 9, 9), "direct", tau_s=1.0), 4)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert {"both_gain1", "both_gain2"} <= set(graph.nodes)
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


@pytest.mark.parametrize("net", ["10R", "10Rb", "10b{recurrent=one-to-one}"])
def test_recurrence_without_synapses_beside_an_image(net: str, tmp_path: Path) -> None:
    network_case = case_of(Small(net, (12,), "direct", tau_s=1.0), 4)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


def test_a_gain_that_would_make_weights_vanish_keeps_its_node(tmp_path: Path) -> None:
    network_case = case_of(Small("10", tau_s=2.0**60), 4)
    weights = {**network_case.weights, "linear2": network_case.weights["linear2"] * np.float32(2.0**-80)}
    write(program(network_case.network, weights), About("r", "0" * 64, 9), tmp_path / "a.nir")
    graph = nir.read(tmp_path / "a.nir")
    assert np.array_equal(graph.nodes["linear2_gain"].weight, np.eye(4, dtype=np.float32) * np.float32(2.0**-60))
    assert np.array_equal(
        graph.nodes["linear2"].weight, program(network_case.network, weights).weights["linear2"].values
    )


def test_a_node_that_reads_another_one_twice_is_refused(tmp_path: Path) -> None:
    text = NODES.replace('from = ["late", "skip"]', 'from = ["late", "late"]').replace("neuron=alif", "")
    text = text.replace('[[node]]\nname = "skip"\nweights = "6b"\nfrom = "input"\n\n', "")
    with pytest.raises(ConfigError, match=r"both\w* cannot be written: it reads late twice"):
        written(case_of(Small(text)), tmp_path / "a.nir")


def test_folding_adds_currents_of_one_time_constant_before_the_synapse(tmp_path: Path) -> None:
    text = DELAYED.replace('"a_b"\nweights = "8"', '"a_b"\nweights = "8b"')
    network_case = case_of(Small(text), 6)
    with pytest.raises(ConfigError, match=r"sums: the currents of a\.b and a_b and a\.c are added before the synapse"):
        written(network_case, tmp_path / "a.nir")
    graph, lines = written(network_case, tmp_path / "a.nir", fold=True)
    assert lines[-1].startswith("so spikes can differ")
    assert max(distance for *_, distance in differs(network_case, graph)) < 1e-5


def test_three_sums_that_round_in_some_order_are_refused(tmp_path: Path) -> None:
    network_case = case_of(Small(DELAYED, neuron="lif:psp_gain=unit"), 4)
    weights = dict(network_case.weights)
    weights["a_b"] = weights["a_b"] * np.float32(2.0**-20)
    about = About("r", "0" * 64, 9)
    with pytest.raises(ConfigError, match="sums: its inputs may be added in any order"):
        write(program(network_case.network, weights), about, tmp_path / "a.nir")


@pytest.mark.parametrize(("net", "shape", "steps", "samples"), [("1", (1,), 1, 1), ("1", (1, 1, 1), 2, 1)])
def test_the_smallest_networks(net: str, shape: tuple[int, ...], steps: int, samples: int, tmp_path: Path) -> None:
    network_case = case_of(Small(net, shape), 0, steps, samples)
    graph, _ = written(network_case, tmp_path / "a.nir")
    assert all(count == distance == 0 for _, count, distance in differs(network_case, graph))


def test_decays_that_no_time_constant_has_are_refused(tmp_path: Path) -> None:
    network = NetworkSpec.parse("3{neuron=plif,per=channel}", input_shape=(2,), outputs=2)
    weights = initial_weights(network, 0, 1.0)
    about = About("r", "0" * 64, 3)
    weights["linear1.decay"] = np.array([0, 1, 0.5], np.float32)
    write(program(network, weights), about, tmp_path / "a.nir")
    taus = nir.read(tmp_path / "a.nir").nodes["neurons1"].tau_mem
    assert np.array_equal(taus, np.array([1, NO_LEAK, 2]) * 1e-4)
    weights["linear1.decay"] = np.array([0, 1e-12, 0.5], np.float32)
    with pytest.raises(ConfigError, match=r"neurons1, tau_m cannot be written.*9\.99999996e-13"):
        write(program(network, weights), about, tmp_path / "b.nir")


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file.create_dataset("version", data=np.zeros(3))
    (tmp_path / "text").write_text("mine")
    for name in ("theirs.h5", "text"):
        content = (tmp_path / name).read_bytes()
        with pytest.raises(FileError, match="is not replaced"):
            written(case("full"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_a_missing_or_an_old_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(nir.CubaLIF.__dataclass_fields__, "v_reset")
    with pytest.raises(ConfigError, match=r'too old.*pip install "stsbp\[nir\]"'):
        written(case("full"), tmp_path / "a.nir")
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ConfigError, match=r'need the library nir.*pip install "stsbp\[nir\]"'):
        written(case("full"), tmp_path / "a.nir")


def test_the_command(train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run", "--epochs", 1).exit_code == 0
    out = tmp_path / "a.nir"
    result = stsbp("export", tmp_path / "run", "--to", "nir", "--out", out)
    assert result.exit_code == 0, result.output
    assert "input: the bytes of an image / 256" in result.output
    graph = nir.read(out)
    info = json.loads((tmp_path / "run" / "last.json").read_text())
    assert graph.metadata["checkpoint_sha256"] == info["sha256"]
    assert graph.metadata["run"] == "run"
    options = ("--dt", 1, "--fold", "--threshold-below", "--pool", "sum")
    result = stsbp("export", tmp_path / "run", "--to", "nir", "--out", out, *options)
    assert result.exit_code == 0, result.output
    changed = nir.read(out)
    assert float(changed.metadata["dt"]) == 1
    assert (changed.nodes["neurons1"].v_threshold < 1).all()
    for option in (("--dt", 1), ("--fold",), ("--threshold-below",), ("--pool", "sum")):
        result = stsbp("export", tmp_path / "run", "--to", "c", "--out", tmp_path / "c", *option)
        assert result.exit_code != 0
        assert f"{option[0]} is an option of the format nir alone, not of c" in result.output
