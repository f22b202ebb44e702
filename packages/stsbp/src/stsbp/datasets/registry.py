"""All data sets by name, and the function that loads them. Their names can be listed without importing any of them.

A data set is a module that makes a `DatasetInfo`. A table below lists those of this project. Other packages add theirs
with an entry point of the group `stsbp.datasets`, `name = "package.module:INFO"` (docs/write_a_data_set.md).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.contract.random import check_seed
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.models.user_classes import calling
from stsbp_spec.validation import integer, shown, truth

from stsbp.datasets.base import Dataset, GuardedSplit, ProgressCallback, Request, Subset, lengths_of, select_balanced
from stsbp.datasets.cache import default_cache_dir, expanded
from stsbp.datasets.hf_names import HUB_NAME
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError, did_you_mean

__all__ = ["DATASETS", "GROUP", "info_of", "is_known", "known_infos", "load", "named_path", "steps_of"]

GROUP = "stsbp.datasets"
"""Group of entry points, each of which names a `DatasetInfo` of another package."""

_BUILT_IN = {
    "digits": "digits:DIGITS",
    "digits-events": "digits_events:DIGITS_EVENTS",
    "nmnist": "nmnist:NMNIST",
    "nmnist-sim": "nmnist_sim:NMNIST_SIM",
    "mnist": "mnist:MNIST",
    "fashion-mnist": "mnist:FASHION",
    "smnist": "smnist:ROWS",
    "smnist-pixels": "smnist:PIXELS",
    "fsdd": "fsdd:FSDD",
    "fsdd-timing": "fsdd_timing:FSDD_TIMING",
    "shd": "tonic_sets:SHD",
    "ssc": "tonic_sets:SSC",
    "dvs-gesture": "tonic_sets:GESTURE",
    "cifar10-dvs": "tonic_sets:CIFAR10_DVS",
    "tonic": "tonic_sets:TONIC",
    "cifar10": "cifar10:CIFAR10",
    "images": "image_folder:IMAGES",
    "patterns": "patterns:RASTERS",
    "patterns-image": "patterns:LETTERS",
    "motor": "motor:MOTOR",
    "mackey-glass": "mackey_glass:MACKEY_GLASS",
    "yinyang": "yinyang:YINYANG",
    "randman": "randman:RANDMAN",
    "events": "events:EVENTS",
    "sequences": "sequences:SEQUENCES",
    "hf": "hf:HF",
}
"""Modules of this project's data sets, relative to `stsbp.datasets`."""


_ARRAYS = "arrays"
"""What a run's settings name as its data set if it was trained on arrays in Python. Only these can be read again."""


class _Datasets(Mapping[str, DatasetInfo]):
    """All data sets by name. A data set is imported on access."""

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from sorted({point.name for point in entry_points(group=GROUP)} - {*_BUILT_IN})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in _BUILT_IN or any(point.name == name for point in entry_points(group=GROUP))

    def __getitem__(self, name: str) -> DatasetInfo:
        points = list(entry_points(group=GROUP, name=name))
        owners = (["stsbp"] if name in _BUILT_IN else []) + [_package(point) for point in points]
        if len(owners) > 1:
            raise DataError(f"several packages have a data set {name!r}: {', '.join(owners)}; uninstall all but one")
        if points:
            return _of_package(points[0])
        return _info(_BUILT_IN[name])


def _info(location: str) -> DatasetInfo:
    """The `DatasetInfo` of a module of this project, `MODULE:NAME`."""
    module, _, attribute = location.partition(":")
    info: DatasetInfo = getattr(importlib.import_module(f"stsbp.datasets.{module}"), attribute)
    return info


def _package(point: EntryPoint) -> str:
    return point.value if point.dist is None else point.dist.name


def _of_package(point: EntryPoint) -> DatasetInfo:
    """The `DatasetInfo` that another package's entry point names.

    Raises:
        DataError: the import fails, or the object is not a data set of this name.
    """
    with calling(f"the data set {point.name!r} of {_package(point)} cannot be imported", DataError):
        info: Any = point.load()
    if not isinstance(info, DatasetInfo) or info.name != point.name:
        is_ = f"the data set {info.name!r}" if isinstance(info, DatasetInfo) else f"a {type(info).__name__}"
        raise DataError(
            f"the entry point {point.name!r} of {_package(point)} must name a DatasetInfo of that name, but "
            f"{point.value} is {is_}"
        )
    return info


def _code_of(info: DatasetInfo, function: Callable[..., Any], role: str) -> AbstractContextManager[None]:
    """Name `function`, and the line that failed, in errors of a data set of another package."""
    if info.name in (*_BUILT_IN, _ARRAYS):
        return nullcontext()
    name = getattr(function, "__qualname__", type(function).__name__)
    function_name = f"{getattr(function, '__module__', '')}.{name}".removeprefix(".")
    return calling(f"{function_name}, the {role} of the data set {info.name!r}, fails", DataError)


DATASETS: Mapping[str, DatasetInfo] = _Datasets()
"""All data sets by name, including those of other packages. Names are known without importing anything."""

