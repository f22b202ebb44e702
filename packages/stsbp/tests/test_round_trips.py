"""Random networks, written in every form that is read again or run elsewhere: equal to the bit, or refused by name."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import Case, drawn
from stsbp import load_run
from stsbp.config import RunConfig
from stsbp.datasets.base import ArraySplit, Dataset, FrameSplit, Split
from stsbp.errors import ConfigError
from stsbp.interop.c_source import source
from stsbp.interop.c_source.check import compared, driver, macros, recorded
from stsbp.interop.nir_file import write
from stsbp.interop.nir_graph import Form, graph_of
from stsbp.interop.nir_import import import_graph
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import read_graph
from stsbp.interop.program import About, program
from stsbp.training.build import Data, build_task
from stsbp.training.loop import begin_with
from stsbp.training.progress import choose_reporter
from stsbp.training.run_folder import RunFolder
from stsbp_spec import ALIF, IF, LIF, PSP, NetworkSpec, initial_weights, open_backend
from stsbp_spec.engine.results import LayerRun
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.models.surrogates import Triangle
from stsbp_spec.networks.notation import written_nodes
from stsbp_spec.networks.ops.base import Weighted

random_networks = pytest.importorskip("stsbp_conformance.random_networks")

SEED, NETWORKS, IN_NIR, IN_C, STEPS, SAMPLES = 5, 24, 4, 10, 6, 2
DEFAULTS = (
    LIF(1.5, 2.0, 0.3, Triangle(0.5), reset="subtract", tau_rise=1.5, psp_gain="unit"),
    IF(tau_s=9.0, tau_rise=8.0),
    ALIF(tau_m=2.0, psp_gain="unit"),
)


@dataclass(frozen=True)
class _Network:
    """A random network with inputs, and what the reference makes of them."""

    number: int
    case: Case

    @property
    def spec(self) -> NetworkSpec:
        return self.case.network

    @property
    def about(self) -> About:
        return About(f"network {self.number}", "0" * 64, STEPS)

    @property
    def default(self) -> NeuronModel:
        """Neurons that no text may take from its reader."""
        return DEFAULTS[self.number % len(DEFAULTS)]

    def parsed(self, text: str) -> NetworkSpec:
        """What a text says, read with other neurons as the default."""
        of_input: dict[str, Any] = {"coding": self.spec.coding, "input_psp": self.spec.input_psp}
        of_input |= {"input_shape": self.spec.input_shape, "input_max": self.spec.input_max}
        return NetworkSpec.parse(text, neuron=self.default, weight_bits=3, padding="same", **of_input)


@pytest.fixture(scope="module")
def networks() -> list[_Network]:
    specs = [random_networks.random_case(SEED, number).network for number in range(NETWORKS)]
    return [_Network(number, drawn(spec, number, STEPS, SAMPLES)) for number, spec in enumerate(specs)]


def same(one: LayerRun, other: LayerRun) -> bool:
    """Whether spikes and potentials are equal to the bit."""
    pairs = ((one.spikes, other.spikes), (one.potentials, other.potentials))
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def test_notation_is_read_back_with_any_default_neuron(networks: list[_Network]) -> None:
    for network in networks:
        assert network.parsed(network.spec.notation) == network.spec, network.number


def test_nodes_are_read_back_with_any_default_neuron(networks: list[_Network]) -> None:
    for network in networks:
        assert network.parsed(written_nodes(network.spec.graph.nodes)).graph == network.spec.graph, network.number


def silent(spec: NetworkSpec) -> Data:
    """Two silent samples that fit a network."""
    labels = np.arange(2) % spec.outputs
    if spec.coding == "direct":
        split: Split = ArraySplit(np.zeros((2, *spec.input_shape), np.uint8), labels)
    else:
        bits = (*spec.input_shape[1:], spec.input_shape[0])
        split = FrameSplit(np.zeros((2, -(-STEPS // 8), *bits), np.uint8), labels, STEPS)
    classes = tuple(f"class {i}" for i in range(spec.outputs))
    return Data(Dataset("silent", spec.coding, spec.input_shape, classes, split, split), split, None, split)


def test_a_run_folder_gives_the_network_and_its_weights_back(networks: list[_Network], tmp_path: Path) -> None:
    show = choose_reporter()
    for network in networks:
        spec, psp = network.spec, network.spec.input_psp
        if spec.outputs < 2:
            continue
        # A run reads binary frames, and has no setting for the rise of the input's synapse.
        spec = replace(spec, input_max=1, input_psp=None if psp is None else PSP(psp.tau_s, gain=psp.gain))
        filtered: dict[str, Any] = {} if psp is None else {"input_tau_s": psp.tau_s, "psp_gain": psp.gain}
        # Other neurons are the default of the run. The text names its own.
        other: dict[str, Any] = {"neuron": "alif:reset=subtract", "tau_s": 9.0, "tau_rise": 5.0, "padding": "same"}
        other["weight_bits"] = 3
        loss = "cross-entropy" if spec.has_readout else "van-rossum"
        settings: dict[str, Any] = {"dataset": "digits", "net": spec.notation, "steps": STEPS, "loss": loss}
        config = RunConfig(**settings, **filtered, **other)
        data, folder = silent(spec), RunFolder(tmp_path / str(network.number))
        task = build_task(config, data.inputs, open_backend("numpy"))
        assert task.network == spec, network.number
        with folder.new_run(config, task.backend):
            begin_with(network.case.weights, task, data, folder, show)
        loaded = load_run(folder.path, backend="numpy")
        assert loaded.network == spec, network.number
        assert loaded.weights.keys() == network.case.weights.keys()
        assert all(loaded.weights[name].tobytes() == x.tobytes() for name, x in network.case.weights.items()), (
            network.number
        )


def test_nir_gives_every_bit_back_or_refuses_by_name(tmp_path: Path) -> None:
    path, returned = tmp_path / "graph.nir", 0
    for number in itertools.count():
        if returned == IN_NIR:
            break
        spec = random_networks.random_case(SEED, number).network
        if any(isinstance(node.op, Weighted) and node.op.norm is not None for node in spec.graph.nodes):
            continue  # normalisation is read as weights and a bias, and rounded
        if (refusal := _refusal_of_nir(spec)) is not None:
            assert any(node.name in refusal for node in spec.graph.nodes), (number, refusal)
            continue
        drawn_network = _Network(number, drawn(spec, number, STEPS, SAMPLES))
        write(program(spec, drawn_network.case.weights), drawn_network.about, path)
        imported = import_graph(read_graph(path), spec.input_shape, Choices(1e-4, tau_s=spec.output_psp.tau_s))
        of_input: dict[str, Any] = {"coding": spec.coding, "input_psp": imported.input_psp, "input_max": spec.input_max}
        network = NetworkSpec(spec.input_shape, nodes=imported.nodes, **of_input)
        # The network of a run is the one that its text describes.
        network = NetworkSpec.parse(
            network.notation, input_shape=spec.input_shape, neuron=drawn_network.default, **of_input
        )
        run = open_backend("numpy").run(network, dict(imported.weights), drawn_network.case.inputs, STEPS)
        its = {block.population: block.name for block in network.blocks}
        for block in spec.blocks:
            # A readout has no node in NIR, and gets another name.
            name = its.get(block.population, network.blocks[-1].name)
            assert same(drawn_network.case.run.layers[block.name], run.layers[name]), (number, block.name)
        returned += 1


def _refusal_of_nir(spec: NetworkSpec) -> str | None:
    """Why NIR cannot express a network; None: it can, without rounding."""
    try:
        graph = graph_of(program(spec, initial_weights(spec, 1)), Form())
    except ConfigError as error:
        return str(error)
    return None if graph.rounded == () else "\n".join(graph.rounded)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_onnx_runs_every_network_to_the_bit(networks: list[_Network]) -> None:
    import onnxruntime
    from stsbp.interop.onnx_model import model

    for network in networks:
        onnx_model = model(program(network.spec, network.case.weights), network.about, layers=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed: dict[str, Any] = {"frames": network.case.inputs}
        if network.spec.coding == "direct":
            feed = {"images": network.case.inputs, "steps": np.array(STEPS)}
        outputs = dict(zip([x.name for x in session.get_outputs()], session.run(None, feed), strict=True))
        for block in network.spec.blocks:
            prefix = "" if block is network.spec.blocks[-1] else f"{block.population}/"
            layer = LayerRun(outputs[f"{prefix}spikes"], outputs[f"{prefix}potentials"])
            assert same(network.case.run.layers[block.name], layer), (network.number, block.name)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_c_runs_every_network_to_the_bit(networks: list[_Network], tmp_path: Path) -> None:
    sources = []
    for network in networks[:IN_C]:
        sources.append(c_source := source(program(network.spec, network.case.weights), network.about))
        (tmp_path / f"{c_source.stem}.h").write_text(c_source.header)
        (tmp_path / f"{c_source.stem}.c").write_text(c_source.source)
        with (tmp_path / f"{c_source.stem}.bin").open("wb") as file:
            recorded(file, network.spec, network.case.inputs, network.case.run)
    (tmp_path / "main.c").write_text(driver(sources))
    files = [*(f"{c_source.stem}.c" for c_source in sources), "main.c"]
    subprocess.run(["gcc", "-std=c99", "-O0", *macros(sources), *files, "-o", "all", "-lm"], cwd=tmp_path, check=True)
    printed = subprocess.run(["./all"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    layers = list(compared(printed))
    assert [layer for layer in layers if layer.spikes_differ or layer.potentials_differ] == []
    assert len(layers) == sum(len(network.spec.blocks) for network in networks[:IN_C])
