"""Image folders, `train/<class>/<image>` and `test/<class>/<image>`, or one tree of class folders.

Images are decoded once, by Pillow, into a memory-mapped cache. They must all have the same size, unless `image_size` is
set. The first training image determines whether all are grey or coloured. Only JPEG, PNG and BMP files are opened, and
a note says what else the folder contains.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stsbp_spec.typing import UInt8
from stsbp_spec.validation import MAX_SIZE, listed

from stsbp.datasets.base import (
    Dataset,
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
    SourceFiles,
    cached,
    combine_digests,
    digest_files,
    read_unchanged,
)
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError
from stsbp.files import MEGABYTE, has_folder

__all__ = ["IMAGES", "MAX_BYTES", "SUFFIXES", "class_folders", "load", "load_image_folder", "read_image"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
MAX_BYTES = 256 * MEGABYTE
"""Largest size of an image file in bytes."""
_MAX_PIXELS, _MAX_PIXELS_TO_RESIZE = 16_000_000, 30_000_000
_MAX_SCANS, _MAX_SCANNED_PIXELS = 1000, 1_000_000_000
"""Largest number of scans of a JPEG, and of pixels in all of them. A scan of several channels counts once for each."""
_CHUNK_BYTES = MEGABYTE
_TEST_SHARE = 0.2
_READING = 2
"""Increased whenever files are read to other pixels, so that older cached pixels are not used."""
_ORIENTATION = 0x0112
"""The number of the field of EXIF that says how a camera was held."""
_GREY_MODES = ("1", "L", "LA")
_EIGHT_BIT_MODES = (*_GREY_MODES, "P", "RGB", "RGBA", "CMYK", "YCbCr")


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise DataError(f'image folders need the library Pillow ({error}): pip install "stsbp[images]"') from error
    return PIL.Image


@contextlib.contextmanager
def _complete() -> Iterator[None]:
    """Let Pillow refuse images that are cut off, even if another part of the program lets it accept them."""
    import PIL.ImageFile

    former_setting, PIL.ImageFile.LOAD_TRUNCATED_IMAGES = PIL.ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = former_setting


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers of values of a pixel for the colour types of PNG."""
_PNG_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""First row, step of rows, first column and step of columns of the passes of an interlaced PNG."""


def _check_png(content: bytes, path: Path) -> None:
    """Check that a PNG has 8 bits a channel and all of its rows. Pillow drops the lower bits, and fills missing rows.

    Raises:
        DataError: it has 16 bits a channel, its data end early, or they unpack to far more than its pixels.
    """
    if content[12:16] != b"IHDR":
        raise DataError(f"{path} cannot be read as an image: a PNG begins with its header")
    width, height, bits, colour, interlaced = (
        *(int.from_bytes(content[offset : offset + 4], "big") for offset in (16, 20)),
        content[24],
        content[25],
        content[28],
    )
    if bits == 16:
        raise DataError(f"{path}: expected an image with 8 bits a channel, got 16")
    passes = _PNG_PASSES if interlaced else ((0, 1, 0, 1),)
    expected = 0
    for row, rows, column, columns in passes:
        pass_width, pass_height = len(range(column, width, columns)), len(range(row, height, rows))
        # A row begins with the number of its filter.
        expected += pass_height * (1 + -(-pass_width * bits * _PNG_CHANNELS.get(colour, 1) // 8)) * (pass_width > 0)
    # Some programs write a little more than the pixels. Pillow would unpack all of it.
    max_unpacked = 2 * expected + (1 << 16)
    unpacked, unpacked_size, offset = zlib.decompressobj(), 0, 8
    while offset + 12 <= len(content) and unpacked_size <= max_unpacked:
        size = int.from_bytes(content[offset : offset + 4], "big")
        compressed = content[offset + 8 : offset + 8 + size] if content[offset + 4 : offset + 8] == b"IDAT" else b""
        while compressed and not unpacked.eof and unpacked_size <= max_unpacked:
            unpacked_size += len(unpacked.decompress(compressed, _CHUNK_BYTES))
            compressed = unpacked.unconsumed_tail
        offset += 12 + size
    if unpacked_size < expected:
        raise DataError(
            f"{path} cannot be read as an image: its pixels end after {unpacked_size:,} of {expected:,} bytes; it "
            "may be cut off"
        )
    if unpacked_size > max_unpacked:
        raise DataError(
            f"{path} cannot be read as an image: its data unpack to more than {max_unpacked:,} bytes, but its pixels "
            f"are {expected:,}"
        )


_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""A marker that ends the coded pixels of a scan of a JPEG. The others in this range have no content."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the headers of JPEG images. From 0xC9 on, their pixels are coded arithmetically."""
_MORE_PIXELS = b"".join(b"\x55\xaa" * 4 + bytes((0xFF, marker)) for marker in range(0xD0, 0xD8)) * 2
"""Coded pixels of a JPEG, with all markers at which a decoder may restart."""


