"""Kernels of stsbp_cpu in JAX's programs: the bits of XLA's own code, which other devices run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stsbp_cpu.engine.threads import get_num_threads, set_num_threads
from stsbp_jax import apply
from stsbp_jax.backend import OPERATIONS, JaxBackend
from stsbp_jax.contract.grid import describe_grid
from stsbp_jax.engine import on_cpu
from stsbp_jax.engine.compiling import as_one
from stsbp_spec import LIF, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.engine import plan as plans
from stsbp_spec.engine.rules import Deferred
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.models.optim import SGD, AdamW
from stsbp_spec.models.surrogates import Triangle
from stsbp_spec.networks.ops import batchnorm
from stsbp_spec.typing import AnyArray, Coding, Precision

KERNELS, XLA = JaxBackend("cpu"), JaxBackend("cpu:xla")
NARROW = LIF(3, threshold=0.4, surrogate=Triangle(0.5))
NETWORKS: dict[str, tuple[str, Coding, Any]] = {
    "blocks that defer": ("16C3p1-P2-16C3p1-32C3", "events", NARROW),
    "several readers": ("16C3p1-[P2-16C3p1|P2-16C3p1]+-[16C3p1]+", "events", NARROW),
    "pooling and dropout": ("12C3-P2-D0.3-16C3-D0.2-P2", "events", LIF(2, threshold=0.4)),
    "geometry": ("6C3s2p1-8C3p1{groups=2}-M2-U2-7", "events", LIF(2, threshold=0.4)),
    "learned, direct": ("8C3p1b-P2-8C3-20b", "direct", PLIF(2, threshold=0.4)),
    "normalised": ("8C3p1bn-P2-16C3bn", "events", LIF(2, threshold=0.4)),
    "recurrent": ("6C3-P2-13R-9{recurrent=one-to-one}", "events", LIF(2, threshold=0.1)),
}


def _case(name: str) -> tuple[NetworkSpec, dict[str, AnyArray], Batch[Any]]:
    notation, coding, neuron = NETWORKS[name]
    network = NetworkSpec.parse(notation, input_shape=(2, 10, 10), outputs=4, coding=coding, neuron=neuron)
    rng = np.random.default_rng(len(name))
    if coding == "events":
        inputs = (rng.random((6, 5, 2, 10, 10)) < 0.3).astype(np.uint8)
    else:
        inputs = rng.integers(0, 256, (5, 2, 10, 10), dtype=np.uint8)
    return network, initial_weights(network, 1), Batch(inputs, (rng.random((6, 5, 4)) < 0.3).astype(np.uint8))


@contextmanager
def _by(kernels: bool) -> Iterator[None]:
    """`apply` and the layer functions by kernels, or by XLA's own code."""

    def forget() -> None:
        plans._plan.cache_clear()
        jax.clear_caches()  # type: ignore[no-untyped-call]

    previous = OPERATIONS._on_cpu
    vars(OPERATIONS)["_on_cpu"] = kernels
    forget()
    try:
        yield
    finally:
        vars(OPERATIONS)["_on_cpu"] = previous
        forget()


QUICK = "recurrent"
"""The other networks are in `nox -s long`. XLA's own code is held against the spec by `nox -s xla` and, with gradients
of convolutions, pooling and dropout, below."""


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (QUICK, "reproducible"),
        *(
            pytest.param(name, "reproducible", marks=pytest.mark.long)
            for name in NETWORKS
            if name not in (QUICK, "several readers")
        ),
        ("several readers", "fast"),
        *(pytest.param(name, "fast", marks=pytest.mark.long) for name in ("blocks that defer", "pooling and dropout")),
    ],
)
def test_steps_have_the_bits_of_xlas_own_code(name: str, precision: Precision) -> None:
    network, weights, batch = _case(name)
    arguments = (network, VanRossum(), weights, batch)
    ours, theirs = (b.value_and_grad(*arguments, precision=precision, dropout=(3, 4)) for b in (KERNELS, XLA))
    assert ours.spikes.any()
    assert np.array_equal(ours.spikes, theirs.spikes)
    for key, x in theirs.gradients.items():
        assert x.any(), key
        if precision == "reproducible":
            assert ours.gradients[key].tobytes() == x.tobytes(), key
        else:
            assert np.abs(ours.gradients[key] - x).max() <= 2e-5 * np.abs(x).max(), key


