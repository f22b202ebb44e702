"""The sparse kernels: spikes bit for bit those of the dense path, gradients the same up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stsbp_cpu.engine import block as sparse
from stsbp_cpu.ops.sparse import needed
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.backend import Batch, ValueAndGrad
from stsbp_spec.engine.plan import plan, rule_of
from stsbp_spec.engine.rules import PassContext
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.models.surrogates import Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import Concat, Conv2d
from stsbp_spec.networks.spec import Block, NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, Precision
from stsbp_torch.backend import TorchBackend
from stsbp_torch.engine.layout import TENSORS
from stsbp_torch.ops import conv2d, conv2d_bytes

KINDS = {
    "dense": (0.0, 0.0, False),
    "bytes": (0.0, 0.0, True),
    "bytes, sparse gradient": (0.0, 2.0, True),
    "sparse gradient": (0.0, 2.0, False),
    "sparse": (2.0, 2.0, False),
}
"""Densities below which the forward pass and the gradient are sparse; whether dense sums may be of bytes."""
NETWORKS = [
    ("6C5-P2-32C3-3", "valid", (2, 17, 15)),  # scattered, then gathered; a column is left over by the pooling
    ("5C3p1d0.3-P4-48C3p2-3", "same", (1, 13, 18)),  # dropout before a pooling of 4, wide padding
    ("33C1-P2-D0.5-64C2-3", "valid", (3, 8, 9)),  # a 1 x 1 kernel, channels that are no whole vectors
    ("8C1-3", "valid", (1, 6, 5)),  # axes of length 1
    ("16C3-16C3s2-32C3-3", "same", (2, 12, 12)),  # a stride that only the dense path knows
]

USABLE = conv2d_bytes.usable


def _byte_products() -> bool:
    """Whether the processor has them; asked of the kernel, because the code under test may be wrong about it."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "avx512_vnni" in info.read_text().split()


def _choose(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    forward, gradient, of_bytes = KINDS[kind]
    if of_bytes and not _byte_products():
        pytest.skip("this processor has no products of bytes (avx512_vnni)")
    monkeypatch.setattr(conv2d_bytes, "usable", USABLE if of_bytes else lambda *_: False)
    monkeypatch.setattr(sparse, "FORWARD_BELOW", dict.fromkeys(sparse.FORWARD_BELOW, forward))
    monkeypatch.setattr(sparse, "GRADIENT_BELOW", gradient)


@pytest.mark.skipif(not _byte_products(), reason="this processor has no products of bytes (avx512_vnni)")
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("conv", "shape"),
    [(Conv2d(8, 3), (8, 8, 8)), (Conv2d(5, 2, stride=2, padding=1), (3, 9, 7)), (Conv2d(16, 1), (17, 4, 5))],
    ids=["3x3", "2x2 stride 2 padded", "1x1"],
)
def test_a_convolution_of_bytes_is_exact_and_taken_where_the_processor_has_it(
    conv: Conv2d, shape: tuple[int, int, int], scale: float
) -> None:
    assert conv2d_bytes.usable(conv, shape, conv2d_bytes.LARGEST)
    assert not conv2d_bytes.usable(conv, shape, conv2d_bytes.LARGEST + 1)
    rng = np.random.default_rng(3)
    s = torch.from_numpy(rng.integers(0, conv2d_bytes.LARGEST + 1, (2, 3, *shape)).astype(np.uint8))
    s = s.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    wq = torch.from_numpy(rng.integers(-2047, 2048, conv.weight_shape(shape)).astype(np.float32) / 1024)
    expected = conv2d.forward(conv, s.float() * scale, wq)[0]
    assert torch.equal(conv2d_bytes.forward(conv, conv2d_bytes.doubled(s), wq, scale), expected)


