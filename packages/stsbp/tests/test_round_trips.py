"""Random networks, written in every form that is read again or run elsewhere: equal to the bit, or refused by name."""

from __future__ import annotations

import importlib.util
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
from stsbp.errors import ConfigError, DataError
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
from stsbp.training.progress import reporter
from stsbp.training.run_folder import RunFolder
from stsbp_spec import ALIF, IF, LIF, PSP, NetworkSpec, open_backend
from stsbp_spec.graph import Neurons
from stsbp_spec.nodes import written_nodes
from stsbp_spec.results import RunResult
from stsbp_spec.surrogates import Triangle

random_networks = pytest.importorskip("stsbp_conformance.random_networks")

SEED, NETWORKS, STEPS, SAMPLES = 5, 30, 6, 2
DEFAULTS = (
    LIF(1.5, 2.0, 0.3, Triangle(0.5), reset="subtract", tau_rise=1.5, psp_gain="unit"),
    IF(tau_s=9.0, tau_rise=8.0),
    ALIF(tau_m=2.0, psp_gain="unit"),
)
"""Neurons that no text may take from its reader."""


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

    def parsed(self, text: str) -> NetworkSpec:
        """What a text says, read with other neurons as the default."""
        of_input: dict[str, Any] = {"coding": self.spec.coding, "input_psp": self.spec.input_psp}
        of_input |= {"input_shape": self.spec.input_shape, "input_max": self.spec.input_max}
        return NetworkSpec.parse(text, neuron=DEFAULTS[self.number % len(DEFAULTS)], weight_bits=3, **of_input)


@pytest.fixture(scope="module")
def networks() -> list[_Network]:
    cases = (random_networks.random_case(SEED, number) for number in range(NETWORKS))
    return [_Network(i, drawn(case.network, i, STEPS, SAMPLES)) for i, case in enumerate(cases)]


def differing(run: RunResult, other: RunResult, names: dict[str, str]) -> list[str]:
    """Layers whose spikes or potentials differ by a bit. `names`: the layers of `run`, and theirs in `other`."""
    return [
        layer
        for layer, its in names.items()
        if run.layers[layer].spikes.tobytes() != other.layers[its].spikes.tobytes()
        or run.layers[layer].potentials.tobytes() != other.layers[its].potentials.tobytes()
    ]


def test_notation_is_read_back_with_any_default_neuron(networks: list[_Network]) -> None:
    for each in networks:
        assert each.parsed(each.spec.notation) == each.spec, each.number


def test_nodes_are_read_back_with_any_default_neuron(networks: list[_Network]) -> None:
    for each in networks:
        assert each.parsed(written_nodes(each.spec.graph.nodes)).graph == each.spec.graph, each.number


def silent(spec: NetworkSpec) -> Data:
    """Two silent samples that fit a network."""
    labels = np.arange(2)
    if spec.coding == "direct":
        split: Split = ArraySplit(np.zeros((2, *spec.input_shape), np.uint8), labels)
    else:
        bits = (*spec.input_shape[1:], spec.input_shape[0])
        split = FrameSplit(np.zeros((2, -(-STEPS // 8), *bits), np.uint8), labels, STEPS)
    classes = tuple(f"class {i}" for i in range(spec.outputs))
    return Data(Dataset("silent", spec.coding, spec.input_shape, classes, split, split), split, None, split)


def test_a_run_folder_gives_the_network_and_its_weights_back(networks: list[_Network], tmp_path: Path) -> None:
    show = reporter()
    for each in networks:
        spec, psp = each.spec, each.spec.input_psp
        if spec.outputs < 2:
            continue
        # A run reads binary frames, and has no setting for the rise of the input's synapse.
        spec = replace(spec, input_max=1, input_psp=None if psp is None else PSP(psp.tau_s, gain=psp.gain))
        filtered = {} if psp is None else {"input_tau_s": psp.tau_s, "psp_gain": psp.gain}
        loss = {"loss": "cross-entropy"} if spec.has_readout else {}
        other = {"neuron": "alif:reset=subtract", "tau_s": 9.0, "tau_rise": 5.0, "dropout": 0.5} if spec.layers else {}
        settings = {
            "dataset": "digits",
            "net": spec.notation,
            "steps": STEPS,
            "padding": "same",
            "weight_bits": 3,
            **other,
        }
        if spec.layers:
            settings["dropout"] = 0.0
        config = RunConfig(**settings, **filtered, **loss)
        data, folder = silent(spec), RunFolder(tmp_path / str(each.number))
        task = build_task(config, data.inputs, open_backend("numpy"))
        assert task.network == spec, each.number
        with folder.begun(config, task.backend):
            begin_with(each.case.weights, task, data, folder, show)
        back = load_run(folder.path, backend="numpy")
        assert back.network == spec, each.number
        assert back.weights.keys() == each.case.weights.keys()
        assert all(back.weights[name].tobytes() == x.tobytes() for name, x in each.case.weights.items()), each.number


def test_nir_gives_every_bit_back_or_refuses_by_name(networks: list[_Network], tmp_path: Path) -> None:
    returned, refused = set[int](), set[int]()
    for each in networks:
        made = program(each.spec, each.case.weights)
        try:
            rounded = graph_of(made, Form()).rounded
        except ConfigError as error:
            assert any(node.name in str(error) for node in each.spec.graph.nodes), error
            refused.add(each.number)
            continue
        path = tmp_path / f"{each.number}.nir"
        write(made, each.about, path)
        try:
            found = import_graph(
                read_graph(path), each.spec.input_shape, Choices(1e-4, tau_s=each.spec.output_psp.tau_s)
            )
        except DataError as error:
            refused.add(each.number)
            print(each.number, error)
            continue
        network = NetworkSpec(
            each.spec.input_shape, (), each.spec.coding, found.input_psp, each.spec.input_max, nodes=found.nodes
        )
        assert replace(each, case=replace(each.case, network=network)).parsed(network.notation) == network
        run = open_backend("numpy").run(network, dict(found.weights), each.case.inputs, STEPS)
        its = {block.population: block.name for block in network.blocks}
        names = {block.name: its.get(block.population, network.blocks[-1].name) for block in each.spec.blocks}
        wrong = differing(each.case.run, run, names)
        print(each.number, rounded, wrong, each.spec.notation if wrong else "")
        returned.add(each.number)
    print(len(returned), len(refused))
    assert 0
