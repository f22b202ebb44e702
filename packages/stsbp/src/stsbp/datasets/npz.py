"""Functions for all data sets in `.npz` files: reading arrays without unpickling, labels, and the split.

`labels` `[n]` are the classes of n samples, 0 and up; `classes` `[k]`, optional, are their names; `split` `[n]`,
optional, is 0 for training and 1 for test samples.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from stsbp_spec.typing import AnyArray, Int64, Shape
from stsbp_spec.validation import shown

from stsbp import budget
from stsbp.datasets.base import MOST_CLASSES, Request, Split, Subset, cut_test
from stsbp.errors import DataError, StsbpError
from stsbp.files import GIGABYTE, open_regular

__all__ = ["class_labels", "read_arrays", "read_shapes", "split_train_test"]

_TEST_SHARE = 0.2
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAGIC = b"\x93NUMPY"
_MOST = 64 * GIGABYTE
_COPIES = 2
"""How often the arrays are in memory while they are converted."""
_PER_SAMPLE = 1024
"""Share of a sample in the budget, in bytes. Reading takes time for each sample, also if compression makes nothing of
its arrays."""


def _members(file: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of an archive. Raises `ValueError` for methods of compression that numpy does not write."""
    members = file.infolist()
    for member in members:
        # Of these two alone, `zipfile` unpacks no more than it is asked for. Others make gigabytes of a few bytes.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{shown(member.filename)} in it is compressed by another method than those of numpy; save its arrays "
                "with np.savez_compressed"
            )
    return members


def read_arrays(path: Path) -> dict[str, AnyArray]:
    """The arrays of a `.npz` file by their names.

    Raises:
        DataError: the file cannot be read, is not a `.npz` file, has objects that would have to be unpickled, or takes
            more memory than the budget.
    """
    try:
        with open_regular(path, _MOST) as content:
            size = os.fstat(content.fileno()).st_size
            file = np.load(content, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError(
                    "it holds a single array without a name; save all arrays by name with np.savez, for example "
                    "np.savez(path, inputs=x, targets=y)"
                )
            with file:
                # A few compressed bytes can mean many gigabytes. No more is unpacked than the sizes in the archive.
                assert file.zip is not None
                members = _members(file.zip)
                budget.check_memory(_COPIES * sum(entry.file_size for entry in members), size, path)
                for entry in members:
                    # For a member that is not an array, numpy would return all of its bytes.
                    with file.zip.open(entry) as member:
                        if member.read(len(_MAGIC)) != _MAGIC:
                            raise ValueError(f"{shown(entry.filename)} in it is not an array")
                # numpy warns about sizes beyond a float before it refuses them, and about files that Python 2 wrote.
                with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                    arrays: dict[str, AnyArray] = {name: file[name] for name in file.files}
                if len(arrays) < len(file.files):
                    twice = next(name for name in file.files if file.files.count(name) > 1)
                    raise DataError(f"{path} has the array {shown(twice)} twice; leave one of them out")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except StsbpError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # A forged header can make numpy and zipfile raise almost any error. For other kinds of files, numpy advises to
        # unpickle them.
        unlike = "pickled" in str(error)
        reason = (
            "it begins like neither a .npz nor a .npy file" if unlike else str(error).partition(" when allow_pi")[0]
        )
        raise DataError(f"{path} is not a file of numpy arrays (.npz): {reason or type(error).__name__}") from error
    return arrays


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the arrays of a `.npz` file by their names; empty if `read_arrays` cannot read the file."""
    shapes_by_name: dict[str, Shape] = {}
    try:
        with open_regular(path, _MOST) as content, zipfile.ZipFile(content) as file:
            for entry in _members(file):
                with file.open(entry) as member, warnings.catch_warnings(action="ignore"):
                    read_header = _HEADERS[np.lib.format.read_magic(member)]
                    shapes_by_name[entry.filename.removesuffix(".npy")] = read_header(member)[0]
    except Exception:
        # A forged file can raise almost any error. The error of `read_arrays` is shown instead.
        return {}
    return shapes_by_name


def class_labels(arrays: Mapping[str, AnyArray], path: Path) -> tuple[Int64, tuple[str, ...]]:
    """The class of each sample, `[n]`, and the names of the classes: those in `classes`, else their numbers.

    Raises:
        DataError: `labels` or `classes` are invalid. The message names the file and the array.
    """
    labels, names = arrays["labels"], arrays.get("classes")
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        raise DataError(f"{path}: labels must be integers [n], got {labels.dtype} {list(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < MOST_CLASSES:
        raise DataError(f"{path}: labels must be 0 to {MOST_CLASSES - 1}, got {low} to {high}")
    if names is None:
        return labels.astype(np.int64), tuple(map(str, range(high + 1)))
    wrong = f"{path}: classes must be at least {high + 1} different texts [k], got {names.dtype} {list(names.shape)}"
    if names.dtype.kind != "U" or names.ndim != 1 or not high < len(names) <= MOST_CLASSES:
        raise DataError(wrong)
    try:
        texts = tuple(map(str, names))
    except (SystemError, ValueError) as error:
        raise DataError(f"{path}: classes has a text with a character that is not in Unicode") from error
    if len({*texts}) < len(texts):
        raise DataError(wrong)
    return labels.astype(np.int64), texts


def split_train_test(
    samples: Split, arrays: Mapping[str, AnyArray], path: Path, request: Request
) -> tuple[Split, Split, str]:
    """Training samples, test samples, and a note. They follow `split`; without it, a fifth is held out.

    Raises:
        DataError: `split` is invalid, or leaves nothing for training or for the test; or there are too many samples
            for the budget.
    """
    parts, n = arrays.get("split"), len(samples)
    budget.check_memory(_PER_SAMPLE * n, path.stat().st_size, f"{path}, {n:,} samples")
    if parts is not None and (parts.shape != (n,) or parts.dtype.kind not in "iub" or {*np.unique(parts)} - {0, 1}):
        remedy = "; convert it with split.astype(np.uint8)" if parts.dtype.kind == "f" else ""
        raise DataError(f"{path}: split must be {n} values 0 and 1, got {parts.dtype} {list(parts.shape)}{remedy}")
    adjective = ""
    if parts is not None:
        train, test = (Subset(samples, np.flatnonzero(parts == part)) for part in (0, 1))
        if request.only_test and len(test):
            return test, test, f"{len(test)} test samples of {path}"
        if not len(train):
            raise DataError(f"{path}: split has no training samples: mark them with 0")
        if request.wants_own_test and not request.only_test:
            if not len(test):
                raise DataError(f"{path}: split has no test samples: mark them with 1, or give a holdout")
            return train, test, f"{len(train)} training and {len(test)} test samples of {path}"
        samples, adjective = train, "training "
    train, test = cut_test(samples, max(1, round(_TEST_SHARE * len(samples))), request)
    held_out_note = request.told_of_test(f", {len(test)} of them held out as test samples (split seed {request.seed})")
    return train, test, f"{len(samples)} {adjective}samples of {path}{held_out_note}"
