"""Reads a NIR graph as data, from a file that may come from anybody.

A separate process (nir_child.py) reads HDF5, within limits of memory, time and size. Its results, JSON and the bytes of
arrays, are checked here. If it crashes or hangs, an error names the file.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import numpy as np
from pydantic import Field
from stsbp_spec.typing import AnyArray
from stsbp_spec.validation import shown

from stsbp import budget, records
from stsbp.errors import DataError
from stsbp.files import GIGABYTE, MEGABYTE, open_regular
from stsbp.hdf5_process import SECONDS, Hdf5Process
from stsbp.interop import nir_child

__all__ = ["GraphNode", "Limits", "NirGraph", "read_graph"]

_IDENTITY = "Identity"
"""Kind of a node that was the input or the output of a nested graph."""


_COPIES = 16
"""How often the numbers of a file are in memory while they become weights. The arrays of a file, with all elements that
their shapes declare, may therefore take this part of the budget (`stsbp.budget`)."""


@dataclass(frozen=True)
class Limits:
    """Limits for reading a file, besides its budget.

    Attributes:
        file: size of the file in bytes.
        seconds: elapsed time, plus one second for every 8 MiB of the file. Half of it is the limit of processor time.
    """

    file: int = GIGABYTE
    seconds: float = SECONDS


@dataclass(frozen=True)
class GraphNode:
    """A node.

    Attributes:
        name: the names that lead to it through nested graphs, separated by dots.
        kind: `LIF`, `Affine`, ...; `Identity` for inputs and outputs of a nested graph.
        values: its parameters as they are in the file: arrays (read-only) and texts.
    """

    name: str
    kind: str
    values: Mapping[str, AnyArray | str]


@dataclass(frozen=True)
class NirGraph:
    """A graph without nested graphs.

    Attributes:
        nodes: nodes by name, in the order of the file.
        edges: pairs of names, in the order of the file. The second node reads the first.
        version: version of nir that wrote the file; empty if it is not in the file.
        metadata: single numbers and texts about the graph in the file.
    """

    nodes: Mapping[str, GraphNode]
    edges: tuple[tuple[str, str], ...]
    version: str = ""
    metadata: Mapping[str, AnyArray | str] = field(default_factory=dict)


_Path: TypeAlias = tuple[str, ...]
_Name = Annotated[str, Field(max_length=nir_child.LONGEST_TEXT)]
_Count = Annotated[int, Field(ge=0, lt=2**40)]


class _ValueRecord(records.Record):
    text: Annotated[str, Field(max_length=nir_child.LONGEST_METADATA)] | None = None
    dtype: Annotated[str, Field(pattern="^<[biuf][1248]$")] = "<f4"
    shape: Annotated[list[_Count], Field(max_length=32)] = Field(default_factory=list)
    count: _Count = 0
    at: Annotated[int, Field(ge=0, lt=2**40, multiple_of=nir_child.ALIGNED)] = 0


class _NodeRecord(records.Record):
    path: Annotated[list[_Name], Field(min_length=1, max_length=nir_child.DEEPEST + 1)]
    kind: _Name
    values: dict[_Name, _ValueRecord]


class _GraphRecord(records.Record):
    path: Annotated[list[_Name], Field(max_length=nir_child.DEEPEST)]
    edges: list[Annotated[list[_Name], Field(min_length=2, max_length=2)]]
    metadata: dict[_Name, _ValueRecord]


class _FileRecord(records.Record):
    version: _Name
    nodes: list[_NodeRecord]
    graphs: Annotated[list[_GraphRecord], Field(min_length=1)]


def read_graph(path: Path, limits: Limits | None = None) -> NirGraph:
    """Read a file, and dissolve nested graphs.

    Raises:
        DataError: the file cannot be read, is not a NIR graph, or exceeds the limits; or h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise DataError('NIR files are HDF5, which needs h5py: pip install "stsbp[nir]"')
    limits = limits or Limits()
    try:
        with open_regular(path, limits.file) as file:
            header, data = _handed_back(path, file, limits)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        values = records.parse(header)
        if isinstance(values, dict) and set(values) == {"refused"}:
            raise DataError(f"not read as a NIR graph: {values['refused']}")
        return _flattened(records.read(_FileRecord, values), data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, LookupError) as error:
        reason = records.reason(error) if isinstance(error, ValueError) else "its parts do not fit together"
        raise DataError(f"{path} is not read as a NIR graph: {reason}") from error


