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
        for found in chosen:
            click.echo(json.dumps(_facts(found)))
    elif name is None:
        width, sets = (max(map(len, names)) for names in zip(*((f.name, f.dataset) for f in chosen), strict=True))
        for found in chosen:
            published = f"{found.published.accuracy:.2f} %" if found.published else "-"
            click.echo(f"{found.name:<{width}}  {found.dataset:<{sets}}  {published:>7}  {found.source}")
    else:
        click.echo(_text(chosen[0]))


def _facts(found: NamedPreset) -> dict[str, Any]:
    return {
        "name": found.name,
        "dataset": found.dataset,
        "similar": list(found.similar),
        "source": found.source,
        "settings": dict(found.settings),
        "published": None if found.published is None else found.published._asdict(),
        "remark": found.remark,
    }


def _text(found: NamedPreset) -> str:
    lines = [found.name, f"  source     {found.source}"]
    if found.published is not None:
        lines.append(f"  published  {found.published.accuracy:.2f} % ({found.published.conditions})")
    fits = ", ".join((found.dataset, *found.similar))
    lines += [f"  data sets  {fits}", f"  remark     {found.remark}", "  settings added to those of the data set:"]
    width = max(map(len, found.settings))
    return "\n".join([*lines, *(f"    {key:<{width}} = {to_toml_value(v)}" for key, v in found.settings.items())])