_PREFIXES = {"folder:": "images", "sequences:": "sequences", "events:": "events", "hf:": "hf"}
"""Prefixes of a path, and the data sets that they stand for."""


def _hub_name(name: str) -> str:
    """OWNER/NAME@COMMIT of the name of a data set of the Hub, which is no path; "": it is another name."""
    text = name.removeprefix("hf:")
    return text if text != name and HUB_NAME.fullmatch(text) else ""


def named_path(name: str) -> tuple[str, Path] | None:
    """The prefix and the path of a name such as `folder:PATH`, which contains the place of its data; else None.

    `hf:OWNER/NAME@COMMIT` contains no path.

    Raises:
        DataError: `name` is not text.
    """
    if not isinstance(name, str):
        raise DataError(f"a data set has a name such as 'digits', got {shown(name)}")
    if _hub_name(name):
        return None
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return None if prefix is None else (prefix, Path(name[len(prefix) :]))


def is_known(name: str) -> bool:
    """Whether a name is that of a data set, with its options or its path."""
    return named_path(name) is not None or name == _ARRAYS or name.partition(":")[0] in DATASETS


def known_infos() -> Iterator[DatasetInfo]:
    """The `DatasetInfo` of all data sets, except broken ones of other packages."""
    for name in DATASETS:
        with contextlib.suppress(DataError):
            yield DATASETS[name]


def info_of(name: str) -> DatasetInfo:
    """The `DatasetInfo` for a name, also for `folder:PATH` and `NAME:option=value`.

    Raises:
        DataError: there is no such data set, or it has no such option.
    """
    return _parse_name(name)[0]


def steps_of(name: str, data_dir: str) -> int | None:
    """The number of steps of the samples of a data set, if its file determines it; else None.

    `data_dir` is the data folder, for names without a path.
    """
    count, named = info_of(name).steps, named_path(name)
    path = data_dir or os.environ.get("STSBP_DATA", "") if named is None else named[1]
    path = _hub_name(name) or path
    if count is None or not str(path):
        return None
    with _code_of(info_of(name), count, "function steps"):
        return count(expanded(Path(path)))


def _parse_name(name: str) -> tuple[DatasetInfo, str, dict[str, str]]:
    """The data set of a name, the argument after the name, and the options."""
    named = named_path(name)
    if named is not None:
        info = DATASETS[_PREFIXES[named[0]]]
        return info if info.at is None else info.at(expanded(named[1])), "", {}
    if hub_name := _hub_name(name):
        info = DATASETS["hf"]
        assert info.at is not None
        return replace(info.at(Path(hub_name)), needs_data_dir=False), hub_name, {}
    if name == _ARRAYS:
        return _info("arrays:ARRAYS"), "", {}
    dataset_name, *words = name.split(":")
    if dataset_name not in DATASETS:
        known_names = ", ".join([*DATASETS, *(f"{prefix}PATH" for prefix in _PREFIXES)])
        file = f"; a file is named sequences:{name} or events:{name}" if name.endswith(".npz") else ""
        raise DataError(f"unknown data set {name!r}{did_you_mean(dataset_name, DATASETS)}{file}; known: {known_names}")
    info = DATASETS[dataset_name]
    argument = words.pop(0) if info.argument and words else ""
    options: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if key not in info.options or not sign or not value:
            can = ", ".join(f"{name}=... ({meaning})" for name, meaning in info.options.items()) or "none"
            raise DataError(
                f"{dataset_name} has no option {word!r}{did_you_mean(key, info.options)}; options after a colon: {can}"
            )
        if key in options:
            raise DataError(f"the option {key} of {dataset_name} is given twice in {name!r}")
        options[key] = value
    return info, argument, options


def _folder(option: str, path: Path | str | None) -> Path | None:
    try:
        folder = None if path is None else Path(path)
    except TypeError as error:
        raise DataError(f"{option} is the path of a folder, got {shown(path)}") from error
    if "\0" in str(folder):
        raise DataError(f"{option} is the path of a folder, which has no zero byte, got {shown(str(path))}")
    return folder


def _check_data_dir(data_dir: Path, info: DatasetInfo) -> None:
    """Raise `DataError` if the data folder is missing. A loader would only see a folder without files."""
    try:
        if data_dir.exists():
            return
    except OSError:
        # The loader says what is wrong, for example that the name is too long.
        return
    reason = "is a link to nothing" if data_dir.is_symlink() else "is missing"
    download = ", or give --download to make it and download the files into it" * info.can_download
    raise DataError(
        f"{info.name}: the data folder {data_dir} {reason}; name one with --data-dir or STSBP_DATA{download}"
    )


