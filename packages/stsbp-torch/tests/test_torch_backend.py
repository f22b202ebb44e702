"""The torch backend beyond the suite: the user's settings, chunks of reductions, devices, errors, spikes as bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from stsbp_spec import (
    LIF,
    AdamW,
    Batch,
    NetworkSpec,
    VanRossum,
    initial_weights,
    parse_surrogate,
)
from stsbp_spec.engine.operations import Operations
from stsbp_spec.errors import BackendError, NumericError
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Precision
from stsbp_torch import Network
from stsbp_torch.backend import TorchBackend
from stsbp_torch.engine.layout import laid_out
from stsbp_torch.ops.conv2d import exact_math
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = ["cpu", "cpu:eager"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(scope="module", params=DEVICES)
def backend(request: pytest.FixtureRequest) -> TorchBackend:
    return TorchBackend(request.param)


@pytest.fixture(scope="module")
def reference() -> NumpyBackend:
    return NumpyBackend()


def network(kind: str, tau: float = 3.0, surrogate: str = "arctan") -> NetworkSpec:
    neuron = LIF(tau, 5 / 3, 1.0, parse_surrogate(surrogate))
    if kind == "events":
        return NetworkSpec.parse("6C5p2s2-D0.3-P2-8C3d0.2-20", input_shape=(2, 22, 22), outputs=10, neuron=neuron)
    return NetworkSpec.parse(
        "6C3-D0.1-8C3-P2-8C3s2-20",
        input_shape=(3, 12, 12),
        outputs=10,
        neuron=neuron,
        coding="direct",
        padding="same",
        dropout=0.2,
    )


def batch(net: NetworkSpec, steps: int, samples: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    if net.coding == "direct":
        inputs = rng.integers(0, 256, (samples, *net.input_shape)).astype(np.uint8)
    else:
        inputs = (rng.random((steps, samples, *net.input_shape)) < 0.3).astype(np.uint8)
    targets = rng.random((steps, samples, net.outputs)) < 0.4
    return Batch(inputs, targets.astype(np.uint8))


def differing_bits(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float32
    return int((np.ascontiguousarray(a).view(np.uint32) != np.ascontiguousarray(b).view(np.uint32)).sum())


def test_bits_do_not_depend_on_the_users_precision_setting(reference: NumpyBackend) -> None:
    net = network("events", 3.0)
    weights, inputs = initial_weights(net, 1, 2.0), batch(net, 5, 2).inputs
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = TorchBackend("cpu").run(net, weights, inputs, 5)
    finally:
        torch.set_float32_matmul_precision(previous)
    expected = reference.run(net, weights, inputs, 5)
    for name, layer in expected.layers.items():
        assert differing_bits(layer.potentials, got.layers[name].potentials) == 0


@pytest.mark.parametrize("scale", [1.0, 2.0**-101])
def test_error_grid_of_more_than_one_chunk(backend: TorchBackend, reference: NumpyBackend, scale: float) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((3, 2, 7, 60, 41)) * np.exp(8 * rng.standard_normal((3, 2, 7, 60, 41)))
    wide[rng.random(wide.shape) < 0.1] = 0
    dz = (wide * (scale / np.abs(wide).max())).astype(np.float32)
    expected, numbers = reference.error_grid(dz, 28)
    on_grid, counts = backend.error_grid(backend.asarray(dz), 28)
    assert np.array_equal(backend.numpy(on_grid), expected)
    assert backend.numpy(counts).reshape(-1, 2).sum(axis=0).tolist() == numbers.tolist()
    assert 0 < numbers[0] <= numbers[1] < dz.size


def test_pairs_leave_their_arguments_alone(backend: TorchBackend) -> None:
    net = network("events")
    block = net.blocks[0]
    rng = np.random.default_rng(0)
    z = backend.asarray(rng.standard_normal((5, 2, 6, 11, 11)).astype(np.float32))
    errors = backend.asarray(rng.standard_normal((5, 2, 6, 11, 11)).astype(np.float32))
    copies = [backend.numpy(x).copy() for x in (z, errors)]
    _, residuals = backend.neuron_forward(block.neuron, net.blocks[1].filter(training=False), z, 5)
    backend.neuron_backward(block.neuron, net.blocks[1].filter(training=False), residuals, errors)[0]
    backend.error_grid(errors, 12)
    for x, y in zip((z, errors), copies, strict=True):
        assert np.array_equal(backend.numpy(x), y)


def test_a_learning_rate_that_explodes_names_step_and_layer() -> None:
    net = network("events")
    trainer = TorchBackend("cpu").trainer(net, VanRossum(), AdamW(lr=1e38))
    state = trainer.init(initial_weights(net, 1, 2.0))

    def train() -> None:
        current = state
        for step in range(5):
            current, _ = trainer.step(current, batch(net, 5, 2, seed=step))

    with pytest.raises(NumericError, match="layer"):
        train()


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:fast"])
def test_an_unknown_device_is_an_error(device: str) -> None:
    with pytest.raises(BackendError, match="cpu"):
        TorchBackend(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_says_why() -> None:
    with pytest.raises(BackendError, match="use --device cpu"):
        TorchBackend("cuda")
    assert any(d.name == "cuda" and d.problem for d in TorchBackend.devices())


@pytest.mark.parametrize("count", [1000, 1001, 1003, 1007])
def test_bits_of_spikes_are_those_that_numpy_packs(count: int) -> None:
    s = torch.from_numpy((np.random.default_rng(0).random(count) < 0.3).astype(np.uint8))
    packed = torch.from_numpy(np.packbits(s.numpy()))
    backend = TorchBackend("cpu")
    assert torch.equal(backend.pack_spikes(s)[0], packed)
    assert torch.equal(backend.unpack_spikes((packed, s.shape)), s)
    assert torch.equal(backend.arithmetic.pack(s), packed)
    assert torch.equal(backend.arithmetic.unpack(packed, count), s)


@pytest.mark.parametrize("shape", [(25, 3, 2, 5, 4), (8, 2, 1, 3, 3), (9, 3, 7)])
def test_frames_of_a_batch_are_unpacked_on_any_device_alike(shape: tuple[int, ...]) -> None:
    frames = (np.random.default_rng(1).random(shape) < 0.4).astype(np.uint8)
    packed = PackedFrames.of(frames)
    backend = TorchBackend("cpu")
    for unpacked in (laid_out(Operations.unpack(backend, packed)), backend.unpack(packed)):
        assert np.array_equal(unpacked.numpy(), frames)
        assert unpacked.data_ptr() == laid_out(unpacked).data_ptr(), "it lies as the kernels read it"


def test_frames_that_lie_channels_last_are_not_copied() -> None:
    frames = np.moveaxis(np.ones((4, 3, 5, 6, 2), np.uint8), -1, 2)
    assert np.shares_memory(TorchBackend("cpu").asarray(frames).numpy(), frames)


def test_arrays_that_are_views_in_reverse_are_read() -> None:
    """With one sample, numpy calls such a view contiguous."""
    for frames in (np.arange(12, dtype=np.uint8).reshape(4, 1, 3), np.ones((4, 1, 3, 5, 6), np.uint8)):
        assert np.array_equal(TorchBackend("cpu").asarray(frames[:, ::-1]).numpy(), frames)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The precision that matrix products and convolutions are computed in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.convolution")):
            kind = _ONEDNN.conv if "convolution" in name else _ONEDNN.matmul
            self.seen.setdefault(name.split(".")[1], set()).add(kind.fp32_precision)
        return func(*args, **(kwargs or {}))


_ONEDNN: Any = torch.backends.mkldnn


@pytest.mark.parametrize("device", ["cpu", "cpu:eager"])
def test_sums_are_exact_without_onednn(device: str) -> None:
    """Without oneDNN, torch would take NNPACK, which transforms inputs and weights of some shapes."""
    net = NetworkSpec.parse("16C3-16C3", input_shape=(3, 16, 16), outputs=4, coding="direct")
    weights, images = initial_weights(net, 0, 1.0), np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16))
    inputs = images.astype(np.uint8)
    expected = NumpyBackend().run(net, weights, inputs, 3)
    with _ONEDNN.flags(enabled=False):
        result = TorchBackend(device).run(net, weights, inputs, 3)
    for name, layer in expected.layers.items():
        assert differing_bits(layer.potentials, result.layers[name].potentials) == 0
    assert torch._C._get_nnpack_enabled()


def test_an_environment_that_rounds_convolutions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"):
        monkeypatch.setenv(name, "strict")
        TorchBackend("cpu")
        monkeypatch.setenv(name, "BF16")
        for device in ("cpu", "cpu:eager"):
            with pytest.raises(
                BackendError, match=f"'{device}': the environment variable {name}=BF16 allows oneDNN to"
            ):
                TorchBackend(device)
        assert all(name in (device.problem or "") for device in TorchBackend.devices()[:2])
        monkeypatch.delenv(name)


@pytest.fixture
def bfloat16() -> Iterator[None]:
    """A process whose float32 products may be computed in bf16."""
    kinds = (_ONEDNN.matmul, _ONEDNN.conv)
    previous = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "bf16"
    yield
    for kind, precision in zip(kinds, previous, strict=True):
        kind.fp32_precision = precision


@pytest.mark.parametrize("device", ["cpu", "cpu:eager"])
@pytest.mark.usefixtures("bfloat16")
def test_no_product_takes_a_reduced_precision_of_the_process(device: str) -> None:
    """bf16, or TF32 on CUDA, would take fast gradients out of their bound."""
    net = NetworkSpec.parse("5C3s2-6C3-12", input_shape=(2, 11, 12), outputs=5)
    with _Products() as products:
        TorchBackend(device).value_and_grad(net, VanRossum(), initial_weights(net, 1, 2.0), batch(net, 5, 3, 1))
    assert set(products.seen) == {"mm", "convolution", "convolution_backward"}
    assert all(precisions == {"ieee"} for precisions in products.seen.values()), products.seen


@pytest.mark.usefixtures("bfloat16")
def test_a_step_leaves_the_precision_of_the_process_as_it_was_also_after_an_error() -> None:
    net = NetworkSpec.parse("5C3s2-12", input_shape=(2, 11, 12), outputs=5)

    def failing(backend: Any) -> None:
        assert _ONEDNN.matmul.fp32_precision == "ieee"
        raise ZeroDivisionError

    backend = TorchBackend("cpu")
    with pytest.raises(ZeroDivisionError):
        backend.compiled(failing)()
    assert _ONEDNN.matmul.fp32_precision == "bf16"
    with _Products() as products:
        backend.value_and_grad(net, VanRossum(), initial_weights(net, 1, 2.0), batch(net, 5, 3, 1))
    assert all(precisions == {"ieee"} for precisions in products.seen.values()), products.seen
    assert _ONEDNN.matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("device", ["cpu", "cpu:eager"])
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_the_cpu_takes_no_memory_of_the_default_device(device: str, precision: Precision) -> None:
    for notation, shape in (("80-70", (50,)), ("32C3-P2", (2, 9, 9))):
        net = NetworkSpec.parse(notation, input_shape=shape, outputs=4)
        arguments = initial_weights(net, 0, 1.5), batch(net, 20, 10)
        expected = TorchBackend(device).value_and_grad(net, VanRossum(), *arguments, precision=precision)
        with torch.device("meta"):
            result = TorchBackend(device).value_and_grad(net, VanRossum(), *arguments, precision=precision)
            module = Network(net, weights=arguments[0], precision=precision)
            spikes = module(torch.from_numpy(arguments[1].inputs))
        assert result.loss == expected.loss
        assert np.array_equal(spikes.detach().numpy(), expected.spikes)
        for name, gradient in expected.gradients.items():
            assert np.array_equal(result.gradients[name], gradient), name


@pytest.mark.usefixtures("bfloat16")
def test_a_thread_that_ends_leaves_the_exact_sums_of_others_alone() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with exact_math():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with exact_math():
        leave.set()
        thread.join()
        assert _ONEDNN.conv.fp32_precision == "ieee"
    assert _ONEDNN.conv.fp32_precision == "bf16"


_FORK = """
import os, signal, sys
import numpy as np, torch
from stsbp_spec import NetworkSpec, initial_weights
from stsbp_spec.errors import BackendError
from stsbp_torch.backend import TorchBackend

network = NetworkSpec.parse("600", input_shape=(600,), outputs=2)
weights, frames = initial_weights(network, 1), np.ones((4, 3, 600), np.uint8)

def compute():
    TorchBackend("cpu:eager").run(network, weights, frames, 4)

torch.set_num_threads(2)
if sys.argv[1] != "before":
    compute()
if (child := os.fork()) == 0:
    signal.alarm(20)
    if sys.argv[1] == "one thread":
        torch.set_num_threads(1)
    try:
        compute()
    except BackendError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
status = os.waitpid(child, 0)[1]
compute()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("when", ["before", "after", "one thread"])
def test_eager_expressions_in_a_forked_process_run_or_raise(when: str) -> None:
    """torch would wait for ever for threads of GNU OpenMP, which a fork has not."""
    run = subprocess.run([sys.executable, "-c", _FORK, when], capture_output=True, text=True, timeout=300)
    # Other libraries of threads than GNU OpenMP work in forks.
    assert run.returncode in ((0, 3) if when == "after" else (0,)), run.stderr
    assert run.returncode == 0 or "Start processes that compute with multiprocessing.get_context('spawn')" in run.stdout
