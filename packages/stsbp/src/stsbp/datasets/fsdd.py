"""Free Spoken Digit Dataset (Jackson et al.): spoken digits, processed by a model of the inner ear.

The folder `fsdd` (or `recordings`, the published name) has files `<digit>_<speaker>_<number>.wav`, 8 kHz, 16 bits,
mono. Recordings 0 to 4 of each speaker and digit are the published test set. `stsbp.datasets.cochlea` turns them into
spikes.
"""

from __future__ import annotations

import dataclasses
import io
import re
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, Int64, UInt8

from stsbp.datasets.base import (
    Dataset,
    FrameSplit,
    Progress,
    Request,
    Skipped,
    Subset,
    cut_test,
    ignored_files,
    left_out,
    names_unreadable,
)
from stsbp.datasets.cache import (
    CacheForm,
    CacheWriter,
    SourceFiles,
    cached,
    combine_digests,
    digest_files,
    read_unchanged,
)
from stsbp.datasets.cochlea import Cochlea
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.events import window_text
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError, did_you_mean
from stsbp.files import MEGABYTE

__all__ = ["FSDD", "MAX_BYTES", "digit_of", "encode_sounds", "load", "read_recording"]

RATE = 8000
TEST = range(5)
"""Numbers of the recordings in the test set."""
MAX_CHANNELS = 700
MAX_BYTES = 4 * MEGABYTE
"""Largest size of a recording in bytes: four minutes."""
_MODEL = 1
"""Increased whenever the model of the ear gives other spikes, so that older cached spikes are not used."""
_BLOCK = 64
_HOME = "https://github.com/Jakobovski/free-spoken-digit-dataset"


class _Name(NamedTuple):
    """The information in a file's name."""

    digit: int
    speaker: str
    number: int


def _name(path: Path) -> _Name | None:
    match = re.fullmatch(r"([0-9])_([A-Za-z]{1,40})_([0-9]{1,6})\.wav", path.name)
    return None if match is None else _Name(int(match[1]), match[2], int(match[3]))


def _files(data_dir: Path | None) -> tuple[Path, list[tuple[str, _Name]], tuple[str, ...]]:
    """The folder of the recordings, its files with the information in their names, sorted by that, and a note of other
    sounds."""
    if data_dir is None:
        raise DataError(
            "fsdd needs a data folder: name with --data-dir or STSBP_DATA the one that holds "
            "fsdd/<digit>_<speaker>_<number>.wav"
        )
    folders = [
        data_dir / "fsdd",
        data_dir / "recordings",
        data_dir / "free-spoken-digit-dataset" / "recordings",
        data_dir,
    ]
    for folder in folders:
        named = [(path.name, _name(path)) for path in folder.iterdir()] if folder.is_dir() else []
        recordings = [(file, name) for file, name in named if name is not None]
        if recordings:
            by_speaker = sorted(recordings, key=lambda pair: (pair[1].speaker, pair[1].digit, pair[1].number))
            other_sounds = (file for file, name in named if name is None and file.lower().endswith(".wav"))
            rule = "only names of the form <digit>_<speaker>_<number>.wav, with a speaker of letters, are read"
            return folder, by_speaker, ignored_files(folder, other_sounds, rule)
    archive = data_dir / "fsdd.tar.xz"
    advice = f"; unpack {archive} there" if archive.is_file() else f"; fetch the recordings from {_HOME}"
    sounds = (path for pattern in ("*.wav", "*/*.wav") for path in data_dir.glob(pattern))
    if (other_sound := next(sounds, None)) is not None:
        advice = (
            f"; the name of {other_sound} does not tell digit, speaker and number: rename such sounds. stsbp predict "
            f"RUN {other_sound.parent}/*.wav classifies sounds of any name"
        )
    raise DataError(
        f"no spoken digits at {data_dir}: expected {data_dir}/<digit>_<speaker>_<number>.wav or "
        f"{folders[0]}/<digit>_<speaker>_<number>.wav{advice}"
    )


def _sizes(content: bytes) -> tuple[int, int]:
    """Bits of a sample and bytes of a frame in the header of a WAV file. The module `wave` rounds the former up to
    whole bytes, and does not read the latter. As for `wave`, the last header before the samples counts."""
    offset, sizes = 12, (0, 0)
    while offset + 24 <= len(content):
        name, size = content[offset : offset + 4], int.from_bytes(content[offset + 4 : offset + 8], "little")
        if name == b"data":
            break
        if name == b"fmt ":
            frame, bits = (int.from_bytes(content[offset + k : offset + k + 2], "little") for k in (20, 22))
            sizes = bits, frame
        offset += 8 + size + size % 2
    return sizes


