"""Real N-MNIST recordings for the checks, if they are available.

`STSBP_DATA` names a folder with `NMNIST/Train/<class>/<id>.bin` (the published layout), or with the archive
`nmnist-1k.tar.xz` of the same files. Without the variable, `../shared/data` beside the current repository is tried.
"""

from __future__ import annotations

import os
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from stsbp_spec.models.encoders import bin_events
from stsbp_spec.typing import UInt8

from stsbp_conformance.check import Unavailable

__all__ = ["nmnist_frames"]

_ARCHIVE = "nmnist-1k.tar.xz"


def _folder() -> Path:
    variable = os.environ.get("STSBP_DATA")
    if variable:
        return Path(variable)
    current = Path.cwd()
    for parent in (current, *current.parents):
        if (parent / ".git").exists():
            return parent.parent / "shared" / "data"
    return current / "data"


@cache
def _recordings(count: int) -> tuple[bytes, ...]:
    folder = _folder()
    unpacked = folder / "NMNIST" / "Train"
    if unpacked.is_dir():
        files = sorted(unpacked.glob("*/*.bin"), key=lambda path: path.name)[:count]
        recordings = [path.read_bytes() for path in files]
    elif (folder / _ARCHIVE).is_file():
        recordings = []
        with tarfile.open(folder / _ARCHIVE) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".bin") else None
                if stream is not None:
                    recordings.append(stream.read())
                if len(recordings) == count:
                    break
    else:
        recordings = []
    if len(recordings) < count:
        raise Unavailable("no N-MNIST recordings; STSBP_DATA must name a folder with NMNIST/Train or nmnist-1k.tar.xz")
    return tuple(recordings)


def nmnist_frames(count: int, steps: int) -> UInt8:
    """Frames of the first `count` recordings, `[T, B, 2, 34, 34]`.

    Raises:
        Unavailable: there are no recordings.
    """
    frames = []
    for recording in _recordings(count):
        raw = np.frombuffer(recording, np.uint8).reshape(-1, 5).astype(np.int64)
        time = ((raw[:, 2] & 127) << 16) | (raw[:, 3] << 8) | raw[:, 4]
        frames.append(bin_events(raw[:, 0], raw[:, 1], raw[:, 2] >> 7, time, steps=steps))
    return np.stack(frames, axis=1)
