"""Machine code is that of the sources at hand and found again only where it is safe; its making is announced once."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import pkgutil
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
import numpy as np
import pytest
import stsbp_cpu
from numba.core import config
from numba.core.dispatcher import Dispatcher
from numba.extending import _Intrinsic
from stsbp_cpu.engine import compiling
from stsbp_spec.engine.kernel_cache import KernelFolder

GRADIENTS = """
import sys
import numpy as np
from numba.core import event
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import Rectangle
from stsbp_spec.networks.ops import PSP, Conv2d
from stsbp_cpu.ops.sparse.kernels import KernelInput, backward

compiled = []

class Listener(event.Listener):
    def on_start(self, event):
        compiled.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
f, shape = np.float32, (3, 1, 2, 2, 1)
u = (np.arange(12, dtype=f) / 8).reshape(shape)
ds, dz = np.ones(shape, f), np.zeros(shape, f)
given = KernelInput(np.ones(shape, np.uint8), 1, np.ones((1, 1, 1, 1), np.uint8), 0)
equations = neuron_equations(PSP(2).filter(), LIF(4, surrogate=Rectangle()))
kept = np.zeros((0, 1, 1), f)
dw = backward(Conv2d(1, 1), equations, given, u, kept, ds, 1, dz, need_weights=True)
print(*dz.reshape(-1), *dw.reshape(-1), len(compiled))
"""


def _run(program: str, path: Path, **environment: str) -> list[float]:
    """The numbers that a program prints."""
    # Python's own compiled files are told from fresh ones by the second and the size. Little is optimised: that is
    # most of the time.
    variables = {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_OPT": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_a_package_that_is_replaced_computes_with_its_new_code(tmp_path: Path) -> None:
    """`backward` of one file has equations of other ones in its machine code."""
    for name in ("stsbp_cpu", "stsbp_spec"):
        source = Path(importlib.import_module(name).__file__ or "").parent
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    *first, compiled = _run(GRADIENTS, tmp_path, STSBP_CACHE=cache)
    assert compiled > 1
    assert _run(GRADIENTS, tmp_path, STSBP_CACHE=cache) == [*first, 0]
    filter = tmp_path / "stsbp_spec" / "networks" / "ops" / "psp.py"
    text = filter.read_text()
    changed = text.replace("snap(p.k * d.e + current)", "snap(p.k * d.e - current)")
    assert changed != text
    filter.write_text(changed)
    *second, _ = _run(GRADIENTS, tmp_path, STSBP_CACHE=cache)
    # The recursion starts at zero, so every value changes its sign.
    assert any(first)
    assert second == [-x for x in first]
    assert not list(tmp_path.rglob("*.nbi"))


def _modules() -> dict[str, Any]:
    names = [module.name for module in pkgutil.walk_packages(stsbp_cpu.__path__, "stsbp_cpu.")]
    return {name: importlib.import_module(name) for name in names}


def _is_compiled(value: Any) -> bool:
    return isinstance(value, Dispatcher | _Intrinsic)


def _named(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _kernels(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions that numba compiles, those inside of other functions too."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    compilers = {"cached_njit", "njit", "intrinsic"}
    return [f for f in functions if any(compilers & _named(decorator) for decorator in f.decorator_list)]


def test_every_module_that_kernels_take_in_is_part_of_the_key() -> None:
    """By name: what functions that numba compiles use, and numbers that are made of it."""
    modules = set()
    for name, module in _modules().items():
        tree = ast.parse(Path(module.__file__).read_text())
        kernels = _kernels(tree)
        if not kernels:
            continue
        modules.add(name)
        used = {word for kernel in kernels for statement in kernel.body for word in _named(statement)}
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                used |= _named(node.value)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stsbp_"):
                if used & {alias.asname or alias.name for alias in node.names}:
                    modules.add(str(node.module))
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("stsbp_") for alias in node.names)
    # How kernels are compiled is part of the key as well.
    assert modules == set(compiling.SOURCES) - {"stsbp_cpu.engine.compiling"}


def test_no_kernel_is_left_to_the_cache_of_numba() -> None:
    dispatchers = {value for module in _modules().values() for value in vars(module).values() if _is_compiled(value)}
    kinds = {type(vars(value)["_cache"]).__name__ for value in dispatchers if isinstance(value, Dispatcher)}
    assert kinds == {"_KernelCache", "NullCache"}


def _add(x: float, y: float) -> float:
    return x + y


def _kernel(**options: Any) -> Any:
    """A kernel of this package that no other test has compiled, as a process meets it that has just begun."""
    function = FunctionType(_add.__code__, {}, "add")
    function.__module__ = "stsbp_cpu.equations.vectors"
    return compiling.cached_njit(**options)(function)


def _loads(**options: Any) -> bool:
    """Whether a new process would find the kernel."""
    kernel = _kernel(**options)
    assert kernel(1.5, 2.0) == 3.5
    return bool(kernel.stats.cache_hits)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def _files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_kernel_is_compiled_once_for_each_signature(cache: Path) -> None:
    assert [_loads() for _ in range(3)] == [False, True, True]
    (file,) = _files(cache)
    assert file.parent.name.startswith("numba-")
    assert file.stat().st_mode & 0o777 == 0o600
    kernel = _kernel()
    assert kernel(1, 2) == 3
    assert kernel(np.float32(1), np.float32(2)) == 3
    assert not kernel.stats.cache_hits
    assert len(_files(cache)) == 3


@pytest.mark.parametrize("size", [0, 10, -1], ids=["empty", "short", "one byte less"])
def test_a_truncated_file_is_compiled_again(size: int, cache: Path) -> None:
    _loads()
    (file,) = _files(cache)
    file.write_bytes(file.read_bytes()[:size])
    assert [_loads(), _loads()] == [False, True]


def test_a_garbled_file_is_compiled_again(cache: Path) -> None:
    _loads()
    (file,) = _files(cache)
    content = file.read_bytes()
    for at in range(0, len(content), len(content) // 20):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        assert _kernel()._cache.load_overload((numba.float64, numba.float64), _kernel().targetctx) is None
    file.write_bytes(content)
    assert _loads()


def test_a_file_of_another_signature_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling._KernelCache, "_file", lambda self, signature: "one name for all")
    _loads()
    kernel = _kernel()
    assert kernel(2**40, 2**40) == 2**41
    assert not kernel.stats.cache_hits


def test_a_folder_that_others_can_write_is_not_read(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.name == "nt":
        pytest.skip("modes of folders are those of POSIX")
    _loads()
    cache.chmod(0o775)
    folder = KernelFolder(cache, "numba", "any")
    assert not folder.kept
    assert "can be written by others" in caplog.messages[-1]


def test_a_package_that_was_replaced_while_it_ran_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "_sources_now", lambda: "of another version")
        assert not _loads()
    assert _files(cache) == []
    assert [_loads(), _loads()] == [False, True]


def test_code_with_addresses_of_its_process_is_not_kept(cache: Path) -> None:
    def look(x: int) -> int:
        return table[x]  # type: ignore[name-defined, no-any-return]  # noqa: F821

    # numba puts an array of this size into the code by its address.
    function = FunctionType(look.__code__, {"table": np.arange(200_000)}, "look")
    function.__module__ = "stsbp_cpu.equations.vectors"
    assert compiling.cached_njit()(function)(7) == 7
    assert _files(cache) == []


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (numba, "__version__", "0.0"),
        (llvmlite, "__version__", "0.0"),
        (np, "__version__", "0.0"),
        (sys, "version", "3"),
        (config, "BOUNDSCHECK", 1),
        (config, "OPT", 1),
        (compiling, "_sources", lambda: "changed"),
    ],
    ids=["numba", "llvmlite", "numpy", "python", "bounds", "optimisation", "sources"],
)
def test_the_key_depends_on_all_that_compiles(
    owner: Any, name: str, other: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codegen = _kernel().targetctx.codegen()
    folder = compiling.folder_for(codegen)
    assert folder is compiling.folder_for(codegen)
    monkeypatch.setattr(owner, name, other)
    assert compiling.folder_for(codegen) is not folder


def test_the_key_depends_on_the_processor(cache: Path) -> None:
    class Codegen:
        def __init__(self, *magic: str) -> None:
            self.magic = magic

        def magic_tuple(self) -> tuple[str, ...]:
            return self.magic

    machines = [
        ("x86_64-linux", "skylake", "+avx2"),
        ("x86_64-linux", "skylake", "+avx512f"),
        ("x86_64-linux", "znver4", ""),
    ]
    assert len({compiling.folder_for(Codegen(*machine)) for machine in machines}) == 3


def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from stsbp_cpu.ops.dropout import _rotate as k\n"
        "print(k(np.uint32(3), 1), len(k.stats.cache_hits))\n"
    )
    environment = {**os.environ, "STSBP_CACHE": str(tmp_path)}
    children = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    # One of them compiles, and the other one waits for its code.
    assert sorted(child.communicate()[0] for child in children) == ["6 0\n", "6 1\n"]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["6", "1"]
    assert done.stderr == ""


def test_where_nothing_can_be_kept_kernels_are_compiled_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = (
        "import numpy as np; from stsbp_cpu.engine import compiling; from stsbp_cpu.ops.dropout import _rotate\n"
        "compiling.announce()\n"
        "print(_rotate(np.uint32(3), 1), _rotate(np.uint64(3), 1))\n"
    )
    environment = {**os.environ, "STSBP_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["6", "6"]
    warning, announcement = done.stderr.splitlines()
    assert warning.startswith("compiled kernels cannot be kept, so each run compiles them again: ")
    assert "choose another folder with the environment variable STSBP_CACHE" in warning
    assert announcement == "compiling the kernels for this processor"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_machine_code_is_made_of_a_parallel_kernel_and_not_of_its_parts(cache: Path) -> None:
    def filled(x: Any) -> None:
        for i in numba.prange(len(x)):
            x[i] = i * 0.5

    filled.__module__ = "stsbp_cpu.equations.vectors"
    kernel: Any = compiling.cached_njit(parallel=True)(filled)
    x = np.zeros(1000)
    engine = kernel.targetctx.codegen()._engine
    earlier_symbols = set(engine._defined_symbols)
    kernel(x)
    assert np.array_equal(x, np.arange(1000) * 0.5)
    parts = {
        name for name in engine._defined_symbols - earlier_symbols if "parfor_gufunc" in name and "NumbaEnv" not in name
    }
    (library,) = (overload.library for overload in kernel.overloads.values())
    assert parts <= {function.name for function in library.get_defined_functions()}


def test_a_kernel_that_failed_is_not_waited_for(cache: Path) -> None:
    kernel, began = _kernel(), time.monotonic()
    for _ in range(2):
        with pytest.raises(numba.TypingError):
            kernel("text", 1)
    assert time.monotonic() - began < compiling._PATIENCE / 2
    assert _kernel()(1.0, 2.0) == 3.0


def test_without_compiling_kernels_are_plain_functions() -> None:
    program = "import numpy as np; from stsbp_cpu.ops.dropout import _rotate; print(_rotate(np.uint32(3), 1))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["6"]


def test_a_kernel_outside_of_the_sources_is_refused() -> None:
    refusal = r"test_compiling\._add is not covered by stsbp_cpu\.engine\.compiling\.SOURCES"
    with pytest.raises(TypeError, match=refusal):
        compiling.cached_njit()(_add)


def test_a_closure_is_refused() -> None:
    offset = 1.0

    def shifted(x: float) -> float:
        return x + offset

    shifted.__module__ = "stsbp_cpu.equations.vectors"
    with pytest.raises(TypeError, match=r"shifted is not covered"):
        compiling.cached_njit()(shifted)


def _closed(inner: Any) -> Any:
    """A kernel that computes what another one computes."""

    def closed(x: float) -> float:
        return inner(x)  # type: ignore[no-any-return]

    closed.__module__ = "stsbp_cpu.equations.vectors"
    return compiling.cached_njit()(closed)


def _printed(text: str) -> Any:
    return compiling.printed_njit(f"def f(x):\n    return {text}\n", "f", {"__name__": "stsbp_cpu.equations.vectors"})


def test_kernels_closed_over_others_are_found_again_and_not_mixed(cache: Path) -> None:
    for _ in range(2):
        kernels = [_closed(_printed(text)) for text in ("x + 1", "x - 1", "x * 7")]
        assert [kernel(3.0) for kernel in kernels] == [4, 2, 21]
    assert [len(kernel.stats.cache_hits) for kernel in kernels] == [1, 1, 1]
    assert len(_files(cache)) == 6


def test_a_kernel_that_calls_a_printed_one_by_name_is_told_from_others(cache: Path) -> None:
    def calls(x: float) -> float:
        return inner(x)  # type: ignore[name-defined, no-any-return]  # noqa: F821

    for text, expected in (("x + 1", 4.0), ("x - 1", 2.0)):
        function = FunctionType(calls.__code__, {"inner": _printed(text)}, "calls")
        function.__module__ = "stsbp_cpu.equations.vectors"
        assert compiling.cached_njit()(function)(3.0) == expected


def test_printed_lines_stand_in_tracebacks() -> None:
    kernel = _printed("x + missing")
    with pytest.raises(NameError) as caught:
        kernel.py_func(1.0)
    assert "return x + missing" in "".join(traceback.format_exception(caught.value))


MIXED = """
import sys, numpy as np
from numba.core import event
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import ALIF, LIF
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.models.surrogates import Rectangle, Triangle
from stsbp_spec.networks.ops import PSP
from stsbp_cpu.models import neurons as kernels

