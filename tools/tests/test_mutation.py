"""The mutation tool: what it breaks, that it breaks nothing else, and what it calls killed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1]


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


mutants = _module("mutants")
_module("nearest")
mutation = _module("mutation")

PYTHON = '''
"""No 1 < 2 in a docstring."""
__all__ = ["f"]
LIMIT = 3

def f(x: "list[int]", y: int | None = None) -> int | None:
    if not x or len(x) < LIMIT and y is None:
        raise ValueError(f"{len(x) - 1} of {LIMIT}")
    x.clear()
    return snap(round(x[0]) + 1)
'''


def _changes(path: str, text: str) -> set[str]:
    return {m.change for m in mutants.mutants_of(path, text) if mutants.changes(m, text)}


def test_python_is_broken_where_it_computes_and_nowhere_else() -> None:
    assert _changes("a.py", PYTHON) == {
        "3 -> 4", "3 -> 2", "not -> nothing", "or -> and", "and -> or", "< -> <=", "is -> is not",
        "not x or len(x) < LIMIT and y is None -> not (not x or len(x) < LIMIT and y is None)",
        'raise ValueError(f"{len(x) - 1} of {LIMIT}") -> pass', "x.clear() -> pass",
        "snap(round(x[0]) + 1) -> None", "snap(round(x[0]) + 1) -> (round(x[0]) + 1)", "round -> int", "+ -> -",
        "0 -> 1", "0 -> -1", "1 -> 2", "1 -> 0",
    }  # fmt: skip
    subtle = {m.change for m in mutants.mutants_of("a.py", PYTHON) if m.subtle}
    assert subtle == {"< -> <=", "round -> int", "snap(round(x[0]) + 1) -> (round(x[0]) + 1)"}


def test_cuda_is_broken_outside_of_comments() -> None:
    text = "// a < b + 1\n#define N 1\nif (i >= count) return;\nx = snap(__fmul_rn(a, 0.5f)) + rintf(y << 3);\n"
    assert _changes("a.cu", text) == {
        ">= -> >", "snap -> nothing", "__fmul_rn -> __fadd_rn", "0.5f -> 2.0f", "+ -> -", "rintf -> truncf",
        "rintf -> floorf", "<< -> >>", "3 -> 4", "3 -> 2",
    }  # fmt: skip


def test_every_mutant_of_python_can_be_compiled_and_changes_one_place() -> None:
    text = (TOOLS / "mutation.py").read_text(encoding="utf-8")[-6000:].partition("\n\n\n")[2]
    effective = [m for m in mutants.mutants_of("tools/part.py", text) if mutants.changes(m, text)]
    assert len(effective) > 40
    for mutant in random.Random(1).sample(effective, 20):
        changed = mutant.applied(text)
        compile(changed, "mutant", "exec")
        assert changed[: mutant.start] == text[: mutant.start]
        assert changed.endswith(text[mutant.end :])
        assert mutants.collapsed(text.splitlines()[mutant.line - 1]) == mutant.context


def test_a_repeated_change_of_one_line_is_numbered() -> None:
    assert [m.change for m in mutants.mutants_of("a.py", "x = a + b + c\n")] == ["+ -> -", "+ -> - (number 2)"]


def test_the_draw_takes_packages_in_turn_and_follows_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.py").write_text(text := "x = 1 + 2 + 3 - 4\n")
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    pool = {name: mutants.mutants_of(f"{name}.py", text) for name in ("a", "b", "c")}
    drawn = [mutation.drawn(pool, 7, random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [m.path for m in drawn[0]] == ["a.py", "b.py", "c.py", "a.py", "b.py", "c.py", "a.py"]


def test_the_rules_name_tests_for_every_source() -> None:
    rules = mutation.rules()
    # A line that is rewritten takes its mutant along, and the file must follow.
    assert len(mutation.named(rules)) == len(rules.named) > 0
    for path in mutation.sources(rules):
        for stage in rules.stages(path):
            named = [word.split("::")[0] for word in stage if "tests" in word]
            assert named
            assert all((mutation.ROOT / word).exists() for word in named), stage
    assert all(rule["reason"] for rule in (*rules.equivalent, *rules.excluded))


WARM: Any = pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="forks"))

SOURCE = "def larger(x, y):\n    return x if x > y else y\n\n\ndef size(x):\n    return len(x) + 0 * len(x)\n"
TESTS = "from one import larger\n\n\ndef test_larger():\n    assert larger(1, 2) == larger(2, 1) == 2\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "tree"
    (root / "packages" / "stsbp" / "src").mkdir(parents=True)
    (root / "packages" / "stsbp" / "src" / "one.py").write_text(SOURCE)
    (root / "test_one.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.setattr(mutation, "ROOT", root)
    return root


@pytest.mark.parametrize("warm", [False, WARM])
def test_killed_survived_and_equivalent(repository: Path, tmp_path: Path, warm: bool) -> None:
    path = "packages/stsbp/src/one.py"
    rules = mutation.Rules(
        groups={"all": ["test_one.py"]},
        tests=[{"file": "packages/*", "stages": [["all"]]}],
        equivalent=[{"file": "*", "line": "return  x if x > y else y", "change": "> -> >=", "reason": "the same"}],
        excluded=[],
        named=[],
    )
    campaign = mutation.Campaign(rules, tmp_path / "copies", jobs=1, limit=60, warm=warm)
    by_change = {m.change: m for m in mutants.mutants_of(path, SOURCE)}
    results = {
        change: campaign.attempt(by_change[change], 1) for change in ("> -> >=", "x > y -> not (x > y)", "0 -> 1")
    }
    assert {change: r.status for change, r in results.items()} == {
        "> -> >=": "equivalent", "x > y -> not (x > y)": "killed", "0 -> 1": "survived",
    }  # fmt: skip
    campaign.close()
    assert results["x > y -> not (x > y)"].by == "test_one.py::test_larger"
    assert (repository / path).read_text() == SOURCE


def test_a_test_that_fails_anyway_kills_nothing(repository: Path, tmp_path: Path) -> None:
    (repository / "test_one.py").write_text("def test_red():\n    assert False\n")
    rules = mutation.Rules({}, [{"file": "*", "stages": [["test_one.py"]]}], [], [], [])
    campaign = mutation.Campaign(rules, tmp_path / "copies", jobs=1, limit=60)
    result = campaign.attempt(mutants.mutants_of("packages/stsbp/src/one.py", SOURCE)[0], 1)
    assert (result.status, result.by) == ("unclear", "fails without the mutant too: test_one.py::test_red")


@pytest.mark.parametrize(
    ("status", "test", "warm"),
    [
        ("unclear", "one.size([1])", False),
        ("timeout", "one.size([])", WARM),
        pytest.param("timeout", "one.size([])", False, marks=pytest.mark.long),
    ],
)
def test_a_run_that_takes_too_long_anyway_kills_nothing(
    repository: Path, tmp_path: Path, status: str, test: str, warm: bool
) -> None:
    # It waits, since others have work for the processor.
    source = "import time\n\n\ndef size(x):\n    while len(x) > 0:\n        time.sleep(0.1)\n    return 0\n"
    path = "packages/stsbp/src/one.py"
    (repository / path).write_text(source)
    (repository / "test_one.py").write_text(f"import one\n\n\ndef test_size():\n    assert {test} == 0\n")
    rules = mutation.Rules({}, [{"file": "*", "stages": [["test_one.py"]]}], [], [], [])
    campaign = mutation.Campaign(rules, tmp_path / "copies", jobs=1, limit=8, warm=warm)
    [mutant] = [m for m in mutants.mutants_of(path, source) if m.change == "> -> >="]
    result = campaign.attempt(mutant, 1)
    campaign.close()
    assert result.status == status, result
    assert (repository / path).read_text() == source


def test_a_test_that_is_parametrised_with_what_a_mutant_changes_kills_it(repository: Path, tmp_path: Path) -> None:
    (repository / "test_one.py").write_text(
        "import one\nimport pytest\n\n\n@pytest.mark.parametrize('x', [one.larger(1, 2)])\n"
        "def test_larger(x):\n    assert x == 2\n"
    )
    rules = mutation.Rules({}, [{"file": "*", "stages": [["test_one.py"]]}], [], [], [])
    campaign = mutation.Campaign(rules, tmp_path / "copies", jobs=1, limit=60)
    [mutant] = [m for m in mutants.mutants_of("packages/stsbp/src/one.py", SOURCE) if m.change.endswith("(x > y)")]
    result = campaign.attempt(mutant, 1)
    assert (result.status, result.by) == ("killed", "test_one.py::test_larger[1]")


def test_a_test_is_known_by_its_whole_name(repository: Path, tmp_path: Path) -> None:
    tests = "import one\nimport pytest\n\n\n@pytest.mark.parametrize('x', ['2 - 1'])\ndef test_larger(x):\n"
    (repository / "test_one.py").write_text(tests + "    assert one.larger(1, 2) == 2, 'no - it [is]'\n")
    rules = mutation.Rules({}, [{"file": "*", "stages": [["test_one.py"]]}], [], [], [])
    campaign = mutation.Campaign(rules, tmp_path / "copies", jobs=1, limit=60)
    [mutant] = [m for m in mutants.mutants_of("packages/stsbp/src/one.py", SOURCE) if m.change.endswith("(x > y)")]
    result = campaign.attempt(mutant, 1)
    assert (result.status, result.by) == ("killed", "test_one.py::test_larger[2 - 1]")


def test_a_draw_goes_on_where_it_stopped(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run of pytest alone, no time at all, then from where it stopped, then all runs for what is open."""
    (repository / "test_more.py").write_text("import one\n\n\ndef test_size():\n    assert one.size([1]) == 1\n")
    for package in ("stsbp", "stsbp-spec"):  # what a copy is recognised by
        module = repository / "packages" / package / "src" / package.replace("-", "_")
        module.mkdir(parents=True)
        (module / "__init__.py").touch()
    stages = [["test_one.py"], ["test_more.py"]]
    rules = mutation.Rules({}, [{"file": "*", "stages": stages}], [], [], [])
    monkeypatch.setattr(mutation, "rules", lambda: rules)
    (repository / "packages" / "stsbp" / "src" / "one.py").write_text(SOURCE.replace(" + 0 * len(x)", ""))
    json_path = tmp_path / "results.json"

    def call(*options: str) -> tuple[Any, dict[str, int]]:
        draw = ["--files", "*/one.py", "--random", "40", "--resume", "--json", str(json_path)]
        monkeypatch.setattr(sys, "argv", ["mutation.py", *draw, *options])
        with pytest.raises(SystemExit) as end:
            mutation.main()
        counts = json.loads(json_path.read_text(encoding="utf-8"))["counts"]
        return end.value.code, {status: n for status, n in counts.items() if n}

    assert call("--minutes", "0") == (2, {"untried": 4})
    assert call("--stages", "1") == (2, {"killed": 2, "open": 2})
    capsys.readouterr()
    assert call("--stages", "1") == (2, {"killed": 2, "open": 2})
    assert "s  packages" not in capsys.readouterr().out  # nothing was tried again
    assert call() == (1, {"killed": 3, "survived": 1})
    assert capsys.readouterr().out.count(" s  packages") == 2


