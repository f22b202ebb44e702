"""The spec's equations as printed kernels, against the numpy backend, bit for bit."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_cupy import CupyBackend
from stsbp_cupy.engine import host
from stsbp_cupy.engine.host import HostRuntime
from stsbp_cupy.engine.source import KERNELS
from stsbp_cupy.equations.recurrence import kernel
from stsbp_spec import LIF, PSP
from stsbp_spec.equations.assembly import COUNT, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, Recurrence, named, snap, spike, unsnapped, variable, where
from stsbp_spec.equations.printers import LANGUAGES, definition, numpy_function
from stsbp_spec.models.losses import LOSSES, Loss
from stsbp_spec.models.neurons.alif import ALIF
from stsbp_spec.models.neurons.base import NeuronModel, Step
from stsbp_spec.models.neurons.integrate_and_fire import IF
from stsbp_spec.models.optim import OPTIMIZERS
from stsbp_spec.models.optim.adamw import UPDATE
from stsbp_spec.models.surrogates import Rectangle, Surrogate
from stsbp_spec.networks.ops import IDENTITY
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray


@dataclass(frozen=True)
class Bell(Surrogate):
    """A surrogate that no backend knows, with two parameters."""

    name = "bell"
    height: float = 0.5
    width: float = 0.25

    def constants(self) -> Mapping[str, float]:
        return {"height": self.height, "steep": 1 / self.width}

    def expression(self, p: Names, x: Expr) -> Expr:
        y = x * p.steep
        return p.height / (1 + y * y)

    def primitive(self, x: AnyArray) -> AnyArray:
        return x


@dataclass(frozen=True)
class Words(NeuronModel):
    """A neuron whose names are words of C++, of the frame around a step, or both."""

    name = "words"
    states = ("double", "n", "first_")
    threshold: float = 1.0

    def constants(self) -> Mapping[str, float]:
        return {"vth": self.threshold, "new": 0.75, "t": 0.5, "lane": -0.25, "W": 2.0}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("union", s.double + i)
        load = named("load", s.n * p.new - s.first_)
        o = spike(u + load, p.vth)
        minus = -(u * p.lane)
        first = where(o, -minus, s.first_ * -0.5)
        return Step(u, o, {"double": where(o, 0, u * p.t), "n": load + where(o, p.W, 0), "first_": first})


NEURONS = {
    "lif": LIF(tau_m=3, threshold=0.9, surrogate=Bell()),
    "lif-logistic-free": LIF(tau_m=3, threshold=0.9, surrogate=Rectangle(0.7)),
    "subtract": LIF(tau_m=3, threshold=0.9, reset="subtract"),
    "if": IF(threshold=2.0),
    "alif": ALIF(tau_m=3, threshold=0.5, tau_a=4, beta=0.7),
    "alif-subtract": ALIF(tau_m=3, threshold=0.5, tau_a=4, beta=0.7, reset="subtract", surrogate=Bell()),
    "words": Words(threshold=0.8),
}
FILTERS = {"none": IDENTITY, "first": PSP(3).filter(1.25), "second": PSP(5, 2).filter()}
SHAPES = {"four": (3, 12), "one": (3, 7), "spatial": (2, 8, 5, 6), "spatial-odd": (1, 3, 5, 5)}


def assert_same_bits(actual: AnyArray, expected: AnyArray) -> None:
    """Finite numbers; zeros have no sign (docs/decisions/0001)."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert np.isfinite(expected).all()
    assert np.array_equal(actual, expected)


