"""Reading files that others may have put there, and writing files so that readers never see an incomplete one.

Only regular files up to a given size are read. A pipe would block the program, and a device could fill its memory. Data
are written to a temporary file in the same folder, flushed to the disk, and renamed over the target. After a crash or a
full disk, there is either the old file or none. The temporary file is locked while it is written. An unlocked temporary
file is left from a process that was killed. It is removed when its target is written again; in the program's own
folders, when any file is written. Outputs that the command line names (`--out FILE`) replace only files of the same
kind.
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
from typing import Any, BinaryIO, Self

from stsbp.errors import FileError

__all__ = [
    "GIGABYTE",
    "LOCK",
    "MEGABYTE",
    "TEMPORARY",
    "OpenFolder",
    "OutputKind",
    "as_argument",
    "atomic_writer",
    "check_regular",
    "has_file",
    "has_folder",
    "locked_folder",
    "open_regular",
    "read_regular",
    "real",
    "write_atomically",
    "writing",
]

MEGABYTE, GIGABYTE = 2**20, 2**30
"""Numbers of bytes. Size limits of files are given in them."""

LOCK = ".lock"
"""The lock file in a run's folder. The process that trains holds its lock."""

TEMPORARY = r"\.[0-9a-f]{12}\.tmp"
"""How the name of a temporary file, which begins with a dot, goes on after the name of its target, as a regular
expression."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
}
_FILE_TYPES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_HAS_DESCRIPTORS = {os.open, os.mkdir, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
"""Whether a folder can be kept open, and files can be named relative to it. This is not possible on Windows; there, an
open lock file prevents that the folder is removed or renamed."""


def real(path: Path) -> Path:
    """The path with all links followed. Unlike `Path.resolve`, it accepts circular links."""
    return Path(os.path.realpath(path))


def as_argument(path: Path) -> str:
    """The path as an argument of a command, which no command takes for an option."""
    text = str(path)
    return os.path.join(os.curdir, text) if text.startswith("-") else text


def _lock(descriptor: int, *, wait: bool) -> int | None:
    """Lock a file that is being written, until the returned descriptor is closed.

    None if another process has locked the file and `wait` is false, or if files cannot be locked (on Windows and on
    some network file systems).
    """
    if sys.platform == "win32":
        return None
    import fcntl

    lock_fd = os.dup(descriptor)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock_fd)
        return None
    return lock_fd


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and hold its lock while files that belong together are written into it.

    Another process that writes such files waits. File systems without locks let both write.

    Raises:
        FileError: the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not _HAS_DESCRIPTORS:
        yield
        return
    with OpenFolder(folder) as opened:
        assert opened.descriptor is not None
        lock = _lock(opened.descriptor, wait=True)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)


def _unwritable(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write {path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let errors of the system name the path that is written."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


class _Target(FileIO):
    """A new file that will replace `path`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "w")
        self._path = path

    def write(self, data: Any) -> int:
        with writing(self._path):
            return super().write(data)


def _irregular(status: os.stat_result) -> OSError | None:
    """The error for a file that is not a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    file_type = _FILE_TYPES.get(stat.S_IFMT(status.st_mode), "something else")
    number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    return OSError(number, f"it is {file_type}, not a regular file")


def check_regular(path: Path) -> None:
    """Check that a library may open a file by its name. It must be a regular file, a folder, or missing.

    Raises:
        OSError: it is something else, for example a pipe, on which the library could wait for ever.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode) and (problem := _irregular(status)) is not None:
            problem.filename = str(path)
            raise problem


def has_file(path: Path) -> bool:
    """Whether there is a regular file, or a link to one. False only if nothing has that name.

    Raises:
        OSError: it is something else, for example a pipe, or a link to nothing or to itself.
    """
    if (status := _status(path)) is None:
        return False
    if (problem := _irregular(status)) is not None:
        problem.filename = str(path)
        raise problem
    return True


def has_folder(path: Path) -> bool:
    """Whether there is a folder, or a link to one. False only if nothing has that name.

    Raises:
        OSError: it is something else, for example a file, or a link to nothing or to itself.
    """
    if (status := _status(path)) is None:
        return False
    if not stat.S_ISDIR(status.st_mode):
        is_file = stat.S_ISREG(status.st_mode)
        file_type = "a file" if is_file else _FILE_TYPES.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.ENOTDIR, f"it is {file_type}, not a folder", str(path))
    return True


