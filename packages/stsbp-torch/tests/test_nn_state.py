"""Modules that go on from a state, potentials and losses of them, and networks that are graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stsbp_spec import LIF as LIFSpec
from stsbp_spec import Batch, VanRossum, initial_weights, open_backend
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.networks.ops import batchnorm
from stsbp_spec.typing import Precision
from stsbp_torch import (
    ALIF,
    LIF,
    PSP,
    Network,
    NetworkSpec,
    Neurons,
    Sequential,
    SpikingAvgPool2d,
    SpikingConv2d,
    SpikingLinear,
    spike_loss,
)
from torch.func import functional_call, grad, vmap

STEPS, BATCH, GAIN = 7, 3, 6.0
NOTATIONS = {
    "chain": "4C3d0.2-P2-6",
    "recurrent": "4C3{neuron=alif}-P2-6R{neuron=plif}-5{recurrent=one-to-one,reset=subtract,tau_rise=1.5}",
    "recurrent convolution": "4C3R3-6",
    "dropped before a recurrence": "6-D0.3-5R",
    "delayed": "6{delay=2}-5{delay=3}",
    "learned delays": "T3-4C3-P2-T2-F-T9-6R",
    "residual": "4C3-[4C3p1-4C3p1]+-6",
    "normalised": "4C3bn-6bn",
    "nodes": """
        [[node]]
        name = "conv1"
        weights = "4C3p1b"
        from = "input"

        [[node]]
        name = "conv2"
        weights = "4C3p1"
        weights_of = "conv1"
        from = {node = "input", delay = 2}

        [[node]]
        name = "first"
        neurons = "neuron=plif"
        from = ["conv1", "conv2"]

        [[node]]
        name = "out"
        weights = "3"
        from = "first"

        [[node]]
        name = "last"
        neurons = ""
        from = "out"
    """,
    "concatenated": """
        [[node]]
        name = "conv1"
        weights = "3C3p1"
        from = "input"

        [[node]]
        name = "one"
        neurons = ""
        from = "conv1"

        [[node]]
        name = "means"
        layer = "P2"
        from = "one"

        [[node]]
        name = "conv2"
        weights = "3C2s2"
        from = "one"

        [[node]]
        name = "two"
        neurons = ""
        from = "conv2"

        [[node]]
        name = "both"
        concat = true
        from = ["two", {node = "means", delay = 1}, {node = "two", delay = 2}]

        [[node]]
        name = "conv3"
        weights = "4C2"
        from = "both"

        [[node]]
        name = "three"
        neurons = ""
        from = "conv3"

        [[node]]
        name = "spikes"
        concat = true
        from = ["three", "three"]

        [[node]]
        name = "out"
        weights = "3"
        from = "spikes"

        [[node]]
        name = "last"
        neurons = ""
        from = "out"
    """,
}


def spec_of(name: str) -> NetworkSpec:
    outputs = None if "[[node]]" in NOTATIONS[name] else 3
    return NetworkSpec.parse(NOTATIONS[name], input_shape=(2, 6, 6), outputs=outputs, neuron=LIFSpec(3, 5 / 3))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    frames = (torch.rand(STEPS, BATCH, 2, 6, 6, generator=generator) < 0.4).float()
    return frames, (torch.rand(STEPS, BATCH, 3, generator=generator) < 0.4).float()


def in_chunks(net: torch.nn.Module, frames: torch.Tensor, lengths: tuple[int, ...]) -> Any:
    state, spikes, potentials = None, [], list[list[torch.Tensor]]()
    for chunk in torch.split(frames, list(lengths)):
        output = net(chunk, state=state, full=True)
        state = output.state
        spikes.append(output.spikes)
        potentials.append(list(output.potentials.values()))
    return torch.cat(spikes), [torch.cat(chunks) for chunks in zip(*potentials, strict=True)]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", NOTATIONS)
def test_calls_with_chunks_of_time_have_the_bits_of_one_call(name: str, training: bool) -> None:
    if training and name == "normalised":
        pytest.skip("statistics are those of a chunk")
    spec, (frames, _) = spec_of(name), samples()
    net, same = (Network(spec, gain=GAIN).train(training) for _ in range(2))
    weights = {key: x.detach().numpy() for key, x in net.named().items()}
    with torch.no_grad():
        undivided = net(frames, full=True)
        assert torch.equal(undivided.spikes, Network(spec, gain=GAIN).train(training)(frames))
        assert undivided.spikes.any()
        for lengths in ((1,) * STEPS, (3, 1, 3)):
            same.step.zero_()
            spikes, potentials = in_chunks(same, frames, lengths)
            assert torch.equal(spikes, undivided.spikes)
            for chunked, u in zip(potentials, undivided.potentials.values(), strict=True):
                assert torch.equal(chunked, u)
            assert same.step == training
    if not training:
        layers = open_backend("numpy").run(spec, weights, frames.numpy().astype(np.uint8), STEPS).layers
        assert list(undivided.potentials) == list(layers)
        for key, layer in layers.items():
            assert np.array_equal(undivided.potentials[key].numpy(), layer.potentials)


def test_layers_go_on_from_their_state() -> None:
    torch.manual_seed(0)
    frames, _ = samples()
    net = Sequential(
        SpikingConv2d(2, 4, 3, bias=True, neuron=ALIF(beta=0.6)),
        SpikingAvgPool2d(2),
        SpikingLinear(16, 3, psp=PSP(4), input_exponent=2, neuron=LIF(3, 2)),
        input_shape=(2, 6, 6),
    )
    output = net(frames, full=True)
    assert list(output.potentials) == ["0.neurons", "2.neurons"]
    assert torch.equal(output.spikes, net(frames))
    spikes, potentials = in_chunks(net, frames, (2, 1, 4))
    assert torch.equal(spikes, output.spikes)
    assert torch.equal(potentials[0], output.potentials["0.neurons"])
    neurons, z = Neurons(psp=PSP(3)), 3 * torch.rand(STEPS, 2, 5)
    assert torch.equal(in_chunks(neurons, z, (1, 6))[0], neurons(z))


def test_images_go_on_step_by_step() -> None:
    spec = NetworkSpec.parse("4C3-6", input_shape=(1, 6, 6), outputs=3, coding="direct")
    net, images = Network(spec, gain=GAIN), torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8)
    state, spikes = None, []
    for _ in range(5):
        output = net(images, 1, state=state, full=True)
        state = output.state
        spikes.append(output.spikes)
    assert torch.equal(torch.cat(spikes), net(images, 5))


class _Spike(torch.autograd.Function):
    """A spike in float64 with the arctan surrogate, for torch's own autograd."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).double()

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        slope: torch.Tensor = errors[0] / (1 + (torch.pi * x) ** 2)
        return slope


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_losses_of_potentials_have_the_gradients_of_autograd(reset: str, recurrent: bool) -> None:
    """By torch's own autograd in float64, on the weights' grid; spikes have an error beside the potentials'."""
    neuron = LIFSpec(3, 5 / 3, 0.6, reset=reset)
    spec = NetworkSpec.parse("5R" if recurrent else "5", input_shape=(4,), outputs=3, neuron=neuron)
    net = Network(spec, gain=2.0)
    generator = torch.Generator().manual_seed(3)
    frames = (torch.rand(STEPS, BATCH, 4, generator=generator) < 0.5).float()
    of_u, of_o = torch.randn(STEPS, BATCH, 5, generator=generator), torch.randn(STEPS, BATCH, 3, generator=generator)
    output = net(frames, full=True)
    ((output.potentials["linear1"] * of_u).sum() + (output.spikes * of_o).sum()).backward()
    with torch.no_grad():
        grids = {key: x.clone() for key, x in net.named().items()}
        for projection in spec.graph.projections:
            wq, _ = open_backend("torch").weight_grid(projection, grids[projection.name])
            grids[projection.name] = wq
    wide = {key: x.double().requires_grad_() for key, x in grids.items()}
    threshold, km, ks, cs = (float(np.float32(x)) for x in (0.6, 1 - 1 / 3, 1 - 3 / 5, 3 / 5))
    names = [projection.name for projection in spec.graph.projections]
    loop = next(iter(spec.graph.recurrent.values()))[0] if recurrent else ""
    m, o, loop_input = (torch.zeros(BATCH, 5, dtype=torch.float64) for _ in range(3))
    m2, i2 = (torch.zeros(BATCH, 3, dtype=torch.float64) for _ in range(2))
    loss = torch.zeros((), dtype=torch.float64)

    def fired(m: torch.Tensor, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u = m + current
        spikes: torch.Tensor = _Spike.apply(u - threshold)  # type: ignore[no-untyped-call]
        return u, spikes, km * (u * (1 - spikes) if reset == "zero" else u - threshold * spikes)

    for t in range(STEPS):
        current = frames[t].double() @ wide[names[0]].T
        if recurrent:
            loop_input = ks * loop_input + cs * (o @ wide[loop].T)
            current = current + loop_input
        u, o, m = fired(m, current)
        i2 = ks * i2 + cs * (o @ wide[names[-1]].T)
        _, o2, m2 = fired(m2, i2)
        loss = loss + (u * of_u[t]).sum() + (o2 * of_o[t]).sum()
        assert (output.potentials["linear1"][t] - u).abs().max() < 1e-5
    expected = torch.autograd.grad(loss, list(wide.values()))
    for (key, x), g in zip(net.named().items(), expected, strict=True):
        assert x.grad is not None
        assert g.abs().max() > 0.1
        assert (x.grad - g).abs().max() < 1e-5 * g.abs().max(), key


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("name", NOTATIONS)
def test_gradients_within_a_call_are_those_of_value_and_grad(name: str, precision: Precision) -> None:
    """Of every kind of network, with potentials asked for and without."""
    spec, (frames, targets) = spec_of(name), samples()
    batch = Batch(frames.numpy().astype(np.uint8), targets.numpy().astype(np.uint8))
    expected = open_backend("torch").value_and_grad(
        spec, VanRossum(), initial_weights(spec, 4, GAIN), batch, precision=precision, dropout=(4, 0)
    )
    for full in (False, True):
        net = Network(spec, seed=4, gain=GAIN, precision=precision)
        output = net(frames, full=full)
        spikes = output.spikes if full else output
        assert np.array_equal(spikes.detach().numpy(), expected.spikes)
        loss = spike_loss(VanRossum(), spikes, targets, psp=spec.output_psp)
        named = {key: x for key, x in net.named().items() if key in spec.parameters}
        assert set(named) == set(expected.gradients)
        gradients = torch.autograd.grad(loss, list(named.values()))
        for (key, g), gradient in zip(expected.gradients.items(), gradients, strict=True):
            tolerance = 0 if precision == "reproducible" else 2e-6
            assert np.abs(gradient.numpy() - g).max() <= tolerance * np.abs(g).max(), key


def test_running_statistics_follow_the_batches_of_training() -> None:
    spec, (frames, _) = spec_of("normalised"), samples()
    net = Network(spec, gain=GAIN)
    norm = spec.graph.normalised[0].synapse.norm
    assert norm is not None
    initial = {key: net.named()[key].numpy().copy() for key in spec.statistics}
    net(frames)
    z = torch.nn.functional.conv2d(frames.flatten(0, 1).double(), _on_grid(net, spec, "conv1").double())
    mean, variance = (x.numpy() for x in (z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)))
    for key, of_batch in (("conv1.mean", mean), ("conv1.variance", variance)):
        moved = batchnorm.running(norm, initial[key], of_batch.astype(np.float32))
        assert np.allclose(net.named()[key].numpy(), moved, rtol=1e-6)
        assert not np.array_equal(moved, initial[key])
    trained = {key: net.named()[key].clone() for key in spec.statistics}
    net.eval()(frames)
    assert all(torch.equal(net.named()[key], x) for key, x in trained.items())
    assert {key for key in net.state_dict() if "mean" in key} == {"conv1.conv1_mean", "linear2.linear2_mean"}


