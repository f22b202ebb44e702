"""MNIST before a simulated camera that is calibrated on real N-MNIST recordings: training data for N-MNIST.

Recording k of N-MNIST's training set shows training digit k - 1 of MNIST. The camera was fitted on such pairs
(`experiments/calibrate_nmnist.py`); docs/transfer.md says how well it does, and how networks that are trained on it
read real recordings.
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
    hold_out,
    names_unreadable,
    select_balanced,
)
from stsbp.datasets.cache import CacheWriter, cached
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.saccades import Place, SaccadeCamera
from stsbp.errors import DataError

__all__ = ["CALIBRATED_ON", "CAMERA", "load"]

CALIBRATED_ON = 1000
"""The first digits of the training set, whose real recordings the camera was fitted and checked on."""
DEFAULT_HOLDOUT = 1000

_PATH = (
    Place(0, 1.25, 0.51),
    Place(10000, 1.30, 0.50),
    Place(20000, 1.62, 0.43),
    Place(30000, 2.33, 0.37),
    Place(40000, 3.42, 0.36),
    Place(50000, 4.67, 0.45),
    Place(60000, 5.73, 0.95),
    Place(70000, 6.40, 1.59),
    Place(80000, 6.61, 1.89),
    Place(90000, 6.61, 1.98),
    Place(100000, 6.55, 2.04),
    Place(110000, 6.48, 2.21),
    Place(120000, 6.45, 2.41),
    Place(130000, 6.23, 2.90),
    Place(140000, 5.45, 3.66),
    Place(150000, 4.34, 4.28),
    Place(160000, 3.19, 4.57),
    Place(170000, 2.15, 4.86),
    Place(180000, 1.54, 5.24),
    Place(190000, 1.44, 5.35),
    Place(200000, 1.41, 5.54),
    Place(210000, 1.44, 5.72),
    Place(220000, 1.41, 5.83),
    Place(230000, 1.40, 5.73),
    Place(240000, 1.41, 5.07),
    Place(250000, 1.42, 3.99),
    Place(260000, 1.39, 2.87),
    Place(270000, 1.31, 1.86),
    Place(280000, 1.19, 1.27),
    Place(290000, 1.16, 0.76),
    Place(300000, 1.17, 0.58),
    Place(310000, 1.17, 0.58),
)
CAMERA = SaccadeCamera(
    threshold=0.26,
    off_threshold=0.22,
    floor=0.185,
    path=_PATH,
    inverted=True,
    gamma=0.88,
    blur=0.52,
    mismatch=0.2,
    start=0.5,
    jitter=0.3,
    noise_on=0.38,
    noise_off=0.013,
)
"""The camera of `nmnist-sim`."""

_LEFT_OUT = "left out, because their real recordings served to calibrate the simulation or may be tested on"
_SIMULATION = 1
"""Counts up when the simulation changes its events, so that older cached frames are not taken for its own."""
_BLOCK = 64


def _simulate(digits: mnist.Digits, chosen: Int64, first: int, request: Request) -> Split:
    """Recordings of some digits of a split; `first` is the number of the split's first digit for the camera."""
    binning = request.binning

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, "simulating recordings", len(chosen))
        for begin in range(0, len(chosen), _BLOCK):
            block = chosen[begin : begin + _BLOCK]
            recordings = CAMERA.record(digits.images[block], first + block)
            frames = np.stack([binning.frames(*recording) for recording in recordings])
            writer.add(FrameSplit.store(frames, binning), digits.labels[block])
            report(begin + len(block))

    source = digits.images[chosen].tobytes() + digits.labels[chosen].astype("<i8").tobytes()
    key = {
        "source": hashlib.sha256(source).hexdigest(),
        "numbers": hashlib.sha256((first + chosen).astype("<i8").tobytes()).hexdigest(),
        "simulation": _SIMULATION,
        "camera": dataclasses.asdict(CAMERA),
        "binning": dataclasses.asdict(binning),
    }
    stored = cached("nmnist-sim", key, cache_dir=request.cache_dir, build=build)
    return FrameSplit(stored.data, stored.labels, binning)


def _kept(digits: mnist.Digits, data_dir: Path) -> Int64:
    """Numbers of the training digits that no recording for a test shows."""
    shown = np.union1d(np.arange(CALIBRATED_ON), nmnist.tested_digits(data_dir))
    return np.setdiff1d(np.arange(len(digits.labels)), shown)


@names_unreadable
def load(request: Request) -> Dataset:
    """Simulated recordings of MNIST's training digits, and of its test digits.

    Left out are the digits that the camera was calibrated on, and those whose real recordings are in the data folder
    and would be tested on (all that are there, unless N-MNIST's own test recordings are).

    Raises:
        DataError: MNIST is not found at `data_dir` or is malformed, or the download failed.
    """
    data_dir = request.data_dir
    if data_dir is None:
        raise DataError(
            "nmnist-sim needs MNIST: give the folder that holds (or, with --download, is to hold) its idx files"
        )
    if request.download and None in (mnist.find(data_dir, "train"), mnist.find(data_dir, "t10k")):
        mnist.download(data_dir)
    digits = mnist.read(data_dir, "train")
    kept = _kept(digits, data_dir)
    if len(kept) == 0:
        raise DataError(
            f"{data_dir}: nothing to train on; the {len(digits.labels)} training digits are all {_LEFT_OUT}"
        )
    notes = [
        f"simulated recordings of MNIST, not of a camera; {len(digits.labels) - len(kept)} of its {len(digits.labels)} "
        f"training digits are {_LEFT_OUT}"
    ]
    test: Split
    if request.holdout is None and mnist.find(data_dir, "t10k") is not None:
        own = mnist.read(data_dir, "t10k")
        test = _simulate(own, np.arange(len(own.labels)), mnist.PUBLISHED["train"], request)
    else:
        count = DEFAULT_HOLDOUT if request.holdout is None else request.holdout
        rest, held = hold_out(Subset(ArraySplit(digits.images, digits.labels), kept), count, seed=request.seed)
        test = _simulate(digits, kept[held.indices], 0, request)
        kept = kept[rest.indices]
    if request.limit is not None:
        kept = kept[select_balanced(digits.labels[kept], request.limit, seed=request.seed, substream=1)]
    train = _simulate(digits, kept, 0, request)
    return Dataset("nmnist-sim", "events", request.binning.shape, CLASSES, train, test, tuple(notes))
