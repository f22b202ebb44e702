"""A cache of compiled kernels between runs. It never loads kernels of other sources, or files that others could write.

Kernels of one kind (`numba`, `cupy`) are in `kernels/KIND-HASH` below `cache_root()`. The hash covers everything that
they depend on: the text of their sources and of all code inlined into them, the version of the compiler, the processor.
A changed source gives another folder, so an old kernel is never found or called. Properties in which kernels of one
folder differ (the text of an equation, a signature, an additional compiler) are in the name of the file
(`kernel_file`).

Loading compiled code means running it, and no check of its contents can make it safe. Only files that this user alone
could have written are therefore loaded. Folders and files must belong to the user, and others must not be able to write
to them. They are created with the modes 0700 and 0600. A checksum detects damaged files. Files are written under a new
name and then renamed. If this is not possible, one warning says so, and the process uses a temporary folder.

When a new folder is made, folders that were not used for 30 days are removed, and so are the least recently used
folders beyond eight. When a process first writes into a folder, files in it that were not used for 30 days are removed.
These are kernels of equations that no longer exist, or of another compiler.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stsbp_spec.errors import BackendError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Claim", "KernelFolder", "cache_root", "digest", "kernel_file", "kernel_folder", "source_digest"]

_LOG = logging.getLogger(__name__)

_DAY = 86400.0
_UNUSED = 30 * _DAY
"""Time in seconds after which a folder that no process has opened is removed, and a file that no process has read."""
_AT_MOST = 8
"""Largest number of folders of a kind. Folders opened within a day are always kept, as a process may still use them."""

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_CHECKSUM = 32


def cache_root() -> Path:
    """Folder for files that can be made again: `$STSBP_CACHE`, else `$XDG_CACHE_HOME/stsbp`, else `~/.cache/stsbp`.

    Raises:
        RuntimeError: the user does not exist or has no home directory.
    """
    if folder := os.environ.get("STSBP_CACHE"):
        return Path(folder).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says that relative paths must be ignored.
    base = Path(shared) if shared and os.path.isabs(shared) else Path("~/.cache").expanduser()
    return base / "stsbp"


def digest(*parts: str | bytes) -> str:
    """SHA-256 of a sequence of texts, 32 hexadecimal digits. `("ab", "c")` and `("a", "bc")` have different digests."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def source_digest(*names: str) -> str:
    """`digest` of the sources of modules. Packages include all their modules. Only parent packages are imported.

    Raises:
        OSError: a source cannot be read.
    """
    parts: list[str | bytes] = []
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"no source of the module {name}")
        parts += [name, _text(spec.loader, spec.origin)]
        for folder in map(Path, spec.submodule_search_locations or ()):
            for path in sorted(folder.rglob("*.py")):
                parts += [path.relative_to(folder).as_posix(), path.read_bytes()]
    return digest(*parts)


def _text(loader: Any, origin: str) -> bytes:
    try:
        text: bytes = loader.get_data(origin)
    except AttributeError as error:
        raise OSError(f"{origin} is stored in a form that cannot be read") from error
    return text


def kernel_folder(kind: str, key: str) -> KernelFolder:
    """The folder of kernels of one `kind` (letters) and `key`, a hash of everything they depend on."""
    try:
        return _folder((cache_root() / "kernels").absolute(), kind, key)
    except RuntimeError as error:
        return _folder(None, kind, key, str(error))


def kernel_file(name: str, *parts: str, suffix: str = "") -> str:
    """The file name `NAME-HASH`. The hash covers what the kernel depends on in addition to its folder's key."""
    return f"{name}-{digest(*parts)}{suffix}"


