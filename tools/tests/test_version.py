"""`tools/version.py` and `tools/check_dist.py`: on this checkout, and on copies with one mistake each."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


version, check_dist = _load("version"), _load("check_dist")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the script reads, alone."""
    for folder in version.packages(ROOT):
        target = tmp_path / folder.relative_to(ROOT)
        target.mkdir(parents=True)
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(folder / name, target / name)
    for name in ("LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_copy_in_this_checkout_follows() -> None:
    assert version.problems(ROOT) == []
    # Eight packages, a pin of the spec in six and of the kernels in two, four extras, the citation.
    assert len(list(version.copies(ROOT))) == 8 + 6 + 2 + 4 + 1


def test_a_new_version_is_written_into_every_copy(checkout: Path) -> None:
    version.write("12.34.5rc1", checkout)
    assert version.problems(checkout) == []
    assert {copy.version for copy in version.copies(checkout)} == {"12.34.5rc1"}
    for file in (*checkout.rglob("pyproject.toml"), checkout / "CITATION.cff"):
        original = (ROOT / file.relative_to(checkout)).read_text()
        assert file.read_text().replace("12.34.5rc1", version.read(ROOT)) == original


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("packages/stsbp/pyproject.toml", r'(?m)^version = ".*"', 'version = "9.9.9"', r"toml:7: 9\.9\.9, but"),
        ("packages/stsbp-jax/pyproject.toml", r'"stsbp-spec==[^"]*"', '"stsbp-spec==9.9.9"', r"9\.9\.9, but"),
        ("packages/stsbp-jax/pyproject.toml", r'"stsbp-spec==[^"]*"', '"stsbp-spec"', "must be pinned"),
        ("packages/stsbp-jax/pyproject.toml", r'"stsbp-spec==[^"]*"', '"stsbp-spec>=0.1"', "must be pinned"),
        ("packages/stsbp-cupy/pyproject.toml", r'(?m)^version = ".*"', 'dynamic = ["version"]', "needs one line"),
        ("CITATION.cff", r"(?m)^version: .*", "version: 9.9.9", r"CITATION\.cff:7: 9\.9\.9, but"),
        ("conformance/LICENSE", "Apache", "Apaches", "conformance/LICENSE is not a copy"),
    ],
)
def test_a_copy_that_does_not_follow_is_named(checkout: Path, file: str, old: str, new: str, complaint: str) -> None:
    path = checkout / file
    changed, count = re.subn(old, new, path.read_text(), count=1)
    assert count == 1
    path.write_text(changed)
    (problem,) = version.problems(checkout)
    assert re.search(complaint, problem)


@pytest.mark.parametrize("arguments", [["1.0"], ["v1.0.0"], ["1.0.0", "2.0.0"], ["--help"]])
def test_what_is_no_version_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert version.main(arguments) == 2
    assert "expected nothing or one version" in capsys.readouterr().err


METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: something
Project-URL: Homepage, https://{host}
Author: The stsbp authors
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.11
Requires-Dist: numpy>=1.26
Requires-Dist: stsbp-spec=={version}
Requires-Dist: stsbp-torch=={version}; extra == 'torch'
"""


def _built(folder: Path, host: str = "stsbp.example") -> Path:
    """Wheels and sdists as they should be, of empty files."""
    number = version.read(ROOT)
    for package in version.packages(ROOT):
        name = "stsbp_conformance" if package.name == "conformance" else package.name.replace("-", "_")
        text = METADATA.format(name=name, version=number, host=host)
        with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-{number}.dist-info/METADATA", text)
            wheel.writestr(f"{name}-{number}.dist-info/licenses/LICENSE", "")
            data = ("k.cu", "k.cuh", "k.h", "m.packed", "config.json", "README.md", "page.html", "style.css")
            for file in ("__init__.py", "py.typed", *data):
                wheel.writestr(f"{name}/{file}", "")
        with tarfile.open(folder / f"{name}-{number}.tar.gz", "w:gz") as sdist:
            for file in ("LICENSE", "pyproject.toml", "README.md"):
                sdist.addfile(tarfile.TarInfo(f"{name}-{number}/{file}"), io.BytesIO())
    return folder


def test_whole_wheels_pass_and_reserved_urls_are_not_released(tmp_path: Path) -> None:
    assert check_dist.problems(_built(tmp_path)) == []
    complaints = check_dist.problems(tmp_path, release=True)
    assert len(complaints) == 8
    assert all("reserved name .example" in line for line in complaints)
    assert check_dist.problems(_built(tmp_path, host="stsbp.org"), release=True) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("stsbp-spec==", "stsbp-spec>=", "requires stsbp-spec>="),
        ("License-File: LICENSE\n", "", "no License-File"),
        ("Author: The stsbp authors\n", "", "no Author"),
        ("Project-URL: Homepage, https://stsbp.example\n", "", "no Project-URL"),
    ],
)
def test_metadata_with_a_mistake_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    _built(tmp_path)
    number = version.read(ROOT)
    path = tmp_path / f"stsbp-{number}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name).decode() for name in wheel.namelist()}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text.replace(old, new) if name.endswith("METADATA") else text)
    (problem,) = check_dist.problems(tmp_path)
    assert complaint in problem


@pytest.mark.parametrize(
    ("package", "left_out", "complaint"),
    [
        ("stsbp_cupy", "k.cuh", "no file .cuh"),
        ("stsbp_torch", "py.typed", "no py.typed"),
        ("stsbp", "LICENSE", "no licence"),
    ],
)
def test_a_wheel_without_its_files_is_refused(tmp_path: Path, package: str, left_out: str, complaint: str) -> None:
    _built(tmp_path)
    path = tmp_path / f"{package}-{version.read(ROOT)}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            if not name.endswith(left_out):
                wheel.writestr(name, content)
    assert any(complaint in line for line in check_dist.problems(tmp_path))


def test_missing_files_are_named(tmp_path: Path) -> None:
    _built(tmp_path)
    (tmp_path / f"stsbp_jax-{version.read(ROOT)}.tar.gz").unlink()
    (problem,) = check_dist.problems(tmp_path)
    assert problem.startswith("stsbp_jax: ")
