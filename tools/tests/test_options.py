"""`docs/options.md` is what `tools/options.py` writes, and lists what `--help` shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "options.py"
PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_options", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


options = _load()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == options.page(), "run: python tools/options.py"


def test_settings_stand_in_their_section_once_and_other_commands_refer_to_them() -> None:
    text = options.page()
    assert text.count("| `--tau-m FLOAT` |") == 1
    assert text.count("The [settings of train](#network) are options, too") == 3
    experiment = text.partition("\n## experiment\n")[2].partition("\n## ")[0]
    assert "`--seeds INTEGER RANGE`" in experiment
    # A default of this command's own.
    assert "[default: one tenth of the training samples]" in experiment
    assert "--tau-m" not in experiment


def test_help_texts_become_markdown_with_options_as_code() -> None:
    assert options._escaped("a*b with --loss, `stsbp train --loss x` <y>") == (
        "a\\*b with `--loss`, `stsbp train --loss x` \\<y>"
    )
