"""fsdd and its model of the ear: against a literal form, on sounds with known answers, and from small files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp import load_run
from stsbp.datasets import Dataset, fsdd, load
from stsbp.datasets.base import lengths_of
from stsbp.datasets.cache import digest_files
from stsbp.datasets.cochlea import Cochlea
from stsbp.errors import ConfigError, DataError
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.models.lengths import inside
from stsbp_spec.typing import AnyArray, UInt8

SPEAKERS = ("ada", "bo", "cy")
F = np.float32


def _noise(count: int, seed: int) -> AnyArray:
    """Samples that are the same on every machine."""
    return (uniform(seed, Stream.SIMULATION, count) * 20_000 - 10_000).astype(np.int16)


def _tone(frequency: float, count: int = 2400, rate: int = 8000) -> AnyArray:
    return np.round(9000 * np.sin(2 * np.pi * frequency * np.arange(count) / rate)).astype(np.int16)


def _literal(model: Cochlea, sound: AnyArray, steps: int, window_us: int) -> UInt8:
    """The model as its text says it, number by number."""
    samples = [int(s) for s in sound]
    samples = [32 * s - 31 * (samples[n - 1] if n else 0) for n, s in enumerate(samples)]
    scale = F(1 / math.sqrt(sum(s * s for s in samples) / len(samples)))

    def grid(value: float) -> np.float32:
        return F(round(value * 2**22) / 2**22)

    frames = np.zeros((steps, model.places), np.uint8)
    decay = grid(math.exp(-1 / (model.rate * model.tau_ms / 1000)))
    for place, f in enumerate(model.frequencies):
        w = 2 * math.pi * f / model.rate
        r = math.exp(-2 * math.pi * 1.019 * 24.7 * (0.00437 * f + 1) / model.rate)
        z = complex(math.cos(w), math.sin(w))
        gain = 1 / abs(1 / ((1 - r * z / z) * (1 - r / z / z)))
        g, a, b = grid(gain), grid(2 * r * math.cos(w)), grid(r * r)
        theta, v = F(model.thresholds[place % len(model.thresholds)]), F(0)
        states = [[F(0), F(0)] for _ in range(4)]
        for n, s in enumerate(samples):
            if n * 1_000_000 >= window_us * model.rate:
                break
            y = F(s) * scale
            for state in states:
                y = F(F(g * y) + F(F(a * state[0]) - F(b * state[1])))
                state[:] = y, state[0]
            v = F(F(v * decay) + np.sqrt(max(y, F(0))))
            if v >= theta:
                v = min(F(v - theta), theta)
                frames[n * 1_000_000 * steps // (model.rate * window_us), place] = 1
    return frames


def test_the_ear_is_its_literal_form_in_any_company() -> None:
    model = Cochlea(places=5, thresholds=(0.5, 1.0, 2.0))
    sounds = [_noise(count, k) for k, count in enumerate((60, 150, 7))]
    together = model.spikes(sounds, 6, 15_000)
    for sound, frames in zip(sounds, together, strict=True):
        assert np.array_equal(frames, _literal(model, sound, 6, 15_000))
        assert np.array_equal(frames, model.spikes([sound], 6, 15_000)[0])
    assert together.any(axis=(0, 1)).all()
    # 60 samples are 7.5 of the 15 ms; the third recording ends in the first step.
    assert not together[0, 3:].any()
    assert not together[2, 1:].any()


def test_the_ears_bits_are_the_same_everywhere() -> None:
    frames = Cochlea().spikes([_noise(3000, 7), _tone(440)], 30, 360_000)
    assert (
        hashlib.sha256(frames.tobytes()).hexdigest()
        == "a2c455275411dec89af479c0e38f52d3d106015f7413d6ffe2d4042fadb7df59"
    )


@pytest.mark.parametrize("frequency", [200.0, 440.0, 1000.0, 2500.0])
def test_a_tone_is_heard_at_its_place(frequency: float) -> None:
    model = Cochlea(places=60, thresholds=(7.0,))
    counts = model.spikes([_tone(frequency)], 100, 300_000)[0].sum(axis=0)
    loudest = np.flatnonzero(counts == counts.max())
    loudest_frequencies = np.array(model.frequencies)[loudest]
    assert abs(math.log2(float(np.median(loudest_frequencies)) / frequency)) < 1 / 6
    assert (counts == 0).sum() > 20


def test_sound_after_the_window_only_affects_the_scale() -> None:
    model, noise = Cochlea(places=40), _noise(2000, 3)
    loud = np.r_[noise[:1000], 3 * noise[1000:]]
    for sound in (noise, loud):
        cut, full = model.spikes([sound], 20, 125_000), model.spikes([sound], 40, 250_000)
        assert np.array_equal(cut, full[:, :20])
    assert model.spikes([loud], 20, 125_000).sum() < model.spikes([noise], 20, 125_000).sum()


def test_loudness_is_no_matter_and_fibres_of_high_thresholds_spike_less() -> None:
    model = Cochlea(places=40)
    noise = _noise(2000, 3)
    soft, loud = model.spikes([noise], 20, 250_000), model.spikes([noise * 2], 20, 250_000)
    assert np.array_equal(loud[0], soft[0])
    rates = [loud[0][:, k::4].sum() for k in range(4)]
    assert rates == sorted(rates, reverse=True)
    assert not model.spikes([np.zeros(500, np.int16)], 20, 250_000).any()


def _save(path: Path, samples: AnyArray, *, rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(samples.astype(f"<i{width}").tobytes())


def _write(root: Path, *, first: int = 3, count: int = 4, digits: int = 2) -> None:
    """Recordings `first` to `first + count - 1`: each speaker and digit is a tone of its own."""
    for s, speaker in enumerate(SPEAKERS):
        for digit in range(digits):
            for number in range(first, first + count):
                tone = _tone(300 * (digit + 1) + 40 * s, 800 + 10 * number)
                _save(root / f"{digit}_{speaker}_{number}.wav", tone)


def _load(root: Path, name: str = "fsdd:channels=16", **options: Any) -> Dataset:
    return load(name, data_dir=root, cache_dir=root / "cache", steps=10, **options)


@pytest.mark.parametrize("folder", ["fsdd", "recordings", "free-spoken-digit-dataset/recordings", "."])
def test_recordings_are_found_and_cut_by_number(folder: str, tmp_path: Path) -> None:
    _write(tmp_path / folder)
    dataset = _load(tmp_path)
    assert dataset.input_shape == (16,)
    # 3 and 4 are tested on, 5 and 6 trained on.
    assert (len(dataset.train), len(dataset.test)) == (12, 12)
    assert "recordings 0 to 4 of each speaker and digit" in dataset.notes[1]
    ada = Cochlea(places=16).spikes([_tone(300, 850), _tone(600, 850)], 10, 300_000)
    assert dataset.train.labels[:4].tolist() == [0, 0, 1, 1]
    assert np.array_equal(np.swapaxes(dataset.train.inputs(np.array([0, 2])), 0, 1), ada)


def test_a_speaker_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path)
    dataset = _load(tmp_path, "fsdd:without=bo:channels=16")
    assert (len(dataset.train), len(dataset.test)) == (16, 8)
    bo = Cochlea(places=16).spikes([_tone(340, 830)], 10, 300_000)[0]
    assert np.array_equal(dataset.test.inputs(np.array([0]))[:, 0], bo)
    with pytest.raises(DataError, match=r"no speaker 'bob' \(did you mean bo\?\); known: ada, bo, cy"):
        _load(tmp_path, "fsdd:without=bob")


def test_which_samples_are_tested_on(tmp_path: Path) -> None:
    _write(tmp_path)

    def sizes(name: str = "fsdd:channels=4", **options: Any) -> tuple[int, int]:
        dataset = _load(tmp_path, name, **options)
        return len(dataset.train), len(dataset.test)

    assert sizes(holdout=5) == (7, 5)
    assert sizes(only_test=True) == (12, 12)
    assert sizes(train_only=True) == (12, 0)
    for path in tmp_path.glob("*_[34].wav"):
        path.unlink()
    assert sizes() == (10, 2)
    assert sizes(only_test=True) == (12, 12)


def test_all_recordings_of_a_folder_are_evaluated_if_asked_for(tmp_path: Path) -> None:
    _write(tmp_path)

    def tested(name: str, **options: Any) -> tuple[int, str]:
        dataset = _load(tmp_path, name, only_test=True, **options)
        return len(dataset.test), " ".join(dataset.notes)

    count, notes = tested("fsdd:channels=4")
    assert count == 12
    assert "12 of the 24 recordings are evaluated, recordings 0 to 4 of each speaker and digit; " in notes
    assert "fsdd:channels=4:test=all evaluates all" in notes
    count, notes = tested("fsdd:without=bo:channels=4")
    assert count == 8
    assert "8 of the 24 recordings are evaluated, all recordings of bo; fsdd:channels=4:test=all evaluates" in notes
    count, notes = tested("fsdd:channels=4:test=all")
    assert count == 24
    assert "evaluate" not in notes
    with pytest.raises(DataError, match=r"nothing is left to train on; test=all is for stsbp evaluate RUN --on"):
        _load(tmp_path, "fsdd:channels=4:test=all")
    with pytest.raises(DataError, match="test must be all, got 'both'"):
        tested("fsdd:test=both")
    with pytest.raises(DataError, match="test=all and without=bo name two test sets; leave one of them out"):
        tested("fsdd:test=all:without=bo")
    # All are evaluated if there are none of the test set, and none is held out.
    for path in tmp_path.glob("*_[34].wav"):
        path.unlink()
    count, notes = tested("fsdd:channels=4")
    assert count == 12
    assert "held out" not in notes


def test_folders_may_be_texts(tmp_path: Path) -> None:
    _write(tmp_path)
    dataset = load("fsdd:without=bo:channels=4", steps=10, data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert len(dataset.test) == 8


@pytest.mark.parametrize("name", ["hello.wav", "3/one.wav"])
def test_sounds_of_other_names_are_named(name: str, tmp_path: Path) -> None:
    _save(tmp_path / name, _tone(300, 800))
    other = tmp_path / name
    with pytest.raises(DataError) as raised:
        _load(tmp_path)
    assert f"expected {tmp_path}/<digit>_<speaker>_<number>.wav or {tmp_path}/fsdd/<digit>" in str(raised.value)
    assert f"the name of {other} does not tell digit, speaker and number" in str(raised.value)
    assert f"stsbp predict RUN {other.parent}/*.wav classifies sounds of any name" in str(raised.value)


def test_spikes_are_cached_until_a_recording_or_setting_changes(tmp_path: Path) -> None:
    _write(tmp_path)
    called: list[str] = []

    def progress(activity: str, _done: int, _total: int) -> None:
        called.append(activity)

    first = _load(tmp_path, progress=progress).train.inputs(np.arange(12))
    assert any(activity.startswith("listening") for activity in called)
    called.clear()
    cached = _load(tmp_path, progress=progress).train.inputs(np.arange(12))
    assert np.array_equal(first, cached)
    assert not any(activity.startswith("listening") for activity in called)
    _save(tmp_path / "0_ada_5.wav", _tone(1500, 850))
    _load(tmp_path, progress=progress)
    assert any(activity.startswith("listening") for activity in called)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("rate", r"0_ada_5\.wav: expected 1 channel of 16 bits at 8000 Hz, got 1 of 16 bits at 16000 Hz"),
        ("stereo", r"got 2 of 16 bits"),
        ("width", r"got 1 of 32 bits"),
        ("9 bits", r"0_ada_5\.wav: expected .* got 1 of 9 bits"),
        ("12 bits", r"0_ada_5\.wav: expected .* got 1 of 12 bits"),
        ("frames", r"0_ada_5\.wav: its header says that a sample has 4 bytes, but 1 channel of 16 bits has 2"),
        ("two headers", r"0_ada_5\.wav: expected .* got 1 of 12 bits"),
        ("cut", r"0_ada_5\.wav: its header says 850 samples, and 100 follow"),
        ("text", r"0_ada_5\.wav is not a readable WAV file"),
        ("chunk", r"0_ada_5\.wav is not a readable WAV file: it is cut off"),
        ("empty", r"0_ada_5\.wav is not a readable WAV file: it is cut off"),
        ("silent", "its header says 0 samples"),
    ],
)
def test_malformed_recordings_are_named_or_left_out(fault: str, complaint: str, tmp_path: Path) -> None:
    _write(tmp_path)
    path, tone = tmp_path / "0_ada_5.wav", _tone(300, 850)
    changed: dict[str, Any] = {"rate": {"rate": 16_000}, "stereo": {"channels": 2}, "width": {"width": 4}}
    if fault in changed:
        _save(path, tone, **changed[fault])
    elif fault == "silent":
        _save(path, tone[:0])
    else:
        content = path.read_bytes()
        chunk = content[:36] + b"LIST" + (5000).to_bytes(4, "little") + content[36:]
        bits = {f"{n} bits": content[:34] + n.to_bytes(2, "little") + content[36:] for n in (9, 12)}
        other = content[:32] + (4).to_bytes(2, "little") + content[34:]
        # The module `wave` takes the second.
        two = content[:36] + bits["12 bits"][12:]
        bits |= {"frames": other, "two headers": two}
        path.write_bytes({"cut": content[: 44 + 200], "text": b"hello", "empty": b"", "chunk": chunk, **bits}[fault])
    with pytest.raises(DataError, match=f"{tmp_path}.*{complaint}"):
        _load(tmp_path)
    dataset = _load(tmp_path, skip_malformed=True)
    assert (len(dataset.train), len(dataset.test)) == (11, 12)
    assert dataset.skipped[0].path == str(path)
    assert "left out 1 malformed recordings" in dataset.notes[-1]


def test_a_recording_that_changes_while_it_is_read_is_not_malformed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path)

    def digests(*args: Any, **options: Any) -> dict[str, str]:
        digests_of_files = digest_files(*args, **options)
        _save(tmp_path / "0_ada_5.wav", _tone(500, 850))
        return digests_of_files

    with monkeypatch.context() as patched:
        patched.setattr(fsdd, "digest_files", digests)
        with pytest.raises(DataError, match=r"0_ada_5\.wav changed while it was read; run again"):
            _load(tmp_path, skip_malformed=True)
    assert not _load(tmp_path, skip_malformed=True).skipped


def test_missing_recordings_and_wrong_parameters_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STSBP_DATA", raising=False)
    with pytest.raises(DataError, match="fsdd needs a data folder"):
        load("fsdd")
    with pytest.raises(DataError, match=r"expected .*fsdd/<digit>_<speaker>_<number>\.wav; fetch the recordings from"):
        _load(tmp_path)
    (tmp_path / "fsdd.tar.xz").write_bytes(b"packed")
    with pytest.raises(DataError, match=r"; unpack .*fsdd\.tar\.xz there"):
        _load(tmp_path)
    _write(tmp_path)
    for channels in ("0", "701", "many"):
        with pytest.raises(DataError, match=f"channels must be a number from 1 to 700, got '{channels}'"):
            _load(tmp_path, f"fsdd:channels={channels}")
    assert _load(tmp_path, "fsdd:channels=1").input_shape == (1,)
    for wrong in (EventBinning(window_us=None), EventBinning(start_us=5), EventBinning(binary=False)):
        with pytest.raises(DataError, match="the spikes of fsdd need a binning with a window_us"):
            _load(tmp_path, binning=wrong)


def test_spoken_digits_are_trained_and_evaluated(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "fsdd")
    options = ("--data-dir", tmp_path, "--net", "8", "--epochs", "2", "--steps", "12", "--out", tmp_path / "run")
    done = stsbp("train", "fsdd:without=cy:channels=20", *options, "--bin-ms", "10", "--window-ms", "0")
    assert done.exit_code == 0, done.output
    assert "8 test samples: all recordings of cy" in done.output
    assert stsbp("evaluate", tmp_path / "run").exit_code == 0
    # What is predicted of a file is what the network makes of the same recording in the data set.
    run = load_run(tmp_path / "run", backend="numpy")
    load_options: dict[str, Any] = {"steps": 12, "binning": run.settings.binning, "own_lengths": True}
    data = load("fsdd:channels=20", data_dir=tmp_path, cache_dir=tmp_path / "cache", **load_options).train
    lengths = lengths_of(data)
    assert lengths is not None
    distances = run.predict(data.inputs(np.array([0])), lengths[:1]).distances
    assert distances is not None
    predicted = stsbp("predict", tmp_path / "run", tmp_path / "fsdd" / "0_ada_5.wav", "--json")
    assert predicted.exit_code == 0, predicted.output
    assert list(json.loads(predicted.stdout)["distances"].values()) == pytest.approx(distances[0].tolist(), abs=1e-6)
    (tmp_path / "one.png").write_bytes(b"no sound")
    odd = stsbp("predict", tmp_path / "run", tmp_path / "one.png")
    assert odd.exit_code == 1
    assert "must end in .wav (sounds, as fsdd) or .npy" in odd.output
    refused = stsbp("train", "fsdd", "--data-dir", tmp_path, "--stabilise")
    assert refused.exit_code == 1
    assert "stabilise apply only to recordings of saccades (digits-events" in refused.output


def test_predict_hears_no_sound_with_a_network_of_other_data(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    """Its neurons are no places of an ear, and its steps have no known duration."""
    rng = np.random.default_rng(0)
    rasters = (rng.random((20, 12, 6)) < 0.3).astype(np.uint8)
    np.savez(tmp_path / "own.npz", inputs=rasters, labels=np.arange(20) % 2)
    events: dict[str, Any] = {
        "t": rng.integers(0, 300_000, 200),
        "x": rng.integers(0, 6, 200),
        "sample": np.arange(200) // 10,
    }
    np.savez(tmp_path / "events.npz", labels=np.arange(20) % 2, **events)
    _save(tmp_path / "0_ada_5.wav", _tone(300, 800))
    np.save(tmp_path / "own.npy", rasters[0])
    (tmp_path / "one.png").write_bytes(b"no sound")
    for name in (f"sequences:{tmp_path / 'own.npz'}", f"events:{tmp_path / 'events.npz'}"):
        run = tmp_path / name.partition(":")[0]
        done = stsbp("train", name, "--net", "4", "--epochs", "1", "--steps", "12", "--out", run)
        assert done.exit_code == 0, done.output
        predicted = stsbp("predict", run, tmp_path / "own.npy", tmp_path / "0_ada_5.wav")
        assert (predicted.exit_code, predicted.stdout) == (1, "")
        assert (
            f"{tmp_path / '0_ada_5.wav'} is a sound, but the network was trained on {name}, not on" in predicted.stderr
        )
        assert "give spike trains [T, N] like those that it was trained on (.npy)" in predicted.stderr
        other = stsbp("predict", run, tmp_path / "one.png")
        assert "the network reads events, so the file must end in .npy" in other.stderr
        assert stsbp("predict", run, tmp_path / "own.npy").exit_code == 0


def test_datasets_says_which_recordings_are_tested_on(stsbp: Callable[..., Result]) -> None:
    (line,) = (line for line in stsbp("datasets", "fsdd").stdout.splitlines() if "test set" in line)
    assert "recordings 0 to 4 of each speaker and digit; with without=SPEAKER, all recordings of that speaker" in line
    assert "with test=all, all recordings" in line


def test_evaluate_names_on_for_recordings_that_the_run_never_saw(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    _write(tmp_path / "fsdd")
    _write(tmp_path / "new" / "fsdd", first=0, count=2)
    run = tmp_path / "run"
    options = ("--data-dir", tmp_path, "--net", "8", "--epochs", "1", "--steps", "12", "--out", run)
    assert stsbp("train", "fsdd:channels=20", *options).exit_code == 0
    for command in ("evaluate", "curves"):
        result = stsbp(command, run, "--data-dir", tmp_path / "new")
        assert result.exit_code == 1
        assert "nothing is left to train on" in result.stderr
        assert f"give --on 'fsdd:channels=20' --data-dir '{tmp_path / 'new'}'" in result.stderr
    for path in sorted((tmp_path / "new" / "fsdd").iterdir()):
        path.rename(path.with_stem(path.stem + "7"))
    other = stsbp("evaluate", run, "--data-dir", tmp_path / "new")
    assert "not those that the run was trained on" in other.stderr
    assert f"give --on 'fsdd:channels=20' --data-dir '{tmp_path / 'new'}'" in other.stderr
    with pytest.raises(ConfigError, match=rf"give on='fsdd:channels=20', data_dir='{tmp_path / 'new'}'$"):
        load_run(run, backend="numpy").evaluate(data_dir=tmp_path / "new")
    assert "--on" not in stsbp("evaluate", run, "--split", "validation").stderr
    assert stsbp("evaluate", run, "--on", "fsdd:channels=20", "--data-dir", tmp_path / "new").exit_code == 0
    path = next((tmp_path / "new" / "fsdd").iterdir())
    path.rename(path.with_name("0_ada_0.wav"))
    for name, count in (("fsdd:channels=20", 1), ("fsdd:channels=20:test=all", 12)):
        done = stsbp("evaluate", run, "--on", name, "--data-dir", tmp_path / "new")
        assert f"{name}: {count} samples" in done.stdout
        assert ("1 of the 12 recordings are evaluated" in done.output) == ("all" not in name)


def test_predict_hears_many_sounds_together_and_counts_the_right_ones(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "fsdd")
    run = tmp_path / "run"
    options = ("--data-dir", tmp_path, "--net", "8", "--epochs", "2", "--steps", "12", "--out", run)
    assert stsbp("train", "fsdd:channels=20", *options).exit_code == 0
    files = [*sorted((tmp_path / "fsdd").glob("*_5.wav")), tmp_path / "plain.wav"]
    _save(files[-1], _tone(300, 700))
    one_by_one = [json.loads(stsbp("predict", run, file, "--json").stdout) for file in files]
    batch_sizes: list[int] = []
    spikes = Cochlea.spikes

    def counted(ear: Cochlea, sounds: Any, *args: Any) -> Any:
        batch_sizes.append(len(sounds))
        return spikes(ear, sounds, *args)

    monkeypatch.setattr(Cochlea, "spikes", counted)
    rows = [json.loads(line) for line in stsbp("predict", run, *files, "--json").stdout.splitlines()]
    assert batch_sizes == [7]
    assert rows == one_by_one
    assert [row.get("label") for row in rows] == ["0", "0", "0", "1", "1", "1", None]
    right = [sum(row["label"] == row[kind] for row in rows[:6]) / 6 for kind in ("class", "class_spike_count")]
    text = stsbp("predict", run, *files).stdout.splitlines()
    assert text[-1].startswith(
        f"accuracy {right[0]:.2%} (nearest label sequence), {right[1]:.2%} (spike count) of the 6"
    )
    assert text[0].endswith(", label 0")


def test_recordings_of_their_own_lengths(tmp_path: Path) -> None:
    """Behind a recording's length there are no spikes, and the window cuts long ones off."""
    _write(tmp_path)
    _save(tmp_path / "0_ada_9.wav", _tone(300, 4000))
    binning = EventBinning(window_us=300_000)
    full, shortened = (_load(tmp_path, own_lengths=own_lengths, binning=binning) for own_lengths in (False, True))
    assert lengths_of(full.train) is None
    lengths = lengths_of(shortened.train)
    assert lengths is not None
    assert sorted(set(lengths.tolist())) == [4, 10]
    frames = shortened.train.inputs(np.arange(len(shortened.train)))
    assert np.array_equal(frames, full.train.inputs(np.arange(len(shortened.train))))
    assert not frames[~inside(lengths, 10)].any()
    cochlea = Cochlea()
    assert [cochlea.length(n, 12, 120_000) for n in (0, 1, 80, 81, 960, 961, 10_000)] == [1, 1, 1, 2, 12, 12, 12]


