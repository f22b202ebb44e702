"""Image folders and CIFAR-10: what is accepted, what is refused, and the download."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.datasets import Dataset, cifar10, load
from stsbp.datasets.archives import extract_files
from stsbp.datasets.image_folder import read_image
from stsbp.errors import DataError
from stsbp_spec.typing import UInt8

Image = pytest.importorskip("PIL.Image")


def _pixels(seed: int, *shape: int) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _save(path: Path, pixels: UInt8, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _tree(root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 5, *shape: int) -> None:
    for k, name in enumerate(classes):
        for i in range(per_class):
            _save(root / name / f"{i}.png", _pixels(10 * k + i, *(shape or (6, 8, 3))))


def _load(root: Path, tmp_path: Path, **options: Any) -> Dataset:
    return load(f"folder:{root}", cache_dir=tmp_path / "cache", **options)


class TestImageFolder:
    def test_train_and_test_folders(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data" / "train")
        _tree(tmp_path / "data" / "test", ("dog",), 2)
        for dataset in (
            _load(tmp_path / "data", tmp_path),
            load("images", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"),
        ):
            assert (dataset.coding, dataset.input_shape, dataset.classes) == ("direct", (3, 6, 8), ("cat", "dog"))
            assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5
            assert dataset.test.labels.tolist() == [1, 1]
            images = dataset.train.inputs(np.array([7, 0]))
            assert images.shape == (2, 3, 6, 8)
            assert images.dtype == np.uint8
            assert np.array_equal(images[0], _pixels(12, 6, 8, 3).transpose(2, 0, 1))

    def test_one_tree_holds_a_fifth_out(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data", ("10", "9", "1"), 5, 4, 4)
        dataset = _load(tmp_path / "data", tmp_path)
        assert dataset.classes == ("1", "9", "10")
        assert dataset.input_shape == (1, 4, 4)
        assert (len(dataset.train), len(dataset.test)) == (12, 3)
        assert np.bincount(dataset.test.labels).tolist() == [1] * 3

    def test_sizes_must_agree_unless_one_is_given(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data")
        _save(tmp_path / "data" / "dog" / "odd.png", _pixels(0, 7, 8, 3))
        with pytest.raises(
            DataError, match=r"odd.png has 7 x 8 pixels .* first image of its folder 6 x 8; give an image"
        ):
            _load(tmp_path / "data", tmp_path)
        assert _load(tmp_path / "data", tmp_path, image_size=5).input_shape == (3, 5, 5)
        dataset = _load(tmp_path / "data", tmp_path, skip_malformed=True)
        assert dataset.skipped[0].path.endswith("odd.png")
        assert dataset.skipped[0].reason.startswith("has 7 x 8")

    def test_grey_images_among_coloured_ones_become_coloured(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data")
        _save(tmp_path / "data" / "dog" / "9.png", _pixels(0, 6, 8))
        assert _load(tmp_path / "data", tmp_path).input_shape == (3, 6, 8)

    def test_coloured_image_among_grey_ones_is_refused(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data", ("a", "b"), 3, 6, 8)
        _save(tmp_path / "data" / "b" / "9.png", _pixels(0, 6, 8, 3))
        with pytest.raises(DataError, match=r"9.png is coloured, but the first training image is grey"):
            _load(tmp_path / "data", tmp_path)

    @pytest.mark.parametrize("skip", [False, True])
    def test_test_images_are_grey_or_coloured_like_the_training_images(self, skip: bool, tmp_path: Path) -> None:
        for split, first in (("train", (6, 8, 3)), ("test", (6, 8))):
            _tree(tmp_path / "data" / split, ("a", "b"), 2)
            _save(tmp_path / "data" / split / "a" / "0.png", _pixels(7, *first))
        dataset = _load(tmp_path / "data", tmp_path, skip_malformed=skip)
        assert (dataset.input_shape, len(dataset.test), dataset.skipped) == ((3, 6, 8), 4, ())
        grey = dataset.test.inputs(np.array([0]))[0]
        assert np.array_equal(grey, np.stack([_pixels(7, 6, 8)] * 3))
        # The other way round, coloured test images cannot be read.
        (tmp_path / "data" / "train").rename(tmp_path / "data" / "other")
        (tmp_path / "data" / "test").rename(tmp_path / "data" / "train")
        (tmp_path / "data" / "other").rename(tmp_path / "data" / "test")
        for name in ("a/1", "b/0", "b/1"):
            _save(tmp_path / "data" / "train" / f"{name}.png", _pixels(7, 6, 8))
        with pytest.raises(DataError, match=r"test/a/0.png is coloured, but the first training image is grey"):
            _load(tmp_path / "data", tmp_path)

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n cut", "cut", "gif"], ids=str)
    def test_damaged_image_is_named_or_left_out(self, content: bytes | str, tmp_path: Path) -> None:
        _tree(tmp_path / "data")
        bad = tmp_path / "data" / "dog" / "bad.png"
        if content == "cut":
            _save(bad, _pixels(0, 60, 80, 3))
            bad.write_bytes(bad.read_bytes()[:9000])
        elif content == "gif":
            _save(bad, _pixels(0, 6, 8), format="GIF")
        else:
            assert isinstance(content, bytes)
            bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad.png cannot be read as an image"):
            _load(tmp_path / "data", tmp_path)
        assert len(_load(tmp_path / "data", tmp_path, skip_malformed=True).skipped) == 1

    def test_deep_images_are_refused(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data")
        _save(tmp_path / "data" / "cat" / "16.png", np.zeros((6, 8), np.uint16))
        with pytest.raises(DataError, match=r"16.png: expected an image with 8 bits a channel"):
            _load(tmp_path / "data", tmp_path)

    @pytest.mark.parametrize("depth", [8, 16])
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_a_png_has_all_its_rows_and_8_bits(self, depth: int, interlaced: bool, tmp_path: Path) -> None:
        """Pillow fills missing rows with black, and drops the lower bits of 16."""
        header = struct.pack(">IIBBBBB", 8, 6, depth, 2, 0, 0, interlaced)
        sizes = [(1, 1), (1, 1), (1, 2), (2, 2), (1, 4), (3, 4), (3, 8)] if interlaced else [(6, 8)]
        all_rows = b"".join(bytes(1 + 3 * columns * depth // 8) * rows for rows, columns in sizes)
        for rows in (all_rows, all_rows[: 1 + 3 * 8]):
            chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
            png = b"\x89PNG\r\n\x1a\n" + b"".join(
                struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
                for name, data in chunks
            )
            path = tmp_path / "own.png"
            if depth == 8 and rows is all_rows:
                assert read_image(png, path, channels=None, size=None).shape == (3, 6, 8)
            else:
                message = "got 16" if depth == 16 else f"pixels end after {len(rows)} of {len(all_rows)} bytes"
                with pytest.raises(DataError, match=rf"own\.png.*{message}"):
                    read_image(png, path, channels=None, size=None)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
    def test_an_image_that_is_cut_is_refused_whatever_pillow_is_set_to(
        self, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
        path = tmp_path / f"own.{suffix}"
        _save(path, _pixels(0, 60, 80, 3))
        content = path.read_bytes()
        for end in range(len(content) // 8, len(content) - 40, len(content) // 8):
            with pytest.raises(DataError, match="cannot be read as an image"):
                read_image(content[:end], path, channels=None, size=None)
        assert read_image(content, path, channels=None, size=None).shape == (3, 60, 80)

    def test_files_left_out_are_listed_in_a_note(self, tmp_path: Path) -> None:
        root = tmp_path / "data"
        _tree(root)
        notes = _load(root, tmp_path).notes
        for name in ("bird/0.gif", "bird/1.GIF", "cat/a.webp", "dog/9/0.png", "dog/README", "labels.csv", ".x/0.gif"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        (root / "cat" / ".DS_Store").touch()
        note_of_left_out = (
            f"left out of {root}: files: 2 .gif, 1 .csv, 1 .webp, 1 without a suffix; folders without images: bird; "
            "folders inside of folders: 1; only files <class>/<image> ending in .jpg, .jpeg, .png, .bmp are read"
        )
        assert _load(root, tmp_path).notes == (notes[0], note_of_left_out, *notes[1:])
        _tree(root / "train")
        _tree(root / "test")
        (root / "test" / "cat" / "0.tiff").touch()
        *_, note_of_test, note_beside = _load(root, tmp_path).notes
        assert note_of_test.startswith(f"left out of {root / 'test'}: files: 1 .tiff; only")
        assert note_beside.startswith(f"left out of {root}: folders with images: cat, dog; the samples are those in")
        (tmp_path / "9" / "fish").mkdir(parents=True)
        _tree(tmp_path / "9", ("cat",))
        with pytest.raises(DataError, match=r"1 class folders.*left out of .*9: folders without images: fish"):
            _load(tmp_path / "9", tmp_path)

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not a folder"):
            _load(tmp_path / "nowhere", tmp_path)
        _tree(tmp_path / "data" / "train", ("only",))
        with pytest.raises(DataError, match="1 class folders"):
            _load(tmp_path / "data", tmp_path)
        _tree(tmp_path / "data" / "train")
        _tree(tmp_path / "data" / "test", ("fish",))
        with pytest.raises(DataError, match="classes that train lacks: fish"):
            _load(tmp_path / "data", tmp_path)

    def test_test_images_must_have_the_shape_of_the_training_images(self, tmp_path: Path) -> None:
        _tree(tmp_path / "data" / "train")
        _tree(tmp_path / "data" / "test", ("cat", "dog"), 1, 4, 4, 3)
        with pytest.raises(DataError, match="must agree"):
            _load(tmp_path / "data", tmp_path)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "key"])
def test_transparent_pixels_are_refused(kind: str, tmp_path: Path) -> None:
    alpha = np.full((6, 8), 255, np.uint8)
    image = Image.fromarray(_pixels(0, 6, 8, 3))
    options: dict[str, Any] = {}
    if kind == "LA":
        image = image.convert("L")
    for transparent in (False, True):
        alpha[0, 0] = 254 * (not transparent) + 1
        path = tmp_path / "own.png"
        shown = image.copy()
        if kind == "P":
            shown = image.quantize(4)
            options = {"transparency": bytes([255, 255, 255, 0 if transparent else 255])}
        elif kind == "key":
            # A colour that no pixel has is not transparent.
            options = {"transparency": image.getpixel((0, 0)) if transparent else (1, 2, 3)}
        else:
            shown.putalpha(Image.fromarray(alpha))
        shown.save(path, **options)
        if transparent:
            with pytest.raises(DataError, match=rf"{path.name} has transparent pixels; flatten it onto a background"):
                read_image(path.read_bytes(), path, channels=None, size=None)
        else:
            pixels_read = read_image(path.read_bytes(), path, channels=None, size=None)
            opaque = np.asarray(shown.convert("L" if kind == "LA" else "RGB"))
            assert np.array_equal(np.atleast_3d(opaque).transpose(2, 0, 1), pixels_read)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_turned_as_the_camera_was_held(suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.kron(_pixels(0, 2, 3), np.full((8, 8), 1, np.uint8)))
    path = tmp_path / f"own.{suffix}"

    def read(**options: Any) -> UInt8:
        image.save(path, **options)
        pixels: UInt8 = read_image(path.read_bytes(), path, channels=None, size=None)[0]
        return pixels

    upright, exif = read(), Image.Exif()
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright),
        9: upright,
    }
    for orientation, expected in turns.items():
        exif[0x0112] = orientation
        assert np.array_equal(read(exif=exif), expected), orientation
    # Metadata that are damaged do not hide the pixels.
    exif[0x0112] = 6
    assert np.array_equal(read(exif=exif.tobytes()[:9]), upright)


def _batches(seed: int, n: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    batches = {}
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(n) % 10
        batches[name] = records.tobytes()
    return batches


def _write_binary(root: Path, n: int = 4) -> dict[str, bytes]:
    batches = _batches(0, n)
    (root / "cifar-10-batches-bin").mkdir(parents=True)
    for name, content in batches.items():
        (root / "cifar-10-batches-bin" / name).write_bytes(content)
    return batches


class TestCifar10:
    @pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
    def test_binary_version(self, inside: str, tmp_path: Path) -> None:
        batches = _write_binary(tmp_path / "data")
        dataset = load("cifar10", data_dir=tmp_path / "data" / inside, cache_dir=tmp_path / "cache")
        assert (len(dataset.train), len(dataset.test), dataset.input_shape) == (20, 4, (3, 32, 32))
        record = np.frombuffer(batches["data_batch_2.bin"], np.uint8).reshape(4, 3073)[3]
        assert dataset.train.labels[7] == record[0] == 3
        assert dataset.classes[3] == "cat"
        assert np.array_equal(dataset.train.inputs(np.array([7]))[0].ravel(), record[1:])
        assert "20 of the 50000" in dataset.notes[0]
        assert len(dataset.notes) == 2

    @pytest.mark.parametrize(
        ("content", "reason"), [(b"", "its length, 0"), (b"\0" * 3072, "3072"), (b"\x0a" * 3073, "label 10")]
    )
    def test_malformed_batch_is_named(self, content: bytes, reason: str, tmp_path: Path) -> None:
        _write_binary(tmp_path)
        (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").write_bytes(content)
        with pytest.raises(DataError, match=rf"data_batch_4\.bin: .*{reason}"):
            load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
    def test_image_folders(self, suffix: str, tmp_path: Path) -> None:
        for split, n in (("train", 3), ("test", 1)):
            for k, name in enumerate(cifar10.CLASSES):
                for i in range(n):
                    _save(tmp_path / "cifar10" / split / name / f"{i}.{suffix}", _pixels(k, 32, 32, 3))
        (tmp_path / "cifar10" / "train" / "airplane" / ".hidden.png").touch()
        dataset = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
        assert (len(dataset.train), len(dataset.test)) == (30, 10)
        assert dataset.test.labels.tolist() == list(range(10))
        assert "JPEG" in dataset.notes[-1]

    def test_grey_images_are_read_in_colour_and_images_are_not_resized(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            for k, name in enumerate(cifar10.CLASSES):
                _save(tmp_path / split / name / "0.png", _pixels(k, 32, 32))
        (tmp_path / "train" / "airplane" / ".hidden.jpg").touch()
        with pytest.raises(DataError, match="image_size resizes the images of a folder; leave it out for cifar10"):
            load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=8)
        dataset = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
        assert dataset.input_shape == (3, 32, 32)
        assert np.array_equal(dataset.test.inputs(np.array([4]))[0], np.stack([_pixels(4, 32, 32)] * 3))
        assert "JPEG" not in " ".join(dataset.notes)

    def test_without_test_images_some_are_held_out(self, tmp_path: Path) -> None:
        for name in cifar10.CLASSES:
            for i in range(3):
                _save(tmp_path / "train" / name / f"{i}.png", _pixels(i, 32, 32, 3))
        dataset = load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache", holdout=10)
        assert np.bincount(dataset.test.labels).tolist() == [1] * 10
        assert "held out" in dataset.notes[-1]

    def test_pickled_version_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "cifar-10-batches-py").mkdir()
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({"data": b""}))
        with pytest.raises(DataError, match=r"no CIFAR-10 at .*unpickling can run code"):
            load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def _tar(path: Path, members: dict[str, bytes | str], mode: Any = "w:gz") -> None:
    """A compressed archive of files; text is the target of a link."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _serve(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = server
    archive = folder / "cifar-10-binary.tar.gz"
    members: dict[str, bytes | str] = {f"cifar-10-batches-bin/{k}": v for k, v in _batches(0, 4).items()}
    _tar(archive, {"../escaped.txt": b"evil", "link": "/etc", **members})
    monkeypatch.setattr(cifar10, "URL", f"{address}/{archive.name}")
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest())