def _on_grid(net: Network, spec: NetworkSpec, name: str) -> torch.Tensor:
    (projection,) = (x for x in spec.graph.projections if x.name == name)
    wq: torch.Tensor = open_backend("torch").weight_grid(projection, net.named()[name].detach())[0]
    return wq


@pytest.mark.parametrize("name", ["recurrent", "delayed", "normalised"])
def test_traced_and_mapped_networks_go_on_from_a_state(name: str) -> None:
    torch._dynamo.reset()
    spec, (frames, _) = spec_of(name), samples()
    net = Network(spec, gain=GAIN).eval()
    begun = net(frames[:3], full=True)
    expected = net(frames[3:], state=begun.state, full=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    output = compiled(frames[3:], state=begun.state, full=True)
    assert torch.equal(output.spikes, expected.spikes)
    assert list(output.state) == list(expected.state)
    for key, arrays in expected.state.items():
        assert all(torch.equal(a, b) for a, b in zip(output.state[key], arrays, strict=True)), key
    mapped = vmap(lambda x: net(x, full=True).potentials, 1, 1)(frames[:, None])
    for key, u in mapped.items():
        assert torch.equal(u[:, 0], net(frames, full=True).potentials[key])


@pytest.mark.parametrize("name", ["recurrent", "dropped before a recurrence"])
def test_gradients_of_potentials_are_traced_too(name: str) -> None:
    torch._dynamo.reset()
    spec, (frames, _) = spec_of(name), samples()

    def loss(net: Network) -> torch.Tensor:
        return torch.stack([u.square().mean() for u in net(frames, full=True).potentials.values()]).sum()

    net, same = (Network(spec, gain=GAIN) for _ in range(2))
    eager = torch.autograd.grad(loss(net), list(net.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(same), list(same.parameters())), strict=True):
        assert a.any()
        assert torch.equal(a, b)


def test_potentials_that_no_loss_reads_change_no_gradient() -> None:
    spec, (frames, targets) = spec_of("chain"), samples()
    net = Network(spec, gain=GAIN, precision="reproducible").eval()

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        gradients: torch.Tensor = (functional_call(net, parameters, (frames,), {"full": True}).spikes * targets).sum()
        return gradients

    parameters: dict[str, torch.Tensor] = dict(net.named_parameters())
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    gradients = grad(loss)({name: x.detach() for name, x in parameters.items()})
    for gradient, g in zip(gradients.values(), expected, strict=True):
        assert g.any()
        assert torch.equal(gradient, g)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [1], "a state must be a dict of arrays by name, got list"),
        (lambda _: "x", "a state must be a dict of arrays by name, got str"),
        (lambda state: {**state, "neurons1": 5}, "neurons1 in the state must be a tuple of tensors, got int"),
        (lambda state: {**state, "neurons1": (1, 2, 3)}, "neurons1 in the state must be a tuple of tensors"),
        (
            lambda state: {**state, "neurons1": tuple(x.to("meta") for x in state["neurons1"])},
            "an array of the state is on the device meta",
        ),
        (
            lambda state: {**state, "neurons1": (state["neurons1"][0] + 7, *state["neurons1"][1:])},
            "the spikes of neurons1 in the state are more than 1",
        ),
    ],
    ids=["list", "text", "number", "numbers", "meta", "spikes"],
)
def test_what_is_no_state_is_refused(change: Callable[[Any], Any], message: str) -> None:
    spec, (frames, _) = spec_of("chain"), samples()
    net = Network(spec)
    state = net(frames, full=True).state
    with pytest.raises(ShapeError, match=message):
        net(frames, state=change(state))


