"""A small world to attack: data sets, runs and a user's other files, and a memory of how all of it was.

    data/pictures/<class>/N.png   data/recordings/Train/<digit>/N.bin   data/rasters.npz   data/odd/...
    work/runs/{pictures,recordings,rasters,stopped}   work/several/ (an experiment)   work/report.html, notes.txt, ...
    cache/   home/

Commands run in `work`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from campaigns.calls import call

__all__ = ["PICTURES", "RASTERS", "RECORDINGS", "World", "picture", "rasters", "recording", "scratch_folder"]

_SMALL = ("--epochs", "2", "--batch-size", "4", "--log-every", "2", "--seed", "1")
PICTURES = ("folder:../data/pictures", *_SMALL, "--net", "5", "--steps", "3", "--validation", "3")
RECORDINGS = ("nmnist", "--data-dir", "../data/recordings", *_SMALL, "--net", "3", "--steps", "3", "--holdout", "5")
RASTERS = ("sequences:../data/rasters.npz", *_SMALL, "--net", "4", "--steps", "4")
"""Arguments of `stsbp train`, but for the folder, of the runs in the world."""

_Entry = tuple[str, bytes]
"""Of the world as it was: what it is, and the content of a file or the target of a link."""
_Stamp = tuple[int, int, int, int]


def scratch_folder(name: str) -> Path:
    """A new folder for a campaign, in memory where the system has such a place."""
    return Path(tempfile.mkdtemp(prefix=f"stsbp-{name}-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def picture(number: int, side: int = 6) -> bytes:
    """A small grey picture as PNG."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (side, side)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def recording(number: int, events: int = 40) -> bytes:
    """A small recording in the format of N-MNIST."""
    rng = np.random.default_rng(number)
    times = np.sort(rng.integers(0, 300_000, events))
    rows = np.zeros((events, 5), dtype=np.uint8)
    rows[:, :2] = rng.integers(0, 34, (events, 2))
    rows[:, 2] = rng.integers(0, 2, events) << 7 | times >> 16
    rows[:, 3], rows[:, 4] = times >> 8 & 255, times & 255
    return rows.tobytes()


def rasters(number: int, samples: int = 10) -> bytes:
    """A small `.npz` file of input and target rasters."""
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    inputs, targets = (rng.random((samples, 4, n)) < 0.4 for n in (6, 3))
    np.savez(file, inputs=inputs.astype(np.uint8), targets=targets.astype(np.uint8))
    return file.getvalue()


@contextlib.contextmanager
def _at_home(root: Path) -> Iterator[None]:
    """Work in the world: its folder, its home, its cache."""
    folder, environment = os.getcwd(), dict(os.environ)
    os.environ.update(HOME=str(root / "home"), STSBP_CACHE=str(root / "cache"), COLUMNS="100", NO_COLOR="1")
    for name in ("XDG_CACHE_HOME", "STSBP_DATA"):
        os.environ.pop(name, None)
    os.chdir(root / "work")
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


def _stsbp(*arguments: str, code: int = 0) -> None:
    called = call(["--backend", "numpy", *arguments])
    if called.crash is not None:
        raise called.crash
    if called.code != code:
        raise RuntimeError(f"stsbp {' '.join(arguments)} left with {called.code}: {called.err}")


