"""scikit-learn's digits as recordings of a simulated event camera: the way of N-MNIST without a download."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from stsbp.datasets.base import Dataset, FrameSplit, Progress, Request, cut_test
from stsbp.datasets.cache import CacheWriter, cached
from stsbp.datasets.digits import CLASSES, read_digits
from stsbp.datasets.saccades import SaccadeCamera, enlarge

__all__ = ["load"]

_ENLARGE = 3
_TEST_SHARE = 0.2
_SIMULATION = 1
"""Counts up when the simulation changes its events, so that older cached frames are not taken for its own."""
_BLOCK = 64


def load(request: Request) -> Dataset:
    """Digits, enlarged to 24 x 24 pixels, recorded in three saccades on a field of 34 x 34."""
    images, labels = read_digits()
    camera = SaccadeCamera()
    binning = dataclasses.replace(request.binning, saccade_us=camera.saccade_us)

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"simulating recordings{writer.why}", len(labels))
        for first in range(0, len(labels), _BLOCK):
            block = slice(first, first + _BLOCK)
            recordings = camera.record(enlarge(images[block], _ENLARGE))
            frames = np.stack([binning.frames(*recording) for recording in recordings])
            writer.add(FrameSplit.store(frames, binary=binning.binary), labels[block])
            report(min(first + _BLOCK, len(labels)))

    key = {
        "source": hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest(),
        "simulation": _SIMULATION,
        "enlarge": _ENLARGE,
        "camera": dataclasses.asdict(camera),
        "binning": dataclasses.asdict(binning),
    }
    stored = cached("digits-events", key, cache_dir=request.cache_dir, build=build)
    samples = FrameSplit(stored.data, stored.labels, binning.steps, binning.binary)
    train, test = cut_test(samples, round(_TEST_SHARE * len(labels)), request)
    cut = request.told_of_test(f"; {len(test)} of them held out as test samples (split seed {request.seed})")
    note = f"simulated recordings of the {len(labels)} digits of scikit-learn, not of a camera{cut}"
    return Dataset("digits-events", "events", binning.shape, CLASSES, train, test, (note,))