def test_cifar10_download_fetches_checks_and_unpacks(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    _serve(server, monkeypatch)
    dataset = load("cifar10", data_dir=tmp_path / "new", cache_dir=tmp_path / "cache", download=True)
    assert len(dataset.train) == 20
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (tmp_path / "new" / "link").exists()
    assert capsys.readouterr().out == ""
    assert len(load("cifar10", data_dir=tmp_path / "new", cache_dir=tmp_path / "cache").train) == 20


@pytest.mark.parametrize("fault", ["refused", "corrupt"])
def test_failed_cifar10_download_says_what_to_fetch(
    fault: str, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    _serve(server, monkeypatch)
    if fault == "refused":
        monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    else:
        monkeypatch.setattr(cifar10, "MD5", "0" * 32)
    with pytest.raises(
        DataError, match=r"(?s)could not download CIFAR-10.*cifar-10-binary\.tar\.gz \(md5 .*put it into"
    ):
        load("cifar10", data_dir=tmp_path / "new", cache_dir=tmp_path / "cache", download=True)


class TestExtractFiles:
    def test_extracts_only_the_requested_files(self, tmp_path: Path) -> None:
        _tar(tmp_path / "a.tar.gz", {"d/x": b"1", "d/y": b"2", "/abs": b"3", "../up": b"4"})
        extract_files(tmp_path / "a.tar.gz", tmp_path / "out", ["d/x"], largest=10)
        assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [
            "a.tar.gz",
            "out/d/x",
        ]

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"d/y": b"1"}, "lacks d/x"),
            ({"d/x": b"12345678901"}, "not a plain file of at most 10 bytes"),
            ({"d/x": "/etc/passwd"}, "not a plain file"),
        ],
        ids=["missing", "large", "link"],
    )
    def test_refuses(self, members: dict[str, bytes | str], reason: str, tmp_path: Path) -> None:
        _tar(tmp_path / "a.tar.gz", members)
        with pytest.raises(DataError, match=reason):
            extract_files(tmp_path / "a.tar.gz", tmp_path / "out", ["d/x"], largest=10)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
    @pytest.mark.parametrize("packed", ["gz", "xz"])
    def test_names_a_damaged_archive(self, damage: str, packed: str, tmp_path: Path) -> None:
        _tar(tmp_path / "a.tar.gz", {"d/x": (_pixels(0, 300_000) % 4).tobytes()}, f"w:{packed}")
        content = bytearray((tmp_path / "a.tar.gz").read_bytes())
        for k in range(20_000, 70_000) if damage == "changed" else ():
            content[k] ^= 255
        (tmp_path / "a.tar.gz").write_bytes(content[: {"empty": 0, "cut": 30}.get(damage)])
        with pytest.raises(DataError, match=r"a\.tar\.gz is damaged"):
            extract_files(tmp_path / "a.tar.gz", tmp_path / "out", ["d/x"], largest=300_000)


