"""Temporary files of killed processes go; those that a process writes at the moment stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stsbp.files import OpenFolder, atomic_writer, write_atomically

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no file that is open")


DIES = """
import os, sys
from pathlib import Path
from stsbp.files import atomic_writer
with atomic_writer(Path("page.html")) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing `page.html`; it dies when it is sent a line."""
    command = [sys.executable, "-c", DIES]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def temporary(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def test_leftover_goes_when_its_file_is_written_again(writing: subprocess.Popen[str], tmp_path: Path) -> None:
    (leftover,) = temporary(tmp_path)
    write_atomically(tmp_path / "page.html", b"other")
    # The process still writes it.
    assert temporary(tmp_path) == [leftover]
    writing.communicate("\n")
    assert writing.returncode == 9
    write_atomically(tmp_path / "other.html", b"another file")
    assert temporary(tmp_path) == [leftover]
    write_atomically(tmp_path / "page.html", b"whole")
    assert temporary(tmp_path) == []
    assert (tmp_path / "page.html").read_bytes() == b"whole"


def test_every_leftover_goes_from_the_programs_own_folder(tmp_path: Path) -> None:
    leftovers = (".page.html.0123456789ab.tmp", ".manifest-1.json.0123456789ab.tmp", ".new\nline.0123456789ab.tmp")
    others = (".page.html.0123456789.tmp", "page.html.0123456789ab.tmp", ".page.html.0123456789ab.tmp~", "data.tmp")
    for name in (*leftovers, *others):
        (tmp_path / name).touch()
    write_atomically(tmp_path / "images.cache", b"", own_folder=True)
    assert {path.name for path in tmp_path.iterdir()} == {"images.cache", *others}


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="descriptors cannot be counted here")
def test_sweeping_keeps_no_descriptor(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page.html", b"", own_folder=True)
    open_descriptors = len(os.listdir("/dev/fd"))
    for number in range(5):
        (tmp_path / f".page.html.{number:012x}.tmp").touch()
    write_atomically(tmp_path / "page.html", b"", own_folder=True)
    assert temporary(tmp_path) == []
    assert len(os.listdir("/dev/fd")) == open_descriptors


def test_a_file_that_is_swept_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stsbp import files

    lock, swept = files._lock, list[str]()

    def slow(descriptor: int, *, wait: bool) -> int | None:
        if wait and not swept:
            swept.extend(temporary(tmp_path))
            (tmp_path / swept[0]).unlink()
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(files, "_lock", slow)
    with OpenFolder(tmp_path) as folder:
        folder.write("file", b"content")
    assert swept
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_folder_without_locks_keeps_leftovers_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refused(*_arguments: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".file.0123456789ab.tmp").touch()
    write_atomically(tmp_path / "file", b"content")
    assert temporary(tmp_path) == [".file.0123456789ab.tmp"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_write_that_fails_leaves_nothing_and_the_file_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page.html", b"whole")

    def fail() -> None:
        with atomic_writer(tmp_path / "page.html") as file:
            file.write(b"half")
            assert len(temporary(tmp_path)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"whole"
