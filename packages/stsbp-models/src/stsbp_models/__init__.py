"""Trained networks of stsbp as package data, one folder each, in the form of `stsbp export --to hub --packed`.

`stsbp` reads them (`model:NAME`). This package imports nothing, and `tools/models.py` writes its folders from runs.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["folders"]


def folders() -> dict[str, Path]:
    """The folder of each network by its name, in alphabetical order. Each has a model card, `README.md`."""
    here = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(here.glob("*/config.json"))}