def _check_jpeg(content: bytes, path: Path, image: Any) -> None:
    """Check that a JPEG has all of its pixels. The decoder only warns of missing ones, and Pillow hides the warning.

    All scans together must have all bits of all coefficients. Coded pixels are then appended: a complete image does not
    change, because its decoder reads no further. Arithmetic coding may leave out zeros at its end, so it is not tested.

    Every scan takes time for all pixels, however few bytes it has, so the scans are counted before they are decoded.

    Raises:
        DataError: its pixels end early, or it has too many scans.
    """
    offset, end, missing_bits, scans, is_arithmetic = 2, 0, dict[tuple[int, int], int](), 0, False
    while (marker := _JPEG_MARKER.search(content, offset)) and content[marker.end() - 1] != 0xD9:
        marker_code, offset = content[marker.end() - 1], marker.end()
        body = content[offset + 2 : offset + int.from_bytes(content[offset : offset + 2], "big")]
        if marker_code in _JPEG_FRAMES:
            is_arithmetic = marker_code > 0xC8
            missing_bits = dict.fromkeys(((body[6 + 3 * i], k) for i in range(body[5]) for k in range(64)), 16)
        offset += len(body) + 2
        if marker_code == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            scans += body[0]
            if scans > min(_MAX_SCANS, _MAX_SCANNED_PIXELS / (image.width * image.height)):
                raise DataError(
                    f"{path} has more scans than are decoded: at most {_MAX_SCANS:,}, and {_MAX_SCANNED_PIXELS:,} "
                    "pixels in all of them, where each channel counts; save it with fewer scans, for example as PNG"
                )
            first, last, bits = body[1 + 2 * body[0] :][:3]
            missing_bits |= {
                (channel, k): bits & 15 for channel in body[1 : 1 + 2 * body[0] : 2] for k in range(first, last + 1)
            }
            following = _JPEG_MARKER.search(content, offset)
            end = len(content) if following is None else following.start()
    if is_arithmetic:
        return
    complete = end > 0 and not any(missing_bits.values())
    if complete:
        with _pillow().open(io.BytesIO(content[:end] + _MORE_PIXELS + content[end:]), formats=("JPEG",)) as longer:
            complete = np.array_equal(np.asarray(image), np.asarray(longer))
    if not complete:
        raise DataError(f"{path} cannot be read as an image: its pixels end early; it may be cut off")


def _check_opaque(image: Any, content: bytes, path: Path) -> None:
    """Refuse transparent pixels: they have no colour of their own, and often the colour black behind them.

    Raises:
        DataError: a pixel is not fully opaque.
    """
    if not image.has_transparency_data:
        return
    if image.format == "PNG" and image.mode == "L" and content[24] < 8:
        # Pillow scales grey pixels of 2 and 4 bits to 8 bits, but not the grey that is transparent.
        image.info["transparency"] *= 255 // (2 ** content[24] - 1)
    alpha = (image if image.mode in ("LA", "RGBA") else image.convert("RGBA")).getchannel("A")
    if alpha.getextrema()[0] < 255:
        raise DataError(
            f"{path} has transparent pixels; flatten it onto a background first, in a copy of the folder (ImageMagick: "
            "-background white -flatten -alpha off)"
        )


def _upright(image: Any) -> Any:
    """The image turned as its EXIF data say. Without them, or if they are damaged, the image itself."""
    try:
        is_turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:
        # Damaged metadata can make Pillow raise almost any error. The pixels are intact.
        return image
    if not is_turned:
        return image
    import PIL.ImageOps

    return PIL.ImageOps.exif_transpose(image)


