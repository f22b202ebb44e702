"""The folder of a run: which files it has, who may write into it, and what a new run may not overwrite.

config.toml          every setting; `stsbp train --config` reads it
environment.json     versions, backend, device and time of every start
metrics.jsonl        one line a record (metrics.py)
last.json, last-*.safetensors, best.json, best-*.safetensors    checkpoints (checkpoint.py)
events.out.tfevents.*    the records for TensorBoard, where they are asked for (tensorboard.py)
.lock                held by the process that trains
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stsbp_spec.backend import AbstractBackend
from stsbp_spec.grid import CONTRACT_VERSION

from stsbp import records
from stsbp.config import RunConfig, read_toml, resolve, to_toml
from stsbp.errors import CheckpointError, ConfigError, FileError
from stsbp.files import LOCK, MEGABYTE, OpenFolder, read_regular

__all__ = ["RunFolder"]

MOST_ENVIRONMENT = 64 * MEGABYTE
"""Bytes of `environment.json`; a start has about a thousand."""

_PACKAGES = (
    *("stsbp", "stsbp-spec", "stsbp-cpu", "stsbp-torch", "stsbp-cupy", "stsbp-jax", "numpy", "safetensors"),
    *("torch", "numba", "triton", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x"),
)
_PATTERNS = (
    *("config.toml", "environment.json", "metrics.jsonl", LOCK),
    *("last.json", "best.json", "last-*.safetensors", "best-*.safetensors", "events.out.tfevents.*"),
)
_LEFTOVER = re.compile(
    r"\.(config\.toml|environment\.json|experiment\.(json|md)|(last|best)(\.json|-.*\.safetensors))\.[0-9a-f]+\.tmp"
)


class RunFolder:
    """Paths of a run and what guards them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: OpenFolder | None = None

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """The starts."""
        return self.path / "environment.json"

    def starts(self) -> list[dict[str, Any]]:
        """Every start of the run, oldest first; those that are damaged, or all of them, are left out."""
        try:
            return records.starts(read_regular(self.environment, MOST_ENVIRONMENT))
        except OSError:
            return []

    @property
    def metrics(self) -> Path:
        """The records."""
        return self.path / "metrics.jsonl"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here.

        Raises:
            CheckpointError: the system does not let us look.
        """
        try:
            return self.config.is_file()
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has come to its first checkpoint.

        Raises:
            CheckpointError: it had, and the checkpoint is gone.
        """
        if not self.is_run:
            return False
        if (self.path / "last.json").exists():
            return True
        # The first checkpoint is written before anything else is recorded.
        if self.metrics.is_file() and self.metrics.stat().st_size > 0:
            raise CheckpointError(
                f"{self.path} has records of training but its checkpoint last.json is gone; put it back, or begin anew "
                "with --overwrite"
            )
        return False

    @property
    def is_free(self) -> bool:
        """Whether a new run may be begun here without overwriting anything."""
        try:
            return not any(entry.name != LOCK and not _is_leftover(entry) for entry in self.path.iterdir())
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            raise FileError(f"cannot write {self.path}: part of its path is a file; choose another --out") from None
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}; choose another --out") from error

    def check_new(self) -> None:
        """Fail early where a run that replaces nothing cannot begin.

        Raises:
            FileError: there is something in the folder, or it cannot be made or written.
        """
        if not self.is_free:
            raise FileError(f"{self.path} exists and is not empty; choose another --out")
        self.check_writable()

    @contextlib.contextmanager
    def begun(self, config: RunConfig, backend: AbstractBackend) -> Iterator[None]:
        """Begin a run that has not been trained: its settings and its start; within, its checkpoint is written.

        Raises:
            FileError: something has come into the folder since `check_new`, or it cannot be written.
        """
        with self.lock():
            if not self.is_free:
                raise FileError(f"another process has begun a run in {self.path} meanwhile; choose another --out")
            self.write_config(config)
            self.note_start(backend, sys.argv, 0)
            yield

    def check_writable(self) -> None:
        """Fail early where a folder cannot be made or written.

        Raises:
            FileError: the nearest existing folder refuses.
        """
        parent = self.path
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir():
            raise FileError(f"cannot write {self.path}: {parent} is a file, not a folder; choose another --out")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise FileError(f"cannot write {self.path}: permission denied in {parent}; choose another --out")

    def read_config(self) -> RunConfig:
        """The settings of the run.

        Raises:
            CheckpointError: this is no run, or its settings are damaged.
        """
        try:
            there = self.path.is_dir()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"cannot read {self.path}: {reason}") from error
        if not there:
            raise CheckpointError(f"there is no run folder {self.path}")
        if not self.is_run:
            if any(self.path.glob(f"seed-*/{self.config.name}")):
                raise CheckpointError(f"{self.path} is an experiment, not a run: its runs are {self.path / 'seed-*'}")
            raise CheckpointError(f"{self.path} is not a run: it has no {self.config.name}")
        try:
            return resolve([read_toml(self.config)], with_preset=False)
        except ConfigError as error:
            raise CheckpointError(f"the settings of the run cannot be read: {error}") from error

    def write_config(self, config: RunConfig) -> None:
        """Keep the settings; within `lock`."""
        self.files.write(self.config.name, to_toml(config).encode())

    def note_start(self, backend: AbstractBackend, command: list[str], step: int, processes: int = 1) -> None:
        """Add a start to the environment file: versions, backend, device, machine, command and time; within `lock`."""
        starts: list[dict[str, Any]] = []
        with contextlib.suppress(OSError):
            starts = records.starts(self.files.read(self.environment.name, MOST_ENVIRONMENT))
        versions = {}
        for package in _PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        starts.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "step": step,
                "stsbp": importlib.metadata.version("stsbp"),
                "contract": CONTRACT_VERSION,
                "backend": backend.name,
                "device": backend.device,
                "device_description": next((d.description for d in backend.devices() if d.name == backend.device), ""),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "processors": os.cpu_count(),
                "processes": processes,
                "versions": versions,
                "command": command,
            }
        )
        self.files.write(self.environment.name, (json.dumps({"starts": starts}, indent=1) + "\n").encode())

    def own_files(self) -> set[Path]:
        """The files of a run that are there.

        Raises:
            FileError: the folder cannot be read, or other files are there as well.
        """
        try:
            there = set(self.path.iterdir())
            own = {path for pattern in _PATTERNS for path in self.path.glob(pattern)}
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error
        own |= {path for path in there if _is_leftover(path)}
        if foreign := sorted(path.name for path in there - own):
            some = ", ".join(foreign[:3])
            raise FileError(f"{self.path} holds files that no run wrote ({some}); choose another --out")
        return own

    def clear(self) -> None:
        """Remove the files of an earlier run, and nothing else; within `lock`.

        Raises:
            FileError: a file cannot be removed, or other files are there as well.
        """
        # Descriptions first: a checkpoint is gone when nothing names it any more.
        own = sorted(self.own_files(), key=lambda path: (path.suffix != ".json", path.name))
        try:
            for path in own:
                if path.name != LOCK:
                    self.files.remove(path.name)
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error

    @property
    def files(self) -> OpenFolder:
        """The folder as it is held open within `lock`; every write goes there, and never into one that replaced it."""
        if self._files is None:
            raise RuntimeError("a run is written within RunFolder.lock()")
        return self._files

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # Its parent is there, but is of a kind that takes no folders, as /proc is.
            raise FileError(f"cannot make the folder {self.path}: {error.strerror}; choose another --out") from error

    @contextlib.contextmanager
    def lock(self, within: OpenFolder | None = None, *, make: bool = True) -> Iterator[None]:
        """Make the folder and keep other processes from training in it; a killed process frees it.

        Args:
            within: the folder that this one is directly in, held open; without it, missing parents are made.
            make: False where a run in it goes on: a folder that was taken away meanwhile is not made again.

        Raises:
            FileError: the folder cannot be made or is gone, or another process trains in it.
        """
        with contextlib.ExitStack() as stack:
            try:
                if make and within is None:
                    self._make()
                elif make and within is not None:
                    within.make_folder(self.path.name)
                files = stack.enter_context(_LockedFolder(self.path, within))
            except FileNotFoundError as error:
                raise FileError(
                    f"{self.path}, the folder of the run, is gone: it was removed or moved before the run could go on"
                ) from error
            except OSError as error:
                raise FileError(f"cannot write {self.path}: {error.strerror or error}; choose another --out") from error
            # Of a process that was killed while it wrote.
            with contextlib.suppress(OSError):
                for name in files.names():
                    if _LEFTOVER.fullmatch(name):
                        files.remove(name)
            self._files = files
            try:
                yield
            finally:
                self._files = None


