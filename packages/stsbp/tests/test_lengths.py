"""Samples of different lengths in data sets and runs: what is stored, refused, trained, measured, predicted, drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import SettingsSource, resolve
from stsbp.datasets import Subset, load
from stsbp.datasets.base import FrameSplit, lengths_of
from stsbp.datasets.cache import CacheWriter, cached
from stsbp.datasets.nmnist import read_recording
from stsbp.errors import DataError
from stsbp.training.build import Inputs, build_task
from stsbp.training.metrics import LabelDistances
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.models.decoders import distances, nearest_sequence, spike_count
from stsbp_spec.models.encoders import EventBinning, LabelCode, encode_repeat
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.metrics import match_spikes
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Int64, UInt8

STEPS, SAMPLES = 12, 20
LENGTHS = np.array([12, 3, 7, 9, 5] * 4)


def _arrays(seed: int = 0, padding: int = 0) -> dict[str, AnyArray]:
    """Rasters with zeros, or ones, at padded steps."""
    random = np.random.default_rng(seed)
    inputs = (random.random((SAMPLES, STEPS, 8)) < 0.4).astype(np.uint8)
    targets = np.zeros((SAMPLES, STEPS, 3), np.uint8)
    targets[:, 1:] = inputs[:, :-1, :3]
    padded = ~inside(LENGTHS, STEPS).T
    inputs[padded] = targets[padded] = padding
    return {
        "inputs": inputs,
        "targets": targets,
        "lengths": LENGTHS,
        "split": (np.arange(SAMPLES) >= 12).astype(np.uint8),
    }


def _write(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def _train(stsbp: Callable[..., Result], file: Path, run: Path, *options: Any) -> Result:
    small = ("--steps", STEPS, "--net", "6d0.2", "--epochs", 2, "--batch-size", 5, "--log-every", 1, "--lr", 0.01)
    result = stsbp("train", f"sequences:{file}", *small, "--precision", "reproducible", "--out", run, *options)
    assert result.exit_code == 0, result.output
    return result


def test_the_cache_keeps_lengths(tmp_path: Path) -> None:
    samples, labels = np.arange(24, dtype=np.uint8).reshape(6, 4), np.arange(6)
    lengths = [4, 1, 2, 4, 3, 3]

    def build(writer: CacheWriter) -> None:
        writer.add(samples[:2], labels[:2], lengths[:2])
        writer.add(samples[2:], labels[2:], np.array(lengths[2:]))

    for _ in range(2):
        cache = cached("test", {}, cache_dir=tmp_path, build=build)
        assert cache.lengths is not None
        assert cache.lengths.tolist() == lengths
        assert cache.lengths.dtype == np.int64
    plain = cached("other", {}, cache_dir=tmp_path, build=lambda writer: writer.add(samples, labels))
    assert plain.lengths is None


@pytest.mark.parametrize("parts", [((2, None), (4, [1] * 4)), ((2, [1, 1]), (4, None)), ((2, [1]), (4, [1] * 5))])
def test_a_cache_of_some_lengths_is_refused(parts: Any, tmp_path: Path) -> None:
    def build(writer: CacheWriter) -> None:
        for count, lengths in parts:
            writer.add(np.zeros((count, 3), np.uint8), [0] * count, lengths)

    with pytest.raises(DataError, match="lengths are given of all samples of a cache, one each, or of none"):
        cached("test", {}, cache_dir=tmp_path, build=build)
    assert not list(tmp_path.glob("*.cache"))


def test_splits_have_the_lengths_of_their_samples() -> None:
    frames = FrameSplit.store(np.zeros((5, 9, 4), np.uint8))
    lengths = np.array([9, 1, 4, 8, 4])
    split = FrameSplit(frames, np.zeros(5, np.int64), 9, lengths=lengths)
    assert lengths_of(split) is lengths
    chosen = Subset(Subset(split, np.array([4, 1, 0])), np.array([2, 1]))
    assert lengths_of(chosen) is not None
    assert np.array_equal(lengths_of(chosen), [9, 1])  # type: ignore[arg-type]
    plain = FrameSplit(frames, np.zeros(5, np.int64), 9)
    assert lengths_of(Subset(plain, np.array([1]))) is None
    with pytest.raises(DataError, match=r"5 samples need as many lengths, .*, got int64 \[4\]"):
        FrameSplit(frames, np.zeros(5, np.int64), 9, lengths=lengths[1:])
    with pytest.raises(DataError, match="lengths from 1 to 9, got 0 to 8"):
        FrameSplit(frames, np.zeros(5, np.int64), 9, lengths=lengths - 1)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (LENGTHS.astype(float), r"lengths must be integers \[n\] = \[20\], got float64 \[20\]"),
        (LENGTHS[1:], r"lengths must be integers \[n\] = \[20\], got int64 \[19\]"),
        (np.where(LENGTHS == 7, 0, LENGTHS), "lengths must be from 1 to the 12 steps of the arrays; sample 2 has 0"),
        (LENGTHS + 1, "lengths must be from 1 to the 12 steps of the arrays; sample 0 has 13"),
    ],
)
def test_a_file_with_other_lengths_is_refused(lengths: AnyArray, message: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "own.npz", _arrays() | {"lengths": lengths})
    with pytest.raises(DataError, match=message):
        load(f"sequences:{file}", steps=STEPS)


def test_a_file_gives_its_lengths_to_batches_whatever_their_type(tmp_path: Path) -> None:
    file = _write(tmp_path / "own.npz", _arrays() | {"lengths": LENGTHS.astype(np.uint8)})
    config = resolve([SettingsSource("test", {"dataset": f"sequences:{file}", "steps": STEPS, "net": "5"})])
    data = load(f"sequences:{file}", steps=STEPS)
    task = build_task(config, Inputs.of(data), NumpyBackend())
    some = np.array([3, 0, 2])
    batch, _ = task.batch(data.test, some, BatchSlice(1, 1, 3))
    assert batch.lengths is not None
    assert np.array_equal(batch.lengths, LENGTHS[12:][some])
    assert batch.lengths.dtype == np.int64
    assert batch.inputs.shape[1] == 1


def test_a_run_does_not_see_what_is_padded_and_measures_each_sample_alone(
    stsbp: Callable[..., Result], records: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("zeros", "ones")]
    for padding, run in enumerate(runs):
        file = _write(tmp_path / f"{run.name}.npz", _arrays(padding=padding))
        _train(stsbp, file, run, "--validation", 3)
    ends = [json.loads((run / "last.json").read_text())["sha256"] for run in runs]
    assert ends[0] == ends[1]
    times = {"seconds", "samples_per_second"}
    lines = [[{k: v for k, v in line.items() if k not in times} for line in records(run)] for run in runs]
    assert lines[0] == lines[1]
    # Once more, sample by sample, as long as each is.
    trained = load_trained(RunFolder(runs[0]), "last", NumpyBackend())
    data = load(f"sequences:{tmp_path / 'ones.npz'}", steps=STEPS)
    inputs, targets = data.test.inputs(np.arange(8)), data.test.targets(np.arange(8))  # type: ignore[attr-defined]
    distances_alone, totals = [], np.zeros(3, np.int64)
    spiking = dict.fromkeys((b.name for b in trained.network.blocks), 0)
    for b, length in enumerate(LENGTHS[12:]):
        layers = trained.backend.run(trained.network, trained.weights, inputs[:length, b : b + 1], int(length)).layers
        outputs, target_spikes = layers["linear2"].spikes, targets[:length, b : b + 1]
        distances_alone.append(LOSSES["van-rossum"].distance(outputs, target_spikes, trained.network.output_psp)[0])
        totals += [int(x[0]) for x in match_spikes(outputs, target_spikes, 1)]
        for name, layer in layers.items():
            spiking[name] += int(layer.spikes.sum())
    test = lines[1][-1]
    assert test["loss"] == pytest.approx(np.mean(distances_alone), rel=1e-13)
    assert test["van_rossum"] == pytest.approx(np.mean(distances_alone), rel=1e-13)
    assert test["precision"] == pytest.approx(totals[0] / totals[1])
    assert test["recall"] == pytest.approx(totals[0] / totals[2])
    evaluated = json.loads(stsbp("evaluate", runs[0], "--json", "--batch-size", 3).stdout)
    assert evaluated["loss"] == test["loss"]
    sizes = {block.name: block.output_shape[0] for block in trained.network.blocks}
    for name, count in spiking.items():
        assert evaluated["rates"][name] == pytest.approx(count / (LENGTHS[12:].sum() * sizes[name]), rel=1e-12)


@pytest.mark.parametrize("augmentation", [("--augment-shift", 3), ("--augment-elastic", 2.0), ("--augment-scale", 0.5)])
def test_spikes_after_the_end_of_a_sample_are_not_moved_into_it(
    stsbp: Callable[..., Result], tmp_path: Path, augmentation: tuple[Any, ...]
) -> None:
    ends, curves = [], []
    for padding in (0, 1):
        arrays = {**_arrays(padding=padding), "labels": np.arange(SAMPLES) % 3}
        del arrays["targets"]
        run = tmp_path / f"run{padding}"
        _train(stsbp, _write(tmp_path / f"{padding}.npz", arrays), run, *augmentation)
        ends.append(json.loads((run / "last.json").read_text())["sha256"])
        result = stsbp(
            "curves", run, "--noise", "jitter=0,1,4", "--noise", "lost=0.3", "--noise", "added=0.1", "--json"
        )
        assert result.exit_code == 0, result.output
        curves.append(json.loads(result.stdout)["noise"])
    assert ends[0] == ends[1]
    assert curves[0] == curves[1]


def test_the_rates_of_samples_that_end_early_do_not_depend_on_the_size_of_batches(
    stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    _train(stsbp, _write(tmp_path / "data.npz", _arrays()), tmp_path / "run")
    rates = []
    for size in (1, 3, 8):
        result = stsbp("evaluate", tmp_path / "run", "--split", "train", "--batch-size", size, "--json")
        assert result.exit_code == 0, result.output
        rates.append(json.loads(result.stdout)["rates"])
    assert rates[0] == rates[1] == rates[2]


def test_other_lengths_are_other_data(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    arrays = _arrays()
    file = _write(tmp_path / "own.npz", arrays)
    _train(stsbp, file, tmp_path / "run")
    _write(file, arrays | {"lengths": np.where(np.arange(SAMPLES) == 4, 4, LENGTHS)})
    result = stsbp("evaluate", tmp_path / "run")
    assert result.exit_code == 1
    assert "the data are not those that the run was trained on" in result.stderr


def test_prediction_and_report_of_samples_that_end_early(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    arrays = _arrays()
    _train(stsbp, _write(tmp_path / "own.npz", arrays), tmp_path / "run", "--init-rate", 0.2)
    files = []
    for number in (12, 13, 14):
        np.save(tmp_path / f"{number}.npy", arrays["inputs"][number, : LENGTHS[number]])
        files.append(tmp_path / f"{number}.npy")
    result = stsbp("predict", tmp_path / "run", *files, "--json", "--draw", tmp_path / "page.html")
    trained = load_trained(RunFolder(tmp_path / "run"), "last", NumpyBackend())
    lines = [json.loads(line)["spikes"] for line in result.stdout.splitlines()]
    for file, line in zip(files, lines, strict=True):
        frames = np.load(file)[:, None]
        outputs = trained.backend.run(trained.network, trained.weights, frames, len(frames)).layers["linear2"].spikes
        assert line == [np.flatnonzero(train).tolist() for train in outputs[:, 0].T]
    batch = np.ascontiguousarray(arrays["inputs"][12:15].transpose(1, 0, 2))
    assert trained.predict(batch, LENGTHS[12:15]).sequences == lines
    assert (tmp_path / "page.html").stat().st_size > 1000
    np.save(tmp_path / "long.npy", np.zeros((STEPS + 1, 8), np.uint8))
    refused = stsbp("predict", tmp_path / "run", tmp_path / "long.npy")
    assert refused.exit_code == 1
    assert "has shape [13, 8], but the network reads [T, N] = [12, 8]" in refused.stderr
    np.save(tmp_path / "counts.npy", np.full((STEPS, 8), 7, np.uint8))
    counts = stsbp("predict", tmp_path / "run", tmp_path / "12.npy", tmp_path / "counts.npy")
    assert counts.exit_code == 1
    assert f"{tmp_path / 'counts.npy'} has an entry of 7, but the network reads spike counts of" in counts.stderr
    assert stsbp("report", tmp_path / "run").exit_code == 0


@pytest.mark.usefixtures("few_recordings")
def test_simulated_recordings_of_their_own_lengths(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They last 300 ms: of 8 steps of 50 ms the last two are padding, and often more."""
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    binning = EventBinning(window_us=400_000)
    full, shortened = (
        load("digits-events", steps=8, binning=binning, own_lengths=own_lengths) for own_lengths in (False, True)
    )
    # Each kind has a cache of its own, and the frames are the same.
    assert len(list(tmp_path.glob("digits-events-*.cache"))) == 2
    lengths = lengths_of(shortened.train)
    assert lengths_of(full.train) is None
    assert lengths is not None
    assert lengths.max() == 6
    some = np.arange(40)
    frames = shortened.train.inputs(some)
    assert np.array_equal(frames, full.train.inputs(some))
    assert frames[lengths[:40] - 1, some].any(axis=(1, 2, 3)).all()
    assert not frames[~inside(lengths[:40], 8)].any()
    run = tmp_path / "run"
    settings = ("--net", 6, "--steps", 8, "--bin-ms", 50, "--epochs", 1, "--limit", 20, "--holdout", 10)
    assert stsbp("train", "digits-events", *settings, "--own-lengths", "--out", run).exit_code == 0
    recording = tmp_path / "short.bin"
    # x, y, polarity bit and 23 bits of microseconds of each event.
    times = range(0, 170_000, 1000)
    recording.write_bytes(
        b"".join(bytes([n % 34, n % 33, (n % 2) << 7 | t >> 16, t >> 8 & 255, t & 255]) for n, t in enumerate(times))
    )
    events = read_recording(recording.read_bytes(), recording)
    np.save(tmp_path / "short.npy", EventBinning(steps=8, window_us=400_000).frames(*events)[:4])
    both = (recording, tmp_path / "short.npy")
    rows = [json.loads(line) for line in stsbp("predict", run, *both, "--json").stdout.splitlines()]
    assert rows[0]["distances"] == rows[1]["distances"]


