"""The training loop: the same bits after any interruption, records that are right, warnings, the best checkpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from stsbp.cli import cli
from stsbp.datasets import hold_out, load
from stsbp.threads import cores, thread_count
from stsbp.training import checkpoint, loop
from stsbp.training.metrics import Sums
from stsbp.training.prefetch import prefetched
from stsbp_spec import LOSSES, AdamW, Batch, initial_weights, open_backend
from stsbp_spec.contract.grid import CONTRACT_VERSION, ZeroedErrors
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.models.decoders import distances, nearest_sequence, spike_count
from stsbp_spec.models.encoders import LabelCode, encode_repeat
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.networks.spec import NetworkSpec

Records = Callable[[Path], list[dict[str, Any]]]


class Crash(BaseException):
    """The process died: nothing of it runs any more."""


class Mortal:
    """Notes what reaches the disk and dies at a given count: every later call fails as well.

    Attributes:
        operations: the function of each call, and the file that is replaced or unlinked without its number.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int | None) -> None:
        self.operations: list[tuple[str, str]] = []
        self.dies_at = dies_at
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(*arguments: Any, **named: Any) -> Any:
            file = "" if call.__name__ == "fsync" else Path(arguments[-1]).name
            self.operations.append((call.__name__, re.sub(r"-\d+-[0-9a-f]+", "", file)))
            if self.dies_at is not None and len(self.operations) >= self.dies_at:
                raise Crash
            return call(*arguments, **named)

        return mortal


