"""Compiled kernels on the disk: what is found again, what is refused, what is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stsbp_spec.engine.kernel_cache import KernelFolder, cache_root, digest, kernel_file, kernel_folder, source_digest
from stsbp_spec.errors import BackendError

POSIX = pytest.mark.skipif(os.name == "nt", reason="modes and owners of files are those of POSIX")
DATA = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def reopened(root: Path, key: str = "key") -> KernelFolder:
    """The folder as another process opens it."""
    return KernelFolder(root / "kernels", "kind", key)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STSBP_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_root() == Path("/own")
    monkeypatch.setenv("STSBP_CACHE", "~/own")
    assert cache_root() == Path("~/own").expanduser()
    monkeypatch.delenv("STSBP_CACHE")
    assert cache_root() == Path("/shared/stsbp")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("~/.cache/stsbp").expanduser()


def test_digest_tells_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc") != digest("abc", "")
    assert digest("ab", b"c") == digest(b"ab", "c")


def test_a_file_is_named_by_all_that_it_is_made_of() -> None:
    assert kernel_file("name", "a", "b", suffix=".so") == f"name-{digest('a', 'b')}.so"
    assert kernel_file("name", "ab") == f"name-{digest('ab')}"


def test_source_digest_reads_modules_and_all_below_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_kernels"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "deep/__init__.py", "deep/b.py"):
        (package / name).write_text(f"# {name}\n")
    (tmp_path / "alone.py").write_text("raise ImportError('it is read, not imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    digests = {source_digest("some_kernels", "alone"), source_digest("some_kernels"), source_digest("some_kernels.a")}
    for change in ("deep/b.py", "a.py", "__init__.py", "new.py", "../alone.py"):
        (package / change).write_text("# changed\n")
        assert source_digest("some_kernels", "alone") not in digests, change
        digests.add(source_digest("some_kernels", "alone"))
    (package / "new.py").rename(package / "renamed.py")
    assert source_digest("some_kernels", "alone") not in digests
    with pytest.raises(OSError, match="nothing_of_that_name"):
        source_digest("nothing_of_that_name")


@POSIX
def test_what_is_written_is_found_again_and_closed_to_others(root: Path) -> None:
    umask = os.umask(0)
    try:
        folder = kernel_folder("kind", "key")
        folder.write("name", DATA)
        built = folder.built("library", lambda path: path.write_bytes(DATA))
    finally:
        os.umask(umask)
    assert folder is kernel_folder("kind", "key")
    assert reopened(root).read("name") == DATA
    assert built.read_bytes() == DATA
    assert reopened(root, "other").read("name") is None
    assert built.parent == root / "kernels" / "kind-key"
    assert [mode(built.parent), mode(root / "kernels")] == [0o700, 0o700]
    assert {path.name: mode(path) for path in built.parent.iterdir()} == dict.fromkeys(
        ["name", "library", "library.sha256"], 0o600
    )


@POSIX
def test_a_folder_that_others_can_only_read_is_closed(root: Path) -> None:
    kernel_folder("kind", "key").write("name", DATA)
    for folder in (root / "kernels", root / "kernels" / "kind-key"):
        folder.chmod(0o755)
    assert reopened(root).read("name") == DATA
    assert [mode(root / "kernels"), mode(root / "kernels" / "kind-key")] == [0o700, 0o700]


def _open_to_the_group(root: Path) -> None:
    (root / "kernels").chmod(0o770)


def _inner_open_to_all(root: Path) -> None:
    (root / "kernels" / "kind-key").chmod(0o702)


def _link(root: Path) -> None:
    (root / "kernels").rename(root / "elsewhere")
    (root / "kernels").symlink_to(root / "elsewhere")


def _inner_link(root: Path) -> None:
    (root / "kernels" / "kind-key").rename(root / "elsewhere")
    (root / "kernels" / "kind-key").symlink_to(root / "elsewhere")


def _file(root: Path) -> None:
    (root / "kernels").rename(root / "elsewhere")
    (root / "kernels").write_text("")


@POSIX
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_open_to_the_group, "kernels can be written by others (mode 770); remove it, or run chmod 700 on it"),
        (_inner_open_to_all, "kind-key can be written by others (mode 702)"),
        (_link, "kernels is a symbolic link"),
        (_inner_link, "kind-key is a symbolic link"),
        (_file, "kernels: File exists"),
    ],
)
def test_an_unsafe_folder_is_not_read_and_said_once(
    spoil: Callable[[Path], None], words: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reopened(root).write("name", DATA)
    spoil(root)
    folders = [reopened(root), reopened(root)]
    assert [folder.read("name") for folder in folders] == [None, None]
    assert not any(folder.kept for folder in folders)
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]
    assert caplog.messages[0].endswith("choose another folder with the environment variable STSBP_CACHE")
    # For this process, there is another place.
    folders[0].write("name", b"new")
    assert folders[0].read("name") == b"new"
    assert root not in folders[0].built("library", lambda path: path.touch()).parents


@POSIX
def test_what_belongs_to_somebody_else_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = reopened(root)
    folder.write("name", DATA)
    number = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: number + 1)
    assert folder.read("name") is None
    assert reopened(root).read("name") is None
    assert [f"kernels belongs to another user (number {number})" in text for text in caplog.messages] == [True]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _another_name(path: Path) -> None:
    path.write_bytes(path.with_name("other").read_bytes())


def _open_file(path: Path) -> None:
    path.chmod(0o620)


def _linked(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _unlink(path: Path) -> None:
    path.unlink()


@POSIX
@pytest.mark.parametrize(
    "damage",
    [_cut, _cut_to_nothing, _one_bit, _another_name, _open_file, _linked, _pipe, _unlink],
    ids=lambda d: d.__name__,
)
def test_a_file_that_is_damaged_or_unsafe_is_made_again(damage: Callable[[Path], None], root: Path) -> None:
    folder = kernel_folder("kind", "key")
    folder.write("other", b"something else")
    for _ in range(2):
        assert folder.read("name") is None
        folder.write("name", DATA)
        assert folder.read("name") == DATA
        damage(root / "kernels" / "kind-key" / "name")


@POSIX
@pytest.mark.parametrize("spoiled", ["library", "library.sha256"])
@pytest.mark.parametrize(
    "damage", [_cut, _cut_to_nothing, _one_bit, _open_file, _linked, _pipe, _unlink], ids=lambda d: d.__name__
)
def test_a_built_file_that_is_damaged_or_unsafe_is_built_again(
    damage: Callable[[Path], None], spoiled: str, root: Path
) -> None:
    calls = 0

    def build(path: Path) -> None:
        nonlocal calls
        calls += 1
        path.write_bytes(DATA)

    folder = kernel_folder("kind", "key")
    for expected in (1, 2):
        for _ in range(2):
            assert folder.built("library", build).read_bytes() == DATA
            assert calls == expected
        damage(root / "kernels" / "kind-key" / spoiled)


def test_a_build_that_fails_leaves_nothing(root: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the compiler stopped")

    with pytest.raises(RuntimeError, match="the compiler stopped"):
        kernel_folder("kind", "key").built("library", build)
    assert list((root / "kernels" / "kind-key").iterdir()) == []


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_warning_and_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kernel_folder("kind", "key")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full_disk)
        folder.write("name", DATA)
        folder.write("name", DATA)
        with pytest.raises(BackendError, match=r"cannot be written: library: No space left on device"):
            folder.built("library", lambda path: path.write_bytes(DATA))
    assert list((root / "kernels" / "kind-key").iterdir()) == []
    assert [("No space left" in text, "STSBP_CACHE" in text) for text in caplog.messages] == [(True, True)]
    # What did not fit is kept for this process as soon as there is room.
    folder.write("name", DATA)
    assert folder.read("name") == DATA
    assert reopened(root).read("name") is None


def test_a_folder_that_cannot_be_written_is_still_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reopened(root).write("name", DATA)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    folder = reopened(root)
    assert not folder.kept
    folder.write("new", DATA)
    assert [folder.read("name"), folder.read("new")] == [DATA, DATA]
    assert [path.name for path in (root / "kernels" / "kind-key").iterdir()] == ["name"]
    assert ["kind-key cannot be written" in text for text in caplog.messages] == [True]


def test_without_a_home_there_is_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STSBP_CACHE", "~nosuchuser/cache")
    folder = kernel_folder("kind", "key")
    folder.write("name", DATA)
    assert folder.read("name") == DATA
    assert not folder.kept
    assert len(caplog.messages) == 1


def test_the_temporary_folder_ends_with_its_process(root: Path, tmp_path: Path) -> None:
    root.write_text("a file, no folder")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = (
        "from stsbp_spec.engine.kernel_cache import kernel_folder\n"
        "for kind in 'ab':\n"
        "    folder = kernel_folder(kind, 'key'); folder.write('name', b'data')\n"
        "    print(folder.read('name'), folder.built('library', lambda path: path.write_bytes(b'x')))\n"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert [line.startswith(f"b'data' {temporary}") for line in lines] == [True, True]
    assert list(temporary.iterdir()) == []
    assert done.stderr.count("compiled kernels cannot be kept") == len(done.stderr.splitlines()) == 1


def test_a_folder_that_vanishes_is_made_again(root: Path) -> None:
    folder = kernel_folder("kind", "key")
    folder.write("name", DATA)
    (root / "kernels").rename(root / "gone")
    assert folder.read("name") is None
    folder.write("name", DATA)
    assert folder.kept
    assert reopened(root).read("name") == DATA


DAY = 86400


def _written_folder(root: Path, key: str, days: float, kind: str = "kind") -> Path:
    KernelFolder(root / "kernels", kind, key).write("name", DATA)
    path = root / "kernels" / f"{kind}-{key}"
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_folders_unused_for_a_month_go_when_a_new_one_is_made(root: Path) -> None:
    old, recent, other = (
        _written_folder(root, "old", 0),
        _written_folder(root, "recent", 29),
        _written_folder(root, "old", 31, "other"),
    )
    os.utime(old, (time.time() - 31 * DAY,) * 2)
    reopened(root, "recent")
    assert old.exists()
    reopened(root, "new")
    assert not old.exists()
    assert recent.exists()
    assert other.exists()


def test_what_is_used_stays(root: Path) -> None:
    path = _written_folder(root, "used", 31)
    assert reopened(root, "used").read("name") == DATA
    reopened(root, "new")
    assert path.exists()


def test_at_most_eight_folders_stay_but_those_of_today(root: Path) -> None:
    paths = [_written_folder(root, str(n), 0) for n in range(12)]
    for n, path in enumerate(paths):
        os.utime(path, (time.time() - (n / 8) * DAY,) * 2)
    reopened(root, "new")
    # Opened within a day: 0 to 7. The eighth place is that of the new one, so 8 and later go.
    assert [path.exists() for path in paths] == [True] * 8 + [False] * 4
    for n, path in enumerate(paths[:8]):
        os.utime(path, (time.time() - (n + 2) * DAY,) * 2)
    reopened(root, "newer")
    assert [path.exists() for path in paths[:8]] == [True] * 6 + [False] * 2


def test_what_a_killed_process_left_half_written_goes(root: Path) -> None:
    folder = reopened(root)
    temporary = [root / "kernels" / "kind-key" / name for name in (".0123.tmp", ".4567.tmp")]
    for path in temporary:
        path.write_bytes(DATA)
    os.utime(temporary[0], (time.time() - 2 * DAY,) * 2)
    folder.write("name", DATA)
    # The other one may be being written.
    assert [path.exists() for path in temporary] == [False, True]


def _age(folder: Path, days: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (time.time() - days * DAY,) * 2)


def test_files_unused_for_a_month_go_when_a_process_writes_into_their_folder(root: Path) -> None:
    folder, path = reopened(root), root / "kernels" / "kind-key"
    for name in ("idle", "read"):
        folder.write(name, DATA)
    for name in ("idle.so", "built.so"):
        folder.built(name, lambda file: file.write_bytes(DATA))
    _age(path, 29)
    folder = reopened(root)
    folder.write("new", DATA)
    assert len(list(path.iterdir())) == 7
    _age(path, 31)
    assert folder.read("read") == DATA
    folder.built("built.so", lambda file: pytest.fail("it is there"))
    folder.write("not the first of this process", DATA)
    assert (path / "idle").exists()
    reopened(root).write("newer", DATA)
    remaining = {"read", "built.so", "built.so.sha256", "not the first of this process", "newer"}
    assert {file.name for file in path.iterdir()} == remaining


def test_a_file_is_marked_as_used_once_a_day(root: Path) -> None:
    folder, path = reopened(root), root / "kernels" / "kind-key" / "name"
    folder.write("name", DATA)
    for days, marked in ((0.9, False), (1.1, True)):
        used_at = time.time() - days * DAY
        os.utime(path, (used_at, used_at))
        folder.read("name")
        assert (path.stat().st_mtime > used_at + 1) is marked


def test_many_threads_write_one_file(root: Path) -> None:
    contents: list[bytes | None] = []

    def work() -> None:
        folder = kernel_folder("kind", "key")
        folder.write("name", DATA)
        contents.append(folder.read("name"))
        contents.append(folder.built("library", lambda path: path.write_bytes(DATA)).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [DATA] * 16


WRITE_AND_READ = """
import sys
from pathlib import Path
from stsbp_spec.engine.kernel_cache import KernelFolder

