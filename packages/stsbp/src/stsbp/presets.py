"""Settings for each data set: what `stsbp train DATASET` takes where neither a file nor a flag says otherwise.

One column a data set, one row a setting; `None` keeps the default of `stsbp.config.RunConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

__all__ = ["PRESETS", "preset"]

Value: TypeAlias = str | int | float

_DATASETS = ("digits", "digits-events", "nmnist", "cifar10", "images")
_DEEP = "32C3-64C3-P2-128C3-P2-128C3-256"
# fmt: off
_TABLE: dict[str, tuple[Value | None, ...]] = {
    #              digits               digits-events      nmnist             cifar10  images
    "net":        ("32C3-P2-64C3-128",  "12C5-P2-32C5-P2", "12C5-P2-64C5-P2", _DEEP,   "32C3-P2-64C3-P2-128"),
    "padding":    ("same",              None,              None,              "same",  "same"),
    "steps":      (8,                   20,                25,                5,       8),
    "epochs":     (15,                  10,                10,                30,      20),
    "batch_size": (50,                  50,                50,                50,      50),
    "lr":         (2e-3,                2e-3,              2e-3,              1e-3,    1e-3),
    "tau_m":      (5.0,                 8.0,               8.0,               5.0,     5.0),
    "tau_s":      (3.0,                 4.0,               4.0,               3.0,     3.0),
}
# fmt: on

PRESETS: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        dataset: MappingProxyType({key: value for key, row in _TABLE.items() if (value := row[column]) is not None})
        for column, dataset in enumerate(_DATASETS)
    }
)
"""Settings of each data set that differ from the defaults."""


def preset(dataset: str) -> Mapping[str, Value]:
    """Settings for a data set; `folder:PATH` takes those of `images`, an unknown name none."""
    return PRESETS.get("images" if dataset.startswith("folder:") else dataset, {})