class World:
    """A world below `root`, which is made; `with_runs=False` leaves the runs out."""

    def __init__(self, root: Path, *, with_runs: bool = True) -> None:
        self.root = root
        for name in ("data/odd/folder", "work", "home", "cache"):
            (root / name).mkdir(parents=True)
        for name in ("cat", "dög", "2"):
            for number in range(4):
                self.write(f"data/pictures/{name}/{number}.png", picture(len(name) * 10 + number))
        for digit in range(10):
            for number in (1, 2):
                self.write(f"data/recordings/Train/{digit}/{number}.bin", recording(10 * digit + number))
        self.write("data/rasters.npz", rasters(0))
        for name in ("a\x1b[31m", os.fsdecode(b"b\xff")):
            for number in range(2):
                self.write(f"data/hostile/{name}/{number}.png", picture(number))
        files = {"one.png": picture(3), "one.bin": recording(5), "notes.txt": b"mine\n", "page.html": b"<p>mine</p>\n"}
        for name, content in files.items():
            self.write(f"work/{name}", content)
        array = io.BytesIO()
        np.save(array, np.zeros((6, 6), dtype=np.uint8))
        self.write("work/one.npy", array.getvalue())
        self.write("work/settings.toml", b'dataset = "folder:../data/pictures"\nsteps = 3\nnet = "5"\nepochs = 1\n')
        self.write("data/odd/empty", b"")
        self.write("data/odd/" + "n" * 200, b"long")
        os.mkfifo(root / "data/odd/fifo.bin")
        (root / "data/odd/loop").symlink_to("loop")
        (root / "data/odd/zero.png").symlink_to("/dev/zero")
        (root / "data/odd/gone").symlink_to("nothing")
        if with_runs:
            with self.at_home():
                for name, arguments in (("pictures", PICTURES), ("recordings", RECORDINGS), ("rasters", RASTERS)):
                    _stsbp("train", *arguments, "--out", f"runs/{name}")
                _stsbp(
                    *("train", *PICTURES, "--out", "runs/stopped", "--epochs", "100000", "--stop-after", "0.001"),
                    code=75,
                )
                _stsbp("experiment", *PICTURES, "--seeds", "2", "--out", "several")
                _stsbp("report", "runs/rasters", "--out", "report.html")
        self.remember()

    def at_home(self) -> contextlib.AbstractContextManager[None]:
        """Work in the world: its folder, its home, its cache."""
        return _at_home(self.root)

    @property
    def outside(self) -> Path:
        """A folder for what is read directly, outside of the world."""
        return self.root.parent

    def write(self, name: str, content: bytes) -> Path:
        """Make a file and its folders; the memory does not change."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(content)
        return path

    def remember(self) -> None:
        """Take the world as it is for how it ought to be."""
        self._stamps = self._scan()
        self._entries = {name: self._entry(self.root / name) for name in sorted(self._stamps)}

    def content(self, name: str) -> bytes:
        """The content that a file ought to have."""
        return self._entries[name][1]

    @contextlib.contextmanager
    def run_with(self, folder: str, run: str, files: Mapping[str, bytes]) -> Iterator[Path]:
        """A copy of a run in `folder` beside the world, with other contents of some files until the block ends."""
        copy = self.outside / folder / run
        if not copy.exists():
            shutil.copytree(self.root / "work/runs" / run, copy)
        paths = {copy / Path(name).name: content for name, content in files.items()}
        contents = {path: path.read_bytes() if path.exists() else None for path in paths}
        try:
            for path, content in paths.items():
                path.write_bytes(content)
            yield copy
        finally:
            for path, old in contents.items():
                path.unlink() if old is None else path.write_bytes(old)

    def names(self) -> Iterable[str]:
        """Everything that ought to be there."""
        return self._entries.keys()

    def differences(self) -> dict[str, str]:
        """What is `changed`, `lost` or `new`, by its name."""
        now = self._scan()
        changes = {name: "lost" for name in self._entries if name not in now}
        for name, stamp in now.items():
            if name not in self._entries:
                changes[name] = "new"
            elif stamp != self._stamps[name] and self._entry(self.root / name) != self._entries[name]:
                changes[name] = "changed"
        return changes

    def restore(self) -> None:
        """Put everything back."""
        now = self._scan()
        if now == self._stamps:
            return
        for name in sorted(now.keys() - self._entries.keys(), reverse=True):
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for name, (kind, content) in self._entries.items():
            if now.get(name) == self._stamps[name]:
                continue
            path = self.root / name
            if kind == "file":
                self.write(name, content)
            elif not os.path.lexists(path):
                if kind == "folder":
                    path.mkdir(parents=True)
                elif kind == "link":
                    path.symlink_to(os.fsdecode(content))
                else:
                    os.mkfifo(path)
        self._stamps = self._scan()

    def _scan(self) -> dict[str, _Stamp]:
        """Everything that is there."""
        stamps: dict[str, _Stamp] = {}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            with os.scandir(f"{self.root}/{folder}") as entries:
                for entry in entries:
                    name = folder + entry.name
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(f"{name}/")
                        stamps[name] = (status.st_mode, 0, 0, 0)
                    else:
                        stamps[name] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
        return stamps

    @staticmethod
    def _entry(path: Path) -> _Entry:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            return "folder", b""
        if stat.S_ISLNK(mode):
            return "link", os.fsencode(os.readlink(path))
        return ("file", path.read_bytes()) if stat.S_ISREG(mode) else ("fifo", b"")