def read_image(content: bytes, path: Path, *, channels: int | None, size: int | None) -> UInt8:
    """One image, `[C, H, W]` uint8.

    Args:
        content: content of the file.
        path: its name, for messages.
        channels: 1 or 3, as in the images before it; None for the first image.
        size: resize to `size` x `size` pixels (bilinear).

    Raises:
        DataError: the file is damaged, is not an 8-bit JPEG, PNG or BMP image, has transparent pixels, or is coloured
            among grey images.
    """
    pillow = _pillow()
    try:
        # Except for the size, Pillow only warns about damaged metadata. The pixels are intact.
        with (
            warnings.catch_warnings(action="ignore"),
            pillow.open(io.BytesIO(content), formats=("JPEG", "PNG", "BMP")) as image,
            _complete(),
        ):
            max_pixels = _MAX_PIXELS if size is None else _MAX_PIXELS_TO_RESIZE
            if image.width * image.height > max_pixels:
                hint = (
                    "" if size is not None else f", or the {_MAX_PIXELS_TO_RESIZE:,} that are resized with --image-size"
                )
                raise DataError(
                    f"{path} has {image.height} x {image.width} pixels (rows x columns), more than the {max_pixels:,} "
                    f"that are read{hint}"
                )
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"{path}: expected an image with 8 bits a channel, got mode {image.mode}")
            if image.format == "PNG":
                _check_png(content, path)
            elif image.format in ("JPEG", "MPO"):
                _check_jpeg(content, path, image)
            image.load()
            _check_opaque(image, content, path)
            grey = image.mode in _GREY_MODES
            if channels == 1 and not grey:
                raise DataError(f"{path} is coloured, but the first training image is grey")
            mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
            # Do not copy the image if it already has the mode, because a large image takes much memory.
            upright = _upright(image)
            converted = upright if upright.mode == mode else upright.convert(mode)
            if size is not None and converted.size != (size, size):
                converted = converted.resize((size, size), pillow.Resampling.BILINEAR)
            pixels = np.asarray(converted, dtype=np.uint8)
    except pillow.UnidentifiedImageError as error:
        # Pillow's own message names the object that contains the bytes.
        raise DataError(f"{path} cannot be read as an image: it is damaged or no JPEG, PNG or BMP") from error
    except DataError:
        raise
    except Exception as error:
        # A forged file can make Pillow raise almost any error.
        raise DataError(f"{path} cannot be read as an image: {error or type(error).__name__}") from error
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders below `root` that contain images. If all are numbers, in numerical order, else as text."""
    names = [
        folder.name
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and any(map(_is_image, folder.iterdir()))
    ]
    if names and all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _not_read(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """A note of what a tree of class folders contains besides the images that are read; none if there is nothing.

    Hidden files are not told of.
    """
    other_files, inner, empty = Counter[str](), 0, list[str]()
    for folder in (root, *(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))):
        is_class = folder != root and folder.name in classes
        if folder != root and not is_class:
            empty.append(folder.name)
        for path in folder.iterdir():
            if path.name.startswith(".") or (is_class and _is_image(path)):
                continue
            if not path.is_dir():
                other_files[path.suffix.lower() or "without a suffix"] += 1
            elif folder != root:
                inner += 1
    counted = sorted(other_files.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        *([f"files: {listed(f'{count:,} {suffix}' for suffix, count in counted)}"] if counted else []),
        *([f"folders without images: {listed(sorted(empty))}"] if empty else []),
        *([f"folders inside of folders: {inner:,}"] if inner else []),
    ]
    rule = f"only files <class>/<image> ending in {', '.join(SUFFIXES)} are read"
    return (f"left out of {root}: {'; '.join(parts)}; {rule}",) if parts else ()


def _beside_train(root: Path) -> tuple[str, ...]:
    """A note of the folders with images beside `root/train` and `root/test`; none if there are none."""
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    of_classes = {folder.name for folder in folders if class_folders(folder)}
    names = sorted({*of_classes, *class_folders(root)} - {"train", "test"})
    rule = f"the samples are those in {root / 'train'}, and the test samples those in {root / 'test'} if it exists"
    return (f"left out of {root}: folders with images: {listed(names)}; {rule}",) if names else ()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def load_image_folder(
    cache_name: str, root: Path, classes: Sequence[str], request: Request, *, channels: int | None = None
) -> Cached:
    """Decode the images of a tree of class folders.

    Args:
        cache_name: name of the data set in the cache.
        root: folder of the tree.
        classes: names of the class folders.
        request: what is asked for.
        channels: 1 for grey images, 3 for coloured ones; None: as in the first image.

    Raises:
        DataError: an image is damaged or differs from the first in size or colour.
    """
    files = [
        f"{name}/{path.name}"
        for name in classes
        if has_folder(root / name)
        for path in sorted((root / name).iterdir())
        if _is_image(path)
    ]
    if not files:
        raise DataError(f"{root} holds no images: expected {root}/<class>/<image> ending in {', '.join(SUFFIXES)}")
    digests = digest_files(root, files, max_bytes=MAX_BYTES, cache_dir=request.cache_dir, progress=request.progress)
    label = {name: number for number, name in enumerate(classes)}

    def build(writer: CacheWriter) -> None:
        report = Progress(request.progress, f"decoding {root}{writer.rebuild_reason}", len(files))
        first: UInt8 | None = None
        for images_done, relative in enumerate(files, 1):
            path = root / relative
            content = read_unchanged(path, digests[relative])
            try:
                channel_count = channels if first is None else len(first)
                image = read_image(content, path, channels=channel_count, size=request.image_size)
                if first is not None and image.shape != first.shape:
                    raise DataError(
                        f"{path} has {image.shape[1]} x {image.shape[2]} pixels (rows x columns), but the first image "
                        f"of its folder {first.shape[1]} x {first.shape[2]}; give an image size to resize them"
                    )
            except DataError as error:
                if not request.skip_malformed:
                    raise
                writer.skip(relative, str(error).removeprefix(str(path)).lstrip(": "))
            else:
                first = image if first is None else first
                writer.add(np.moveaxis(image, 0, -1)[np.newaxis], [label[relative.split("/")[0]]])
            report(images_done)

    key = {
        "source": combine_digests(digests),
        "classes": list(classes),
        "image_size": request.image_size,
        "skip_malformed": request.skip_malformed,
        "reading": _READING,
        **({} if channels is None else {"channels": channels}),
    }
    source = SourceFiles(root, digests.size, len(files))
    allowed_sizes = range(1, MAX_SIZE + 1) if request.image_size is None else (request.image_size,)
    form = CacheForm(len(classes), (allowed_sizes, allowed_sizes, (1, 3) if channels is None else (channels,)))
    return cached(cache_name, key, cache_dir=request.cache_dir, build=build, root=root, source=source, form=form)


@names_unreadable
def load(request: Request) -> Dataset:
    """The image folder at `data_dir`. Without a folder `test`, a fifth of the images of each class is held out.

    Raises:
        DataError: there is no such folder, it has fewer than two classes, or its images do not fit together.
    """
    root = request.data_dir
    if root is None:
        raise DataError("an image folder needs its path: folder:PATH, or images with --data-dir")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected train/<class>/<image> or <class>/<image> below it")
    split_folders = has_folder(root / "train")
    train_root = root / "train" if split_folders else root
    classes = class_folders(train_root)
    not_read = _not_read(train_root, classes)
    if len(classes) < 2:
        raise DataError(
            f"{train_root} holds {len(classes)} class folders with images: expected at least two, {train_root}/<class>/"
            + "".join(f" ({note})" for note in not_read)
        )
    cached_images = load_image_folder("images", train_root, classes, request)
    train_images = cached_images.images()
    skipped: tuple[Skipped, ...] = cached_images.skipped
    notes = [f"{len(train_images)} images of {len(classes)} classes from {train_root}", *not_read]
    train: Split = train_images
    test: Split
    if split_folders and has_folder(root / "test") and request.wants_own_test:
        if unknown := sorted(set(class_folders(root / "test")) - set(classes)):
            raise DataError(f"{root / 'test'} has classes that train lacks: {', '.join(unknown)}")
        cached_images = load_image_folder("images", root / "test", classes, request, channels=train_images.shape[0])
        test_images = cached_images.images()
        skipped += cached_images.skipped
        if test_images.shape != train_images.shape:
            raise DataError(
                f"images of {root / 'test'} have shape {list(test_images.shape)} (channels, rows, columns), those of "
                f"train {list(train_images.shape)}; they must agree"
            )
        test = test_images
        notes += [f"{len(test)} test images from {root / 'test'}", *_not_read(root / "test", classes)]
    else:
        train, test = cut_test(train_images, max(1, round(_TEST_SHARE * len(train_images))), request)
        if not request.train_only:
            notes.append(f"{len(test)} of them held out as test samples (split seed {request.seed})")
    if split_folders:
        notes += _beside_train(root)
    notes += left_out(skipped, "images")
    return Dataset(request.name, "direct", train_images.shape, classes, train, test, tuple(notes), skipped)


IMAGES = DatasetInfo(
    name="images",
    description="any folder of images, train/<class>/ and test/<class>/, or <class>/: folder:PATH",
    coding="direct",
    load=load,
    defaults={
        "net": "32C3-P2-64C3-P2-128",
        "padding": "same",
        "steps": 8,
        "epochs": 20,
        "batch_size": 50,
        "lr": 1e-3,
        "tau_m": 5.0,
        "tau_s": 3.0,
    },
    resizable=True,
    extra="images",
)
"""The data set of `stsbp train images`, with its default settings."""
