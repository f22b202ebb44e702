"""Reading NIR files that anybody may have made: what is read, and what is refused, in words."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nir_files import chain, full, lif, write, written
from stsbp import budget
from stsbp.errors import DataError
from stsbp.interop import nir_child, nir_reader
from stsbp.interop.nir_reader import Limits, read_graph

pytest.importorskip("h5py")
import h5py

ENDS = {"input": {"type": "Input", "shape": [4]}, "output": {"type": "Output", "shape": [2]}}
NODES: dict[str, Any] = {**ENDS, "a": {"type": "Linear", "weight": full(2, 4)}, "b": lif(2)}
EDGES = chain("input", "a", "b", "output")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "graph.nir", NODES, EDGES, metadata={"dt": 1e-3, "by": "hand", "many": [1, 2]})


def test_nodes_edges_and_metadata_are_read(file: Path) -> None:
    nir_graph = read_graph(file)
    assert (nir_graph.version, nir_graph.edges) == ("1.0.8", tuple(EDGES))
    assert {name: node.kind for name, node in nir_graph.nodes.items()} == {
        name: node["type"] for name, node in NODES.items()
    }
    assert nir_graph.metadata == {"dt": 1e-3, "by": "hand"}
    for name, node in NODES.items():
        for key, value in node.items():
            read = nir_graph.nodes[name].values.get(key, node["type"])
            assert np.array_equal(read, value), (name, key)
            assert key == "type" or (
                np.asarray(read).dtype == np.asarray(value).dtype and not np.asarray(read).flags.writeable
            )


def test_what_nir_writes_is_read(tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    weight = full(2, 4)
    neurons = {
        key: np.full(2, value) for key, value in {"tau": 0.002, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.0}.items()
    }
    pool = nir.AvgPool2d(kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.array([0, 0]))
    conv = nir.Conv2d((4, 4), np.ones((1, 1, 3, 3)), 1, "same", 1, 1, np.zeros(1))
    nodes = {"a": nir.Linear(weight), "b": nir.LIF(**neurons), "pool": pool, "conv": conv}
    nodes |= {"input": nir.Input({"input": np.array([4])}), "output": nir.Output({"output": np.array([2])})}
    nir.write(tmp_path / "graph.nir", nir.NIRGraph(nodes, EDGES, type_check=False))
    nir_graph = read_graph(tmp_path / "graph.nir")
    assert {name: node.kind for name, node in nir_graph.nodes.items()} == {
        **{name: type(node).__name__ for name, node in nodes.items()}
    }
    assert np.array_equal(nir_graph.nodes["a"].values["weight"], weight)
    assert nir_graph.nodes["b"].values["v_reset"].tolist() == [0, 0]  # type: ignore[union-attr]
    assert nir_graph.nodes["conv"].values["padding"] == "same"


def test_what_is_the_same_everywhere_takes_no_memory(tmp_path: Path) -> None:
    many = {**NODES, "b": lif((500, 500))}
    tau = read_graph(written(tmp_path / "graph.nir", many, EDGES)).nodes["b"].values["tau"]
    assert isinstance(tau, np.ndarray)
    assert (tau.shape, tau.strides) == ((500, 500), (0, 0))
    assert tau[3, 4] == 2e-3


def test_numbers_of_any_order_and_size_are_read(tmp_path: Path) -> None:
    kinds = (">f4", "<f2", ">i8", "u1", "?", "f8")
    values = {kind: np.arange(4).astype(kind) for kind in kinds}
    path = written(tmp_path / "graph.nir", {**NODES, "x": {"type": "Odd", **values}}, EDGES)
    values_read = read_graph(path).nodes["x"].values
    for kind, value in values.items():
        read = values_read[kind]
        assert isinstance(read, np.ndarray)
        assert np.array_equal(read, value)
        assert read.dtype == np.dtype(kind).newbyteorder("<")


def test_a_graph_in_a_graph_is_taken_apart(tmp_path: Path) -> None:
    inner = {
        "in": {"type": "Input", "shape": [2]},
        "lif": lif(2),
        "w": {"type": "Linear", "weight": full(2, 2)},
        "out": {"type": "Output", "shape": [2]},
    }
    edges = [("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")]
    nodes = {**NODES, "b": {"type": "NIRGraph", "nodes": inner, "edges": edges}}
    nir_graph = read_graph(written(tmp_path / "graph.nir", nodes, EDGES))
    expected = [("input", "a"), ("a", "b.in"), ("b.out", "output")]
    expected += [("b.in", "b.lif"), ("b.lif", "b.w"), ("b.w", "b.lif"), ("b.lif", "b.out")]
    assert set(nir_graph.edges) == set(expected)
    assert {name: node.kind for name, node in nir_graph.nodes.items() if name.startswith("b.")} == {
        "b.in": "Identity",
        "b.lif": "LIF",
        "b.w": "Linear",
        "b.out": "Identity",
    }


def test_names_that_come_to_one_are_told_apart(tmp_path: Path) -> None:
    inner = {"in": ENDS["input"], "lif": lif(2), "out": ENDS["output"]}
    nodes: dict[str, Any] = {
        **ENDS,
        "b": {"type": "NIRGraph", "nodes": inner, "edges": chain("in", "lif", "out")},
        "b.lif": lif(2),
    }
    nir_graph = read_graph(written(tmp_path / "graph.nir", nodes, chain("input", "b", "b.lif", "output")))
    assert sorted(name for name, node in nir_graph.nodes.items() if node.kind == "LIF") == ["b.lif", "b.lif_2"]


def altered(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A change of an HDF5 file."""

    def change_file(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return change_file


def replaced(place: str, make: Callable[[Any, str], None]) -> Callable[[Path], None]:
    """Another object at a place."""

    def replace_object(file: Any) -> None:
        group, _, name = place.rpartition("/")
        if place in file:
            del file[place]
        make(file[group], name)

    return altered(replace_object)


def dataset(*arguments: Any, **named: Any) -> Callable[[Any, str], None]:
    return lambda group, name: group.create_dataset(name, *arguments, **named)


def link(kind: Any, *arguments: Any) -> Callable[[Any, str], None]:
    def make(group: Any, name: str) -> None:
        group[name] = kind(*arguments)

    return make


def virtual(group: Any, name: str) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    group.create_virtual_dataset(name, layout)


def filled(content: bytes) -> Callable[[Path], None]:
    """Other bytes."""

    def fill(path: Path) -> None:
        path.write_bytes(content)

    return fill


def within(depth: int) -> Callable[[Path], None]:
    """As many graphs within each other."""
    graph: dict[str, Any] = {"type": "NIRGraph", "nodes": NODES, "edges": EDGES}
    for _ in range(depth):
        graph = {"type": "NIRGraph", "nodes": {**ENDS, "g": graph}, "edges": chain("input", "g", "output")}

    def change(file: Any) -> None:
        del file["node"]
        write(file, {"node": graph})

    return altered(change)


WEIGHT, TYPE = "node/nodes/a/weight", "node/nodes/a/type"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no HDF5": (filled(b"x" * 5000), "not a readable HDF5 file: .*signature"),
    "empty": (filled(b""), "not a readable HDF5 file"),
    "truncated": (lambda path: os.truncate(path, 3000), "not a readable HDF5 file: .*truncated"),
    "no graph": (altered(lambda file: file.__delitem__("node")), "no group 'node'"),
    "a node alone": (
        replaced("node/type", dataset(data="LIF", dtype=h5py.string_dtype())),
        "it is a 'LIF', not a NIRGraph",
    ),
    "no type": (altered(lambda file: file.__delitem__(TYPE)), "a has no type"),
    "type is a number": (replaced(TYPE, dataset(data=1.0)), "the type of a is not a text"),
    "types": (replaced(TYPE, dataset(data=["a", "b"], dtype=h5py.string_dtype())), "the type of a is not a short text"),
    "long type": (
        replaced(TYPE, dataset(data="a" * 2000, dtype=h5py.string_dtype())),
        "the type of a has 2,000 characters, more than 1,000",
    ),
    "long name": (
        altered(lambda file: file["node/nodes"].create_group("n" * 1001)),
        "a name in the nodes of the graph has 1,001 characters",
    ),
    "no edges": (altered(lambda file: file.__delitem__("node/edges")), "a NIRGraph without nodes or edges"),
    "edges of three": (
        replaced("node/edges", dataset(data=np.full((2, 3), b"a"), dtype=h5py.string_dtype())),
        "the edges of the graph are not pairs of names",
    ),
    "edges of numbers": (replaced("node/edges", dataset(data=np.ones((2, 2)))), "are not pairs of names"),
    "an edge to nowhere": (
        replaced("node/edges", dataset(data=[["input", "gone"]], dtype=h5py.string_dtype())),
        "the edge from 'input' to 'gone': gone is not there",
    ),
    "an edge twice": (
        replaced("node/edges", dataset(data=[["input", "a"], ["input", "a"]], dtype=h5py.string_dtype())),
        "the edge from 'input' to 'a' is there twice",
    ),
    "soft link": (replaced(WEIGHT, link(h5py.SoftLink, "/node/nodes/b/tau")), "a has a link, 'weight', to somewhere"),
    "external link": (replaced(WEIGHT, link(h5py.ExternalLink, "/etc/passwd", "/x")), "a has a link, 'weight'"),
    "circle": (
        altered(lambda file: file["node/nodes/a"].__setitem__("again", file["node"])),
        "'again' in a is there under another name as well",
    ),
    "two names": (
        altered(lambda file: file["node/nodes"].__setitem__("c", file["node/nodes/a"])),
        "is there under another name as well",
    ),
    "other file": (replaced(WEIGHT, dataset((4,), "f4", external=[("/etc/passwd", 0, 16)])), "lies in another file"),
    "virtual": (replaced(WEIGHT, virtual), "a, weight lies in another file"),
    "huge": (
        replaced(WEIGHT, dataset((1 << 30, 1 << 20), "f4", chunks=(8, 8))),
        r"with a, weight of shape \[1073741824, 1048576\], its arrays take more memory than the budget allows",
    ),
    "no space": (replaced(WEIGHT, dataset(data=h5py.Empty("f4"))), "a, weight is empty"),
    "compound": (replaced(WEIGHT, dataset(data=np.zeros(3, [("x", "f4")]))), "a, weight has the type"),
    "complex": (
        replaced(WEIGHT, dataset(data=np.zeros(3, "c16"))),
        "a, weight has the type complex128, but must be numbers",
    ),
    "ragged": (replaced(WEIGHT, dataset((3,), h5py.vlen_dtype(np.float32))), "a, weight has the type object"),
    "a group": (replaced(WEIGHT, lambda group, name: group.create_group(name)), "a, weight is not an array"),
    "other filter": (
        replaced(WEIGHT, dataset(data=np.zeros(64, "i4"), scaleoffset=3)),
        "a, weight is packed by an HDF5 filter, number 6, that stsbp does not read",
    ),
    "deep": (within(40), "its graphs are nested more than 32 deep"),
    "an array as node": (altered(lambda file: file["node/nodes"].create_dataset("c", data=1.0)), "c is not a group"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_words(name: str, file: Path) -> None:
    damage, message = HOSTILE[name]
    damage(file)
    with pytest.raises(DataError, match=message) as error:
        read_graph(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("depth", [1, 31])
def test_graphs_may_stand_in_others(depth: int, file: Path) -> None:
    within(depth)(file)
    assert f"{'g.' * depth}a" in read_graph(file).nodes


def test_a_file_may_have_so_many_objects(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(file, "r") as opened:
        nir_child._NirReader(h5py, np, 10**6).file(opened)
        monkeypatch.setattr(nir_child, "MOST_OBJECTS", 10)
        with pytest.raises(nir_child.NirFileRefused, match="more than 10 groups and arrays"):
            nir_child._NirReader(h5py, np, 10**6).file(opened)
        monkeypatch.setattr(nir_child, "MOST_OBJECTS", 100)
        monkeypatch.setattr(nir_child, "MOST_EDGES", 2)
        with pytest.raises(nir_child.NirFileRefused, match="the edges of the graph are 3, more than 2"):
            nir_child._NirReader(h5py, np, 10**6).file(opened)


def budgeted(monkeypatch: pytest.MonkeyPatch, arrays: int) -> None:
    """Let the arrays of any file have this many bytes."""
    monkeypatch.setattr(budget, "memory", lambda _size: max(arrays * 4, 1 << 30))
    monkeypatch.setattr(nir_reader, "_COPIES", max(arrays * 4, 1 << 30) // arrays)


def test_limits_of_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="bytes, more than the 1,000 that such a file may have"):
        read_graph(file, Limits(file=1000))
    for most in (60, 100):
        budgeted(monkeypatch, most)
        with pytest.raises(DataError, match=r"its arrays take more memory .* stsbp --file-budget GIB COMMAND"):
            read_graph(file)
    budgeted(monkeypatch, 1000)
    assert read_graph(file).nodes


def test_a_small_budget_does_not_end_the_process_that_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.VARIABLE, "1e-6")
    assert read_graph(file).nodes


@pytest.mark.parametrize("filled", [False, True], ids=["declared", "packed"])
def test_a_small_file_of_large_arrays_is_refused_before_they_are_read(tmp_path: Path, filled: bool) -> None:
    """300 MiB of zeros, which the file packs or only declares."""
    file = written(tmp_path / "bomb.nir", NODES, EDGES)
    with h5py.File(file, "a") as opened:
        del opened[WEIGHT]
        weight = opened.create_dataset(WEIGHT, (2, 150 << 20), "u1", chunks=(1, 1 << 20), compression="gzip")
        if filled:
            weight[0, 0] = 1
    assert file.stat().st_size < 40_000
    with pytest.raises(DataError, match=r"with a, weight of shape \[2, 157286400\], its arrays take more memory"):
        read_graph(file)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not keep to limits of memory")
def test_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {**NODES, "a": {"type": "Linear", "weight": np.arange(1 << 22, dtype=np.float32).reshape(2, -1)}}
    file = written(tmp_path / "graph.nir", nodes, EDGES)
    monkeypatch.setattr(budget, "memory", lambda _size: 18 << 20)
    monkeypatch.setattr(nir_reader, "_COPIES", 1)
    with pytest.raises(DataError, match=r"takes more memory than is allowed|not a readable HDF5 file"):
        read_graph(file)


def test_pipes_devices_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("pipe", "it is a pipe"),
        ("", "it is a folder"),
        ("gone", "No such file"),
        ("/dev/zero", "a device"),
    ):
        with pytest.raises(DataError, match=why):
            read_graph(tmp_path / name)


def test_without_h5py_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h5py" else find_spec(name))
    with pytest.raises(DataError, match=r'pip install "stsbp\[nir\]"'):
        read_graph(file)


def answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let this code stand for the process that reads."""
    script = tmp_path / "child.py"
    script.write_text(code)
    monkeypatch.setattr(nir_child, "__file__", str(script))


def test_modules_beside_it_and_in_the_working_folder_are_not_imported(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, tmp_path, Path(nir_child.__file__).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("h5py", "numpy", "json", "io"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\nraise SystemExit\n")
    assert read_graph(Path("graph.nir")).nodes
    assert not (tmp_path / "imported").exists()


def test_hdf5_loads_no_filters(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import json, os\nprint(json.dumps({'refused': 'plugins ' + os.environ['HDF5_PLUGIN_PRELOAD']}))"
    answered(monkeypatch, tmp_path, program)
    with pytest.raises(DataError, match="plugins ::"):
        read_graph(file)


ANSWERS = {
    "crashes": ("import os\nos.kill(os.getpid(), 11)", r"ended without a message \(SIGSEGV\)"),
    "says nothing": ("", "ended without a message"),
    "is interrupted": ("print('{}', end='')", "ended without a message"),
    "says no JSON": ("print('?')", "not read as a NIR graph"),
    "says something else": ("print('[1]')", "not read as a NIR graph"),
    "says too much": ("while True: print('[' * 100)", "not read as a NIR graph"),
    "hands too much back": ("print('{}')\nwhile True: print('x' * 10**6)", "ended without a message"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_process_that_fails_is_an_error_that_names_the_file(
    name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, message = ANSWERS[name]
    answered(monkeypatch, tmp_path, code)
    with pytest.raises(DataError, match=message) as error:
        read_graph(file)
    assert str(file) in str(error.value)


def test_a_process_that_says_too_much_and_stays_is_ended(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, tmp_path, "import time\nprint('[' * 2000, flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(nir_reader, "_MOST_HEADER", 1000)
    began = time.monotonic()
    with pytest.raises(DataError, match="ended without a message"):
        read_graph(file)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("code", ["import time\ntime.sleep(60)", "print('{}')\nimport time\ntime.sleep(60)"])
def test_a_process_that_hangs_is_ended(code: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, tmp_path, code.replace("print('{}')", "print('{}', flush=True)"))
    with pytest.raises(DataError, match=r"takes more than 0\.3\d* seconds to read"):
        read_graph(file, Limits(seconds=0.3))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such limit")
def test_a_process_that_computes_for_too_long_is_ended(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = "from stsbp.hdf5_child import limit\nlimit(1 << 32, 1)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", busy]).returncode == -signal.SIGXCPU
    answered(monkeypatch, tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)")
    with pytest.raises(DataError, match=r"takes more than 60 seconds"):
        read_graph(file)


NODE = {"path": ["a"], "kind": "Linear", "values": {"weight": {"dtype": "<f4", "shape": [2], "count": 2, "at": 0}}}
FILE = {"version": "1", "nodes": [NODE], "graphs": [{"path": [], "edges": [], "metadata": {}}]}


def forged(**value: Any) -> dict[str, Any]:
    return {**FILE, "nodes": [{**NODE, "values": {"weight": {**NODE["values"]["weight"], **value}}}]}  # type: ignore[index]


FORGED = {
    "past the end": (forged(at=8), "an array is missing"),
    "before the beginning": (forged(at=-8), "nodes.0.values.weight.at"),
    "between": (forged(at=4), "nodes.0.values.weight.at"),
    "other count": (forged(count=1 << 20, shape=[2]), "another size than its shape"),
    "huge shape": (forged(shape=[1 << 39, 1 << 39], count=2), "another size than its shape"),
    "objects": (forged(dtype="|O"), "nodes.0.values.weight.dtype"),
    "a node in no graph": ({**FILE, "nodes": [{**NODE, "path": ["g", "a"]}]}, "its parts do not fit together"),
    "no whole": ({**FILE, "graphs": [{"path": ["g"], "edges": [], "metadata": {}}]}, "its parts do not fit together"),
    "no path": ({**FILE, "nodes": [{**NODE, "path": []}]}, "nodes.0.path"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_handed_back_is_checked(name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, message = FORGED[name]
    code = "import sys\nsys.stdout.buffer.write({0!r}.encode() + b'\\n' + bytes(8))"
    answered(monkeypatch, tmp_path, code.format(json.dumps(FILE)))
    assert read_graph(file).nodes["a"].values["weight"].tolist() == [0, 0]  # type: ignore[union-attr]
    answered(monkeypatch, tmp_path, code.format(json.dumps(answer)))
    with pytest.raises(DataError, match=message):
        read_graph(file)


def test_no_process_and_no_file_are_left(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    start = subprocess.Popen

    def watched(*arguments: Any, **named: Any) -> Any:
        started.append(start(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    read_graph(file)
    with pytest.raises(DataError):
        read_graph(file, Limits(seconds=0.01))
    assert [process.returncode is not None for process in started] == [True, True]
    assert not open_files or len(os.listdir("/proc/self/fd")) == open_files