def test_a_draw_is_of_the_files_that_are_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "packages" / "stsbp" / "src" / "two.py").write_text(SOURCE)
    options = argparse.Namespace(named=False, only=[], random=20, subtle=0, seed=1, files=["*/two.py"])
    drawn = mutation.chosen(options, mutation.Rules({}, [], [], [], []))
    assert {m.path for m in drawn} == {"packages/stsbp/src/two.py"}


def test_every_rule_names_a_line_that_exists() -> None:
    rules = mutation.rules()
    for rule in (*rules.named, *rules.equivalent):
        texts = [path.read_text(encoding="utf-8") for path in mutation.ROOT.glob(rule["file"])]
        lines = {mutants.collapsed(line) for text in texts for line in text.splitlines()}
        assert mutants.collapsed(rule["line"]) in lines, f"{rule['file']} has no line {rule['line']!r}"


@pytest.mark.parametrize("warm", [False, WARM])
def test_tests_that_execute_the_line_come_before_the_other_runs(repository: Path, tmp_path: Path, warm: bool) -> None:
    path = "packages/stsbp/src/one.py"
    (repository / "test_more.py").write_text("import one\n\n\ndef test_size():\n    assert one.size([1]) == 1\n")
    rules = mutation.Rules(
        {}, [{"file": "*", "stages": [["test_one.py"]]}], [], [], [], recorded=["-p", "no:cacheprovider"]
    )
    lines = sys.modules["nearest"].Lines()
    lines.add("test_more.py::test_size", 0.1, [(path, "return len(x) + 0 * len(x)")])
    lines.add("test_more.py::test_gone", 0.1, [(path, "return x if x > y else y")])
    campaign = mutation.Campaign(
        rules,
        tmp_path / "copies",
        jobs=1,
        limit=60,
        stages=0,
        warm=warm,
        lines=lines,
        nearest=1,
        caches=tmp_path / "kept",
    )
    by_change = {m.change: m for m in mutants.mutants_of(path, SOURCE)}
    results = {change: campaign.attempt(by_change[change], 1) for change in ("+ -> -", "0 -> 1", "> -> >=")}
    campaign.close()
    assert [(r.status, r.by) for r in results.values()] == [
        ("open", "test_one.py"), ("killed", "test_more.py::test_size"),
        ("unclear", "no such test without the mutant either: test_more.py::test_gone -p no:cacheprovider"),
    ]  # fmt: skip