def test_own_lengths_are_refused_where_there_are_none(stsbp: Callable[..., Result]) -> None:
    failed = stsbp("train", "patterns", "--own-lengths")
    assert failed.exit_code == 1
    assert "own_lengths apply only to recordings (digits-events, nmnist" in failed.stderr
    with pytest.raises(DataError, match=r"patterns have no lengths of their own: leave own_lengths \(--own-lengths\)"):
        load("patterns", steps=20, own_lengths=True)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: str(loss.name))
@pytest.mark.parametrize("code", [LabelCode(), LabelCode("01", "1000")], ids=["default", "patterns"])
def test_classes_are_decoded_from_each_samples_own_steps(loss: Any, code: LabelCode) -> None:
    rng = np.random.default_rng(3)
    lengths, classes = np.array([12, 5, 8, 12, 6]), 4
    labels = rng.integers(0, classes, 5)
    spikes: UInt8 = (rng.random((STEPS, 5, classes)) < 0.4).astype(np.uint8)
    patterns = {"label_pattern": code.desired, "undesired_pattern": code.undesired}
    config = resolve(
        [SettingsSource("test", {"dataset": "motor", "net": "5", "steps": STEPS, "loss": loss.name, **patterns})]
    )
    task = build_task(config, Inputs((7,), "events", tuple("abcd")), NumpyBackend())
    targets, psp = encode_repeat(labels, classes, STEPS, code), task.network.output_psp
    measure = LabelDistances(code, classes, STEPS, loss, psp)
    together, losses = measure.with_loss(spikes, targets, labels, lengths)
    assert together.tolist() == measure(spikes, lengths).tolist()
    score = task.score(spikes, targets, labels, lengths=lengths)
    correct: dict[str, int] = {"correct": 0, "correct_by_count": 0}
    for b, length in enumerate(lengths):
        steps_of_sample = spikes[:length, b : b + 1]
        alone = distances(steps_of_sample, code.sequences(classes, length), loss, psp)
        np.testing.assert_allclose(together[b], alone[0], rtol=1e-12, atol=1e-12)
        assert losses[b] == loss.distance(steps_of_sample, targets[:length, b : b + 1], psp)[0]
        correct["correct"] += int(nearest_sequence(alone)[0] == labels[b])
        correct["correct_by_count"] += int(spike_count(steps_of_sample)[0] == labels[b])
    assert score.sums == correct


def test_a_batch_of_all_steps_has_no_lengths_that_change_it(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    """Lengths that are all T end in the bits of a file without lengths."""
    arrays = _arrays()
    ends = []
    lengths_of_file: dict[str, Int64 | None] = {"full": np.full(SAMPLES, STEPS), "none": None}
    for name, lengths in lengths_of_file.items():
        members = {k: v for k, v in (arrays | {"lengths": lengths}).items() if v is not None}
        _train(stsbp, _write(tmp_path / f"{name}.npz", members), tmp_path / name)
        ends.append(json.loads((tmp_path / name / "last.json").read_text())["sha256"])
    assert ends[0] == ends[1]
