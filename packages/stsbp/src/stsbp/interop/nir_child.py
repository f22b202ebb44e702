"""A separate process that reads a NIR file. HDF5 is read by C code, which a hostile file may crash or keep busy.

hdf5_process.py runs this file as a script, with the NIR file as standard input. It writes one line of JSON to standard
output, followed by the bytes of all arrays. It imports only h5py and numpy. A file cannot make it open other files: it
refuses soft and external links, external and virtual storage, and filters that HDF5 would load. If it refuses a file,
the line contains the reason.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

MOST_OBJECTS = 1 << 18
"""Largest number of groups and arrays in a file."""
DEEPEST = 32
"""Largest depth of nested graphs."""
MOST_EDGES = 1 << 18
LONGEST_TEXT = 1000
"""Largest length of a name or a text in characters."""
LONGEST_METADATA = 1 << 20
"""The same of a text about the whole graph, such as the list of its classes."""
FILTERS = frozenset((1, 2, 3, 32000))
"""Allowed filters of HDF5: gzip, shuffle, fletcher32, lzf."""
NUMBERS = "biuf"
"""Kinds of numpy types that arrays may have, with at most 8 bytes."""


ALIGNED = 8
"""Each array begins at a multiple of this number of bytes."""


class NirFileRefused(Exception):
    """The reason why a file is not read, in words that follow the name of the file."""


def main(most_of_all: int) -> None:
    """Read the file on standard input, and write its contents.

    Args:
        most_of_all: largest size of all arrays in bytes, with all elements that their shapes declare.
    """
    import h5py
    import numpy as np

    output, reader = sys.stdout.buffer, _NirReader(h5py, np, most_of_all)
    try:
        with h5py.File(io.BytesIO(sys.stdin.buffer.read()), "r") as file:
            contents = reader.file(file)
    except NirFileRefused as error:
        contents, reader.arrays = {"refused": str(error)}, []
    except MemoryError:
        contents, reader.arrays = {"refused": "reading it takes more memory than is allowed"}, []
    except Exception as error:
        # An error that HDF5 reports for a damaged file.
        contents, reader.arrays = {"refused": f"it is not a readable HDF5 file: {error}"[:300]}, []
    output.write(json.dumps(contents).encode() + b"\n")
    for array in reader.arrays:
        output.write(array.tobytes().ljust(-(-array.nbytes // ALIGNED) * ALIGNED, b"\0"))


class _NirReader:
    """The contents of a file as JSON values, and its arrays."""

    def __init__(self, h5py: Any, np: Any, most_of_all: int) -> None:
        self.h5py, self.np, self.budget, self.offset = h5py, np, most_of_all, 0
        self.arrays: list[Any] = []
        self.visited: set[Any] = set()
        self.nodes: list[dict[str, Any]] = []
        self.graphs: list[dict[str, Any]] = []

    def file(self, file: Any) -> dict[str, Any]:
        """The whole graph: lists of nodes and graphs, each with the names that lead to it."""
        members = dict(self.members(file, "the file"))
        if "node" not in members:
            raise NirFileRefused("it is not a NIR graph: it has no group 'node'")
        version = self.text(members["version"], "version") if "version" in members else ""
        self.node([], members["node"])
        return {"version": version, "nodes": self.nodes, "graphs": self.graphs}

    def members(self, group: Any, location: str) -> Iterator[tuple[str, Any]]:
        """Names and objects of a group. No other name may lead to the same object."""
        if not isinstance(group, self.h5py.Group):
            raise NirFileRefused(f"{location} is not a group")
        for name in group:
            if len(name) > LONGEST_TEXT:
                raise NirFileRefused(f"a name in {location} has {len(name):,} characters, more than {LONGEST_TEXT:,}")
            if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
                raise NirFileRefused(f"{location} has a link, {name!r}, to somewhere else")
            member = group[name]
            info = self.h5py.h5o.get_info(member.id)
            if (info.fileno, info.addr) in self.visited:
                raise NirFileRefused(f"{name!r} in {location} is there under another name as well")
            self.visited.add((info.fileno, info.addr))
            if len(self.visited) > MOST_OBJECTS:
                raise NirFileRefused(f"it has more than {MOST_OBJECTS:,} groups and arrays")
            yield name, member

    def node(self, path: list[str], group: Any) -> None:
        """A node, or a graph and its nodes."""
        location = "/".join(path) or "the graph"
        members = dict(self.members(group, location))
        if "type" not in members:
            raise NirFileRefused(f"{location} has no type")
        kind = self.text(members.pop("type"), f"the type of {location}")
        metadata = members.pop("metadata", None)
        if kind != "NIRGraph":
            if not path:
                raise NirFileRefused(f"it is a {kind!r}, not a NIRGraph")
            values = {name: self.value(member, f"{location}, {name}") for name, member in members.items()}
            self.nodes.append({"path": path, "kind": kind, "values": values})
            return
        if len(path) >= DEEPEST:
            raise NirFileRefused(f"its graphs are nested more than {DEEPEST} deep")
        if "nodes" not in members or "edges" not in members:
            raise NirFileRefused(f"{location} is a NIRGraph without nodes or edges")
        edges = self.edges(members["edges"], location)
        self.graphs.append({"path": path, "edges": edges, "metadata": self.metadata(metadata, location)})
        for name, member in self.members(members["nodes"], f"the nodes of {location}"):
            self.node([*path, name], member)

    def metadata(self, group: Any, location: str) -> dict[str, Any]:
        """Single numbers and short texts. Other metadata are ignored."""
        metadata: dict[str, Any] = {}
        if group is not None:
            for name, member in self.members(group, f"the metadata of {location}"):
                if isinstance(member, self.h5py.Dataset) and member.shape == ():
                    try:
                        value = self.value(member, name, LONGEST_METADATA)
                    except NirFileRefused:
                        continue
                    metadata[name] = value
        return metadata

    def text(self, dataset: Any, location: str) -> str:
        """A text."""
        value = self.value(dataset, location)
        if "text" not in value:
            raise NirFileRefused(f"{location} is not a text")
        return str(value["text"])

    def value(self, dataset: Any, location: str, longest: int = LONGEST_TEXT) -> dict[str, Any]:
        """A text; or the position of an array among all arrays; or, if all its numbers are the same, this number."""
        self.check(dataset, location)
        if self.h5py.check_string_dtype(dataset.dtype) is not None:
            if dataset.shape != () or dataset.dtype.itemsize > longest * 4:
                raise NirFileRefused(f"{location} is not a short text")
            return {"text": _text(dataset[()], location, longest)}
        if dataset.dtype.kind not in NUMBERS or dataset.dtype.itemsize > 8 or dataset.dtype.shape:
            raise NirFileRefused(
                f"{location} has the type {str(dataset.dtype)[:40]}, but must be numbers of at most 8 bytes"
            )
        np = self.np
        self.reserve_memory(dataset, location)
        array = np.asarray(dataset[()]).astype(dataset.dtype.newbyteorder("<"), order="C", copy=False)
        shape = list(array.shape)
        if array.size and bool((array == array.flat[0]).all()):
            array = array.reshape(-1)[:1].copy()
        offset, self.offset = self.offset, self.offset - (-array.nbytes // ALIGNED) * ALIGNED
        self.arrays.append(array)
        return {"dtype": array.dtype.str.replace("|", "<"), "shape": shape, "count": int(array.size), "at": offset}

    def check(self, dataset: Any, location: str) -> None:
        """Raise `NirFileRefused` unless an array is in this file, as plain data."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise NirFileRefused(f"{location} is not an array")
        if dataset.external is not None or dataset.is_virtual:
            raise NirFileRefused(f"{location} lies in another file")
        if dataset.shape is None:
            raise NirFileRefused(f"{location} is empty")
        plist = dataset.id.get_create_plist()
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        if filters - FILTERS:
            raise NirFileRefused(
                f"{location} is packed by an HDF5 filter, number {min(filters - FILTERS)}, that stsbp does not read"
            )

    def edges(self, dataset: Any, location: str) -> list[list[str]]:
        """Operations of names."""
        location = f"the edges of {location}"
        self.check(dataset, location)
        if dataset.size == 0:
            return []
        if self.h5py.check_string_dtype(dataset.dtype) is None or dataset.ndim != 2 or dataset.shape[1] != 2:
            raise NirFileRefused(f"{location} are not pairs of names")
        if len(dataset) > MOST_EDGES or dataset.dtype.itemsize > LONGEST_TEXT * 4:
            raise NirFileRefused(f"{location} are {len(dataset):,}, more than {MOST_EDGES:,}, or of long names")
        self.reserve_memory(dataset, location)
        return [[_text(name, location) for name in pair] for pair in dataset[()].tolist()]

    def reserve_memory(self, dataset: Any, location: str) -> None:
        """Take the size of an array from the budget before the array is read."""
        self.budget -= int(dataset.dtype.itemsize) * int(dataset.size)
        if self.budget < 0:
            raise NirFileRefused(
                f"with {location} of shape {list(dataset.shape)}, its arrays take more memory than the budget allows "
                "for a "
                "file of this size. If you trust it, give a larger budget in GiB: stsbp --file-budget GIB COMMAND"
            )


def _text(value: Any, location: str, longest: int = LONGEST_TEXT) -> str:
    """A text in HDF5, whose bytes are UTF-8."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if len(text) > longest:
        raise NirFileRefused(f"{location} has {len(text):,} characters, more than {longest:,}")
    return text


if __name__ == "__main__":
    main(int(sys.argv[1]))