def test_states_of_others_are_refused() -> None:
    spec, (frames, _) = spec_of("chain"), samples()
    net = Network(spec)
    state = net(frames, full=True).state
    match = (
        r"the arrays of neurons1 in the state must be float32 \[1, 2, 4, 4, 4\], got torch.float32 \[1, 3, 4, 4, 4\]"
    )
    with pytest.raises(ShapeError, match=match):
        net(frames[:, :2], state=state)
    for other in (
        {**state, "neurons1": tuple(x[:, :, :, 1:] for x in state["neurons1"])},
        {**state, "neurons1": tuple(x.double() for x in state["neurons1"])},
    ):
        with pytest.raises(ShapeError, match="arrays of neurons1 in the state must be float32"):
            net(frames, state=other)
    with pytest.raises(ShapeError, match="the state has 0 arrays of step, not 1; it belongs to another module"):
        net(frames, state={})
    with pytest.raises(ShapeError, match="the state has 0 arrays of neurons1, not 3; it belongs to another module"):
        net(frames, state={"step": state["step"]})
    wanting = {**state, "neurons1": tuple(x.requires_grad_() for x in state["neurons1"])}
    with pytest.raises(SpecError, match="gradients do not flow into earlier calls; give a detached state"):
        net(frames, state=wanting)
    assert not any(x.requires_grad for arrays in net(frames, full=True).state.values() for x in arrays)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_not_finite_are_refused(value: float) -> None:
    """A potential that is NaN never reaches the threshold again."""
    torch.manual_seed(0)
    frames, _ = samples()
    modules = (
        Network(spec_of("chain")),
        Network(spec_of("delayed")).eval(),
        Sequential(SpikingConv2d(2, 4, 3), input_shape=(2, 6, 6)),
        SpikingConv2d(2, 4, 3),
        LIF(),
    )
    for module in modules:
        state = module(frames, full=True).state
        for name, arrays in state.items():
            for place, x in enumerate(arrays):
                if not x.is_floating_point():
                    continue
                wrong = x.clone()
                wrong[(-1,) * wrong.ndim] = value
                with pytest.raises(NumericError, match="holds a value that is not finite; give the state that"):
                    module(frames, state={**state, name: (*arrays[:place], wrong, *arrays[place + 1 :])})


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_spikes_of_a_state_that_are_no_numbers_of_spikes_are_refused(value: float) -> None:
    net, (frames, _) = Network(spec_of("chain")), samples()
    state = net(frames, full=True).state
    spikes, *others = state["neurons1"]
    with pytest.raises(ShapeError, match="spikes of neurons1 in the state must be whole numbers from 0 to 255"):
        net(frames, state={**state, "neurons1": (torch.full_like(spikes, value), *others)})


