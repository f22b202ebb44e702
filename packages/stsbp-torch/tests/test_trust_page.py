"""The cases of docs/trust.md, as a reader would run them one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "trust.md"


def test_cases_of_the_page_pass(capsys: pytest.CaptureFixture[str]) -> None:
    if not PAGE.is_file():
        pytest.skip("the documentation is not beside the packages")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), scope)
    assert "linear2" in capsys.readouterr().out