def _handed_back(path: Path, file: BinaryIO, limits: Limits) -> tuple[bytes, bytes]:
    """The output of the other process for a file: a line of JSON, and bytes."""
    memory = budget.memory(os.fstat(file.fileno()).st_size)
    max_bytes = memory // _COPIES
    with Hdf5Process(file, nir_child.__file__, str(max_bytes), memory=memory, seconds=limits.seconds) as process:
        # Include the padding between arrays.
        max_bytes += nir_child.ALIGNED * nir_child.MOST_OBJECTS
        with process.answer() as output:
            header = output.readline(_MOST_HEADER)
            data = output.read(max_bytes + 1) if header.endswith(b"\n") else b""
        reason = process.failure()
        if process.is_late or not header.endswith(b"\n") or len(data) > max_bytes:
            raise DataError(f"{path} is not read as a NIR graph: {reason}")
    return header, data


_MOST_HEADER = 256 * MEGABYTE


def _value(value: _ValueRecord, data: bytes) -> AnyArray | str:
    """A text, or an array whose bytes are in `data`."""
    if value.text is not None:
        return value.text
    dtype, size = np.dtype(value.dtype), math.prod(value.shape)
    if value.count not in (size, min(size, 1)):
        raise ValueError("an array has another size than its shape")
    if value.at + value.count * dtype.itemsize > len(data):
        raise ValueError("an array is missing")
    array = np.frombuffer(data, dtype, value.count, value.at)
    return array.reshape(value.shape) if value.count == size else np.broadcast_to(array, value.shape)


def _flattened(file: _FileRecord, data: bytes) -> NirGraph:
    """All nodes in one graph. An edge to a nested graph leads to its input, and an edge from it begins at its
    output."""
    graphs = {tuple(graph.path): graph for graph in file.graphs}
    end_nodes: dict[_Path, dict[str, list[_Path]]] = {path: {"Input": [], "Output": []} for path in graphs}
    names: dict[_Path, str] = {}
    nodes: dict[str, GraphNode] = {}
    name_counts: dict[str, int] = {}
    for node in file.nodes:
        path, parent_path = tuple(node.path), tuple(node.path[:-1])
        end_nodes[parent_path].get(node.kind, []).append(path)
        name = joined = ".".join(path)
        while name in nodes:
            name_counts[joined] = name_counts.get(joined, 1) + 1
            name = f"{joined}_{name_counts[joined]}"
        names[path] = name
        kind = _IDENTITY if parent_path and node.kind in ("Input", "Output") else node.kind
        nodes[name] = GraphNode(name, kind, {key: _value(value, data) for key, value in node.values.items()})

    def end(path: _Path, end_kind: str, edge: str) -> str:
        if path in names:
            return names[path]
        members = end_nodes[path][end_kind] if path in graphs else []
        if len(members) != 1:
            problem = f"is a graph with {len(members)} nodes {end_kind}" if path in graphs else "is not there"
            raise DataError(f"{edge}: {'.'.join(path)} {problem}")
        return names[members[0]]

    edges: dict[tuple[str, str], None] = {}
    for outer, graph in graphs.items():
        for source, reader in graph.edges:
            edge_text = f"the edge from {shown(source)} to {shown(reader)}"
            edge = end((*outer, source), "Output", edge_text), end((*outer, reader), "Input", edge_text)
            if edge in edges:
                raise DataError(f"{edge_text} is there twice")
            edges[edge] = None
    metadata = {key: _value(value, data) for key, value in graphs[()].metadata.items()}
    return NirGraph(nodes, tuple(edges), file.version, metadata)