@pytest.mark.parametrize("step", [-1, 2**32, 2**40, 2**64, 0.5, True, "1"])
def test_a_step_or_seed_of_dropout_outside_32_bits_is_refused(step: Any) -> None:
    spec, (frames, _) = spec_of("dropped before a recurrence"), samples()
    net = Network(spec)
    with pytest.raises(SpecError, match="step of dropout must be an integer from 0 to"):
        net(frames, step=step)
    weights = {key: x.detach().numpy() for key, x in net.named().items()}
    with pytest.raises(SpecError, match="seed must be an integer from 0 to"):
        Network(spec, weights=weights, seed=step)
    state = net(frames, full=True).state
    if isinstance(step, float):
        with pytest.raises(ShapeError, match=r"step in the state must be an int64 number, got torch.float32 \[\]"):
            net(frames, state={**state, "step": (torch.tensor(step),)})
    elif isinstance(step, int) and step is not True and step < 2**63:
        with pytest.raises(SpecError, match="step of dropout must be an integer from 0 to"):
            net(frames, state={**state, "step": (torch.tensor(step),)})


def test_states_of_neurons_of_another_shape_are_refused() -> None:
    z, neurons = torch.rand(STEPS, 2, 5), LIF()
    with pytest.raises(ShapeError, match=r"neurons in the state must be float32 \[1, 2, 5\], got .* \[1, 2, 3\]"):
        neurons(z, state=neurons(z[..., :3], full=True).state)