def read_recording(content: bytes, path: Path) -> AnyArray:
    """The samples of a file, `[n]` int16.

    Raises:
        DataError: it is not a WAV file of 16 bits, mono, 8 kHz, or is cut off or empty. The message contains `path`.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            bits, frame = _sizes(content)
            sound_format = (file.getnchannels(), bits, file.getframerate())
            if sound_format != (1, 16, RATE):
                raise DataError(
                    f"{path}: expected 1 channel of 16 bits at {RATE} Hz, got {sound_format[0]} of {sound_format[1]} "
                    f"bits at {sound_format[2]} Hz"
                )
            if frame != 2:
                raise DataError(
                    f"{path}: its header says that a sample has {frame} bytes, but 1 channel of 16 bits has 2; save it "
                    "again as 1 channel of 16 bits"
                )
            count = file.getnframes()
            samples = file.readframes(count)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is not a readable WAV file: {str(error) or 'it is cut off'}") from error
    if not count or len(samples) != 2 * count:
        raise DataError(f"{path}: its header says {count} samples, and {len(samples) // 2} follow; it may be cut off")
    return np.frombuffer(samples, "<i2")


def encode_sounds(sounds: Sequence[AnyArray], channels: int, binning: EventBinning, own_lengths: bool) -> list[UInt8]:
    """The spikes of some recordings, `[T, channels]` each. With `own_lengths`, they end with the sound.

    Raises:
        DataError: the ear has fewer neurons.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(f"the network reads {channels} neurons, and the ear of fsdd has at most {MAX_CHANNELS}")
    cochlea, window_us = Cochlea(places=channels), _window_us(binning)
    spikes: dict[int, UInt8] = {}
    for block in _blocks(sounds):
        spikes.update(zip(block, cochlea.spikes([sounds[k] for k in block], binning.steps, window_us), strict=True))
    if own_lengths:
        spikes = {k: x[: cochlea.length(len(sounds[k]), binning.steps, window_us)] for k, x in spikes.items()}
    return [spikes[k] for k in range(len(sounds))]


def digit_of(path: Path) -> str | None:
    """The class in a name like those of the recordings, `<digit>_<speaker>_<number>.wav`; None for other names."""
    name = _name(path)
    return None if name is None else CLASSES[name.digit]


def _blocks(sounds: Sequence[AnyArray]) -> Iterator[list[int]]:
    """Numbers of recordings of similar length, because a block takes as long as its longest recording."""
    by_length = sorted(range(len(sounds)), key=lambda k: len(sounds[k]))
    for first in range(0, len(by_length), _BLOCK):
        yield by_length[first : first + _BLOCK]


def _window_us(binning: EventBinning) -> int:
    if binning.window_us is None or binning.start_us or not binning.binary:
        raise DataError("the spikes of fsdd need a binning with a window_us, with start_us = 0 and with binary = True")
    return binning.window_us


def _channels(request: Request) -> int:
    return request.whole_option("channels", Cochlea.places, 1, MAX_CHANNELS, most_digits=4)


def _spikes(
    folder: Path, files: Sequence[tuple[str, _Name]], cochlea: Cochlea, request: Request
) -> tuple[FrameSplit, Int64, tuple[Skipped, ...], tuple[str, ...]]:
    """The recordings as spikes, the position of each among the files, the files that were left out, and a note of those
    that end after the window."""
    steps, window_us = request.binning.steps, _window_us(request.binning)
    names = [file for file, _ in files]
    digests = digest_files(folder, names, max_bytes=MAX_BYTES, cache_dir=request.cache_dir, progress=request.progress)

    def build(writer: CacheWriter) -> None:
        numbers, sounds = list[int](), list[AnyArray]()
        for k, file in enumerate(names):
            content = read_unchanged(folder / file, digests[file])
            try:
                sounds.append(read_recording(content, folder / file))
            except DataError as error:
                if not request.skip_malformed:
                    raise
                writer.skip(file, str(error).removeprefix(f"{folder / file}").lstrip(": "))
            else:
                numbers.append(k)
        report = Progress(request.progress, f"listening to {folder}{writer.rebuild_reason}", len(sounds))
        encoded: dict[int, UInt8] = {}
        for block in _blocks(sounds):
            frames = FrameSplit.store(cochlea.spikes([sounds[i] for i in block], steps, window_us))
            encoded.update(zip(block, frames, strict=True))
            report(len(encoded))
        for i, (k, sound) in enumerate(zip(numbers, sounds, strict=True)):
            lengths = [cochlea.length(len(sound), steps, window_us)] if request.own_lengths else None
            writer.add(encoded[i][np.newaxis], [k], lengths)
            writer.count_events(int(len(sound) * 1_000_000 > window_us * RATE), 1)

    key = {
        "source": combine_digests(digests),
        "model": _MODEL,
        "cochlea": dataclasses.asdict(cochlea),
        "steps": steps,
        "window_us": window_us,
        "skip_malformed": request.skip_malformed,
        **request.length_key,
    }
    source = SourceFiles(folder, digests.size, len(files))
    # The labels in the cache are the positions of the recordings among the files.
    form = CacheForm.of_frames(len(files), (cochlea.places,), steps, own_lengths=request.own_lengths, events=True)
    cached_spikes = cached("fsdd", key, cache_dir=request.cache_dir, build=build, root=folder, source=source, form=form)
    labels = np.array([files[k][1].digit for k in cached_spikes.labels], dtype=np.int64)
    frames = dataclasses.replace(cached_spikes, labels=labels).frames(steps)
    notes: tuple[str, ...] = ()
    if cached_spikes.events is not None and cached_spikes.events[0]:
        cut_count, count = cached_spikes.events
        notes = (f"{cut_count:,} of {count:,} recordings are cut off at the end of {window_text(request.binning)}",)
    return frames, cached_spikes.labels, cached_spikes.skipped, notes


