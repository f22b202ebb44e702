"""The files of a data set of the library `datasets` of Hugging Face: its folders, and the columns of its Arrow files.

The library itself is not used. Its folders contain JSON and Arrow files. The JSON is read as that of stsbp is, and the
Arrow files message by message with pyarrow, which reads no code and unpickles nothing. Paths within the data are never
opened. Three kinds of folders are read:

- `DatasetDict.save_to_disk`: `dataset_dict.json`, and a folder of the next kind for each split;
- `Dataset.save_to_disk`: `state.json`, which names the Arrow files, and `dataset_info.json`;
- the cache of `load_dataset`, `OWNER___NAME/CONFIG/VERSION/COMMIT`: `dataset_info.json`, which names the splits, and
  Arrow files `NAME-SPLIT.arrow` or `NAME-SPLIT-00000-of-00002.arrow`.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pydantic import Field
from stsbp_spec.typing import AnyArray
from stsbp_spec.validation import listed, shown

from stsbp import records
from stsbp.datasets.hf_names import HUB_NAME
from stsbp.errors import DataError, StsbpError
from stsbp.files import GIGABYTE, MEGABYTE, has_file, has_folder, open_regular, read_regular
from stsbp.records import Count, Record

__all__ = [
    "LARGEST_FILE",
    "SplitFiles",
    "cached_folder",
    "read_batches",
    "require_pyarrow",
    "sample_values",
    "splits_of",
]

LARGEST_FILE = 64 * GIGABYTE
_SPLIT = re.compile(r"\w+(\.\w+)*")
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a complete stream of Arrow messages."""


class _SavedFile(Record):
    filename: str


class _State(Record):
    """`state.json` of a data set that was saved."""

    data_files: list[_SavedFile] = Field(alias="_data_files")
    indices_files: list[_SavedFile] | None = Field(default=None, alias="_indices_data_files")


class _CachedSplit(Record):
    num_examples: Count


class _DatasetInfo(Record):
    """`dataset_info.json`."""

    features: dict[str, Any] | None = None
    splits: dict[str, _CachedSplit] | None = None


class _DatasetDict(Record):
    """`dataset_dict.json`."""

    splits: list[str]


class SplitFiles(NamedTuple):
    """The files of a split.

    Attributes:
        name: name of the split; "": the data set has no splits.
        root: folder of the data set.
        files: its Arrow files, relative to `root`.
        features: the description of each column, as the library stores it.
        samples: number of its samples, if a file says so.
    """

    name: str
    root: Path
    files: tuple[str, ...]
    features: Mapping[str, Any]
    samples: int | None = None

    def __str__(self) -> str:
        return f"{self.root}, split {self.name}" if self.name else str(self.root)


def require_pyarrow() -> Any:
    """Import pyarrow.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f'data sets of Hugging Face need the library pyarrow ({error}): pip install "stsbp[hf]"'
        ) from error
    return pyarrow


def _record(record_type: type[Any], path: Path) -> Any:
    """A JSON file of the library.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    try:
        return records.read(record_type, records.parse(read_regular(path, 64 * MEGABYTE)))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({records.reason(error)}); save or load the data set again") from error


def cached_folder(path: Path) -> Path:
    """The folder of a data set: `path`, or for `OWNER/NAME@COMMIT` that of the cache of the library `datasets`.

    Raises:
        DataError: there is no such folder, or the cache has several configurations of the data set.
    """
    if has_folder(path):
        return path
    reference = HUB_NAME.fullmatch(str(path))
    if reference is None:
        last = "/".join(path.parts[-2:])
        raise DataError(
            f"there is no folder {path}. Give one that Dataset.save_to_disk has written, hf:FOLDER, or the commit of a "
            f"data set of the Hub that load_dataset has loaded before, hf:OWNER/NAME@COMMIT, for example hf:{last}@..."
        )
    owner, name, commit = reference["owner"], reference["name"], reference["commit"]
    # The library names the folders of its cache in this way (`camelcase_to_snakecase`).
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()
    cache = _cache_root() / f"{owner}___{snake}"
    folders = sorted(folder for folder in cache.glob(f"*/*/{commit}") if folder.is_dir())
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise DataError(
            f"{cache} has {len(folders)} configurations of {path}; give one of the folders: "
            + listed(f"hf:{folder}" for folder in folders)
        )
    others = sorted({folder.name for folder in cache.glob("*/*/*") if folder.is_dir()})
    has = f"it has the commits {listed(others)}" if others else f"there is no folder {cache}"
    raise DataError(
        f"the cache of the library datasets does not have {path}: {has}. stsbp downloads no data sets; load it once in "
        f"Python: datasets.load_dataset({f'{owner}/{name}'!r}, revision={commit!r})"
    )


