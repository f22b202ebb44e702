"""CIFAR-10 (Krizhevsky 2009): the published binary version, or its images in class folders.

The version in common use consists of pickled Python objects. Unpickling runs any code in a file, so this version is not
read. The binary version has the same images: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, each with
10,000 records of a label byte and 3,072 bytes of pixels (red, green, blue; row by row).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stsbp.datasets.archives import extract_files
from stsbp.datasets.base import (
    ArraySplit,
    Dataset,
    Progress,
    Request,
    Skipped,
    Split,
    cut_test,
    left_out,
    names_unreadable,
)
from stsbp.datasets.cache import Cached, CacheForm, CacheWriter, cached, combine_digests, digest_files, read_unchanged
from stsbp.datasets.image_folder import load_image_folder
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError
from stsbp.files import has_file, has_folder

__all__ = ["CIFAR10", "CLASSES", "DEFAULT_HOLDOUT", "load"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DEFAULT_HOLDOUT = 1000
SHAPE = (3, 32, 32)
PUBLISHED = {"train": 50_000, "test": 10_000}

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_ARCHIVE = "cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"
_BATCHES = {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)}
_RECORD = 1 + 3 * 32 * 32
_MAX_RECORDS = 60_000


def _utils() -> Any:
    try:
        import torchvision.datasets.utils
    except ImportError as error:
        raise DataError(f'the download needs torchvision ({error}): pip install "stsbp[cifar10]"') from error
    return torchvision.datasets.utils


def _download(data_dir: Path) -> None:
    try:
        _utils().download_url(URL, str(data_dir), filename=_ARCHIVE, md5=MD5)
    except (OSError, RuntimeError, RecursionError) as error:
        raise DataError(
            f"could not download CIFAR-10: {error}\nFetch {_ARCHIVE} (md5 {MD5}) from {URL}, put it into {data_dir} "
            "and run the same command again: it is checked and unpacked there"
        ) from error
    file_names = [f"{_FOLDER}/{name}" for names in _BATCHES.values() for name in names]
    extract_files(data_dir / _ARCHIVE, data_dir, file_names, largest=10_000 * _RECORD)


def _binary_root(data_dir: Path) -> Path | None:
    for candidate in (data_dir, data_dir / _FOLDER, data_dir / "cifar10" / _FOLDER):
        if has_file(candidate / _BATCHES["train"][0]):
            return candidate
    return None


def _image_root(data_dir: Path) -> Path | None:
    for candidate in (data_dir, data_dir / "cifar10"):
        if has_folder(candidate / "train" / CLASSES[0]):
            return candidate
    return None


def _load_binary(root: Path, names: tuple[str, ...], request: Request) -> Cached:
    """The images of those files `names` that exist, in the published binary format, cached."""
    present = [name for name in names if has_file(root / name)]
    digests = digest_files(
        root, present, max_bytes=_MAX_RECORDS * _RECORD, cache_dir=request.cache_dir, progress=request.progress
    )

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"reading {root}{writer.rebuild_reason}", len(present))
        for files_done, name in enumerate(present, 1):
            content = read_unchanged(root / name, digests[name])
            if not content or len(content) % _RECORD:
                raise DataError(
                    f"{root / name}: its length, {len(content)} bytes, is not a multiple of the {_RECORD} bytes of a "
                    "record; it may be cut off"
                )
            records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
            labels = records[:, 0].astype(np.int64)
            if labels.max() >= len(CLASSES):
                raise DataError(
                    f"{root / name}: record {int(labels.argmax())} has the label {labels.max()}, not 0 to 9"
                )
            writer.add(np.moveaxis(records[:, 1:].reshape(-1, *SHAPE), 1, -1), labels)
            report(files_done)

    key = {"source": combine_digests(digests)}
    channels, height, width = SHAPE
    form = CacheForm(len(CLASSES), ((height,), (width,), (channels,)))
    return cached("cifar10", key, cache_dir=request.cache_dir, build=build, form=form)


@names_unreadable
def load(request: Request) -> Dataset:
    """CIFAR-10 with direct coding.

    Raises:
        DataError: `data_dir` does not contain the files, a file is malformed, or the download failed.
    """
    data_dir = request.data_dir
    if data_dir is None:
        raise DataError(
            "CIFAR-10 needs a data folder: name the one that holds its files with --data-dir or STSBP_DATA; with "
            "--download, name a folder to put them into"
        )
    binary, images = _binary_root(data_dir), _image_root(data_dir)
    if request.download and binary is None and images is None:
        _download(data_dir)
        binary = _binary_root(data_dir)
    if binary is not None:
        return _dataset(request, binary, [name for name, files in _BATCHES.items() if has_file(binary / files[0])])
    if images is not None:
        return _dataset(request, images, [name for name in PUBLISHED if has_folder(images / name)])
    pickled = any((folder / "cifar-10-batches-py").is_dir() for folder in (data_dir, data_dir / "cifar10"))
    raise DataError(
        f"no CIFAR-10 at {data_dir}: expected {data_dir}/{_FOLDER}/data_batch_1.bin and so on, or images in "
        f"{data_dir}/cifar10/train/<class>/ and test/<class>/; fetch the binary version ({URL}) with --download"
        + ("; the pickled version cifar-10-batches-py is not read, because unpickling can run code" if pickled else "")
    )


def _dataset(request: Request, root: Path, splits: list[str]) -> Dataset:
    """The data set from a folder of either format, which has these `splits`."""
    notes: list[str] = []
    skipped: tuple[Skipped, ...] = ()

    def read_split(name: str) -> ArraySplit:
        nonlocal skipped
        if has_file(root / _BATCHES["train"][0]):
            cached_images = _load_binary(root, _BATCHES[name], request)
        else:
            cached_images = load_image_folder("cifar10", root / name, CLASSES, request, channels=SHAPE[0])
        images = cached_images.images()
        if images.shape != SHAPE:
            raise DataError(f"{root}: expected {name} images of shape {SHAPE}, got {images.shape}")
        notes.append(f"{name}: {len(images)} of the {PUBLISHED[name]} published images, from {root}")
        skipped += cached_images.skipped
        return images

    train: Split = read_split("train")
    test: Split
    if "test" in splits and request.wants_own_test:
        test = read_split("test")
    else:
        train, test = cut_test(train, DEFAULT_HOLDOUT, request)
        reason = "as asked" if not request.wants_own_test else "there are no test images"
        if not request.train_only:
            notes.append(f"{reason}: {len(test)} of the training images are held out (split seed {request.seed})")
    notes += left_out(skipped, "images")
    if _has_jpeg(root / "train" / CLASSES[0]):
        notes.append("the images are JPEG files, not the published pixels: results do not compare with published ones")
    return Dataset("cifar10", "direct", SHAPE, CLASSES, train, test, tuple(notes), skipped)


def _has_jpeg(folder: Path) -> bool:
    visible = (path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else ()
    return any(path.suffix.lower() in (".jpg", ".jpeg") for path in visible)


CIFAR10 = DatasetInfo(
    name="cifar10",
    description="CIFAR-10: photographs of ten classes, 3 x 32 x 32, binary version or image folders",
    coding="direct",
    load=load,
    defaults={
        "net": "32C3-64C3-P2-128C3-P2-128C3-256",
        "padding": "same",
        "steps": 5,
        "epochs": 30,
        "batch_size": 50,
        "lr": 1e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
        "init_gain": 3.0,
        "init_rate": 0.1,
        "augment_shift": 2,
        "augment_flip": True,
    },
    default_holdout=DEFAULT_HOLDOUT,
    can_download=True,
    extra="cifar10",
)
"""The data set of `stsbp train cifar10`, with its default settings."""