def channels_last(x: AnyArray) -> AnyArray:
    """`x` on memory as this backend's convolutions leave it."""
    return np.moveaxis(np.moveaxis(x, -3, -1).copy(), -1, -3) if x.ndim >= 4 else x


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("steps_of_input", [9, 1])
@pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_neurons_of_any_states(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    neuron: NeuronModel,
    filter: SynapticFilter,
    steps_of_input: int,
    shape: tuple[int, ...],
) -> None:
    z = rng.normal(0.5, 1, (steps_of_input, *shape)).astype(np.float32)
    ds = rng.normal(0, 1, (9, *shape)).astype(np.float32)
    spikes, residuals = reference.neuron_forward(neuron, filter, z, 9)
    got, saved = backend.neuron_forward(neuron, filter, backend.asarray(channels_last(z)), 9)
    assert 0.02 < spikes.mean() < 0.98
    assert_same_bits(backend.numpy(got), spikes)
    assert saved.kept.keys() == residuals.kept.keys()
    for name, value in residuals.kept.items():
        assert_same_bits(backend.numpy(saved.kept[name]), value)
    expected = reference.neuron_backward(neuron, filter, residuals, ds)[0]
    assert expected.any()
    dz = backend.neuron_backward(neuron, filter, saved, backend.asarray(channels_last(ds)))[0]
    assert_same_bits(backend.numpy(dz), expected)


A, B, C, K = (variable(name) for name in "abck")
MINUS = -A
CASES = {
    "states that change places": Recurrence("swap", (), ("a",), {"b": variable("c") + A, "c": variable("b")}, {"y": B}),
    "results that are no new values": Recurrence("plain", ("k",), ("a",), {}, {"x": A, "y": K, "z": A < K, "w": A + 0}),
    "the old state as a result": Recurrence("old", ("k",), ("a",), {"b": snap(A + K * B)}, {"b": B}, reverse=True),
    "negative numbers": Recurrence("minus", (), ("a",), {}, {"y": A * -0.1 - (-3.0), "x": -MINUS, "w": abs(-A)}),
    "an input and a state that nobody reads": Recurrence("idle", (), ("a", "c"), {"b": A}, {"y": A * 2}),
    "two inputs": Recurrence("two", ("k",), ("a", "c"), {"b": snap(B * K + A)}, {"y": B * C - A}),
}


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("kinds", [("f", "u"), ("u", "f"), ("u", "u1"), ("f1", "f"), ("f1", "f1")], ids="-".join)
@pytest.mark.parametrize("recurrence", CASES.values(), ids=CASES)
@pytest.mark.parametrize("count", [8, 5])
def test_inputs_of_each_kind(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    recurrence: Recurrence,
    kinds: tuple[str, ...],
    summed: bool,
    count: int,
) -> None:
    """Floats or bytes, one for each step or one for all."""
    inputs: dict[str, AnyArray] = {}
    for name, kind in zip(recurrence.inputs, kinds, strict=False):
        x = rng.normal(0, 2, (1 if "1" in kind else 6, 3, count))
        inputs[name] = x.astype(np.float32) if "f" in kind else np.abs(x * 50).astype(np.uint8)
    numbers = tuple(name for name, x in recurrence.outputs.items() if not x.is_condition)
    constants, names = {"k": np.float32(0.7)}, numbers if summed else ()
    expected = reference.recur(recurrence, constants, inputs, 6, summed=names)
    arrays = {name: backend.asarray(x) for name, x in inputs.items()}
    outputs = backend.recur(recurrence, constants, arrays, 6, summed=names)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(backend.numpy(outputs[name]), value)


def test_sums_keep_their_order(backend: CupyBackend) -> None:
    x = backend.asarray(np.array([2.0**24, 1, 1], np.float32).reshape(3, 1, 1))
    for reverse, total in ((False, 2.0**24), (True, 2.0**24 + 2)):
        recurrence = Recurrence("total", (), ("a",), {}, {"y": unsnapped(A * 1)}, reverse=reverse)
        assert backend.recur(recurrence, {}, {"a": x}, 3, summed=("y",))["y"].item() == total


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("units", [8, 7])
def test_losses(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, loss: Loss, units: int
) -> None:
    s, targets = ((rng.random((6, 3, units)) < 0.3).astype(np.uint8) for _ in range(2))
    expected = reference.loss_error(loss, PSP(3), s, targets)
    assert expected.any()
    error = backend.loss_error(loss, PSP(3), backend.asarray(s), backend.asarray(targets))
    assert_same_bits(backend.numpy(error), expected)


@pytest.mark.parametrize("domain", [None, (-0.5, 0.75)], ids=["weights", "learned"])
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 7)], ids=str)
def test_update(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    kind: Any,
    domain: tuple[float, float] | None,
) -> None:
    w, g, m, v = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(4))
    optimizer = kind(lr=0.1, weight_decay=0.1)
    scalars, values = optimizer.scalars(3, np.float32(0.9)), [w, g, *[m, v * v][: len(optimizer.moments)]]
    expected = reference.updated(scalars, domain, *values)
    for actual, value in zip(backend.updated(scalars, domain, *map(backend.asarray, values)), expected, strict=True):
        assert_same_bits(backend.numpy(actual), value)


def test_nothing_is_copied_that_lies_in_memory_alike(
    compiler_path: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CupyBackend("host")
    arguments_of_kernels: list[AnyArray] = []
    start = HostRuntime.start

    def spy(self: HostRuntime, function: object, threads: int, arguments: list[object]) -> None:
        arguments_of_kernels.extend(x for x in arguments if isinstance(x, np.ndarray))
        start(self, function, threads, arguments)

    monkeypatch.setattr(HostRuntime, "start", spy)
    for of in (channels_last, np.ascontiguousarray):
        z, ds = (of(rng.normal(0, 1, (4, 2, 3, 5, 6)).astype(np.float32)) for _ in range(2))
        spikes, residuals = backend.neuron_forward(LIF(), IDENTITY, z, 4)
        dz = backend.neuron_backward(LIF(), IDENTITY, residuals, ds)[0]
        for passed, x in zip(
            arguments_of_kernels, (z, residuals.kept["u"], spikes, residuals.kept["u"], ds, dz), strict=True
        ):
            assert np.shares_memory(passed, x)
            assert x.strides == z.strides if x.dtype == z.dtype else x.strides == tuple(s // 4 for s in z.strides)
        arguments_of_kernels.clear()
    # One of three lies otherwise: it is copied, the two are not.
    odd = Recurrence("three", (), ("a", "b", "c"), {}, {"y": A + B * C})
    first, second, third = (rng.normal(0, 1, (4, 2, 3, 5, 6)).astype(np.float32) for _ in range(3))
    arrays = {"a": channels_last(first), "b": second, "c": channels_last(third)}
    y = backend.recur(odd, {}, arrays, 4)["y"]
    assert [np.shares_memory(passed, x) for passed, x in zip(arguments_of_kernels, arrays.values(), strict=False)] == [
        True,
        False,
        True,
    ]
    assert_same_bits(y, first + second * third)


def test_shapes_that_do_not_fit_are_refused(backend: CupyBackend) -> None:
    two = Recurrence("two", (), ("a", "b"), {}, {"y": A + B})
    x = np.zeros((4, 2, 3), np.float32)
    for other in (x[:2], x[:, :1], x[:, :, :2]):
        with pytest.raises(TypeError, match=r"two: b must be \(4, 2, 3\), or one step of it, got \("):
            backend.recur(two, {}, {"a": x, "b": other}, 4)


def test_a_kernel_is_named_by_its_text_and_declares_what_it_takes() -> None:
    equations = neuron_equations(PSP(3).filter(), LIF(tau_m=3))
    source = kernel(equations.forward, ("float32",), ())
    assert source == kernel(neuron_equations(PSP(5).filter(), LIF(tau_m=2)).forward, ("float32",), ())
    (entry,) = source.entries
    assert entry.name == source.name
    assert [(p.name, p.dtype.name, p.pointer) for p in entry.parameters] == [
        ("n", "int64", False), ("steps", "int32", False), ("z_in", "float32", True), ("z_step", "int64", False),
        ("u_out", "float32", True), ("o_out", "uint8", True), ("k_", "float32", False), ("c_", "float32", False),
        ("km_", "float32", False), ("vth_", "float32", False), ("lanes", "int32", False),
    ]  # fmt: skip
    others = [
        kernel(equations.forward, ("uint8",), ()),
        kernel(equations.backward, ("float32", "float32"), ()),
        kernel(equations.backward, ("float32", "float32"), ("dz",)),
        kernel(neuron_equations(PSP(3).filter(), LIF(surrogate=Bell())).backward, ("float32", "float32"), ()),
    ]
    assert len({source.name, *(other.name for other in others)}) == 5


def test_a_kernel_is_built_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler_path: str, backend: CupyBackend
) -> None:
    if HostRuntime.__module__ != host.__name__:
        pytest.skip("other code runs the kernels in place of the device `host`")
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    host._library.cache_clear()
    source = kernel(COUNT, ("uint8",), ("n",))
    rt = HostRuntime.__new__(HostRuntime)
    rt._kernels, rt._loaded = {}, set()
    rt.load(source)
    (library,) = tmp_path.rglob("recur_count_*.so")
    written = library.stat().st_mtime_ns
    entry = rt._kernels[source.name]
    rt.load(source)
    assert rt._kernels[source.name] is entry
    host._library.cache_clear()
    assert host.build(source) == library
    assert library.stat().st_mtime_ns == written
    # Another compiler's, or another frame's, is another file.
    monkeypatch.setattr(host, "FLAGS", (*host.FLAGS, "-DOTHER"))
    assert host.build(source) != library
    host._library.cache_clear()


SOURCES = [
    *(neuron_equations(FILTERS["second"], neuron).forward for neuron in NEURONS.values()),
    *(neuron_equations(FILTERS["second"], neuron).backward for neuron in NEURONS.values()),
    *CASES.values(),
    UPDATE,
]


def test_kernels_compile_without_warnings(compiler_path: str) -> None:
    sources = dict.fromkeys(kernel(x, ("float32",) * len(x.inputs), ()) for x in SOURCES)
    command = [compiler_path, *host.FLAGS, "-Wall", "-Werror", f"-I{KERNELS}", "-x", "c++", "-"]
    command[command.index("-shared")] = "-fsyntax-only"
    subprocess.run(command, input=host.host_source(*sources), text=True, check=True)


_BOTH = [neuron_equations(PSP(4, 2).filter(), x) for x in (LIF(), ALIF(reset="subtract"), IF(surrogate=Bell()))]
_PASSES = [loss_equations(loss) for loss in LOSSES.values()]
SHOWN = [x for both in _BOTH for x in (both.forward, both.backward)]
SHOWN += [x for passes in _PASSES for x in (passes.forward, passes.backward) if x is not None] + [UPDATE]


@pytest.mark.parametrize("number", range(len(SHOWN)), ids=[x.name for x in SHOWN])
def test_the_function_that_is_shown_compiles_and_computes_the_equation(
    number: int, compiler_path: str, tmp_path: Path
) -> None:
    recurrence = SHOWN[number]
    names = (*recurrence.parameters, *recurrence.inputs, *recurrence.states)
    x = np.random.default_rng(number).normal(0.3, 1.0, (50, len(names))).astype(np.float32)
    results = len(recurrence.states) + len(recurrence.outputs)
    arguments = ", ".join(f"x[{i}]" for i in range(len(names)))
    text = f"""
#include "host_shim.h"
#include "contract.cuh"
{definition(recurrence, LANGUAGES["cuda"])}
extern "C" __attribute__((visibility("default"))) void run(int n, const float* x, float* y) {{
    for (; n > 0; --n, x += {len(names)}, y += {results}) {{
        auto [{", ".join(f"r{i}" for i in range(results))}] = {recurrence.name}({arguments});
        {"".join(f"y[{i}] = r{i};" for i in range(results))}
    }}
}}
"""
    library = tmp_path / "shown.so"
    command = [compiler_path, *host.FLAGS, f"-I{KERNELS}", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=text, text=True, check=True)
    y = np.empty((len(x), results), np.float32)
    ctypes.CDLL(str(library)).run(len(x), x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
    with np.errstate(all="ignore"):
        states, outputs = numpy_function(recurrence)(*x.T)
    for i, column in enumerate((*states, *outputs)):
        np.testing.assert_array_equal(y[:, i], np.broadcast_to(column, len(x)).astype(np.float32), strict=True)
