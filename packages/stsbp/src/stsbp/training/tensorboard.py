"""The records of a run in the format of TensorBoard.

The event file is made from `metrics.jsonl`. When a run begins or is resumed, all records so far are written to a new
file, and older files are removed. A curve then has every update once, however often the run was stopped.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stsbp.errors import ConfigError, FileError
from stsbp.files import OpenFolder
from stsbp.training.tracking import point_of, scalars

__all__ = ["EVENT_FILE", "TensorBoard", "require"]

EVENT_FILE = r"events\.out\.tfevents\.[0-9]{10,}\..+\.[0-9]+\.0"
"""The name of an event file, as a regular expression."""


class _TensorBoardParts(NamedTuple):
    """The used parts of tensorboard: its writer of records, its events, and the components of a scalar."""

    writer: Any
    event: Any
    metadata: Any
    tensor: Any


def require() -> _TensorBoardParts:
    """Import the used parts of tensorboard.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from tensorboard.util.tensor_util import make_tensor_proto
    except ImportError as error:
        raise ConfigError(
            f'--track tensorboard needs the library tensorboard ({error}): pip install "stsbp[tensorboard]"'
        ) from error
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DataClass.DATA_CLASS_SCALAR)
    return _TensorBoardParts(RecordWriter, Event, metadata, make_tensor_proto)


class TensorBoard:
    """Writes records into an event file in the folder of a run.

    TensorBoard's own `Writer` makes its folder again if it was removed, so the file is opened here instead.

    Args:
        folder: folder of the run, which is checked before each record.
        records: the records so far.

    Raises:
        ConfigError: tensorboard is not installed.
        FileError: the folder cannot be written.
    """

    def __init__(self, folder: OpenFolder, records: Sequence[Mapping[str, Any]]) -> None:
        self._library = require()
        self._folder = folder
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.0"
        try:
            for old in folder.names():
                if re.fullmatch(EVENT_FILE, old):
                    folder.remove(old)
            file = io.BufferedWriter(folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            self._writer = self._library.writer(file)
            self._add(self._library.event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError as error:
            raise FileError(f"cannot write {folder.path}: {error.strerror or error}") from error
        for record in records:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of `metrics.jsonl`."""
        self._folder.check()
        event = self._library.event(wall_time=time.time(), step=point_of(record))
        for tag, value in scalars(record):
            tensor = self._library.tensor(np.float32(value))
            event.summary.value.add(tag=tag, tensor=tensor, metadata=self._library.metadata)
        # An error is ignored, because metrics.jsonl contains everything that TensorBoard shows.
        with contextlib.suppress(OSError):
            self._add(event)

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self, *, finished: bool = True) -> None:
        """Write everything to the disk, whether or not the run is finished."""
        with contextlib.suppress(OSError):
            self._writer.close()