folder = KernelFolder(Path(sys.argv[1]), "kind", "key")
data = bytes([int(sys.argv[2])]) * 300_000
for _ in range(30):
    folder.write("name", data)
    found = folder.read("name")
    assert found is not None and len(set(found)) == 1 and len(found) == len(data)
"""


def test_processes_that_write_one_file_never_read_half_of_it(root: Path) -> None:
    command = [sys.executable, "-c", WRITE_AND_READ, str(root / "kernels")]
    children = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(3)]
    assert [child.communicate()[1] for child in children] == [""] * 3
    assert [child.returncode for child in children] == [0] * 3


def test_a_file_is_claimed_by_one_at_a_time(root: Path) -> None:
    folder = KernelFolder(root / "kernels", "kind", "key")
    claim = folder.claim("name")
    assert claim is not None
    assert folder.claim("name") is None
    assert not folder.is_free("name")
    assert folder.is_free("other")
    timer = threading.Timer(0.2, claim.release)
    timer.start()
    second = folder.claim("name", wait=30)
    timer.join()
    assert second is not None
    second.release()
    assert folder.is_free("name")
    assert [path for path in (root / "kernels").rglob("*") if path.is_file()] == []


def test_a_claim_that_another_process_ends_is_not_taken_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder, flock = KernelFolder(root / "kernels", "kind", "key"), fcntl.flock
    first = folder.claim("name")
    assert first is not None

    def late(file: int, operation: int) -> None:
        # The claim of the other process ends between the opening and the locking of its file.
        monkeypatch.setattr(fcntl, "flock", flock)
        first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = folder.claim("name")
    assert second is not None
    assert folder.claim("name") is None
    second.release()


CLAIM = """
import sys, time
from pathlib import Path
from stsbp_spec.engine.kernel_cache import KernelFolder

claim = KernelFolder(Path(sys.argv[1]), "kind", "key").claim("name")
print(claim is not None, flush=True)
time.sleep(60)
"""


def test_a_claim_ends_with_its_process(root: Path) -> None:
    folder = KernelFolder(root / "kernels", "kind", "key")
    command = [sys.executable, "-c", CLAIM, str(root / "kernels")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        assert not folder.is_free("name")
        child.kill()
    claim = folder.claim("name", wait=30)
    assert claim is not None
    claim.release()


def test_nothing_is_claimed_where_nothing_is_kept(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert KernelFolder(tmp_path / "file", "kind", "key").claim("name") is None
