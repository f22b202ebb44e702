"""Networks step by step: `run.stream()` on every backend, and `stsbp predict --stream` on files and pipes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL, STEPS, case
from stsbp.cli import cli
from stsbp.cli.event_lines import LATEST, LONGEST_LINE, Event, EventLines
from stsbp.datasets.registry import _BUILT_IN
from stsbp.errors import DataError, printable
from stsbp.training.trained import Trained
from stsbp_spec import open_backend
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.registry import installed_backends
from stsbp_spec.typing import AnyArray

Stsbp = Callable[..., Result]
SOME = ("branches", "recurrent", "nodes", "readout", "image, normalised")
ELSEWHERE = [
    *(("torch", None, name) for name in SOME),
    *(("torch", "cpu:eager", name) for name in SOME[:2]),
    *(("cupy", "host", name) for name in SOME[:3]),
    ("jax", "cpu", "delay"),
]
"""Backend, device and network; numpy goes through all."""
TINY = (
    *("--net", "16", "--steps", "6", "--bin-ms", "50", "--epochs", "12", "--batch-size", "8", "--holdout", "8"),
    *("--lr", "0.02", "--init-gain", "3", "--label-pattern", "011"),
)
CLASSES = ("left", "right", "\u00e9", "x y")
BIN_US = 50_000


def inputs_of(name: str, t: int, samples: slice = slice(None)) -> AnyArray | None:
    """What enters a network of `SMALL` at a step."""
    inputs = case(name).inputs
    if SMALL[name].coding == "events":
        return inputs[t, samples]
    return inputs[samples] if t == 0 else None


def check(name: str, backend: str, device: str | None) -> None:
    network_case = case(name)
    output = network_case.run.layers[network_case.network.blocks[-1].name]
    expected = output.potentials if network_case.network.has_readout else output.spikes
    stream = open_backend(backend, device).stream(network_case.network, network_case.weights, 3)
    for _ in range(2):
        for t in range(STEPS):
            assert stream.steps == t
            outputs = stream.step(inputs_of(name, t))
            assert (outputs.dtype, outputs.shape) == (expected.dtype, expected[t].shape)
            assert outputs.tobytes() == expected[t].tobytes()
            layers = stream.layers
            assert list(layers) == list(network_case.run.layers)
            for layer, layer_run in network_case.run.layers.items():
                assert layers[layer].spikes.tobytes() == layer_run.spikes[t].tobytes()
                assert layers[layer].potentials.tobytes() == layer_run.potentials[t].tobytes()
        stream.reset()
        assert (stream.steps, stream.layers) == (0, {})


@pytest.mark.parametrize("name", SMALL)
def test_steps_have_the_bits_of_one_pass(name: str) -> None:
    check(name, "numpy", None)


@pytest.mark.parametrize(("backend", "device", "name"), ELSEWHERE)
def test_steps_have_the_bits_of_one_pass_on_other_backends(backend: str, device: str | None, name: str) -> None:
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    check(name, backend, device)


def test_samples_side_by_side_are_those_alone() -> None:
    network_case = case("recurrent")
    numpy = open_backend("numpy")
    together = numpy.stream(network_case.network, network_case.weights, 3)
    alone = [numpy.stream(network_case.network, network_case.weights) for _ in range(3)]
    for t in range(STEPS):
        outputs = together.step(inputs_of("recurrent", t))
        for b, stream in enumerate(alone):
            assert np.array_equal(stream.step(inputs_of("recurrent", t, slice(b, b + 1)))[0], outputs[b])


def test_no_inputs_are_no_events_and_the_image_of_before() -> None:
    numpy = open_backend("numpy")
    events, images = case("delay"), case("image")
    silent, quiet = (numpy.stream(events.network, events.weights) for _ in range(2))
    for x in (events.inputs[0, :1], None, None, events.inputs[1, :1], None):
        zeros = np.zeros((1, 12), np.uint8) if x is None else x
        assert np.array_equal(silent.step(x), quiet.step(zeros))
    continued, shown = (numpy.stream(images.network, images.weights) for _ in range(2))
    first, second = images.inputs[:1], images.inputs[1:2]
    for x, y in ((first, first), (None, first), (second, second), (None, second)):
        continued.step(x)
        shown.step(y)
        for name, layer in shown.layers.items():
            assert continued.layers[name].potentials.tobytes() == layer.potentials.tobytes()
    continued.reset()
    with pytest.raises(ShapeError, match="needs an image, uint8"):
        continued.step()


@pytest.mark.parametrize("wrong", [(12,), (2, 12), (1, 11), (1, 1, 12)])
def test_a_refused_step_changes_nothing(wrong: tuple[int, ...]) -> None:
    network_case = case("recurrent")
    stream = open_backend("numpy").stream(network_case.network, network_case.weights)
    stream.step(network_case.inputs[0, :1])
    potentials = stream.layers["linear1"].potentials
    refused: list[Any] = [
        np.zeros(wrong, np.uint8),
        np.zeros((1, 12), np.float32),
        np.full((1, 12), 2, np.uint8),
        [0] * 12,
    ]
    for x in refused:
        with pytest.raises(ShapeError):
            stream.step(x)
    assert stream.steps == 1
    assert np.array_equal(stream.layers["linear1"].potentials, potentials)
    assert np.array_equal(stream.step(network_case.inputs[1, :1])[0], network_case.run.layers["linear2"].spikes[1, 0])


def test_streams_that_cannot_be() -> None:
    network_case, numpy = case("full"), open_backend("numpy")
    for samples in (0, -1, True, 1.5):
        with pytest.raises(SpecError, match="at least 1 sample"):
            numpy.stream(network_case.network, network_case.weights, samples)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="must have the layers"):
        numpy.stream(network_case.network, {})
    with pytest.raises(NumericError, match="linear1"):
        numpy.stream(
            network_case.network,
            {**network_case.weights, "linear1": network_case.weights["linear1"] * np.float32("nan")},
        )


# The command line.


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STSBP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def trained(folder: Path, *words: Any) -> Path:
    result = CliRunner().invoke(cli, ["--backend", "numpy", "train", *map(str, words), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def drawn(seed: int, count: int = 500, end: int = 6 * BIN_US) -> AnyArray:
    """Events `[n, 4]` of a camera: t, x, y, p in the order of time; the class is seed modulo 4."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, end, count))
    return np.stack([t, rng.integers(0, 34, count), rng.integers(0, 8, count) + 8 * (seed % 4), t % 2], axis=1)


