"""Reading files that others may have put there, and writing files so that a reader never sees half of one.

Only regular files are read, up to a size: a pipe would hang the program, a device fill its memory. Bytes are written to
a temporary file in the same folder, flushed to the disk and renamed over the target: after a crash or a full disk the
old file, or none, is there. The temporary file is locked while it is written; one that nobody locks was left by a
process that was killed, and goes when its target is written again (in the program's own folders: when any file is).
What the command line is told to write (`--out FILE`) replaces only files of the same kind.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from stsbp.errors import FileError

__all__ = [
    "GIGABYTE",
    "LOCK",
    "MEGABYTE",
    "OpenFolder",
    "OutputKind",
    "atomic_writer",
    "open_regular",
    "read_regular",
    "real",
    "write_atomically",
]

MEGABYTE, GIGABYTE = 2**20, 2**30
"""Bytes; sizes up to which files are read are given in them."""

LOCK = ".lock"
"""The file of a run's folder that the process that trains has locked."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_HAS_DESCRIPTORS = {os.open, os.mkdir, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
"""Whether a folder can be held open and files be named relative to it (not on Windows, where an open lock file keeps
the folder from being removed or renamed)."""


def real(path: Path) -> Path:
    """The path with all links followed; unlike `Path.resolve` also where links lead in a circle."""
    return Path(os.path.realpath(path))


def _hold(descriptor: int, *, wait: bool) -> int | None:
    """Lock a file that is being written, until the descriptor that is returned is closed.

    None where another process has locked it and is not waited for, and where files cannot be locked: on Windows, and on
    some network file systems.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    held = os.dup(descriptor)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(held)
        return None
    return held


def _unwritable(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write {path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}")


def _irregular(status: os.stat_result) -> OSError | None:
    """The error of a file that is no regular one."""
    if stat.S_ISREG(status.st_mode):
        return None
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    return OSError(number, f"it is {kind}, not a regular file")


def open_regular(path: Path, most: int) -> BinaryIO:
    """Open a file for reading that is a regular one (or a link to one) of at most `most` bytes; never waits for it.

    Raises:
        OSError: it is something else, or larger, or cannot be opened; `strerror` says why.
    """
    try:
        # Before it is opened: opening a device may do something.
        status = os.stat(path)
        if (problem := _irregular(status)) is None:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS | _NONBLOCK)
            # Again: it may have been replaced meanwhile.
            status = os.fstat(descriptor)
            problem = _irregular(status)
            if problem is None and status.st_size > most:
                text = f"it has {status.st_size:,} bytes, more than the {most:,} that such a file may have"
                problem = OSError(errno.EFBIG, text)
            if problem is None:
                return open(descriptor, "rb")
            os.close(descriptor)
    except ValueError as error:
        # A zero byte in the name.
        problem = OSError(errno.EINVAL, str(error))
    problem.filename = str(path)
    raise problem


def read_regular(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes.

    Raises:
        OSError: it is something else, or larger, or cannot be read; `strerror` says why.
    """
    with open_regular(path, most) as file:
        # Memory for what is asked for is taken at once: no more than there is.
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EFBIG, "it grew while it was read", str(path))
    return content


