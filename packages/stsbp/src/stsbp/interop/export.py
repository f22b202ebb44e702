"""Writes a trained network in a file for other programs, for `stsbp export` and `Run.export`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsbp_spec.validation import real, shown

from stsbp.errors import ConfigError, did_you_mean
from stsbp.hub.license import check_license
from stsbp.interop.program import About, program

if TYPE_CHECKING:
    # Not otherwise, because the help page of the command does not need the code for training.
    from stsbp.training.trained import Trained

__all__ = ["FORMS", "OPTIONS", "check_options", "export"]

FORMS = {
    "nir": "stsbp.interop.nir_file",
    "onnx": "stsbp.interop.onnx_file",
    "c": "stsbp.interop.c_source",
    "hub": "stsbp.hub.folder",
}
"""Export formats, with the module whose `write(program, about, out)` writes the file and returns the text to print.
That of `hub` stores settings and records too, and has `write_folder(trained, out, name, records)` instead."""

OPTIONS = {
    **dict.fromkeys(("layers", "states"), "onnx"),
    **dict.fromkeys(("dt", "fold", "threshold_below", "pool"), "nir"),
    **dict.fromkeys(("license", "packed"), "hub"),
}
"""Options that apply to one format only, with that format. Its `write` takes them as keyword arguments."""


def check_options(form: str, options: dict[str, Any]) -> None:
    """Raise `ConfigError` for an unknown format, an option that it does not have, or a value outside its domain."""
    if not isinstance(form, str) or form not in FORMS:
        raise ConfigError(f"unknown format {shown(form)}{did_you_mean(str(form), FORMS)}; known: {', '.join(FORMS)}")
    for name in options:
        flag = f"--{name.replace('_', '-')}"
        if name not in OPTIONS:
            raise ConfigError(f"export has no option {flag}{did_you_mean(name, OPTIONS)}")
        if OPTIONS[name] != form:
            raise ConfigError(f"{flag} is an option of the format {OPTIONS[name]} alone, not of {form}")
        _check_value(flag, name, options[name])


def _check_value(flag: str, name: str, value: object) -> None:
    if name == "dt":
        if not 1e-12 <= real(flag, value) <= 1e6:
            raise ConfigError(f"{flag} is the duration of a step in seconds, 1e-12 to 1e6, got {shown(value)}")
    elif name == "pool":
        if value not in ("mean", "sum"):
            raise ConfigError(f"{flag} is mean or sum, got {shown(value)}")
    elif name == "license":
        check_license(value)
    elif not isinstance(value, bool):
        raise ConfigError(f"{flag} is True or False, got {shown(value)}")


def export(
    trained: Trained,
    folder: Path,
    form: str,
    out: Path,
    options: dict[str, Any],
    read_records: Callable[[], Sequence[Mapping[str, Any]]],
) -> list[str]:
    """Write the network. Returns lines that say what was written, and what is different in the other program.

    Args:
        trained: the network. The backend does not matter.
        folder: folder of the run or name of the network, which the file states.
        form: a key of `FORMS`.
        out: the file, or for `c` and `hub` the folder.
        options: options of the format (`OPTIONS`).
        read_records: returns the records of the run, which only `hub` needs.

    Raises:
        ConfigError: the format is unknown, or does not have an option.
        StsbpError: the format cannot express a part of the network, or the file cannot be written.
    """
    check_options(form, options)
    module, name = importlib.import_module(FORMS[form]), folder.absolute().name
    if form == "hub":
        return list(module.write_folder(trained, out, name, read_records(), **options))
    about = About(name, trained.info["sha256"], trained.settings.steps, trained.names)
    exported = program(trained.network, trained.weights)
    return list(module.write(exported, about, out, **options))