def _status(path: Path) -> os.stat_result | None:
    """Status of what has the name, following links; None: nothing has it. Raises `OSError` for a link to nothing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # A name with a zero byte is a ValueError.
        return None
    try:
        return os.stat(path)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "it is a link to nothing", str(path)) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link that leads back to itself", str(path)) from error


def open_regular(path: Path, max_bytes: int) -> BinaryIO:
    """Open a file for reading. It must be a regular file, or a link to one, of at most `max_bytes` bytes. Never blocks.

    Raises:
        OSError: it is not a regular file, is too large, or cannot be opened; `strerror` gives the reason.
    """
    try:
        # Check before opening, because opening a device may have side effects.
        status = os.stat(path)
        if (problem := _irregular(status)) is None:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS | _NONBLOCK)
            # Check again, because the file may have been replaced meanwhile.
            status = os.fstat(descriptor)
            problem = _irregular(status)
            if problem is None and status.st_size > max_bytes:
                reason = f"it has {status.st_size:,} bytes, more than the {max_bytes:,} that such a file may have"
                problem = OSError(errno.EFBIG, reason)
            if problem is None:
                return open(descriptor, "rb")
            os.close(descriptor)
    except ValueError as error:
        # The name contains a zero byte.
        problem = OSError(errno.EINVAL, str(error))
    problem.filename = str(path)
    raise problem


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Content of a regular file of at most `max_bytes` bytes.

    Raises:
        OSError: it is not a regular file, is too large, or cannot be read; `strerror` gives the reason.
    """
    with open_regular(path, max_bytes) as file:
        # `read` allocates the requested memory at once, so request no more than the size of the file.
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EFBIG, "it grew while it was read", str(path))
    return content


class OpenFolder:
    """A folder that is kept open. Files are written into it even if another folder has taken its place.

    Args:
        path: an existing folder.
        parent: the folder that directly contains `path`.

    Raises:
        OSError: the folder cannot be opened.
    """

    def __init__(self, path: Path, parent: OpenFolder | None = None) -> None:
        self.path = path
        self._dir_fd: dict[str, int] = {}
        # If a user renames the folder of a run and begins another run at the old path, files that are opened by path
        # would overwrite the checkpoints of the second run.
        if _HAS_DESCRIPTORS:
            flags = os.O_RDONLY | os.O_DIRECTORY | _FLAGS
            parent_fd, name = ({}, str(path)) if parent is None else (parent._dir_fd, path.name)
            self._dir_fd = {"dir_fd": os.open(name, flags, **parent_fd)}

    @property
    def descriptor(self) -> int | None:
        """Descriptor of the folder; None if the system does not support it."""
        return self._dir_fd.get("dir_fd")

    def check(self) -> None:
        """Called before every change. Subclasses may raise `FileError`."""

    def _name(self, name: str) -> str:
        return name if self._dir_fd else str(self.path / name)

    def open(self, name: str, flags: int) -> FileIO:
        """Open a regular file of the folder, unbuffered, with the flags of `os.open`.

        Raises:
            OSError: the system refused, or it is not a regular file.
        """
        descriptor = os.open(self._name(name), flags | _FLAGS | _NONBLOCK, 0o666, **self._dir_fd)
        if (problem := _irregular(os.fstat(descriptor))) is not None:
            os.close(descriptor)
            raise problem
        return FileIO(descriptor, "r+" if flags & os.O_RDWR else "w" if flags & os.O_WRONLY else "r")

    def read(self, name: str, max_bytes: int) -> bytes:
        """Content of a regular file of the folder, up to `max_bytes` bytes.

        Raises:
            OSError: the system refused, or it is not a regular file.
        """
        with self.open(name, os.O_RDONLY) as file, io.BufferedReader(file) as buffered:
            # `read` allocates the requested memory at once, so request no more than the size of the file.
            return buffered.read(min(max_bytes, os.fstat(file.fileno()).st_size))

    def status(self, name: str) -> os.stat_result | None:
        """Status of an entry of the folder, following links. None if it does not exist or is not accessible."""
        try:
            return os.stat(self._name(name), dir_fd=self.descriptor)
        except OSError:
            return None

    def names(self) -> list[str]:
        """Names of the entries of the folder, in order. Empty if the folder was removed."""
        return sorted(os.listdir(self.path if self.descriptor is None else self.descriptor))

    def remove(self, name: str) -> None:
        """Remove a file of the folder."""
        self.check()
        os.unlink(self._name(name), **self._dir_fd)

    def make_folder(self, name: str) -> None:
        """Make a subfolder, unless there is one of that name."""
        self.check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._name(name), **self._dir_fd)

    @contextlib.contextmanager
    def writer(self, name: str, *, own_folder: bool = False) -> Iterator[BinaryIO]:
        """A binary file that replaces `name` when the block ends. If the block raises an error, the file is removed.

        Args:
            name: name of the file.
            own_folder: whether only this program keeps files in the folder, so that all leftovers of killed processes
                are removed.

        Raises:
            FileError: the system refused. The message gives the path and the reason.
        """
        temporary, lock_fd, path = "", None, self.path / name
        try:
            with writing(path):
                self.check()
                self._sweep(re.compile(rf"\.{'.*' if own_folder else re.escape(name)}{TEMPORARY}", re.DOTALL))
                # O_EXCL fails if the name exists. The permissions are those of any new file.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
                while True:
                    temporary = f".{name}.{secrets.token_hex(6)}.tmp"
                    descriptor = os.open(self._name(temporary), flags, 0o666, **self._dir_fd)
                    file = io.BufferedWriter(_Target(descriptor, path))
                    if (lock_fd := _lock(file.fileno(), wait=True)) is None or os.fstat(lock_fd).st_nlink:
                        break
                    # Another process removed the file before it was locked.
                    file.close()
                    os.close(lock_fd)
            # Errors of the block are its own, except when it writes.
            with file:
                yield file
                with writing(path):
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
            with writing(path):
                # Check again, because writing takes time.
                self.check()
                folder_descriptors = (
                    {"src_dir_fd": self.descriptor, "dst_dir_fd": self.descriptor} if self._dir_fd else {}
                )
                os.replace(self._name(temporary), self._name(name), **folder_descriptors)
                temporary = ""
                self.sync()
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._name(temporary), **self._dir_fd)
            if lock_fd is not None:
                os.close(lock_fd)

    def _sweep(self, leftover: re.Pattern[str]) -> None:
        """Remove temporary files that no process is writing. One that cannot be removed only takes up space."""
        with contextlib.suppress(OSError):
            for name in filter(leftover.fullmatch, self.names()):
                if sys.platform == "win32":
                    # Windows cannot remove a file that is open.
                    with contextlib.suppress(OSError):
                        os.unlink(self._name(name))
                    continue
                with contextlib.suppress(OSError), self.open(name, os.O_RDONLY) as file:
                    # An age does not show whether a file is in use, and a process number in its name means nothing on
                    # another machine. Unnamed files (O_TMPFILE) end with their process, but cannot replace a file.
                    if (lock_fd := _lock(file.fileno(), wait=False)) is not None:
                        try:
                            os.unlink(self._name(name), **self._dir_fd)
                        finally:
                            os.close(lock_fd)

    def write(self, name: str, data: bytes) -> None:
        """Replace the content of the file `name` by `data`, completely or not at all.

        Raises:
            FileError: the system refused. The message gives the path and the reason.
        """
        with self.writer(name) as file:
            file.write(data)

    def sync(self) -> None:
        """Make renames in the folder durable, if the system supports it."""
        if self.descriptor is not None:
            # Some network file systems refuse to sync a folder. The rename is still atomic there.
            with contextlib.suppress(OSError):
                os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self._dir_fd = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def atomic_writer(path: Path, *, own_folder: bool = False) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends. If the block raises an error, the file is removed.

    Missing parent folders are made. `own_folder`: only this program keeps files in the folder.

    Raises:
        FileError: the system refused. The message gives the path and the reason.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = OpenFolder(path.parent)
    with folder, folder.writer(path.name, own_folder=own_folder) as file:
        yield file


