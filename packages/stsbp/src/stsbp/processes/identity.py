"""What the processes of a run must have in common, and how they differ."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stsbp_spec.contract.grid import CONTRACT_VERSION
from stsbp_spec.engine.backend import AbstractBackend

from stsbp.config import to_toml_value
from stsbp.errors import ConfigError
from stsbp.processes.monitor import Member

__all__ = ["compare", "compare_data", "compare_settings", "differing", "own_identity", "sources"]

_ALWAYS = ("stsbp", "stsbp_spec", "stsbp_cpu")
_SUFFIXES = {".py", ".cu", ".cuh", ".h", ".hpp", ".cpp"}


def sources(package: str) -> str:
    """SHA-256 of the names and contents of a package's sources; empty if the package is not installed."""
    spec = importlib.util.find_spec(package)
    digest = hashlib.sha256()
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest() if spec is not None else ""


def own_identity(backend: AbstractBackend, engine: str) -> dict[str, Any]:
    """Versions and settings of this process, by name, in a form that fits in a message."""
    identity: dict[str, Any] = {"contract": CONTRACT_VERSION, "engine": engine}
    for package in dict.fromkeys((*_ALWAYS, type(backend).__module__.partition(".")[0])):
        if digest := sources(package):
            identity[f"sources of {package}"] = digest
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                identity[f"version of {package}"] = importlib.metadata.version(package)
    return identity


def compare(members: Sequence[Member], identities: Sequence[Mapping[str, Any]]) -> None:
    """Compare the software and backends of all processes.

    Raises:
        ConfigError: there is a difference. The message names the process and the difference.
    """
    # Each backend has its own packages, so not every process has every name.
    first: dict[str, tuple[Member, Any]] = {}
    for member, identity in zip(members, identities, strict=True):
        for name, value in identity.items():
            first_member, first_value = first.setdefault(name, (member, value))
            if value != first_value:
                raise ConfigError(_differs(member, name, value, f"rank {first_member.rank}", first_value))


def _differs(member: Member, name: str, value: Any, reference: str, reference_value: Any) -> str:
    """The message about a value of a member that is not that of `reference`, the text of another rank."""
    if name == "contract":
        difference = (
            f"uses version {value} of the exact-arithmetic contract, but {reference} uses version {reference_value}"
        )
        return f"{member} {difference}: install the same version everywhere"
    if name == "engine":
        difference = f"communicates through {value}, but {reference} through {reference_value}"
        return f"{member} {difference}: use backends that communicate in the same way, or the same backend everywhere"
    if name.startswith("sources"):
        return (
            f"{member} has different {name} from {reference} (SHA-256 {value[:12]} and {reference_value[:12]}): "
            "install the same version everywhere"
        )
    difference = f"the {name} is {value}, but that of {reference} is {reference_value}"
    return f"{member}: {difference}: install the same version everywhere"


def differing(contents: Mapping[str, str], other_contents: Mapping[str, str]) -> str:
    """The names of what differs between two descriptions of data (`stsbp.training.build.Data.contents`)."""
    return ", ".join(
        name for name in dict.fromkeys((*contents, *other_contents)) if contents.get(name) != other_contents.get(name)
    )


def compare_data(members: Sequence[Member], contents: Sequence[Mapping[str, str]]) -> None:
    """Compare the data of all processes.

    Raises:
        ConfigError: there is a difference. The message names the processes that differ from rank 0, and what differs.
    """
    differences = [
        f"{member} has different data from rank 0: other {differing(contents[0], member_contents)}"
        for member, member_contents in zip(members, contents, strict=True)
        if member_contents != contents[0]
    ]
    if differences:
        raise ConfigError("\n".join((*differences, "give all processes the same data set, --data-dir and files")))


def compare_settings(members: Sequence[Member], settings: Sequence[Mapping[str, Any]]) -> None:
    """Compare the settings of all processes.

    Raises:
        ConfigError: there is a difference. The message names the process and each setting.
    """
    for member, member_settings in zip(members, settings, strict=True):
        names = dict.fromkeys((*settings[0], *member_settings))
        differences = [
            f"  {name}: {_shown(settings[0], name)} on rank 0, {_shown(member_settings, name)} there"
            for name in names
            if settings[0].get(name) != member_settings.get(name)
        ]
        if differences:
            raise ConfigError(f"{member} was given different settings from rank 0:\n" + "\n".join(differences))


def _shown(values: Mapping[str, Any], name: str) -> str:
    return to_toml_value(values[name]) if name in values else "not given"