X, ROW = np.ones((5, 3, 7), np.float32), np.ones(7, np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda of: of.updated(AdamW().scalars(1, np.float32(1)), None, *map(jnp.asarray, (ROW, ROW, ROW, ROW))),
        lambda of: of.updated(SGD().scalars(1, np.float32(1)), None, *map(jnp.asarray, (ROW, ROW, ROW))),
        lambda of: of.channelwise(batchnorm.FORWARD, {"z": jnp.asarray(X)}, {"mean": ROW, "a": ROW, "shift": ROW}),
        lambda of: of.sample_grid(jnp.asarray(X), 20),
        lambda of: of.error_grid(jnp.asarray(X), 20),
        lambda of: of.gradient_squares([jnp.asarray(X)]),
        lambda of: of.spike_count(jnp.asarray(X.astype(np.uint8))),
    ],
    ids=["update", "update of SGD", "normalised", "grid of a sample", "grid", "squares", "count"],
)
def test_only_the_device_cpu_calls_kernels(call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(on_cpu, "_call", refused)
    call(XLA)
    with pytest.raises(AssertionError, match="a kernel was called"):
        call(KERNELS)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("pooling and dropout", "mapped"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("pooling and dropout", "compiled"), ("recurrent", "mapped"), ("recurrent", "compiled"))
        ),
    ],
)
def test_apply_has_the_bits_of_xlas_own_code_however_it_is_transformed(name: str, way: str) -> None:
    network, weights, batch = _case(name)
    steps = len(batch.targets)

    def objective(weights: Any, inputs: Any) -> Any:
        spikes = apply(network, weights, inputs, steps, dropout=(3, 4), precision="reproducible")
        return jnp.square(spikes - 0.25).sum(), spikes

    slope = jax.grad(objective, has_aux=True)
    both = jnp.stack([jnp.asarray(batch.inputs), jnp.asarray(batch.inputs[::-1].copy())])
    ways: dict[str, Any] = {
        "compiled": lambda: jax.jit(slope)(weights, batch.inputs),
        "mapped": lambda: jax.jit(jax.vmap(slope, in_axes=(None, 0)))(weights, both),
    }
    leaves: list[Any] = []
    for kernels in (True, False):
        with _by(kernels):
            leaves.append(jax.tree.leaves(ways[way]()))
    assert any(np.asarray(x).any() for x in leaves[0])
    for ours, theirs in zip(*leaves, strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_blocks_are_one_call_each_way_and_hand_errors_on_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights, batch = _case("blocks that defer")
    calls: list[str] = []
    call = on_cpu._call

    def counted(function: Any, *arguments: Any, **fixed: Any) -> Any:
        calls.append(function.__name__)
        return call(function, *arguments, **fixed)

    monkeypatch.setattr(on_cpu, "_call", counted)
    handed: list[Any] = []
    apart = on_cpu._split_error

    def noted(error: Any) -> Any:
        handed.append(error)
        return apart(error)

    monkeypatch.setattr(on_cpu, "_split_error", noted)
    fresh = JaxBackend("cpu")
    fresh.value_and_grad(network, VanRossum(), weights, batch, precision="fast", dropout=None)
    assert calls.count("_block_fired") == calls.count("_block_backward") == 3
    assert sum(isinstance(error, Deferred) for error in handed) == 2


def test_operations_by_themselves_stay_where_their_arguments_are() -> None:
    device = jax.devices()[0]
    s = jnp.ones((2, 3, 4), jnp.uint8)
    free = OPERATIONS.psp_forward(LIF(2).psp, s)
    assert not free.committed
    bound = OPERATIONS.psp_forward(LIF(2).psp, jax.device_put(s, device))
    assert bound.committed
    assert bound.devices() == {device}
    assert np.array_equal(free, bound)


def test_results_of_operations_by_themselves_have_memory_of_their_own() -> None:
    x = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
    same = on_cpu._call(_given_back, on_cpu._shape_dtype(x.shape), x)
    assert same.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
    assert np.array_equal(same, x)


def _given_back(x: AnyArray) -> AnyArray:
    return x


@pytest.mark.parametrize("threads", [1, get_num_threads()])
def test_kernels_of_a_program_take_the_threads_of_whoever_made_it(threads: int) -> None:
    previous = get_num_threads()
    set_num_threads(threads)
    try:
        counts = jax.jit(lambda x: on_cpu._call(_threads, on_cpu._shape_dtype((1,), np.int32), x))(
            np.zeros(1, np.float32)
        )
    finally:
        set_num_threads(previous)
    assert int(counts[0]) == threads


def _threads(x: AnyArray) -> AnyArray:
    return np.array([get_num_threads()], np.int32)


def test_a_call_outside_of_a_jit_takes_the_threads_that_are_set_and_raises_the_hosts_errors() -> None:
    counted = as_one(0)(lambda x: on_cpu._call(_threads, on_cpu._shape_dtype((1,), np.int32), x))
    failing = as_one(0)(lambda x: on_cpu._call(_failing, on_cpu._shape_dtype((1,), np.int32), x))
    previous = get_num_threads()
    try:
        for threads in {1, previous}:
            set_num_threads(threads)
            assert int(counted(np.zeros(1, np.float32))[0]) == threads
    finally:
        set_num_threads(previous)
    with pytest.raises(MemoryError, match=r"^too much$"):
        failing(np.zeros(1, np.float32))


def _failing(x: AnyArray) -> AnyArray:
    raise MemoryError("too much")


@pytest.mark.parametrize(("inputs", "most"), [(3, 1), (1000, 255), (1000, 2**20)], ids=["fine", "coarser", "none"])
def test_weights_have_the_grid_of_xlas_own_code(inputs: int, most: int) -> None:
    layer = NetworkSpec.parse("5", input_shape=(inputs,), outputs=2).blocks[0]
    layer = replace(layer, input=replace(layer.input, maximum=most))
    choose = [jax.jit(partial(backend.choose_grid, layer)) for backend in (KERNELS, XLA)]
    w = np.random.default_rng(0).uniform(0.5, 1.0, (5, inputs)).astype(np.float32)
    bits = set()
    for scale in (1.0, 0.0, -(2.0**-110), 2.0**104, np.nan):
        other = w.copy()
        other[2, 1] *= np.float32(scale)
        for weights in (other, w * np.float32(scale)):
            (ours, our_grid), (theirs, their_grid) = (grid_of(weights) for grid_of in choose)
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
            grid = describe_grid(layer, our_grid)
            assert grid == describe_grid(layer, their_grid)
            assert np.isnan(ours).any() == (grid is None)
            bits.add(grid and grid.bits)
    assert len(bits) == (2 if most == 2**20 else 3)
