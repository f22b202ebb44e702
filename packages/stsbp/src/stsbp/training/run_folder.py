"""The folder of a run: its files, its lock, and the protection of existing files.

config.toml          every setting; `stsbp train --config` reads it
environment.json     versions, backend, device and time of every start
metrics.jsonl        one line per record (metrics.py)
energy.json          the energy of the last `stsbp evaluate --energy` (energy/stored.py)
last.json, last-*.safetensors, best.json, best-*.safetensors    checkpoints (checkpoint.py)
study.json           the trial of a sweep that the run is (sweeps/worker.py)
events.out.tfevents.*    the records for TensorBoard, if they are requested (tensorboard.py)
tracking.json        identity of a tracked run (trackers.py)
.lock                locked by the process that trains
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend

from stsbp import records
from stsbp.config import OWN, RunConfig, is_named, is_stored, read_toml, resolve, to_toml
from stsbp.errors import CheckpointError, ConfigError, FileError
from stsbp.files import LOCK, MEGABYTE, TEMPORARY, OpenFolder, as_argument, read_regular
from stsbp.training.checkpoint import TENSOR_FILE
from stsbp.training.tensorboard import EVENT_FILE

__all__ = ["STUDY", "RunFolder"]

STUDY = "study.json"
"""Name of the file that says which trial of a sweep a run is. It is written before the run begins."""

MOST_ENVIRONMENT = 64 * MEGABYTE
"""Largest size of `environment.json` in bytes. One start has about a thousand bytes."""

_PACKAGES = (
    *("stsbp", "stsbp-spec", "stsbp-cpu", "stsbp-torch", "stsbp-cupy", "stsbp-jax", "stsbp-models", "numpy"),
    *("safetensors", "torch", "numba", "triton", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x"),
)
_FIXED = r"config\.toml|environment\.json|metrics\.jsonl|energy\.json|tracking\.json|study\.json|(last|best)\.json"
"""Names that other programs use as well, as a regular expression."""
_MARKING = re.compile(rf"(last|best){TENSOR_FILE}")
"""Names that only a run gives."""
_NAMES = re.compile(rf"{_FIXED}|{_MARKING.pattern}|{EVENT_FILE}")
_LEFTOVER = re.compile(
    rf"\.({_FIXED}|{_MARKING.pattern}|experiment\.(json|md)|sweep\.(json|html)|trials\.csv){TEMPORARY}"
)


class RunFolder:
    """The paths of a run, and the protection of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: OpenFolder | None = None

    @property
    def config(self) -> Path:
        """Path of the settings."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """Path of the starts."""
        return self.path / "environment.json"

    def starts(self) -> list[dict[str, Any]]:
        """All starts of the run, oldest first. Damaged ones are left out."""
        try:
            return records.starts(read_regular(self.environment, MOST_ENVIRONMENT))
        except OSError:
            return []

    @property
    def metrics(self) -> Path:
        """Path of the records."""
        return self.path / "metrics.jsonl"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun in this folder.

        Raises:
            CheckpointError: the operating system refuses access.
        """
        try:
            return self.config.is_file()
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error

    @property
    def has_traces(self) -> bool:
        """Whether the folder contains something that only a run writes: its settings, a start, or a tensor file.

        Other programs also have files of the names config.toml or metrics.jsonl.
        """
        return is_stored(self.config) or bool(self.starts()) or any(map(_MARKING.fullmatch, _names(self.path)))

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has written its first checkpoint.

        Raises:
            CheckpointError: it has, but the checkpoint is gone.
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
        """Whether a new run can begin in this folder without overwriting anything."""
        try:
            return not any(entry.name not in (LOCK, STUDY) and not _is_leftover(entry) for entry in self.path.iterdir())
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            raise FileError(f"cannot write {self.path}: part of its path is a file; choose another --out") from None
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}; choose another --out") from error

    def check_new(self) -> None:
        """Fail early if a new run that replaces nothing cannot begin.

        Raises:
            FileError: the folder is not empty, or cannot be made or written.
        """
        if not self.is_free:
            raise FileError(f"{self.path} exists and is not empty; choose another --out")
        self.check_writable()

    @contextlib.contextmanager
    def new_run(
        self,
        config: RunConfig,
        backend: AbstractBackend,
        command: Sequence[str] | None = None,
        *,
        step: int = 0,
        overwrite: bool = False,
    ) -> Iterator[None]:
        """Begin a run without training: write its settings and its start. Its checkpoint is written inside the block.

        Args:
            config: the settings.
            backend: the backend that the start names.
            command: how the run was made; None: the command line of this process.
            step: number of updates with which it begins.
            overwrite: whether an earlier run in the folder is replaced.

        Raises:
            FileError: the folder is no longer empty since `check_new`, or it cannot be written.
        """
        with self.lock():
            if not overwrite and not self.is_free:
                raise FileError(f"another process has begun a run in {self.path} meanwhile; choose another --out")
            self.write_config(config, overwrite=overwrite)
            self.note_start(backend, sys.argv if command is None else list(command), step)
            yield

    def check_writable(self) -> None:
        """Fail early if the folder cannot be made or written.

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

    def check_settings(self) -> None:
        """Fail if the settings of a run would replace a file of the same name that no run wrote.

        Raises:
            FileError: there is such a file.
        """
        if self.config.exists() and not self.has_traces:
            raise FileError(
                f"{self.config} is not replaced, because no run wrote it; choose another --out, which can also be a "
                f"subfolder, for example {self.path / 'run'}"
            )

    def read_config(self) -> RunConfig:
        """The settings of the run. A class that they name must be stored in them, so that no module is imported.

        Raises:
            CheckpointError: the folder is not a run, its settings are damaged, or they do not store a class.
        """
        try:
            is_folder = self.path.is_dir()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"cannot read {self.path}: {reason}") from error
        if not is_folder:
            hint = "; this command needs the folder of a run" if is_named(str(self.path)) else ""
            raise CheckpointError(f"there is no run folder {self.path}{hint}")
        if not self.is_run:
            if any(self.path.glob(f"seed-*/{self.config.name}")):
                raise CheckpointError(f"{self.path} is an experiment, not a run: its runs are {self.path / 'seed-*'}")
            hint = f"; write hub:{self.path} for a folder for the Hub" if (self.path / "config.json").exists() else ""
            raise CheckpointError(f"{self.path} is not a run: it has no {self.config.name}{hint}")
        try:
            config = resolve([read_toml(self.config)], with_preset=False)
        except ConfigError as error:
            raise CheckpointError(f"the settings of the run cannot be read: {error}") from error
        for setting, user_class in OWN.items():
            named = getattr(config, setting)
            if user_class.names_a_class(named) and not getattr(config, user_class.model):
                raise CheckpointError(
                    f"{self.config}: {setting} names the class {named}, but {user_class.model} does not store it. "
                    f"stsbp does not import modules that a run names; train with --{setting} again"
                )
        return config

    def write_config(self, config: RunConfig, *, overwrite: bool = False) -> None:
        """Write the settings. The folder must be locked (`lock`).

        Args:
            config: the settings.
            overwrite: whether to remove the files of an earlier run first (`clear`).

        Raises:
            ConfigError: the settings cannot be stored. No file is removed.
            FileError: there is a file of that name that no run wrote, or the folder cannot be written.
        """
        text = to_toml(config).encode()
        if overwrite and not self.is_free:
            self.clear()
        self.check_settings()
        self.files.write(self.config.name, text)

    def settings(self) -> bytes | None:
        """Content of the file of the settings; None if it cannot be read. Requires `lock`."""
        try:
            return self.files.read(self.config.name, MEGABYTE)
        except OSError:
            return None

    def note_start(self, backend: AbstractBackend, command: list[str], step: int, processes: int = 1) -> bool:
        """Add a start to the environment file: versions, backend, device, machine, command, time. Requires `lock`.

        Returns whether earlier starts are lost, because the file was damaged.
        """
        starts: list[dict[str, Any]] = []
        exists = os.path.lexists(self.environment)
        with contextlib.suppress(OSError):
            starts = records.starts(self.files.read(self.environment.name, MOST_ENVIRONMENT))
        is_lost = exists and not starts
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
        return is_lost

    def own_files(self) -> set[Path]:
        """The existing files of the run.

        Raises:
            FileError: the folder cannot be read, or it contains other files as well.
        """
        try:
            entries = set(self.path.iterdir())
            run_files = {path for path in entries if path.name == LOCK or _is_leftover(path)}
            if self.has_traces:
                run_files |= {path for path in entries if _NAMES.fullmatch(path.name) and not path.is_dir()}
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error
        if foreign := sorted(path.name for path in entries - run_files):
            first_names = ", ".join(foreign[:3])
            raise FileError(f"{self.path} holds files that no run wrote ({first_names}); choose another --out")
        return run_files

    def clear(self) -> None:
        """Remove the files of an earlier run, and nothing else. The folder must be locked (`lock`).

        Raises:
            FileError: a file cannot be removed, or there are other files as well.
        """
        # Remove descriptions first. Without a description, the other files of a checkpoint are not used. Remove what
        # only a run writes last: if the process is killed, the files that are left are still those of a run.
        run_files = self.own_files()
        traces = {path for path in run_files if path == self.environment or _MARKING.fullmatch(path.name)}
        try:
            for path in sorted(run_files, key=lambda path: (path in traces, path.suffix != ".json", path.name)):
                if path.name != LOCK:
                    self.files.remove(path.name)
        except OSError as error:
            raise FileError(f"cannot clear {self.path}: {error.strerror or error}") from error

    @property
    def files(self) -> OpenFolder:
        """The folder, which is kept open within `lock`. All files are written to it, and never to a replacement of
        it."""
        if self._files is None:
            raise RuntimeError("a run is written within RunFolder.lock()")
        return self._files

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # The parent exists, but does not support folders (/proc, for example).
            raise FileError(f"cannot make the folder {self.path}: {error.strerror}; choose another --out") from error

    @contextlib.contextmanager
    def lock(self, parent: OpenFolder | None = None, *, make: bool = True) -> Iterator[None]:
        """Make the folder, and prevent other processes from training in it. The lock ends with the process.

        Args:
            parent: the parent folder, which is kept open. Without it, missing parents are made.
            make: False if a run in the folder continues. The folder is then not made again if it was removed meanwhile.

        Raises:
            FileError: the folder cannot be made or is gone, or another process trains in it.
        """
        with contextlib.ExitStack() as stack:
            try:
                if make and parent is None:
                    self._make()
                elif make and parent is not None:
                    parent.make_folder(self.path.name)
                files = stack.enter_context(_LockedFolder(self.path, parent))
            except FileNotFoundError as error:
                raise FileError(
                    f"{self.path}, the folder of the run, is gone: it was removed or moved before the run could go on"
                ) from error
            except OSError as error:
                raise FileError(f"cannot write {self.path}: {error.strerror or error}; choose another --out") from error
            # Remove the leftovers of a process that was killed while it was writing.
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
    """A run's folder that only this process may write, as long as the path still leads to this folder.

    The file `.lock` is locked and, if the system supports it, the folder itself. If someone removes the file, another
    process can then still not enter while this one writes.

    Raises:
        FileError: another process trains in the folder.
        OSError: the folder cannot be opened.
    """

    def __init__(self, path: Path, parent: OpenFolder | None) -> None:
        super().__init__(path, parent)
        try:
            self._lock = self.open(LOCK, os.O_RDWR | os.O_CREAT)
            # Every system can lock a file, but not every system a folder.
            locks = (self._lock.fileno(), *(() if self.descriptor is None else (self.descriptor,)))
            if not all(map(_try_lock, locks)):
                self._lock.close()
                raise FileError(f"another process is training in {path}; wait for it or choose another --out")
        except BaseException:
            super().close()
            raise
        self._is = _identity(os.fstat(self._lock.fileno()))

    def check(self) -> None:
        """Raise `FileError` if the folder or its lock file was removed, moved or replaced."""
        # Without this check, a run would go on in a folder that nobody finds. Without the open folder, the path could
        # lead elsewhere between the check and the write. Both together cost two system calls per write.
        if _identity_at(self.path / LOCK) == self._is:
            return
        if self.descriptor is not None and _identity_at(self.path) == _identity(os.fstat(self.descriptor)):
            raise FileError(
                f"the lock of the run, {self.path / '.lock'}, was removed or replaced while it trained. "
                "The run stops, so that no two processes write there. Everything after its last "
                "checkpoint is lost. When no other process trains there, continue with: "
                + shlex.join(["stsbp", "train", "--resume", as_argument(self.path)])
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
    """Device and inode number of a path; None if it does not exist or cannot be accessed."""
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def _names(path: Path) -> list[str]:
    """Names of the entries of a folder. Empty if it cannot be read."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_leftover(path: Path) -> bool:
    """Whether the path is a temporary file of `stsbp.files` for a file of a run."""
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
        # Some network file systems do not support locks. Training there is allowed.
        return True
    return True
