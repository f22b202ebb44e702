"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their idx files, compressed or not.

The files of both have the same names. `IdxFiles` lists the folders in which they are searched.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.typing import Int64, UInt8

from stsbp.datasets.base import ArraySplit, Dataset, Request, Split, cut_test, names_unreadable
from stsbp.datasets.digits import CLASSES
from stsbp.datasets.info import DatasetInfo, Setting
from stsbp.errors import DataError
from stsbp.files import MEGABYTE, has_file, open_regular

__all__ = [
    "DIGIT_FILES",
    "FASHION",
    "FASHION_FILES",
    "MNIST",
    "PUBLISHED",
    "Digits",
    "IdxFiles",
    "download",
    "find",
    "images",
    "load",
    "read",
]

PUBLISHED = {"train": 60_000, "t10k": 10_000}
"""Number of digits in the training set and the test set, by the names in the file names."""

DEFAULT_HOLDOUT = 1000
_SIDE = 28
_LARGEST = 16 + 60_000 * _SIDE * _SIDE
_HEADROOM = MEGABYTE
"""By how much a compressed file may be larger than its content."""


class Digits(NamedTuple):
    """Digits of one split: images `[n, 28, 28]` and labels `[n]`."""

    images: UInt8
    labels: Int64


class IdxFiles(NamedTuple):
    """Where the four files of a data set are.

    Attributes:
        title: name of the data set.
        folders: subfolders of the data folder that may contain the files, in order of preference.
        system: folder in which a system package installs the files. It is used if the data folder does not have them.
        torchvision: name of the class that downloads the files, into the folder `raw` of a folder with this name.
        home: address where the files are published.
        shared: whether the data folder itself may contain another data set's files with the same names. It is then only
            used if the subfolders contain none.
    """

    title: str
    folders: tuple[str, ...]
    system: Path | None
    torchvision: str
    home: str
    shared: bool = False

    def candidate_folders(self, data_dir: Path | None) -> list[Path]:
        """Folders that may contain the files."""
        user_folders = [] if data_dir is None else [data_dir / folder for folder in self.folders]
        return user_folders if self.system is None else [*user_folders, self.system]

    def ambiguity_note(self, data_dir: Path | None) -> tuple[str, ...]:
        """A note if the files that are read may be those of another data set."""
        folder = self.folder(data_dir)
        if folder is None or folder != data_dir or not self.shared:
            return ()
        return (
            f"other data sets, such as MNIST, have files of the same names; to tell them apart, put those of "
            f"{self.title} into {folder / self.folders[0]}",
        )

    def folder(self, data_dir: Path | None) -> Path | None:
        """The folder from which both splits are read, so that they are of one data set; None if there are no files.

        The first one with both splits, else the first one with training samples, else the first one with test samples.
        """
        candidate_folders = self.candidate_folders(data_dir)
        shared_folders = [path for path in candidate_folders if self.shared and path in (data_dir, self.system)]
        for group in (
            [path for path in candidate_folders if path not in shared_folders],
            *([path] for path in shared_folders),
        ):
            folder = max(group, key=_splits, default=None)
            if folder is not None and any(_splits(folder)):
                return folder
        return None