@pytest.fixture(scope="module")
def recordings(cache: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of recordings."""
    path = tmp_path_factory.mktemp("data") / "recordings.npz"
    samples = [drawn(100 + n) for n in range(40)]
    columns = dict(zip("txyp", np.concatenate(samples).T, strict=True))
    labels, classes = np.arange(40) % 4, np.array(CLASSES)
    np.savez(path, sample=np.repeat(np.arange(40), 500), labels=labels, classes=classes, sensor=[34, 34], **columns)
    return f"events:{path}"


@pytest.fixture(scope="module")
def camera(recordings: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads events of a camera, 6 steps of 50 ms."""
    return trained(tmp_path_factory.mktemp("runs") / "camera", recordings, *TINY)


@pytest.fixture(scope="module")
def motor(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads and gives spike trains, of steps without duration."""
    words = ("--net", "6R{delay=2}", "--epochs", 2, "--limit", 20, "--steps", 25)
    return trained(tmp_path_factory.mktemp("runs") / "motor", "motor", *words)


@pytest.fixture(scope="module")
def run(camera: Path) -> Trained:
    return package.load_run(camera, backend="numpy")


def text(events: AnyArray, separator: str = " ") -> str:
    return "".join(separator.join(map(str, event)) + "\n" for event in events.tolist())


def frames_of(run: Trained, events: AnyArray) -> AnyArray:
    t, x, y, p = events.T
    return run.settings.binning.frames(x, y, p, t)


def lines_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_stream_is_what_predict_makes_of_its_frames(
    stsbp: Stsbp, camera: Path, run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("stsbp.cli.event_sources._CHUNK_BYTES", piece)
    # So that the events of a step are binned in several goes.
    monkeypatch.setattr("stsbp.cli.streaming._TOGETHER", 100)
    events = drawn(1)
    (tmp_path / "a.txt").write_text(text(events))
    *steps, end = lines_of(stsbp("predict", camera, "--stream", "a.txt", "--json"))
    (tmp_path / "-a.txt").write_text(text(events))
    assert lines_of(stsbp("predict", camera, "--stream=-a.txt", "--json"))[:-1] == steps
    frames = frames_of(run, events)
    prediction = run.predict(frames[:, None])
    assert prediction.spikes.any()
    assert [line["spikes"] for line in steps] == [np.flatnonzero(o).tolist() for o in prediction.spikes[:, 0]]
    assert [line["time_us"] for line in steps] == [BIN_US * (t + 1) for t in range(6)]
    assert all(line["classes"] == [run.names[n] for n in line["spikes"]] for line in steps)
    assert end["class"] == prediction.classes[0]
    assert end["class_spike_count"] == prediction.names[prediction.counted[0]]
    np.save(tmp_path / "a.npy", frames)
    (expected,) = lines_of(stsbp("predict", camera, "a.npy", "--json"))
    assert end["distances"] == expected["distances"]
    assert end["steps"] == 6


def test_text_names_the_classes_that_spike_and_says_how_long_it_took(
    stsbp: Stsbp, camera: Path, run: Trained, tmp_path: Path
) -> None:
    events = drawn(2)
    (tmp_path / "a.txt").write_text(text(events))
    result = stsbp("predict", camera, "--stream", "a.txt")
    assert result.exit_code == 0
    spikes = run.predict(frames_of(run, events)[:, None]).spikes[:, 0]
    expected = [
        f"{t:>6}{50.0 * (t + 1):>14.3f} ms  {', '.join(run.names[n] for n in np.flatnonzero(o))}"
        for t, o in enumerate(spikes)
        if o.any()
    ]
    assert len(expected) > 2
    lines = result.stdout.splitlines()
    assert lines[: len(expected)] == expected
    assert " by nearest label sequence, " in lines[len(expected)]
    assert lines[len(expected)].endswith("of the last 6 steps")
    assert lines[len(expected) + 1].startswith("  distances: left ")
    assert lines[len(expected) + 2].startswith("6 steps, ")
    assert " with real time (" in lines[len(expected) + 2]
    assert [line.split(":")[0].strip() for line in lines[len(expected) + 3 :]][-2:] == [
        "from a step's last event to its spikes",
        "to compute a step",
    ]
    assert "a.txt: lines of t x y p, time in us; a step is 50 ms" in result.stderr


@pytest.mark.parametrize(
    ("unit", "write"),
    [
        ("us", lambda t, x, y, p: f"{t},{x},{y},{p}\r\n"),
        ("ms", lambda t, x, y, p: f"# a comment\n\n  {t // 1000}.{t % 1000:03d}9 {x}\t{y} {p}\n"),
        ("s", lambda t, x, y, p: f"{t // 10**6}.{t % 10**6:06d} {x} {y} {p}\n"),
    ],
)
def test_units_separators_and_empty_lines(
    stsbp: Stsbp, camera: Path, tmp_path: Path, unit: str, write: Callable[..., str]
) -> None:
    events = drawn(3)
    # An event alone in its step, on a last line that does not end.
    events[-1] = 8 * BIN_US, 0, 0, 0
    (tmp_path / "a.txt").write_text(text(events))
    (tmp_path / "b.txt").write_bytes("".join(write(*event) for event in events.tolist()).rstrip().encode())
    one, other = (
        lines_of(stsbp("predict", camera, "--stream", name, "--json", *words))[:-1]
        for name, words in (("a.txt", ()), ("b.txt", ("--time-unit", unit)))
    )
    assert one == other
    assert any(line["spikes"] for line in one)
    assert len(one) == 9


@pytest.mark.parametrize("header", ["x,y,p,t", "\ufeffX Y polarity timestamp"])
def test_the_first_line_may_name_the_columns(stsbp: Stsbp, camera: Path, tmp_path: Path, header: str) -> None:
    events = drawn(4)
    (tmp_path / "a.txt").write_text(text(events))
    (tmp_path / "b.csv").write_text(header + "\n" + text(events[:, [1, 2, 3, 0]], ","), encoding="utf-8")
    one, other = (lines_of(stsbp("predict", camera, "--stream", name, "--json"))[:-1] for name in ("a.txt", "b.csv"))
    assert one == other


def test_time_may_count_from_the_first_event(stsbp: Stsbp, camera: Path, refused: Any, tmp_path: Path) -> None:
    events = drawn(5)
    events[:, 0] -= events[0, 0]
    (tmp_path / "a.txt").write_text(text(events))
    events[:, 0] += 1_700_000_000_000_000
    (tmp_path / "b.txt").write_text(text(events))
    one = lines_of(stsbp("predict", camera, "--stream", "a.txt", "--json"))[:-1]
    assert lines_of(stsbp("predict", camera, "--stream", "b.txt", "--json", "--from-first"))[:-1] == one
    refused(
        stsbp("predict", camera, "--stream", "b.txt"),
        "b.txt, line 1: 34,000,000,000 steps before this one have no events",
        "--from-first",
    )


def test_a_stream_goes_on_after_the_window_of_the_run(stsbp: Stsbp, camera: Path, run: Trained, tmp_path: Path) -> None:
    """Classes are those of the last steps, whose label sequences have gone on since the first."""
    events = drawn(6, 900, 10 * BIN_US)
    (tmp_path / "a.txt").write_text(text(events))
    *steps, end = lines_of(stsbp("predict", camera, "--stream", "a.txt", "--json"))
    stream = run.stream()
    t, x, y, p = events.T
    outputs = []
    for step in range(10):
        inside = t // BIN_US == step
        frame = np.zeros((2, 34, 34), np.uint8)
        frame[p[inside], y[inside], x[inside]] = 1
        outputs.append(stream.step(frame[None]))
    assert [line["spikes"] for line in steps] == [np.flatnonzero(o).tolist() for o in outputs]
    decoded = run.decode(np.stack(outputs[4:]), 4)
    assert decoded.distances is not None
    assert list(end["distances"].values()) == np.round(decoded.distances[0], 6).tolist()
    sequences = run.settings.label_code.sequences(4, 10)[:, 4:, None]
    by_hand = [run.loss.distances(decoded.spikes, labels, run.network.output_psp)[0] for labels in sequences]
    assert np.allclose(decoded.distances[0], by_hand, rtol=1e-6)


def test_decode_refuses_outputs_of_wrong_shapes(run: Trained) -> None:
    prediction = run.predict(frames_of(run, drawn(13))[:, None])
    decoded = run.decode(prediction.spikes)
    assert decoded.lengths is None
    assert decoded.distances is not None
    assert prediction.distances is not None
    assert decoded.distances.tobytes() == prediction.distances.tobytes()
    short = run.decode(np.zeros((2, 3, 4), np.uint8))
    assert short.lengths is not None
    assert short.lengths.tolist() == [2, 2, 2]
    for shape in ((7, 1, 4), (0, 1, 4), (6, 4), (6, 1, 3), (6, 0, 4)):
        with pytest.raises(ShapeError, match="T from 1 to 6 and N = 4"):
            run.decode(np.zeros(shape, np.uint8))


def test_a_silent_stream_of_oddly_named_classes(stsbp: Stsbp, cache: None, tmp_path: Path) -> None:
    """One neuron, one step: both classes are equally far, and their names reach no terminal as they are."""
    n, names = np.arange(8), ["a\x1b[31m", "b\nc"]
    np.savez(tmp_path / "a.npz", sample=n, x=n * 0, t=n, labels=n % 2, classes=names, sensor=[1])
    words = ("--net", 1, "--steps", 1, "--epochs", 1, "--holdout", 2, "--label-pattern", 1, "--window-ms", 20)
    folder = trained(tmp_path / "run", f"events:{tmp_path / 'a.npz'}", *words)
    (tmp_path / "a.txt").write_text("45000 0\n")
    result = stsbp("predict", folder, "--stream", "a.txt")
    assert (result.exit_code, printable(result.stdout, lines=True)) == (0, result.stdout)
    first, second, third, fourth, *_ = result.stdout.splitlines()
    assert first == "a\\x1b[31m by nearest label sequence, a\\x1b[31m by spike count, of the last 1 steps"
    assert second.startswith("  distances: a\\x1b[31m ")
    assert third == "  2 label sequences are equally far: the lowest class is the answer"
    assert fourth.startswith("3 steps, ")
    end = lines_of(stsbp("predict", folder, "--stream", "a.txt", "--json"))[-1]
    assert list(end["distances"]) == ["a\x1b[31m", "b\nc"]


def test_so_many_steps_and_no_more(stsbp: Stsbp, camera: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(drawn(7, end=8 * BIN_US)) + "this is never read\n")
    (tmp_path / "empty.txt").write_text("")
    lines = lines_of(stsbp("predict", camera, "--stream", "a.txt", "--json", "--steps", 5))
    assert [line.get("step") for line in lines] == [0, 1, 2, 3, 4, None]
    (tmp_path / "jump.txt").write_text(f"1 2 3 1\n{8 * BIN_US} 2 3 1\n")
    *steps, end = lines_of(stsbp("predict", camera, "--stream", "jump.txt", "--json", "--steps", 4))
    assert len(steps) == end["steps"] == 4
    # One step had an event.
    assert len(set(end["latency_ms"].values())) == 1
    for words, count in (((), 6), (("--steps", 9), 9), (("--steps", 2), 2)):
        *steps, end = lines_of(stsbp("predict", camera, "--stream", "empty.txt", "--json", *words))
        assert len(steps) == end["steps"] == count
        assert end["latency_ms"] is None
        assert end["compute_ms"]["max"] >= end["compute_ms"]["p95"] >= end["compute_ms"]["median"] > 0


def test_every_so_many_steps_class_and_figures(stsbp: Stsbp, camera: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(drawn(8)))
    lines = lines_of(stsbp("predict", camera, "--stream", "a.txt", "--json", "--every", 2))
    assert [line.get("steps") for line in lines] == [None, None, 2, None, None, 4, None, None, 6]
    assert all("class" in line for line in lines if "steps" in line)


def test_spike_trains_count_time_in_steps(stsbp: Stsbp, refused: Any, motor: Path, tmp_path: Path) -> None:
    run = package.load_run(motor, backend="numpy")
    rng = np.random.default_rng(0)
    frames = (rng.random((25, 43)) < 0.1).astype(np.uint8)
    (tmp_path / "a.txt").write_text("".join(f"{t} {n}\n" for t, n in zip(*np.nonzero(frames), strict=True)))
    *steps, end = lines_of(stsbp("predict", motor, "--stream", "a.txt", "--json"))
    spikes = run.predict(frames[:, None]).spikes[:, 0]
    assert spikes.any()
    assert steps == [{"step": t, "spikes": np.flatnonzero(o).tolist()} for t, o in enumerate(spikes)]
    assert "class" not in end
    assert "times_real_time" not in end
    result = stsbp("predict", motor, "--stream", "a.txt")
    assert "lines of t n, time in step\n" in result.stderr
    assert "25 steps, " in result.stdout
    refused(stsbp("predict", motor, "--stream", "a.txt", "--time-unit", "us"), "the steps of motor have no duration")
    refused(stsbp("predict", motor, "--stream", "a.txt", "--clock"), "--clock")
    refused(stsbp("predict", motor, "--stream", "a.bin"), "a.bin")


def test_a_stream_needs_no_package_of_the_data_set_if_the_unit_is_given(
    stsbp: Stsbp, refused: Any, motor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("0 1\n3 2\n24 0\n")
    expected = stsbp("predict", motor, "--stream", "a.txt", "--json").stdout
    monkeypatch.delitem(_BUILT_IN, "motor")
    refused(
        stsbp("predict", motor, "--stream", "a.txt"), "the data set motor of the run is not installed", "--time-unit"
    )
    result = stsbp("predict", motor, "--stream", "a.txt", "--time-unit", "step", "--json")
    assert result.stdout.splitlines()[:-1] == expected.splitlines()[:-1] != []
    result = stsbp("predict", motor, "--stream", "a.txt", "--time-unit", "ms")
    assert "time in ms; a step is 12 ms" in result.stderr


def test_a_readout_prints_potentials(stsbp: Stsbp, recordings: str, tmp_path: Path) -> None:
    words = ("--loss", "cross-entropy", "--net", "16-4{neuron=readout}", *TINY[2:-2])
    folder = trained(tmp_path / "run", recordings, *words)
    run = package.load_run(folder, backend="numpy")
    events = drawn(9)
    (tmp_path / "a.txt").write_text(text(events))
    *steps, end = lines_of(stsbp("predict", folder, "--stream", "a.txt", "--json"))
    prediction = run.predict(frames_of(run, events)[:, None])
    assert [np.float32(line["potentials"]).tobytes() for line in steps] == [
        u.tobytes() for u in prediction.spikes[:, 0]
    ]
    assert end["class"] == prediction.classes[0]
    first = stsbp("predict", folder, "--stream", "a.txt").stdout.splitlines()[0]
    most = int(prediction.spikes[0, 0].argmax())
    assert first == f"     0        50.000 ms  {run.names[most]} {prediction.spikes[0, 0, most]:.3f}"


def recorded(events: AnyArray) -> bytes:
    """Events in the format of N-MNIST."""
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in events.tolist())


@pytest.mark.parametrize("words", [(), ("--own-lengths",), ("--saccades", "first", "--stabilise")])
def test_a_recording_is_streamed_as_it_is_predicted(
    stsbp: Stsbp, refused: Any, cache: None, tmp_path: Path, words: tuple[str, ...]
) -> None:
    pytest.importorskip("tonic", reason="tonic reads recordings")
    for n in range(40):
        (tmp_path / f"NMNIST/Train/{n % 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"NMNIST/Train/{n % 4}/{n + 1:05}.bin").write_bytes(recorded(drawn(100 + n)))
    folder = trained(tmp_path / "run", "nmnist", "--data-dir", tmp_path, *TINY, *words)
    # Longer than the window, and shorter.
    for name, end in (("long.BIN", 7 * BIN_US), ("short.bin", 4 * BIN_US)):
        events = drawn(10, 900, end)
        (tmp_path / name).write_bytes(recorded(events))
        (tmp_path / f"{name}.txt").write_text(text(events))
        *_, end_line = lines_of(stsbp("predict", folder, "--stream", name, "--json"))
        (expected,) = lines_of(stsbp("predict", folder, name, "--json"))
        assert end_line["distances"] == expected["distances"]
        assert end_line["steps"] == (4 if words == ("--own-lengths",) and name == "short.bin" else 6)
        if name == "short.bin":
            assert (
                lines_of(stsbp("predict", folder, "--stream", f"{name}.txt", "--json"))[-1]["distances"]
                == (expected["distances"])
            )
    # The clock of a camera need not start at 0.
    late = drawn(10, 900, 4 * BIN_US)
    late[:, 0] += 50 * BIN_US
    (tmp_path / "late.bin").write_bytes(recorded(late))
    *_, end_line = lines_of(stsbp("predict", folder, "--stream", "late.bin", "--from-first", "--json"))
    first = late - [late[0, 0], 0, 0, 0]
    (tmp_path / "first.bin").write_bytes(recorded(first))
    (expected,) = lines_of(stsbp("predict", folder, "first.bin", "--json"))
    assert end_line["distances"] == expected["distances"]
    assert end_line["steps"] == (4 if words == ("--own-lengths",) else 6)
    for arguments in (("late.bin",), ("--stream", "late.bin")):
        assert "late.bin: it has no events in the window of" in stsbp("predict", folder, *arguments).stderr
    refused(stsbp("predict", folder, "--stream", "short.bin", "--clock"), "a recording contains its own times")
    refused(stsbp("predict", folder, "--stream", "no.bin"), "cannot read no.bin: No such file")


@pytest.mark.data
def test_real_recordings_are_streamed_as_they_are_predicted(stsbp: Stsbp, camera: Path) -> None:
    pytest.importorskip("tonic", reason="tonic reads recordings")
    files = sorted(Path(os.environ.get("STSBP_DATA", "nowhere")).glob("NMNIST/T*/*/*.bin"))[::100]
    if not files:
        pytest.skip("needs NMNIST in STSBP_DATA")
    expected = lines_of(stsbp("predict", camera, *files, "--json"))
    for file, prediction in zip(files, expected, strict=True):
        end = lines_of(stsbp("predict", camera, "--stream", file, "--json"))[-1]
        assert (end["class"], end["class_spike_count"]) == (prediction["class"], prediction["class_spike_count"])
        assert end["distances"] == prediction["distances"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc", "line 4 is not an event: 'abc'. A line must have the numbers t x y p"),
        ("70000 1 2", "line 4 is not an event: '70000 1 2'"),
        ("70000 1 2 1 1", "line 4 is not an event"),
        ("70000 1 -2 1", "line 4: y is -2, but the network reads 0 to 33"),
        ("-70000 1 2 1", "line 4 is not an event"),
        ("7e4 1 2 1", "line 4 is not an event"),
        ("70000 1.5 2 1", "line 4 is not an event"),
        ("70000 1_0 2 1", "line 4 is not an event"),
        ("70000 \u0661 2 1", "line 4 is not an event"),
        ("70000 34 2 1", "line 4: x is 34, but the network reads 0 to 33"),
        ("70000 1 34 1", "line 4: y is 34, but the network reads 0 to 33"),
        ("70000 1 2 2", "line 4: p is 2, but the network reads 0 to 1"),
        (f"70000 {'9' * 4000} 2 1", "but the network reads 0 to 33"),
        ("59999 1 2 1", "line 4: time runs backwards, from 60000 to 59999"),
        (f"{'9' * 29} 1 2 1", "line 4: the time 99999999999999999999999999999 is too large"),
        ("70000 \x1b[31m1\x07 2 1", "line 4 is not an event: '70000 \\x1b[31m1\\x07 2 1'"),
        ("x" * 5000, "line 4 has more than 4,096 bytes"),
        ("60000000000 1 2 1", "1,199,999 steps before this one have no events"),
    ],
)
def test_a_line_that_is_no_event_ends_the_stream_after_the_steps_before_it(
    stsbp: Stsbp, refused: Any, camera: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "a.txt").write_text(f"t x y p\n10 1 2 1\n60000 1 2 1\n{line}\n", encoding="utf-8")
    result = stsbp("predict", camera, "--stream", "a.txt", "--json")
    refused(result, f"Error: a.txt, {message}" if message.startswith("line") else message)
    assert [json.loads(record)["step"] for record in result.stdout.splitlines()] == [0]


def test_a_long_gap_is_told_once_before_it_is_computed(stsbp: Stsbp, camera: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("t x y p\n0 1 2 1\n600000000 1 2 1\n1200000000 1 2 1\n")
    result = stsbp("predict", camera, "--stream", "a.txt", "--json")
    assert result.exit_code == 0, result.output
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "a.txt, line 3: 12,000 steps before this one have no events and are computed now" in warning
    assert "--time-unit" in warning
    (tmp_path / "b.txt").write_text("t x y p\n0 1 2 1\n400000000 1 2 1\n")
    assert "warning" not in stsbp("predict", camera, "--stream", "b.txt", "--json").stderr


def test_columns_are_named_once_and_all_of_them(stsbp: Stsbp, refused: Any, camera: Path, tmp_path: Path) -> None:
    for content in ("x y p\n", "t x y p q\n", "t t x y\n", "0 1 2 1\nt x y p\n"):
        (tmp_path / "a.txt").write_text(content)
        refused(stsbp("predict", camera, "--stream", "a.txt"), "is not an event", "may name them in another order")


def test_options_that_do_not_go_together(
    stsbp: Stsbp, refused: Any, camera: Path, train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    refused(stsbp("predict", camera, "--stream", "a.txt", "--", "b.npy"), "--stream cannot be combined with FILEs")
    refused(stsbp("predict", camera, "--stream", "a.txt", "--draw", "a.html"), "--stream cannot be combined with FILEs")
    refused(stsbp("predict", camera), "Missing argument 'FILE...', or the option '--stream'", code=2)
    refused(stsbp("predict", camera, "a.npy", "--clock", "--time-unit", "s"), "--clock, --time-unit: only for a stream")
    refused(stsbp("predict", camera, "--stream", "a.txt", "--steps", 0), "--steps", code=2)
    refused(stsbp("predict", camera, "--stream", "nothing.txt"), "cannot read nothing.txt: No such file or directory")
    refused(stsbp("predict", camera, "--stream", tmp_path), "Is a directory")
    refused(stsbp("predict", camera, "--stream", "a\0b"), "cannot read")
    refused(stsbp("predict", camera, "--stream", "a.txt", "--time-unit", "step", "--clock"), "--clock")
    assert train_tiny(tmp_path / "digits").exit_code == 0
    refused(stsbp("predict", tmp_path / "digits", "--stream", "a.txt"), "this run reads images", "run.stream()")


LINE = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=20).map(lambda s: s.encode("utf-8", "surrogatepass")),
    st.tuples(*[st.integers(-2, 40)] * 4).map(lambda row: b" ".join(b"%d" % n for n in row)),
    st.tuples(st.floats(0, 1e6), *[st.integers(0, 1)] * 3).map(lambda row: ",".join(map(str, row)).encode()),
    st.sampled_from([b"t,x,y,p", b"p y x t", b"#", b"", b"\r", b"\xef\xbb\xbf0 0 0 0", b"\0", b"9" * 5000]),
)


def read_in(pieces: list[bytes]) -> tuple[list[Event], str]:
    lines, events = EventLines({"x": 34, "y": 34, "p": 2}, 3, "a"), list[Event]()
    try:
        for piece in pieces:
            events += lines.events(piece)
        events += lines.end()
    except DataError as error:
        return events, str(error)
    return events, ""


@settings(max_examples=300, deadline=None)
@given(st.lists(LINE, max_size=8), st.lists(st.integers(0, 200), max_size=6))
def test_any_lines_in_any_pieces(lines: list[bytes], cuts: list[int]) -> None:
    """What is read does not hang on the pieces in which it comes; whatever it is, only `DataError` ends it."""
    content = b"\n".join(lines)
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    events, complaint = read_in([content])
    assert read_in([content[a:b] for a, b in pairwise(places)]) == (events, complaint)
    assert printable(complaint) == complaint
    assert len(complaint) < 500
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    assert all(0 <= t < LATEST and 0 <= x < 34 and 0 <= y < 34 and p in (0, 1) for t, x, y, p in events)


def test_a_line_is_as_long_as_it_may_be() -> None:
    for spaces, fine in ((LONGEST_LINE - 7, True), (LONGEST_LINE - 6, False)):
        events, complaint = read_in([b"1 2 3 1" + b" " * spaces + b"\n"])
        assert (events == [(1000, 2, 3, 1)], complaint == "") == (fine, fine)
    # A line without an end is refused before its end comes.
    with pytest.raises(DataError, match="line 1 has more than 4,096 bytes"):
        list(EventLines({"n": 1}, 0, "a").events(b"1" * (LONGEST_LINE + 1)))


# Pipes and time.


class StreamProcess:
    """A process of `stsbp predict RUN --stream`, which is given lines and whose lines are read."""

    def __init__(self, run: Path, *words: str) -> None:
        command = [sys.executable, "-m", "stsbp", "--backend", "numpy", "predict", str(run), "--json", *words]
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, text=True, bufsize=1, **pipes)

    def say(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines))
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        record: dict[str, Any] = json.loads(self.process.stdout.readline())
        return record

    def ready(self) -> None:
        """Wait until it says what it reads."""
        assert self.process.stderr is not None
        while "lines of" not in self.process.stderr.readline():
            pass

    def end(self) -> tuple[list[dict[str, Any]], str, int]:
        output, errors = self.process.communicate(timeout=60)
        return [json.loads(line) for line in output.splitlines()], errors, self.process.returncode


@pytest.fixture
def stream_process(camera: Path) -> Iterator[Callable[..., StreamProcess]]:
    begun: list[StreamProcess] = []

    def begin(*words: str) -> StreamProcess:
        begun.append(StreamProcess(camera, *words))
        return begun[-1]

    yield begin
    for process in begun:
        with contextlib.suppress(OSError, ValueError):
            process.process.kill()
            process.process.communicate()


def test_stream_of_a_closed_standard_input_is_an_error(camera: Path) -> None:
    command = shlex.join([sys.executable, "-m", "stsbp", "--backend", "numpy", "predict", str(camera), "--stream", "-"])
    for redirect, code, text in (("<&-", 1, "Error: standard input is closed; pipe events"), ("</dev/null", 0, "")):
        done = subprocess.run(["bash", "-c", f"{command} {redirect}"], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert bool(done.stdout) == (code == 0)


def test_spikes_come_before_the_events_end(stream_process: Callable[..., StreamProcess], run: Trained) -> None:
    process, events = stream_process("--stream"), drawn(11)
    expected = [np.flatnonzero(o).tolist() for o in run.predict(frames_of(run, events)[:, None]).spikes[:, 0]]
    lines = text(events).splitlines()
    for step in range(6):
        lines_of_step = [line for line, event in zip(lines, events.tolist(), strict=True) if event[0] // BIN_US == step]
        process.say(lines_of_step[0])
        if step > 0:
            # The step before ended with this event; nothing later has been sent.
            record = process.hear()
            assert (record["step"], record["spikes"]) == (step - 1, expected[step - 1])
        process.say(*lines_of_step[1:])
    (last, end), errors, code = process.end()
    assert (last["step"], last["spikes"], end["steps"], code) == (5, expected[5], 6, 0)
    assert "Error" not in errors


def test_with_the_clock_a_step_ends_when_its_time_has_passed(stream_process: Callable[..., StreamProcess]) -> None:
    process = stream_process("--stream", "--clock")
    process.ready()
    begin = time.monotonic()
    process.say("1000 1 2 1")
    records = [process.hear() for _ in range(4)]
    took = time.monotonic() - begin
    assert [line["step"] for line in records] == [0, 1, 2, 3]
    assert 0.19 < took < 5
    # It comes too late for its step, and is in the one that is open.
    process.say("2000 5 6 0")
    *_, end = process.end()[0]
    assert end["late_events"] == 1
    assert end["steps"] >= 6


def test_with_the_clock_a_long_silence_before_the_first_event_is_refused(
    stream_process: Callable[..., StreamProcess],
) -> None:
    """A clock that does not start at 0 would keep the process busy with empty steps, and the spikes late."""
    late = 10_001 * BIN_US
    process = stream_process("--stream", "--clock")
    process.say(f"{late} 1 2 1")
    records, errors, code = process.end()
    assert (records, code) == ([], 1)
    message = "line 1: 10,001 steps before the first event have no events, but --clock allows at most 10,000"
    assert f"{message}; count time --from-first" in " ".join(errors.split())
    for words, t, steps in (
        (("--clock", "--from-first"), late, 1),
        (("--clock",), 100 * BIN_US, 101),
        # Without --clock, the events may be those of a file, which are not awaited in real time.
        ((), late, 10_002),
    ):
        process = stream_process("--stream", *words)
        process.say(f"{t} 1 2 1")
        records, errors, code = process.end()
        assert code == 0, errors
        # At the end, the default is at least the number of steps of the run.
        assert records[-1]["steps"] == max(steps, 6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stream_with_its_figures(
    stream_process: Callable[..., StreamProcess], number: signal.Signals, code: int
) -> None:
    process = stream_process("--stream")
    process.say("1000 1 2 1", "60000 1 2 1")
    assert process.hear()["step"] == 0
    # The signal is to come while the process waits for events.
    time.sleep(0.5)
    # A terminal and a shell may both send it.
    for _ in range(20 if number == signal.SIGINT else 1):
        process.process.send_signal(number)
        time.sleep(0.001)
    assert process.process.wait(timeout=60) == code
    lines, errors, returned = process.end()
    assert returned == code
    assert [line["steps"] for line in lines] == [1]
    assert f"{number.name}: stopped after 1 steps" in errors
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_ends_a_stream(camera: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(drawn(12, 20_000, 2000 * BIN_US)))
    call = f"{sys.executable} -m stsbp --backend numpy predict {camera} --stream --json < {tmp_path / 'a.txt'}"
    command = f"{call} | head -2; echo ${{PIPESTATUS[0]}}"
    completed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    *lines, code = completed.stdout.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert code == "141"
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not tell how much memory a process took")
def test_memory_does_not_grow_with_the_steps(motor: Path, tmp_path: Path) -> None:
    """Recurrence and delays carry states; an event a step in the beginning, then silence."""
    took: dict[int, int] = {}
    for steps in (1000, 25_000):
        (tmp_path / "a.txt").write_text("".join(f"{t} {t % 43}\n" for t in range(steps // 10)))
        words = ["predict", str(motor), "--stream", str(tmp_path / "a.txt"), "--steps", str(steps)]
        command = [sys.executable, "-m", "stsbp", "--backend", "numpy", *words]
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert f"\n{steps:,} steps, " in (tmp_path / "out").read_text()
        took[steps] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Less than 40 bytes a step.
    assert took[25_000] - took[1000] < 40 * 24_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"5 1 2 -1\n", "p is -1, but the network reads 0 to 1"),
        (b"5 1 2 x\n", "p or polarity"),
        (b"a b\n", "timestamp"),
    ],
)
def test_the_error_of_a_malformed_line_names_the_expected_form(line: bytes, message: str) -> None:
    lines = EventLines({"x": 8, "y": 8, "p": 2}, 0, "events")
    with pytest.raises(DataError, match=message):
        list(lines.events(line))


def test_a_stream_does_not_share_what_it_was_given() -> None:
    network_case = case("bias")
    weights = {name: x.copy() for name, x in network_case.weights.items()}
    stream = open_backend("numpy").stream(network_case.network, weights, 3)
    for x in weights.values():
        x[...] = 5
    assert np.array_equal(stream.step(network_case.inputs[0]), network_case.run.layers["linear3"].spikes[0])
    assert np.array_equal(stream.layers["linear1"].potentials, network_case.run.layers["linear1"].potentials[0])
