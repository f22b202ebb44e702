"""Every `stsbp` command line of the documentation parses, and its settings resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.core import ParameterSource
from stsbp.cli import COMMANDS, cli
from stsbp.cli.experiment import _configs
from stsbp.config import RunConfig, SettingsSource, named_preset, resolve

ROOT = Path(__file__).parents[3]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *TUTORIALS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def written() -> Iterator[tuple[str, str]]:
    """Page and command line of every shell block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("stsbp "):
                    yield page.name, line.strip()


def mentioned() -> Iterator[tuple[str, str]]:
    """Page and command line of every command within a text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for command in re.findall(r"`(?:python -m )?(stsbp [^`]+)`", text):
            yield page.name, " ".join(command.replace("\\|", "|").split())


LINES, MENTIONS = list(written()), list(mentioned())


def test_there_are_command_lines() -> None:
    if not (ROOT / "docs").is_dir():
        pytest.skip("the documentation is not beside the packages")
    assert len(LINES) > 40
    assert len(MENTIONS) > 40


def words(line: str) -> list[str]:
    # A variable of the shell stands for one of the words that fit.
    line = line.replace("$loss", "hamming")
    arguments = shlex.split(line, comments=True)
    for end in ("|", ">", "&&", ";"):
        arguments = arguments[: arguments.index(end)] if end in arguments else arguments
    return arguments[1:]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_line_of_a_page_parses(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "D").mkdir()
    monkeypatch.chdir(tmp_path)
    group = cli.make_context("stsbp", words(line))
    name, *arguments = group._protected_args + group.args
    command = cli.get_command(group, name)
    assert command is not None, name
    context = command.make_context(name, arguments, parent=group)
    options = {
        key: value
        for key, value in context.params.items()
        if key in RunConfig.model_fields and context.get_parameter_source(key) != ParameterSource.DEFAULT
    }
    if name == "train" and context.params["resume"] is None:
        sources = [SettingsSource("command line", {k: v for k, v in options.items() if v is not None})]
        preset = context.params["preset_name"]
        if preset is not None:
            sources.insert(0, named_preset(preset, context.params["dataset"]))
        if context.params["file"] is None:
            resolve(sources)
    elif name == "experiment":
        options.pop("dataset", None)
        _configs(context.params["name"], context.params["dataset"], options)


@pytest.mark.parametrize(("page", "line"), MENTIONS)
def test_options_of_a_command_that_a_text_mentions_exist(page: str, line: str) -> None:
    arguments = line.split()[1:]
    names = [word for word in arguments if word in COMMANDS]
    options = {option for parameter in cli.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if names:
        command = cli.get_command(click.Context(cli), names[0])
        assert command is not None
        options |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help", "--version"}
    assert {word.partition("=")[0].rstrip(",.;:") for word in arguments if word.startswith("--")} <= options
