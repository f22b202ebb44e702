"""The modules under torch's transformations: the bits of ordinary calls, or one sentence that says what to do."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stsbp_torch
import torch
from stsbp_spec import Hamming, Loss, SpikeCount, initial_weights
from stsbp_spec.equations.assembly import loss_padding
from stsbp_spec.errors import NetworkError, ShapeError, SpecError
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_torch import (
    ALIF,
    IF,
    LIF,
    PLIF,
    PSP,
    Network,
    NetworkSpec,
    Sequential,
    SpikingAvgPool2d,
    SpikingConv2d,
    SpikingLinear,
    VanRossum,
    spike_loss,
)
from stsbp_torch.engine.segments import registered
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

SPEC = NetworkSpec.parse("4C3d0.2-P2-6{neuron=plif}", input_shape=(2, 8, 8), outputs=3)
LOSS, FILTER = VanRossum(), PSP(4)


def samples(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = (torch.rand(*shape, 2, 8, 8, generator=generator) < 0.3).float()
    return frames, (torch.rand(*shape, 3, generator=generator) < 0.4).float()


def layers() -> torch.nn.Module:
    torch.manual_seed(0)
    conv = SpikingConv2d(2, 4, 3, neuron=LIF(5, 3), bias=True)
    return torch.nn.Sequential(conv, SpikingAvgPool2d(2), SpikingLinear(36, 3, psp=PSP(3), input_exponent=2))


def objective(net: torch.nn.Module, frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return spike_loss(LOSS, net(frames), targets, psp=FILTER)


def gradients(loss: torch.Tensor, net: torch.nn.Module) -> dict[str, torch.Tensor]:
    values = torch.autograd.grad(loss, list(net.parameters()))
    return dict(zip((name for name, _ in net.named_parameters()), values, strict=True))


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, x in expected.items():
        assert x.any(), name
        assert torch.equal(actual[name], x), name


@pytest.mark.parametrize("make", [lambda: Network(SPEC), layers], ids=["network", "layers"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_modules_have_the_bits_of_others(make: Callable[[], torch.nn.Module], compiler: str) -> None:
    """Two calls: in training mode each has masks of its own, and no call compiles anew."""
    if compiler == "inductor" and (make is layers or shutil.which("g++") is None):
        pytest.skip("once is enough, where there is a C++ compiler")
    torch._dynamo.reset()
    frames, targets = samples(5, 2)
    plain, traced = make(), make()
    compiled = torch.compile(objective, fullgraph=True, backend=compiler)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            expected, loss = objective(plain, frames, targets), compiled(traced, frames, targets)
            assert loss == expected
            assert_equal(gradients(loss, traced), gradients(expected, plain))


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_network_has_the_bits_of_the_module(training: bool) -> None:
    net, same = Network(SPEC).train(training), Network(SPEC).train(training)
    batch = torch.export.Dim("batch")
    program = torch.export.export(same, (samples(5, 2)[0],), dynamic_shapes=({1: batch},)).module()
    for count in (2, 3):
        frames, _ = samples(5, count)
        assert torch.equal(program(frames), net(frames))


def test_a_program_of_a_network_that_nobody_made_is_refused() -> None:
    with pytest.raises(
        SpecError, match="was not created in this process; before running it, create the exported module"
    ):
        registered({}, "0123")
    code = torch.export.export(Network(SPEC).eval(), (samples(5, 2)[0],)).graph_module.code
    assert code.count("torch.ops.stsbp.segment.default") == 3


@pytest.mark.parametrize("make", [lambda: Network(SPEC), layers], ids=["network", "layers"])
def test_mapped_modules_have_the_bits_of_each(make: Callable[[], torch.nn.Module]) -> None:
    net, (frames, targets) = make().eval(), samples(5, 4, 2)
    parameters = {name: x.detach() for name, x in net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return spike_loss(LOSS, functional_call(net, parameters, (frames,)), targets, psp=FILTER)

    assert torch.equal(vmap(net, 1)(frames), torch.stack([net(sample) for sample in frames.unbind(1)]))
    mapped = vmap(grad(loss), (None, 1, 1))(parameters, frames, targets)
    for i in range(4):
        expected = gradients(objective(net, frames[:, i], targets[:, i]), net)
        assert_equal({name: x[i] for name, x in mapped.items()}, expected)
    # Several networks at once.
    several = {name: torch.stack([x, x.flip(0), 0.5 * x]) for name, x in parameters.items()}
    spikes = vmap(lambda expected: functional_call(net, expected, (frames[:, 0],)))(several)
    for i in range(3):
        one = functional_call(net, {name: x[i] for name, x in several.items()}, (frames[:, 0],))
        assert torch.equal(spikes[i], one)


@pytest.mark.parametrize("loss", [VanRossum(), Hamming(), SpikeCount()], ids=lambda loss: loss.name)
def test_a_loss_leaves_out_what_comes_after_a_samples_length(loss: Loss) -> None:
    rng, numpy = np.random.default_rng(0), NumpyBackend()
    s, y = (rng.integers(0, 2, (7, 4, 3)).astype(np.uint8) for _ in range(2))
    spikes, targets = torch.from_numpy(s).float().requires_grad_(), torch.from_numpy(y).float()
    lengths_of_calls = torch.tensor([[7, 2, 5, 1], [7, 7, 7, 7], [3, 4, 6, 2]])
    mapped = vmap(grad(lambda s, n: spike_loss(loss, s, targets, psp=FILTER, lengths=n)), (None, 0))
    mapped_gradients = mapped(spikes.detach(), lengths_of_calls)
    for lengths, mapped_gradient in zip(lengths_of_calls, mapped_gradients, strict=True):
        value = spike_loss(loss, spikes, targets, psp=FILTER, lengths=lengths)
        n = lengths.numpy()
        assert value.item() == np.float32(loss.mean(s, y, FILTER, n))
        expected = numpy.loss_error(loss, FILTER, s, y, 4, loss_padding(loss, FILTER, n, 4, s.shape))
        (gradient,) = torch.autograd.grad(value, spikes)
        assert np.array_equal(gradient.numpy(), expected)
        assert np.array_equal(mapped_gradient.numpy(), expected)
    with pytest.raises(ShapeError, match="lengths must be from 1 to 7, the number of steps; sample 1 has 8"):
        spike_loss(loss, spikes, targets, psp=FILTER, lengths=torch.tensor([7, 8, 1, 1]))
    with pytest.raises(ShapeError, match=r"lengths must be integers \[B\] = \[4\]"):
        spike_loss(loss, spikes, targets, psp=FILTER, lengths=torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: Network(SPEC), layers], ids=["network", "layers"])
def test_autocast_changes_no_bit(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> None:
    (frames, targets), net, same = samples(5, 2), make(), make()
    expected = objective(net, frames, targets)
    with torch.autocast("cpu", dtype=dtype):
        loss = objective(same, frames.to(dtype), targets)
    assert loss == expected
    assert_equal(gradients(loss, same), gradients(expected, net))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
def test_spikes_of_any_type_are_the_same_spikes(dtype: torch.dtype) -> None:
    frames, _ = samples(5, 2)
    for net in (Network(SPEC).eval(), layers()):
        assert torch.equal(net(frames.to(dtype)), net(frames))
    with pytest.raises(ShapeError, match="must be spikes, 0 or 1"):
        Network(SPEC)(frames.double() + 2.0**-60 * (frames == 0))


def test_gradients_come_in_the_type_of_the_inputs() -> None:
    frames = samples(5, 2)[0].double().requires_grad_()
    Network(SPEC)(frames).sum().backward()
    assert frames.grad is not None
    assert frames.grad.dtype == torch.float64
    assert frames.grad.any()


@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
def test_parameters_of_another_type_are_refused(cast: str) -> None:
    frames, _ = samples(5, 2)
    for net in (Network(SPEC), layers(), PLIF()):
        inputs = torch.ones(5, 2, 4) if isinstance(net, PLIF) else frames
        with pytest.raises(
            SpecError, match=r"parameters of \w+ must be float32, .* do not call .double\(\), .half\(\) and the"
        ):
            getattr(net, cast)()(inputs)
    with pytest.raises(SpecError, match=r"LIF computes in float32 and would round sums in float64: give .float\(\)"):
        LIF()(torch.ones(5, 2, 4).double())


def test_second_derivatives_are_refused() -> None:
    net, (frames, targets) = Network(SPEC).eval(), samples(5, 2)
    loss = objective(net, frames, targets)
    with pytest.raises(SpecError, match=r"second derivatives are not defined, .* leave create_graph=True out"):
        torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    spikes = net(frames)
    with pytest.raises(SpecError, match="second derivatives are not defined"):
        torch.autograd.grad(spikes.sum(), list(net.parameters()), create_graph=True)
    parameters = {name: x.detach() for name, x in net.named_parameters()}

    def slope(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        first = grad(lambda weights: functional_call(net, weights, (frames,)).sum())(parameters)
        value: torch.Tensor = first["conv1.weight"].sum()
        return value

    with pytest.raises(SpecError, match="second derivatives are not defined"):
        grad(slope)(parameters)


def test_two_ways_back_through_one_graph_give_the_same() -> None:
    net, (frames, targets) = Network(SPEC).eval(), samples(5, 2)
    loss = objective(net, frames, targets)
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_network_begins_with_given_weights() -> None:
    weights = {name: x + np.float32(0.125) for name, x in initial_weights(SPEC, 3).items()}
    net = Network(SPEC, weights=weights)
    assert {name: x.tolist() for name, x in net.named().items()} == {name: x.tolist() for name, x in weights.items()}
    weights["conv1"][0] = 0
    assert net.named()["conv1"][0].any()
    with pytest.raises(ShapeError, match=r"weights must have the layers conv1, linear2, linear2.decay, linear3, got"):
        Network(SPEC, weights={"conv1": weights["conv1"]})


CONV = SpikingConv2d(2, 4, 3)


@pytest.mark.parametrize(
    ("layers", "settings", "message"),
    [
        ([CONV], {"input_max": 3}, "layer 0, SpikingConv2d: .* up to 3: give input_exponent=0, input_max=3"),
        ([CONV, SpikingLinear(144, 3)], {}, r"layer 1, SpikingLinear: .* filter PSP\(tau_s=4.0\), but it has psp=None"),
        ([CONV, SpikingAvgPool2d(2), SpikingLinear(36, 3, psp=PSP(4))], {}, "layer 2, .*give input_exponent=2"),
        ([CONV, SpikingLinear(36, 3, psp=PSP(4))], {}, r"layer 1.*has weights \(3, 144\), got \(3, 36\)"),
        ([CONV, torch.nn.Sigmoid()], {}, "layer 1, Sigmoid: the range of its outputs is unknown"),
        ([LIF()], {}, "layer 0, LIF: Neurons takes weighted sums"),
        ([SpikingConv2d(2, 4, 9)], {}, "layer 0, SpikingConv2d: .*kernel"),
        ([SpikingLinear(128, 3, input_exponent=20)], {"input_exponent": 20}, "layer 0.*cannot be exact in float32"),
    ],
)
def test_layers_that_do_not_fit_are_refused_when_they_are_put_together(
    layers: list[torch.nn.Module], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(NetworkError, match=message):
        Sequential(*layers, input_shape=(2, 8, 8), **settings)


def test_layers_put_together_have_the_bits_of_a_network() -> None:
    spec = NetworkSpec.parse("4C3-P2-{}".format("6"), input_shape=(2, 8, 8), outputs=3)
    frames, targets = samples(5, 2)
    net = Sequential(
        SpikingConv2d(2, 4, 3),
        SpikingAvgPool2d(2),
        SpikingLinear(36, 6, psp=PSP(4), input_exponent=2),
        SpikingLinear(6, 3, psp=PSP(4)),
        input_shape=(2, 8, 8),
    )
    assert (net.makes.shape, net.makes.pending) == ((3,), PSP(4))
    network = Network(spec, seed=2, precision="reproducible")
    with torch.no_grad():
        for weight, x in zip(net.parameters(), network.parameters(), strict=True):
            weight.copy_(x)
    expected = objective(network, frames, targets)
    loss = spike_loss(LOSS, net(frames, precision="reproducible"), targets, psp=FILTER)
    assert loss == expected
    for a, b in zip(gradients(loss, net).values(), gradients(expected, network).values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ShapeError, match="inputs of SpikingConv2d must be spikes"):
        net(2 * frames)


def test_neurons_are_those_of_the_spec() -> None:
    z = 3 * torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(0))
    assert str(LIF(3, 2, reset="subtract")).startswith("LIF(tau_m=3, tau_s=2, threshold=1, ")
    assert str(IF(threshold=0.5)).startswith("IF(")
    rates = [float(make()(z).detach().mean()) for make in (LIF, IF, ALIF, PLIF)]
    assert all(0.2 < rate <= 1 for rate in rates)
    assert len({*rates}) >= 3
    assert [name for name, _ in PLIF(channels=5, per="channel").named_parameters()] == ["learned.decay"]
    one = SpikingLinear(5, 3, neuron=ALIF(beta=0.5))
    assert str(one.lif).startswith("ALIF(")


def test_the_top_of_the_package_is_light_and_complete() -> None:
    code = "import sys, stsbp_torch; print([m for m in ('torch', 'numba', 'stsbp_spec') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert sorted(stsbp_torch.__all__) == [
        "ALIF", "Hamming", "IF", "LIF", "Network", "NetworkSpec", "Neurons", "PLIF", "PSP", "Sequential", "SpikeCount",
        "SpikingAvgPool2d", "SpikingConv2d", "SpikingGlobalAvgPool", "SpikingLinear", "SpikingMaxPool2d",
        "SpikingUpsample2d", "TorchBackend", "VanRossum", "__version__", "rate_penalty", "spike_loss",
    ]  # fmt: skip
    for name in stsbp_torch.__all__:
        assert getattr(stsbp_torch, name) is not None
        assert name in dir(stsbp_torch)
    with pytest.raises(AttributeError, match="has no attribute 'Lif'"):
        _ = stsbp_torch.Lif


def test_checkpoint_repeats_the_masks_of_its_number() -> None:
    net, (frames, targets) = Network(SPEC), samples(5, 3)
    assert not torch.equal(net(frames, step=1), net(frames, step=2))
    expected = gradients(spike_loss(LOSS, net(frames, step=2), targets, psp=FILTER), net)
    spikes = checkpoint(net, frames, step=2, use_reentrant=False)
    assert_equal(gradients(spike_loss(LOSS, spikes, targets, psp=FILTER), net), expected)
    assert net.step == 0


@pytest.mark.parametrize("notation", ["8-D0.5-6", "8bn-6"])
def test_a_module_is_usable_after_a_transformation(notation: str) -> None:
    net = Network(NetworkSpec.parse(notation, input_shape=(5,), outputs=3), gain=4.0)
    frames = (torch.rand(6, 2, 5) < 0.5).to(torch.uint8)
    parameters, buffers = (
        {name: x.detach() for name, x in named} for named in (net.named_parameters(), net.named_buffers())
    )

    def total(parameters: dict[str, torch.Tensor], *buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        value: torch.Tensor = functional_call(net, (parameters, *buffers), (frames,)).sum()
        return value

    if "bn" in notation:
        with pytest.raises(SpecError, match=r"batch normalisation cannot update linear1\.mean under a transformation"):
            grad(total)(parameters)
        assert net.step == 0
    else:
        grad(total)(parameters)
        assert net.step == 1
    grad(total)(parameters, buffers)
    with torch.inference_mode():
        net(frames)
    assert not any(x.is_inference() for x in net.buffers())
    net(frames).sum().backward()
    net.eval()(frames).sum().backward()
    copy.deepcopy(net)