def _progressive(side: int, scans: int, marker: bytes = b"", frame: int = 0xC2) -> bytes:
    """A grey JPEG of `side` x `side` pixels with zeros. Each scan has a few bytes, and `before` precedes it."""

    def segment(kind: int, body: bytes) -> bytes:
        return bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + body

    dimensions = side.to_bytes(2, "big") * 2
    # Codes of one bit: no difference for a DC coefficient; a run of 16,384 blocks for the others, and 14 bits for more.
    tables = [segment(0xC4, bytes((kind, 1, *[0] * 15, value))) for kind, value in ((0, 0), (0x10, 0xE0))]
    blocks = (-(-side // 8)) ** 2
    assert blocks < 16384
    begin = segment(0xDB, bytes(1) + b"\x01" * 64) + segment(frame, b"\x08" + dimensions + b"\x01\x01\x11\x00")
    first = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(-(-blocks // 8))
    other = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + bytes(2)
    return b"\xff\xd8" + begin + b"".join(tables) + first + (marker + other) * (scans - 1) + b"\xff\xd9"


@pytest.mark.parametrize(("side", "most"), [(8, 1000), (1000, 1000), (1016, 968)])
def test_a_jpeg_with_too_many_scans_is_refused(side: int, most: int) -> None:
    pytest.importorskip("PIL.Image")
    assert read_image(_progressive(side, most), Path("x.jpg"), channels=1, size=None).shape == (1, side, side)
    # The marker 0xFF01 has no length. A walk that skips one would not see the scans behind it.
    for content in (
        _progressive(side, most + 1),
        _progressive(side, most + 1, b"\xff\x01"),
        _progressive(side, most + 1, frame=0xCA),
    ):
        with pytest.raises(DataError, match=r"x\.jpg has more scans than are decoded: at most 1,000, and"):
            read_image(content, Path("x.jpg"), channels=1, size=None)


_JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "fine": {"quality": 95, "subsampling": 0},
}


@pytest.mark.parametrize("options", _JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_that_is_cut_but_has_an_end_is_refused(options: str, channels: int) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, channels), dtype=np.uint8)
    file = io.BytesIO()
    pillow.fromarray(pixels.squeeze()).save(file, "JPEG", **_JPEGS[options])
    content = file.getvalue()
    assert read_image(content, Path("whole.jpg"), channels=channels, size=None).shape == (channels, 40, 56)
    for share in (0.5, 0.7, 0.9):
        cut = content[: round(len(content) * share)] + b"\xff\xd9"
        with pytest.raises(DataError, match=r"cut\.jpg cannot be read as an image: its pixels end early"):
            read_image(cut, Path("cut.jpg"), channels=channels, size=None)


def _grey_png(bits: int, transparent: int) -> bytes:
    """White pixels, and which grey is transparent."""

    def piece(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = piece(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
    rows = piece(b"IDAT", zlib.compress((b"\0" + b"\xff" * bits) * 8))
    return b"\x89PNG\r\n\x1a\n" + header + piece(b"tRNS", struct.pack(">H", transparent)) + rows + piece(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_greys_of_few_bits_are_refused(bits: int, tmp_path: Path) -> None:
    path, white = tmp_path / "own.png", 2**bits - 1
    assert read_image(_grey_png(bits, 0), path, channels=None, size=None).min() == 255
    with pytest.raises(DataError, match="has transparent pixels"):
        read_image(_grey_png(bits, white), path, channels=None, size=None)


def test_a_png_that_unpacks_to_far_more_than_its_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    image = _grey_png(8, 0)
    start = image.index(b"IDAT") - 4
    size = int.from_bytes(image[start : start + 4], "big")
    rows = zlib.decompress(image[start + 8 : start + 8 + size])

    def with_more(count: int) -> bytes:
        data = b"IDAT" + zlib.compress(rows + bytes(count))
        chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
        return image[:start] + chunk + image[start + 12 + size :]

    path = Path("image.png")
    assert np.array_equal(
        read_image(with_more(1000), path, channels=None, size=None), read_image(image, path, channels=None, size=None)
    )
    # Pillow would unpack all of it.
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("Pillow reads the pixels"))
    with pytest.raises(DataError, match=r"image\.png cannot be read as an image: its data unpack to more than"):
        read_image(with_more(1 << 20), path, channels=None, size=None)