def test_the_real_recordings(tmp_path: Path) -> None:
    data_folder = os.environ.get("STSBP_DATA", "")
    if not (Path(data_folder) / "fsdd" / "7_theo_5.wav").is_file():
        pytest.skip("needs fsdd in STSBP_DATA")
    (tmp_path / "fsdd").mkdir()
    for path in (Path(data_folder) / "fsdd").glob("*_[2-5].wav"):
        (tmp_path / "fsdd" / path.name).symlink_to(path)
    dataset = load("fsdd:channels=32", data_dir=tmp_path, cache_dir=tmp_path / "cache", steps=30)
    assert (len(dataset.train), len(dataset.test)) == (60, 180)
    assert np.bincount(dataset.test.labels).tolist() == [18] * 10
    frames = dataset.test.inputs(np.arange(180))
    assert 0.1 < frames.mean() < 0.4
    assert (
        hashlib.sha256(frames.tobytes()).hexdigest()
        == "cf253f15b242cb5ddb656faf5fbac1b921acc70c3fc8639312ee4b45ada516ff"
    )


@pytest.mark.parametrize("own_lengths", [False, True])
def test_the_number_of_recordings_that_the_window_cuts_is_told(tmp_path: Path, own_lengths: bool) -> None:
    _write(tmp_path)
    for _ in range(2):  # the second time from the cache
        assert not any("cut off" in note for note in _load(tmp_path).notes)
        # Recordings have 830, 840, 850 or 860 samples of 125 us, and a window of 105 ms has 840.
        notes = _load(tmp_path, binning=EventBinning(window_us=105_000), own_lengths=own_lengths).notes
        assert "12 of 24 recordings are cut off at the end of the window of 105 ms (--window-ms)" in notes
