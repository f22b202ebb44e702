"""NIR files: graphs with hostile parameters, edges, links and shapes, and damaged bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from stsbp.interop.nir_check import IMPORTERS, check
from stsbp.interop.nir_import import import_graph
from stsbp.interop.nir_nodes import KINDS as NODES
from stsbp.interop.nir_nodes import Choices
from stsbp.interop.nir_reader import Limits, read_graph
from stsbp_spec.networks.notation import written_nodes
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import open_backend

from campaigns.calls import Complaint
from campaigns.cases import Case, Kind
from campaigns.forked import forking
from campaigns.mutate import NUMBERS, TEXTS, mutated_bytes
from campaigns.worlds import World

__all__ = ["Graphs"]

_LIMITS = Limits(file=1 << 24, seconds=20)
_IN, _OUT = 6, 3
"""Inputs and outputs of the rasters in the world."""
_HUGE = ((1 << 40,), (1 << 20, 1 << 20), (3, 1 << 50), (1 << 31,))

Tree = dict[str, Any]


def _ramp(*shape: int) -> Any:
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 % 13 - 5) / 8).reshape(shape).astype(np.float32)


def _lif(n: int, **other: Any) -> Tree:
    return {
        "type": "LIF",
        "tau": np.full(n, 3e-4),
        "r": np.full(n, 3.0),
        "v_leak": np.zeros(n),
        "v_threshold": np.ones(n),
        "v_reset": np.zeros(n),
        **other,
    }


def _cuba(n: int) -> Tree:
    return {
        **_lif(n),
        "type": "CubaLIF",
        "tau_mem": np.full(n, 3e-4),
        "tau_syn": np.full(n, 2e-4),
        "w_in": np.full(n, 2.0),
    }


def _without(node: Tree, key: str) -> Tree:
    return {name: value for name, value in node.items() if name != key}


def _graph(nodes: Tree, edges: list[tuple[str, str]], **other: Any) -> Tree:
    return {"type": "NIRGraph", "nodes": nodes, "edges": edges, **other}


def _ends(shape: list[int], outputs: int) -> Tree:
    return {
        "input": {"type": "Input", "shape": np.array(shape)},
        "output": {"type": "Output", "shape": np.array([outputs])},
    }


def _chain(*names: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(names))


def _plain() -> Tree:
    nodes = {"a": {"type": "Linear", "weight": _ramp(4, _IN)}, "b": _lif(4)}
    nodes |= {"c": {"type": "Affine", "weight": _ramp(_OUT, 4), "bias": _ramp(_OUT)}, "d": _lif(_OUT)}
    return _graph({**_ends([_IN], _OUT), **nodes}, _chain("input", "a", "b", "c", "d", "output"), metadata={"dt": 1e-4})


def _recurrent() -> Tree:
    neurons = _without(_cuba(4), "tau")
    inner = _graph(
        {**_ends([4], 4), "lif": neurons, "w_rec": {"type": "Affine", "weight": _ramp(4, 4), "bias": _ramp(4)}},
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )
    nodes = {"fc": {"type": "Linear", "weight": _ramp(4, _IN)}, "rnn": inner}
    nodes |= {"delay": {"type": "Delay", "delay": np.full(4, 2e-4)}, "scale": {"type": "Scale", "scale": _ramp(4)}}
    nodes |= {"out": {"type": "Linear", "weight": _ramp(_OUT, 4)}, "last": _without(_cuba(_OUT), "tau")}
    return _graph(
        {**_ends([_IN], _OUT), **nodes}, _chain("input", "fc", "rnn", "delay", "scale", "out", "last", "output")
    )


def _picture() -> Tree:
    geometry = {"stride": np.array([1, 1]), "padding": np.array([1, 1]), "dilation": np.array([1, 1]), "groups": 1}
    pool = {"kernel_size": np.array([2, 2]), "stride": np.array([2, 2]), "padding": np.array([0, 0])}
    neurons = {"type": "IF", "r": np.full((4, 6, 6), 1e4), "v_threshold": np.ones((4, 6, 6))}
    nodes = {"conv": {"type": "Conv2d", "weight": _ramp(4, 2, 3, 3), "bias": np.zeros(4), **geometry}, "if": neurons}
    nodes |= {"pool": {"type": "SumPool2d", **pool}, "flat": {"type": "Flatten", "start_dim": 0, "end_dim": -1}}
    nodes |= {"fc": {"type": "Linear", "weight": _ramp(_OUT, 36)}, "li": _without(_lif(_OUT), "v_threshold")}
    nodes["li"] = {**_without(nodes["li"], "v_reset"), "type": "LI"}
    names = ("input", "conv", "if", "pool", "flat", "fc", "li", "output")
    return _graph({**_ends([2, 6, 6], _OUT), **nodes}, _chain(*names))


_BASES: dict[str, tuple[Callable[[], Tree], tuple[int, ...]]] = {
    "plain": (_plain, (_IN,)),
    "recurrent": (_recurrent, (_IN,)),
    "picture": (_picture, (2, 6, 6)),
}


class _Odd:
    """What is written in place of an array: see `_put`."""

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind, self.value = kind, value


def _put(group: Any, name: str, value: Any, compression: str | None) -> None:
    """Write a value of a tree into an HDF5 group."""
    import h5py

    text = h5py.string_dtype()
    # Such as ".", which is the group itself.
    name = f"x{len(group)}" if name in group else name
    if isinstance(value, dict):
        child = group.create_group(name)
        for key, item in value.items():
            _put(child, key, item, compression)
    elif isinstance(value, str):
        group.create_dataset(name, data=value, dtype=text)
    elif isinstance(value, list):
        shape = (len(value), 2) if all(len(pair) == 2 for pair in value) else None
        data = np.array([list(pair) for pair in value], dtype=object) if shape else np.array(["x"], dtype=object)
        group.create_dataset(name, data=data.reshape(shape) if shape else data, dtype=text)
    elif isinstance(value, _Odd):
        _put_odd(group, name, value)
    elif isinstance(value, np.ndarray) and value.ndim and value.size:
        group.create_dataset(name, data=value, compression=compression)
    else:
        group.create_dataset(name, data=value)


def _put_odd(group: Any, name: str, odd: _Odd) -> None:
    import h5py

    if odd.kind == "soft":
        group[name] = h5py.SoftLink(odd.value)
    elif odd.kind == "external":
        group[name] = h5py.ExternalLink(odd.value, "/node")
    elif odd.kind == "hard":
        group[name] = group.file[odd.value] if odd.value in group.file else group.file["/"]
    elif odd.kind == "outside":
        group.create_dataset(name, (4,), "f4", external=[("/etc/passwd", 0, 16)])
    elif odd.kind == "virtual":
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.nir", "x", (4,))
        group.create_virtual_dataset(name, layout)
    elif odd.kind == "empty":
        group.create_dataset(name, data=h5py.Empty("f4"))
    elif odd.kind in ("huge", "fill"):
        # Chunks that are never written take no space, and are read as the value that fills them.
        chunks = tuple(min(1000, side) for side in odd.value)
        fill = 0.5 if odd.kind == "fill" else None
        group.create_dataset(name, odd.value, "f4", chunks=chunks, fillvalue=fill, compression="gzip")
    elif odd.kind == "compound":
        group.create_dataset(name, data=np.zeros(3, [("a", "f4"), ("b", "S3")]))
    elif odd.kind == "ragged":
        group.create_dataset(name, (3,), h5py.vlen_dtype(np.float32))
    elif odd.kind == "reference":
        group.create_dataset(name, data=np.array([group.ref], dtype=object), dtype=h5py.ref_dtype)
    else:
        group.create_dataset(name, data=np.zeros((1 << 16,), np.float32), compression="gzip", compression_opts=9)


_ODD = (
    *(_Odd("soft", "/node/nodes"), _Odd("soft", "nowhere"), _Odd("external", "/etc/passwd"), _Odd("hard", "/node")),
    *(_Odd("hard", "/"), _Odd("outside"), _Odd("virtual"), _Odd("empty"), _Odd("compound"), _Odd("ragged")),
    *(_Odd("reference"), _Odd("zeros"), *(_Odd("huge", shape) for shape in _HUGE)),
    *(
        _Odd("fill", shape)
        for shape in ((4,), (4, _IN), (1 << 20,), (1 << 14, 1 << 14), (4, 1 << 26), (4, 2, 1 << 12, 1 << 12))
    ),
)
_TYPES = ("i1", "u1", "i8", "f2", "f4", "f8", ">f4", ">i8", "?", "c8", "S4")


def _name(rng: random.Random) -> str:
    """A name that HDF5 takes."""
    text = rng.choice((*TEXTS, "input", "output", "a.bias", "x" * 1001)).replace("\0", "").replace("/", "_")
    return text.encode("utf-8", "replace").decode() or "x"


def _changed(rng: random.Random, value: Any) -> Any:
    """A parameter that is another one."""
    array = np.asarray(value) if not isinstance(value, (str, dict, list, _Odd)) else _ramp(4)
    change = rng.randrange(9)
    if change == 0:
        return np.full(array.shape, rng.choice([x for x in NUMBERS if isinstance(x, float)]), np.float64)
    if change == 1:
        return array.reshape(rng.choice(((-1,), (1, *array.shape), (*array.shape, 1))))
    if change == 2:
        with np.errstate(all="ignore"):
            return array.real.astype(rng.choice(_TYPES))
    if change == 3:
        return np.zeros(rng.choice(((), (0,), (2, 0), (1,), (5,), (1, 1, 1))), rng.choice(("f4", "i8")))
    if change == 4:
        return rng.choice(TEXTS).replace("\0", "").encode("utf-8", "replace").decode()
    if change == 5:
        return rng.choice(_ODD)
    if change == 6:
        return {"a": array}
    if change == 7 and array.size and array.dtype.kind == "f":
        array = array.copy()
        with np.errstate(all="ignore"):
            array.flat[rng.randrange(array.size)] *= rng.choice((-1, 0, 2, 1e-30, 1e30, np.nan))
        return array
    return rng.choice((0, 1, -1, 10**9, 2**62, 1e-300, float("nan"), True))


def _mutated(rng: random.Random, graph: Tree) -> Tree:
    """A graph with a few changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes, edges = graph["nodes"], graph["edges"]
        if not nodes:
            break
        change = rng.randrange(10)
        name = rng.choice(sorted(nodes))
        node = nodes[name]
        inside = isinstance(node, dict) and isinstance(node.get("nodes"), dict)
        if inside and isinstance(node.get("edges"), list) and rng.random() < 0.5:
            _mutated(rng, node)
        elif change < 4 and isinstance(node, dict) and node:
            key = rng.choice(sorted(node))
            node[key] = _changed(rng, node[key])
        elif change == 4 and isinstance(node, dict) and node:
            node.pop(rng.choice(sorted(node)))
        elif change == 5 and isinstance(node, dict):
            node[_name(rng)] = _changed(rng, 1.0)
        elif change == 6:
            kind = rng.choice((*NODES, _name(rng)))
            others = {key: np.full(4, 1e-3) for key in NODES.get(kind, ())}
            nodes[name] = {"type": kind, **others, **(_without(node, "type") if isinstance(node, dict) else {})}
        elif change == 7:
            nodes[_name(rng)] = nodes.pop(name)
        elif change == 8 and edges:
            at = rng.randrange(len(edges))
            pair = (rng.choice((*sorted(nodes), _name(rng))), rng.choice((*sorted(nodes), _name(rng))))
            graph["edges"] = rng.choice((edges[:at] + edges[at + 1 :], [*edges, pair], [*edges, edges[at]], [pair], []))
        else:
            wrapped = graph["nodes"]
            inner = _graph(dict(wrapped), graph["edges"])
            for _ in range(rng.choice((1, 2, 40))):
                inner = _graph({**_ends([_IN], _OUT), "g": inner}, [("input", "g"), ("g", "output")])
            graph["nodes"], graph["edges"] = inner["nodes"], inner["edges"]
    return graph


