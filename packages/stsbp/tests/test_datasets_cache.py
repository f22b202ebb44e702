"""The cache is rebuilt whenever anything does not match, and files are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from stsbp.datasets import load
from stsbp.datasets.base import Skipped, Subset
from stsbp.datasets.cache import Cached, CacheWriter, cached, default_cache_dir, digest_files
from stsbp.errors import DataError, FileError
from stsbp.files import atomic_writer, open_regular, write_atomically

SAMPLES = np.random.default_rng(0).integers(0, 256, (6, 3, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])


class _Builder:
    """Counts how often the cache asked for the samples."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, writer: CacheWriter) -> None:
        self.calls += 1
        writer.add(SAMPLES[:4], LABELS[:4])
        writer.skip("2/bad.bin", "is empty")
        writer.add(SAMPLES[4:], LABELS[4:])


def _check(cache: Cached) -> None:
    assert np.array_equal(cache.data, SAMPLES)
    assert np.array_equal(cache.labels, LABELS)
    assert isinstance(cache.data, np.memmap)
    assert not cache.data.flags.writeable
    assert cache.labels.dtype == np.int64


def _fill(folder: Path) -> tuple[Path, _Builder]:
    builder = _Builder()
    cache = cached("test", {"a": (1, 2)}, cache_dir=folder, build=builder, root=Path("/data"))
    _check(cache)
    assert cache.skipped == (Skipped(str(Path("/data/2/bad.bin")), "is empty"),)
    (path,) = folder.iterdir()
    return path, builder


def test_cache_is_built_once(tmp_path: Path) -> None:
    _, builder = _fill(tmp_path / "deep" / "cache")
    _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path / "deep" / "cache", build=builder))
    assert builder.calls == 1


@pytest.mark.parametrize("key", [{"a": (1, 3)}, {"a": (1, 2), "b": 0}, {}])
def test_cache_of_another_key_is_another_file(tmp_path: Path, key: dict[str, object]) -> None:
    _, builder = _fill(tmp_path)
    _check(cached("test", key, cache_dir=tmp_path, build=builder))
    assert builder.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_under_a_wrong_name_is_not_trusted(tmp_path: Path) -> None:
    path, builder = _fill(tmp_path)
    cached("test", {"a": 5}, cache_dir=tmp_path, build=builder)
    (other,) = set(tmp_path.iterdir()) - {path}
    os.replace(other, path)
    _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=builder))
    assert builder.calls == 3


def test_truncated_cache_is_rebuilt(tmp_path: Path) -> None:
    path, builder = _fill(tmp_path)
    content = path.read_bytes()
    for number, length in enumerate([0, 1, 39, 41, 64, 100, len(content) - 1]):
        path.write_bytes(content[:length])
        _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=builder))
        assert builder.calls == number + 2
        assert path.read_bytes() == content


def test_a_cache_that_is_changed_in_place_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    cache = cached("set", {"a": 1}, cache_dir=tmp_path, build=_Builder())
    (path,) = tmp_path.iterdir()
    assert np.array_equal(cache.data[:2], SAMPLES[:2])
    # File systems store times in ticks of some milliseconds.
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.seek(64)
        file.write(b"garbage")
    with pytest.raises(DataError, match=rf"{path}, the cache of decoded samples, was changed while it was in use"):
        cache.data[0]
    _check(cached("set", {"a": 1}, cache_dir=tmp_path, build=_Builder()))


def test_a_cache_that_another_process_replaces_stays_usable(tmp_path: Path) -> None:
    cache = cached("set", {"a": 1}, cache_dir=tmp_path, build=_Builder())
    (path,) = tmp_path.iterdir()
    time.sleep(0.02)
    write_atomically(path, path.read_bytes(), own_folder=True)
    _check(cache)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut a file that is mapped")
def test_a_cache_that_is_cut_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    """Reading behind the end of a mapped file would end the process."""

    def build(writer: CacheWriter) -> None:
        writer.add(np.ones((40, 8, 1000), np.uint8), np.zeros(40, np.int64))

    split = cached("test", {}, cache_dir=tmp_path, build=build).frames(64)
    assert split.inputs(np.array([39])).shape == (64, 1, 1000)
    (path,) = tmp_path.iterdir()
    os.truncate(path, 5000)
    with pytest.raises(DataError, match=rf"{path}, the cache of decoded samples, was cut while it was in use"):
        split.inputs(np.array([39]))
    with pytest.raises(DataError, match="was cut"):
        Subset(split, np.arange(30, 40)).stored(np.array([3, 4]))
    rebuilt = cached("test", {}, cache_dir=tmp_path, build=build).frames(64)
    assert rebuilt.inputs(np.array([39]))[0].all()


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path, builder = _fill(tmp_path)
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=builder))
        assert builder.calls == position + 2