def test_a_state_of_the_other_mode_is_refused_where_it_has_other_arrays() -> None:
    spec, (frames, _) = spec_of("dropped before a recurrence"), samples()
    net = Network(spec)
    state = net(frames, full=True).state
    with pytest.raises(ShapeError, match=r"has 4 arrays of neurons2, not 3; it belongs to .* the other mode"):
        net.eval()(frames, state=state)


def test_hidden_spikes_stand_beside_hidden_potentials() -> None:
    spec = NetworkSpec.parse("[8|8{delay=1}]+-6R-5", input_shape=(4,), outputs=3)
    net = Network(spec, gain=GAIN)
    frames = torch.from_numpy(np.random.default_rng(0).random((9, 5, 4)) < 0.5)
    out = net(frames, full=True)
    layers = open_backend("torch").run(spec, initial_weights(spec, 0, GAIN), frames.numpy(), steps=9).layers
    assert list(out.layer_spikes) == list(out.potentials) == list(layers)
    for name, expected in layers.items():
        assert expected.spikes.any(), name
        assert np.array_equal(out.layer_spikes[name].detach().numpy(), expected.spikes), name
    out.layer_spikes["linear1"].sum().backward()
    gradient = net.named()["linear1"].grad
    assert gradient is not None
    assert gradient.any()
    layered = Sequential(SpikingLinear(4, 6), SpikingLinear(6, 3, psp=PSP(4)), input_shape=(4,))
    assert list(layered(torch.ones(3, 2, 4), full=True).layer_spikes) == ["0.neurons", "1.neurons"]
    readout = Network(NetworkSpec.parse("6-3{neuron=readout,tau_m=5}", input_shape=(4,)))
    assert list(readout(frames, full=True).layer_spikes) == ["linear1"]


