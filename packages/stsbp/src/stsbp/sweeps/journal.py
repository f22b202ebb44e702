"""The journal of a study: a file with one record a line, which several machines may share.

Optuna locks it with a symbolic link beside it, which a process that is killed leaves behind. The link leads to the name
of the journal in its own folder, so it leads there from every machine, also if the folder is mounted at another place.
A record that a crash or a full disk has cut is moved to another file before the next one is written, because both would
be one line that nobody can read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from stsbp.errors import FileError
from stsbp.files import has_file, writing

__all__ = ["Journal", "check_file", "open_journal"]

_CREATES_STUDY = 0
"""The code of the record that makes a study, the first one of every journal."""
_LONGEST_FIRST = 2**20
"""Largest number of bytes of the first record."""
_BLOCK = 2**16
"""Number of bytes that are read at a time, to find the end of the last whole record."""
_AT_REST = 0.5
"""Time in seconds after which a record that is incomplete is no longer being written."""
_LOCK_WAIT = 2.0
"""Time in seconds after which a lock is taken for one of a process that was killed. Records are written faster."""


class _Lock(JournalFileSymlinkLock):
    """The lock of a journal. It tells why it waits, and does not wait for a lock whose age it cannot know.

    Args:
        journal: absolute path of the journal.
        warn: function that is told what a long wait is for.
    """

    def __init__(self, journal: Path, warn: Callable[[str], object]) -> None:
        super().__init__(str(journal))
        self._lock_target_file = journal.name
        self._path, self._journal, self._warn = Path(f"{journal}.lock"), journal, warn

    def acquire(self) -> bool:
        """Take the lock.

        Raises:
            FileError: there is a lock that leads to no file. Optuna would wait for it for ever.
        """
        began = time.monotonic()
        while os.path.lexists(self._path):
            if time.monotonic() - began > _LOCK_WAIT:
                self._tell()
                break
            time.sleep(0.01)
        return super().acquire()

    def _tell(self) -> None:
        remedy = f"if no other sweep uses {self._journal}, remove {self._path}"
        if os.path.lexists(self._path) and not os.path.exists(self._path):
            raise FileError(
                f"{self._path}, the lock of another process, is a link to {os.readlink(self._path)}, which is not "
                f"there; {remedy}, and repeat the command"
            )
        grace = getattr(self, "grace_period", None)
        until = "" if grace is None else f" for up to {grace} seconds"
        self._warn(f"waiting{until} for the lock {self._path}, which a sweep that was killed may have left; {remedy}")


class Journal(JournalStorage):
    """A journal as a storage of Optuna.

    Args:
        path: absolute path of the file.
        warn: function that is told what a long wait for its lock is for.
    """

    def __init__(self, path: Path, warn: Callable[[str], object]) -> None:
        self.path, self.lock = path, _Lock(path, warn)
        super().__init__(JournalFileBackend(str(path), lock_obj=self.lock))


def check_file(path: Path) -> bool:
    """Whether there is a file for a storage.

    Raises:
        FileError: it is something else, for example a pipe or a device, from which reading never ends.
    """
    try:
        return has_file(path)
    except OSError as error:
        raise FileError(
            f"the storage {path} cannot be used: {error.strerror or error}; name another file with --storage"
        ) from error


def open_journal(name: str, warn: Callable[[str], object], *, make: bool) -> Journal:
    """Open a journal, and begin it if there is none.

    Args:
        name: path of the file.
        warn: function that receives warnings.
        make: whether records will be written. A record that was cut is then moved to `NAME.cut`.

    Raises:
        FileError: there is no such journal and `make` is false; or the file is another one; or it cannot be written.
    """
    path = Path(os.path.abspath(name))
    if not check_file(path):
        if not make:
            raise FileError(f"there is no journal {name}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    else:
        _check_first(path)
    journal = Journal(path, warn)
    if _cut_bytes(path):
        time.sleep(_AT_REST)
        if make:
            _move_cut(journal, warn)
        elif length := len(_cut_bytes(path)):
            warn(f"the last record of {path} was cut, as by a crash or a full disk, and is left out ({length:,} bytes)")
    return journal


def _check_first(path: Path) -> None:
    """Raise `FileError` unless a file is empty or begins as a journal does. Nothing is ever appended to another one."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST_FIRST)
    if not line:
        return
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("op_code") != _CREATES_STUDY:
        raise FileError(
            f"{path} is damaged, or is not a journal of stsbp sweep: its first line is not the record that makes a "
            "study; name another file with --storage, or put the journal back from a copy"
        )


def _cut_bytes(path: Path) -> bytes:
    """What follows the last line of a file that is a whole record: nothing, unless a record was cut."""
    with path.open("rb") as file:
        start = end = file.seek(0, os.SEEK_END)
        tail = b""
        # The last line, with the end of the one before.
        while start and b"\n" not in tail[:-1]:
            start = max(0, start - _BLOCK)
            file.seek(start)
            tail = file.read(end - start)
    last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
    if not last.endswith(b"\n"):
        return last
    try:
        json.loads(last)
    except json.JSONDecodeError:
        # Optuna leaves such a last line out, like one that is still being written.
        return last
    except (ValueError, RecursionError):
        return b""
    return b""


def _move_cut(journal: Journal, warn: Callable[[str], object]) -> None:
    """Move a record that was cut to another file. Nobody writes meanwhile, because the journal is locked."""
    path, kept = journal.path, Path(f"{journal.path}.cut")
    journal.lock.acquire()
    try:
        if not (cut := _cut_bytes(path)):
            return
        with writing(kept), kept.open("ab") as file:
            file.write(cut.rstrip(b"\n") + b"\n")
            os.fsync(file.fileno())
        with writing(path), path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(cut))
            os.fsync(file.fileno())
    finally:
        journal.lock.release()
    warn(
        f"the last record of {path} was cut, as by a crash or a full disk; its {len(cut):,} bytes were moved to {kept}"
    )