@pytest.mark.skipif(not _byte_products(), reason="this processor has no products of bytes (avx512_vnni)")
def test_sums_of_bytes_on_a_coarse_grid_do_not_overflow() -> None:
    """The sum of 140,800 inputs of 15 would need 32 bits in units of 2^-10."""
    conv, shape = Conv2d(1, 5), (5632, 5, 5)
    s = torch.full((1, 1, *shape), 15, dtype=torch.uint8)
    z = conv2d_bytes.forward(conv, conv2d_bytes.doubled(s), torch.ones(conv.weight_shape(shape)))
    assert z.item() == 15 * 5632 * 25


def _case(
    notation: str, padding: str, shape: tuple[int, ...], neuron: LIF | None = None
) -> tuple[NetworkSpec, dict[str, Float32], Batch]:
    network = NetworkSpec.parse(notation, input_shape=shape, padding=padding, neuron=neuron, input_max=3)
    rng = np.random.default_rng(5)
    weights = {
        name: (rng.standard_normal(size) * 4 / np.sqrt(np.prod(size[1:]))).astype(np.float32)
        for name, size in network.weight_shapes.items()
    }
    frames = rng.integers(0, 4, (6, 5, *shape)) * (rng.random((6, 5, *shape)) < 0.2)
    targets = rng.integers(0, 2, (6, 5, 3))
    return network, weights, Batch(frames.astype(np.uint8), targets.astype(np.uint8))


def _gradients(
    network: NetworkSpec,
    weights: dict[str, Float32],
    batch: Batch,
    dropout: tuple[int, int] | None,
    precision: Precision = "fast",
    device: str = "cpu",
) -> ValueAndGrad:
    loss = VanRossum()
    return TorchBackend(device).value_and_grad(network, loss, weights, batch, precision=precision, dropout=dropout)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