class _LockedFolder(OpenFolder):
    """A run's folder that this process alone may write, while the folder at its path is this one.

    Locked are the file `.lock` and, where the system can, the folder itself: whoever removes the file does not let
    another process in while this one still writes.

    Raises:
        FileError: another process trains in it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, within: OpenFolder | None) -> None:
        super().__init__(path, within)
        try:
            self._lock = self.open(LOCK, os.O_RDWR | os.O_CREAT)
            locks = (self._lock.fileno(), *(() if self.descriptor is None else (self.descriptor,)))
            if not all(map(_try_lock, locks)):
                self._lock.close()
                raise FileError(f"another process is training in {path}; wait for it or choose another --out")
        except BaseException:
            super().close()
            raise
        self._is = _identity(os.fstat(self._lock.fileno()))

    def check(self) -> None:
        """Raise `FileError` where the folder was removed, moved or replaced, or the lock in it."""
        if _identity_at(self.path / LOCK) == self._is:
            return
        if self.descriptor is not None and _identity_at(self.path) == _identity(os.fstat(self.descriptor)):
            raise FileError(
                f"the lock of the run, {self.path / '.lock'}, was removed or replaced while it trained. "
                "The run stops, so that no two processes write there. Everything after its last "
                "checkpoint is lost. When no other process trains there, continue with: stsbp train "
                f"--resume {self.path}"
            )
        raise FileError(
            f"{self.path}, the folder of the run, was removed, moved or replaced while it trained. "
            "Nothing more is written, and everything after its last checkpoint is lost. If the "
            "folder was moved, continue in its new place: stsbp train --resume FOLDER. Otherwise "
            "begin a new run with another --out"
        )

    def close(self) -> None:
        self._lock.close()
        super().close()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_at(path: Path) -> tuple[int, int] | None:
    """Device and number of what is at a path; None where nothing is or it cannot be seen."""
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def _is_leftover(path: Path) -> bool:
    """Whether it is a temporary file of `stsbp.files` for a file of a run."""
    return _LEFTOVER.fullmatch(path.name) is not None


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; training there is allowed.
        return True
    return True
