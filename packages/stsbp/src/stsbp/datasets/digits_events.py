"""scikit-learn's digits as recordings of a simulated event camera. They are similar to N-MNIST, and need no
download."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from stsbp.datasets.base import Dataset, FrameSplit, Progress, Request, cut_test
from stsbp.datasets.cache import CacheForm, CacheWriter, cached
from stsbp.datasets.digits import CLASSES, read_digits
from stsbp.datasets.info import ByLoss, DatasetInfo
from stsbp.datasets.saccades import SaccadeCamera, enlarge

__all__ = ["DIGITS_EVENTS", "load"]

_ENLARGE = 3
_TEST_SHARE = 0.2
_SIMULATION = 1
"""Increased whenever the simulation gives other events, so that older cached frames are not used."""
_BLOCK = 64


def load(request: Request) -> Dataset:
    """Digits, enlarged to 24 x 24 pixels and recorded in three saccades on a field of 34 x 34."""
    images, labels = read_digits()
    camera = SaccadeCamera()
    binning = dataclasses.replace(request.binning, saccade_us=camera.saccade_us)

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"simulating recordings{writer.rebuild_reason}", len(labels))
        for first in range(0, len(labels), _BLOCK):
            block = slice(first, first + _BLOCK)
            recordings = camera.record(enlarge(images[block], _ENLARGE))
            frames = np.stack([binning.frames(*recording) for recording in recordings])
            lengths = [binning.length(t) for *_, t in recordings] if request.own_lengths else None
            writer.add(FrameSplit.store(frames, binary=binning.binary), labels[block], lengths)
            report(min(first + _BLOCK, len(labels)))

    key = {
        "source": hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest(),
        "simulation": _SIMULATION,
        "enlarge": _ENLARGE,
        "camera": dataclasses.asdict(camera),
        "binning": dataclasses.asdict(binning),
        **request.length_key,
    }
    form = CacheForm.of_frames(
        len(CLASSES), binning.shape, binning.steps, binary=binning.binary, own_lengths=request.own_lengths
    )
    cached_frames = cached("digits-events", key, cache_dir=request.cache_dir, build=build, form=form)
    samples = cached_frames.frames(binning.steps, binary=binning.binary)
    train, test = cut_test(samples, round(_TEST_SHARE * len(labels)), request)
    cut = request.told_of_test(f"; {len(test)} of them held out as test samples (split seed {request.seed})")
    note = f"simulated recordings of the {len(labels)} digits of scikit-learn, not of a camera{cut}"
    return Dataset("digits-events", "events", binning.shape, CLASSES, train, test, (note,))


DIGITS_EVENTS = DatasetInfo(
    name="digits-events",
    description="the same digits in front of a simulated event camera, 2 x 34 x 34, no download",
    coding="events",
    load=load,
    defaults={
        "net": "12C5-P2-32C5-P2",
        "steps": 20,
        "epochs": 10,
        "batch_size": 10,
        "lr": 5e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
        "surrogate": "fast-sigmoid:beta=3",
        "init_gain": 1.0,
        "label_pattern": ByLoss("1", "01", "01"),
        "augment_shift": 1,
    },
    needs_data_dir=False,
    recordings=True,
    saccades=True,
    extra="digits",
)
"""The data set of `stsbp train digits-events`, with its default settings."""