def test_grown_cache_is_rebuilt(tmp_path: Path) -> None:
    path, builder = _fill(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=builder))
    assert builder.calls == 2


def _name(key: dict[str, object]) -> str:
    return f"test-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.cache"


def _in_format(number: int, content: bytes) -> bytes:
    """A cache file with another number of its format, and a checksum that fits."""
    length = int.from_bytes(content[-8:], "little")
    text = content[-40 - length : -40].replace(b'"format": 2', b'"format": %d' % number)
    return content[: -40 - length] + text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little")


@pytest.mark.parametrize("number", [1, 3])
def test_a_cache_of_another_format_is_replaced_with_its_reason(tmp_path: Path, number: int) -> None:
    path, builder = _fill(tmp_path)
    content = path.read_bytes()
    # The first format had its number in the file's name.
    other = tmp_path / _name({"a": [1, 2], "format": 1, "kind": "test"}) if number == 1 else path
    os.replace(path, other)
    other.write_bytes(_in_format(number, content))
    assert other.read_bytes() != content
    reasons: list[str] = []

    def build(writer: CacheWriter) -> None:
        reasons.append(writer.rebuild_reason)
        builder(writer)

    for _ in range(2):
        _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=build))
    assert reasons == [", because its cache is damaged or of another version"]
    assert [file.name for file in tmp_path.iterdir()] == [_name({"a": [1, 2], "kind": "test"})]
    assert path.read_bytes() == content


def test_a_first_cache_needs_no_reason(tmp_path: Path) -> None:
    reasons: list[str] = []

    def build(writer: CacheWriter) -> None:
        reasons.append(writer.rebuild_reason)
        writer.add(SAMPLES, LABELS)

    cached("test", {}, cache_dir=tmp_path, build=build)
    assert reasons == [""]


def test_cache_that_fails_to_build_leaves_nothing(tmp_path: Path) -> None:
    def broken(writer: CacheWriter) -> None:
        writer.add(SAMPLES, LABELS)
        raise DataError("bad recording")

    with pytest.raises(DataError, match="bad recording"):
        cached("test", {}, cache_dir=tmp_path, build=broken)
    assert not list(tmp_path.iterdir())


def test_cache_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable samples"):
        cached("test", {}, cache_dir=tmp_path, build=lambda writer: None)


def test_a_cache_whose_sources_are_all_malformed_names_the_first(tmp_path: Path) -> None:
    def malformed(writer: CacheWriter) -> None:
        writer.skip("3/one.bin", "the file is empty")
        writer.skip("4/two.bin", "it is cut off")

    first = tmp_path / "data" / "3" / "one.bin"
    with pytest.raises(DataError, match=f"^{first}: the file is empty. No sample is left: all 2 are malformed$"):
        cached("test", {}, cache_dir=tmp_path, build=malformed, root=tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_cache_refuses_samples_of_another_shape(tmp_path: Path) -> None:
    def ragged(writer: CacheWriter) -> None:
        writer.add(SAMPLES, LABELS)
        writer.add(SAMPLES[:, :2], LABELS)

    with pytest.raises(DataError, match="expected uint8 samples"):
        cached("test", {}, cache_dir=tmp_path, build=ragged)


def test_unwritable_cache_folder_is_named_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)file.*STSBP_CACHE"):
        cached("test", {}, cache_dir=tmp_path / "file" / "cache", build=_Builder())


_BUILD = """
import sys
from pathlib import Path
from typing import Any, BinaryIO
import numpy as np
from stsbp.datasets.cache import cached

samples = np.arange(600_000, dtype=np.int64).astype(np.uint8).reshape(600, 1000)
labels = np.arange(600)

def build(writer):
    for k in range(600):
        writer.add(samples[k : k + 1], labels[k : k + 1])

for repeat in range(5):
    found = cached("test", {"repeat": repeat}, cache_dir=Path(sys.argv[1]), build=build)
    assert np.array_equal(found.data, samples) and np.array_equal(found.labels, labels)
"""


