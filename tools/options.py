"""Write `docs/options.md`: every option of every command, as `--help` shows it.

    python tools/options.py

A test fails while the page is not what this program writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from stsbp.cli import COMMANDS, cli
from stsbp.config import SECTIONS, RunConfig

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
FIRST_LINES = """\
# All options

Every option of every command with its default, as `stsbp COMMAND --help` shows it. The page
[command line](cli.md) explains the commands with examples.

*This page is generated. Do not change it by hand: write it again with `python tools/options.py`.*
"""


def page() -> str:
    """The page as Markdown."""
    lines = [FIRST_LINES, "## stsbp", "", "These options stand before the command.", "", *_table(_rows(cli))]
    train = _command("train")
    settings = {name: row for name, row in _rows(train).items() if name in RunConfig.model_fields}
    for name in COMMANDS:
        command = _command(name)
        rows = _rows(command)
        own_rows = {option: row for option, row in rows.items() if name == "train" or settings.get(option) != row}
        lines += ["", f"## {name}", "", *_about(command)]
        if name == "train":
            lines += _table({option: row for option, row in rows.items() if option not in settings})
            for title, names in SECTIONS.items():
                lines += ["", f"### {title}", "", *_table({option: rows[option] for option in names if option in rows})]
        else:
            lines += _table(own_rows)
            if own_rows != rows:
                lines += ["", _shared([option for option in settings if option not in rows])]
    return "\n".join(lines) + "\n"


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def _rows(command: click.Command) -> dict[str, tuple[str, str]]:
    """Names and help text of the options that `--help` shows, by the name of their value."""
    context = click.Context(command)
    options = [option for option in command.params if isinstance(option, click.Option)]
    records = {str(option.name): option.get_help_record(context) for option in options}
    return {name: record for name, record in records.items() if record is not None}


def _about(command: click.Command) -> Iterator[str]:
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        # Click does not wrap what follows this mark: lists, whose items may go on over indented lines.
        text = paragraph.removeprefix("\b\n")
        yield from (_escaped(text if text != paragraph else " ".join(text.split())), "")


def _table(rows: dict[str, tuple[str, str]]) -> Iterator[str]:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    yield from ("| Option | Meaning |", "|---|---|")
    yield from (f"| `{cell(names)}` | {_escaped(cell(text))} |" for names, text in rows.values())


def _escaped(text: str) -> str:
    """Plain text as Markdown. Names of options become code, and what is code already stays as it is."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*<_])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", parts[i])
    return "`".join(parts)


def _shared(missing: list[str]) -> str:
    exceptions = ", ".join(f"`--{name.replace('_', '-')}`" for name in missing)
    return f"The [settings of train](#network) are options, too{', except ' + exceptions if exceptions else ''}."


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
