"""The project's version, which stands in one place: packages/stsbp-spec/pyproject.toml.

    python tools/version.py            say whether every copy follows it
    python tools/version.py 0.2.0      write a new version there and into every copy

Copies are in the other packages' metadata, in the pins between the packages (`stsbp-spec==0.1.0`), and in CITATION.cff.
Metadata is static so that an sdist carries all of it and needs no file from outside of its folder; the licence is
copied into each package for the same reason, and compared here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["SOURCE", "copies", "main", "problems", "read"]

ROOT = Path(__file__).parents[1]
# hatchling could read a version from a file when it builds, but an sdist holds only files of its own folder, and the
# pins between the packages would need a build hook. Git's tags are missing in shallow clones and archives.
SOURCE = "packages/stsbp-spec/pyproject.toml"
_OWN = re.compile(r'^version = "(?P<version>[^"]+)"$', re.MULTILINE)
_PIN = re.compile(r'"stsbp-[a-z]+(?:\[[a-z0-9,]+\])?==(?P<version>[^"]+)"')
_LOOSE = re.compile(r'"stsbp(?:-[a-z]+)?(?:\[[a-z0-9,]+\])?(?!==)[<>=~!][^"]*"|"stsbp-[a-z]+"(?=[,\]])')
_CITATION = re.compile(r"^version: (?P<version>\S+)$", re.MULTILINE)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?(?:\.dev\d+)?")


class Copy(NamedTuple):
    """A place that repeats the version: its file, and the characters from `start` to `end` of the text."""

    file: Path
    start: int
    end: int
    version: str


def packages(root: Path) -> list[Path]:
    """Folders of the packages that are released together."""
    return [path.parent for path in sorted(root.glob("packages/*/pyproject.toml"))] + [root / "conformance"]


def read(root: Path = ROOT) -> str:
    """The version."""
    match = _OWN.search((root / SOURCE).read_text(encoding="utf-8"))
    if match is None:
        raise SystemExit(f"{SOURCE} has no line: version = ...")
    return match["version"]


def copies(root: Path = ROOT) -> Iterator[Copy]:
    """Every place that holds the version, the first one included."""
    for folder in packages(root):
        file = folder / "pyproject.toml"
        text = file.read_text(encoding="utf-8")
        for pattern in (_OWN, _PIN):
            for match in pattern.finditer(text):
                yield Copy(file, *match.span("version"), match["version"])
    file = root / "CITATION.cff"
    for match in _CITATION.finditer(file.read_text(encoding="utf-8")):
        yield Copy(file, *match.span("version"), match["version"])


def problems(root: Path = ROOT) -> list[str]:
    """What does not follow the one version, or the one licence; a line each."""
    version, lines = read(root), []
    for copy in copies(root):
        if copy.version != version:
            line = copy.file.read_text(encoding="utf-8").count("\n", 0, copy.start) + 1
            name = copy.file.relative_to(root)
            lines.append(f"{name}:{line}: {copy.version}, but {SOURCE} says {version}; run tools/version.py {version}")
    licence = (root / "LICENSE").read_bytes()
    for folder in packages(root):
        name, text = folder.relative_to(root), (folder / "pyproject.toml").read_text(encoding="utf-8")
        if len(_OWN.findall(text)) != 1:
            lines.append(f"{name}/pyproject.toml: needs one line: version = ...")
        for loose in _LOOSE.findall(text):
            lines.append(f"{name}/pyproject.toml: {loose} must be pinned to the version of this package with ==")
        if not (folder / "LICENSE").is_file() or (folder / "LICENSE").read_bytes() != licence:
            lines.append(f"{name}/LICENSE is not a copy of the project's LICENSE")
    return lines


def write(version: str, root: Path = ROOT) -> None:
    """Write a version into every place that holds it."""
    # From the end of each file to its beginning, so that what is still to be replaced stays where it is.
    for copy in sorted(copies(root), key=lambda c: (c.file, -c.start)):
        text = copy.file.read_text(encoding="utf-8")
        copy.file.write_text(text[: copy.start] + version + text[copy.end :], encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> int:
    """Check, or write; returns the exit code."""
    if len(arguments) > 1 or any(not _VERSION.fullmatch(x) for x in arguments):
        print(f"expected nothing or one version such as 0.2.0 or 0.2.0rc1, got: {' '.join(arguments)}", file=sys.stderr)
        return 2
    if arguments:
        write(arguments[0])
    lines = problems()
    print("\n".join(lines) or f"version {read()}: every copy follows", file=sys.stderr if lines else sys.stdout)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
