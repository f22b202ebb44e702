"""`stsbp datasets`: lists the data sets, including those of other packages, and shows details of one of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from stsbp.cli import COMMANDS
from stsbp.cli.common import say
from stsbp.cli.settings import complete_data_set
from stsbp.config import to_toml_value
from stsbp.datasets import DATASETS, ByLoss, DatasetInfo
from stsbp.datasets.registry import info_of
from stsbp.errors import DataError
from stsbp.presets import defaults

__all__ = ["command"]


@click.command("datasets", short_help=COMMANDS["datasets"])
@click.argument("name", required=False, shell_complete=complete_data_set)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each data set.")
def command(name: str | None, as_json: bool) -> None:
    """List the data sets. With NAME, show the requirements and the default settings of one data set.

    To add a data set of your own, see docs/write_a_data_set.md.
    """
    if name is not None:
        info = info_of(name)
        say(json.dumps(_facts(info)) if as_json else _text(info))
        return
    infos: dict[str, DatasetInfo | DataError] = {}
    for data_set_name in DATASETS:
        try:
            infos[data_set_name] = DATASETS[data_set_name]
        except DataError as error:
            # A broken data set must not hide the others.
            infos[data_set_name] = error
    width = max(map(len, infos))
    for data_set_name, info_or_error in infos.items():
        if isinstance(info_or_error, DataError):
            say(
                json.dumps({"name": data_set_name, "problem": str(info_or_error)})
                if as_json
                else f"{data_set_name:<{width}}  cannot be read: {info_or_error}"
            )
        else:
            say(
                json.dumps(_facts(info_or_error))
                if as_json
                else f"{data_set_name:<{width}}  {info_or_error.description}"
            )


def _facts(info: DatasetInfo) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(info) if field.name not in ("load", "steps", "at"))
    values = {name: getattr(info, name) for name in fields}
    default_settings = {
        key: value._asdict() if isinstance(value, ByLoss) else value for key, value in info.defaults.items()
    }
    return {**values, "module": info.module, "options": dict(info.options), "defaults": default_settings}


def _text(info: DatasetInfo) -> str:
    test = info.test_set or "the training samples"
    if info.default_holdout is not None:
        test = f"{info.default_holdout} held out"
        test = f"{info.test_set}; {test}, if there are none" if info.test_set else f"{test}, if there is none"
    text_lines = [
        info.synopsis,
        f"  {info.description}",
        f"  inputs     {'images' if info.coding == 'direct' else 'spikes'}",
        f"  test set   {test}",
        f"  files      {_files(info)}",
    ]
    if info.extra is not None:
        text_lines.append(f'  extra      python -m pip install "stsbp[{info.extra}]"')
    if info.licence:
        text_lines.append(f"  licence    {info.licence}")
    text_lines += [f"  option     {option}=...  {meaning}" for option, meaning in info.options.items()]
    loss = "van-rossum"
    settings = defaults(info.name, loss)
    if "loss" in settings:
        loss = str(settings["loss"])
        settings = defaults(info.name, loss)
    width = max(map(len, settings), default=0)
    text_lines.append(f"  settings by default, with the loss {loss}:")
    return "\n".join(
        [*text_lines, *(f"    {key:<{width}} = {to_toml_value(value)}" for key, value in settings.items())]
    )


def _files(info: DatasetInfo) -> str:
    if not info.needs_data_dir:
        return "none needed"
    return "in --data-dir or STSBP_DATA" + ("; --download downloads them" if info.can_download else "")
