"""scikit-learn's 1,797 handwritten digits (8 x 8 pixels, UCI "Optical Recognition of Handwritten Digits").

They are part of scikit-learn, so this data set needs no download. Only the data file is read. The library itself is
slow to import, and is only used if its file is in another place.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from stsbp_spec.typing import AnyArray, Int64, UInt8

from stsbp.datasets.base import ArraySplit, Dataset, Request, cut_test
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError

__all__ = ["CLASSES", "DIGITS", "load", "read_digits"]

CLASSES = tuple("0123456789")
_TEST_SHARE = 0.2


def _table() -> AnyArray:
    """Pixels and label of each digit, `[n, 65]`."""
    module_spec = importlib.util.find_spec("sklearn")
    if module_spec is None:
        raise DataError('the digits come with scikit-learn, which is not installed: pip install "stsbp[digits]"')
    if module_spec.origin is not None:
        path = Path(module_spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt", encoding="ascii") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def read_digits() -> tuple[UInt8, Int64]:
    """Images `[1797, 8, 8]` uint8 (their 17 grey values 0..16 become `min(255, 16 v)`) and labels `[1797]`.

    Raises:
        DataError: scikit-learn is not installed.
    """
    table = _table()
    images = np.minimum(255, table[:, :64] * 16).astype(np.uint8).reshape(-1, 8, 8)
    return images, table[:, 64].astype(np.int64)


def load(request: Request) -> Dataset:
    """Digits with direct coding. A fifth of them is the test set, with equal numbers of each class."""
    images, labels = read_digits()
    samples = ArraySplit(images[..., np.newaxis], labels)
    train, test = cut_test(samples, round(_TEST_SHARE * len(labels)), request)
    cut = request.told_of_test(f", {len(test)} of them held out as test samples (split seed {request.seed})")
    note = f"{len(labels)} digits of scikit-learn{cut}"
    return Dataset("digits", "direct", (1, 8, 8), CLASSES, train, test, (note,))


DIGITS = DatasetInfo(
    name="digits",
    description="1,797 handwritten digits of scikit-learn, 8 x 8, no download",
    coding="direct",
    load=load,
    defaults={
        "net": "32C3-P2-64C3-128",
        "padding": "same",
        "steps": 8,
        "epochs": 15,
        "batch_size": 50,
        "lr": 2e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
    },
    needs_data_dir=False,
    extra="digits",
)
"""The data set of `stsbp train digits`, with its default settings."""