def write_atomically(path: Path, data: bytes, *, own_folder: bool = False) -> None:
    """Replace the content of `path` by `data`, completely or not at all. `own_folder`: see `atomic_writer`.

    Raises:
        FileError: the system refused. The message gives the path and the reason.
    """
    with atomic_writer(path, own_folder=own_folder) as file:
        file.write(data)


@dataclass(frozen=True)
class OutputKind:
    """A kind of file that commands write to a path given by the user, and how such files begin.

    Attributes:
        name: name for messages, for example `a report of stsbp`.
        begins: pattern that matches the first bytes (at most 4,096) of every such file.
    """

    name: str
    begins: re.Pattern[bytes]

    def target_path(self, path: Path) -> Path:
        """The path to write: `path`, or the target of a link. It is requested before the work, and again after it.

        Raises:
            FileError: the existing file is neither of this kind nor empty, so it must not be replaced.
        """
        try:
            # For a link, the target is checked and replaced, and the link stays.
            target_path = real(path)
            with open_regular(target_path, 2**62) as file:
                head = file.read(4096)
        except FileNotFoundError:
            return target_path
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FileError(f"cannot write {path}: {reason}; choose another name") from error
        # The lock file of a run is empty. A new file would not be the one that a process has locked.
        if (head and not self.begins.match(head)) or target_path.name == LOCK:
            raise FileError(
                f"{path} is there already and is not {self.name}: it is not replaced. Choose another name, or remove "
                "it first"
            )
        return target_path

    def write(self, path: Path, data: bytes) -> None:
        """Write the file, or replace one of the same kind.

        Raises:
            FileError: the system refused, or the existing file is of another kind.
        """
        write_atomically(self.target_path(path), data)