def _cache_root() -> Path:
    """The cache of the library `datasets`."""
    environment = os.environ
    if folder := environment.get("HF_DATASETS_CACHE"):
        return Path(folder)
    if home := environment.get("HF_HOME"):
        return Path(home) / "datasets"
    try:
        cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise DataError(f"no cache of the library datasets: {error}; set HF_DATASETS_CACHE") from error
    return cache / "huggingface" / "datasets"


def splits_of(root: Path) -> dict[str, SplitFiles]:
    """The splits of a data set by their names; the name is "" if it has none.

    Raises:
        DataError: the folder is none of the library, or a file is missing or damaged.
    """
    if has_file(root / "dataset_dict.json"):
        names = _record(_DatasetDict, root / "dataset_dict.json").splits
        return {name: _saved(root, _split_name(name, root / "dataset_dict.json")) for name in names}
    if has_file(root / "state.json"):
        return {"": _saved(root, "")}
    if has_file(root / "dataset_info.json"):
        return _of_cache(root)
    parquet = "; load its parquet files with datasets.load_dataset, and save them" if [*root.glob("*.parquet")] else ""
    raise DataError(
        f"{root} is no data set of the library datasets: it has neither dataset_dict.json nor state.json, which "
        f"save_to_disk writes, nor the dataset_info.json of a cache{parquet}"
    )


def _split_name(name: str, path: Path) -> str:
    """The name of a split, which is also that of a folder. Raises `DataError` if it may lead elsewhere."""
    if not _SPLIT.fullmatch(name):
        raise DataError(f"{path} is damaged: {shown(name)} is no name of a split")
    return name


def _features(root: Path) -> tuple[Mapping[str, Any], _DatasetInfo]:
    path = root / "dataset_info.json"
    info: _DatasetInfo = _record(_DatasetInfo, path)
    if not info.features:
        raise DataError(f"{path} does not describe its columns (features); save or load the data set again")
    return info.features, info


def _saved(root: Path, name: str) -> SplitFiles:
    """A split that was saved into a folder of its own."""
    folder = root / name if name else root
    state: _State = _record(_State, folder / "state.json")
    if state.indices_files:
        raise DataError(f"{folder} was saved with indices; save it again with dataset.flatten_indices()")
    files = []
    for file in (data_file.filename for data_file in state.data_files):
        if Path(file).name != file or "\0" in file:
            raise DataError(f"{folder / 'state.json'} is damaged: {shown(file)} is no file of its folder")
        if not has_file(folder / file):
            raise DataError(f"{folder / file} is missing, which state.json names; save the data set again")
        if file in files:
            raise DataError(f"{folder / 'state.json'} names {shown(file)} twice; save the data set again")
        files.append(file)
    files = [f"{name}/{file}" if name else file for file in files]
    return SplitFiles(name, root, tuple(files), _features(folder)[0])


def _of_cache(root: Path) -> dict[str, SplitFiles]:
    """The splits of a data set in the cache of the library."""
    features, info = _features(root)
    splits = {}
    for name, split in (info.splits or {}).items():
        pattern = re.compile(rf".+-{re.escape(_split_name(name, root))}(-\d{{5}}-of-(\d{{5}}))?\.arrow")
        files = sorted(path.name for path in root.glob("*.arrow") if pattern.fullmatch(path.name))
        splits[name] = SplitFiles(name, root, tuple(files), features, split.num_examples)
    if not any(split.files for split in splits.values()):
        raise DataError(f"{root} has no Arrow files of the splits in dataset_info.json; load the data set again")
    return splits


