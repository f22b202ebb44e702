"""`stsbp models`: lists the trained networks of the package stsbp-models, and shows the card of one of them."""

from __future__ import annotations

import json

import click

from stsbp.cli import COMMANDS
from stsbp.cli.common import say
from stsbp.errors import FileError

__all__ = ["command"]


@click.command("models", short_help=COMMANDS["models"])
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each model.")
def command(name: str | None, as_json: bool) -> None:
    """List the trained networks of the package stsbp-models. With NAME, show the card of one of them.

    Other commands read such a network as model:NAME, for example stsbp predict model:mnist image.png.
    """
    # Imported here, because the help page does not need the code for training.
    from stsbp.hub.card import result_text
    from stsbp.hub.folder import CARD
    from stsbp.hub.network import CONFIG, read_record
    from stsbp.hub.references import model_folder, model_folders

    folders = model_folders() if name is None else {name: model_folder(name)}
    rows = []
    for model, folder in folders.items():
        record, file = read_record(folder / CONFIG, f"model:{model}")
        facts = {
            "name": model,
            "dataset": record.settings.get("dataset"),
            "net": record.settings.get("net"),
            "test": record.tested,
            "bytes": (folder / file).stat().st_size,
            "sha256": record.sha256,
        }
        if as_json:
            say(json.dumps(facts))
        elif name is not None:
            try:
                card = (folder / CARD).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise FileError(f"cannot read {folder / CARD}: {error}; install stsbp-models again") from error
            say(card.rstrip())
        else:
            rows.append([model, str(facts["dataset"]), str(facts["net"]), result_text(record.tested)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