def test_parallel_builds_do_not_disturb_each_other(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", _BUILD, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 5


def test_default_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("STSBP_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "stsbp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path("~/.cache/stsbp").expanduser()


def test_a_cache_dir_of_an_unknown_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", "~nosuchuser/cache")
    with pytest.raises(DataError, match=r"no folder for the cache: .*STSBP_CACHE"):
        default_cache_dir()


class TestDigestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "data"
        root.mkdir()
        for name in ("a", "b", "c"):
            (root / name).write_text(name)
            os.utime(root / name, (1_000_000_000, 1_000_000_000))
        return root

    def test_reads_only_what_changed(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # As if the files had been there for a while.
        monkeypatch.setattr("stsbp.datasets.cache._RACY_NS", -(10**12))
        cache = tmp_path / "cache"
        first = digest_files(root, ["a", "b", "c"], cache_dir=cache)
        read: list[str] = []

        def watched(path: Path, most: int) -> BinaryIO:
            read.append(path.name)
            return open_regular(path, most)

        monkeypatch.setattr("stsbp.datasets.cache.open_regular", watched)
        assert digest_files(root, ["a", "b", "c"], cache_dir=cache) == first
        assert not {"a", "b", "c"} & set(read)
        (root / "b").write_text("B")
        second = digest_files(root, ["a", "b", "c"], cache_dir=cache)
        assert {"a", "b", "c"} & set(read) == {"b"}
        assert second["b"] != first["b"]
        assert second["a"] == first["a"]

    def test_remembers_files_of_earlier_calls_that_still_exist(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stsbp.datasets.cache._RACY_NS", -(10**12))
        cache = tmp_path / "cache"
        for name in ("a", "b", "c"):
            digest_files(root, [name], cache_dir=cache)
        (manifest,) = cache.iterdir()
        assert set(json.loads(manifest.read_text())["files"]) == {"a", "b", "c"}
        content = manifest.read_bytes()
        digest_files(root, ["b"], cache_dir=cache)
        assert manifest.read_bytes() == content
        (root / "c").unlink()
        digest_files(root, ["a"], cache_dir=cache)
        assert set(json.loads(manifest.read_text())["files"]) == {"a", "b"}

    def test_does_not_remember_files_that_have_just_changed(self, root: Path, tmp_path: Path) -> None:
        first = digest_files(root, ["a"], cache_dir=tmp_path / "cache")
        status = (root / "a").stat()
        (root / "a").write_text("A")
        os.utime(root / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert digest_files(root, ["a"], cache_dir=tmp_path / "cache") != first

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "files": {"a": 3}}', b'{"format": 99}'])
    def test_survives_a_damaged_manifest(
        self, root: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stsbp.datasets.cache._RACY_NS", -(10**12))
        cache = tmp_path / "cache"
        first = digest_files(root, ["a", "b"], cache_dir=cache)
        (manifest,) = cache.iterdir()
        manifest.write_bytes(content)
        assert digest_files(root, ["a", "b"], cache_dir=cache) == first

    def test_reads_a_folder_whose_name_is_not_utf_8(self, root: Path, tmp_path: Path) -> None:
        other = tmp_path / os.fsdecode(b"d\xe9")
        try:
            root.rename(other)
        except (OSError, UnicodeError):
            pytest.skip("the file system has no such names")
        digests = digest_files(other, ["a"], cache_dir=tmp_path / "cache")
        assert digests == {"a": hashlib.sha256(b"a").hexdigest()}

    def test_manifest_has_the_name_that_earlier_versions_gave(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stsbp.datasets.cache._RACY_NS", -(10**12))
        digest_files(root, ["a"], cache_dir=tmp_path / "cache")
        name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:32]
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"manifest-{name}.json"]

    def test_names_a_file_that_cannot_be_read(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot read .*missing"):
            digest_files(root, ["missing"], cache_dir=tmp_path / "cache")


class TestAtomicFiles:
    def test_replaces_the_whole_content(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.bin"
        write_atomically(path, b"long content")
        write_atomically(path, b"short")
        assert path.read_bytes() == b"short"
        assert [p.name for p in path.parent.iterdir()] == ["file.bin"]

    def test_gives_the_permissions_of_a_new_file(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "a", b"")
        (tmp_path / "b").write_bytes(b"")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (errno.ENOSPC, "the disk is full"),
            (errno.EACCES, "permission denied"),
            (errno.EROFS, "the file system is read-only"),
            (errno.EIO, os.strerror(errno.EIO)),
        ],
    )
    def test_failure_names_path_and_reason_and_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
    ) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")

        def refuse(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(FileError, match=f"cannot write .*file.bin: {reason}"):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_an_exception_in_the_block_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"old")

        def interrupted() -> None:
            with atomic_writer(path) as file:
                file.write(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_an_error_of_the_block_does_not_say_that_the_file_cannot_be_written(self, tmp_path: Path) -> None:
        with (
            pytest.raises(FileNotFoundError, match="source"),
            atomic_writer(tmp_path / "file.bin") as file,
        ):
            file.write((tmp_path / "source").read_bytes())
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
    def test_a_write_that_the_system_refuses_in_the_block_is_reported(self, tmp_path: Path) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with (
                pytest.raises(FileError, match=r"cannot write .*file.bin: File too large"),
                atomic_writer(tmp_path / "file.bin") as file,
            ):
                file.write(b"x" * 10**6)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.iterdir())

    def test_a_folder_at_the_path_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(FileError, match=r"cannot write .*folder"):
            write_atomically(tmp_path / "folder", b"")
        assert len(list(tmp_path.iterdir())) == 1


def _described_anew(path: Path, **changed: Any) -> None:
    """Change a cache's description and compute its checksum anew."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:], "little")
    text = json.dumps(json.loads(content[-40 - length : -40]) | changed).encode()
    path.write_bytes(content[: -40 - length] + text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little"))


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1, 2**70], ids=str)
def test_a_cache_with_a_label_of_more_than_64_bits_is_rebuilt(tmp_path: Path, label: int) -> None:
    path, builder = _fill(tmp_path)
    _described_anew(path, labels=[label, 1, 2, 2, 1, 0])
    _check(cached("test", {"a": (1, 2)}, cache_dir=tmp_path, build=builder))
    assert builder.calls == 2


_LIES: dict[str, dict[str, Any]] = {
    "large label": {"labels": [2**63, 1, 0, 1, 0, 1, 0, 1, 0, 1]},
    "negative label": {"labels": [-1, 1, 0, 1, 0, 1, 0, 1, 0, 1]},
    "label beyond the classes": {"labels": [0, 1, 0, 1, 0, 1, 0, 1, 0, 2]},
    "length 0": {"lengths": [0, 6, 6, 6, 6, 6, 6, 6, 6, 6]},
    "length beyond the steps": {"lengths": [10, 6, 6, 6, 6, 6, 6, 6, 6, 6]},
    "no lengths": {"lengths": None},
    "axes in another order": {"shape": [10, 8, 2]},
    "one axis": {"shape": [10, 16]},
}


@pytest.mark.parametrize("lie", _LIES)
@pytest.mark.parametrize("own_lengths", [False, True])
def test_a_cache_that_does_not_fit_its_data_set_is_rebuilt(lie: str, own_lengths: bool, tmp_path: Path) -> None:
    """Its checksum fits, as if a faulty program had written it. The file of the user is undamaged."""
    rng = np.random.default_rng(0)
    events: dict[str, Any] = {
        "t": rng.integers(0, 9000, 200),
        "x": rng.integers(0, 8, 200),
        "sample": np.arange(200) // 20,
    }
    np.savez(tmp_path / "own.npz", labels=np.arange(10) % 2, sensor=np.array([8]), **events)
    changed = dict(_LIES[lie])
    if not own_lengths and "lengths" in changed:
        changed = {"lengths": [6] * 10}
    options: dict[str, Any] = {"steps": 9, "own_lengths": own_lengths, "cache_dir": tmp_path / "cache"}
    first = load(f"events:{tmp_path / 'own.npz'}", **options).train
    inputs = first.inputs(np.arange(8))
    (path,) = (tmp_path / "cache").glob("events-*.cache")
    content = path.read_bytes()
    _described_anew(path, **changed)
    assert path.read_bytes() != content
    activities: list[str] = []
    rebuilt = load(
        f"events:{tmp_path / 'own.npz'}", **options, progress=lambda activity, *_: activities.append(activity)
    )
    assert path.read_bytes() == content
    assert "binning events, because its cache is damaged or of another version" in activities
    assert np.array_equal(rebuilt.train.labels, first.labels)
    assert np.array_equal(rebuilt.train.inputs(np.arange(8)), inputs)


@pytest.mark.parametrize(
    "changed",
    [{"labels": [2] + [0, 1] * 3 + [1]}, {"labels": [-1] + [0, 1] * 3 + [1]}, {"shape": [8, 3, 6, 5]}],
    ids=["label beyond", "negative label", "channels first"],
)
def test_a_cache_that_does_not_fit_its_images_is_rebuilt(changed: dict[str, Any], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
    for k, picture in enumerate(pixels):
        folder = tmp_path / "own" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(picture).save(folder / f"{k}.png")
    load(f"folder:{tmp_path / 'own'}", cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("images-*.cache")
    content = path.read_bytes()
    _described_anew(path, **changed)
    assert load(f"folder:{tmp_path / 'own'}", cache_dir=tmp_path / "cache").input_shape == (3, 6, 5)
    assert path.read_bytes() == content
