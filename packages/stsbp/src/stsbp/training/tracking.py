"""What trackers receive: the settings and the records of a run. A tracker shows them in another program.

A tracker gets neither the environment of the run nor absolute paths. Everything that it is told is made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stsbp.config import FREE, HUB, MODEL, PATHS, RunConfig, is_named, split_start
from stsbp.datasets.registry import named_path

__all__ = ["OpenTracker", "TrackedRun", "Tracker", "point_of", "scalars", "tracked_settings"]

_NOT_SHOWN = ("kind", "step", "number", "split", "samples", "grids", "tolerance", "measures")


class Tracker(Protocol):
    """Shows the records of a run in another program."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record: a line of `metrics.jsonl`, whose fields docs/cli.md describes."""

    def close(self, *, finished: bool) -> None:
        """End. `finished`: whether nothing is left to train; otherwise the run may be resumed later."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when a run begins or is resumed.

    Attributes:
        identity: 16 hexadecimal digits, which stay the same when the run is resumed, moved or copied.
        name: name of the run's folder, without the path.
        settings: the settings that affect the result, without absolute paths.
        records: the records so far, in order: the lines of `metrics.jsonl`. Those after the last checkpoint are left
            out, because the resumed run writes them again.
    """

    identity: str
    name: str
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


_OF_HUB = re.compile(r"hub:[^/]+/[^/@]+@[0-9a-f]{40}")
OpenTracker = Callable[[TrackedRun], Tracker]
"""Begins or continues to track a run."""


def tracked_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that affect the result, and `patience`. Of paths, only the last part is kept."""
    values = config.model_dump(exclude=set(FREE - {"patience"}))
    return {key: _without_path(key, value) if key in PATHS else value for key, value in values.items()}


def _without_path(key: str, value: str) -> str:
    if key == "init_from" and is_named(value):
        # Of `hub:FOLDER`, the folder may be a path of this machine.
        is_public = value.startswith(MODEL) or _OF_HUB.fullmatch(value)
        return value if is_public else HUB + Path(value.removeprefix(HUB)).name
    if key == "init_from" and value:
        path, name = split_start(value)
        return f"{path.name}:{name}"
    named = named_path(value)
    return value if named is None else named[0] + Path(named[1]).name


def point_of(record: Mapping[str, Any]) -> int:
    """Place of a record on the axis of a curve: the number of updates, or of the record in another program's loop."""
    return int(record["number"] if record["kind"] == "history" else record["step"])


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of one line of `metrics.jsonl`: `train/loss`, `test/accuracy`, `train/rates/conv1`, ..."""
    # Lines of updates and of epochs have the same measures. Those of epochs are means over more samples.
    group = {"step": "train", "epoch": "epoch"}.get(record["kind"], record.get("split", record["kind"]))
    for name, value in record.items():
        if name in _NOT_SHOWN or (name == "epoch" and record["kind"] != "step"):
            continue
        for tag, number in value.items() if isinstance(value, dict) else (("", value),):
            if isinstance(number, int | float):
                yield "/".join(part for part in (group, name, tag) if part), float(number)
