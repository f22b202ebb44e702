"""Sphinx extension of the reference: docstrings as they are written here, equations of models, formulas as MathML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from typeset import mathml, recurrences, typeset

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples|Note|Notes):$")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skipped)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _docstring(app: Sphinx, kind: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [*_as_rst(lines), *(_equations(obj) if kind == "class" else ())]


def _signature(
    app: Sphinx, kind: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Types of arrays by the names that the sources give them."""
    first, second = (text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returned))
    return first, second


def _skipped(app: Sphinx, kind: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples stand in the docstring of their class; `extra_repr` is torch's."""
    return True if name == "extra_repr" or type(obj).__name__ == "_tuplegetter" else None


def _as_rst(lines: list[str]) -> Iterator[str]:
    """Docstrings have backticks around code, and indent what stays as it is; reStructuredText marks both."""
    in_section, literal, previous = False, False, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line and not indent:
            in_section = bool(_SECTION.match(line))
        if line and not literal and not in_section and indent >= 4 and not previous:
            literal = True
            yield from ("::", "")
        elif line and literal and indent < 4:
            literal = False
        yield line if literal else _code(line)
        previous = line.strip()


def _code(line: str) -> str:
    """One backtick becomes two, and what reStructuredText would read as markup outside of them is escaped."""
    escaped = ""
    for part in re.split(r"(`+[^`]+`+)", line):
        is_code = part.startswith("`")
        # Markup ends where a word does, unless something without width is in between.
        escaped += "\\ " if escaped.endswith("``") and part[:1].isalnum() else ""
        escaped += f"``{part.strip('`')}``" if is_code else _plain(part)
    return escaped


def _plain(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)


def _equations(obj: object) -> Iterator[str]:
    """The equations of a model with its default parameters."""
    try:
        equations = recurrences(obj())  # type: ignore[operator]
    except Exception:  # a class that needs arguments has no equations of its own
        return
    for recurrence in equations:
        direction = "One step back, from the last step to the first:" if recurrence.reverse else "One step forward:"
        yield from ("", direction if recurrence.states else "Its equation:", "")
        for line in typeset(recurrence):
            yield from (".. math::", "", f"   {line}", "")


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode
