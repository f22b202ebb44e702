"""The package's door: what it exports, what its import costs, and how backends are found."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import stsbp_spec
from stsbp_spec import registry
from stsbp_spec.errors import BackendError
from stsbp_spec.reference.backend import NumpyBackend

PUBLIC = [
    "CONTRACT_VERSION",
    "IF",
    "LIF",
    "LOSSES",
    "PSP",
    "SURROGATES",
    "ALIF",
    "AbstractBackend",
    "Adam",
    "AdamW",
    "SGD",
    "AvgPool2d",
    "Batch",
    "Conv2d",
    "Device",
    "Dropout",
    "Hamming",
    "LayerRun",
    "LearnedDelay",
    "Linear",
    "Loss",
    "NetworkSpec",
    "NeuronModel",
    "RunResult",
    "SpikeCount",
    "SpikingLayer",
    "Surrogate",
    "ValueAndGrad",
    "VanRossum",
    "initial_weights",
    "installed_backends",
    "load_backend",
    "open_backend",
    "parse_surrogate",
    "Branches",
    "Flatten",
    "GlobalAvgPool",
    "MaxPool2d",
    "OneToOne",
    "Upsample2d",
]


def test_public_names_are_frozen() -> None:
    """A change here is a change of the interface: CHANGELOG, and every backend."""
    assert sorted(stsbp_spec.__all__) == sorted(PUBLIC)
    assert all(hasattr(stsbp_spec, name) for name in PUBLIC)


BACKEND = [
    "arithmetic",
    "asarray",
    "devices",
    "dropout",
    "dropout_mask",
    "encode",
    "numpy",
    "open",
    "recur",
    "rules",
]


def test_what_a_backend_must_implement_is_frozen() -> None:
    """A change here raises `registry.API`."""
    assert sorted(stsbp_spec.AbstractBackend.__abstractmethods__) == sorted(BACKEND)


def test_import_brings_only_numpy_and_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import stsbp_spec\n"
        "for name in sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)):\n"
        "    print(name)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # Compiled parts of numpy register themselves under names of their own, with an underscore in front.
    modules = {name for name in run.stdout.split() if not name.startswith("_")}
    assert modules - {"cython_runtime"} == {"numpy", "stsbp_spec"}


def test_listing_backends_imports_none() -> None:
    program = (
        "import sys; from stsbp_spec import installed_backends; names = installed_backends()\n"
        "assert 'numpy' in names, names\n"
        "assert 'stsbp_spec.reference' not in sys.modules and 'torch' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numpy_is_installed_and_opens() -> None:
    backend = stsbp_spec.open_backend("numpy")
    assert isinstance(backend, NumpyBackend)
    assert backend.device == "cpu"
    with pytest.raises(BackendError, match=r"has the device cpu only, got 'cuda'; use --device cpu"):
        stsbp_spec.open_backend("numpy", "cuda")


def _entry_points(*points: EntryPoint) -> Any:
    return lambda *, group: points if group == registry.GROUP else ()


def test_an_unknown_backend_lists_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, "nowhere:X", registry.GROUP) for name in ("numpy", "mine")]
    monkeypatch.setattr(registry, "entry_points", _entry_points(*points))
    with pytest.raises(BackendError, match=r"no backend 'nosuch' is installed; installed: mine, numpy$"):
        stsbp_spec.load_backend("nosuch")
    with pytest.raises(BackendError, match=r"install it with: python -m pip install stsbp-torch$"):
        stsbp_spec.load_backend("torch")


def test_no_backend_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", _entry_points())
    assert stsbp_spec.installed_backends() == ()
    with pytest.raises(BackendError, match="installed: none"):
        stsbp_spec.load_backend("numpy")


def test_a_backend_that_does_not_import_keeps_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("torch", "module_that_is_nowhere:TorchBackend", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", _entry_points(point))
    with pytest.raises(
        BackendError, match=r"installed but cannot be imported: ModuleNotFoundError: .*nowhere.*stsbp-torch"
    ) as e:
        stsbp_spec.load_backend("torch")
    assert isinstance(e.value.__cause__, ModuleNotFoundError)


def test_a_backend_that_ends_the_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backend_that_exits.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("torch", "backend_that_exits:TorchBackend", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", _entry_points(point))
    with pytest.raises(BackendError, match="installed but cannot be imported: SystemExit: 3; repair it with"):
        stsbp_spec.load_backend("torch")


def test_a_backends_own_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, dist = "mine", None

        def load(self) -> object:
            raise BackendError("its own words")

    monkeypatch.setattr(registry, "entry_points", lambda *, group: (Point(),))
    with pytest.raises(BackendError, match=r"^its own words$"):
        stsbp_spec.load_backend("mine")


@pytest.mark.parametrize(
    ("api", "spoken", "package"),
    [
        (registry.API + 1, f"version {registry.API + 1} of the interface", "stsbp-spec"),
        (registry.API - 1, f"version {registry.API - 1} of the interface", "stsbp-torch"),
        (None, "an interface without a version", "stsbp-torch"),
    ],
    ids=["newer", "older", "unsaid"],
)
def test_a_backend_for_another_version_of_the_interface_is_not_opened(
    api: int | None, spoken: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name, dist = "torch", None

        def load(self) -> object:
            return type("Other", (), {} if api is None else {"api": api})

    monkeypatch.setattr(registry, "entry_points", lambda *, group: (Point(),))
    has = f"stsbp-spec {stsbp_spec.__version__} has version {registry.API}"
    if package != "stsbp-spec":
        has += ", which demands the member 'arithmetic' (docs/write_a_backend.md)"
    way_out = f"python -m pip install --upgrade {package}"
    for call in (stsbp_spec.load_backend, stsbp_spec.open_backend):
        with pytest.raises(BackendError) as caught:
            call("torch")
        assert str(caught.value) == (
            f"backend 'torch' is written for {spoken}, but {has}; install matching versions, for example: {way_out}"
        )


def _imports(package: Path) -> dict[str, set[str]]:
    """Modules of a package by the modules of it that they import, wherever in the file and for whatever purpose."""
    files = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)): path
        for path in package.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {member if member in names else node.module for member in members}
        imports[name] = (imported & set(names)) - {name}
    return imports


PACKAGES = sorted(Path(__file__).parents[2].glob("*/src/*/__init__.py"))


@pytest.mark.parametrize("package", [path.parent for path in PACKAGES], ids=lambda path: path.name)
def test_imports_run_one_way(package: Path) -> None:
    waiting = _imports(package)
    assert len(waiting) == len(list(package.rglob("*.py"))) > 0
    while ready := [name for name, imports in waiting.items() if not imports & set(waiting)]:
        for name in ready:
            del waiting[name]
    assert not waiting, f"import each other: {', '.join(sorted(waiting))}"
