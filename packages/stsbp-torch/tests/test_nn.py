"""The modules: ordinary torch code with the spec's bits and gradients."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stsbp_spec import LIF as LIFSpec
from stsbp_spec import PSP, Batch, Hamming, Loss, NetworkSpec, SpikeCount, VanRossum, initial_weights, open_backend
from stsbp_spec.errors import BackendError, NetworkError, NumericError, ShapeError, SpecError, StsbpError
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.models.neurons.alif import ALIF
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.typing import AnyArray, Precision
from stsbp_torch.nn import (
    LIF,
    Network,
    Neurons,
    Sequential,
    SpikingAvgPool2d,
    SpikingConv2d,
    SpikingGlobalAvgPool,
    SpikingLinear,
    SpikingMaxPool2d,
    SpikingUpsample2d,
    spike_loss,
)

NET = NetworkSpec.parse("6C5d0.2-P2-8C3-20", input_shape=(2, 18, 18), outputs=10, neuron=LIFSpec(3, 5 / 3))
_APART: dict[str, Any] = {"kernel": (5, 3), "padding": (0, 2), "dilation": (1, 2), "groups": 2}


def samples(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = (rng.random((8, 3, *NET.input_shape)) < 0.3).astype(np.uint8)
    return Batch(inputs, (rng.random((8, 3, 10)) < 0.4).astype(np.uint8))


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("loss", [VanRossum(), Hamming(), SpikeCount()], ids=lambda loss: loss.name)
def test_network_agrees_with_value_and_grad(precision: Precision, loss: Loss) -> None:
    batch = samples()
    expected = open_backend("torch").value_and_grad(
        NET, loss, initial_weights(NET, 4), batch, precision=precision, dropout=(4, 0)
    )
    net = Network(NET, seed=4, precision=precision)
    spikes = net(torch.from_numpy(batch.inputs))
    value = spike_loss(loss, spikes, torch.from_numpy(batch.targets), psp=NET.output_psp)
    value.backward()  # type: ignore[no-untyped-call]
    assert np.array_equal(spikes.detach().numpy(), expected.spikes)
    assert value.item() == pytest.approx(expected.loss, rel=1e-6)
    for name, gradient in expected.gradients.items():
        weight = net.get_submodule(name).get_parameter("weight")
        assert weight.grad is not None
        if precision == "reproducible":
            assert np.array_equal(weight.grad.numpy(), gradient)
        else:  # the backend may have summed sparsely
            assert np.abs(weight.grad.numpy() - gradient).max() <= 2e-6 * np.abs(gradient).max()


@pytest.mark.parametrize(
    ("notation", "geometry"),
    [("6C5-P2", {"kernel": 5}), ("6C5x3p0x2{dilation=1x2,groups=2}-P2", _APART)],
    ids=["square", "two groups, dilated"],
)
def test_layers_that_stand_alone_take_the_error_grid_of_the_network(notation: str, geometry: dict[str, Any]) -> None:
    spec = NetworkSpec.parse(notation, input_shape=(2, 18, 18), outputs=10, neuron=LIFSpec(3, 5 / 3))
    batch, weights = samples(2), initial_weights(spec, 4, 2.0)
    expected = open_backend("torch").value_and_grad(spec, VanRossum(), weights, batch, precision="reproducible")
    conv = SpikingConv2d(2, 6, **geometry, neuron=LIFSpec(3, 5 / 3))
    last = SpikingLinear(
        math.prod(spec.blocks[1].synapse_shape), 10, neuron=LIFSpec(3, 5 / 3), psp=PSP(5 / 3), input_exponent=2
    )
    with torch.no_grad():
        for layer, weight in zip((conv, last), weights.values(), strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
    conv_spikes = conv(torch.from_numpy(batch.inputs).float(), precision="reproducible")
    spikes = last(SpikingAvgPool2d(2)(conv_spikes), precision="reproducible")
    spike_loss(VanRossum(), spikes, torch.from_numpy(batch.targets), psp=PSP(5 / 3)).backward()  # type: ignore[no-untyped-call]
    for layer, gradient in zip((conv, last), expected.gradients.values(), strict=True):
        assert layer.weight.grad is not None
        assert np.array_equal(layer.weight.grad.numpy(), gradient)


def test_direct_coding_takes_images_and_steps() -> None:
    spec = NetworkSpec.parse("4C3-12", input_shape=(1, 8, 8), outputs=5, coding="direct")
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8)).astype(np.uint8)
    expected = open_backend("numpy").run(spec, initial_weights(spec, 0), images, 6)
    spikes = Network(spec)(torch.from_numpy(images), steps=6)
    assert np.array_equal(spikes.detach().numpy(), expected.layers["linear3"].spikes)


def test_images_need_a_number_of_steps() -> None:
    net = Network(NetworkSpec.parse("6", input_shape=(1, 4, 4), outputs=3, coding="direct"))
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"give the number of steps: net\(images, steps\)"):
        net(images)
    assert net(images, 1).shape == (1, 5, 3)
    with pytest.raises(ShapeError, match=r"got bool; for black and white, give 255 \* images"):
        net(images > 100, 3)


def test_inputs_whose_first_axis_is_the_samples_are_refused_where_steps_tell() -> None:
    net = Network(NetworkSpec.parse("6", input_shape=(4,), outputs=3))
    frames, targets = torch.zeros(20, 7, 4), torch.zeros(20, 7, 3)
    for module in (net, SpikingLinear(4, 3)):
        with pytest.raises(ShapeError, match=r"they look like \[B, T, \.\.\.\], and time must be the first axis: swap"):
            module(frames, 7)
    spikes = net(frames)
    with pytest.raises(ShapeError, match=r"one of them is \[B, T, N\]: swap its axes 0 and 1"):
        spike_loss(VanRossum(), spikes, targets.transpose(0, 1), psp=PSP(4))
    with pytest.raises(ShapeError, match="they fit samples in the first axis"):
        spike_loss(VanRossum(), spikes, targets, psp=PSP(4), lengths=torch.full((20,), 7))


def test_spikes_may_be_bool() -> None:
    torch.manual_seed(0)
    net = Network(NetworkSpec.parse("6", input_shape=(4,), outputs=3), gain=4.0)
    frames, targets = torch.rand(9, 5, 4) < 0.5, torch.rand(9, 5, 3) < 0.5
    gradients = []
    for kind in (torch.bool, torch.uint8, torch.float32):
        net.zero_grad()
        loss = spike_loss(VanRossum(), net(frames.to(kind)), targets.to(kind), psp=PSP(4))
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    assert any(bool(g.any()) for g in gradients[0])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_a_network_refuses_images_that_were_scaled_to_zeros_and_ones(kind: torch.dtype) -> None:
    net = Network(NetworkSpec.parse("6", input_shape=(1, 4, 4), outputs=3, coding="direct"))
    images = torch.randint(0, 2, (5, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ShapeError, match=r"\(images \* 255\).round\(\); if 0 and 1 .* give images.to\(torch.uint8\)"):
        net(images.to(kind), 3)
    for integers in (torch.uint8, torch.int64):
        assert net(images.to(integers), 3).shape == (3, 5, 3)
    # Brighter images and black ones are no scaled ones.
    for factor in (255, 2, 0):
        net(factor * images.to(kind), 3)
    # One event is the usual count.
    frames = torch.ones(4, 2, 6)
    Network(NetworkSpec.parse("6", input_shape=(6,), outputs=3, input_max=255))(frames)
    SpikingLinear(6, 3, input_max=255)(frames)


@pytest.mark.parametrize("shape", [(16, 12), (16, 2, 5, 5), (1, 2, 3, 2, 5, 5)])
def test_neurons_refuse_inputs_without_an_axis_of_time(shape: tuple[int, ...]) -> None:
    """They took the samples of a batch for the steps of one sample."""
    for module, name in ((LIF(), "LIF"), (Neurons(ALIF()), "ALIF")):
        with pytest.raises(ShapeError, match=rf"of {name} must be \[T, B, N\] or .*; if .* give x\[None\] with steps"):
            module(torch.ones(shape))
    if len(shape) < 5:
        assert LIF()(torch.ones(shape)[None], 4).shape == (4, *shape)


def test_layers_without_an_axis_of_time_say_how_to_repeat_an_input() -> None:
    for module, x in ((SpikingLinear(12, 3), torch.ones(16, 12)), (SpikingConv2d(2, 3, 3), torch.ones(16, 2, 5, 5))):
        with pytest.raises(ShapeError, match=r"got shape \[16, .*\]; if the first .* give x\[None\] with steps=\.\.\."):
            module(x)
        assert len(module(x[None], 4)) == 4


def test_the_message_about_steps_says_how_to_repeat_an_input() -> None:
    with pytest.raises(
        ShapeError, match=r"steps must be 4, .* got 12; if the first .* give x\[None\] with steps=\.\.\."
    ):
        LIF()(torch.ones(4, 3, 5), 12)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_spikes_of_a_layer_are_not_left_unfiltered_by_oversight(grad: bool, pooled: bool) -> None:
    def network(**psp: Any) -> torch.nn.Sequential:
        between = [SpikingMaxPool2d(2)] if pooled else []
        first = SpikingConv2d(1, 2, 3, neuron=LIFSpec(8, 3))
        return torch.nn.Sequential(first, *between, SpikingLinear(8 if pooled else 32, 3, **psp))

    frames = (torch.rand(6, 2, 1, 6, 6) < 0.5).float()
    with torch.set_grad_enabled(grad):
        with pytest.raises(SpecError, match=r"give psp=PSP\(tau_s=3\.0\) to SpikingLinear, or psp=None if"):
            network()(frames)
        for psp in (PSP(3), None):
            assert network(psp=psp)(frames).shape == (6, 2, 3)
        # Other tensors are inputs like any others.
        net = network()
        assert net[-1](net[:-1](frames).detach().clone()).shape == (6, 2, 3)
        # There is nothing to filter.
        layers = SpikingLinear(36, 4, neuron=LIFSpec(8, 1)), SpikingLinear(4, 3)
        assert torch.nn.Sequential(*layers)(frames).shape == (6, 2, 3)


def of_views(s: torch.Tensor) -> torch.Tensor:
    return s[:, :1].transpose(0, 1).transpose(0, 1).view(6, 1, 2, 8).flatten(2)


@pytest.mark.parametrize(
    ("grad", "between"),
    [
        (False, of_views),
        (True, of_views),
        (True, torch.nn.ReLU()),
        (True, torch.clone),
        (True, torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Identity())),
    ],
)
def test_a_layer_knows_spikes_that_were_reshaped_or_dropped(grad: bool, between: Any) -> None:
    torch.manual_seed(0)
    frames, first = (torch.rand(6, 2, 1, 6, 6) < 0.5).float(), SpikingConv2d(1, 2, 3, neuron=LIFSpec(8, 3))
    layer = SpikingLinear(36, 16, neuron=LIFSpec(8, 3))
    with torch.set_grad_enabled(grad):
        spikes = between(layer(frames))
        with pytest.raises(SpecError, match=r"give psp=PSP\(tau_s=3\.0\) to SpikingLinear"):
            SpikingLinear(16, 3, input_max=2)(spikes)
        for psp in (PSP(3), None):
            SpikingLinear(16, 3, input_max=2, psp=psp)(spikes)
        # Sums and membrane potentials are other numbers.
        SpikingLinear(16, 3, input_max=12)(spikes.sum(0, keepdim=True))
        last = SpikingLinear(36, 16, neuron=LIFSpec(8, 3))(frames, full=True)
        SpikingLinear(16, 3)((last.potentials["neurons"] > 0).float())
    with pytest.raises(SpecError, match=r"give psp=PSP\(tau_s=3\.0\) to SpikingLinear"):
        torch.nn.Sequential(first, torch.nn.Flatten(2), SpikingLinear(32, 3))(frames)


def test_dropout_of_torch_is_sent_to_the_sequence() -> None:
    spikes = torch.nn.Dropout(0.25)(torch.ones(5, 2, 40))
    with pytest.raises(ShapeError, match=r"got 1\.33333; torch\.nn\.Dropout scales .* into stsbp_torch\.Sequential"):
        SpikingLinear(40, 3, psp=PSP(3))(spikes)


def test_real_inputs_are_sent_to_lif() -> None:
    with pytest.raises(ShapeError, match=r"use torch\.nn\.Linear or torch\.nn\.Conv2d, and LIF\(\) behind it"):
        SpikingLinear(4, 3)(torch.randn(5, 2, 4))


def test_torch_optimiser_lowers_the_loss() -> None:
    batch = samples(1)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        SpikingConv2d(2, 8, 5),
        SpikingAvgPool2d(2),
        SpikingLinear(8 * 7 * 7, 10, psp=PSP(4), input_exponent=2),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = spike_loss(VanRossum(), net(inputs.float()), targets, psp=PSP(4))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_evaluation_mode_drops_nothing() -> None:
    batch = samples()
    net = Network(NET, seed=4).eval()
    expected = open_backend("numpy").run(NET, initial_weights(NET, 4), batch.inputs, 8)
    assert np.array_equal(net(torch.from_numpy(batch.inputs)).detach().numpy(), expected.layers["linear4"].spikes)


def test_printed_modules_show_their_sizes() -> None:
    spec = NetworkSpec.parse("6C5s2p1-P2", input_shape=(2, 18, 18), outputs=10, neuron=LIFSpec(3, 5 / 3, 0.5))
    lif = "tau_m=3, tau_s=1.66667, threshold=0.5, surrogate=arctan:alpha=2, reset=zero, tau_rise=0, psp_gain=normalised"
    assert str(Network(spec, seed=4)).splitlines() == [
        "Network(",
        "  6C5p1s2-P2-10, events, precision=fast, seed=4",
        "  input 2x18x18 -> conv1 6x8x8 -> linear2 10",
        "  (conv1): SpikingConv2d(",
        "    2, 6, kernel=5, stride=2, padding=1, weight_bits=12, input_exponent=0, input_max=1",
        f"    (lif): LIF({lif}, psp=None)",
        "  )",
        "  (linear2): SpikingLinear(",
        "    96, 10, weight_bits=12, input_exponent=2, input_max=1",
        f"    (lif): LIF({lif}, psp=PSP(tau_s={5 / 3}))",
        "  )",
        ")",
    ]
    assert str(SpikingLinear(7, 3, weight_bits=8)).splitlines()[1].startswith("  7, 3, weight_bits=8, ")
    apart = str(SpikingConv2d(4, 6, **_APART)).splitlines()[1]
    assert apart.startswith(
        "  4, 6, kernel=(5, 3), stride=1, padding=(0, 2), dilation=(1, 2), groups=2, weight_bits=12, "
    )
    with pytest.raises(SpecError, match="the input's 3 channels cannot be divided into 2 groups"):
        SpikingConv2d(3, 4, 3, groups=2)
    assert str(SpikingAvgPool2d(2)) == "SpikingAvgPool2d(size=2)"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_every_module(value: float) -> None:
    spikes = torch.zeros(4, 2, 2, 6, 6)
    spikes[2, 1, 0, 3, 3] = value
    net = NetworkSpec.parse("4C3", input_shape=(2, 6, 6), outputs=3)
    for module in (LIF(), SpikingConv2d(2, 4, 3), SpikingLinear(72, 3), Network(net)):
        with pytest.raises(
            NumericError, match=f"the input of {type(module).__name__} holds a value that is not finite"
        ):
            module(spikes)


def test_one_bad_value_in_a_large_tensor_is_seen() -> None:
    z = torch.zeros(50, 40, 999)
    LIF()(z)
    z[31, 17, 501] = float("nan")
    with pytest.raises(NumericError, match="the input of LIF holds a value that is not finite"):
        LIF()(z)


@pytest.mark.parametrize(
    ("shape", "conv"),
    [((2, 2, 6, 6), True), ((4, 2, 3, 6, 6), True), ((4, 2, 72), True), ((4, 72), False), ((4, 2, 71), False)],
)
def test_inputs_of_other_shapes_are_refused(shape: tuple[int, ...], conv: bool) -> None:
    module = SpikingConv2d(2, 4, 3) if conv else SpikingLinear(72, 3)
    axes = r"\[T, B, 2, H, W\]" if conv else r"\[T, B, 72\]"
    with pytest.raises(ShapeError, match=rf"inputs of {type(module).__name__} have the axes {axes}, got shape \["):
        module(torch.zeros(shape))


@pytest.mark.parametrize("value", [2.0, 0.25, -1.0, 1 + 2.0**-23, 2.0**-149])
def test_inputs_that_are_no_spikes_are_refused(value: float) -> None:
    s = torch.zeros(4, 2, 2, 6, 6)
    s[3, 1, 1, 5, 5] = value
    for module in (SpikingConv2d(2, 4, 3), SpikingLinear(72, 3)):
        message = rf"inputs of {type(module).__name__} must be spikes, 0 or 1, got .*; input_exponent says how fine"
        with pytest.raises(ShapeError, match=message):
            module(s)
    net = NetworkSpec.parse("4C3", input_shape=(2, 6, 6), outputs=3)
    with pytest.raises(ShapeError, match="inputs of Network must be spikes, 0 or 1, got"):
        Network(net)(s)


def test_inputs_are_as_fine_and_as_large_as_the_module_is_told() -> None:
    torch.manual_seed(0)
    pooled = torch.randint(0, 5, (4, 2, 72)) / 4
    SpikingLinear(72, 3, input_exponent=2)(pooled)
    with pytest.raises(ShapeError, match="must be spikes, 0 or 1, got 0"):
        SpikingLinear(72, 3)(pooled)
    counts = torch.randint(0, 8, (4, 2, 72)).float()
    SpikingLinear(72, 3, input_max=7)(counts)
    SpikingLinear(72, 3, input_max=7)(counts.to(torch.uint8))
    with pytest.raises(ShapeError, match="must be whole numbers from 0 to 6, got 7"):
        SpikingLinear(72, 3, input_max=6)(counts)
    with pytest.raises(ShapeError, match=r"must be multiples of 2\^-8 from 0 to 0.996"):
        SpikingLinear(72, 3, input_exponent=8, input_max=255 / 256)(counts)
    images = NetworkSpec.parse("4C3", input_shape=(1, 6, 6), outputs=3, coding="direct")
    grey = torch.randint(0, 256, (2, 1, 6, 6))
    assert torch.equal(Network(images)(grey, steps=5), Network(images)(grey.float(), steps=5))
    refused = r"inputs of Network must be whole numbers from 0 to 255, got "
    with pytest.raises(ShapeError, match=refused + r"0\.\d+; .* undo this with \(images \* 255\)\.round\(\)$"):
        Network(images)((grey + 1) / 512, steps=5)
    with pytest.raises(ShapeError, match=refused + r"1\.5$"):
        Network(images)(torch.full((2, 1, 6, 6), 1.5), steps=5)


def test_gradients_flow_into_a_module_that_checks() -> None:
    z = torch.linspace(-1, 3, 24).reshape(4, 2, 3).requires_grad_()
    LIF(psp=PSP(3))(z).sum().backward()
    assert z.grad is not None
    assert z.grad.any()


def test_what_is_no_loss_is_refused_before_the_backward_pass() -> None:
    spikes = torch.zeros(4, 2, 3, requires_grad=True)
    with pytest.raises(SpecError, match="loss"):
        spike_loss(Hamming, spikes, torch.zeros(4, 2, 3), psp=PSP(4))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="the loss cross-entropy reads potentials, not spikes; use torch's own loss"):
        spike_loss(CrossEntropy(), spikes, torch.zeros(4, 2, 3), psp=PSP(4))


@pytest.mark.parametrize("steps", [3, 7, 0, -1, 2.5])
def test_steps_that_are_not_those_of_the_input_are_refused(steps: int) -> None:
    """With more of them than there are frames, memory behind the input was read."""
    s = torch.ones(5, 2, 6)
    for module in (LIF(), SpikingLinear(6, 4), Network(NetworkSpec.parse("4", input_shape=(6,), outputs=3))):
        assert torch.equal(module(s, steps=5), module(s))
        whole = isinstance(module, Network)
        expected = (
            f"have 5 steps, but steps is {steps}; leave steps out" if whole else "steps must be 5, as in the input"
        )
        with pytest.raises(ShapeError, match=expected):
            module(s, steps=steps)
    if steps > 0 and isinstance(steps, int):
        assert LIF()(s[:1], steps=steps).shape == (steps, 2, 6)


@pytest.mark.parametrize("shape", [(0, 2, 6), (6,), (5, 0, 6)], ids=["no steps", "one axis", "no samples"])
def test_an_input_without_elements_is_refused(shape: tuple[int, ...]) -> None:
    empty = r"is empty: \(5, 0, 6\)|must be \[T, B, ...\] with T >= 1, got \("
    for module in (LIF(), SpikingLinear(6, 4), Network(NetworkSpec.parse("4", input_shape=(6,), outputs=3))):
        lacking = r"|got \[6\]; the axes of time and samples are missing" if isinstance(module, Network) else ""
        with pytest.raises(ShapeError, match=empty + lacking):
            module(torch.ones(*shape))


def test_a_full_connection_reads_any_axes_in_their_order() -> None:
    s = (torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    layer = SpikingLinear(12, 4)
    assert torch.equal(layer(s), layer(s.reshape(5, 2, 12)))


def test_parameters_of_another_shape_are_refused() -> None:
    net = Network(NetworkSpec.parse("4", input_shape=(6,), outputs=3))
    parameters = {name: torch.ones(4, 5) if name.endswith("weight") else x for name, x in net.named_parameters()}
    with pytest.raises(ShapeError, match=r"linear1 has the shape \[4, 6\], got \[4, 5\]"):
        torch.func.functional_call(net, parameters, (torch.ones(5, 2, 6),))


def test_a_precision_or_gain_that_is_none_is_refused() -> None:
    s, net = torch.ones(5, 2, 6), NetworkSpec.parse("4", input_shape=(6,), outputs=3)
    for make in (lambda: SpikingLinear(6, 4)(s, precision="exact"), lambda: Network(net, precision="exact")):  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="precision is 'fast' or 'reproducible', got 'exact'"):
            make()
    with pytest.raises(NumericError, match="gain"):
        LIF()(s, gain=float("nan"))


@pytest.mark.parametrize("value", [2.0, 0.5, 257.0, -1.0, float("nan")])
def test_a_loss_of_what_is_no_spike_train_is_refused(value: float) -> None:
    good, bad = torch.ones(4, 2, 3), torch.ones(4, 2, 3)
    bad[3, 1, 2] = value
    assert spike_loss(Hamming(), good, good, psp=PSP(4)) == 0
    for spikes, targets in ((good, bad), (bad, good)):
        with pytest.raises((ShapeError, NumericError), match="of a loss"):
            spike_loss(Hamming(), spikes, targets, psp=PSP(4))
    with pytest.raises(ShapeError, match=r"got \(4, 2, 3\) and \(4, 1, 3\)"):
        spike_loss(Hamming(), good, good[:, :1], psp=PSP(4))


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_what_neurons_learn_has_a_gradient(per: str, precision: Precision) -> None:
    rng, numpy = np.random.default_rng(0), open_backend("numpy")
    neuron = PLIF(3, 2, 0.5, reset="subtract", per=per)
    z, g = (rng.normal(size=(9, 2, 4, 3, 3)).astype(np.float32) for _ in range(2))
    layer = Neurons(neuron, PSP(3), channels=4)
    decay = layer.learned["decay"]
    assert decay.tolist() == [np.float32(2 / 3)] * (4 if per == "channel" else 1)
    filter, learned = PSP(3).filter(), {"decay": decay.detach().numpy()}
    s, residuals = numpy.neuron_forward(neuron, filter, z, 9, learned)
    dz, terms = numpy.neuron_backward(neuron, filter, residuals, g)
    entering = torch.from_numpy(z).requires_grad_()
    spikes = layer(entering, precision=precision)
    assert np.array_equal(spikes.detach().numpy(), s)
    spikes.backward(torch.from_numpy(g))
    assert entering.grad is not None
    assert decay.grad is not None
    assert np.array_equal(entering.grad.numpy(), dz)
    expected = numpy.learned_gradient(terms["decay"], len(decay), precision)
    assert np.abs(expected).min() > 0.01
    # In float64 the order of a sum may show in the last of its bits, of which float32 keeps one.
    assert np.allclose(decay.grad.numpy(), expected, rtol=0 if precision == "reproducible" else 2.0**-23, atol=0)


def test_learned_numbers_stay_in_their_domain() -> None:
    layer = Neurons(PLIF(per="channel"), channels=3)
    with torch.no_grad():
        layer.learned["decay"].copy_(torch.tensor([1.25, -0.5, 2.0**-101]))
    with pytest.raises(NumericError, match=r"plif.decay is 1.25, outside of its domain from 0 to 1; call clip_to"):
        layer(torch.zeros(2, 1, 3))
    layer.clip_to_domain()
    assert layer.learned["decay"].tolist() == [1.0, 0.0, 0.0]
    assert layer(torch.zeros(2, 1, 3)).shape == (2, 1, 3)
    with torch.no_grad():
        layer.learned["decay"][1] = float("nan")
    with pytest.raises(NumericError, match=r"plif\.decay is nan"):
        layer(torch.zeros(2, 1, 3))
    with pytest.raises(SpecError, match="the neuron plif learns one number per channel; give channels="):
        Neurons(PLIF(per="channel"))
    assert [name for name, _ in Neurons(PLIF()).named_parameters()] == ["learned.decay"]


def assert_agrees_with_value_and_grad(
    net: Network, spec: NetworkSpec, weights: dict[str, AnyArray], precision: Precision, names: dict[str, str]
) -> None:
    """Compare spikes, and the gradients of `names`: as `value_and_grad` names them, and the parameter."""
    batch = samples(3)
    expected = open_backend("torch").value_and_grad(spec, VanRossum(), weights, batch, precision=precision)
    spikes = net(torch.from_numpy(batch.inputs))
    assert np.array_equal(spikes.detach().numpy(), expected.spikes)
    spike_loss(VanRossum(), spikes, torch.from_numpy(batch.targets), psp=spec.output_psp).backward()  # type: ignore[no-untyped-call]
    for name, parameter in names.items():
        gradient = net.get_parameter(parameter).grad
        assert gradient is not None
        expected_gradient = expected.gradients[name]
        assert np.count_nonzero(expected_gradient) > 0
        tolerance = 0 if precision == "reproducible" else 2e-6
        assert np.abs(gradient.numpy() - expected_gradient).max() <= tolerance * np.abs(expected_gradient).max()


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_network_of_neurons_that_learn_agrees_with_value_and_grad(precision: Precision) -> None:
    neuron = PLIF(3, 2, 0.4, per="channel")
    spec = NetworkSpec.parse("6C5-P2-8{per=layer}", input_shape=(2, 18, 18), outputs=10, neuron=neuron)
    weights = initial_weights(spec, 4, 2.0)
    weights["conv1.decay"] = np.random.default_rng(0).random(6).astype(np.float32)
    net = Network(spec, seed=4, gain=2.0, precision=precision)
    with torch.no_grad():
        net.get_parameter("conv1.lif.learned.decay").copy_(torch.from_numpy(weights["conv1.decay"]))
    names = {f"{name}.decay": f"{name}.lif.learned.decay" for name in ("conv1", "linear2", "linear3")}
    assert_agrees_with_value_and_grad(net, spec, weights, precision, names)
    with torch.no_grad():
        net.get_parameter("conv1.lif.learned.decay").add_(2)
    net.clip_to_domain()
    assert net.get_parameter("conv1.lif.learned.decay").tolist() == [1.0] * 6


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_network_with_biases_agrees_with_value_and_grad(precision: Precision) -> None:
    spec = NetworkSpec.parse("6C5b-P2-8b-10", input_shape=(2, 18, 18), neuron=PLIF(3, 2, 0.4))
    weights = initial_weights(spec, 4, 2.0)
    weights["conv1.bias"][:] = np.linspace(-0.1, 0.2, 6, dtype=np.float32)
    net = Network(spec, seed=4, gain=2.0, precision=precision)
    with torch.no_grad():
        net.get_parameter("conv1.bias").copy_(torch.from_numpy(weights["conv1.bias"]))
    names = {"conv1.bias": "conv1.bias", "linear2.bias": "linear2.bias", "conv1": "conv1.weight"}
    assert_agrees_with_value_and_grad(net, spec, weights, precision, names)
    assert "bias=True" in str(net.get_submodule("conv1"))
    assert net.get_submodule("linear3").bias is None
    assert "bias" not in str(net.get_submodule("linear3"))


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_network_of_every_layer_agrees_with_value_and_grad(precision: Precision) -> None:
    notation = "6C5x3p0x2{dilation=1x2,groups=2}-M2-8C3b-P2x3-U2x1-F-10"
    spec = NetworkSpec.parse(notation, input_shape=(2, 18, 18), neuron=LIFSpec(3, 2, 0.4))
    net = Network(spec, seed=4, gain=2.0, precision=precision)
    assert_agrees_with_value_and_grad(
        net, spec, initial_weights(spec, 4, 2.0), precision, {"conv1": "conv1.weight", "conv2": "conv2.weight"}
    )


def test_layers_in_a_row_hand_on_the_division_of_a_pooling() -> None:
    spec = NetworkSpec.parse("6C3-P3-U2x1-8C2b-M3x2-G", input_shape=(2, 18, 18), outputs=10, neuron=LIFSpec(3, 2, 0.4))
    batch, weights = samples(), initial_weights(spec, 4, 2.0)
    settings: dict[str, Any] = {"neuron": LIFSpec(3, 2, 0.4), "psp": PSP(2)}
    layers = (
        SpikingConv2d(2, 6, 3, neuron=LIFSpec(3, 2, 0.4)),
        SpikingAvgPool2d(3),
        SpikingUpsample2d((2, 1)),
        SpikingConv2d(6, 8, 2, bias=True, input_max=9, **settings),
        SpikingMaxPool2d((3, 2)),
        SpikingGlobalAvgPool(),
        SpikingLinear(8, 10, input_max=6, **settings),
    )
    net = Sequential(*layers, input_shape=(2, 18, 18))
    assert net.makes == spec.graph.values["neurons3"]
    with torch.no_grad():
        for place, name in ((0, "conv1"), (3, "conv2"), (6, "linear3")):
            layers[place].weight.copy_(torch.from_numpy(weights[name]))  # type: ignore[operator]
    expected = open_backend("numpy").run(spec, weights, batch.inputs, 8)
    spikes = net(torch.from_numpy(batch.inputs).float()).detach().numpy()
    assert spikes.any()
    assert np.array_equal(spikes, expected.layers["linear3"].spikes)
    assert str(layers[2]) == "SpikingUpsample2d(factor=(2, 1))"
    with pytest.raises(NetworkError, match=r"layer 1, SpikingLinear: .* give input_exponent=0, input_max=9"):
        Sequential(SpikingAvgPool2d(3), SpikingLinear(72, 3), input_shape=(2, 18, 18))


def test_a_module_is_no_description_of_a_neuron() -> None:
    with pytest.raises(SpecError, match=r"of stsbp_spec, which describe it; got LIF\(.*\), of stsbp_torch"):
        NetworkSpec.parse("4", input_shape=(4,), outputs=2, neuron=LIF(tau_m=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 3, 2, 18, 19), (8, 3, 2, 19, 18), (8, 3, 1, 18, 18), (8, 3, 648), (8, 3)])
def test_inputs_of_another_shape_than_the_networks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"must be \[T, B, 2, 18, 18\], got \[8, 3"):
        Network(NET)(torch.zeros(shape, dtype=torch.uint8))
    images = NetworkSpec.parse("3", input_shape=(4,), outputs=2, coding="direct")
    with pytest.raises(ShapeError, match=r"direct coding must be \[B, 4\], got \[2, 3, 4\]"):
        Network(images)(torch.zeros(2, 3, 4, dtype=torch.uint8), 5)


@pytest.mark.parametrize("steps", [None, 5])
def test_a_network_says_what_axes_its_inputs_lack(steps: int | None) -> None:
    """A network of events and one of images get what the other reads; no advice leads to the next error."""
    images = NetworkSpec.parse("3", input_shape=(2, 18, 18), outputs=2, coding="direct")
    with pytest.raises(ShapeError, match=r'got \[3, 2, 18, 18\]; if these are images, .* network with coding="direct"'):
        Network(NET)(torch.zeros(3, 2, 18, 18, dtype=torch.uint8), steps)
    with pytest.raises(ShapeError, match=r"got \[2, 18, 18\]; the axes of time and samples are missing"):
        Network(NET)(torch.zeros(2, 18, 18, dtype=torch.uint8), steps)
    with pytest.raises(
        ShapeError, match=r"if these are event frames, .* network with coding=\"events\"|net\(images, st"
    ):
        Network(images)(torch.zeros(3, 4, 2, 18, 18, dtype=torch.uint8), steps)
    with pytest.raises(ShapeError, match=r"give one image as x\[None\]|net\(images, steps\)"):
        Network(images)(torch.zeros(2, 18, 18, dtype=torch.uint8), steps)


def test_one_frame_of_events_is_not_repeated() -> None:
    frames = torch.from_numpy(samples().inputs)
    with pytest.raises(
        ShapeError, match=r"have 1 steps, but steps is 5; .* repeat .* x\.expand\(steps, \*x\.shape\[1:\]\)"
    ):
        Network(NET)(frames[:1], 5)
    repeated = frames[:1].expand(5, *frames.shape[1:])
    assert torch.equal(Network(NET)(repeated, 5), Network(NET)(repeated.contiguous()))
    with pytest.raises(ShapeError, match=r"have 3 steps, but steps is 8; they look like \[B, T, ...\]"):
        Network(NET)(frames.swapaxes(0, 1), 8)
    with pytest.raises(ShapeError, match="the inputs have 1 steps, but steps is 5; leave steps out"):
        Network(NET)(frames[:1], 5)
    assert torch.equal(Network(NET)(frames, 8), Network(NET)(frames))


@pytest.mark.parametrize("first", [SpikingAvgPool2d(2), SpikingMaxPool2d(2), SpikingUpsample2d(2)])
def test_a_sequence_checks_its_own_input(first: torch.nn.Module) -> None:
    net = Sequential(first, SpikingConv2d(2, 3, 2, input_exponent=2), input_shape=(2, 4, 4))
    frames = (torch.rand(5, 2, 2, 4, 4) < 0.5).float()
    assert torch.equal(net(frames), net[1](net[0](frames)))
    for value in (0.37, 300.0):
        with pytest.raises(ShapeError, match="the inputs of Sequential must be spikes, 0 or 1, got "):
            net(frames * value)
    with pytest.raises(NumericError, match="the input of Sequential holds a value that is not finite"):
        net(frames * math.nan)
    with pytest.raises(ShapeError, match=r"of this Sequential must be \[T, B, 2, 4, 4\], got \[5, 2, 2, 4, 3\]"):
        net(frames[..., 1:])


def test_a_sequence_drops_spikes_exactly() -> None:
    """The factor acts after the sums, so the result is that of the masked spikes with another gain."""
    first, last = SpikingLinear(6, 40, input_max=2), SpikingLinear(40, 5, psp=PSP(4))
    net = Sequential(torch.nn.Identity(), first, torch.nn.Dropout(0.3), last, input_shape=(6,), input_max=2)
    x = torch.randint(0, 3, (12, 8, 6)).float()
    torch.manual_seed(3)
    output = net(x, full=True)
    torch.manual_seed(3)
    mask = torch.empty(12, 8, 40).bernoulli_(0.7)
    expected = last(first(x) * mask, gain=1 / 0.7, full=True)
    assert 0 < float(mask.mean()) < 1
    assert torch.equal(output.potentials["3.neurons"], expected.potentials["neurons"])
    net.eval()
    assert torch.equal(net(x), Sequential(first, last, input_shape=(6,), input_max=2)(x))
    layers = SpikingConv2d(1, 2, 3), torch.nn.Flatten(2), SpikingLinear(8, 3, psp=PSP(4))
    assert Sequential(*layers, input_shape=(1, 4, 4))(torch.ones(3, 2, 1, 4, 4)).shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            torch.nn.Flatten(),
            r"layer 1, Flatten: it would mix time or samples with neurons; use torch\.nn\.Flatten\(2\)",
        ),
        (torch.nn.Dropout(1.0), r"layer 1, Dropout: its p must be in \[0, 1\)"),
        (torch.nn.Linear(4, 4), "layer 1, Linear: .* use SpikingLinear here, or put this layer into a torch.nn.Seq"),
        (torch.nn.ReLU(), "layer 1, ReLU: the range of its outputs is unknown.*; put this layer into a torch.nn.Seq"),
    ],
)
def test_a_sequence_says_what_to_do_with_layers_of_torch(layer: torch.nn.Module, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        Sequential(SpikingLinear(4, 4), layer, SpikingLinear(4, 4, psp=PSP(4)), input_shape=(4,))
    with pytest.raises(NetworkError, match="the weights after a dropout apply its factor, but there are none"):
        Sequential(SpikingLinear(4, 4), torch.nn.Dropout(0.2), input_shape=(4,))


def test_a_sequence_says_how_its_own_inputs_are_filtered() -> None:
    spikes = SpikingLinear(4, 6, neuron=LIFSpec(8, 3))(torch.ones(5, 2, 4))
    first = SpikingLinear(6, 3, psp=PSP(3))
    with pytest.raises(NetworkError, match=r"layer 0, .* it has psp=PSP\(tau_s=3\.0\); .* also to the Sequential if"):
        Sequential(first, input_shape=(6,))
    with pytest.raises(SpecError, match="the first layer of a Sequential needs the same psp as the Sequential"):
        Sequential(SpikingLinear(6, 3), input_shape=(6,))(spikes)
    assert Sequential(first, input_shape=(6,), psp=PSP(3))(spikes).shape == (5, 2, 3)


def test_the_layers_of_a_sequence_cannot_be_changed() -> None:
    net = Sequential(SpikingLinear(5, 4), SpikingLinear(4, 3, psp=PSP(4)), input_shape=(5,))
    other = SpikingLinear(3, 2)

    def delete() -> None:
        del net[0]

    def replace() -> None:
        net[0] = other

    for change in (
        delete,
        replace,
        lambda: net[:1],
        lambda: net.append(other),
        lambda: net.insert(0, other),
        lambda: net.extend([other]),
        lambda: net.pop(0),
        lambda: net + net,
        lambda: 2 * net,
    ):
        with pytest.raises(NetworkError, match="cannot be changed or sliced; create a new one"):
            change()
    assert len(net) == 2


MIXED = NetworkSpec.parse("3C3bn-P2-6", input_shape=(2, 6, 6), outputs=4)
"""Its children are of every kind: a normalised layer, a pooling and full connections."""


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("conv1.mean", x) for x in (math.nan, -math.inf)), *(("conv1.variance", x) for x in (math.nan, math.inf, -1.0))],
)
def test_a_network_refuses_running_statistics_outside_of_their_domain(name: str, value: float) -> None:
    net, s = Network(MIXED).eval(), torch.ones(4, 2, 2, 6, 6)
    net(s)
    net.named()[name][1] = value
    with pytest.raises(NumericError, match=rf"^{name} is {value:g}, outside of its domain from .*; load running"):
        net(s)


def test_the_layers_of_a_network_cannot_be_called() -> None:
    net, s = Network(MIXED), torch.ones(4, 2, 2, 6, 6)
    for name, child in net.named_children():
        for positional, named in (((s,), {}), ((s, 4), {"full": True}), ((), {"s": s})):
            with pytest.raises(NetworkError, match=rf"^{name} is a layer of a Network and cannot be called on its own"):
                child(*positional, **named)
    with pytest.raises(NetworkError, match=r"^linear2 is a layer of a Network"):
        torch.nn.Sequential(torch.nn.Flatten(2), net.get_submodule("linear2"))(s)
    assert net(s, full=True).layer_spikes["conv1"].shape == (4, 2, 3, 4, 4)


@pytest.mark.parametrize("kind", ["backward_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_layers_of_a_network_refuse_hooks_that_would_not_be_called(kind: str) -> None:
    net, s, calls = Network(MIXED), torch.ones(4, 2, 2, 6, 6), list[Any]()
    for name, child in net.named_children():
        with pytest.raises(
            NetworkError, match=rf"^{name} is a layer of a Network, and backward hooks .* not be called"
        ):
            getattr(child, f"register_{kind}")(lambda *_: None)
    # These are called.
    net.get_submodule("conv1").register_forward_hook(lambda *_: calls.append("layer"))
    net.register_full_backward_hook(lambda *_: calls.append("network"))
    net.named()["linear2"].register_hook(lambda _: calls.append("parameter"))  # type: ignore[no-untyped-call]
    s.requires_grad_()
    net(s).sum().backward()
    assert sorted(calls) == ["layer", "network", "parameter"]


@pytest.mark.parametrize("module", [SpikingLinear(6, 7), torch.nn.Identity(), None], ids=type)
def test_a_network_notices_at_its_next_call_that_a_layer_was_replaced(module: torch.nn.Module | None) -> None:
    net, s = Network(MIXED), torch.ones(4, 2, 2, 6, 6)
    name = [*dict(net.named_children())][-1]
    net(s)
    setattr(net, name, module)
    for call in (lambda: net(s), net.named, net.clip_to_domain):
        with pytest.raises(NetworkError, match=rf"^{name} of the Network was replaced or removed, .*weights=.*Seq"):
            call()
    delattr(net, name)
    with pytest.raises(NetworkError, match=f"^{name} of the Network was replaced or removed"):
        net(s)


def test_a_network_takes_only_the_layers_of_an_equal_network() -> None:
    net, equal, other = (
        Network(MIXED),
        Network(MIXED, seed=1),
        Network(NetworkSpec.parse("3C3bn-P2-6", input_shape=(2, 6, 6), outputs=5)),
    )
    s, (*_, name) = torch.ones(4, 2, 2, 6, 6), dict(net.named_children())
    setattr(net, name, equal.get_submodule(name))
    net(s)
    setattr(net, name, other.get_submodule(name))
    with pytest.raises(NetworkError, match=f"^{name} of the Network was replaced"):
        net(s)


class _Wrapper(torch.nn.Module):
    def __init__(self, held: torch.nn.Module) -> None:
        super().__init__()
        self.held = held

    def forward(self, *inputs: Any) -> Any:
        return self.held(*inputs)


def test_a_layer_of_a_network_may_be_wrapped() -> None:
    net, s = Network(MIXED).eval(), torch.ones(4, 2, 2, 6, 6)
    expected, names = net(s), [*net.named()]
    for name, child in [*net.named_children()]:
        setattr(net, name, _Wrapper(child))
    assert torch.equal(net(s), expected)
    assert [*net.named()] == names


def test_a_neuron_module_in_a_layer_gives_its_learned_values_and_needs_the_same_filter() -> None:
    neurons = Neurons(PLIF(3, per="channel"), channels=4)
    with torch.no_grad():
        (learned,) = neurons.learned.values()
        learned.mul_(torch.linspace(0.5, 0.9, 4))
    (copied,) = SpikingLinear(5, 4, neuron=neurons, psp=PSP(4)).lif.learned.values()
    assert torch.equal(copied, learned)
    assert copied is not learned
    assert SpikingLinear(5, 4, neuron=LIF(psp=PSP(4)), psp=PSP(4)).lif.psp == PSP(4)
    with pytest.raises(SpecError, match="has channels=4, but the SpikingLinear needs channels=6"):
        SpikingLinear(5, 6, neuron=neurons)
    with pytest.raises(SpecError, match=r"LIF has psp=PSP.*, but the SpikingLinear has psp=None; give psp=PSP"):
        SpikingLinear(5, 4, neuron=LIF(psp=PSP(4)))


@pytest.mark.parametrize("neuron", ["lif", LIFSpec, 3])
def test_a_neuron_that_is_no_model_is_refused(neuron: Any) -> None:
    for create in (lambda: SpikingLinear(8, 8, neuron=neuron), lambda: Neurons(neuron)):
        with pytest.raises(SpecError, match=r"neuron must be a neuron model, .* got "):
            create()


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_max": -1},
        {"input_max": 0},
        {"input_max": math.nan},
        {"input_max": math.inf},
        {"input_max": "a"},
        {"input_exponent": -1},
        {"input_exponent": 0.5},
        {"input_exponent": 25},
    ],
    ids=str,
)
def test_arguments_that_describe_no_inputs_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(arguments))):
        SpikingLinear(5, 4, **arguments)
    with pytest.raises(SpecError, match=next(iter(arguments))):
        Sequential(SpikingAvgPool2d(2), input_shape=(1, 4, 4), **arguments)


CONCATENATED = "\n".join(
    f'[[node]]\nname = "{name}"\n{operation}\nfrom = {sources}'
    for name, operation, sources in (
        ("w", 'weights = "12"', '"input"'),
        ("n", 'neurons = ""', '"w"'),
        ("a", 'weights = "9"', '"n"'),
        ("na", 'neurons = ""', '"a"'),
        ("both", "concat = true", '["na", {node = "n", delay = 1}, "na", "n"]'),
        ("out", 'weights = "4"', '"both"'),
        ("end", 'neurons = ""', '"out"'),
    )
)
"""Two populations, each of them twice, once with a delay."""


@pytest.mark.parametrize("transformed", [False, True], ids=["autograd", "func"])
@pytest.mark.parametrize("notation", ["12-[9|9|9]+", "12-[12|12|]+", "12-D0.3-[9|9|9]+", CONCATENATED])
def test_errors_of_several_readers_are_added_in_order(notation: str, transformed: bool) -> None:
    outputs = None if "node" in notation else 4
    network = NetworkSpec.parse(notation, input_shape=(7,), outputs=outputs, neuron=LIFSpec(3, 5 / 3, 0.4))
    rng = np.random.default_rng(0)
    x, y = ((rng.random((7, 3, n)) < 0.4).astype(np.uint8) for n in (7, 4))
    weights = initial_weights(network, 1, 3.0)
    expected = open_backend("numpy").value_and_grad(
        network, VanRossum(), weights, Batch(x, y), precision="reproducible", dropout=(1, 0)
    )
    net = Network(network, seed=1, precision="reproducible", weights=weights)
    names = {id(w): name for name, w in net.named_parameters()}

    def value(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        spikes = torch.func.functional_call(net, parameters, torch.from_numpy(x))
        return spike_loss(VanRossum(), spikes, torch.from_numpy(y), psp=network.output_psp)

    if transformed:
        gradients = torch.func.grad(value)({name: w.detach() for name, w in net.named_parameters()})
    else:
        value({}).backward()  # type: ignore[no-untyped-call]
        gradients = {name: w.grad for name, w in net.named_parameters()}
    for name, w in net.named().items():
        assert expected.gradients[name].any()
        assert np.array_equal(gradients[names[id(w)]].numpy(), expected.gradients[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.tolist(), r"got list; convert it with torch.as_tensor"),
        (lambda x: x.numpy(), r"got ndarray; convert it with torch.as_tensor"),
        (lambda x: x.to_sparse(), r"got a tensor of layout torch.sparse_coo; convert it with .to_dense"),
        (lambda x: x.to(torch.complex64), r"got a tensor of torch.complex64; take its real part"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), r"got a tensor of torch.quint8; convert it"),
        (lambda x: torch.nested.as_nested_tensor(list(x)), r"got a nested tensor; pad its samples"),
    ],
    ids=["list", "numpy", "sparse", "complex", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_inputs_that_are_no_dense_tensors_of_real_numbers_are_refused(change: Any, message: str) -> None:
    network = Network(NetworkSpec.parse("4", input_shape=(5,), outputs=2))
    for module, shape in ((network, (3, 2, 5)), (SpikingAvgPool2d(2), (3, 2, 1, 4, 4))):
        with pytest.raises(ShapeError, match=rf"must be a dense tensor of real numbers, {message}"):
            module(change(torch.zeros(shape)))


def test_the_device_meta_is_refused_by_its_name() -> None:
    network, x = Network(NetworkSpec.parse("4", input_shape=(5,), outputs=2)), torch.zeros(3, 2, 5)
    with pytest.raises(BackendError, match="compute on cpu and cuda, got a tensor on the device meta"):
        network(x.to("meta"))
    with pytest.raises(SpecError, match="are on the device meta, which holds no values"):
        network.to("meta")(x)
    with pytest.raises(SpecError, match="are on the device meta, which holds no values"):
        Network(NetworkSpec.parse("4d0.2", input_shape=(5,), outputs=2)).to("meta")(x)


@pytest.mark.parametrize("neuron", [LIFSpec(), PLIF()], ids=lambda neuron: neuron.name)
def test_modules_that_were_made_in_inference_mode_learn(neuron: NeuronModel) -> None:
    with torch.inference_mode():
        spec = NetworkSpec.parse("4d0.2", input_shape=(5,), outputs=2, neuron=neuron)
        modules = [Network(spec), SpikingLinear(5, 2, neuron=neuron, bias=True), Neurons(neuron, channels=5)]
    for module in modules:
        # Neurons alone may have nothing that learns.
        x = torch.ones(3, 2, 5, requires_grad=True)
        module(x).sum().backward()
        assert all(x.grad is not None and not x.is_inference() for x in module.parameters())


@pytest.mark.parametrize("wrong", [3, "a", [1]], ids=str)
def test_modules_refuse_arguments_of_other_types(wrong: Any) -> None:
    spec = NetworkSpec.parse("4", input_shape=(5,), outputs=2)
    for make in (
        lambda: Network(wrong),
        lambda: Network(spec, weights=wrong),
        lambda: Network(spec, gain=str(wrong)),  # type: ignore[arg-type]
        lambda: Neurons(psp=wrong),
        lambda: SpikingLinear(5, 2, psp=wrong),
        lambda: SpikingLinear(5.5, 2),  # type: ignore[arg-type]
        lambda: SpikingConv2d(None, 2, 3),  # type: ignore[arg-type]
        lambda: Sequential(wrong, input_shape=(5,)),
        lambda: Sequential(input_shape=str(wrong)),  # type: ignore[arg-type]
    ):
        with pytest.raises(StsbpError):
            make()


@pytest.mark.parametrize("wrong", [[1, 2], (1, 2), np.array([1, 2]), 3, "a"], ids=str)
def test_spike_loss_refuses_what_is_no_tensor(wrong: Any) -> None:
    trains = torch.zeros(3, 2, 4)
    for argument in ({"lengths": wrong}, {"spikes": wrong}, {"targets": wrong}):
        (name,) = argument
        with pytest.raises(ShapeError, match=rf"{name} must be a dense tensor of real numbers, got .*as_tensor"):
            spike_loss(VanRossum(), **{"spikes": trains, "targets": trains, "psp": PSP(4), **argument})
    with pytest.raises(SpecError, match="psp is a PSP, for example PSP"):
        spike_loss(VanRossum(), trains, trains, psp=wrong)


def test_the_code_of_the_page_runs() -> None:
    """The blocks of docs/torch.md, one after the other, but for those of several processes."""
    page = Path(__file__).parents[3] / "docs" / "torch.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside the packages")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    for block in (block for block in blocks if "DistributedDataParallel" not in block):
        exec(compile(block, str(page), "exec", dont_inherit=True), scope)
    assert scope["out"].layer_spikes["linear1"].shape == (20, 8, 64)


def test_ordinary_layers_before_and_after_spikes_learn() -> None:
    torch.manual_seed(0)
    first = torch.nn.Conv2d(1, 8, 3)
    before = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 32))
    encode, hidden = LIF(tau_m=5, tau_s=3), SpikingLinear(32, 24, neuron=LIF(tau_m=5, tau_s=3), psp=PSP(3))
    after = torch.nn.Linear(24, 10)
    current = before(torch.rand(16, 1, 8, 8))
    logits = after(hidden(encode(current[None], 10)).mean(0))
    torch.nn.functional.cross_entropy(logits, torch.randint(0, 10, (16,))).backward()  # type: ignore[no-untyped-call]
    gradient = first.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"])
def test_spikes_of_every_type_are_taken_and_checked(dtype: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip("this version of torch has no such type")
    torch.manual_seed(0)
    net = Network(NetworkSpec.parse("6", input_shape=(5,), outputs=2))
    spikes = (torch.rand(4, 3, 5) < 0.5).float()
    assert torch.equal(net(spikes.to(getattr(torch, dtype))), net(spikes))
    with pytest.raises(ShapeError, match="must be spikes, 0 or 1, got 2"):
        net((2 * spikes).to(getattr(torch, dtype)))