class _CountedFile:
    """A file that is read once from its beginning to its end, with the digest of what was read.

    Arrow asks for as many bytes as a message declares, and would allocate memory for them. No more are given than the
    file has.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.left = file, os.fstat(file.fileno()).st_size
        self._digest, self.tail, self.closed = hashlib.sha256(), b"", False

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(content)
        self._digest.update(content)
        self.tail = (self.tail + content[-len(_END) :])[-len(_END) :]
        return content

    def close(self) -> None:
        self.closed = True

    def digest(self) -> str:
        """SHA-256 of the whole file."""
        while self.read(MEGABYTE):
            pass
        return self._digest.hexdigest()


def _field(table: bytes, start: int, index: int) -> int:
    """Position of a field of a table of a flatbuffer; 0: it is absent."""
    directory = start - struct.unpack_from("<i", table, start)[0]
    (size,) = struct.unpack_from("<H", table, directory)
    if 4 + 2 * index >= size:
        return 0
    (offset,) = struct.unpack_from("<H", table, directory + 4 + 2 * index)
    return start + int(offset) if offset else 0


def _is_compressed(metadata: bytes) -> bool:
    """Whether the buffers of a record batch are compressed. pyarrow does not say so before it unpacks them."""
    header = _field(metadata, struct.unpack_from("<I", metadata, 0)[0], 2)
    return bool(_field(metadata, header + struct.unpack_from("<I", metadata, header)[0], 3))


def read_batches(
    split: SplitFiles, digests: Mapping[str, str], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The samples of a split, a record batch at a time: the number of its first sample, and pyarrow arrays by column.

    Args:
        split: the split.
        digests: SHA-256 of its files, by their names.
        columns: names of the columns.

    Raises:
        DataError: a file is damaged, cut off, compressed, or has changed; or the split has another number of samples.
    """
    samples = 0
    for relative in split.files:
        path = split.root / relative
        try:
            with open_regular(path, LARGEST_FILE) as content:
                file = _CountedFile(content)
                for batch in _batches(file, columns):
                    yield samples, batch
                    samples += len(batch[columns[0]])
                if file.tail != _END:
                    raise ValueError("it ends early, and may be cut off")
                if file.left:
                    raise ValueError(f"it goes on for {file.left:,} bytes after the end of its table")
                if file.digest() != digests[relative]:
                    raise DataError(f"{path} changed while it was read; run again when nothing writes to it")
        except StsbpError:
            raise
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:
            # A forged file can make pyarrow raise almost any error.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{path} is damaged, or no Arrow file of the library datasets: {reason}; save or load the data set anew"
            ) from error
    if split.samples not in (None, samples):
        raise DataError(
            f"{split} has {samples:,} samples in {len(split.files)} files, but {split.samples:,} by its "
            "dataset_info.json: a file is missing or of another version; load the data set again"
        )


def _batches(file: _CountedFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Checked columns of the record batches of an open file. Raises almost any error if it is damaged."""
    arrow = require_pyarrow()
    import pyarrow.ipc

    messages = pyarrow.ipc.MessageReader.open_stream(arrow.PythonFile(file, mode="r"))
    first = messages.read_next_message()
    # pyarrow takes any message for a schema, and crashes.
    if first.type != "schema":
        raise ValueError(f"it begins with a message of the kind {first.type}")
    schema = pyarrow.ipc.read_schema(first)
    if absent := [name for name in columns if schema.names.count(name) != 1]:
        raise ValueError(f"it has no column {shown(absent[0])}")
    for message in messages:
        if message.type != "record batch":
            raise ValueError(f"it has a message of the kind {message.type}")
        # A few compressed bytes can mean many gigabytes. The library compresses nothing.
        if _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("its columns are compressed, which the library datasets does not do")
        batch = pyarrow.ipc.read_record_batch(message, schema)
        arrays = {name: batch.column(schema.get_field_index(name)) for name in columns}
        for array in arrays.values():
            array.validate(full=True)
        if batch.num_rows:
            yield arrays


def sample_values(array: Any, place: str, first: int) -> AnyArray:
    """The values of a column of arrays or numbers, `[n, ...]`.

    Args:
        array: the column as an array of pyarrow.
        place: names split and column in messages.
        first: the number of its first sample.

    Raises:
        DataError: a value is missing, samples have different shapes, or values are no numbers.
    """
    arrow = require_pyarrow()
    import pyarrow.compute

    count, sizes = len(array), list[int]()
    # Only if a program has imported the library, its types are known.
    array = array.storage if isinstance(array.type, arrow.ExtensionType) else array
    is_list = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    while True:
        inner = len(array) // count
        if array.null_count:
            k = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]) // max(1, inner)
            raise DataError(f"{place}: sample {first + k} has missing values (null); fill in or leave out such samples")
        if not any(test(array.type) for test in is_list):
            break
        lengths = pyarrow.compute.list_value_length(array).to_numpy(zero_copy_only=False)
        if (other := np.flatnonzero(lengths != lengths[0])).size:
            raise DataError(
                f"{place}: samples have different shapes: sample {first + int(other[0]) // inner} has "
                f"{lengths[other[0]]} entries in axis {len(sizes)}, but sample {first} has {lengths[0]}; all must have "
                "the same shape (pad spike trains with zeros, and give their numbers of steps in a column lengths)"
            )
        sizes.append(int(lengths[0]))
        array = array.flatten()
        if not len(array):
            raise DataError(f"{place}: sample {first} has no values")
    types = arrow.types
    if not (types.is_boolean(array.type) or types.is_integer(array.type) or types.is_floating(array.type)):
        raise DataError(f"{place}: expected numbers or bool, got values of the type {array.type}")
    values: AnyArray = array.to_numpy(zero_copy_only=False)
    return values.reshape(count, *sizes)
