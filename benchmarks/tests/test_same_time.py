"""benchmarks/same_time.py: what each library gets, what counts as its time, and the processes that train."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.benchmarks.cases import ALL_CASES
from stsbp.datasets.base import ArraySplit
from stsbp.errors import StsbpError
from stsbp.training.augment import Augmentation

BENCHMARKS = Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

# The scripts are found on the path above.
import same_time  # noqa: E402
import torch  # noqa: E402
from compare import Library, make_problem  # noqa: E402
from torch_network import Peer, TorchNetwork  # noqa: E402
from workers import WorkerError  # noqa: E402


class StubWorker:
    """A worker that computes nothing: an update takes `seconds`, and the class is the first pixel."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.ready = {"versions": {name: "1"}}
        self.rates: list[float] = []
        self.batches: list[bytes] = []

    def ask(self, request: str, *arguments: Any) -> dict[str, Any]:
        with np.load(arguments[-1]) as batch:
            inputs, labels = batch["inputs"], batch["labels"]
        if request == "classes":
            assert inputs.shape == (4, 1, 6, 6), "every batch has the same size"
            return {"classes": inputs[:, 0, 0, 0].tolist()}
        assert len(labels) == 4
        self.rates.append(float(arguments[0]))
        self.batches.append(inputs.tobytes() + labels.tobytes())
        return {"seconds": self.seconds}


def split(labels: list[int], shown: list[int]) -> ArraySplit:
    """Images whose first pixel is given."""
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 6, 6, 1)).astype(np.uint8)
    images[:, 0, 0, 0] = shown
    return ArraySplit(images, np.array(labels))


def contender(worker: StubWorker, lr: float) -> same_time.Contender:
    return same_time.Contender(Library(Path("python"), worker.name, "plain"), worker, lr)  # type: ignore[arg-type]


def test_all_get_the_same_batches_and_the_same_time(tmp_path: Path) -> None:
    digits = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    test = split([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0])
    samples = same_time.Samples(split(digits, digits), test, 4, 7, Augmentation(shift=1, flip=True))
    fast, slow = StubWorker("fast", 1.0), StubWorker("slow", 2.5)
    contenders = [contender(fast, 1.0), contender(slow, 0.5)]
    records: list[list[dict[str, Any]]] = []
    same_time.race(contenders, samples, tmp_path, budget=20.0, turn=3, tested=records.append)
    assert (len(fast.batches), len(slow.batches)) == (20, 8)
    assert fast.batches[:8] == slow.batches
    assert len(set(fast.batches)) == 20, "every epoch has its own order and augmentation; the ninth sample is left out"
    for worker, lr in ((fast, 1.0), (slow, 0.5)):
        expected = [lr * (1 + math.cos(math.pi * n * worker.seconds / 20)) / 2 for n in range(len(worker.rates))]
        assert worker.rates == pytest.approx(expected)
    last = {record["name"]: record for record in records[-1]}
    assert [seconds for seconds, _, _ in last["fast"]["tests"]] == [3, 6, 9, 12, 15, 18, 20]
    assert [seconds for seconds, _, _ in last["slow"]["tests"]] == [7.5, 15, 20]
    assert last["fast"]["epochs"] == 10
    assert last["slow"]["tests"][-1][1:] == [4, 5 / 6], "the sixth test sample is wrong, and none is counted twice"
    assert len(records) == 10
    row = same_time.accuracy_table(records[-1]).splitlines()[2]
    assert row == "| fast 1 | plain | 1 | 20 | 10.0 | 83.33 | " + " ".join(["83.3"] * 7) + " |"


class Above(torch.nn.Module):
    """A spike wherever the input is above zero, with a gradient of one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).float() + x - x.detach()


def test_a_peer_takes_other_batches_and_rates() -> None:
    problem, _ = make_problem(ALL_CASES["CIFAR-10"], scale=0.04, data_dir=None, device=None)
    peer = Peer(problem, lambda _: TorchNetwork(problem, lambda _: Above(), gain=1.0), "plain", ())
    out, _ = peer.spikes(peer.frames)
    assert peer.classes() == out.sum(0).argmax(1).tolist()
    frames = peer.frames.clone()
    peer.load(problem.inputs[::-1].copy(), problem.labels[::-1].copy())
    assert torch.equal(peer.frames, frames.flip(1))
    assert peer.target.argmax(1).tolist() == problem.labels[::-1].tolist()
    weights = [w.detach().clone() for w in peer.network.weights.values()]
    peer.set_rate(0.0)
    peer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, peer.network.weights.values(), strict=True))
    peer.set_rate(1e-3)
    peer.step()
    assert not all(torch.equal(a, b) for a, b in zip(weights, peer.network.weights.values(), strict=True))


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """A folder with ten images for training and two for the test."""
    pytest.importorskip("PIL")
    from PIL import Image
    from stsbp.datasets.cifar10 import CLASSES

    rng = np.random.default_rng(3)
    for part, count in (("train", 10), ("test", 2)):
        for number in range(count):
            folder = tmp_path / "cifar10" / part / CLASSES[number]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "0000.jpg")
    return tmp_path


def test_processes_train(cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "same.json"
    out.parent.mkdir()
    arguments = ["--here", "--peers", "--own", "torch", "cpu", "--scale", "0.04", "--minutes", "0.01", "--turn", "2"]
    same_time.main([*arguments, "--lr", "stsbp=3e-3", "--data-dir", str(cifar10), "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["data"] == "10 training and 2 test samples"
    assert [record["mode"] for record in report["records"]] == ["torch", "cpu"]
    for record in report["records"]:
        assert record["lr"] == 3e-3
        assert record["seconds"] >= 0.6
        assert record["updates"] > 0
        assert record["tests"][-1][0] == record["seconds"]
        assert record["tests"][-1][2] in (0.0, 0.5, 1.0)
    shown = capsys.readouterr()
    assert "left 0:00" in shown.err
    assert shown.out.count("| stsbp ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "stsbp"], "--lr takes NAME=RATE, such as spikingjelly=1e-3, got 'stsbp'"),
        (["--lr", "stsbp=0"], "--lr takes NAME=RATE, such as spikingjelly=1e-3, got 'stsbp=0'"),
        (["--lr", "norse=1"], "--lr names norse, but only stsbp train"),
        (["--samples", "10"], "10 training samples are fewer than a batch of 50"),
    ],
)
def test_mistakes_are_named_before_anything_trains(cifar10: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(StsbpError, match=message):
        same_time.main(["--here", "--peers", "--data-dir", str(cifar10), *arguments])


def test_a_library_that_does_not_start_is_an_error(cifar10: Path, tmp_path: Path) -> None:
    arguments = ["--here", "--peers", "nosuch", "--own", "--scale", "0.04", "--data-dir", str(cifar10)]
    with pytest.raises(WorkerError, match="nosuch neuron: exit code 1: ModuleNotFoundError"):
        same_time.main([*arguments, "--out", str(tmp_path / "same.json")])
