"""Data sets. Each has a name, is split in the same way on every machine, and is decoded once into a checked cache.

This package also contains what a data set of your own needs: see docs/write_a_data_set.md.
"""

from __future__ import annotations

from stsbp.datasets.base import (
    ArraySplit,
    Dataset,
    FrameSplit,
    Request,
    Skipped,
    Split,
    Subset,
    cut_test,
    hold_out,
    select_balanced,
)
from stsbp.datasets.cache import default_cache_dir
from stsbp.datasets.info import ByLoss, DatasetInfo
from stsbp.datasets.registry import DATASETS, load
from stsbp.datasets.sequences import SequenceSplit

__all__ = [
    "DATASETS",
    "ArraySplit",
    "ByLoss",
    "Dataset",
    "DatasetInfo",
    "FrameSplit",
    "Request",
    "SequenceSplit",
    "Skipped",
    "Split",
    "Subset",
    "cut_test",
    "default_cache_dir",
    "hold_out",
    "load",
    "select_balanced",
]