@pytest.mark.parametrize("dropout", [None, (3, 4)])
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case[0])
def test_sparse_kernels_agree_with_dense_ones(
    case: tuple[str, str, tuple[int, ...]], dropout: tuple[int, int] | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, weights, batch = _case(*case)
    _choose(monkeypatch, "dense")
    dense = _gradients(network, weights, batch, dropout)
    layers = TorchBackend("cpu").run(network, weights, batch.inputs, 6).layers
    rates = [layer.spikes.mean() for layer in layers.values()]
    assert all(0.01 < rate < 0.9 for rate in rates), rates
    _choose(monkeypatch, kind)
    sparse_ = _gradients(network, weights, batch, dropout)
    assert np.array_equal(sparse_.spikes, dense.spikes)
    assert sparse_.loss == dense.loss
    for name, expected in dense.gradients.items():
        error = np.abs(sparse_.gradients[name] - expected).max()
        assert error <= 2e-6 * np.abs(expected).max(), (name, error)
    for name, run in TorchBackend("cpu").run(network, weights, batch.inputs, 6).layers.items():
        assert np.array_equal(run.spikes, layers[name].spikes), name
        assert np.array_equal(run.potentials.view(np.uint32), layers[name].potentials.view(np.uint32)), name


@pytest.mark.parametrize("surrogate", [Triangle(0.6), Rectangle(1.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dropout", [None, (3, 4)])
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case[0])
def test_errors_that_are_not_needed_change_nothing(
    case: tuple[str, str, tuple[int, ...]],
    dropout: tuple[int, int] | None,
    surrogate: Surrogate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, weights, batch = _case(*case, neuron=LIF(surrogate=surrogate))
    calls: list[int] = []
    kernels = needed.kernels

    def counted(equation: Recurrence) -> needed.Kernels:
        def error(*arguments: Any) -> None:
            calls.append(1)
            kernels(equation).error(*arguments)

        return kernels(equation)._replace(error=error)

    monkeypatch.setattr(needed, "kernels", counted)
    monkeypatch.setattr(sparse, "ERROR_BELOW", dict.fromkeys(sparse.ERROR_BELOW, 0.0))
    dense = _gradients(network, weights, batch, dropout)
    assert not calls
    monkeypatch.setattr(sparse, "ERROR_BELOW", dict.fromkeys(sparse.ERROR_BELOW, 2.0))
    skipping = _gradients(network, weights, batch, dropout)
    assert bool(calls) is any(block.index > 0 and _deferrable(block) for block in network.blocks)
    assert skipping.loss == dense.loss
    for name, expected in dense.gradients.items():
        error = np.abs(skipping.gradients[name] - expected).max()
        assert error <= 2e-6 * np.abs(expected).max(), (name, error)


def _deferrable(block: Block) -> bool:
    synapse = block.synapse
    return isinstance(synapse, Conv2d) and synapse.channels % 16 == 0 and synapse.stride == 1


@pytest.mark.parametrize("kind", list(KINDS))
def test_reproducible_gradients_do_not_depend_on_the_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights, batch = _case(*NETWORKS[0])
    _choose(monkeypatch, kind)
    got = _gradients(network, weights, batch, None, "reproducible")
    expected = _gradients(network, weights, batch, None, "reproducible", "cpu:eager")
    for name, g in expected.gradients.items():
        assert np.array_equal(got.gradients[name].view(np.uint32), g.view(np.uint32)), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_kernels_stand_behind_layers_that_they_do_not_know(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights, batch = _case("16C3-M2-D0.2-16C3p1-U1x2-P2-8C3p1-P3-12C1x2-3", "valid", (2, 14, 14))
    steps = plan(TorchBackend("cpu"), network.graph).steps
    conv = [
        [bound_node.node.name for bound_node in step.bound_nodes]
        for step in steps
        if isinstance(step, sparse.SparseBlock)
    ]
    assert conv == [["conv1", "neurons1"], ["dropout2.1", "conv2", "neurons2"], ["pool3.1", "conv3", "neurons3"]]
    _choose(monkeypatch, kind)
    got = _gradients(network, weights, batch, (1, 2), "reproducible")
    expected = _gradients(network, weights, batch, (1, 2), "reproducible", "cpu:eager")
    assert got.loss == expected.loss
    for name, g in expected.gradients.items():
        assert g.any()
        assert np.array_equal(got.gradients[name].view(np.uint32), g.view(np.uint32)), name


def test_density_counts_what_is_left_behind_the_pooling() -> None:
    s = TorchBackend("cpu").asarray(np.zeros((3, 2, 4, 5, 6), np.uint8))
    s[1, 1, 2, 0, 1] = 3
    s[1, 1, 2, 1, 0] = 1
    s[2, 0, 0, 4, 4] = 1  # a row that a window of 2 does not reach
    assert sparse.ConvInput(s, 1, None, 0).density(TENSORS) == 3 / s.numel()
    assert sparse.ConvInput(s, 2, None, 0).density(TENSORS) == 1 / (3 * 2 * 4 * 2 * 3)


def test_the_share_of_spikes_chooses_the_kernels() -> None:
    network, weights, batch = _case(*NETWORKS[0])
    backend = TorchBackend("cpu")
    block = network.blocks[0]
    wq, _ = backend.weight_grid(block, backend.asarray(weights[block.name]))
    step = plan(backend, network.graph).steps[0]
    for frames, chosen in ((batch.inputs * 0, True), (batch.inputs | 1, False)):
        run = PassContext({block.name: wq}, 6, None, BatchSlice(0, frames.shape[1], frames.shape[1]))
        _, residuals = step.forward_slice(run, backend.asarray(frames))
        assert (isinstance(residuals, sparse.SparseBlockSaved) and residuals.sparse) is chosen


@pytest.mark.parametrize(
    "notation", ["6C3p1-[16C3p1|16C3p1]+-8-3", "6C3p1-[P2-16C3p1|P2-16C3p1]+-8-3", "6C3p1-[16C3p1]+-3"]
)
def test_errors_that_wait_are_added_where_several_convolutions_read(notation: str) -> None:
    """With a compact surrogate, a block hands its error on before the adjoint of its convolution."""
    if notation.endswith("1]+-3"):
        notation = notation.replace("6C3p1-", "16C3p1-")
    network, weights, batch = _case(notation, "valid", (2, 8, 8), LIF(3, 5 / 3, 0.5, surrogate=Triangle()))
    expected = NumpyBackend().value_and_grad(network, VanRossum(), weights, batch)
    result = TorchBackend("cpu").value_and_grad(network, VanRossum(), weights, batch)
    assert np.array_equal(result.spikes, expected.spikes)
    for name, gradient in expected.gradients.items():
        assert np.abs(gradient).max() > 0
        assert np.abs(result.gradients[name] - gradient).max() <= 2e-6 * np.abs(gradient).max(), name


CONCATENATED = "\n".join(
    f'[[node]]\nname = "{name}"\n{operation}\nfrom = {sources}'
    for name, operation, sources in (
        ("a", 'weights = "5C3p1"', '"input"'),
        ("one", 'neurons = ""', '"a"'),
        ("b", 'weights = "16C3p1"', '"one"'),
        ("two", 'neurons = ""', '"b"'),
        ("both", "concat = true", '["one", {node = "two", delay = 1}, "one"]'),
        ("c", 'weights = "16C3p1"', '"both"'),
        ("three", 'neurons = ""', '"c"'),
        ("out", 'weights = "3"', '"three"'),
        ("output", 'neurons = ""', '"out"'),
    )
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_of_concatenated_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse kernels read the concatenation, and the error that their block defers is applied before it is split."""
    _choose(monkeypatch, kind)
    applied, array = list[int](), sparse.DeferredError.array

    def noted(error: sparse.DeferredError[torch.Tensor]) -> torch.Tensor:
        applied.append(error.conv_input.s.shape[2])
        return array(error)

    monkeypatch.setattr(sparse.DeferredError, "array", noted)
    network, weights, batch = _case(CONCATENATED, "valid", (2, 8, 8), LIF(3, 5 / 3, 0.5, surrogate=Triangle()))
    expected = NumpyBackend().value_and_grad(network, VanRossum(), weights, batch)
    result = TorchBackend("cpu").value_and_grad(network, VanRossum(), weights, batch)
    assert result.spikes.any()
    assert np.array_equal(result.spikes, expected.spikes)
    for name, gradient in expected.gradients.items():
        assert np.abs(gradient).max() > 0
        assert np.abs(result.gradients[name] - gradient).max() <= 2e-6 * np.abs(gradient).max(), name
    assert applied[:1] == [26]


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_the_step_below_applies_the_adjoint_of_the_pooling_before_a_block(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, the error signal of a window is stored once instead of once for each of its pixels."""
    network, weights, batch = _case("6C3p1-P2-16C3p1-P2-8-3", "valid", (2, 8, 8), LIF(3, 5 / 3, 0.5))
    applied, array = list[int](), sparse.PooledError.array

    def noted(error: sparse.PooledError[torch.Tensor]) -> torch.Tensor:
        applied.append(error.d.shape[-1])
        return array(error)

    monkeypatch.setattr(sparse.PooledError, "array", noted)
    TorchBackend("cpu").value_and_grad(network, VanRossum(), weights, batch, precision=precision)
    # In `fast` precision, the sparse kernels read the error signal of a window.
    assert applied == ([] if precision == "fast" else [2, 4])


@pytest.mark.parametrize(
    "shapes", [((3, 4, 5), (4, 4, 5)), ((1, 4, 5), (1, 4, 5)), ((2, 1, 4), (16, 1, 4)), ((5,), (3,))]
)
def test_concatenated_channels_and_their_errors_have_the_layout_of_the_kernels(shapes: tuple[Any, ...]) -> None:
    """Otherwise, each kernel that reads them would copy them first."""
    backend, rng = TorchBackend("cpu"), np.random.default_rng(0)
    inputs = [backend.asarray(rng.random((3, 2, *shape)).astype(np.float32)) for shape in shapes]
    rule = rule_of(backend, Concat())
    output, residuals = rule.forward(Concat(), *inputs)
    for x in (output, *rule.backward(Concat(), residuals, output)):
        assert TENSORS.view(x).flags.c_contiguous
        assert TENSORS.laid_out(x).data_ptr() == x.data_ptr()
