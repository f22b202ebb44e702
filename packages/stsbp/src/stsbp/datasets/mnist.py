"""MNIST (LeCun et al. 1998) from its idx files, packed or not: the digits that `nmnist-sim` records.

Looked for in the data folder itself and in its folders `mnist`, `raw`, `MNIST` and `MNIST/raw` (torchvision's).
"""

from __future__ import annotations

import contextlib
import gzip
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stsbp_spec.typing import Int64, UInt8

from stsbp.errors import DataError
from stsbp.files import MEGABYTE, open_regular

__all__ = ["PUBLISHED", "Digits", "download", "find", "read"]

PUBLISHED = {"train": 60_000, "t10k": 10_000}
"""Digits of the training and the test set, by the names that their files have."""

_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FOLDERS = (".", "mnist", "raw", "MNIST", "MNIST/raw")
_SIDE = 28
_LARGEST = 16 + 60_000 * _SIDE * _SIDE
_HEADROOM = MEGABYTE
"""What a packed file may be larger than its content."""


class Digits(NamedTuple):
    """Digits of one split: images `[n, 28, 28]` and labels `[n]`."""

    images: UInt8
    labels: Int64


def _names(split: str) -> tuple[str, str]:
    return f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"


def find(data_dir: Path, split: str) -> tuple[Path, Path] | None:
    """The files of a split, images first; None where they are not."""
    for folder in (data_dir / part for part in _FOLDERS):
        images, labels = (
            next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
            for name in _names(split)
        )
        if images is not None and labels is not None:
            return images, labels
    return None


def download(data_dir: Path) -> None:
    """Fetch both splits with torchvision, md5-checked, into `data_dir/MNIST/raw`; what is there already is kept.

    Raises:
        DataError: torchvision is not installed, or the download failed; says where the files go by hand.
    """
    try:
        from torchvision.datasets import MNIST
        from torchvision.datasets.utils import download_url
    except ImportError as error:
        raise DataError(f'the download needs torchvision ({error}): pip install "stsbp[mnist]"') from error
    folder = data_dir / "MNIST" / "raw"
    try:
        # Standard output belongs to the command's own results.
        with contextlib.redirect_stdout(sys.stderr):
            for name, md5 in MNIST.resources:
                download_url(MNIST.mirrors[0] + name, str(folder), name, md5)
    except (OSError, RuntimeError, RecursionError) as error:
        files = ", ".join(f"{name} (md5 {md5})" for name, md5 in MNIST.resources)
        raise DataError(
            f"could not download MNIST: {error}\nFetch {files} from {MNIST.mirrors[0]}, put them into {folder} and run "
            "the same command again"
        ) from error


def _content(path: Path) -> bytes:
    try:
        with open_regular(path, _LARGEST + _HEADROOM) as packed:
            if path.suffix != ".gz":
                return packed.read()
            # No more than the largest file holds: a few packed bytes can mean gigabytes.
            with gzip.open(packed) as file:
                return file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; if it is damaged, delete it and fetch it again") from error


def _array(content: bytes, path: Path, dimensions: int) -> UInt8:
    """An idx file of bytes: two zeros, type 8, number of dimensions, then their sizes as big-endian 32-bit words."""
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is no idx file of bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4")) if len(content) >= start else ()
    with contextlib.suppress(ValueError):
        if len(shape) == dimensions and len(content) - start == math.prod(shape):
            # Beside a 0 the other numbers may be larger than numpy's largest.
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    raise DataError(
        f"{path}: {len(content)} bytes are not the array of shape {list(shape)} that it is said to hold; "
        "it may be cut off"
    )


def read(data_dir: Path, split: str) -> Digits:
    """Read one split, `train` or `t10k`.

    Raises:
        DataError: the files are missing or malformed, or do not belong together.
    """
    found = find(data_dir, split)
    if found is None:
        expected = " and ".join(f"{name}.gz" for name in _names(split))
        raise DataError(
            f"no MNIST at {data_dir}: expected {expected} (or unpacked) in {data_dir}, {data_dir / 'mnist'} or "
            f"{data_dir / 'MNIST' / 'raw'}; fetch them with --download, or from {_HOME}"
        )
    images, labels = (_array(_content(path), path, dimensions) for path, dimensions in zip(found, (3, 1), strict=True))
    if images.shape[1:] != (_SIDE, _SIDE) or len(images) == 0:
        raise DataError(f"{found[0]}: expected digits of 28 x 28 pixels, got an array {list(images.shape)}")
    if len(labels) != len(images):
        raise DataError(f"{found[0]} holds {len(images)} digits, but {found[1].name} {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{found[1]}: label {int(labels.argmax())} is {labels.max()}, not 0 to 9")
    return Digits(images, labels.astype(np.int64))
