"""`torch.set_default_dtype` in the user's process changes no bits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import stsbp_torch
import torch
from stsbp_spec import ALIF, LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.models.losses import Loss
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.models.neurons import PLIF
from stsbp_spec.typing import AnyArray
from stsbp_torch import Network, SpikingConv2d, SpikingLinear, spike_loss
from stsbp_torch.backend import TorchBackend

FACTORIES = {"arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand"}
FACTORIES |= {"randn", "scalar_tensor", "tensor", "zeros"}
"""Functions of torch that return a tensor of the default type if they get no other."""

CASES: dict[str, tuple[NetworkSpec, Loss]] = {
    "convolutions": (
        NetworkSpec.parse("4C3p1-P2-D0.2-6C3bn-12", input_shape=(2, 10, 10), outputs=4, neuron=LIF(3, 5 / 3)),
        VanRossum(),
    ),
    "images": (
        NetworkSpec.parse("1C3-M2-12b", input_shape=(1, 8, 8), outputs=4, coding="direct", neuron=PLIF(3, 5 / 3)),
        VanRossum(),
    ),
    "recurrent": (
        NetworkSpec.parse("12R-10R{delay=2}", input_shape=(7,), outputs=4, neuron=ALIF(3, 5 / 3)),
        VanRossum(),
    ),
    "readout": (
        NetworkSpec.parse("12-4{neuron=readout}", input_shape=(7,), neuron=LIF(3, 5 / 3)),
        CrossEntropy(),
    ),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def batch_of(net: NetworkSpec) -> Batch:
    rng = np.random.default_rng(0)
    if net.coding == "direct":
        inputs = rng.integers(0, 256, (3, *net.input_shape)).astype(np.uint8)
    else:
        inputs = (rng.random((5, 3, *net.input_shape)) < 0.4).astype(np.uint8)
    targets = np.zeros((5, 3, net.outputs), np.uint8)
    targets[:, np.arange(3), rng.integers(0, net.outputs, 3)] = 1
    return Batch(inputs, targets)


def computed(device: str, net: NetworkSpec, loss: Loss) -> dict[str, AnyArray]:
    """Potentials, gradients, losses and trained weights, by name."""
    backend, weights, batch = TorchBackend(device), initial_weights(net, 1, 3.0), batch_of(net)
    arrays: dict[str, AnyArray] = {}
    for name, layer in backend.run(net, weights, batch.inputs, 5).layers.items():
        arrays |= {f"{name} potentials": layer.potentials, f"{name} spikes": layer.spikes}
    for precision in ("fast",) if net.has_readout else ("fast", "reproducible"):
        trainer = backend.trainer(net, loss, AdamW(lr=0.05), precision=precision, seed=3)  # type: ignore[arg-type]
        state = trainer.init(weights)
        for _ in range(2):
            state, report = trainer.step(state, batch)
            arrays[f"{precision} loss"] = np.asarray(report.loss)
        arrays |= {f"{precision} {name}": w.numpy() for name, w in state.weights.items()}
        result = backend.value_and_grad(net, loss, weights, batch, precision=precision)  # type: ignore[arg-type]
        arrays |= {f"{precision} gradient of {name}": g for name, g in result.gradients.items()}
    return arrays


@pytest.mark.parametrize("device", ["cpu", "cpu:eager"])
@pytest.mark.parametrize("name", CASES)
def test_backend_has_the_same_bits_under_another_default_dtype(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On `cpu`, torch computes filters and losses only until they have run a few times.
    monkeypatch.setattr("stsbp_cpu.equations.recurrence.pays", lambda _: False)
    expected = computed(device, *CASES[name])
    with default_dtype(torch.float64):
        actual = computed(device, *CASES[name])
    assert actual.keys() == expected.keys()
    for key, x in expected.items():
        assert x.dtype == actual[key].dtype, key
        assert np.array_equal(x, actual[key]), key


@pytest.mark.parametrize("name", ["convolutions", "images", "recurrent"])
def test_modules_have_the_same_bits_under_another_default_dtype(name: str) -> None:
    net, loss = CASES[name]
    batch = batch_of(net)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)

    def trained() -> list[torch.Tensor]:
        module = Network(net, seed=2, gain=3.0)
        out = module(inputs, 5 if net.coding == "direct" else None, full=True)
        value = spike_loss(loss, out.spikes, targets.float(), psp=net.output_psp)
        value.backward()  # type: ignore[no-untyped-call]
        gradients = [x.grad for x in module.parameters() if x.grad is not None]
        arrays = [x for arrays in out.state.values() for x in arrays]
        return [out.spikes, value, *out.potentials.values(), *gradients, *module.state_dict().values(), *arrays]

    expected = trained()
    with default_dtype(torch.float64):
        actual = trained()
    for x, y in zip(expected, actual, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def test_layers_are_made_alike_under_another_default_dtype() -> None:
    def layer_parameters() -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = SpikingConv2d(2, 3, 3, bias=True), SpikingLinear(5, 4, bias=True)
        return [x for layer in layers for x in layer.parameters()]

    expected = layer_parameters()
    with default_dtype(torch.float64):
        actual = layer_parameters()
    for x, y in zip(expected, actual, strict=True):
        assert x.dtype == y.dtype == torch.float32
        assert torch.equal(x, y)


def test_every_call_that_makes_a_tensor_names_its_dtype() -> None:
    calls = 0
    for path in sorted(Path(stsbp_torch.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in FACTORIES
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "torch"
            ):
                calls += 1
                named = any(keyword.arg == "dtype" for keyword in node.keywords)
                assert named, f"{path.name}:{node.lineno}: torch.{node.func.attr} takes the user's default dtype"
    assert calls > 10