def test_potentials_of_a_readout_take_a_cross_entropy_of_torch() -> None:
    neuron = LIFSpec(3, 5 / 3)
    spec = NetworkSpec.parse("6-3{neuron=readout,tau_m=5}", input_shape=(2, 6, 6), neuron=neuron)
    frames, targets = samples()
    labels = torch.arange(BATCH)
    targets = torch.nn.functional.one_hot(labels, 3).expand(STEPS, BATCH, 3)
    batch = Batch(frames.numpy().astype(np.uint8), targets.numpy().astype(np.uint8))
    expected = open_backend("torch").value_and_grad(spec, CrossEntropy(), initial_weights(spec, 0, GAIN), batch)
    net = Network(spec, gain=GAIN)
    loss = torch.nn.functional.cross_entropy(net(frames, full=True).potentials["linear2"].mean(0), labels)
    assert loss.item() == pytest.approx(expected.loss, rel=1e-5)
    for (key, g), gradient in zip(
        expected.gradients.items(), torch.autograd.grad(loss, list(net.parameters())), strict=True
    ):
        assert np.abs(gradient.numpy() - g).max() <= 1e-4 * np.abs(g).max(), key
    with pytest.raises(SpecError, match="call it with full=True and use the potentials of linear2"):
        net(frames)


def _two_layers(first: str, population: str, second: str) -> NetworkSpec:
    return NetworkSpec.parse(
        f"""
        [[node]]
        name = "{first}"
        weights = "6"
        from = "input"

        [[node]]
        name = "other"
        weights = "6b"
        from = "input"

        [[node]]
        name = "{population}"
        neurons = ""
        from = ["{first}", "other"]

        [[node]]
        name = "{second}"
        weights = "3"
        from = "{population}"

        [[node]]
        name = "last"
        neurons = ""
        from = "{second}"
        """,
        input_shape=(2, 6, 6),
    )


@pytest.mark.parametrize(
    "names",
    [("w", "a.b", "a_b"), ("a.b", "p", "a_b"), ("forward", "step", "train"), ("handle", "seed", "spec")],
    ids="-".join,
)
def test_nodes_may_have_any_name(names: tuple[str, str, str]) -> None:
    frames, _ = samples()
    specs = _two_layers("a", "b", "c"), _two_layers(*names)
    initial = initial_weights(specs[0], 0, GAIN)
    values = [np.abs(initial[name]) for name in specs[0].parameters]
    for training in (False, True):
        plain, net = (
            Network(spec, weights=dict(zip(spec.parameters, values, strict=True))).train(training) for spec in specs
        )
        assert list(net.named()) == list(specs[1].parameters)
        assert len(list(net.parameters())) == len(values) == 4
        expected = in_chunks(plain, frames, (3, 4))[0]
        assert expected.any()
        assert torch.equal(in_chunks(net, frames, (3, 4))[0], expected)
    assert plain.state_dict().keys() == {"b.a.weight", "b.other.weight", "b.other.bias", "c.weight"}