class Graphs(Kind):
    """NIR files, which are HDF5, read as graphs, as networks, and as other programs read them."""

    name, weight, modules, memory = "graphs", 0.12, ("h5py",), 5 << 28
    seconds = 15.0  # HDF5 may loop in a damaged file until the limit of reading, half of `_LIMITS`

    def make(self, rng: random.Random, world: World) -> Case:
        base, shape = _BASES[rng.choice(list(_BASES))]
        graph = base()
        if rng.random() < 0.75:
            graph = _mutated(rng, graph)
        tree: Tree = {"version": "1.0.8", "node": graph}
        if rng.random() < 0.02:
            tree = rng.choice(({}, {"node": 1.0}, {"node": {}}, {"node": _Odd("soft", "/")}, {"node": graph["nodes"]}))
        content = _file(tree, rng.choice((None, "gzip", "lzf")))
        if rng.random() < 0.4:
            content = mutated_bytes(rng, content, _plain_file())
        if rng.random() < 0.005:
            command = ("nir-check", "new.nir", *(("--json",) if rng.random() < 0.3 else ()))
            if rng.random() < 0.5:
                data = ("--dataset", "sequences:../data/rasters.npz", "--steps", "4", "--dt", "1e-4", "--epochs", "1")
                command = ("import", "new.nir", "--out", "runs/new", *data)
            files, may_make = {"work/new.nir": content}, ("work/runs/new",)
            return Case(self.name, arguments=("--backend", "numpy", *command), files=files, may_make=may_make)
        return Case(self.name, content, {"shape": list(shape), "forked": rng.random() < 0.99})

    def read(self, case: Case, world: World) -> None:
        path = world.outside / "input.nir"
        path.write_bytes(case.content)
        with forking() if case.how["forked"] else contextlib.nullcontext():
            graph = read_graph(path, _LIMITS)
        choices = Choices(1e-4)
        report = check(graph, choices)
        if set(report.nodes) != set(graph.nodes) or any(
            set(verdicts) != set(IMPORTERS) for verdicts in report.nodes.values()
        ):
            raise Complaint("not every node was looked at")
        shape = tuple(case.how["shape"])
        imported = import_graph(graph, shape, choices)
        network = NetworkSpec(shape, (), "events", imported.input_psp, nodes=imported.nodes)
        if {key: x.shape for key, x in imported.weights.items()} != {
            key: x.shape for key, x in network.parameters.items()
        }:
            raise Complaint("the parameters are not those of the network")
        reparsed = NetworkSpec.parse(
            written_nodes(network.graph.nodes), input_shape=shape, input_psp=imported.input_psp, outputs=network.outputs
        )
        if reparsed.graph != network.graph:
            raise Complaint("the text of the network is of another one")
        run = open_backend("numpy").run(network, dict(imported.weights), np.ones((3, 2, *shape), np.uint8), 3)
        if not all(np.isfinite(layer.potentials).all() for layer in run.layers.values()):
            raise Complaint("potentials are not finite")


def _file(tree: Tree, compression: str | None) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as hdf5:
        for key, value in tree.items():
            _put(hdf5, key, value, compression)
    return file.getvalue()


@cache
def _plain_file() -> bytes:
    return _file({"version": "1.0.8", "node": _plain()}, "gzip")
