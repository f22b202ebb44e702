"""`stsbp backends`: what is installed, and why something cannot run."""

from __future__ import annotations

import json

import click
from stsbp_spec.errors import BackendError
from stsbp_spec.registry import KNOWN_BACKENDS, installed_backends, load_backend

from stsbp.cli import COMMANDS

__all__ = ["command"]


@click.command("backends", short_help=COMMANDS["backends"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List every backend, its devices, and why one cannot run."""
    rows: list[dict[str, str | None]] = []
    installed = installed_backends()
    for name in installed:
        try:
            devices = load_backend(name).devices()
        except BackendError as error:
            rows.append({"backend": name, "device": None, "description": None, "problem": str(error)})
            continue
        rows += [
            {"backend": name, "device": d.name, "description": d.description, "problem": d.problem} for d in devices
        ]
    for name, package in KNOWN_BACKENDS.items():
        if name not in installed:
            problem = f"not installed: python -m pip install {package}"
            rows.append({"backend": name, "device": None, "description": None, "problem": problem})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["backend"] or "") for row in rows)
    device = max(len(row["device"] or "-") for row in rows)
    for row in rows:
        state = row["description"] if row["problem"] is None else f"cannot run: {row['problem']}"
        if row["problem"] is not None and row["problem"].startswith("not installed"):
            state = row["problem"]
        click.echo(f"{row['backend']:<{width}}  {row['device'] or '-':<{device}}  {state}")
