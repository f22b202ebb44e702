"""The records of a run as TensorBoard reads them.

The event file is made from `metrics.jsonl`: whoever begins or resumes a run writes all records so far into a new file
and removes the old ones, so that a curve has every update once, however often the run was stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stsbp.errors import ConfigError, FileError

__all__ = ["TensorBoard", "require", "scalars"]

_NOT_SHOWN = ("kind", "step", "split", "samples", "grids")


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of one line of `metrics.jsonl`: `train/loss`, `test/accuracy`, `train/rates/conv1`, ..."""
    # The lines of updates and of epochs are of the same figures; epochs are means over more samples.
    group = {"step": "train", "epoch": "epoch"}.get(record["kind"], record.get("split", record["kind"]))
    for name, value in record.items():
        if name in _NOT_SHOWN or (name == "epoch" and record["kind"] != "step"):
            continue
        for tag, number in value.items() if isinstance(value, dict) else (("", value),):
            if isinstance(number, int | float):
                yield "/".join(part for part in (group, name, tag) if part), float(number)


def require() -> Any:
    """TensorBoard's writer.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise ConfigError(
            f'--tensorboard needs the library tensorboard ({error}): pip install "stsbp[tensorboard]"'
        ) from error
    return Writer


class TensorBoard:
    """Writes records into an event file in the folder of a run.

    Args:
        run: folder of the run.
        records: what it has recorded so far.

    Raises:
        ConfigError: tensorboard is not installed.
        FileError: the folder cannot be written.
    """

    def __init__(self, run: Path, records: list[dict[str, Any]]) -> None:
        writer = require()
        try:
            for old in run.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = writer(str(run))
        except OSError as error:
            raise FileError(f"cannot write {run}: {error.strerror or error}") from error
        for record in records:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of `metrics.jsonl`."""
        for tag, value in scalars(record):
            self._writer.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        """Bring everything to the disk."""
        # What TensorBoard draws is in metrics.jsonl as well.
        with contextlib.suppress(OSError):
            self._writer.close()
