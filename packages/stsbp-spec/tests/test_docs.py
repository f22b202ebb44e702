"""The documentation says what is there: files that it names exist, and its Python sessions print what it shows."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from stsbp_spec import AbstractBackend, installed_backends

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[at]*/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAMED_FILE = re.compile(r"`((?:packages|conformance|benchmarks|experiments|docs)/[\w./-]*\w)`")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_page_names_files_that_exist(page: Path) -> None:
    missing = [name for name in NAMED_FILE.findall(page.read_text()) if not (ROOT / name).exists()]
    assert not missing


def test_every_equation_of_the_pseudo_code_has_its_files() -> None:
    rows = [line for line in (ROOT / "docs/equations.md").read_text().splitlines() if line.startswith("| (")]
    numbered = {number for row in rows if len(NAMED_FILE.findall(row)) >= 2 for number in re.findall(r"\((\w+)\)", row)}
    assert numbered >= {"3a", "4", "5", *(str(number) for number in range(10, 19))}


def test_spec_files_of_the_equations_name_them() -> None:
    for row in (ROOT / "docs/equations.md").read_text().splitlines():
        if not row.startswith("| ("):
            continue
        first, *_ = NAMED_FILE.findall(row)
        text = (ROOT / first).read_text()
        cited = {int(n) for n in re.findall(r"\((\d+)\)", text)}
        for low, high in re.findall(r"\((\d+)\)-\((\d+)\)", text):
            cited |= set(range(int(low), int(high) + 1))
        for number in map(int, re.findall(r"\((\d+)\)", row.split("|")[1])):
            assert number in cited, f"{first} does not cite Eq. ({number})"


@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in p.read_text()], ids=page_id)
def test_sessions_print_what_the_page_shows(page: Path) -> None:
    for backend in re.findall(r'open_backend\("(\w+)"\)', page.read_text()):
        if backend not in installed_backends():
            pytest.skip(f"the page uses the backend {backend}, which is not installed")
    # A fence would be taken for expected output.
    text = re.sub(r"^```.*$", "", page.read_text(), flags=re.MULTILINE)
    session = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    shown: list[str] = []
    result = doctest.DocTestRunner().run(session, out=shown.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(shown)


def test_the_page_on_backends_lists_the_members_of_a_backend() -> None:
    """Those that a backend must write, and those that it inherits."""
    page = (DOCS / "write_a_backend.md").read_text()
    must = {x for line in page.split("\n") if "You must write" in line for x in re.findall(r"`(\w+)`", line)}
    table = page.split("all members that you inherit:")[1].split("\n\n")[1]
    inherited = re.findall(r"`(\w+)`", table)
    abstract = AbstractBackend.__abstractmethods__ | {"name", "api"}
    public = {name for name in dir(AbstractBackend) if not name.startswith("_")}
    assert abstract <= must
    assert sorted(inherited) == sorted(public - abstract)
