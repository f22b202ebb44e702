"""Every data set by its name, listable without importing anything heavy, and the one door to load them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from stsbp_spec.encoders import EventBinning
from stsbp_spec.typing import Coding

from stsbp.datasets.base import Dataset, ProgressCallback, Request, Subset, select_balanced
from stsbp.datasets.cache import default_cache_dir, expanded
from stsbp.errors import DataError, did_you_mean

__all__ = ["DATASETS", "DatasetInfo", "info_of", "load", "named_path"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is loaded."""

    name: str
    description: str
    coding: Coding
    module: str
    """Holds `load(request) -> Dataset`; imported when the data set is."""
    default_holdout: int | str | None
    """Samples held out as the test set where the source has none: a number, or a share in words."""
    needs_data_dir: bool
    can_download: bool = False
    recordings: bool = False
    """Whether samples are recordings of an event camera with three saccades, which `EventBinning` turns to frames."""
    extra: str | None = None
    """The optional dependencies, `pip install "stsbp[extra]"`."""


def _infos() -> dict[str, DatasetInfo]:
    module = "stsbp.datasets."
    infos = (
        DatasetInfo(
            "digits",
            "1,797 handwritten digits of scikit-learn, 8 x 8, no download",
            "direct",
            module + "digits",
            "a fifth",
            False,
            extra="digits",
        ),
        DatasetInfo(
            "digits-events",
            "the same digits before a simulated event camera, 2 x 34 x 34, no download",
            "events",
            module + "digits_events",
            "a fifth",
            False,
            recordings=True,
            extra="digits",
        ),
        DatasetInfo(
            "nmnist",
            "N-MNIST: MNIST before an event camera, 2 x 34 x 34, 60,000 + 10,000 recordings or a part of them",
            "events",
            module + "nmnist",
            100,
            True,
            can_download=True,
            recordings=True,
            extra="nmnist",
        ),
        DatasetInfo(
            "nmnist-sim",
            "MNIST before a simulated camera that is calibrated on N-MNIST, 2 x 34 x 34, to train for N-MNIST",
            "events",
            module + "nmnist_sim",
            1000,
            True,
            can_download=True,
            recordings=True,
            extra="mnist",
        ),
        DatasetInfo(
            "cifar10",
            "CIFAR-10: photographs of ten classes, 3 x 32 x 32, binary version or image folders",
            "direct",
            module + "cifar10",
            1000,
            True,
            can_download=True,
            extra="cifar10",
        ),
        DatasetInfo(
            "images",
            "any folder of images, train/<class>/ and test/<class>/ or <class>/; also written folder:PATH",
            "direct",
            module + "image_folder",
            "a fifth",
            True,
            extra="images",
        ),
        DatasetInfo(
            "patterns",
            "4 random rasters that are to call 4 random rasters, spike by spike, 64 -> 10 neurons, no download",
            "events",
            module + "patterns",
            None,
            False,
        ),
        DatasetInfo(
            "patterns-image",
            "4 random rasters that are to call 4 letters drawn with spikes, 64 -> 10 neurons, no download",
            "events",
            module + "patterns",
            None,
            False,
        ),
        DatasetInfo(
            "motor",
            "gaits of a four-legged machine: clock, speed, gait -> spikes for 8 joints, 43 -> 16 neurons, no download",
            "events",
            module + "motor",
            60,
            False,
        ),
        DatasetInfo(
            "sequences",
            "your own input and target rasters in an .npz file; also written sequences:PATH",
            "events",
            module + "sequences",
            "a fifth",
            True,
        ),
    )
    return {info.name: info for info in infos}


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(_infos())
"""Every data set by its name."""

_PREFIXES = {"folder:": "images", "sequences:": "sequences"}
"""Names that a path follows, and the data sets that they mean."""


