"""NeuroBench's harness through the adapter: its figures are those of stsbp, and those of a count by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from stsbp.energy import neurobench
from stsbp.energy.neurobench import NeuroBenchResult, check_neurobench
from stsbp.energy.text import neurobench_text
from stsbp.errors import ConfigError, StsbpError
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.registry import installed_backends
from stsbp_spec.typing import AnyArray

Call = Callable[..., Result]
BACKENDS = [name for name in ("numpy", "cpu", "torch", "jax") if name in installed_backends()]
STEPS, SAMPLES = 5, 18
RANDOM = np.random.default_rng(1)
FRAMES = (RANDOM.random((STEPS, SAMPLES, 2, 9, 9)) < 0.15).astype(np.uint8)
LABELS = RANDOM.integers(0, 3, SAMPLES)


def trained(folder: Path, net: str, **settings: Any) -> package.Run:
    """A run on random event frames, which are also its test samples."""
    few = {"epochs": 1, "batch_size": 7, "lr": 0.01, "init_gain": 4.0, "progress": False, "backend": "numpy"}
    return package.train((FRAMES, LABELS, FRAMES, LABELS), net, out=folder / "run", steps=STEPS, **{**few, **settings})


def harness(run: package.Run, backend: str = "numpy") -> dict[str, Any]:
    """The two sets of figures of the run on its test samples."""
    pytest.importorskip("neurobench", reason="its harness runs here")
    loaded = package.load_run(run.folder, backend=backend, data=(FRAMES, LABELS, FRAMES, LABELS))
    record: dict[str, Any] = loaded.evaluate(neurobench=True)["neurobench"]
    return record


def spikes_and_weights(run: package.Run) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
    """The spikes `[T, n, ...]` of each layer, and where the weights of each projection are not 0."""
    layers = NumpyBackend().run(run.network, run.weights, FRAMES, STEPS).layers
    projections = run.network.graph.projections
    grids = {x.name: NumpyBackend().weight_grid(x, run.weights[x.parameter])[0] for x in projections}
    assert all(layer.spikes.any() for layer in layers.values())
    return {name: layer.spikes for name, layer in layers.items()}, {name: grid != 0 for name, grid in grids.items()}


def silence(spikes: dict[str, AnyArray]) -> dict[str, float]:
    return {name: 1 - float(x.mean()) for name, x in spikes.items()}


def most_spikes(outputs: AnyArray) -> float:
    return float((outputs.sum(axis=0).argmax(axis=1) == LABELS).mean())


def check(record: dict[str, Any], spikes: dict[str, AnyArray], by_hand: dict[str, Any]) -> None:
    """Compare both sets of figures with those by hand."""
    silent = silence(spikes)
    total = sum(x.size for x in spikes.values())
    by_hand["ActivationSparsity"] = 1 - sum(int(x.sum()) for x in spikes.values()) / total
    by_hand["ActivationSparsityByLayer"] = silent
    by_hand["ClassificationAccuracy"] = most_spikes(spikes[list(spikes)[-1]])
    assert record["differing"] == []
    for figures in (record["neurobench"], record["stsbp"]):
        assert set(figures) == set(by_hand)
        operations = figures["SynapticOperations"]
        # Integers divided by the number of samples: equal to the last bit.
        assert operations == {name: n / SAMPLES for name, n in by_hand["SynapticOperations"].items()}
        assert figures["ActivationSparsityByLayer"] == pytest.approx(silent, abs=1e-12)
        for name in ("Footprint", "ParameterCount", "ConnectionSparsity"):
            assert figures[name] == by_hand[name]
        assert figures["ActivationSparsity"] == pytest.approx(by_hand["ActivationSparsity"], abs=1e-12)
        # NeuroBench takes the mean in float32.
        assert figures["ClassificationAccuracy"] == pytest.approx(by_hand["ClassificationAccuracy"], rel=1e-6)


def share_of_zeros(weights: dict[str, AnyArray]) -> float:
    return round(1 - sum(int(x.sum()) for x in weights.values()) / sum(x.size for x in weights.values()), 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dense_network(backend: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "12b", weight_bits=5)
    spikes, weights = spikes_and_weights(run)
    first = FRAMES.reshape(STEPS, SAMPLES, -1) @ weights["linear1"].sum(axis=0)
    second = spikes["linear1"] @ weights["linear2"].sum(axis=0)
    assert 0 < share_of_zeros(weights) < 1
    by_hand = {
        "ParameterCount": 12 * 162 + 12 + 3 * 12,
        "Footprint": 4 * (12 * 162 + 12 + 3 * 12),
        "ConnectionSparsity": share_of_zeros(weights),
        "SynapticOperations": {
            "Effective_MACs": 0,
            "Effective_ACs": int(first.sum() + second.sum()),
            "Dense": SAMPLES * STEPS * (12 * 162 + 3 * 12),
        },
    }
    check(harness(run, backend), spikes, by_hand)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_convolutional_network(backend: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "3C3s2bn-M2-4C3p1")
    spikes, weights = spikes_and_weights(run)
    pooled = np.zeros((STEPS, SAMPLES, 3, 2, 2), np.uint8)
    for y, x in np.ndindex(2, 2):
        pooled[..., y, x] = spikes["conv1"][..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max(axis=(-1, -2))
    operations = 0
    # Place by place of the output: the window that it reads, and the weights that are not 0.
    padded = np.pad(pooled, [(0, 0)] * 3 + [(1, 1)] * 2)
    for read, name, stride, size in ((FRAMES, "conv1", 2, 4), (padded, "conv2", 1, 2)):
        for y, x in np.ndindex(size, size):
            window = read[..., stride * y : stride * y + 3, stride * x : stride * x + 3]
            operations += int(np.einsum("tncij,kcij->", window.astype(int), weights[name].astype(int)))
    operations += int((spikes["conv2"].reshape(STEPS, SAMPLES, -1) @ weights["linear3"].sum(axis=0)).sum())
    # Each of the 2x2 windows of conv2 has 4 of its 9 pixels inside.
    dense = 3 * 2 * 9 * 16 + 4 * 3 * 4 * 4 + 3 * 16
    sizes = 3 * 2 * 9 + 2 * 3 + 4 * 3 * 9 + 3 * 16
    by_hand = {
        "ParameterCount": sizes,
        # Two running statistics of three channels.
        "Footprint": 4 * (sizes + 2 * 3),
        "ConnectionSparsity": share_of_zeros(weights),
        "SynapticOperations": {
            "Effective_MACs": 0,
            "Effective_ACs": operations,
            "Dense": SAMPLES * STEPS * dense,
        },
    }
    check(harness(run, backend), spikes, by_hand)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recurrent_network(backend: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "9R-6{recurrent=one-to-one}", neuron="plif")
    spikes, weights = spikes_and_weights(run)
    first = FRAMES.reshape(STEPS, SAMPLES, -1) @ weights["linear1"].sum(axis=0)
    # The spikes of the last step do not return.
    loops = spikes["linear1"][:-1] @ weights["linear1.recurrent"].sum(axis=0)
    alone = spikes["linear2"][:-1] @ weights["linear2.recurrent"][:, 0].astype(int)
    others = [spikes[f"linear{n}"] @ weights[f"linear{n + 1}"].sum(axis=0) for n in (1, 2)]
    sizes = 9 * 162 + 9 * 9 + 6 * 9 + 6 + 3 * 6
    by_hand = {
        # One learned decay for each of three layers.
        "ParameterCount": sizes + 3,
        "Footprint": 4 * (sizes + 3),
        "ConnectionSparsity": share_of_zeros(weights),
        "SynapticOperations": {
            "Effective_MACs": 0,
            "Effective_ACs": int(sum(x.sum() for x in (first, loops, alone, *others))),
            "Dense": SAMPLES * STEPS * sizes,
        },
    }
    assert loops.sum() > 0
    check(harness(run, backend), spikes, by_hand)


def test_mixed_values_lengths_images_and_readouts_are_counted_alike(stsbp: Call, tmp_path: Path) -> None:
    pytest.importorskip("neurobench", reason="its harness runs here")
    lengths = np.array([5, 2, 4, 1, 3, 5] * 3)
    frames = FRAMES * (np.arange(STEPS)[:, None] < lengths)[..., None, None, None]
    data = {"inputs": frames, "labels": LABELS, "lengths": lengths}
    data |= {f"test_{name}": x for name, x in data.items()}
    few: dict[str, Any] = {"epochs": 1, "init_gain": 4.0, "progress": False, "backend": "numpy", "steps": STEPS}
    # Means of 2x2 windows are neither 0 nor 1.
    pooled = package.train(data, "4C3-P2-8", out=tmp_path / "pooled", **few)
    record = pooled.evaluate(neurobench=True, batch_size=4)["neurobench"]
    assert record["differing"] == []
    operations = record["neurobench"]["SynapticOperations"]
    assert min(operations.values()) > 0
    assert operations["Dense"] == (4 * 49 * 18 + 8 * 36 + 3 * 8) * lengths.sum() / SAMPLES
    images = (RANDOM.random((SAMPLES, 1, 5, 5)) * 256).astype(np.uint8)
    direct = package.train((images, LABELS, images, LABELS), "6", out=tmp_path / "direct", **few)
    record = direct.evaluate(neurobench=True)["neurobench"]
    assert record["differing"] == []
    assert record["neurobench"]["SynapticOperations"]["Effective_MACs"] > 0
    readout = trained(tmp_path, "6", loss="cross-entropy")
    record = readout.evaluate(neurobench=True)["neurobench"]
    assert record["differing"] == []
    assert list(record["neurobench"]["ActivationSparsityByLayer"]) == ["linear1"]


def test_the_command_shows_both_and_spike_trains_have_no_accuracy(stsbp: Call, tmp_path: Path) -> None:
    pytest.importorskip("neurobench", reason="its harness runs here")
    trains = stsbp("train", "patterns", "--epochs", 1, "--out", "trains", "--net", 6)
    assert trains.exit_code == 0
    text = stsbp("evaluate", "trains", "--neurobench").stdout
    assert "figures of NeuroBench's harness, and those of stsbp:" in text
    assert text.rstrip().endswith("Both count the same.")
    assert "ClassificationAccuracy" not in text
    record = json.loads(stsbp("evaluate", "trains", "--neurobench", "--json").stdout)["neurobench"]
    assert set(record) == {"version", "neurobench", "stsbp", "differing"}


def test_a_run_is_a_model_for_benchmarks_of_your_own(tmp_path: Path) -> None:
    pytest.importorskip("neurobench", reason="its harness runs here")
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ClassificationAccuracy, SynapticOperations
    from neurobench.processors.postprocessors import ChooseMaxCount

    run = trained(tmp_path, "6")
    expected = run.evaluate(neurobench=True)["neurobench"]["neurobench"]
    data = torch.utils.data.TensorDataset(torch.from_numpy(FRAMES.swapaxes(0, 1).copy()), torch.from_numpy(LABELS))
    loader = torch.utils.data.DataLoader(data, batch_size=5)
    model, metrics = neurobench.neurobench_model(run), [[], [ClassificationAccuracy, SynapticOperations]]
    found = Benchmark(model, loader, [], [ChooseMaxCount()], metrics).run(quiet=True)
    assert found["SynapticOperations"] == expected["SynapticOperations"]
    assert found["ClassificationAccuracy"] == pytest.approx(expected["ClassificationAccuracy"], rel=1e-6)
    with pytest.raises(StsbpError, match="must be"):
        model(torch.zeros(2, STEPS, 3, 9, 9, dtype=torch.uint8))


def test_an_error_of_a_metric_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("neurobench", reason="its harness runs here")
    from neurobench.metrics.workload import SynapticOperations

    def fail(*_: Any) -> None:
        raise ValueError("no such layer")

    run = trained(tmp_path, "6")
    monkeypatch.setattr(SynapticOperations, "__call__", fail)
    with pytest.raises(StsbpError, match=r"NeuroBench .* failed: SynapticOperations: ValueError: no such layer"):
        run.evaluate(neurobench=True)


def test_without_the_library_or_with_several_processes(
    stsbp: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="runs in one process; leave --processes out"):
        check_neurobench(processes=2)
    run = trained(tmp_path, "6")
    monkeypatch.setitem(sys.modules, "neurobench", None)
    result = stsbp("evaluate", run.folder, "--neurobench")
    assert result.exit_code == 1
    assert 'pip install "stsbp[neurobench]"' in result.stderr
    monkeypatch.setattr(neurobench, "run_neurobench", None)
    assert "neurobench" not in run.evaluate()


def test_figures_that_differ_are_named() -> None:
    figures = {"ParameterCount": 3, "SynapticOperations": {"Dense": 2.0, "Effective_ACs": 1.0}}
    others = {"ParameterCount": 3, "SynapticOperations": {"Dense": 2.0, "Effective_ACs": 1.00001}}
    result = NeuroBenchResult("2.3.0", figures, others)
    assert result.differing == ["SynapticOperations"]
    assert neurobench_text(result.record())[-1] == "These figures differ: SynapticOperations."
    assert NeuroBenchResult("2.3.0", figures, figures).differing == []
