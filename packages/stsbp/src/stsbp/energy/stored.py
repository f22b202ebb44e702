"""The energy of a run in its folder, `energy.json`: `stsbp evaluate --energy` writes it, compare and report read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stsbp import records
from stsbp.errors import FileError
from stsbp.files import MEGABYTE, read_regular, write_atomically
from stsbp.records import Amount, Count, Digest, Place, Record

__all__ = ["ENERGY_FILE", "store_energy", "stored_energy"]

ENERGY_FILE = "energy.json"

_Name = Annotated[str, Field(max_length=1000)]
_DataSet = Annotated[str, Field(max_length=2**16)]
"""May contain a path."""


class _Energies(Record):
    synapses: Amount
    neurons: Amount = 0.0
    memory: Amount
    total: Amount


class _LayerEnergy(Record):
    name: _Name
    accumulations: Count
    multiplications: Count
    merges: Count
    normalisations: Count
    updates: Count
    weight_reads: Count
    states: Count
    state_accesses: Count
    pj: _Energies


class _OfSamples(Record):
    smallest: Amount
    median: Amount
    largest: Amount


class _DenseEnergy(Record):
    multiplications: Amount
    pj: _Energies


class _Dense(Record):
    one_frame: _DenseEnergy
    every_step: _DenseEnergy


class _StoredEnergy(Record):
    sha256: Digest
    """That of the checkpoint."""
    step: Place
    dataset: _DataSet
    split: _Name
    table: _Name
    table_sha256: Digest | None = None
    """That of its prices (`EnergyTable.digest`). None: an earlier version stored the energy."""
    source: _Name
    samples: Annotated[int, Field(ge=1, le=2**53)]
    steps: Count
    layers: Annotated[list[_LayerEnergy], Field(min_length=1)]
    pj: _Energies
    pj_of_samples: _OfSamples
    dense: _Dense


def store_energy(folder: Path, record: Mapping[str, Any], sha256: str, warn: Callable[[str], object]) -> None:
    """Store the energy of an evaluation in the folder of its run. If that is not possible, warn.

    Args:
        folder: the folder of the run.
        record: the results of the evaluation, with `energy`.
        sha256: digest of the checkpoint that was evaluated.
        warn: receives the warning.
    """
    described = {"sha256": sha256, **{name: record[name] for name in ("step", "dataset", "split")}}
    text = json.dumps({**described, **record["energy"]}, indent=1)
    try:
        write_atomically(folder / ENERGY_FILE, text.encode(), own_folder=True)
    except FileError as error:
        warn(f"the energy is not stored for compare and report: {error}")


def stored_energy(folder: Path, warn: Callable[[str], object] | None = None) -> dict[str, Any] | None:
    """The energy that was stored last, with `sha256` of its checkpoint. None: there is none, or it is damaged.

    Args:
        folder: the folder of the run.
        warn: receives a warning if the file is damaged or cannot be read; None: nobody is told.
    """
    path = folder / ENERGY_FILE
    try:
        values = records.parse(read_regular(path, 16 * MEGABYTE))
        return records.read(_StoredEnergy, values).model_dump()
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        problem = f"is damaged ({records.reason(error)})"
    if warn is not None:
        warn(f"{path} {problem} and is left out; stsbp evaluate --energy writes it again")
    return None
