"""Runs of networks with concatenations: trained from a TOML file, resumed on another backend, exported, drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file
from stsbp import load_run
from stsbp.plots import Link, boxes
from stsbp.training.operations import fan_out
from stsbp_spec import NetworkSpec
from stsbp_spec.engine.cost import node_values
from stsbp_spec.networks.graph import Edge
from stsbp_spec.networks.ops import Concat
from stsbp_spec.typing import AnyArray

NET = """\
[[node]]
name = "conv1"
weights = "4C3p1"
from = "input"

[[node]]
name = "below"
neurons = ""
from = "conv1"

[[node]]
name = "means"
layer = "P2"
from = "below"

[[node]]
name = "conv2"
weights = "6C3s2p1"
from = "below"

[[node]]
name = "coarse"
neurons = ""
from = "conv2"

[[node]]
name = "both"
concat = true
from = ["coarse", {node = "means", delay = 1}]

[[node]]
name = "drop"
layer = "D0.2"
from = "both"

[[node]]
name = "linear3"
weights = "10"
from = "drop"

[[node]]
name = "output"
neurons = ""
from = "linear3"
"""
DIGITS = ("digits", "--net", "net.toml", "--steps", 6, "--limit", 150, "--batch-size", 50, "--lr", 0.03)
EXACT = ("--precision", "reproducible", "--no-test")


@pytest.fixture
def trained(stsbp: Callable[..., Result], tmp_path: Path) -> Callable[..., dict[str, AnyArray]]:
    """Trains a run and reads its last checkpoint."""
    (tmp_path / "net.toml").write_text(NET)

    def train(out: str, *options: object, backend: str = "numpy") -> dict[str, AnyArray]:
        begun = (tmp_path / out).exists()
        run = ("--resume", out) if begun else (*DIGITS, *EXACT, "--out", out)
        result = stsbp("--backend", backend, "train", *run, *options)
        assert result.exit_code == 0, result.output
        info = json.loads((tmp_path / out / "last.json").read_text())
        return load_file(tmp_path / out / info["file"])

    return train


def test_a_run_learns_and_its_checkpoint_goes_on_elsewhere_and_in_parts(
    trained: Callable[..., dict[str, AnyArray]], tmp_path: Path
) -> None:
    pytest.importorskip("stsbp_torch")
    trained("whole", "--epochs", 2)
    uninterrupted = trained("whole", "--epochs", 4)
    trained("half", "--epochs", 2, "--memory", "low", "--micro-batch", 20)
    continued = trained("half", "--epochs", 4, backend="torch")
    assert continued.keys() == uninterrupted.keys()
    for name, x in uninterrupted.items():
        assert continued[name].tobytes() == x.tobytes(), name
    run = load_run(tmp_path / "half", backend="numpy")
    assert any(isinstance(node.op, Concat) for node in run.network.nodes)
    assert run.weights["conv2"].tobytes() == uninterrupted["weight/conv2"].tobytes()
    lines = (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_exports_give_the_spikes_of_the_run_or_refuse_by_name(
    trained: Callable[..., dict[str, AnyArray]],
    stsbp: Callable[..., Result],
    refused: Callable[..., None],
    tmp_path: Path,
) -> None:
    trained("run", "--epochs", 1)
    refused(
        stsbp("export", "run", "--to", "nir", "--out", "run.nir"),
        "both cannot be written: NIR has no concatenation; let the neurons above read each branch through",
    )
    assert not (tmp_path / "run.nir").exists()
    assert stsbp("export", "run", "--to", "c", "--out", "firmware").exit_code == 0
    assert "both: Concat" in (tmp_path / "firmware" / "run.c").read_text()
    onnxruntime = pytest.importorskip("onnxruntime")
    assert stsbp("export", "run", "--to", "onnx", "--out", "run.onnx").exit_code == 0
    run = load_run(tmp_path / "run", backend="numpy")
    images = np.random.default_rng(0).integers(0, 256, (5, *run.network.input_shape), np.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "run.onnx"), providers=["CPUExecutionProvider"])
    spikes = session.run(["spikes"], {"images": images, "steps": np.array(6)})[0]
    expected = run.backend.run(run.network, run.weights, images, 6).layers["linear3"].spikes
    assert expected.any()
    assert np.array_equal(spikes, expected)


def test_a_concatenation_is_drawn_and_listed(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(NET)
    printed = stsbp("networks", "net.toml", "--input-shape", "1x8x8")
    assert printed.exit_code == 0, printed.output
    assert "concat <- coarse, means@-1" in printed.stdout
    drawn = boxes(NetworkSpec.parse(NET, input_shape=(1, 8, 8)))
    assert (drawn["both"].kind, drawn["both"].text) == ("merge", "concat")
    assert drawn["both"].links == [Link("coarse"), Link("means", 1)]


def test_a_spike_before_a_concatenation_meets_the_weights_of_its_own_channels() -> None:
    network = NetworkSpec.parse(NET.replace('layer = "P2"', 'layer = "M2"'), input_shape=(1, 8, 8))
    block = network.blocks[-1]
    fan_outs = fan_out(network, block)
    assert {edge: fan.shape for edge, fan in fan_outs.items()} == {
        Edge("coarse"): (6, 4, 4),
        Edge("means", 1): (4, 4, 4),
    }
    assert all((fan == 10).all() for fan in fan_outs.values())
    fired = {name: np.zeros((3, 2, *network.graph.values[name].shape), np.uint8) for name in ("coarse", "below")}
    fired["coarse"][1], fired["below"][1, :, :, ::2, ::2] = 1, 1
    spikes = {x.name: fired.get(x.population, np.zeros((3, 2, *x.output_shape), np.uint8)) for x in network.blocks}
    both = node_values(network, np.zeros((3, 2, 1, 8, 8), np.uint8), spikes, (3, 2))["both"]
    assert both[:, 0, :, 0, 0].tolist() == [[0] * 10, [1] * 6 + [0] * 4, [0] * 6 + [1] * 4]