def load(
    name: str,
    *,
    data_dir: Path | str | None = None,
    steps: int = 25,
    seed: int = 0,
    limit: int | None = None,
    holdout: int | None = None,
    download: bool = False,
    skip_malformed: bool = False,
    cache_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    binning: EventBinning | None = None,
    own_lengths: bool = False,
    image_size: int | None = None,
    only_test: bool = False,
    train_only: bool = False,
    info: DatasetInfo | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        name: a key of `DATASETS`, perhaps with options (`NAME:option=value`), or `folder:PATH` for an image folder,
            `sequences:PATH` for a file of rasters, `events:PATH` for a file of events, or `hf:PATH` and
            `hf:OWNER/NAME@COMMIT` for a data set of Hugging Face on the disk.
        data_dir: folder of its files, by default `$STSBP_DATA`. The PATH of a name overrides it, and a note says so.
        steps: T of event frames.
        seed: seed of the split (held-out and limited samples), not of training.
        limit: keep this many training samples, equal numbers of each class as far as possible.
        holdout: hold out this many training samples as the test set, even if the data set has its own test set.
        download: download missing files.
        skip_malformed: leave out malformed files and list them, instead of raising an error.
        cache_dir: folder for the decoded samples; by default `default_cache_dir()`.
        progress: function that is called with the current task, the number of finished items and their total.
        binning: how recordings become frames, by default 300 ms in two polarities; its `steps` is replaced.
        own_lengths: whether each recording ends at its own last step, and later steps are padding.
        image_size: resize the images of an image folder to this many pixels square; refused for other data sets.
        only_test: load only the test set; if the source has none, all samples are the test set.
        train_only: load no test set; if the source has none, all samples are training samples.
        info: what loads the data set; by default what its name stands for.

    Raises:
        DataError: the name is unknown, or the data are missing or malformed. The message says what to do.
        SpecError: `steps` or `seed` is outside its domain, or a flag is neither True nor False.
    """
    flags = {
        "download": download,
        "skip_malformed": skip_malformed,
        "own_lengths": own_lengths,
        "only_test": only_test,
        "train_only": train_only,
    }
    flags = {option: truth(option, value) for option, value in flags.items()}
    data_dir, cache_dir = _folder("data_dir", data_dir), _folder("cache_dir", cache_dir)
    check_seed(seed)
    if not (binning is None or isinstance(binning, EventBinning)):
        raise DataError(f"binning is an EventBinning, got {shown(binning)}")
    info, argument, options = _parse_name(name) if info is None else (info, "", {})
    if info.argument and not argument:
        raise DataError(f"{name} needs a name after a colon: {info.synopsis}")
    named = named_path(name)
    path_notes: tuple[str, ...] = ()
    if named is not None:
        prefix, path = named
        if data_dir is not None and data_dir.absolute() != path.absolute():
            path_notes = (f"read from {path}, as {prefix}PATH says, not from the data folder {data_dir}",)
        data_dir = path
    for option, value in (("limit", limit), ("holdout", holdout), ("image_size", image_size)):
        if value is None:
            continue
        if (number := integer(value)) is None:
            raise DataError(f"{option} must be an integer, got {shown(value)}")
        if number < 1 and option != "holdout":  # which each data set checks
            raise DataError(f"{option} must be at least 1, got {number}")
    if image_size is not None and not info.resizable:
        raise DataError(f"image_size resizes the images of a folder; leave it out for {info.name}")
    if data_dir is None and info.needs_data_dir and (environment_folder := os.environ.get("STSBP_DATA")):
        data_dir = Path(environment_folder)
    if named is None and data_dir is not None and info.needs_data_dir and not download:
        _check_data_dir(expanded(data_dir), info)
    request = Request(
        name=name,
        argument=argument,
        options=options,
        data_dir=None if data_dir is None else expanded(data_dir),
        cache_dir=default_cache_dir() if cache_dir is None else expanded(cache_dir),
        binning=replace(EventBinning() if binning is None else binning, steps=steps),
        seed=seed,
        limit=limit,
        holdout=holdout,
        image_size=image_size,
        progress=progress,
        **flags,
    )
    with _code_of(info, info.load, "loader"):
        dataset: object = info.load(request)
    if not isinstance(dataset, Dataset):
        raise DataError(f"{info.name}: its loader must return a Dataset, got a {type(dataset).__name__}")
    if info.name not in (*_BUILT_IN, _ARRAYS):
        train, test = (GuardedSplit(info.name, split) for split in (dataset.train, dataset.test))
        dataset = replace(dataset, train=train, test=test)
    if not (only_test or len(dataset.train)):
        raise DataError(f"{info.name} has no training samples: its loader must return some as train")
    if own_lengths and lengths_of(dataset.train) is None:
        raise DataError(f"the samples of {name} have no lengths of their own: leave own_lengths (--own-lengths) out")
    dataset = replace(dataset, notes=(*path_notes, *dataset.notes))
    if train_only:
        dataset = replace(dataset, test=Subset(dataset.test, np.arange(0)))
    if limit is not None and len(dataset.train) < limit:
        note = f"limit {limit:,} has no effect: there are only {len(dataset.train):,} training samples"
        return replace(dataset, notes=(*dataset.notes, note))
    if limit is None or len(dataset.train) <= limit:
        return dataset
    # Use another substream than the held-out samples do, so that the two choices are independent.
    chosen = select_balanced(dataset.train.labels, limit, seed=seed, substream=1)
    note = f"limited to {len(chosen)} of {len(dataset.train)} training samples (split seed {seed})"
    return replace(dataset, train=Subset(dataset.train, chosen), notes=(*dataset.notes, note))