compiled = []

class Listener(event.Listener):
    def on_start(self, event):
        compiled.append(1)
    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
neurons = {"rectangle": LIF(3, surrogate=Rectangle()), "triangle": LIF(3, surrogate=Triangle()), "alif": ALIF()}
rng = np.random.default_rng(0)
z, g = (rng.standard_normal((9, 2, 77)).astype(np.float32) for _ in range(2))
for name in WORDS:
    equations, neuron, filter = neuron_equations(PSP(3).filter(), neurons[name]), neurons[name], PSP(3).filter()
    spikes, residuals = NumpyBackend().neuron_forward(neuron, filter, z, 9)
    below = NumpyBackend().neuron_backward(neuron, filter, residuals, g)[0]
    u, dz, o = np.empty((9, 154), np.float32), np.empty((9, 154), np.float32), np.empty((9, 154), np.uint8)
    kept = np.empty((len(equations.kept) - 1, 9, 154), np.float32)
    kernels.forward(equations, z.reshape(9, -1), u, o, kept)
    kernels.backward(equations, u, kept, g.reshape(9, -1), dz)
    for found, expected in ((o, spikes), (u, residuals.kept["u"]), (dz, below)):
        assert found.tobytes() == expected.tobytes(), name
print(len(compiled))
"""


def test_kernels_of_several_neurons_are_not_mixed(tmp_path: Path) -> None:
    """Each is compiled in a process of its own, as the first of its kind; later ones load all of them, in any order."""

    def compiled(*names: str) -> float:
        program = MIXED.replace("WORDS", repr(names))
        (count,) = _run(program, Path(os.pathsep.join(sys.path)), STSBP_CACHE=str(tmp_path))
        return count

    names = ("rectangle", "triangle", "alif")
    assert all(compiled(name) > 0 for name in names)
    assert [compiled(*names), compiled(*reversed(names))] == [0, 0]


def _announced(module: str, offset: float) -> None:
    def kernel(x: float) -> float:
        return x + offset

    kernel.__module__ = module
    compiled = numba.njit(kernel)
    assert compiled(1.0) == 1.0 + offset


def test_compiling_is_announced_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling.announce()
    monkeypatch.setattr(compiling._announcement, "said", False)
    with caplog.at_level(logging.WARNING, logger="stsbp_cpu"):
        _announced("another_package.kernels", 1.0)
        assert not caplog.messages
        _announced("stsbp_cpu.kernels", 2.0)
        compiling.announce()
        _announced("stsbp_cpu.kernels", 3.0)
    assert caplog.messages == ["compiling the kernels for this processor; later runs load them from the disk"]


def test_loading_is_not_announced(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling.announce()
    _loads()
    monkeypatch.setattr(compiling._announcement, "said", False)
    caplog.clear()
    assert _loads()
    assert not caplog.messages
