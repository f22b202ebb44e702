"""`stsbp presets`: lists published experiments, with the source of their settings and the results to compare with."""

from __future__ import annotations

import json
from typing import Any

import click

from stsbp.cli import COMMANDS
from stsbp.cli.settings import complete_preset
from stsbp.config import named_preset, to_toml_value
from stsbp.presets import PRESETS, NamedPreset

__all__ = ["command"]


@click.command("presets", short_help=COMMANDS["presets"])
@click.argument("name", required=False, shell_complete=complete_preset)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each preset.")
def command(name: str | None, as_json: bool) -> None:
    """List the presets of published experiments. With NAME, show the source, settings and published accuracy
    of one preset.

    `stsbp train --preset NAME` trains a preset once. `stsbp experiment NAME` trains it with several seeds.
    """
    if name is not None:
        named_preset(name, None)
    chosen = list(PRESETS.values()) if name is None else [PRESETS[name]]
    if as_json:
        for preset in chosen:
            click.echo(json.dumps(_facts(preset)))
    elif name is None:
        width, sets = (max(map(len, names)) for names in zip(*((f.name, f.dataset) for f in chosen), strict=True))
        for preset in chosen:
            published = f"{preset.published.accuracy:.2f} %" if preset.published else "-"
            click.echo(f"{preset.name:<{width}}  {preset.dataset:<{sets}}  {published:>7}  {preset.source}")
    else:
        click.echo(_text(chosen[0]))


def _facts(preset: NamedPreset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "dataset": preset.dataset,
        "similar": list(preset.similar),
        "source": preset.source,
        "settings": dict(preset.settings),
        "published": None if preset.published is None else preset.published._asdict(),
        "remark": preset.remark,
    }


def _text(preset: NamedPreset) -> str:
    text_lines = [preset.name, f"  source     {preset.source}"]
    if preset.published is not None:
        text_lines.append(f"  published  {preset.published.accuracy:.2f} % ({preset.published.conditions})")
    fits = ", ".join((preset.dataset, *preset.similar))
    text_lines += [
        f"  data sets  {fits}",
        f"  remark     {preset.remark}",
        "  settings added to those of the data set:",
    ]
    width = max(map(len, preset.settings))
    return "\n".join([*text_lines, *(f"    {key:<{width}} = {to_toml_value(v)}" for key, v in preset.settings.items())])
