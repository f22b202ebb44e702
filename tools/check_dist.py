"""Look into built wheels and sdists before anybody installs them: `python tools/check_dist.py DIST [--release]`.

Every package must be there, as wheel and as sdist, of the one version, with licence, authors, URLs and its data files;
packages of this project are required in exactly this version. With `--release` the URLs must be real ones.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import version as versions

__all__ = ["main", "problems"]

DATA = {
    "stsbp": (".html", ".css"),
    "stsbp_cupy": (".cu", ".cuh", ".h"),
    "stsbp_models": (".packed", "config.json", "README.md"),
}
"""Files besides Python's that a package needs, by suffix."""


def problems(dist: Path, *, release: bool = False) -> list[str]:
    """What is wrong with the files of a folder; a line each."""
    version, lines = versions.read(), []
    for folder in versions.packages(versions.ROOT):
        name = f"stsbp_{folder.name.removeprefix('stsbp-')}" if folder.name != "stsbp" else "stsbp"
        wheel = dist / f"{name}-{version}-py3-none-any.whl"
        sdist = dist / f"{name}-{version}.tar.gz"
        if not wheel.is_file() or not sdist.is_file():
            lines.append(f"{name}: {wheel.name} and {sdist.name} are not both in {dist}")
            continue
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            metadata = BytesParser().parsebytes(archive.read(f"{name}-{version}.dist-info/METADATA"))
        if f"{name}-{version}.dist-info/licenses/LICENSE" not in names:
            lines.append(f"{wheel.name}: no licence")
        lines += [f"{wheel.name}: no file {suffix}" for suffix in DATA.get(name, ()) if not _has(names, suffix)]
        if not _has(names, "py.typed") and name != "stsbp_conformance":
            lines.append(f"{wheel.name}: no py.typed")
        if tests := [n for n in names if n.startswith("tests/") or not n.startswith(name)]:
            lines.append(f"{wheel.name}: {tests[0]} does not belong into it")
        lines += [f"{wheel.name}: {problem}" for problem in _metadata(metadata, version, release)]
        with tarfile.open(sdist) as tar:
            inside = {n.partition("/")[2] for n in tar.getnames()}
        lines += [f"{sdist.name}: no {n}" for n in ("LICENSE", "pyproject.toml", "README.md") if n not in inside]
    return lines


def _has(names: list[str], suffix: str) -> bool:
    return any(name.endswith(suffix) for name in names)


def _metadata(metadata: Message, version: str, release: bool) -> list[str]:
    lines = []
    for field in ("Author", "License-Expression", "License-File", "Summary", "Requires-Python"):
        if not metadata.get(field):
            lines.append(f"no {field} in its metadata")
    urls = metadata.get_all("Project-URL") or []
    if not urls:
        lines.append("no Project-URL in its metadata")
    if release and any(".example" in url for url in urls):
        lines.append("its URLs still lead to the reserved name .example; write the project's own")
    for required in metadata.get_all("Requires-Dist") or []:
        requirement = required.partition(";")[0].strip()
        if requirement.startswith("stsbp") and not requirement.endswith(f"=={version}"):
            lines.append(f"requires {requirement}, not exactly =={version}")
    return lines


def main() -> int:
    """Print what is wrong; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dist", type=Path, help="folder of wheels and sdists")
    parser.add_argument("--release", action="store_true", help="refuse what must not be uploaded")
    arguments = parser.parse_args()
    lines = problems(arguments.dist, release=arguments.release)
    print("\n".join(lines) or f"wheels and sdists of version {versions.read()} are whole")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