class OpenFolder:
    """A folder that is held open: what is written goes into it, also when another one has taken its place.

    Args:
        path: of a folder that is there.
        within: folder that `path` is directly in.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, within: OpenFolder | None = None) -> None:
        self.path = path
        self._at: dict[str, int] = {}
        if _HAS_DESCRIPTORS:
            flags = os.O_RDONLY | os.O_DIRECTORY | _FLAGS
            where, name = ({}, str(path)) if within is None else (within._at, path.name)
            self._at = {"dir_fd": os.open(name, flags, **where)}

    @property
    def descriptor(self) -> int | None:
        """Of the folder; None where the system has none."""
        return self._at.get("dir_fd")

    def check(self) -> None:
        """Called before every change; an heir may raise `FileError`."""

    def _name(self, name: str) -> str:
        return name if self._at else str(self.path / name)

    def open(self, name: str, flags: int) -> FileIO:
        """Open a regular file of the folder, unbuffered, with the flags of `os.open`.

        Raises:
            OSError: the system refused, or it is no regular file.
        """
        descriptor = os.open(self._name(name), flags | _FLAGS | _NONBLOCK, 0o666, **self._at)
        if (problem := _irregular(os.fstat(descriptor))) is not None:
            os.close(descriptor)
            raise problem
        return FileIO(descriptor, "r+" if flags & os.O_RDWR else "w" if flags & os.O_WRONLY else "r")

    def read(self, name: str, most: int) -> bytes:
        """Content of a regular file of the folder, up to `most` bytes.

        Raises:
            OSError: the system refused, or it is no regular file.
        """
        with self.open(name, os.O_RDONLY) as file, io.BufferedReader(file) as whole:
            # Memory for what is asked for is taken at once: no more than there is.
            return whole.read(min(most, os.fstat(file.fileno()).st_size))

    def names(self) -> list[str]:
        """What is in the folder, in order; nothing where it was removed."""
        return sorted(os.listdir(self.path if self.descriptor is None else self.descriptor))

    def remove(self, name: str) -> None:
        """Remove a file of the folder."""
        self.check()
        os.unlink(self._name(name), **self._at)

    def make_folder(self, name: str) -> None:
        """Make a folder in the folder, where there is none of that name."""
        self.check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._name(name), **self._at)

    @contextlib.contextmanager
    def writer(self, name: str, *, own: bool = False) -> Iterator[BinaryIO]:
        """A binary file that replaces `name` when the block ends, and vanishes when it raises.

        Args:
            name: of the file.
            own: nobody but this program keeps files in the folder, so that whatever killed processes left goes.

        Raises:
            FileError: the system refused; names the path and the reason.
        """
        temporary, held = "", None
        try:
            self.check()
            self._sweep(re.compile(rf"\.{'.*' if own else re.escape(name)}\.[0-9a-f]{{12}}\.tmp", re.DOTALL))
            # O_EXCL fails where the name exists; the permissions are those of any new file.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
            while True:
                temporary = f".{name}.{secrets.token_hex(6)}.tmp"
                file = open(os.open(self._name(temporary), flags, 0o666, **self._at), "wb")  # noqa: SIM115
                if (held := _hold(file.fileno(), wait=True)) is None or os.fstat(held).st_nlink:
                    break
                # Another process swept it away before it was locked.
                file.close()
                os.close(held)
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # Writing takes time.
            self.check()
            both = {"src_dir_fd": self.descriptor, "dst_dir_fd": self.descriptor} if self._at else {}
            os.replace(self._name(temporary), self._name(name), **both)
            temporary = ""
            self.sync()
        except OSError as error:
            raise _unwritable(self.path / name, error) from error
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._name(temporary), **self._at)
            if held is not None:
                os.close(held)

    def _sweep(self, leftover: re.Pattern[str]) -> None:
        """Remove temporary files that no process writes any more; one that cannot be removed costs space only."""
        with contextlib.suppress(OSError):
            for name in filter(leftover.fullmatch, self.names()):
                if sys.platform == "win32":
                    # Windows removes no file that is open.
                    with contextlib.suppress(OSError):
                        os.unlink(self._name(name))
                    continue
                with contextlib.suppress(OSError), self.open(name, os.O_RDONLY) as file:
                    if (held := _hold(file.fileno(), wait=False)) is not None:
                        try:
                            os.unlink(self._name(name), **self._at)
                        finally:
                            os.close(held)

    def write(self, name: str, data: bytes) -> None:
        """Replace the content of the file `name` by `data`, all or nothing.

        Raises:
            FileError: the system refused; names the path and the reason.
        """
        with self.writer(name) as file:
            file.write(data)

    def sync(self) -> None:
        """Make renames in the folder durable, where the system can."""
        if self.descriptor is not None:
            # Some network file systems refuse to sync a folder; the rename is atomic there all the same.
            with contextlib.suppress(OSError):
                os.fsync(self.descriptor)

    def close(self) -> None:
        """Let go of the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self._at = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def atomic_writer(path: Path, *, own: bool = False) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and vanishes when it raises.

    Missing parent folders are made. With `own`, nobody but this program keeps files in the folder.

    Raises:
        FileError: the system refused; names the path and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = OpenFolder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    with folder, folder.writer(path.name, own=own) as file:
        yield file


def write_atomically(path: Path, data: bytes, *, own: bool = False) -> None:
    """Replace the content of `path` by `data`, all or nothing; `own` as in `atomic_writer`.

    Raises:
        FileError: the system refused; names the path and the reason.
    """
    with atomic_writer(path, own=own) as file:
        file.write(data)


@dataclass(frozen=True)
class OutputKind:
    """A kind of file that a command writes where it is told to, and how such a file begins.

    Attributes:
        name: for messages, for example `a report of stsbp`.
        begins: matches the first bytes (of at most 4,096) of every such file.
    """

    name: str
    begins: re.Pattern[bytes]

    def place(self, path: Path) -> Path:
        """Where the file is to be written: `path`, or what it links to. Asked before the work, and again after it.

        Raises:
            FileError: what is there is neither of this kind nor an empty file, so that it is not replaced.
        """
        try:
            # Through a link: the link stays, what it leads to is judged and replaced.
            place = real(path)
            with open_regular(place, 2**62) as file:
                head = file.read(4096)
        except FileNotFoundError:
            return place
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FileError(f"cannot write {path}: {reason}; choose another name") from error
        # The lock of a run is empty, and would no longer be the one that a process holds.
        if (head and not self.begins.match(head)) or place.name == LOCK:
            raise FileError(
                f"{path} is there already and is not {self.name}: it is not replaced. Choose another name, or remove "
                "it first"
            )
        return place

    def write(self, path: Path, data: bytes) -> None:
        """Write the file, or replace one of the same kind.

        Raises:
            FileError: the system refused, or something else is there.
        """
        write_atomically(self.place(path), data)