@names_unreadable
def load(request: Request) -> Dataset:
    """Spoken digits as spikes.

    The test set is recordings 0 to 4 of each speaker and digit, one left-out speaker, or all recordings.

    Raises:
        DataError: the data folder has no recordings, a recording is malformed, or an option has an invalid value.
    """
    folder, files, ignored = _files(request.data_dir)
    cochlea = Cochlea(places=_channels(request))
    speakers = sorted({name.speaker for _, name in files})
    left_out_speaker = request.options.get("without")
    if left_out_speaker is not None and left_out_speaker not in speakers:
        raise DataError(
            f"fsdd: there is no speaker {left_out_speaker!r}{did_you_mean(left_out_speaker, speakers)}; known: "
            f"{', '.join(speakers)}"
        )
    test_set = request.options.get("test")
    if test_set not in (None, "all"):
        raise DataError(f"{request.name}: test must be all, got {test_set!r}")
    if test_set and left_out_speaker:
        raise DataError(
            f"{request.name}: test=all and without={left_out_speaker} name two test sets; leave one of them out"
        )
    samples, numbers, skipped, cut_notes = _spikes(folder, files, cochlea, request)
    names = [files[k][1] for k in numbers]
    is_test = np.array(
        [
            bool(test_set) or (name.number in TEST if left_out_speaker is None else name.speaker == left_out_speaker)
            for name in names
        ]
    )
    speaker_count = "1 speaker" if len(speakers) == 1 else f"{len(speakers)} speakers"
    notes = [f"{len(samples):,} recordings of {speaker_count}, from {folder}", *ignored, *cut_notes]
    train, test = (Subset(samples, np.flatnonzero(mask)) for mask in (~is_test, is_test))
    test_description = (
        f"recordings {TEST[0]} to {TEST[-1]} of each speaker and digit"
        if left_out_speaker is None
        else f"all recordings of {left_out_speaker}"
    )
    if request.only_test:
        if 0 < len(test) < len(samples):
            name_parts = [word for word in request.name.split(":") if not word.startswith("without=")]
            notes.append(
                f"{len(test)} of the {len(samples):,} recordings are evaluated, {test_description}; "
                f"{':'.join(name_parts)}:test=all evaluates all"
            )
        train = test = test if len(test) else Subset(samples, np.arange(len(samples)))
    elif request.train_only:
        # A speaker who is left out stays left out.
        pass
    elif request.wants_own_test and len(test):
        notes.append(f"{len(test)} test samples: {test_description}, none of which is trained on")
    else:
        train, test = cut_test(train, max(1, len(train) // 5), request)
        notes.append(f"{len(test)} of the others are held out as test samples (split seed {request.seed})")
    if not len(train):
        hint = "; test=all is for stsbp evaluate RUN --on and the like" if test_set else ""
        raise DataError(f"{folder}: nothing is left to train on{hint}")
    notes += left_out(skipped, "recordings")
    return Dataset(request.name, "events", (cochlea.places,), CLASSES, train, test, tuple(notes), skipped)


FSDD = DatasetInfo(
    name="fsdd",
    description=f"Free Spoken Digit Dataset: six speakers, through a model of the inner ear, {Cochlea.places} neurons",
    coding="events",
    load=load,
    defaults={
        "net": "256R",
        "steps": 60,
        "window_ms": 720.0,
        "own_lengths": True,
        "epochs": 15,
        "batch_size": 50,
        "lr": 2e-3,
        "tau_m": 10.0,
        "tau_s": 4.0,
        "label_pattern": "1",
    },
    recordings=True,
    sounds=True,
    test_set="recordings 0 to 4 of each speaker and digit; with without=SPEAKER, all recordings of that speaker; with "
    "test=all, all recordings",
    options={
        "without": "the speaker to test on; the others are trained on",
        "test": "all: every recording is a test sample, for evaluate --on",
        "channels": f"number of neurons of the ear, 1 to {MAX_CHANNELS}",
    },
    licence="CC BY-SA 4.0",
)
"""The data set of `stsbp train fsdd`, with its default settings."""
