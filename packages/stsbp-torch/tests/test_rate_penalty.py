"""`stsbp_torch.rate_penalty`: the value and the gradient of the spec's penalty, also in a loop with a `Network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stsbp_torch
import torch
from stsbp_spec.engine.backend import Batch
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import UInt8

NETWORK = NetworkSpec.parse("6C3p1-P2-8C3p1-12", input_shape=(2, 8, 8), outputs=4)
STEPS, LENGTHS = 9, np.array([9, 4, 7])
PENALTY = RatePenalty(0.1, 30.0)


def _spikes(*shape: int, seed: int = 1) -> UInt8:
    return (np.random.default_rng(seed).random(shape) < 0.4).astype(np.uint8)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_value_and_gradient_against_autograd_in_float64(shape: tuple[int, ...], lengths: Any) -> None:
    s = _spikes(STEPS, 3, *shape)
    spikes = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    tensor = None if lengths is None else torch.from_numpy(lengths)
    value = stsbp_torch.rate_penalty(spikes, 0.3, 7.0, lengths=tensor)
    (value * 3).backward()  # type: ignore[no-untyped-call]
    wide = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    steps = torch.full((3,), STEPS) if tensor is None else tensor
    axes = (1, 3, *(1,) * len(shape))
    masked = wide * (torch.arange(STEPS).view(-1, 1) < steps).view(STEPS, 3, *axes[2:])
    excess = (masked.sum(0) / steps.view(axes[1:]) - 0.3).clamp(min=0)
    expected = 7 * (excess**2).mean()
    (expected * 3).backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert spikes.grad is not None
    assert wide.grad is not None
    assert torch.count_nonzero(spikes.grad) > 0.2 * spikes.grad.numel()
    torch.testing.assert_close(spikes.grad.double(), wide.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
def test_a_network_in_a_loop_has_the_gradients_of_the_trainer(lengths: Any) -> None:
    weights = initial_weights(NETWORK, 1, 2.5)
    inputs, targets = _spikes(STEPS, 3, *NETWORK.input_shape), _spikes(STEPS, 3, 4, seed=2)
    penalties = {block.name: PENALTY for block in NETWORK.blocks}
    batch = Batch(inputs, targets, lengths)
    expected = NumpyBackend().value_and_grad(
        NETWORK, VanRossum(), weights, batch, precision="reproducible", rate_penalty=penalties
    )
    module = stsbp_torch.Network(NETWORK, precision="reproducible").eval()
    module.load_state_dict({f"{name}.weight": torch.from_numpy(w) for name, w in weights.items()})
    parameters = dict(module.named_parameters())
    for name, w in weights.items():
        assert torch.equal(_parameter(parameters, name), torch.from_numpy(w))
    output = module(torch.from_numpy(inputs), full=True)
    tensor = None if lengths is None else torch.from_numpy(lengths)
    loss = stsbp_torch.spike_loss(
        VanRossum(), output.spikes, torch.from_numpy(targets), psp=NETWORK.output_psp, lengths=tensor
    )
    values = {
        block.name: stsbp_torch.rate_penalty(
            output.layer_spikes[block.name], PENALTY.target, PENALTY.weight, lengths=tensor
        )
        for block in NETWORK.blocks
    }
    (loss + sum(values.values())).backward()  # type: ignore[no-untyped-call]
    for name, gradient in expected.gradients.items():
        got = _parameter(parameters, name).grad
        assert got is not None
        assert np.array_equal(got.numpy(), gradient), name
    for name, penalty in expected.penalties.items():
        assert penalty > 0
        assert float(values[name].detach()) == pytest.approx(penalty, rel=1e-5)


def _parameter(parameters: dict[str, Any], name: str) -> Any:
    (found,) = (x for key, x in parameters.items() if key in (name, f"{name}.weight"))
    return found


def test_the_error_of_one_layer_has_the_bits_of_every_backend() -> None:
    s = _spikes(STEPS, 3, 2, 3, 4)
    spikes = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    stsbp_torch.rate_penalty(spikes, 0.1, 30.0).backward()  # type: ignore[no-untyped-call]
    error, _ = NumpyBackend().rate_penalty(PENALTY, s, 3)
    assert spikes.grad is not None
    assert np.array_equal(spikes.grad.numpy(), np.broadcast_to(error, s.shape))


def test_compiled_and_mapped() -> None:
    spikes = torch.tensor(_spikes(2, STEPS, 3, 5), dtype=torch.float32)

    def penalty(x: torch.Tensor) -> torch.Tensor:
        return stsbp_torch.rate_penalty(x, 0.1, 30.0)

    expected = [torch.func.grad(penalty)(x) for x in spikes]
    mapped = torch.func.vmap(torch.func.grad(penalty))(spikes)
    assert torch.equal(mapped, torch.stack(expected))
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(penalty, backend="aot_eager", fullgraph=True)
    x = spikes[0].clone().requires_grad_()
    compiled(x).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, expected[0])


def test_wrong_arguments() -> None:
    good = torch.zeros(4, 2, 3)
    with pytest.raises(SpecError, match="target must be a rate"):
        stsbp_torch.rate_penalty(good, 1.0, 1.0)
    with pytest.raises(SpecError, match="weight must be from"):
        stsbp_torch.rate_penalty(good, 0.1, 0.0)
    with pytest.raises(ShapeError, match=r"must be \[T, B, N\]"):
        stsbp_torch.rate_penalty(good[0], 0.1, 1.0)
    with pytest.raises(ShapeError, match="0 or 1"):
        stsbp_torch.rate_penalty(good + 2, 0.1, 1.0)
    with pytest.raises(NumericError, match="not finite"):
        stsbp_torch.rate_penalty(good + torch.nan, 0.1, 1.0)
    with pytest.raises(ShapeError, match="length"):
        stsbp_torch.rate_penalty(good, 0.1, 1.0, lengths=torch.tensor([5, 1]))
