"""`experiments/delay_spread.py`: its kernels, and that its rule for rounded delays is the one of stsbp."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from stsbp_spec import NetworkSpec, VanRossum, initial_weights

torch = pytest.importorskip("torch")
pytest.importorskip("stsbp_torch")
pytest.importorskip("scipy")

SCRIPT = Path(__file__).parents[3] / "experiments" / "delay_spread.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("delay_spread_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its classes look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kernel", ["triangle", "gaussian"])
def test_kernels_sum_to_one_and_have_their_mean_at_the_delay(script: ModuleType, kernel: str) -> None:
    delays = torch.tensor([0.0, 0.3, 8.0, 12.5, 24.7, 25.0])
    for width in (script.WIDEST, 3.0, script.NARROWEST[kernel]):
        weights = script.kernels(delays, kernel, width)
        np.testing.assert_allclose(weights.sum(dim=1), 1.0, rtol=1e-6)  # 27 summands, each within 2^-24
        assert weights[3, 12] == weights[3, 13] == weights[3].max()
        assert (weights[:, script.LARGEST + 1] == 0).all()
    linear = script.kernels(delays, "triangle", 1.0)
    np.testing.assert_allclose(linear[1, :3], [0.7, 0.3, 0.0], atol=1e-6)


def test_setting_width_shrinks_until_its_part_of_the_training(script: ModuleType) -> None:
    setting = script.Setting("gaussian", 0.2, 0.25)
    assert setting.width(0.0) == script.WIDEST
    assert setting.width(0.125) == pytest.approx((script.WIDEST * 0.23) ** 0.5)
    assert setting.width(0.25) == setting.width(1.0) == pytest.approx(0.23)
    assert script.FIXED.width(0.5) == 0.0


def test_delayed_network_has_the_spikes_and_the_gradients_of_stsbp(script: ModuleType) -> None:
    from stsbp_torch.nn import Network, spike_loss

    network = NetworkSpec.parse(f"T{script.LARGEST}-12", input_shape=(9,), outputs=3)
    weights = initial_weights(network, 0)
    # On every weight grid, so that nothing is rounded.
    weights["linear1"] = (np.round(weights["linear1"] * 16) / 16).astype(np.float32)
    weights["delay1.steps"][:3] = 0.0, 8.0, 25.0
    random = np.random.default_rng(0)
    frames = torch.from_numpy((random.random((40, 6, 9)) < 0.2).astype(np.uint8))
    targets = torch.from_numpy((random.random((40, 6, 3)) < 0.2).astype(np.uint8))
    own = Network(network, weights={name: x.copy() for name, x in weights.items()})
    net = script.DelayedNetwork(network, {name: x.copy() for name, x in weights.items()}, steps=40)
    outputs = [own(frames), net(frames)]
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].sum() > 0
    for spikes in outputs:
        loss: Any = spike_loss(VanRossum(), spikes, targets, psp=network.output_psp)
        loss.backward()
    expected = own.named()
    for name, x in (("delay1.steps", net.delays), ("linear1", net.weight), ("linear2", net.output.weight)):
        gradient = expected[name].grad
        assert gradient is not None
        largest = float(gradient.abs().max())
        assert largest > 0
        # Float32 sums of up to 240 summands in another order.
        np.testing.assert_allclose(x.grad.numpy(), gradient.numpy(), rtol=0, atol=240 * 2.0**-24 * largest)
