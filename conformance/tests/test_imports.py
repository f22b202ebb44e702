"""Imports run one way: no circle of modules in any package, also in functions and for types; packages know the spec."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "stsbp_spec": set[str](),
    "stsbp_cpu": {"stsbp_spec"},
    "stsbp_torch": {"stsbp_spec", "stsbp_cpu"},
    "stsbp_jax": {"stsbp_spec", "stsbp_cpu"},
    "stsbp_cupy": {"stsbp_spec"},
    "stsbp": {"stsbp_spec"},
    "stsbp_conformance": {"stsbp_spec"},
}
"""Packages of the project that each may import."""


def _sources() -> dict[str, str]:
    """The text of every module by its name."""
    found = {}
    for source in (*ROOT.glob("packages/*/src"), ROOT / "conformance" / "src"):
        for path in source.rglob("*.py"):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def _imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules among them that each imports by name, anywhere in its text."""
    found: dict[str, set[str]] = {}
    for name, text in sources.items():
        named = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports by dots"
                module = str(node.module)
                named |= {whole if (whole := f"{module}.{each.name}") in sources else module for each in node.names}
        found[name] = named & set(sources) - {name}
    return found


def test_no_modules_import_each_other() -> None:
    imports = _imports(_sources())
    assert len(imports) > 150
    TopologicalSorter(imports).prepare()


def test_packages_import_the_spec_and_never_the_other_way() -> None:
    imports = _imports(_sources())
    assert {name.partition(".")[0] for name in imports} == set(ALLOWED)
    for name, found in imports.items():
        own = name.partition(".")[0]
        assert {other.partition(".")[0] for other in found} - {own} <= ALLOWED[own], name


def test_a_circle_in_a_function_or_for_a_type_is_found() -> None:
    for late in ("def f():\n    from p.a import x", "if TYPE_CHECKING:\n    import p.a", "from p import a"):
        with pytest.raises(CycleError):
            TopologicalSorter(_imports({"p": "", "p.a": "from p.b import y", "p.b": late})).prepare()
