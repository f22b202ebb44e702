"""Data sets: named, split the same way on every machine, decoded once into a checked cache."""

from __future__ import annotations

from stsbp.datasets.base import Dataset, Skipped, Split, Subset, hold_out, select_balanced
from stsbp.datasets.cache import default_cache_dir
from stsbp.datasets.registry import DATASETS, DatasetInfo, load

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "Skipped",
    "Split",
    "Subset",
    "default_cache_dir",
    "hold_out",
    "load",
    "select_balanced",
]
