"""Neurons of any equation: the bits of the reference, on every device and path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from stsbp_cpu.engine import block as sparse
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.plan import plan
from stsbp_spec.engine.rules import PassContext
from stsbp_spec.equations.assembly import COUNT, neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, Recurrence, named, snap, spike, variable, where
from stsbp_spec.models.neurons import ALIF, LIF, PLIF, NeuronModel
from stsbp_spec.models.neurons.base import Step
from stsbp_spec.models.surrogates import Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import PSP, AvgPool2d
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_torch.backend import TorchBackend
from stsbp_torch.engine.layout import TENSORS, rows
from stsbp_torch.nn import Neurons

REFERENCE = NumpyBackend()
FILTER = PSP(4, 2).filter(1.25)  # two states


@dataclass(frozen=True)
class Odd(NeuronModel):
    """Three states, one of them the old one of another, a root, a division of a constant, and named as others are."""

    name: ClassVar[str] = "odd"
    states: ClassVar[tuple[str, ...]] = ("i", "before", "u_")
    surrogate: Surrogate = field(default_factory=Triangle)

    def constants(self) -> Mapping[str, float]:
        return {"k": 0.8, "c": 0.1}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        v = named("v", snap(p.k * s.i + i / 3))
        root = named("root", 3 / (1 + abs(s.before)))
        u = named("u", snap(v * root - p.c * s.u_))
        o = spike(u, 0.4)
        return Step(u, o, {"i": where(o, v - (1 - p.k), v), "before": s.i, "u_": u})


NEURONS = {"lif": LIF(3, surrogate=Rectangle(0.7)), "alif": ALIF(3, beta=0.6, tau_a=9), "odd": Odd()}


@pytest.fixture(scope="module", params=["cpu", "cpu:eager"])
def backend(request: pytest.FixtureRequest) -> TorchBackend:
    return TorchBackend(request.param)


def _both(backend: AbstractBackend, neuron: NeuronModel, z: np.ndarray, g: np.ndarray) -> list[bytes]:
    """Spikes, everything kept, and the error, as bytes."""
    spikes, residuals = backend.neuron_forward(neuron, FILTER, backend.asarray(z), len(g))
    assert list(residuals.kept) == list(neuron_equations(FILTER, neuron).kept)
    dz = backend.neuron_backward(neuron, FILTER, residuals, backend.asarray(g))[0]
    if g.size > 500:
        assert 0.05 < backend.spike_rate(spikes) < 0.95
    return [np.ascontiguousarray(backend.numpy(x)).tobytes() for x in (spikes, *residuals.kept.values(), dz)]


@pytest.mark.parametrize("neuron", list(NEURONS.values()), ids=list(NEURONS))
@pytest.mark.parametrize(
    ("input_steps", "steps", "shape"),
    [(9, 9, (3, 5, 7, 11)), (1, 9, (2, 333)), (1, 1, (2, 40)), (6, 6, (1, 1)), (3, 3, (1, 1537))],
    ids=["images", "static", "one step", "one neuron", "more than a chunk"],
)
def test_bits_are_those_of_the_reference(
    backend: TorchBackend, neuron: NeuronModel, input_steps: int, steps: int, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(2)
    z = (4 * rng.standard_normal((input_steps, *shape)) + 3).astype(np.float32)
    g = rng.standard_normal((steps, *shape)).astype(np.float32)
    assert _both(backend, neuron, z, g) == _both(REFERENCE, neuron, z, g)


def test_a_derived_way_back_keeps_more_than_the_potential() -> None:
    """Without it the tests above would not see how kept values are stored."""
    assert [len(neuron_equations(FILTER, neuron).kept) for neuron in NEURONS.values()] == [1, 2, 3]


def test_what_is_written_past_the_caches_is_what_is_written_into_them() -> None:
    backend, n = TorchBackend("cpu"), 2**23 + 37
    z = torch.from_numpy(np.random.default_rng(0).random((2, 1, n), dtype=np.float32) * 3 - 1)
    spikes, residuals = backend.neuron_forward(ALIF(3, beta=0.6, tau_a=9), FILTER, z, 2)
    for a, b in ((0, n // 2), (n // 2, n)):
        part, parts = backend.neuron_forward(ALIF(3, beta=0.6, tau_a=9), FILTER, z[:, :, a:b], 2)
        assert torch.equal(part, spikes[:, :, a:b])
        for name, saved in parts.kept.items():
            assert torch.equal(saved, residuals.kept[name][:, :, a:b]), name


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("channels", [5, 32], ids=["scattered", "gathered"])
@pytest.mark.parametrize(
    "neuron", [NEURONS["lif"], NEURONS["alif"], PLIF(3, per="channel")], ids=["lif", "alif", "plif"]
)
def test_sparse_blocks_fire_and_propagate_the_same_bits(neuron: NeuronModel, channels: int, pool: int) -> None:
    net = NetworkSpec.parse(f"{channels}C3-P2-3", input_shape=(2, 9, 8), outputs=3, neuron=neuron)
    backend, block = TorchBackend("cpu"), net.blocks[0]
    rng = np.random.default_rng(4)
    s = backend.asarray((rng.random((7, 3, 2, 9, 8)) < 0.2).astype(np.uint8))
    wq, _ = backend.weight_grid(block, backend.asarray(rng.standard_normal((channels, 2, 3, 3)).astype(np.float32)))
    step = plan(backend, net.graph).steps[0]
    assert isinstance(step, sparse.SparseBlock)
    conv_input = step.conv_input(PassContext({}, 7, None, BatchSlice(0, s.shape[1], s.shape[1])), s)
    learned = {name: torch.rand(channels) for name in neuron.learned()}
    spikes, residuals = step.fire(conv_input, wq, FILTER, 7, learned)
    z, _ = backend.rule(block.synapse).forward(block.synapse, s.float(), wq)
    expected, dense_residuals = backend.neuron_forward(neuron, FILTER, z, 7, learned)
    assert torch.equal(spikes, expected)
    assert 0.05 < backend.spike_rate(spikes) < 0.95
    for name, saved in dense_residuals.kept.items():
        assert torch.equal(residuals.kept[name].view(torch.int32), saved.view(torch.int32)), name
    shape = (7, 3, channels, *(n // pool for n in block.output_shape[1:]))
    ds = backend.asarray(rng.standard_normal(shape).astype(np.float32))
    grad_spikes: torch.Tensor | sparse.PooledError = ds
    if pool > 1:
        layer = AvgPool2d(pool)
        grad_spikes = sparse.PooledError(TENSORS, ds, layer, tuple(spikes.shape))
        ds = backend.rule(layer).backward(layer, tuple(spikes.shape), ds)
    dz, _, terms = step.propagate(conv_input, residuals, grad_spikes, FILTER, need_error=True, need_weights=True)
    grad_sums, grad_learned = backend.neuron_backward(neuron, FILTER, dense_residuals, ds)
    assert torch.equal(dz.view(torch.int32), grad_sums.view(torch.int32))
    assert terms.keys() == grad_learned.keys() == neuron.learned().keys()
    for name, x in grad_learned.items():
        assert torch.equal(terms[name].view(torch.int32), x.view(torch.int32))


def test_the_module_takes_any_neuron() -> None:
    rng = np.random.default_rng(5)
    z, g = ((rng.standard_normal((8, 2, 30)) + 0.6).astype(np.float32) for _ in range(2))
    filter = PSP(3).filter()
    expected, residuals = REFERENCE.neuron_forward(ALIF(3, beta=0.6, tau_a=9), filter, z, 8)
    sums = torch.from_numpy(z).requires_grad_()
    spikes = Neurons(ALIF(3, beta=0.6, tau_a=9), PSP(3))(sums)
    assert np.array_equal(spikes.detach().numpy(), expected)
    spikes.backward(torch.from_numpy(g))
    assert sums.grad is not None
    assert (
        sums.grad.numpy().tobytes()
        == REFERENCE.neuron_backward(ALIF(3, beta=0.6, tau_a=9), filter, residuals, g)[0].tobytes()
    )


def test_kept_values_are_joined_without_a_copy_where_they_lie_together() -> None:
    tensors = TENSORS.end_to_end(3, (2, 3, 4, 5, 6))
    for i, x in enumerate(tensors):
        x.fill_(i)
    joined = TENSORS.concatenate(tensors)
    assert joined.shape == (3, 2, 360)
    assert joined.ctypes.data == tensors[0].data_ptr()
    assert [float(x.mean()) for x in joined] == [0, 1, 2]
    for apart in ([tensors[0], tensors[2]], [tensors[0], tensors[1].clone(), tensors[2]], tensors[::-1]):
        assert np.array_equal(TENSORS.concatenate(apart), np.stack([rows(x).numpy() for x in apart]))
    assert TENSORS.concatenate([]).shape[0] == 0


def test_numbers_of_an_equation_that_meet_are_float32(backend: TorchBackend) -> None:
    a, b, x = (variable(name) for name in "abx")
    equation = Recurrence("meet", ("a", "b"), ("x",), {}, {"y": (a * b) * x, "q": 3 / x, "r": (1 - a) + x})
    constants = {"a": np.float32(0.1), "b": np.float32(0.7)}
    values = np.random.default_rng(0).random((2, 500), dtype=np.float32) + np.float32(0.1)
    expected = REFERENCE.recur(equation, constants, {"x": values}, 2)
    outputs = backend.recur(equation, constants, {"x": backend.asarray(values)}, 2)
    for name, value in expected.items():
        assert backend.numpy(outputs[name]).tobytes() == value.tobytes(), name
    spikes = (values > 0.5).astype(np.uint8)
    counted = backend.recur(COUNT, {}, {"o": backend.asarray(spikes)}, 2, summed=("n",))["n"]
    assert np.array_equal(backend.numpy(counted), spikes.sum(0, keepdims=True))
