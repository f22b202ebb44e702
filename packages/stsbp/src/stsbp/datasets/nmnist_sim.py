"""MNIST recorded by a simulated camera that is calibrated on real N-MNIST recordings: training data for N-MNIST.

Recording k of N-MNIST's training set shows training digit k - 1 of MNIST. The camera was fitted to such pairs
(`experiments/calibrate_nmnist.py`). docs/experiments.md describes how well the simulation fits, and how well networks
that are trained on it classify real recordings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from stsbp_spec.typing import Int64

from stsbp.datasets import mnist, nmnist
from stsbp.datasets.base import (
    ArraySplit,
    Dataset,
    FrameSplit,
    Progress,
    Request,
    Split,
    Subset,
    cut_test,
    names_unreadable,
    select_balanced,
)
from stsbp.datasets.cache import CacheForm, CacheWriter, cached
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.saccades import ImagePosition, SaccadeCamera
from stsbp.errors import DataError

__all__ = ["CALIBRATED_ON", "CAMERA", "NMNIST_SIM", "load"]

CALIBRATED_ON = 1000
"""Number of digits, the first ones of the training set, on whose real recordings the camera was fitted and checked."""
DEFAULT_HOLDOUT = 1000

_KNOT_US = 5000
# fmt: off
_ROWS = (
     80,  82,  83,  91, 104, 122, 149, 182, 219, 259, 299, 336, 367, 392, 410, 419,
    423, 423, 423, 421, 420, 416, 415, 413, 413, 408, 400, 373, 348, 312, 277, 238,
    204, 167, 138, 110,  98,  92,  93,  90,  90,  91,  93,  91,  89,  90,  90,  90,
     90,  92,  92,  90,  89,  86,  84,  80,  76,  75,  75,  75,  75,  75,  75,  75,
)
_COLUMNS = (
     33,  33,  32,  31,  28,  26,  23,  23,  23,  24,  28,  41,  60,  82, 102, 115,
    119, 124, 127, 127, 130, 136, 141, 147, 153, 167, 184, 212, 234, 258, 274, 285,
    292, 301, 310, 327, 336, 340, 341, 347, 355, 361, 364, 371, 373, 373, 366, 352,
    325, 289, 254, 222, 183, 149, 118,  96,  81,  64,  48,  37,  37,  40,  37,  33,
)
# fmt: on
"""Position of the corner of the digit every 5 ms, in 1/64 pixel."""
CAMERA = SaccadeCamera(
    threshold=0.224,
    off_threshold=0.224,
    floor=0.254,
    path=tuple(
        ImagePosition(k * _KNOT_US, row / 64, column / 64)
        for k, (row, column) in enumerate(zip(_ROWS, _COLUMNS, strict=True))
    ),
    inverted=True,
    gamma=1.033,
    blur=0.53,
    zoom=1.012,
    turn=0.0137,
    mismatch=0.064,
    start=0.5,
    jitter=0.692,
    noise_on=0.384,
    noise_off=0.02,
)
"""The camera of `nmnist-sim`."""

_LEFT_OUT = "are left out: their real recordings were used to calibrate the simulation, or may be used as test samples"
_SIMULATION = 1
"""Increased whenever the simulation gives other events, so that older cached frames are not used."""
_BLOCK = 64


def _simulate(digits: mnist.Digits, chosen: Int64, first: int, request: Request) -> Split:
    """Recordings of some digits of a split. `first` is the camera's number for the split's first digit."""
    binning = request.binning

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"simulating recordings{writer.rebuild_reason}", len(chosen))
        for begin in range(0, len(chosen), _BLOCK):
            block = chosen[begin : begin + _BLOCK]
            recordings = CAMERA.record(digits.images[block], first + block)
            frames = np.stack([binning.frames(*recording) for recording in recordings])
            lengths = [binning.length(t) for *_, t in recordings] if request.own_lengths else None
            writer.add(FrameSplit.store(frames, binary=binning.binary), digits.labels[block], lengths)
            report(begin + len(block))

    source = digits.images[chosen].tobytes() + digits.labels[chosen].astype("<i8").tobytes()
    key = {
        "source": hashlib.sha256(source).hexdigest(),
        "numbers": hashlib.sha256((first + chosen).astype("<i8").tobytes()).hexdigest(),
        "simulation": _SIMULATION,
        "camera": dataclasses.asdict(CAMERA),
        "binning": dataclasses.asdict(binning),
        **request.length_key,
    }
    form = CacheForm.of_frames(
        len(CLASSES), binning.shape, binning.steps, binary=binning.binary, own_lengths=request.own_lengths
    )
    cached_frames = cached("nmnist-sim", key, cache_dir=request.cache_dir, build=build, form=form)
    return cached_frames.frames(binning.steps, binary=binning.binary)


def _usable_digits(digits: mnist.Digits, data_dir: Path) -> Int64:
    """Numbers of the training digits that no test recording shows."""
    shown = np.union1d(np.arange(CALIBRATED_ON), nmnist.tested_digits(data_dir))
    return np.setdiff1d(np.arange(len(digits.labels)), shown)


@names_unreadable
def load(request: Request) -> Dataset:
    """Simulated recordings of MNIST's training digits and test digits.

    Some training digits are left out: those on which the camera was calibrated, and those whose real recordings in the
    data folder would be used for a test. The latter are all that exist, unless N-MNIST's own test recordings exist.

    Raises:
        DataError: `data_dir` does not contain MNIST, MNIST is malformed, or the download failed.
    """
    data_dir = request.data_dir
    if data_dir is None:
        raise DataError(
            "nmnist-sim needs MNIST: give the folder of its idx files, or with --download a folder to put them into"
        )
    if request.download and None in (mnist.find(data_dir, "train"), mnist.find(data_dir, "t10k")):
        mnist.download(data_dir)
    digits = mnist.read(data_dir, "train")
    usable = _usable_digits(digits, data_dir)
    if len(usable) == 0:
        raise DataError(
            f"{data_dir}: nothing is left to train on, because all {len(digits.labels)} training digits {_LEFT_OUT}"
        )
    notes = [
        f"the recordings of MNIST, from {mnist.DIGIT_FILES.folder(data_dir)}, are simulated, not made by a camera; "
        f"{len(digits.labels) - len(usable)} of the {len(digits.labels)} training digits {_LEFT_OUT}"
    ]
    test: Split
    if request.wants_own_test and mnist.find(data_dir, "t10k") is not None:
        test_digits = mnist.read(data_dir, "t10k")
        test = _simulate(test_digits, np.arange(len(test_digits.labels)), mnist.PUBLISHED["train"], request)
    else:
        all_digits = ArraySplit(digits.images[..., np.newaxis], digits.labels)
        training, held_out = cut_test(Subset(all_digits, usable), DEFAULT_HOLDOUT, request)
        test = _simulate(digits, usable[held_out.indices], 0, request) if len(held_out) else held_out
        usable = usable[training.indices]
    if request.only_test:
        return Dataset("nmnist-sim", "events", request.binning.shape, CLASSES, test, test, tuple(notes))
    if request.limit is not None and request.limit < len(usable):
        notes.append(f"limited to {request.limit} of {len(usable)} training digits (split seed {request.seed})")
        usable = usable[select_balanced(digits.labels[usable], request.limit, seed=request.seed, substream=1)]
    train = _simulate(digits, usable, 0, request)
    return Dataset("nmnist-sim", "events", request.binning.shape, CLASSES, train, test, tuple(notes))


NMNIST_SIM = DatasetInfo(
    name="nmnist-sim",
    description="MNIST in front of a simulated camera calibrated on N-MNIST, 2 x 34 x 34, to train for N-MNIST",
    coding="events",
    load=load,
    defaults=nmnist.NMNIST.defaults,
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    recordings=True,
    saccades=True,
    extra="mnist",
)
"""The data set of `stsbp train nmnist-sim`, with its default settings."""
