"""Settings for each data set: what `stsbp train DATASET` takes where neither a file nor a flag says otherwise.

One column a data set, one row a setting; `None` keeps the default of `stsbp.config.RunConfig`. A setting that depends
on the loss is a pair: for the Hamming distance, and for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

__all__ = ["ByLoss", "preset"]

Value: TypeAlias = str | int | float


class ByLoss(NamedTuple):
    """A setting for the Hamming distance, and for the other losses."""

    hamming: Value
    others: Value


_DATASETS = ("digits", "digits-events", "nmnist", "cifar10", "images")
_DEEP = "32C3-64C3-P2-128C3-P2-128C3-256"
# fmt: off
_TABLE: dict[str, tuple[Value | ByLoss | None, ...]] = {
    #                 digits               digits-events        nmnist               cifar10   images
    "net":           ("32C3-P2-64C3-128",  "12C5-P2-32C5-P2",   "12C5-P2-64C5-P2",   _DEEP,    "32C3-P2-64C3-P2-128"),
    "padding":       ("same",              None,                None,                "same",   "same"),
    "steps":         (8,                   20,                  25,                  5,        8),
    "epochs":        (15,                  10,                  10,                  30,       20),
    "batch_size":    (50,                  10,                  10,                  50,       50),
    "lr":            (2e-3,                5e-3,                5e-3,                1e-3,     1e-3),
    "tau_m":         (5.0,                 5.0,                 5.0,                 5.0,      5.0),
    "tau_s":         (3.0,                 3.0,                 3.0,                 3.0,      3.0),
    "surrogate":     (None,                "fast-sigmoid:beta=3", "fast-sigmoid:beta=3", None, None),
    "init_gain":     (None,                1.0,                 1.0,                 None,     None),
    "label_pattern": (None,                ByLoss("1", "01"),   ByLoss("1", "01"),   None,     None),
    "augment_shift": (None,                1,                   1,                   2,        None),
    "augment_flip":  (None,                None,                None,                True,     None),
}
# fmt: on


_PATTERNS: dict[str, Value | ByLoss] = {
    "net": "200",
    "steps": 50,
    "epochs": 10,
    "batch_size": 4,
    "lr": 5e-3,
    "tau_m": 5.0,
    "tau_s": 2.0,
    "test_every": 5,
}
_SEQUENCES: dict[str, dict[str, Value | ByLoss]] = {
    "patterns": _PATTERNS,
    "patterns-image": _PATTERNS,
    "motor": {**_PATTERNS, "net": "400", "steps": 60, "epochs": 40, "batch_size": 10, "test_every": 10},
    "sequences": {**_PATTERNS, "epochs": 40, "batch_size": 20},
}
"""Data sets whose labels are spike trains."""


def preset(dataset: str, loss: str) -> Mapping[str, Value]:
    """Settings for a data set and a loss, an unknown name none.

    `folder:PATH` takes those of `images`, `sequences:PATH` those of `sequences`.
    """
    name = {"folder": "images"}.get(dataset.partition(":")[0], dataset.partition(":")[0])
    chosen: Mapping[str, Value | ByLoss | None]
    if name in _SEQUENCES:
        chosen = _SEQUENCES[name]
    elif name in _DATASETS:
        column = _DATASETS.index(name)
        chosen = {key: row[column] for key, row in _TABLE.items()}
    else:
        return {}
    by_loss = {
        k: (v.hamming if loss == "hamming" else v.others) if isinstance(v, ByLoss) else v for k, v in chosen.items()
    }
    return {key: value for key, value in by_loss.items() if value is not None}
