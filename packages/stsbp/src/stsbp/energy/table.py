"""The energy of each operation and memory access: built-in tables, and tables of users as TOML or JSON files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from stsbp_spec.errors import did_you_mean

from stsbp import records
from stsbp.config import read_toml
from stsbp.errors import ConfigError
from stsbp.files import MEGABYTE, read_regular
from stsbp.records import Record

__all__ = ["DEFAULT", "TABLES", "EnergyTable", "MemoryEnergy", "Operation", "asked_table", "energy_table"]

Operation = Literal["accumulate", "multiply_accumulate", "add", "multiply", "compare", "divide", "root", "exp"]
Picojoules = Annotated[float, Field(ge=0, le=1e12)]
Bits = Annotated[int, Field(ge=1, le=4096)]


class MemoryEnergy(Record):
    """The energy of memory accesses.

    Attributes:
        sizes: sizes of memories in bytes, ascending. What a layer stores lies in the smallest one that holds it.
        access: energy of an access to each, in pJ.
        beyond: energy of an access to a memory that is larger than all of them, in pJ.
        word_bits: bits of an access. An access to fewer bits costs its share of them.
        state_bits: bits of a state of a neuron.
    """

    model_config = ConfigDict(extra="forbid")

    sizes: list[Annotated[int, Field(ge=1, le=2**60)]] = Field(default_factory=list)
    access: list[Picojoules] = Field(default_factory=list)
    beyond: Picojoules
    word_bits: Bits = 64
    state_bits: Bits = 32

    @model_validator(mode="after")
    def _fits(self) -> MemoryEnergy:
        if len(self.sizes) != len(self.access):
            raise ValueError(f"sizes has {len(self.sizes)} entries, but access has {len(self.access)}")
        if sorted(set(self.sizes)) != self.sizes:
            raise ValueError("sizes must be ascending")
        return self

    def of_bits(self, bits: int, stored_bits: int) -> float:
        """Energy in pJ of an access to `bits` of a memory that stores `stored_bits`."""
        stored = -(-stored_bits // 8)
        fitting = (pj for size, pj in zip(self.sizes, self.access, strict=True) if stored <= size)
        return bits / self.word_bits * next(fitting, self.beyond)


class EnergyTable(Record):
    """The energy of operations and memory accesses.

    Attributes:
        name: name of the table.
        source: where its numbers are from.
        pj: energy in pJ of each operation. `accumulate`, if it is missing, is `add`, and `multiply_accumulate` is the
            sum of `multiply` and `add`.
        memory: energy of memory accesses; None: they cost nothing.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(max_length=1000)] = ""
    pj: dict[Operation, Picojoules]
    memory: MemoryEnergy | None = None

    def digest(self) -> str:
        """SHA-256 of the prices, in hexadecimal digits. The name and the source of the table do not change it."""
        prices = self.model_dump(include={"pj", "memory"})
        return hashlib.sha256(json.dumps(prices, sort_keys=True).encode()).hexdigest()

    def of(self, operation: str) -> float:
        """Energy of an operation in pJ.

        Raises:
            ConfigError: the table does not have it.
        """
        pj: dict[str, float] = dict(self.pj.items())
        if operation in pj:
            return pj[operation]
        if operation == "accumulate":
            return self.of("add")
        if operation == "multiply_accumulate":
            return self.of("multiply") + self.of("add")
        raise ConfigError(
            f"the energy table {self.name} has no energy of {operation}, which this network needs; give a table with "
            f"{operation} in its section [pj] (--energy-table FILE)"
        )


# Horowitz gives no energy of a comparison. It is a subtraction, so it costs an addition, as in PMC8934428, table 3. Of
# 1.3 to 2.6 nJ for an access to DRAM, the lower end is taken.
_SRAM: Mapping[str, Any] = {"sizes": [2**13, 2**15, 2**20], "access": [10.0, 20.0, 100.0], "beyond": 1300.0}
_SOURCE = "Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, 45 nm, 0.9 V"

TABLES: Mapping[str, EnergyTable] = {
    "float32": EnergyTable(
        name="float32",
        source=_SOURCE,
        pj={"add": 0.9, "multiply": 3.7, "multiply_accumulate": 4.6, "compare": 0.9},
        memory=MemoryEnergy(**_SRAM),
    ),
    "int32": EnergyTable(
        name="int32",
        source=_SOURCE,
        pj={"add": 0.1, "multiply": 3.1, "multiply_accumulate": 3.2, "compare": 0.1},
        memory=MemoryEnergy(**_SRAM),
    ),
    "int8": EnergyTable(
        name="int8",
        source=_SOURCE,
        pj={"add": 0.03, "multiply": 0.2, "multiply_accumulate": 0.23, "compare": 0.03},
        memory=MemoryEnergy(**_SRAM, state_bits=8),
    ),
}
"""The tables that have a name."""

DEFAULT = "float32"


def asked_table(*, energy: bool, name: str | None) -> EnergyTable | None:
    """The table of `--energy-table`, or the default one. None: `--energy` is not given.

    Raises:
        ConfigError: there is no such table, or it is given without `--energy`.
    """
    if name is not None and not energy:
        raise ConfigError("--energy-table gives the energy of operations, which only --energy counts; add --energy")
    return energy_table(DEFAULT if name is None else name) if energy else None


def energy_table(name: str) -> EnergyTable:
    """The table of a name, or of a TOML or JSON file.

    Raises:
        ConfigError: there is none, or it is malformed.
    """
    if name in TABLES:
        return TABLES[name]
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        names = ", ".join(TABLES)
        hint = did_you_mean(name, TABLES)
        raise ConfigError(
            f"an energy table is {names}, or a file of the name FILE.toml or FILE.json, got {name!r}{hint}"
        )
    try:
        values = read_toml(path).values if path.suffix == ".toml" else records.parse(read_regular(path, MEGABYTE))
        return records.read(EnergyTable, values)
    except OSError as error:
        raise ConfigError(f"cannot read the energy table {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no energy table: {records.reason(error)}") from error
