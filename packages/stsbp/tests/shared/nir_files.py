"""NIR files made by hand, as nir writes them, and graphs without a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stsbp.interop.nir_reader import GraphNode, NirGraph

__all__ = ["chain", "cuba", "full", "graph", "inputs", "lif", "readers", "write", "written"]

Nodes = Mapping[str, Mapping[str, Any]]
Edges = Sequence[tuple[str, str]]


def graph(nodes: Nodes, edges: Edges) -> NirGraph:
    """A graph in memory, as a file of it is read."""
    graph_nodes = {
        name: GraphNode(name, node["type"], {key: _value(value) for key, value in node.items() if key != "type"})
        for name, node in nodes.items()
    }
    return NirGraph(graph_nodes, tuple(edges))


def _value(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value)


def write(group: Any, values: Mapping[str, Any]) -> None:
    """Write nodes, arrays, texts and lists of edges into an HDF5 group."""
    import h5py

    for key, value in values.items():
        if isinstance(value, Mapping):
            write(group.create_group(key), value)
        elif isinstance(value, str):
            group.create_dataset(key, data=value, dtype=h5py.string_dtype())
        elif key == "edges":
            pairs = np.array([list(pair) for pair in value], dtype=object).reshape(-1, 2)
            group.create_dataset(key, data=pairs, dtype=h5py.string_dtype())
        else:
            array = np.asarray(value)
            group.create_dataset(key, data=array, compression="gzip" if array.ndim and array.size else None)


def written(path: Path, nodes: Nodes, edges: Edges, **more: Any) -> Path:
    """A file of a graph; `more` stands beside nodes and edges."""
    import h5py

    with h5py.File(path, "w") as file:
        write(file, {"version": "1.0.8", "node": {"type": "NIRGraph", "nodes": nodes, "edges": edges, **more}})
    return path


def chain(*names: str) -> list[tuple[str, str]]:
    """Edges from each to the next."""
    return list(itertools.pairwise(names))


def inputs(nir_graph: NirGraph, name: str) -> list[str]:
    """What a node reads."""
    return [source for source, reader in nir_graph.edges if reader == name]


def readers(nir_graph: NirGraph, name: str) -> list[str]:
    """What reads a node."""
    return [reader for source, reader in nir_graph.edges if source == name]


def full(outputs: int, inputs: int, seed: int = 0) -> Any:
    """Weights of a full connection in eighths."""
    return np.random.default_rng(seed).integers(-7, 8, (outputs, inputs)).astype(np.float32) / 8


def lif(shape: Any, tau: Any = 2.0, **other: Any) -> dict[str, Any]:
    """LIF neurons whose time constant has `tau` steps of 1 ms, with `r = tau/dt`."""
    values = {"tau": tau * 1e-3, "r": tau, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    return {"type": "LIF", **{key: np.full(shape, value) for key, value in values.items()}, **other}


def cuba(shape: Any, tau_mem: float = 2.0, tau_syn: float = 4.0, **other: Any) -> dict[str, Any]:
    """CubaLIF neurons likewise, with `w_in = tau_syn/dt`."""
    values = {"tau_mem": tau_mem * 1e-3, "tau_syn": tau_syn * 1e-3, "r": tau_mem, "w_in": tau_syn}
    values |= {"v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    return {"type": "CubaLIF", **{key: np.full(shape, value) for key, value in values.items()}, **other}
