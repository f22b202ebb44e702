"""Data sets of the library `datasets` of Hugging Face that lie on the disk: images, or spike rasters.

`hf:FOLDER` is a folder that `save_to_disk` has written, or one of the library's cache, and `hf:OWNER/NAME@COMMIT` a
data set of the Hub in that cache. Columns are recognised by their names and features:

- images: a column `image` (or `img`, or the only one with the feature `Image`), with this feature or as uint8 arrays
  `[H, W]`, `[H, W, C]` or `[C, H, W]`;
- rasters: a column `inputs`, 0 and 1, arrays `[T, N]` or `[T, C, H, W]`, and optionally `lengths`;
- classes: a column `label` or `labels`, or the only one with the feature `ClassLabel`;
- target sequences of rasters: a column `targets`, arrays `[T, N]` of integers 0 and 1, or of floats.

Images and rasters with classes are decoded once into the cache. `stsbp.datasets.hf_tables` reads the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp_spec.typing import AnyArray, Float32, Int64, Shape, UInt8
from stsbp_spec.validation import MAX_SIZE, listed

from stsbp import budget
from stsbp.datasets.base import (
    MOST_CLASSES,
    ArraySplit,
    Dataset,
    FrameSplit,
    Progress,
    Request,
    Skipped,
    Split,
    cut_test,
    left_out,
    names_unreadable,
)
from stsbp.datasets.cache import (
    Cached,
    CacheForm,
    CacheWriter,
    Digests,
    cached,
    combine_digests,
    digest_files,
)
from stsbp.datasets.hf_tables import (
    LARGEST_FILE,
    SplitFiles,
    cached_folder,
    read_batches,
    require_pyarrow,
    sample_values,
    splits_of,
)
from stsbp.datasets.image_folder import IMAGES, MAX_BYTES, read_image
from stsbp.datasets.info import DatasetInfo
from stsbp.datasets.sequences import SEQUENCES, SequenceSplit, real_targets
from stsbp.errors import DataError

__all__ = ["HF", "info_at", "load", "steps_of"]

_READING = 1
"""Increased whenever files are read to other samples, so that older cached samples are not used."""
_TEST_SHARE = 0.2
_COPIES = 3
"""How often rasters and targets are in memory while they are converted."""
_PER_SAMPLE = 1024
"""Share of a sample in the budget, in bytes, because reading takes time for each, however few bytes it has."""
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels")
_FORMS = (
    "expected images in a column image and classes in a column label, or rasters in a column inputs with a column "
    "label or targets; rename columns with dataset.rename_column(OLD, NEW)"
)


class _Columns(NamedTuple):
    """Names of the columns that are read, and what they are.

    Attributes:
        images: whether inputs are images, not rasters.
        encoded: whether images are files (the feature `Image`), not arrays.
        inputs: column of the inputs.
        answers: column of the classes, or of the target sequences.
        sequences: whether answers are target sequences.
        lengths: column of the numbers of steps; "": there is none.
        classes: names of the classes; empty: they are the numbers.
    """

    images: bool
    encoded: bool
    inputs: str
    answers: str
    sequences: bool
    lengths: str = ""
    classes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (self.inputs, self.answers, *([self.lengths] if self.lengths else []))


def _kind(feature: Any) -> str:
    """The name of the class of a feature; "": it is a list or a dictionary of features."""
    kind = feature.get("_type", "") if isinstance(feature, Mapping) else ""
    return kind if isinstance(kind, str) else ""


def _chosen(split: SplitFiles, names: tuple[str, ...], kind: str) -> str:
    """The column with one of these names, or else the only one with a feature of this kind; "": there is none.

    Raises:
        DataError: there are several.
    """
    named = [name for name in names if name in split.features]
    chosen = named or [name for name, feature in split.features.items() if _kind(feature) == kind]
    if len(chosen) > 1:
        raise DataError(
            f"{split}: the columns {listed(chosen)} could all be the one that stsbp calls {names[0]}; leave out all "
            "but one with dataset.remove_columns([...])"
        )
    return chosen[0] if chosen else ""


def _columns(split: SplitFiles) -> _Columns:
    """Which columns of a split are read.

    Raises:
        DataError: there are no inputs or no answers, or more than one column could be them.
    """
    features = split.features
    targets = "targets" if "targets" in features else ""
    label = _chosen(split, _LABEL_NAMES, "ClassLabel") if not targets else ""
    images = "" if "inputs" in features else _chosen(split, _IMAGE_NAMES, "Image")
    if not images and "inputs" not in features:
        raise DataError(f"{split} has the columns {_listed_features(features)}: {_FORMS}")
    if not targets and not label:
        raise DataError(f"{split} has no column of classes or targets, only {_listed_features(features)}: {_FORMS}")
    if images and targets:
        raise DataError(
            f"{split} has images with targets; images need classes in a column label, and target sequences need "
            "rasters in a column inputs. Give images with targets to stsbp.train as arrays"
        )
    classes = _class_names(split, label) if label else ()
    if images:
        return _Columns(True, _kind(features[images]) == "Image", images, label, False, "", classes)
    lengths = "lengths" if "lengths" in features else ""
    return _Columns(False, False, "inputs", targets or label, bool(targets), lengths, classes)


def _listed_features(features: Mapping[str, Any]) -> str:
    """Columns with their features, for a message."""
    return listed(f"{name} ({_kind(feature) or 'nested'})" for name, feature in features.items())


def _class_names(split: SplitFiles, label: str) -> tuple[str, ...]:
    """Names of the classes of a `ClassLabel`; empty for a column of integers.

    Raises:
        DataError: the column is neither.
    """
    feature = split.features[label]
    if _kind(feature) == "ClassLabel":
        names = feature.get("names")
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise DataError(f"{split}: the column {label} is a ClassLabel without names; give names to ClassLabel(...)")
        if len(names) > MOST_CLASSES:
            raise DataError(f"{split}: a data set has at most {MOST_CLASSES:,} classes, got {len(names):,}")
        return tuple(names)
    dtype = feature.get("dtype") if _kind(feature) == "Value" else None
    if not (isinstance(dtype, str) and dtype.lstrip("u").startswith("int")):
        shown_type = dtype or _kind(feature) or "nested"
        raise DataError(
            f"{split}: the column {label} must be classes, a ClassLabel or integers, got {shown_type}; convert texts "
            f"with dataset.class_encode_column({label!r})"
        )
    return ()


def _labels(array: Any, place: str, first: int, classes: tuple[str, ...]) -> Int64:
    """Classes of samples, `[n]`. Raises `DataError` if one is missing or out of its range."""
    values = sample_values(array, place, first)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{place} must be classes, one integer for each sample, got {values.dtype} {list(values.shape)}"
        )
    most = len(classes) or MOST_CLASSES
    wrong = np.flatnonzero((values < 0) | (values >= most))
    if wrong.size:
        k, value = int(wrong[0]), int(values[wrong[0]])
        if value == -1:
            raise DataError(
                f"{place}: sample {first + k} has the class -1, which stands for a missing one; leave such samples out "
                f"with dataset.filter, or leave the whole split out"
            )
        raise DataError(f"{place}: classes must be 0 to {most - 1}, but sample {first + k} has {value}")
    return values.astype(np.int64)


def _spikes(values: AnyArray, place: str, first: int) -> UInt8:
    """Rasters `[n, T, ...]` as bytes. Raises `DataError` if they are no rasters of zeros and ones."""
    if values.ndim not in (3, 5):
        raise DataError(
            f"{place} must be rasters, each [T, N] or [T, C, H, W], got {list(values.shape[1:])}; images are in a "
            "column image"
        )
    wrong = np.argwhere((values != 0) & (values != 1))
    if wrong.size:
        where = tuple(wrong[0])
        raise DataError(
            f"{place} must be spikes, 0 and 1, but sample {first + int(where[0])} has {values[where]} at "
            f"{[int(i) for i in where[1:]]}"
        )
    return values.astype(np.uint8)


def _pixels(values: AnyArray, place: str) -> UInt8:
    """Images `[n, H, W, C]` from arrays. Raises `DataError` if they are no grey or coloured images of bytes."""
    if values.dtype != np.uint8:
        raise DataError(
            f"{place} must be images of uint8, got {values.dtype}; convert pixels between 0 and 1 with "
            "(x * 255).round().astype('uint8')"
        )
    if values.ndim == 3:
        return values[..., np.newaxis]
    axes = [axis for axis in (3, 1) if values.ndim == 4 and values.shape[axis] in (1, 3)]
    if len(axes) != 1:
        raise DataError(
            f"{place} must be images [H, W], or [H, W, C] or [C, H, W] with 1 or 3 channels C, got "
            f"{list(values.shape[1:])}" + ("; it is not clear which axis is that of the channels" if axes else "")
        )
    return np.ascontiguousarray(np.moveaxis(values, axes[0], -1))


class _Reader:
    """Reads the splits of a data set with one set of columns.

    Args:
        splits: the splits that will be read.
        columns: the columns of all of them.
        request: what is asked for.
    """

    def __init__(self, splits: Mapping[str, SplitFiles], columns: _Columns, request: Request) -> None:
        self.columns, self._request = columns, request
        self._digests: dict[str, Digests] = {}
        for name, split in splits.items():
            if not split.files:
                raise DataError(f"{split} has no files, so it has no samples; leave the split out of the data set")
            self._digests[name] = digest_files(
                split.root,
                split.files,
                cache_dir=request.cache_dir,
                max_bytes=LARGEST_FILE,
                progress=request.progress,
            )
        self._size = sum(digests.size for digests in self._digests.values())

    def _place(self, split: SplitFiles, column: str) -> str:
        return f"{split}, column {column}"

    def _batches(self, split: SplitFiles) -> Iterator[tuple[int, dict[str, Any]]]:
        """The samples of a split, a batch at a time. Raises `DataError` also if there are none."""
        samples = 0
        progress = self._request.progress if split.samples else None
        report = Progress(progress, f"reading {split}", split.samples or 0)
        for first, batch in read_batches(split, self._digests[split.name], self.columns.names):
            samples = first + len(batch[self.columns.inputs])
            budget.check_memory(_PER_SAMPLE * samples, self._size, f"{split}, {samples:,} samples")
            yield first, batch
            report(samples)
        if not samples:
            raise DataError(f"{split} has no samples; leave the split out of the data set, or save it with samples")

    def _answer(self, split: SplitFiles, batch: Mapping[str, Any], first: int) -> Int64:
        column = self.columns.answers
        return _labels(batch[column], self._place(split, column), first, self.columns.classes)

    def _cached(
        self, split: SplitFiles, kind: str, build: Callable[[CacheWriter], None], form: CacheForm, **more: int
    ) -> Cached:
        digests, columns = self._digests[split.name], self.columns
        key = {
            "source": combine_digests(digests),
            "files": list(split.files),  # in the order of their samples
            "split": split.name,
            "columns": columns.names,
            "classes": len(columns.classes),
            "image_size": self._request.image_size,
            "skip_malformed": self._request.skip_malformed,
            "reading": _READING,
            **more,
        }
        return cached(kind, key, cache_dir=self._request.cache_dir, build=build, form=form)

    def images(self, split: SplitFiles, channels: int | None) -> tuple[ArraySplit, tuple[Skipped, ...]]:
        """The images of a split, and those that were left out. `channels`: as in the first split; None: this is it."""
        columns, request = self.columns, self._request
        place = self._place(split, columns.inputs)
        if request.image_size is not None and not columns.encoded:
            raise DataError(
                f"{place} has arrays, which are not resized; leave --image-size out, or save images as the feature "
                "Image"
            )

        def build(writer: CacheWriter) -> None:
            shape: Shape | None = None
            size = 0
            for first, batch in self._batches(split):
                labels = self._answer(split, batch, first)
                if not columns.encoded:
                    pixels = _pixels(sample_values(batch[columns.inputs], place, first), place)
                    shape = shape or pixels.shape[1:]
                    if pixels.shape[1:] != shape:
                        raise DataError(_other_shape(place, first, pixels.shape[1:], shape))
                    writer.add(pixels, labels)
                    continue
                for k, content in enumerate(_contents(batch[columns.inputs], place, first)):
                    try:
                        if isinstance(content, DataError):
                            raise content
                        known = channels if shape is None else shape[-1]
                        path = Path(f"{place}, sample {first + k}")
                        image = np.moveaxis(read_image(content, path, channels=known, size=request.image_size), 0, -1)
                        if image.shape != (shape or image.shape):
                            raise DataError(
                                _other_shape(place, first + k, image.shape, shape or ()) + "; --image-size resizes them"
                            )
                    except DataError as error:
                        if not request.skip_malformed:
                            raise
                        writer.skip(f"{place}, sample {first + k}", str(error))
                    else:
                        shape = image.shape
                        # A few bytes can be an image of many pixels, and most data sets do not say how many they have.
                        size += image.nbytes
                        budget.check_disk(size, self._size, split, request.cache_dir)
                        writer.add(image[np.newaxis], labels[k : k + 1])

        allowed = range(1, MAX_SIZE + 1) if request.image_size is None else (request.image_size,)
        form = CacheForm(len(columns.classes) or MOST_CLASSES, (allowed, allowed, (1, 3)))
        content = self._cached(split, "hf-images", build, form)
        return content.images(), content.skipped

    def _rasters(self, split: SplitFiles, batch: Mapping[str, Any], first: int, steps: int) -> tuple[UInt8, Any]:
        """Rasters of a batch, `[n, T, ...]`, and their lengths `[n]`, or None."""
        columns = self.columns
        place = self._place(split, columns.inputs)
        rasters = _spikes(sample_values(batch[columns.inputs], place, first), place, first)
        if rasters.shape[1] != steps:
            stored = rasters.shape[1]
            raise DataError(f"{place}: samples have {stored} steps, not {steps}: give --steps {stored!r}")
        if not columns.lengths:
            return rasters, None
        place = self._place(split, columns.lengths)
        lengths = sample_values(batch[columns.lengths], place, first)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise DataError(f"{place} must be an integer for each sample, got {lengths.dtype} {list(lengths.shape)}")
        if (wrong := np.flatnonzero((lengths < 1) | (lengths > steps))).size:
            k = int(wrong[0])
            raise DataError(f"{place} must be 1 to the {steps} steps, but sample {first + k} has {lengths[k]}")
        return rasters, lengths.astype(np.int64)

    def frames(self, split: SplitFiles) -> tuple[FrameSplit, Shape]:
        """The rasters of a split with classes, and the shape of a step."""
        columns, steps = self.columns, self._request.binning.steps

        def build(writer: CacheWriter) -> None:
            for first, batch in self._batches(split):
                rasters, lengths = self._rasters(split, batch, first, steps)
                writer.add(FrameSplit.store(rasters), self._answer(split, batch, first), lengths)

        sizes = range(1, MAX_SIZE + 1)
        axes = self._axes(split)
        form = CacheForm(
            len(columns.classes) or MOST_CLASSES,
            ((-(-steps // 8),), *(sizes for _ in range(axes - 1))),
            steps if columns.lengths else 0,
        )
        # T is no part of a cached sample, whose last byte may have room for more steps.
        content = self._cached(split, "hf-rasters", build, form, steps=steps)
        stored = content.data.shape[2:]
        shape = tuple(map(int, (stored[-1], *stored[:-1]) if len(stored) == 3 else stored))
        return content.frames(steps), shape

    def _axes(self, split: SplitFiles) -> int:
        """Number of axes of a raster, 2 or 4, from the first batch."""
        column = self.columns.inputs
        place = self._place(split, column)
        first, batch = next(self._batches(split))
        return _spikes(sample_values(batch[column], place, first), place, first).ndim - 1

    def sequences(self, split: SplitFiles) -> tuple[SequenceSplit, Shape, AnyArray]:
        """The rasters of a split with target sequences, the shape of a step, and an empty array like the targets."""
        columns, steps = self.columns, self._request.binning.steps
        place = self._place(split, columns.answers)
        inputs, targets, lengths, needed = list[UInt8](), list[AnyArray](), list[Int64](), 0
        for first, batch in self._batches(split):
            rasters, own_lengths = self._rasters(split, batch, first, steps)
            answers = _target_values(sample_values(batch[columns.answers], place, first), place, first)
            if answers.shape[1] != steps:
                raise DataError(f"{place}: targets have {answers.shape[1]} steps, but the inputs {steps}")
            for column, parts, part in ((columns.inputs, inputs, rasters), (columns.answers, targets, answers)):
                if parts and part.shape[1:] != parts[0].shape[1:]:
                    raise DataError(_other_shape(self._place(split, column), first, part.shape[1:], parts[0].shape[1:]))
            needed += _COPIES * (rasters.nbytes + answers.nbytes)
            budget.check_memory(needed, self._size, f"{split}, {first + len(rasters):,} samples")
            inputs.append(rasters)
            targets.append(answers)
            lengths += [] if own_lengths is None else [own_lengths]
        count = sum(map(len, inputs))
        all_lengths = np.concatenate(lengths) if lengths else None
        all_targets = np.concatenate(targets)
        samples = SequenceSplit(np.concatenate(inputs), all_targets, np.zeros(count, dtype=np.int64), all_lengths)
        return samples, tuple(map(int, inputs[0].shape[2:])), all_targets[:0]


def _other_shape(place: str, sample: int, shape: Shape, first_shape: Shape) -> str:
    return (
        f"{place}: sample {sample} has the shape {list(shape)}, but the first {list(first_shape)}; all must have the "
        "same shape"
    )


def _target_values(values: AnyArray, place: str, first: int) -> AnyArray:
    """Target sequences `[n, T, N]`: spike trains as bytes, or floats as real numbers."""
    if values.ndim != 3:
        raise DataError(f"{place} must be target sequences, each [T, N], got {list(values.shape[1:])}")
    if values.dtype.kind == "f":
        numbers: Float32 = real_targets(place, values)
        return numbers
    return _spikes(values, place, first)


def _contents(array: Any, place: str, first: int) -> Iterator[bytes | DataError]:
    """The files of the images in a column, or an error for what is none."""
    arrow = require_pyarrow()
    array = array.storage if isinstance(array.type, arrow.ExtensionType) else array
    if not (arrow.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0):
        raise DataError(f"{place} must be images, a structure with bytes, got values of the type {array.type}")
    contents = array.field(array.type.get_field_index("bytes"))
    if not (arrow.types.is_binary(contents.type) or arrow.types.is_large_binary(contents.type)):
        raise DataError(f"{place} must be images, a structure with bytes, got bytes of the type {contents.type}")
    for k in range(len(array)):
        content = contents[k]
        if not (array[k].is_valid and content.is_valid):
            # A path in the data could be that of any file of this machine.
            yield DataError(
                f"{place}: sample {first + k} is missing, or is only the path of an image. stsbp opens no paths of a "
                "data set; dataset.save_to_disk stores the images themselves"
            )
        elif content.as_buffer().size > MAX_BYTES:
            yield DataError(f"{place}: sample {first + k} has more than the {MAX_BYTES:,} bytes that an image may have")
        else:
            yield content.as_buffer().to_pybytes()


def _first_split(path: Path) -> SplitFiles:
    """The split that describes the data set: `train`, or else the first one."""
    splits = splits_of(cached_folder(path))
    if not splits:
        raise DataError(f"{path} has no splits; save it with samples")
    return splits.get("train", next(iter(splits.values())))


def info_at(path: Path) -> DatasetInfo:
    """What the data at a path need, which depends on whether they are images or rasters.

    If they cannot be read, `load` says why.
    """
    try:
        return HF if _columns(_first_split(path)).images else _RASTERS
    except (DataError, OSError):
        return HF


def steps_of(path: Path) -> int | None:
    """The number of steps of rasters, if the features of the data set say so."""
    try:
        split = _first_split(path)
        columns = _columns(split)
    except (DataError, OSError):
        return None
    shape = split.features[columns.inputs].get("shape") if _kind(split.features[columns.inputs]) else None
    steps = shape[0] if isinstance(shape, list) and shape and not columns.images else None
    return steps if type(steps) is int and steps > 0 else None


def _used(splits: Mapping[str, SplitFiles], path: Path, request: Request) -> tuple[SplitFiles, SplitFiles | None]:
    """The training samples, or the test samples if only these are needed, and the test samples of the data set itself.

    Raises:
        DataError: there are no training samples.
    """
    names = listed(splits) or "none"
    if "" in splits:
        return splits[""], None
    if request.only_test and "test" in splits:
        return splits["test"], None
    if "train" not in splits:
        raise DataError(
            f"{path} has the splits {names}, but no train, which the samples of the training are; save a "
            "DatasetDict(train=..., test=...)"
        )
    return splits["train"], splits.get("test") if request.wants_own_test and not request.only_test else None


@names_unreadable
def load(request: Request) -> Dataset:
    """The data set at a path. Its split `test` is the test set. Without one, a fifth of the samples is held out.

    Raises:
        DataError: there is no such data set, its columns are none of those that are read, or a file is damaged.
    """
    path = Path(request.argument) if request.argument else request.data_dir
    if path is None:
        raise DataError("name the folder: stsbp train hf:FOLDER, hf:OWNER/NAME@COMMIT, or --data-dir FOLDER")
    splits = splits_of(cached_folder(path))
    first, own_test = _used(splits, path, request)
    used = {split.name: split for split in (first, own_test) if split is not None}
    columns = _columns(first)
    if own_test is not None and (others := _columns(own_test)) != columns:
        raise DataError(
            f"{own_test} has other columns or classes than {first}: {listed(others.names)} with {len(others.classes)} "
            f"named classes, but {listed(columns.names)} with {len(columns.classes)}; save both with the same features"
        )
    require_pyarrow()
    reader = _Reader(used, columns, request)
    skipped: tuple[Skipped, ...] = ()
    samples = list[Split]()
    shapes, neurons, is_real = list[Shape](), 0, False
    for split in used.values():
        if columns.images:
            images, left = reader.images(split, shapes[0][0] if shapes else None)
            skipped += left
            samples.append(images)
            shapes.append(images.shape)
        elif columns.sequences:
            sequences, shape, like = reader.sequences(split)
            samples.append(sequences)
            shapes.append((*shape, like.shape[2], int(like.dtype == np.float32)))
            neurons, is_real = like.shape[2], like.dtype == np.float32
        else:
            frames, shape = reader.frames(split)
            samples.append(frames)
            shapes.append(shape)
    if shapes[0] != shapes[-1]:
        raise DataError(
            f"samples of {own_test} have the shape {list(shapes[-1])}, those of {first} {list(shapes[0])}; they must "
            "agree"
        )
    classes = columns.classes
    if not classes and not columns.sequences:
        classes = tuple(map(str, range(1 + max(int(split.labels.max()) for split in samples))))
    notes = [f"{len(samples[0]):,} samples of {first}, columns {listed(columns.names)}"]
    if own_test is not None:
        train, test = samples
        notes.append(f"{len(test):,} test samples of {own_test}")
    else:
        train, test = cut_test(samples[0], max(1, round(_TEST_SHARE * len(samples[0]))), request)
        if not (request.only_test or request.train_only):
            notes.append(f"{len(test):,} of them held out as test samples (split seed {request.seed})")
    if ignored := [name for name in splits if name not in ("", "train", "test")]:
        notes.append(f"left out of {path}: the splits {listed(ignored)}; only train and test are read")
    notes += left_out(skipped, "images")
    shape = shapes[0][:-2] if columns.sequences else shapes[0]
    coding = HF.coding if columns.images else _RASTERS.coding
    return Dataset(
        "hf", coding, shape, classes, train, test, tuple(notes), skipped, neurons=neurons, real_targets=is_real
    )


HF = DatasetInfo(
    name="hf",
    description="a saved or cached data set of Hugging Face's library datasets, images or spike rasters: hf:PATH",
    coding="direct",
    load=load,
    at=info_at,
    steps=steps_of,
    defaults=IMAGES.defaults,
    test_set="the split test",
    resizable=True,
    extra="hf",
)
"""The data set of `stsbp train hf:PATH` with images, and its default settings."""

_RASTERS = replace(HF, coding="events", defaults=SEQUENCES.defaults, resizable=False)
"""The same with rasters."""