@pytest.fixture
def uninterrupted(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that nothing disturbed."""
    return tiny_run.rename(tmp_path / "uninterrupted")


def crash_everywhere(
    train_tiny: Callable[..., Result], same_run: Callable[[Path, Path], None], uninterrupted: Path, repeated: bool
) -> int:
    """Kill a run at everything it does to the disk, resume it, compare; returns the number of kills.

    Args:
        repeated: whether to kill it also where it did the same before, between the same two operations.
    """
    checkpoint_options = ("--checkpoint-every", 0)
    with pytest.MonkeyPatch.context() as patch:
        counted = Mortal(patch, None)
        assert train_tiny(uninterrupted.parent / "counted", *checkpoint_options).exit_code == 0
    padded = [None, *counted.operations, None]
    windows = [tuple(padded[place - 1 : place + 2]) for place in range(1, len(padded) - 1)]
    places = [place for place, window in enumerate(windows, 1) if repeated or window not in windows[: place - 1]]
    for place in places:
        run = uninterrupted.parent / f"killed-{place}"
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, place)
            with pytest.raises(Crash):
                train_tiny(run, *checkpoint_options)
        result = train_tiny(run, "--resume")
        assert result.exit_code == 0, (place, result.output)
        same_run(run, uninterrupted)
    return len(places)


def test_resume_after_a_crash_at_every_kind_of_disk_operation(
    train_tiny: Callable[..., Result], same_run: Callable[[Path, Path], None], uninterrupted: Path
) -> None:
    assert crash_everywhere(train_tiny, same_run, uninterrupted, repeated=False) >= 25


@pytest.mark.slow
@pytest.mark.long
def test_resume_after_a_crash_at_every_disk_operation(
    train_tiny: Callable[..., Result], same_run: Callable[[Path, Path], None], uninterrupted: Path
) -> None:
    assert crash_everywhere(train_tiny, same_run, uninterrupted, repeated=True) >= 50


def test_a_run_that_dies_in_its_first_update_is_resumed_from_the_checkpoint_before_it(
    train_tiny: Callable[..., Result], same_run: Callable[[Path, Path], None], uninterrupted: Path, tmp_path: Path
) -> None:
    def dies(*arguments: Any) -> Any:
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(Crash):
            train_tiny(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "last.json").read_text())["step"] == 0
    result = train_tiny(tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output
    same_run(tmp_path / "run", uninterrupted)


# Long enough for a kill to hit training at many places: 200 updates, a checkpoint every few of them.
_KILLED = (
    *("--backend", "numpy", "train", "digits", "--net", "24", "--steps", "6", "--epochs", "8", "--batch-size", "20"),
    *("--limit", "500", "--holdout", "50", "--checkpoint-every", "0.05", "--log-every", "7", "--dropout", "0.1"),
)
_UPDATES = 200


def kill_and_resume(
    process: Callable[..., subprocess.Popen[str]],
    same_run: Callable[[Path, Path], None],
    folder: Path,
    moments: list[tuple[float, float]],
) -> None:
    """`kill -9`, then `--resume`, and compare with a run that nobody killed.

    A moment is a share of the updates and the seconds after the checkpoint that has reached it.
    """
    full_run = process(*_KILLED, "--out", folder / "whole")
    wait_for_checkpoint(folder / "whole", full_run)
    assert full_run.wait(120) == 0
    for number, (share, seconds) in enumerate(moments):
        for attempt in range(6):
            run = folder / f"run-{number}-{attempt}"
            victim = process(*_KILLED, "--out", run)
            wait_for_checkpoint(run, victim, step=share * _UPDATES)
            time.sleep(seconds)
            victim.kill()
            if victim.wait(60) == -signal.SIGKILL:
                break
            # On a fast machine the run ends before the kill: try an earlier moment.
            share, seconds = share / 2, seconds / 2
        assert victim.returncode == -signal.SIGKILL
        resumed = process(*_KILLED, "--out", run, "--resume")
        _, errors = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, errors
        same_run(run, folder / "whole")


def wait_for_checkpoint(run: Path, running: subprocess.Popen[str], step: float = 0) -> None:
    """Wait until a run has saved update `step` or a later one."""
    until = time.monotonic() + 60
    while True:
        # A description is replaced as a whole, so that a reader never sees half of one.
        if (run / "last.json").exists() and json.loads((run / "last.json").read_text())["step"] >= step:
            return
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_kill_9_at_three_moments_then_resume(
    process: Callable[..., subprocess.Popen[str]], same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    kill_and_resume(process, same_run, tmp_path, [(0.0, 0.01), (0.4, 0.03), (0.8, 0.0)])


SIGNALLED = """
import os, signal
from stsbp.__main__ import main
from stsbp.training import loop
update = loop._TrainingLoop.update
def signalled(self, *arguments):
    if self.step == 2:
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    update(self, *arguments)
loop._TrainingLoop.update = signalled
# nohup, under which the tests may run, ignores it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_saves_and_tells_how_to_resume(
    name: str,
    stsbp: Callable[..., Result],
    tiny: tuple[str, ...],
    same_run: Callable[[Path, Path], None],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", SIGNALLED, "--backend", "numpy", "train", "digits", *tiny, "--out", str(run)]
    done = subprocess.run(command, env={**os.environ, "SIGNAL": name}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    # In the middle of the third update, which is finished.
    assert f"{name}: stopped after update 3 and saved" in done.stderr
    assert f"stsbp --backend numpy train --resume {run}" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((run / "last.json").read_text())["step"] == 3
    assert stsbp("train", "--resume", run).exit_code == 0
    same_run(run, uninterrupted)


@pytest.mark.parametrize("update", range(1, 7))
def test_interrupted_after_any_update(
    update: int,
    train_tiny: Callable[..., Result],
    same_run: Callable[[Path, Path], None],
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loop._TrainingLoop.update

    def interrupt(self: loop._TrainingLoop, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == update:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "update", interrupt)
        result = train_tiny(tmp_path / "run")
    assert result.exit_code == 130
    assert json.loads((tmp_path / "run" / "last.json").read_text())["step"] == update
    assert train_tiny(tmp_path / "run", "--resume").exit_code == 0
    same_run(tmp_path / "run", uninterrupted)


def test_second_interrupt_leaves_at_once_and_keeps_the_checkpoint(
    train_tiny: Callable[..., Result],
    same_run: Callable[[Path, Path], None],
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loop._TrainingLoop.update

    def interrupt(self: loop._TrainingLoop, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "PATIENCE", 0)
        patch.setattr(loop._TrainingLoop, "update", interrupt)
        assert train_tiny(tmp_path / "run").exit_code != 0
    assert json.loads((tmp_path / "run" / "last.json").read_text())["step"] == 2
    assert train_tiny(tmp_path / "run", "--resume").exit_code == 0
    same_run(tmp_path / "run", uninterrupted)


def test_interrupted_during_evaluation(
    train_tiny: Callable[..., Result],
    same_run: Callable[[Path, Path], None],
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loop._TrainingLoop.evaluate

    def interrupt(self: loop._TrainingLoop, name: str) -> Any:
        if name == "test" and self.next.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "evaluate", interrupt)
        assert train_tiny(tmp_path / "run").exit_code == 143
    saved = json.loads((tmp_path / "run" / "last.json").read_text())
    assert (saved["epoch"], saved["batch"], saved["step"]) == (1, 2, 4)
    assert train_tiny(tmp_path / "run", "--resume").exit_code == 0
    same_run(tmp_path / "run", uninterrupted)


def test_run_begun_on_torch_ends_on_numpy_with_the_same_bits(
    stsbp: Callable[..., Result], tiny: tuple[str, ...], same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    pytest.importorskip("stsbp_torch", reason="needs a second backend")
    settings = ("train", "digits", *tiny, "--precision", "reproducible", "--dropout", 0.2)
    original = loop._TrainingLoop.update

    def interrupt(self: loop._TrainingLoop, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "update", interrupt)
        begun = CliRunner().invoke(cli, ["--backend", "torch", *map(str, settings), "--out", str(run)])
    assert begun.exit_code == 130, begun.output
    assert stsbp(*settings, "--out", run, "--resume").exit_code == 0
    assert stsbp(*settings, "--out", tmp_path / "numpy").exit_code == 0
    same_run(run, tmp_path / "numpy")
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["backend"] for start in starts] == ["torch", "numpy"]


def test_resume_of_a_finished_run_changes_nothing(
    stsbp: Callable[..., Result], uninterrupted: Path, records: Records, tensors: Callable[..., bytes]
) -> None:
    earlier = records(uninterrupted), tensors(uninterrupted)
    result = stsbp("train", "--resume", uninterrupted)
    assert result.exit_code == 0
    assert (records(uninterrupted), tensors(uninterrupted)) == earlier
    expected = [line for line in earlier[0] if line.get("split") == "test"][-1]
    assert f"test accuracy {expected['accuracy']:.2%}" in result.stdout
    assert "is finished: all 3 epochs are done" in result.stderr
    assert "larger --epochs" in result.stderr
    assert "continuing" not in result.stderr


def test_same_seed_same_run_and_other_seed_another(
    train_tiny: Callable[..., Result], uninterrupted: Path, tmp_path: Path, tensors: Callable[..., bytes]
) -> None:
    train_tiny(tmp_path / "again")
    train_tiny(tmp_path / "other", "--seed", 1)
    assert tensors(tmp_path / "again") == tensors(uninterrupted)
    assert tensors(tmp_path / "other") != tensors(uninterrupted)


def test_records_agree_with_the_spec(uninterrupted: Path, records: Records) -> None:
    """The whole run anew with the spec alone: order of samples, losses, accuracies, rates, learning rates."""
    data = load("digits", limit=50, holdout=30)
    train, validation = hold_out(data.train, 10, substream=2)
    neuron = LIF(tau_m=5.0, tau_s=3.0)
    network = NetworkSpec.parse("12", input_shape=(1, 8, 8), outputs=10, coding="direct", padding="same", neuron=neuron)
    loss, code, backend = LOSSES["van-rossum"], LabelCode(), open_backend("numpy")
    trainer = backend.trainer(network, loss, AdamW(lr=0.01, total_steps=6))
    state = trainer.init(initial_weights(network, 0))
    expected: list[dict[str, Any]] = []
    window: list[tuple[float, int, dict[str, float], float]] = []
    step = 0
    for epoch in range(3):
        batches: list[tuple[float, int, dict[str, float], float]] = []
        order = permutation(0, Stream.SHUFFLE, 40, step=epoch)
        for first in (0, 20):
            chosen = order[first : first + 20]
            labels = train.labels[chosen]
            state, result = trainer.step(state, Batch(train.inputs(chosen), encode_repeat(labels, 10, 3)))
            nearest = nearest_sequence(distances(result.spikes, code.sequences(10, 3), loss, network.output_psp))
            batches.append((result.loss, int((nearest == labels).sum()), result.rates, result.gradient_norm))
            window.append(batches[-1])
            step += 1
            if step % 2 == 0:
                expected.append({"kind": "step", "step": step, **means(window), "learning_rate": result.learning_rate})
                window = []
        expected.append({"kind": "epoch", "step": step, "epoch": epoch + 1, **means(batches)})
        for name, split in (("validation", validation), ("test", data.test)):
            run = trainer.predict(state, split.inputs(np.arange(len(split))), 3)
            targets = encode_repeat(split.labels, 10, 3)
            nearest = nearest_sequence(distances(run.spikes, code.sequences(10, 3), loss, network.output_psp))
            expected.append(
                {
                    "kind": "evaluation",
                    "split": name,
                    "step": step,
                    "epoch": epoch + 1,
                    "samples": len(split),
                    "loss": float(loss.distance(run.spikes, targets, network.output_psp).mean()),
                    "accuracy": float((nearest == split.labels).mean()),
                    "accuracy_spike_count": float((spike_count(run.spikes) == split.labels).mean()),
                    "rates": run.rates,
                }
            )
    recorded = records(uninterrupted)
    assert [line["kind"] for line in recorded] == [line["kind"] for line in expected]
    for line, expected_line in zip(recorded, expected, strict=True):
        assert {key: line[key] for key in expected_line} == approximately(expected_line)
    assert all(set(line["grids"]) == {"linear1", "linear2"} for line in recorded if line["kind"] == "step")


def means(batches: list[tuple[float, int, dict[str, float], float]]) -> dict[str, Any]:
    """Of batches of 20 samples: loss, number right, rates, gradient norm."""
    return {
        "samples": 20 * len(batches),
        "loss": float(np.mean([loss for loss, _, _, _ in batches])),
        "accuracy": sum(right for _, right, _, _ in batches) / (20 * len(batches)),
        "rates": {name: float(np.mean([rates[name] for _, _, rates, _ in batches])) for name in batches[0][2]},
        "gradient_norm": float(np.mean([norm for _, _, _, norm in batches])),
        "largest_gradient_norm": max(norm for _, _, _, norm in batches),
    }


def approximately(line: dict[str, Any]) -> dict[str, Any]:
    """Numbers up to the rounding of a mean."""
    return {
        key: value if isinstance(value, str) else pytest.approx(value, rel=1e-12, abs=1e-12)
        for key, value in line.items()
    }


def test_last_partial_batch_is_used(train_tiny: Callable[..., Result], tmp_path: Path, records: Records) -> None:
    assert train_tiny(tmp_path / "run", "--batch-size", 15).exit_code == 0
    epochs = [line for line in records(tmp_path / "run") if line["kind"] == "epoch"]
    assert [(line["samples"], line["step"]) for line in epochs] == [(40, 3), (40, 6), (40, 9)]


def test_best_is_chosen_by_validation(train_tiny: Callable[..., Result], tmp_path: Path, records: Records) -> None:
    assert train_tiny(tmp_path / "run", "--epochs", 8, "--lr", 0.05).exit_code == 0
    lines = [line for line in records(tmp_path / "run") if line.get("split") == "validation"]
    best = max(lines, key=lambda line: (line["accuracy"], -line["loss"]))
    saved = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (saved["best"]["by"], saved["best"]["value"]) == ("validation accuracy", best["accuracy"])
    assert (saved["epoch"], saved["step"]) == (best["epoch"], best["step"])


@pytest.mark.parametrize(
    ("new", "best", "better"),
    [
        ({"value": 0.9, "loss": 5.0}, {"value": 0.8, "loss": 1.0}, True),
        ({"value": 0.8, "loss": 0.0}, {"value": 0.9, "loss": 1.0}, False),
        ({"value": 0.98, "loss": 999.95}, {"value": 0.98, "loss": 1000.0}, True),
        ({"value": 0.98, "loss": -1.0}, {"value": 0.98, "loss": 0.0}, True),
        ({"value": 0.98, "loss": 1.0}, {"value": 0.98, "loss": 1.0}, False),
        ({"value": 0.98, "loss": 1.0}, {"value": 0.98, "loss": None}, False),
    ],
)
def test_equal_accuracies_are_decided_by_the_loss(new: dict[str, Any], best: dict[str, Any], better: bool) -> None:
    assert loop._is_better({"by": "validation accuracy", **new}, best) is better


@pytest.mark.parametrize("dataset", ["digits", "motor"])
def test_the_host_filters_the_outputs_of_a_batch_once(
    dataset: str, stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, accuracy and the distances of spike trains come from one run of van Rossum's filter.

    For the chance level, the filter runs again beside the targets of others: seven times for 15 samples.
    """
    batches: list[int] = []
    filtered = VanRossum.parts

    def counted(self: VanRossum, spikes: Any, *arguments: Any) -> Any:
        batches.append(spikes.shape[-2])
        return filtered(self, spikes, *arguments)

    monkeypatch.setattr(VanRossum, "parts", counted)
    size = ("--net", "12", "--epochs", 1, "--batch-size", 20, "--limit", 50, "--steps", 20, "--out", tmp_path / "run")
    result = stsbp("train", dataset, *size, "--holdout", 15)
    assert result.exit_code == 0, result.output
    assert batches == [20, 20, 10, 15, *[15] * 7]


def test_best_without_validation_is_chosen_by_training_loss(
    train_tiny: Callable[..., Result], tmp_path: Path, records: Records
) -> None:
    # The rate rises through the run, so that the last epoch is not the best one.
    assert train_tiny(tmp_path / "run", "--validation", 0, "--epochs", 6, "--lr", 3, "--warmup", 6).exit_code == 0
    lines = [line for line in records(tmp_path / "run") if line["kind"] == "epoch"]
    best = min(lines, key=lambda line: line["loss"])
    saved = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (saved["best"]["by"], saved["epoch"]) == ("training loss", best["epoch"])
    assert best["epoch"] < 6


def test_test_set_changes_nothing(
    train_tiny: Callable[..., Result], tmp_path: Path, tensors: Callable[..., bytes]
) -> None:
    train_tiny(tmp_path / "always")
    train_tiny(tmp_path / "once", "--test-every", 0)
    for name in ("last", "best"):
        assert tensors(tmp_path / "always", name) == tensors(tmp_path / "once", name)


def test_silent_layer_is_reported_once(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    result = train_tiny(tmp_path / "run", "--net", "12{threshold=1e6}")
    assert result.exit_code == 0
    assert result.stderr.count("warning: layer linear1 is silent") == 1


def test_many_silent_layers_are_summed_up(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    net = "-".join(["4"] * 30) + "{threshold=1e6}"
    result = train_tiny(tmp_path / "run", "--net", net, "--init-gain", 1e-3, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr.count(" is silent: ") == 8
    (line,) = [line for line in result.stderr.splitlines() if "the same holds for" in line]
    assert line.startswith("warning: the same holds for linear9, linear10, ")
    assert line.endswith(", linear16, ... (23 in all)")


def test_layer_that_is_silent_over_an_epoch_is_reported_at_its_end(
    train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    result = train_tiny(tmp_path / "run", "--net", "12{threshold=1e6}", "--epochs", 1, "--log-every", 1000)
    assert result.exit_code == 0
    assert "warning: layer linear1 is silent: 0.0e+00 spikes per neuron and step up to update 2;" in result.stderr


def test_saturated_layer_is_reported_once(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    # Nine of ten output neurons are to spike at every step.
    patterns = ("--label-pattern", "110", "--undesired-pattern", "1", "--threshold", 0.2)
    result = train_tiny(tmp_path / "run", *patterns, "--epochs", 30, "--lr", 0.02)
    assert result.exit_code == 0
    assert result.stderr.count("warning: layer linear2 is saturated") == 1


def test_weights_that_lose_bits_are_reported(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    # 1,024 inputs of 8 bits need more than 24 bits with 12-bit weights.
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the images")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
            pillow.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    run = tmp_path / "run"
    settings = ("--net", "8", "--steps", 2, "--epochs", 1, "--log-every", 1)
    result = stsbp("train", f"folder:{tmp_path / 'images'}", *settings, "--out", run)
    assert result.exit_code == 0, result.output
    assert "warning: layer linear1: its weights fell to" in result.stderr
    (line,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"step", ' in line]
    assert line["grids"]["linear1"]["bits"] < 12
    assert line["grids"]["linear1"]["headroom"] >= 0


@pytest.mark.parametrize(
    ("updates", "place"), [(0, "the state after update 1 is not saved, because "), (600, r"update 2 \(epoch 1\): ")]
)
def test_not_finite_stops_with_update_and_layer(
    train_tiny: Callable[..., Result], tmp_path: Path, updates: int, place: str
) -> None:
    result = train_tiny(tmp_path / "run", "--lr", "1e38", "--epochs", 20, "--checkpoint-every", updates)
    assert result.exit_code == 1
    assert re.search(rf"{place}layer linear\d: a weight of magnitude 1e\+38 is too large", result.stderr), result.stderr
    assert result.stderr.count("Error") == 1
    # Update 1 computed this weight.
    assert checkpoint.load(tmp_path / "run", "last").info["step"] == 0


def test_run_stops_at_a_variance_that_no_command_could_read(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], refused: Callable[..., None], tmp_path: Path
) -> None:
    result = train_tiny(tmp_path / "run", "--net", "4C3bn-8", "--init-gain", "1e18")
    refused(result, "update 1 (epoch 1): conv1.variance must be from 0 to", "clip gradients; the last checkpoint")
    assert checkpoint.load(tmp_path / "run", "last").info["step"] == 0
    # The checkpoint can be read, so that the run goes on, to the same end.
    refused(stsbp("train", "--resume", tmp_path / "run"), "update 1 (epoch 1): conv1.variance must be from 0 to")


def test_prefetch_keeps_the_order_and_raises_what_loading_raises() -> None:
    assert list(prefetched(lambda n: n * n, range(7))) == [(n, n * n) for n in range(7)]

    def fail(n: int) -> int:
        if n == 3:
            raise ValueError("sample 3")
        return n

    loaded: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="sample 3"):
        loaded.extend(prefetched(fail, range(7)))
    generator = prefetched(fail, range(7))
    assert next(generator) == (0, 0)
    generator.close()


def test_loading_does_not_hold_up_the_step() -> None:
    """While the step works on one batch, the next one is loaded, without being asked for."""
    loading = [threading.Event() for _ in range(5)]

    def load(n: int) -> int:
        loading[n].set()
        return n

    for n, _ in prefetched(load, range(5)):
        if n < 4:
            assert loading[n + 1].wait(60)


def test_second_process_is_refused(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path, stsbp: Callable[..., Result]
) -> None:
    run = tmp_path / "run"
    first = process(*_KILLED, "--epochs", 200, "--out", run)
    try:
        wait_for_checkpoint(run, first)
        result = stsbp("train", "--resume", run)
    finally:
        first.kill()
        first.communicate()
    assert result.exit_code == 1
    assert "another process is training in" in result.stderr


def test_run_that_the_clock_stops_goes_on_to_the_same_bits(
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    stopped, calls = train_tiny(tmp_path / "a", "--stop-after", 1e-9), 1
    while stopped.exit_code == 75:
        assert "time is up: stopped after update" in stopped.stderr
        # However little time there is, each call gets on: with an update, or with the evaluation after an epoch.
        calls += 1
        assert calls < 20
        stopped = stsbp("train", "--resume", tmp_path / "a", "--stop-after", 1e-9)
    assert stopped.exit_code == 0
    assert calls > 6
    assert train_tiny(tmp_path / "b").exit_code == 0
    same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("written", "named"), [(None, 1), (7, 7)])
def test_resuming_across_versions_of_the_contract_says_so(
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    tmp_path: Path,
    written: int | None,
    named: int,
    forge: Callable[..., None],
) -> None:
    run = tmp_path / "run"
    stopped = train_tiny(run, "--precision", "reproducible", "--stop-after", 1e-9)
    assert stopped.exit_code == 75
    forge(run, lambda description: description.update(contract=written) if written else description.pop("contract"))
    resumed = stsbp("train", "--resume", run)
    assert resumed.exit_code == 0, resumed.output
    line = f"was begun under version {named} of the exact-arithmetic contract and continues under version "
    assert resumed.stderr.count(line + str(CONTRACT_VERSION)) == 1
    for name in ("last", "best"):
        assert checkpoint.load(run, name).info["contract"] == CONTRACT_VERSION
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["contract"] for start in starts] == [CONTRACT_VERSION] * 2


def test_resuming_under_the_same_contract_or_in_fast_precision_says_nothing_of_it(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path, forge: Callable[..., None]
) -> None:
    for precision in ("reproducible", "fast"):
        run = tmp_path / precision
        assert train_tiny(run, "--precision", precision, "--stop-after", 1e-9).exit_code == 75
        if precision == "fast":
            forge(run, lambda description: description.pop("contract"))
        resumed = stsbp("train", "--resume", run)
        assert resumed.exit_code == 0, resumed.output
        assert "contract" not in resumed.stderr


_EXPLODING = (
    "--init-gain",
    1e6,
    "--threshold",
    1e6,
    "--surrogate",
    "triangle:width=1e7",
    "--steps",
    6,
    "--clip-norm",
    1,
)
"""Errors that grow a hundred thousand times from a step to the one before: the surrogate is wide and not small."""


def test_zeroed_errors_are_recorded_and_reported_once_a_layer(
    train_tiny: Callable[..., Result], tmp_path: Path, records: Records
) -> None:
    result = train_tiny(tmp_path / "run", "--precision", "reproducible", *_EXPLODING, "--log-every", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: layer linear2: the error grid of reproducible precision zeroed ") == 1
    assert "linear1: the error grid" not in result.stderr
    lines = records(tmp_path / "run")
    trained = [line for line in lines if line["kind"] in ("step", "epoch")]
    assert all(list(line["zeroed"]) == list(line["rates"]) for line in trained)
    assert all(0 <= share <= 1 for line in trained for share in line["zeroed"].values())
    assert trained[0]["zeroed"]["linear2"] > loop.ZEROED_SHARE
    assert not any("zeroed" in line for line in lines if line["kind"] == "evaluation")


def test_an_epochs_share_of_zeroed_errors_is_one_of_sums() -> None:
    sums = Sums()
    for counts in (ZeroedErrors(1, 10), ZeroedErrors(0, 0), ZeroedErrors(50, 90)):
        sums.add(samples=1, loss=0, rates={}, zeroed={"a": counts})
    assert sums.training()["zeroed"] == {"a": 51 / 100}
    assert Sums.from_json(sums.to_json()) == sums


def test_fast_precision_records_no_zeroed_errors(
    train_tiny: Callable[..., Result], tmp_path: Path, records: Records
) -> None:
    result = train_tiny(tmp_path / "run", *_EXPLODING)
    assert result.exit_code == 0, result.output
    assert "error grid" not in result.stderr
    assert not any("zeroed" in line for line in records(tmp_path / "run"))


def test_zeroed_errors_survive_a_stop_within_an_epoch(
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    exploding = ("--precision", "reproducible", *_EXPLODING)
    stopped = train_tiny(tmp_path / "a", *exploding, "--stop-after", 1e-9)
    while stopped.exit_code == 75:
        stopped = stsbp("train", "--resume", tmp_path / "a", "--stop-after", 1e-9)
    assert stopped.exit_code == 0, stopped.output
    assert train_tiny(tmp_path / "b", *exploding).exit_code == 0
    same_run(tmp_path / "a", tmp_path / "b")


def test_distances_of_an_evaluation_do_not_depend_on_its_batches(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    sequences = ("motor", "--epochs", 1, "--net", "8", "--steps", 25, "--loss", "van-rossum")
    digits = ("digits", "--epochs", 1, "--net", "8", "--limit", 50, "--steps", 5)
    for data, keys in ((sequences, ("loss", "van_rossum", "hamming")), (digits, ("loss",))):
        run = tmp_path / str(data[0])
        result = stsbp("train", *data, "--out", run)
        assert result.exit_code == 0, result.output
        distances_of_sizes = set()
        for size in (1, 3, 7, 50, 1000):
            figures = json.loads(stsbp("evaluate", run, "--json", "--batch-size", size).stdout)
            distances_of_sizes.add(tuple(figures[key] for key in keys))
        assert len(distances_of_sizes) == 1


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_resumed_run_with_another_number_of_threads_says_what_that_changes(
    train_tiny: Callable[..., Result],
    stsbp: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run, line = tmp_path / "run", "threads: 1 from here on, 2 before; in fast precision sums are then added"
    assert train_tiny(run, "--precision", precision, "--stop-after", 1e-9).exit_code == 75
    same = stsbp("train", "--resume", run, "--stop-after", 1e-9)
    assert same.exit_code == 75
    assert "threads:" not in same.stderr
    other = stsbp("train", "--resume", run, "--threads", 1, "--stop-after", 1e-9)
    assert other.exit_code == 75
    assert other.stderr.count(line) == (precision == "fast")
    assert checkpoint.load(run, "last").info["threads"] == 1
    # A finished run is not trained again, so that the number of threads changes nothing.
    assert stsbp("train", "--resume", run, "--threads", 1).exit_code == 0
    assert "threads:" not in stsbp("train", "--resume", run, "--threads", 2).stderr


def test_threads_are_those_asked_for_or_those_that_the_libraries_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (thread_count(5), thread_count(0)) == (5, 3)
    for unusable in ("", "0", "-1", "many", "9" * 5000):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert thread_count() == cores()


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 9}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


def test_a_step_is_recorded_with_its_epoch(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    train_tiny(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["epoch"]) for r in records if r["kind"] == "step"] == [(2, 1), (4, 2), (6, 3)]
