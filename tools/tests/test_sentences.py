"""`tools/sentences.py` draws the same sentences for a seed, from pages and help texts, and no code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "sentences.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_sentences", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sentences = _load()

PAGE = """\
---
file_format: mystnb
---

# A heading of more than six words is none

A first sentence has many words in it. A second one
goes on over a line, with `code that is no word`.

```python
code = "has many words that nobody should read as text"
```

| column | what it means |
|---|---|
| name | a cell that is long enough to be read |

- An item of a list has enough words too.
  - So does an item of a list within it. numpy begins a sentence in small letters.

    an indented block of code is not read as text
"""


def test_sentences_of_a_page_are_its_text(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("Short.\n")
    (tmp_path / "docs" / "page.md").write_text(PAGE)
    (tmp_path / "docs" / "conformance.md").write_text(PAGE)
    texts = [text for place, text in sentences.sentences(tmp_path) if not place.startswith("stsbp ")]
    assert texts == [
        "A first sentence has many words in it.",
        "A second one goes on over a line, with `code that is no word`.",
        "a cell that is long enough to be read",
        "- An item of a list has enough words too.",
        "- So does an item of a list within it.",
        "numpy begins a sentence in small letters.",
    ]


def test_help_texts_are_split_at_paragraphs_and_lines_of_lists() -> None:
    texts = [text for place, text in sentences.sentences() if place == "stsbp predict --help"]
    assert "- an image (.jpg, .png, .bmp), resized if the network needs square images;" in texts
    assert not any("\b" in text or "  " in text for text in texts)


def test_a_seed_draws_the_same_sentences_from_pages_and_help_texts() -> None:
    first = sentences.draw(7, 40)
    assert first == sentences.draw(7, 40)
    assert first != sentences.draw(8, 40)
    assert len(set(first)) == 40
    places = {place for place, _ in sentences.sentences()}
    assert {"README.md", "docs/cli.md", "docs/tutorials/melody.md", "stsbp train --help"} <= places
    assert "docs/conformance.md" not in places
