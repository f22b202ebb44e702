"""Export of a trained network to a file in the Neuromorphic Intermediate Representation (NIR): nir_graph.py as HDF5."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from stsbp_spec.contract.grid import CONTRACT_VERSION

import stsbp
from stsbp.errors import ConfigError, DataError, FileError, printable
from stsbp.files import OutputKind
from stsbp.interop.nir_graph import ExportedGraph, Form, graph_of
from stsbp.interop.nir_nodes import LARGEST_DELAYS
from stsbp.interop.nir_reader import read_graph
from stsbp.interop.program import About, NetworkProgram

__all__ = ["NIR_FILE", "write"]

NIR_FILE = OutputKind("a file of NIR", re.compile(rb"\x89HDF\r\n\x1a\n"))
_WRITER = "stsbp "


def write(
    program: NetworkProgram,
    about: About,
    path: Path,
    *,
    dt: float = Form.dt,
    fold: bool = False,
    threshold_below: bool = False,
    pool: str = Form.pooling,
) -> list[str]:
    """Write a network as a NIR graph. Returns the lines to print.

    Args:
        program, about: the network, and information about its run.
        path: the file.
        dt, fold, threshold_below: see `Form`.
        pool: the field `pooling` of `Form`.

    Raises:
        ConfigError: NIR cannot express a part of the network, or the library is missing.
        FileError: the file cannot be written, or an existing file is of another kind.
    """
    form = Form(dt, fold, threshold_below, pool)
    nir = library()
    _check_own(path)
    graph = graph_of(program, form)
    nodes = {name: getattr(nir, node.kind)(**node.numbers) for name, node in graph.nodes.items()}
    metadata: dict[str, Any] = {
        "writer": f"{_WRITER}{stsbp.__version__}",
        "contract": CONTRACT_VERSION,
        "run": printable(about.name),
        "checkpoint_sha256": about.checkpoint,
        "classes": json.dumps(about.classes),
        "steps": about.steps,
        "dt": dt,
        "notes": "\n".join((*graph.rounded, *graph.notes)),
    }
    if graph.largest_delays:
        metadata[LARGEST_DELAYS] = json.dumps(graph.largest_delays)
    node = nir.NIRGraph(nodes, list(graph.edges), metadata=metadata, type_check=graph.typed)
    file = io.BytesIO()
    nir.write(file, node)
    NIR_FILE.write(path, file.getvalue())
    return _messages(path, form, graph)


def _check_own(path: Path) -> None:
    """Raise `FileError` if `path` is a file that was not written by an export."""
    target = NIR_FILE.target_path(path)
    if not target.is_file() or not target.stat().st_size:
        return
    try:
        writer = read_graph(target).metadata.get("writer")
    except DataError:
        writer = None
    if not (isinstance(writer, str) and writer.startswith(_WRITER)):
        raise FileError(
            f"{path} is there already and stsbp did not write it: it is not replaced. Choose another name, or remove "
            "it first"
        )


def library() -> Any:
    """Import the library nir.

    Raises:
        ConfigError: the library is not installed, or is too old.
    """
    try:
        import nir
    except ImportError as error:
        raise ConfigError(f'files of NIR need the library nir ({error}): pip install "stsbp[nir]"') from error
    if "v_reset" not in nir.CubaLIF.__dataclass_fields__:
        raise ConfigError(f'nir {nir.version} is too old for files of NIR: pip install "stsbp[nir]"')
    return nir


def _messages(path: Path, form: Form, graph: ExportedGraph) -> list[str]:
    messages = [f"{path}: {len(graph.nodes)} nodes and {len(graph.edges)} edges, a step of {form.dt:g} s", *graph.notes]
    if graph.rounded:
        return [*messages, *graph.rounded, "so spikes can differ from those of the run"]
    compared = "v > v_threshold, as snntorch" if form.threshold_below else "v >= v_threshold, as spikingjelly"
    return [
        *messages,
        "spikes and potentials are those of the run, to the bit, in importers that compute",
        "  i = i (1 - dt/tau_syn) + x, v = v (1 - dt/tau_mem) + i",
        f"in float32 and spike where {compared} does; of others: docs/deploy.md",
    ]
