"""The option `--energy-table` of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from stsbp.energy.table import DEFAULT, TABLES

__all__ = ["energy_table_option"]


def energy_table_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--energy-table` with a help text."""
    tables = f"TABLE is {', '.join(TABLES)}, or a file of your own, FILE.toml or FILE.json."
    return click.option("--energy-table", metavar="TABLE", help=f"{text} {tables}  [default: {DEFAULT}]")