class Claim:
    """The result of `KernelFolder.claim`. The claim ends when the object is deleted."""

    def __init__(self, file: int, path: Path) -> None:
        """`file` is the descriptor of an open, locked file at `path`."""
        self._file, self._path = file, path

    def release(self) -> None:
        """End the claim, so that others can claim the file."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1

    __del__ = release


class KernelFolder:
    """Compiled kernels in files, or in a temporary folder if the user has no safe place for them.

    `kept` says whether later runs will find the written files.
    """

    def __init__(self, parent: Path | None, kind: str, key: str, problem: str = "") -> None:
        self._kind = kind
        self._tidied = False
        self._path: Path | None = None
        self._spare: Path | None = None
        self.kept = True
        if parent is None:
            self._spill(problem)
            return
        path = parent / f"{kind}-{key}"
        try:
            # The folders above need no check. Who can move them still cannot make a file that belongs to this user, and
            # no other file is loaded.
            _make_private(parent)
            new = not path.exists()
            _make_private(path)
        except OSError as error:
            self._spill(_reason(error, path))
            return
        self._path = path
        if not os.access(path, os.W_OK):
            self._spill(f"{path} cannot be written")
            return
        # Record the time of the last use, for `_prune` in other processes.
        with contextlib.suppress(OSError):
            os.utime(path)
        if new:
            _prune(parent, kind, path)

    def read(self, name: str) -> bytes | None:
        """The data that was written as `name`. None if there is no complete file that is safe to load."""
        for folder in self._folders():
            data = _read_regular(folder / name)
            if data is not None and data[-_CHECKSUM:] == _checksum(name, data[:-_CHECKSUM]):
                _used(folder / name)
                return data[:-_CHECKSUM]
        return None

    def write(self, name: str, data: bytes) -> None:
        """Store `data` as `name`, completely or not at all. A failure only causes a warning."""
        with contextlib.suppress(OSError):
            self._save(name, data + _checksum(name, data))

    def claim(self, name: str, wait: float = 0.0) -> Claim | None:
        """Claim that this process will write `name`. No other process can claim it meanwhile.

        Args:
            name: name of a file.
            wait: time in seconds to wait if another process has claimed the file.

        Returns:
            An object that ends the claim; the end of the process also ends it. None: another process has claimed the
            file, or claims are not possible.
        """
        if self._path is None or fcntl is None:
            return None
        until = time.monotonic() + wait
        # The cleanup of temporary files also removes the files of a process that was killed.
        path = self._path / f".{name}.tmp"
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                if time.monotonic() >= until:
                    return None
                time.sleep(0.01)
                continue
            # A process that ends its claim removes this file, and another one may already have claimed a new file.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return Claim(file, path)
            os.close(file)

    def is_free(self, name: str) -> bool:
        """Whether no other process has claimed `name`."""
        claim = self.claim(name)
        if claim is not None:
            claim.release()
        return claim is not None

    def built(self, name: str, build: Callable[[Path], object]) -> Path:
        """A file that other programs load. If there is no complete file yet, `build` fills the empty file that it is
        given. The checksum is in a separate file beside it.

        Raises:
            BackendError: neither the cache nor a temporary folder can be written.
        """
        for folder in self._folders():
            data, checksum = _read_regular(folder / name), _read_regular(folder / f"{name}.sha256")
            if data is not None and checksum == _checksum(name, data).hex().encode():
                # Unlike `read`, this gives a path: who can rename the user's folders could exchange the file before it
                # is loaded.
                _used(folder / name, folder / f"{name}.sha256")
                return folder / name
        try:
            with tempfile.TemporaryDirectory(prefix="stsbp-build-") as temporary:
                scratch = Path(temporary) / name
                scratch.touch()
                build(scratch)
                data = scratch.read_bytes()
            path = self._save(name, data)
            self._save(f"{name}.sha256", _checksum(name, data).hex().encode())
        except OSError as error:
            raise BackendError(f"compiled kernels cannot be written: {_reason(error, Path(name))}") from error
        return path

    def _folders(self) -> list[Path]:
        return [folder for folder in (self._path, self._spare) if folder is not None]

    def _save(self, name: str, data: bytes) -> Path:
        """Write a file into the first folder in which this is possible. Returns its path."""
        if self.kept and self._path is not None:
            try:
                # Another process may have removed the folder meanwhile.
                for folder in (self._path.parent, self._path):
                    _make_private(folder)
                if not self._tidied:
                    self._tidied = True
                    _tidy(self._path)
                return _replace(self._path / name, data)
            except OSError as error:
                self._spill(_reason(error, self._path))
        if self._spare is None:
            spare = _temporary() / f"{self._kind}-{secrets.token_hex(8)}"
            spare.mkdir(mode=0o700)
            self._spare = spare
        return _replace(self._spare / name, data)

    def _spill(self, problem: str) -> None:
        self.kept = False
        _warn(problem)


@cache
def _warn(problem: str) -> None:
    """Warn once per problem."""
    _LOG.warning(
        "compiled kernels cannot be kept, so each run compiles them again: %s; choose another "
        "folder with the environment variable STSBP_CACHE",
        problem,
    )


_folder = cache(KernelFolder)


@cache
def _temporary() -> Path:
    """A temporary folder of this process, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="stsbp-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can read and write. Raises `OSError` if others could write to an existing
    one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"{folder} is a symbolic link")
    if problem := _unsafe(status):
        raise PermissionError(f"{folder} {problem}")
    if hasattr(os, "geteuid") and status.st_mode & 0o077:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)


