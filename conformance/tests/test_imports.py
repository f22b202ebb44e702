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
    "stsbp_models": set[str](),
    "stsbp_conformance": {"stsbp_spec"},
}
"""Packages of the project that each may import."""


def _sources() -> dict[str, str]:
    """The text of every module by its name."""
    texts = {}
    for source in (*ROOT.glob("packages/*/src"), ROOT / "conformance" / "src"):
        for path in source.rglob("*.py"):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            texts[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return texts


def _imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules among them that each module imports by name, anywhere in its text."""
    imports: dict[str, set[str]] = {}
    for module_name, text in sources.items():
        imported = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module_name} imports by dots"
                module = str(node.module)
                names = {f"{module}.{alias.name}" for alias in node.names}
                imported |= {name if name in sources else module for name in names}
        imports[module_name] = imported & set(sources) - {module_name}
    return imports


def test_no_modules_import_each_other() -> None:
    imports = _imports(_sources())
    assert len(imports) > 150
    TopologicalSorter(imports).prepare()


def test_packages_import_the_spec_and_never_the_other_way() -> None:
    imports = _imports(_sources())
    assert {name.partition(".")[0] for name in imports} == set(ALLOWED)
    for name, imported in imports.items():
        package = name.partition(".")[0]
        assert {other.partition(".")[0] for other in imported} - {package} <= ALLOWED[package], name


def _longest_chain(imports: Mapping[str, set[str]]) -> list[str]:
    """The longest chain of modules of which each imports the next one."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(imports).static_order():
        chains[name] = [name, *max((chains[module] for module in imports[name]), key=len, default=[])]
    return max(chains.values(), key=len)


def test_the_spec_is_at_most_fourteen_modules_deep() -> None:
    # Whoever follows the imports of a module passes through all of these, so a longer chain has to be worth it.
    imports = _imports({name: text for name, text in _sources().items() if name.startswith("stsbp_spec")})
    chain = _longest_chain(imports)
    assert len(chain) <= 14, " > ".join(chain)
    assert _longest_chain({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}) == ["a", "b", "c"]


def test_a_circle_in_a_function_or_for_a_type_is_found() -> None:
    for statement in ("def f():\n    from p.a import x", "if TYPE_CHECKING:\n    import p.a", "from p import a"):
        with pytest.raises(CycleError):
            TopologicalSorter(_imports({"p": "", "p.a": "from p.b import y", "p.b": statement})).prepare()