def named_path(name: str) -> tuple[str, Path] | None:
    """The prefix and the path of a name such as `folder:PATH`, which says itself where its data are; else None."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return None if prefix is None else (prefix, Path(name[len(prefix) :]))


def info_of(name: str) -> DatasetInfo:
    """What is known of the data set that a name means, also of `folder:PATH` and `sequences:PATH`.

    Raises:
        DataError: there is none.
    """
    named = named_path(name)
    if named is not None:
        return DATASETS[_PREFIXES[named[0]]]
    if name not in DATASETS:
        known = ", ".join([*DATASETS, *(f"{prefix}PATH" for prefix in _PREFIXES)])
        raise DataError(f"unknown data set {name!r}{did_you_mean(name, DATASETS)}; known: {known}")
    return DATASETS[name]


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    steps: int = 25,
    seed: int = 0,
    limit: int | None = None,
    holdout: int | None = None,
    download: bool = False,
    skip_malformed: bool = False,
    cache_dir: Path | None = None,
    progress: ProgressCallback | None = None,
    binning: EventBinning | None = None,
    image_size: int | None = None,
    only_test: bool = False,
    train_only: bool = False,
) -> Dataset:
    """Load a data set.

    Args:
        name: a key of `DATASETS`, or `folder:PATH` for an image folder, `sequences:PATH` for a file of rasters.
        data_dir: where its files are, by default `$STSBP_DATA`; the PATH of a name wins over it, and a note says so.
        steps: T of event frames.
        seed: of the split (held-out and limited samples), not of training.
        limit: keep this many training samples, equally many of each class as far as there are.
        holdout: hold this many training samples out as the test set, even where there is a test set of its own.
        download: fetch what is missing.
        skip_malformed: leave malformed files out and say so, instead of raising.
        cache_dir: for the decoded samples; by default `default_cache_dir()`.
        progress: called with what is being done, the items done and their total.
        binning: how recordings become frames, by default 300 ms in two polarities; its `steps` is replaced.
        image_size: resize the images of an image folder to this many pixels square.
        only_test: the test set alone is wanted; where the source brings none, all samples are it.
        train_only: no test set is wanted; where the source brings none, all samples are training samples.

    Raises:
        DataError: the name is unknown, or the data are missing or malformed; the message says what to do.
        SpecError: `steps` or `seed` is outside its domain.
    """
    info, named = info_of(name), named_path(name)
    said: tuple[str, ...] = ()
    if named is not None:
        prefix, path = named
        if data_dir is not None and data_dir.absolute() != path.absolute():
            said = (f"read from {path}, which {prefix}PATH names, and not from the data folder {data_dir}",)
        data_dir = path
    for option, value in (("limit", limit), ("image_size", image_size)):
        if value is not None and value < 1:
            raise DataError(f"{option} must be at least 1, got {value}")
    if data_dir is None and info.needs_data_dir and (given := os.environ.get("STSBP_DATA")):
        data_dir = Path(given)
    request = Request(
        name=name,
        data_dir=None if data_dir is None else expanded(data_dir),
        cache_dir=default_cache_dir() if cache_dir is None else expanded(cache_dir),
        binning=replace(EventBinning() if binning is None else binning, steps=steps),
        seed=seed,
        limit=limit,
        holdout=holdout,
        download=download,
        skip_malformed=skip_malformed,
        image_size=image_size,
        only_test=only_test,
        train_only=train_only,
        progress=progress,
    )
    dataset: Dataset = importlib.import_module(info.module).load(request)
    dataset = replace(dataset, notes=(*said, *dataset.notes))
    if train_only:
        note = "there is no test set, as asked: nothing is tested"
        dataset = replace(dataset, test=Subset(dataset.test, np.arange(0)), notes=(*dataset.notes, note))
    if limit is not None and len(dataset.train) < limit:
        note = f"limit {limit:,} leaves nothing out: there are {len(dataset.train):,} training samples"
        return replace(dataset, notes=(*dataset.notes, note))
    if limit is None or len(dataset.train) <= limit:
        return dataset
    # Another substream than the holdout's, so that the two choices are independent.
    chosen = select_balanced(dataset.train.labels, limit, seed=seed, substream=1)
    note = f"limited to {len(chosen)} of {len(dataset.train)} training samples (split seed {seed})"
    return replace(dataset, train=Subset(dataset.train, chosen), notes=(*dataset.notes, note))