DIGIT_FILES = IdxFiles(
    "MNIST",
    (".", "mnist", "raw", "MNIST", "MNIST/raw"),
    None,
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
FASHION_FILES = IdxFiles(
    "Fashion-MNIST",
    ("fashion-mnist", "fashion", "FashionMNIST/raw", "."),
    Path("/usr/share/datasets/fashion-mnist"),
    "FashionMNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    # MNIST's files may be in the data folder.
    shared=True,
)
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def _names(split: str) -> tuple[str, str]:
    return f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"


def _files_in(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The files of a split in a folder, images first; None if they do not exist."""
    # torchvision keeps the packed files beside the unpacked ones. They are mixed only if neither kind is complete.
    for suffixes in ((".gz", ".gz"), ("", ""), (".gz", ""), ("", ".gz")):
        images, labels = (folder / f"{name}{suffix}" for name, suffix in zip(_names(split), suffixes, strict=True))
        if has_file(images) and has_file(labels):
            return images, labels
    return None


def _splits(folder: Path) -> tuple[bool, ...]:
    """Whether a folder contains the training set, and the test set."""
    return tuple(_files_in(folder, split) is not None for split in PUBLISHED)


def find(data_dir: Path | None, split: str, files: IdxFiles = DIGIT_FILES) -> tuple[Path, Path] | None:
    """The files of a split, images first; None if the folder of the data set does not contain them."""
    folder = files.folder(data_dir)
    return None if folder is None else _files_in(folder, split)


def download(data_dir: Path, files: IdxFiles = DIGIT_FILES) -> None:
    """Download both splits with torchvision, checked by md5, into `data_dir/MNIST/raw` (or that of Fashion-MNIST).

    Existing files are kept.

    Raises:
        DataError: torchvision is not installed, or the download failed. The message says where to put the files by
            hand.
    """
    try:
        import torchvision.datasets
        from torchvision.datasets.utils import download_url
    except ImportError as error:
        raise DataError(f'the download needs torchvision ({error}): pip install "stsbp[mnist]"') from error
    source: Any = getattr(torchvision.datasets, files.torchvision)
    folder = data_dir / files.torchvision / "raw"
    try:
        # Standard output is only for the results of the command.
        with contextlib.redirect_stdout(sys.stderr):
            for name, md5 in source.resources:
                download_url(source.mirrors[0] + name, str(folder), name, md5)
    except (OSError, RuntimeError, RecursionError) as error:
        file_list = ", ".join(f"{name} (md5 {md5})" for name, md5 in source.resources)
        raise DataError(
            f"could not download {files.title}: {error}\nFetch {file_list} from {source.mirrors[0]}, put them into "
            f"{folder} and run the same command again"
        ) from error


def _content(path: Path) -> bytes:
    """The unpacked content of an idx file."""
    try:
        with open_regular(path, _LARGEST + _HEADROOM) as file:
            if path.suffix != ".gz":
                return file.read()
            # Read no more than the largest file contains, because a few compressed bytes can expand to gigabytes.
            with gzip.open(file) as unpacked:
                return unpacked.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; if it is damaged, delete it and download it again") from error


def _array(content: bytes, path: Path, dimensions: int) -> UInt8:
    """An idx file of bytes: two zeros, type 8, number of dimensions, then their sizes as big-endian 32-bit words."""
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is not an idx file of bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4")) if len(content) >= start else ()
    with contextlib.suppress(ValueError):
        if len(shape) == dimensions and len(content) - start == math.prod(shape):
            # If one number is 0, the others may be larger than numpy's limit.
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    raise DataError(
        f"{path}: its header announces an array of shape {list(shape)}, which does not fit "
        f"{len(content)} bytes; it may be cut off"
    )


def read(data_dir: Path | None, split: str, files: IdxFiles = DIGIT_FILES) -> Digits:
    """Read one split, `train` or `t10k`.

    Raises:
        DataError: the files are missing or malformed, or do not belong together.
    """
    paths = find(data_dir, split, files)
    if paths is None:
        expected = " and ".join(f"{name}.gz" for name in _names(split))
        folders = ", ".join(str(folder) for folder in files.candidate_folders(data_dir))
        named = "" if data_dir is not None else "; name the data folder with --data-dir or STSBP_DATA"
        raise DataError(
            f"no {files.title} found: expected {expected} (or unpacked) in one of {folders or 'a data folder'}{named}; "
            f"fetch them with --download, or from {files.home}"
        )
    images, labels = (_array(_content(path), path, dimensions) for path, dimensions in zip(paths, (3, 1), strict=True))
    if images.shape[1:] != (_SIDE, _SIDE) or len(images) == 0:
        raise DataError(f"{paths[0]}: expected digits of 28 x 28 pixels, got an array {list(images.shape)}")
    if len(labels) != len(images):
        raise DataError(f"{paths[0]} holds {len(images)} digits, but {paths[1].name} {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{paths[1]}: label {int(labels.argmax())} is {labels.max()}, not 0 to 9")
    return Digits(images, labels.astype(np.int64))


def images(
    request: Request, files: IdxFiles, split_of: Callable[[Digits], Split]
) -> tuple[Split, Split, tuple[str, ...]]:
    """Training samples, test samples and notes. `split_of` makes the samples from the digits of a split.

    Raises:
        DataError: the files are missing or malformed, or the download failed.
    """
    complete = None not in (find(request.data_dir, name, files) for name in PUBLISHED)
    if request.download and (not complete or files.ambiguity_note(request.data_dir)):
        if request.data_dir is None:
            raise DataError(f"{files.title} is downloaded into a data folder: name it with --data-dir or STSBP_DATA")
        download(request.data_dir, files)
    folder = files.folder(request.data_dir)
    source = f"of {files.title}, from {folder}"
    ambiguity_note = files.ambiguity_note(request.data_dir)
    if request.only_test and find(request.data_dir, "t10k", files) is not None:
        test = split_of(read(request.data_dir, "t10k", files))
        return test, test, (f"{len(test):,} test images {source}", *ambiguity_note)
    training_images = split_of(read(request.data_dir, "train", files))
    if request.wants_own_test and find(request.data_dir, "t10k", files) is not None:
        test = split_of(read(request.data_dir, "t10k", files))
        return (
            training_images,
            test,
            (f"{len(training_images):,} training and {len(test):,} test images {source}", *ambiguity_note),
        )
    train, held_out = cut_test(training_images, DEFAULT_HOLDOUT, request)
    cut = request.told_of_test(f"; {len(held_out):,} of them held out as test samples (split seed {request.seed})")
    return train, held_out, (f"{len(training_images):,} training images {source}{cut}", *ambiguity_note)


@names_unreadable
def load(request: Request) -> Dataset:
    """MNIST or Fashion-MNIST, as images.

    Raises:
        DataError: the files are missing or malformed, or the download failed.
    """
    fashion = request.name == "fashion-mnist"
    files = FASHION_FILES if fashion else DIGIT_FILES
    train, test, notes = images(request, files, lambda idx: ArraySplit(idx.images[..., np.newaxis], idx.labels))
    classes = _FASHION_CLASSES if fashion else CLASSES
    return Dataset(request.name, "direct", (1, _SIDE, _SIDE), classes, train, test, notes)


_DEFAULTS: dict[str, Setting] = {
    "net": "32C3-P2-64C3-P2-128",
    "padding": "same",
    "steps": 5,
    "epochs": 10,
    "batch_size": 50,
    "lr": 1e-3,
    "tau_m": 5.0,
    "tau_s": 3.0,
}

MNIST = DatasetInfo(
    name="mnist",
    description="MNIST: handwritten digits, 1 x 28 x 28, 60,000 + 10,000",
    coding="direct",
    load=load,
    defaults={**_DEFAULTS, "augment_shift": 1},
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    extra="mnist",
    # The archive states none. This is what the documentation of Keras says.
    licence="CC BY-SA 3.0",
)
"""The data set of `stsbp train mnist`, with its default settings."""

FASHION = DatasetInfo(
    name="fashion-mnist",
    description="Fashion-MNIST: ten kinds of clothes, 1 x 28 x 28, 60,000 + 10,000",
    coding="direct",
    load=load,
    defaults={**_DEFAULTS, "augment_flip": True},
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    extra="mnist",
    licence="MIT",
)
"""The data set of `stsbp train fashion-mnist`, with its default settings."""
