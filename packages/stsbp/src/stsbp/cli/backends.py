"""`stsbp backends`: the installed backends, and why some of them cannot run."""

from __future__ import annotations

import json
import time

import click
from stsbp_spec.errors import BackendError
from stsbp_spec.registry import KNOWN_BACKENDS, installed_backends, load_backend

from stsbp.cli import COMMANDS

__all__ = ["command"]


@click.command("backends", short_help=COMMANDS["backends"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--compile",
    "compiles",
    is_flag=True,
    help="Instead of printing the list, compile the kernels of every backend now and store them for later runs.",
)
def command(as_json: bool, compiles: bool) -> None:
    """List every backend and its devices. If a backend cannot run, the list gives the reason."""
    if compiles and as_json:
        raise click.UsageError("--json prints the list of backends, and --compile prints none; give only one of them")
    if compiles:
        _compile()
        return
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


def _compile() -> None:
    for name in installed_backends():
        began = time.monotonic()
        try:
            compiled, kernel_count = load_backend(name).compile_ahead()
        except BackendError as error:
            click.echo(f"{name}: cannot run: {error}")
            continue
        if kernel_count:
            took = f" in {time.monotonic() - began:.0f} s" if compiled else ""
            click.echo(f"{name}: {kernel_count} kernels, {compiled} of them compiled{took}")
        else:
            click.echo(f"{name}: this backend has no kernels to compile in advance")
