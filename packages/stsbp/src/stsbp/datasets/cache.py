"""One memory-mapped file for the decoded form of a data set. It is only used after its contents have been checked.

There is one format for all data sets. Samples are uint8, channels-last. Frames of zeros and ones have eight steps per
byte (`stsbp.datasets.base.FrameSplit`). Layout: 64 bytes of magic, the samples (C order), a JSON description, its
SHA-256 (32 bytes) and its length (8 bytes, little-endian). The description contains the key (contents of the source
files, parameters, format version), the shape, the labels, the steps of each sample if they differ, and the SHA-256 of
the samples. A file that is truncated, changed, of another format or made from other sources does not match. It is then
built again and replaced. Two processes that build the same file write two temporary files with the same content. The
second rename replaces the first file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from stsbp_spec.engine.kernel_cache import cache_root
from stsbp_spec.typing import Int64, Shape, UInt8

from stsbp import budget, records
from stsbp.datasets.base import ArraySplit, FrameSplit, MappedSamples, Progress, ProgressCallback, Skipped, stamp_of
from stsbp.errors import DataError, FileError
from stsbp.files import GIGABYTE, MEGABYTE, atomic_writer, open_regular, read_regular, real, write_atomically

__all__ = [
    "CacheForm",
    "CacheWriter",
    "Cached",
    "Digests",
    "SourceFiles",
    "cached",
    "combine_digests",
    "default_cache_dir",
    "digest_files",
    "expanded",
    "read_unchanged",
]

FORMAT = 2
"""Version of the layout of samples. Version 1 had frames as bits along the pixels, and images channels-first."""
_MANIFEST_FORMAT = 1
_MAGIC = b"stsbp-cache".ljust(64, b"\0")
_TAIL = 32 + 8
_LARGEST = 2**62
"""A cache is mapped, not read, so its size is not limited. Source files are limited when their digests are computed."""

_RACY_NS = 2_000_000_000
"""If a file was changed less than this before it was hashed, a later change may have the same time stamp. Its digest is
then not stored."""


def default_cache_dir() -> Path:
    """`$STSBP_CACHE`, else `$XDG_CACHE_HOME/stsbp`, else `~/.cache/stsbp`. Raises `DataError` if there is no home."""
    try:
        return cache_root()
    except RuntimeError as error:
        raise DataError(f"no folder for the cache: {error}; the environment variable STSBP_CACHE names one") from error


def expanded(path: Path) -> Path:
    """`path` with a leading `~` replaced. Raises `DataError` if the user does not exist."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(f"cannot find {path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Cached:
    """The content of a cache file.

    Attributes:
        data: samples `[n, ...]`, memory-mapped read-only.
        labels: `[n]`.
        skipped: sources that were left out.
        lengths: number of steps of each sample, `[n]`, if they were given.
        sha256: SHA-256 of the bytes of the samples, which was checked.
        events: numbers of events after the window and of all events, if they were counted. For sounds: of recordings
            that end after the window, and of all recordings.
    """

    data: UInt8
    labels: Int64
    skipped: tuple[Skipped, ...]
    lengths: Int64 | None = None
    sha256: str = ""
    events: tuple[int, int] | None = None

    def frames(self, steps: int, *, binary: bool = True) -> FrameSplit:
        """The samples as frames of `steps` steps."""
        return FrameSplit(self.data, self.labels, steps, binary, self.lengths, self.sha256)

    def images(self) -> ArraySplit:
        """The samples as images."""
        return ArraySplit(self.data, self.labels, self.sha256)


class CacheForm(NamedTuple):
    """What the cache of a data set holds, whatever its samples are. A file with other contents is damaged.

    Attributes:
        labels: all labels are below this number, and none is negative.
        sizes: possible sizes of each axis of a sample as it is stored.
        steps: largest number of steps of a sample; 0: the samples have no lengths of their own.
        events: whether events were counted.
    """

    labels: int
    sizes: tuple[Container[int], ...]
    steps: int = 0
    events: bool = False

    @classmethod
    def of_frames(
        cls, labels: int, shape: Shape, steps: int, *, binary: bool = True, own_lengths: bool, events: bool = False
    ) -> CacheForm:
        """The form of frames `(C, H, W)` or `(N,)`, as `FrameSplit.store` returns them."""
        stored_shape = (-(-steps // 8) if binary else steps, *shape[1:], shape[0])
        return cls(labels, tuple((size,) for size in stored_shape), steps if own_lengths else 0, events)

    def is_of(self, content: Cached) -> bool:
        """Whether the content of a cache has this form."""
        shape, labels, lengths = content.data.shape[1:], content.labels, content.lengths
        return (
            len(shape) == len(self.sizes)
            and all(size in sizes for size, sizes in zip(shape, self.sizes, strict=True))
            and 0 <= labels.min() <= labels.max() < self.labels
            and (lengths is None) == (self.steps == 0)
            and (lengths is None or 1 <= lengths.min() <= lengths.max() <= self.steps)
            and (content.events is not None) == self.events
        )


class SourceFiles(NamedTuple):
    """The files of a data set, for the budget: a name for messages, their size in bytes, and the number of samples."""

    name: object
    size: int
    samples: int


class Digests(dict[str, str]):
    """Digests of files by relative path.

    Attributes:
        size: size of all files in bytes.
    """

    size = 0


# One file, so a set must fit on the disk. Shards would need an order of samples that depends on seed and epoch only. In
# WebDataset and MosaicML streaming, it can depend on the number of workers, and so could the bits of a run.
class CacheWriter:
    """Receives samples while a cache file is built."""

    def __init__(self, file: BinaryIO, rebuilt: bool = False, check: Callable[[int], None] | None = None) -> None:
        self._check = check
        self.rebuild_reason = ", because its cache is damaged or of another version" if rebuilt else ""
        """The reason why samples are read again, as the end of a sentence."""
        self._file = file
        self._digest = hashlib.sha256()
        self._record: tuple[int, ...] | None = None
        self._labels: list[int] = []
        self._lengths: list[int] = []
        self._events: tuple[int, int] | None = None
        self._skipped: list[Skipped] = []
        file.write(_MAGIC)

    def add(self, samples: UInt8, labels: Sequence[int] | Int64, lengths: Sequence[int] | Int64 | None = None) -> None:
        """Append samples `[m, ...]` uint8 and their classes `[m]`. All samples have the same shape.

        Samples of different lengths are padded at their ends; `lengths` `[m]` are then their numbers of steps. Lengths
        are given for all samples or for none.
        """
        if self._record is None:
            self._record = samples.shape[1:]
            if self._check is not None:
                self._check(math.prod(self._record))
        if samples.dtype != np.uint8 or samples.shape != (len(labels), *self._record):
            raise DataError(
                f"expected uint8 samples of shape {list(self._record)}, got {samples.dtype} {list(samples.shape[1:])}"
            )
        self._lengths.extend(int(length) for length in (() if lengths is None else lengths))
        if len(self._lengths) not in (0, len(self._labels) + len(labels)) or (lengths is None and self._lengths):
            raise DataError("lengths are given of all samples of a cache, one each, or of none")
        block = np.ascontiguousarray(samples).data.cast("B") if samples.size else b""
        self._digest.update(block)
        self._file.write(block)
        self._labels.extend(int(label) for label in labels)

    def count_events(self, late_count: int, count: int) -> None:
        """Count the events of a sample: those after the window, and all. Or recordings of sounds, as in `Cached`."""
        late_sum, total = self._events or (0, 0)
        self._events = late_sum + late_count, total + count

    def skip(self, path: str, reason: str) -> None:
        """Record that a source was left out. `path` is relative to the root of the sources."""
        self._skipped.append(Skipped(path, reason))

    def finish(self, key: Mapping[str, Any], root: Path | None = None) -> None:
        """Write the description. `root` is the folder to which the paths of left-out sources are relative.

        Raises:
            DataError: all sources were left out.
        """
        if self._skipped and not self._labels:
            path, reason = self._skipped[0]
            raise DataError(
                f"{path if root is None else root / path}: {reason}. No sample is left: all {len(self._skipped):,} are "
                "malformed"
            )
        description = json.dumps(
            {
                "key": key,
                "shape": [len(self._labels), *(self._record or (0,))],
                "sha256": self._digest.hexdigest(),
                "labels": self._labels,
                "skipped": self._skipped,
                **({"lengths": self._lengths} if self._lengths else {}),
                **({"events": self._events} if self._events is not None else {}),
            }
        ).encode()
        self._file.write(description)
        self._file.write(hashlib.sha256(description).digest())
        self._file.write(len(description).to_bytes(8, "little"))


def _read_cache(path: Path, key: Mapping[str, Any]) -> Cached | None:
    """The content of a cache file, or None if any part of it does not match."""
    try:
        with open_regular(path, _LARGEST) as file:
            stamp = stamp_of(file)
            size = stamp[0]
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)
            length = int.from_bytes(tail[32:], "little")
            end = size - _TAIL - length
            if len(tail) != _TAIL or end < len(_MAGIC):
                return None
            file.seek(0)
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            file.seek(end)
            text = file.read(length)
            if hashlib.sha256(text).digest() != tail[:32]:
                return None
            description = records.read(records.Cache, records.parse(text))
            shape = tuple(description.shape)
            if description.key != key or end - len(_MAGIC) != math.prod(shape) or shape[0] == 0:
                return None
            digest, remaining = hashlib.sha256(), math.prod(shape)
            file.seek(len(_MAGIC))
            # Read instead of mapped, because the file may be cut meanwhile.
            while remaining and (chunk := file.read(min(remaining, MEGABYTE))):
                digest.update(chunk)
                remaining -= len(chunk)
            if remaining or digest.hexdigest() != description.sha256:
                return None
            data = MappedSamples.of(path, file, len(_MAGIC), shape, stamp)
    except (OSError, ValueError):
        return None
    skipped = tuple(Skipped(*pair) for pair in description.skipped)
    lengths = None if description.lengths is None else np.array(description.lengths, dtype=np.int64)
    events = None if description.events is None else (description.events[0], description.events[1])
    return Cached(data, np.array(description.labels, dtype=np.int64), skipped, lengths, description.sha256, events)


def cached(
    kind: str,
    key: Mapping[str, Any],
    *,
    cache_dir: Path,
    build: Callable[[CacheWriter], None],
    root: Path | None = None,
    source: SourceFiles | None = None,
    form: CacheForm | None = None,
) -> Cached:
    """The cached data for `key`. If there is no matching file, `build` makes it.

    Args:
        kind: beginning of the file's name.
        key: JSON values that determine the content completely.
        cache_dir: folder of the cache; it is made if it is missing.
        build: function that adds the samples to the writer.
        root: folder to which the paths of left-out sources are relative. It is not part of the key, so that data can
            be moved.
        source: the files. If they are given, the cache must stay within their budget (`stsbp.budget`).
        form: what the samples have in common. A file whose contents differ is built again, as a damaged one is.

    Raises:
        DataError: the cache folder cannot be written, the sources contain no samples, or the cache is larger than the
            budget.
    """
    # Convert to JSON and back, so that it can be compared with the content of a file (tuples become lists).
    full_key = json.loads(json.dumps({**key, "kind": kind, "format": FORMAT}, sort_keys=True))
    # All formats except the first use the same name, so that a file replaces one of another format.
    path, first_format_path = (
        cache_dir / f"{kind}-{hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]}.cache"
        for named in ({**key, "kind": kind}, {**full_key, "format": 1})
    )

    def check(sample_bytes: int) -> None:
        if source is not None:
            budget.check_disk(source.samples * sample_bytes, source.size, source.name, cache_dir)

    content = _read_cache(path, full_key)
    if content is None or not (form is None or form.is_of(content)):
        try:
            with atomic_writer(path, own_folder=True) as file:
                writer = CacheWriter(file, path.is_file() or first_format_path.is_file(), check)
                build(writer)
                writer.finish(full_key, root)
        except FileError as error:
            raise _unwritable(error) from error
        content = _read_cache(path, full_key)
        if content is not None:
            with contextlib.suppress(OSError):
                first_format_path.unlink(missing_ok=True)
    if content is None:
        raise DataError(f"{kind}: no usable samples were found, or {path} cannot be read back")
    if root is None:
        return content
    return replace(content, skipped=tuple(Skipped(str(root / s.path), s.reason) for s in content.skipped))


def _unwritable(error: FileError) -> DataError:
    return DataError(
        f"the cache of decoded samples: {error}; choose another folder with the environment variable STSBP_CACHE"
    )


def combine_digests(digests: Mapping[str, str]) -> str:
    """One SHA-256 for a set of files, from their relative names and contents."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def digest_files(
    root: Path,
    files: Sequence[str],
    *,
    cache_dir: Path,
    max_bytes: int = GIGABYTE,
    progress: ProgressCallback | None = None,
) -> Digests:
    """SHA-256 of the contents of files below `root` by relative path: regular files of at most `max_bytes`.

    A manifest in the cache folder stores the digest of each file below `root` together with its size, modification time
    and change time. Only new or changed files are then read again.

    Raises:
        DataError: a file cannot be read, or the manifest cannot be written.
    """
    # The name of a folder may not be valid UTF-8.
    name = hashlib.sha256(str(real(root)).encode(errors="surrogatepass")).hexdigest()[:32]
    manifest = cache_dir / f"manifest-{name}.json"
    known_entries = _read_manifest(manifest)
    digests = Digests()
    requested = set(files)
    entries = {
        known_path: entry
        for known_path, entry in known_entries.items()
        if known_path not in requested and (root / known_path).is_file()
    }
    report = Progress(progress, f"checking {root}", len(files))
    for files_done, relative in enumerate(files, 1):
        path = root / relative
        try:
            status = path.stat()
            digests.size += status.st_size
            stamp: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            entry = known_entries.get(relative)
            if entry is not None and entry[:3] == stamp:
                digests[relative] = str(entry[3])
                entries[relative] = entry
            else:
                hashed_at = time.time_ns()
                digest = hashlib.sha256()
                with open_regular(path, max_bytes) as file:
                    # Read in pieces, because a file may be larger than the memory.
                    while chunk := file.read(MEGABYTE):
                        digest.update(chunk)
                digests[relative] = digest.hexdigest()
                if max(status.st_mtime_ns, status.st_ctime_ns) < hashed_at - _RACY_NS:
                    entries[relative] = [*stamp, digests[relative]]
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        report(files_done)
    if entries != known_entries:
        try:
            content = {"format": _MANIFEST_FORMAT, "files": entries, "sha256": _digest_entries(entries)}
            write_atomically(manifest, json.dumps(content).encode(), own_folder=True)
        except FileError as error:
            raise _unwritable(error) from error
    return digests


def _read_manifest(path: Path) -> dict[str, list[int | str]]:
    try:
        manifest = records.read(records.Manifest, records.parse(read_regular(path, GIGABYTE)))
    except (OSError, ValueError):
        return {}
    # Ignore a damaged manifest. With a wrong digest in it, unchanged files would seem to have changed.
    return (
        manifest.files
        if manifest.format == _MANIFEST_FORMAT and manifest.sha256 == _digest_entries(manifest.files)
        else {}
    )


def _digest_entries(entries: dict[str, list[int | str]]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def read_unchanged(path: Path, digest: str) -> bytes:
    """Content of a file whose digest was computed before.

    Raises:
        DataError: the file cannot be read, or has changed since.
    """
    try:
        content = read_regular(path, _LARGEST)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} changed while it was read; run again when nothing writes to it")
    return content