def _unsafe(status: os.stat_result) -> str | None:
    """The reason why someone else may have written a file or folder; None: nobody else could."""
    # Windows uses access lists instead, which protect the user's profile.
    if not hasattr(os, "geteuid"):
        return None
    # Nothing but owner and mode helps: another format would hold machine code too, and the key of a signature would be
    # stored with the same permissions as the files.
    if status.st_uid != os.geteuid():
        return f"belongs to another user (number {status.st_uid})"
    if status.st_mode & 0o022:
        return f"can be written by others (mode {status.st_mode & 0o777:o}); remove it, or run chmod 700 on it"
    return None


def _read_regular(path: Path) -> bytes | None:
    """Content of a regular file that nobody else can write; None if there is no such file."""
    try:
        with open(os.open(path, _READ), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or _unsafe(status):
                return None
            return file.read()
    except OSError:
        return None


def _replace(path: Path, data: bytes) -> Path:
    scratch = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(scratch, _WRITE, 0o600), "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    return path


def _checksum(name: str, data: bytes) -> bytes:
    """A checksum of 32 bytes. It covers the name, so that no file can be mistaken for another one."""
    return hashlib.sha256(name.encode() + b"\0" + data).digest()


def _prune(parent: Path, kind: str, used: Path) -> None:
    """Remove folders of a kind that no process has opened for a long time. A process that needs one makes it again."""
    ages: list[tuple[float, Path]] = []
    for folder in parent.glob(f"{kind}-*"):
        with contextlib.suppress(OSError):
            if folder != used:
                ages.append((time.time() - folder.lstat().st_mtime, folder))
    for rank, (age, folder) in enumerate(sorted(ages), 2):
        if age > _UNUSED or (rank > _AT_MOST and age > _DAY):
            shutil.rmtree(folder, ignore_errors=True)


def _used(*files: Path) -> None:
    """Record that files are in use, at most once a day."""
    for file in files:
        with contextlib.suppress(OSError):
            if time.time() - file.lstat().st_mtime > _DAY:
                os.utime(file)


def _tidy(folder: Path) -> None:
    """Remove files that were not used for a long time, and unfinished files of processes that were killed."""
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - file.lstat().st_mtime > (_DAY if file.suffix == ".tmp" else _UNUSED):
                file.unlink()


def _reason(error: OSError, path: Path) -> str:
    """The reason for an error in the words of the operating system, with the path; or in our own words."""
    return f"{error.filename or path}: {error.strerror}" if error.strerror else str(error)
