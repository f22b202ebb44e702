"""The jitted training step against the spec's own trainer on the reference, and its behaviour towards the loop."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from stsbp_jax import distance
from stsbp_jax.backend import JaxBackend
from stsbp_spec import LIF, AbstractBackend, AdamW, Batch, Loss, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.equations.expressions import Names, snap
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.surrogates import Logistic
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float64, UInt8

JAX = JaxBackend()
NETWORK = NetworkSpec.parse(
    "6C3-P2-8C3p1s2-D0.2-20", input_shape=(2, 14, 14), outputs=5, neuron=LIF(5.0, 3.0), dropout=0.3
)


def batches(network: NetworkSpec, sizes: list[int], steps: int = 8) -> list[Batch]:
    rng = np.random.default_rng(5)
    drawn = []
    for size in sizes:
        if network.coding == "direct":
            inputs = rng.integers(0, 256, (size, *network.input_shape), dtype=np.uint8)
        else:
            inputs = (rng.random((steps, size, *network.input_shape)) < 0.3).astype(np.uint8)
        drawn.append(Batch(inputs, (rng.random((steps, size, network.outputs)) < 0.3).astype(np.uint8)))
    return drawn


def checksum(exported: dict[str, Any]) -> str:
    return hashlib.sha256(b"".join(exported[name].tobytes() for name in sorted(exported))).hexdigest()


def test_reproducible_step_of_full_size_network_has_reference_checksum() -> None:
    network = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10, dropout=0.2)
    (batch,) = batches(network, [2], steps=25)
    sums = set()
    backends: list[AbstractBackend] = [NumpyBackend(), JAX]
    for backend in backends:
        trainer = backend.trainer(network, VanRossum(), AdamW(), precision="reproducible", seed=1)
        state = trainer.init(initial_weights(network, seed=0))
        for _ in range(3):
            state, _ = trainer.step(state, batch)
        sums.add(checksum(trainer.export_state(state)))
    assert len(sums) == 1


def test_steps_of_two_batch_sizes_compile_twice_whatever_the_epochs(caplog: pytest.LogCaptureFixture) -> None:
    trainer = JaxBackend().trainer(NETWORK, VanRossum(), AdamW(lr=1e-3, total_steps=12, warmup_steps=2))
    state = trainer.init(initial_weights(NETWORK, seed=0))
    with caplog.at_level(logging.INFO, logger="stsbp_jax"):
        for batch in batches(NETWORK, [4, 4, 3] * 3):
            state, _ = trainer.step(state, batch)
            trainer.predict(state, batch.inputs, 8)
    assert [r.getMessage().rsplit(" in ")[0] for r in caplog.records] == [
        *("compiled gradients", "compiled update", "compiled output"),
        *("compiled gradients", "compiled output"),
    ]
    assert trainer.backend.compile_seconds > 0


def test_step_with_bad_weights_names_layer_and_leaves_the_state() -> None:
    trainer = JAX.trainer(NETWORK, VanRossum(), AdamW())
    weights = initial_weights(NETWORK, seed=0)
    weights["conv2"][0, 0, 0, 0] = np.nan
    state = trainer.init(weights)
    with pytest.raises(NumericError, match="layer conv2: a weight is not finite"):
        trainer.step(state, batches(NETWORK, [3])[0])
    assert np.isnan(trainer.export_state(state)["weight/conv2"]).sum() == 1


def test_value_and_grad_refuses_what_the_spec_refuses() -> None:
    weights = initial_weights(NETWORK, seed=0)
    (batch,) = batches(NETWORK, [3])
    with pytest.raises(ShapeError, match="inputs must be uint8"):
        JAX.value_and_grad(NETWORK, VanRossum(), weights, Batch(batch.inputs.astype(np.int32), batch.targets))
    with pytest.raises(ShapeError, match="targets must be"):
        JAX.value_and_grad(NETWORK, VanRossum(), weights, Batch(batch.inputs, batch.targets[:, :2]))
    with pytest.raises(ShapeError, match="weights must have the layers"):
        JAX.value_and_grad(NETWORK, VanRossum(), {}, batch)
    with pytest.raises(ShapeError, match="expected 9"):
        JAX.run(NETWORK, weights, batch.inputs, 9)
    logistic = NetworkSpec.parse("9", input_shape=(6,), outputs=4, neuron=LIF(surrogate=Logistic()))
    with pytest.raises(SpecError, match="uses exp"):
        JAX.trainer(logistic, VanRossum(), AdamW(), precision="reproducible")
    with pytest.raises(SpecError, match="seed must be"):
        JAX.value_and_grad(NETWORK, VanRossum(), weights, batch, dropout=(-1, 0))


@dataclass(frozen=True)
class OtherLoss(Loss):
    name: ClassVar[str] = "other"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)
    states: ClassVar[tuple[str, ...]] = ("ahead",)

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        return np.zeros(spikes.shape[1])

    def constants(self, psp: PSP, steps: int, batch: int) -> dict[str, float]:
        return {"scale": 1 / (3 * batch)}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = snap(s.ahead - p.scale * (x.o - x.target))
        return LossStep({"ahead": r}, r)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, snap(x.r + p.scale * (x.count - x.target_count)))


def test_a_loss_of_ones_own_trains_and_has_no_distance_here() -> None:
    weights, (batch,) = initial_weights(NETWORK, seed=0), batches(NETWORK, [3])
    gradients = [
        backend.value_and_grad(NETWORK, OtherLoss(), weights, batch, precision="reproducible").gradients
        for backend in (NumpyBackend(), JAX)
    ]
    for name, expected in gradients[0].items():
        assert expected.any()
        np.testing.assert_array_equal(gradients[1][name], expected)
    spikes = batch.targets.astype(np.float32)
    with pytest.raises(BackendError, match="does not know the loss OtherLoss; it knows VanRossum, Hamming, SpikeCount"):
        distance(OtherLoss(), PSP(), spikes, spikes)


def test_devices_name_what_is_there_and_why_the_rest_is_not() -> None:
    devices = {device.name: device for device in JaxBackend.devices()}
    assert {"cpu", "gpu", "tpu"} <= set(devices)
    assert devices["cpu"].problem is None
    for device in devices.values():
        if device.problem is not None:
            assert f"jax finds no {device.name}" in device.problem
            assert "\n" not in device.problem
            with pytest.raises(BackendError, match="usable here: cpu"):
                JaxBackend(device.name)


@pytest.mark.parametrize("name", ["cuda", "cpu:7", "cpu:x", "cpu:", "cpu:0", ""])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match="usable here: cpu"):
        JaxBackend(name)


def test_a_loss_may_divide_by_a_number_of_each_sample() -> None:
    """On `cpu:xla`, one divisor is for all steps."""
    (batch,) = batches(NETWORK, [3])
    backends: list[AbstractBackend] = [NumpyBackend(), JaxBackend("cpu"), JaxBackend("cpu:xla")]
    weights = initial_weights(NETWORK, 0, 3.0)
    expected, *others = (
        b.value_and_grad(NETWORK, RelativeCount(), weights, batch, precision="reproducible") for b in backends
    )
    for result in others:
        for name, g in expected.gradients.items():
            assert g.any()
            np.testing.assert_array_equal(result.gradients[name], g, err_msg=name)


def test_a_stream_goes_on_after_a_step_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, (batch,) = JaxBackend("cpu"), batches(NETWORK, [2])
    weights = initial_weights(NETWORK, 0, 3.0)
    one, other = (backend.stream(NETWORK, weights, 2) for _ in range(2))
    for stream in (one, other):
        stream.step(batch.inputs[0])

    def without_memory(x: Any) -> Any:
        raise MemoryError("no memory for 12 GB")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "numpy", without_memory)
        with pytest.raises(MemoryError):
            one.step(batch.inputs[1])
    assert one.steps == 1
    for x in batch.inputs[1:]:
        np.testing.assert_array_equal(one.step(x), other.step(x))
    assert one.steps == other.steps


def test_results_of_programs_that_fail_raise_the_original_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run asynchronously, so they may fail only when a result is read."""
    entered = list[object]()

    @contextmanager
    def noted(collective: object) -> Iterator[None]:
        entered.append(collective)
        yield

    monkeypatch.setattr("stsbp_jax.backend.guarded", noted)
    JAX.numpy(jnp.zeros(3))
    assert entered == [JAX.alone()]


@dataclass(frozen=True)
class RelativeCount(Loss):
    """Differences of spikes, relative to the number of target spikes."""

    name: ClassVar[str] = "relative"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    def distance(self, spikes: UInt8, targets: UInt8, psp: PSP) -> Float64:
        difference: Float64 = np.abs(spikes.astype(float) - targets).sum((0, 2))
        return difference

    def constants(self, psp: PSP, steps: int, batch: int) -> dict[str, Any]:
        return {"scale": 1 / batch}

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, p.scale * (x.o - x.target) / (1 + x.target_count))


def test_float64_stays_inside() -> None:
    JAX.value_and_grad(
        NETWORK, VanRossum(), initial_weights(NETWORK, 0), batches(NETWORK, [2])[0], precision="reproducible"
    )
    assert jnp.arange(3.0).dtype == np.float32
    assert jnp.asarray(np.zeros(2, np.float64)).dtype == np.float32


FAULTS = """
import resource
import numpy as np
from stsbp_jax.backend import JaxBackend
from stsbp_spec import AdamW, Batch, NetworkSpec, VanRossum, initial_weights
network = NetworkSpec.parse("12C5-P2", input_shape=(2, 34, 34), outputs=10)
batch = Batch(np.ones((25, 20, 2, 34, 34), np.uint8), np.ones((25, 20, 10), np.uint8))
trainer = JaxBackend("cpu").trainer(network, VanRossum(), AdamW())
state = trainer.init(initial_weights(network, seed=0))
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    state, _ = trainer.step(state, batch)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The heap may still grow once, when threads meet in a new order.
print(sorted(faults[3:])[2])
"""


def test_steps_touch_no_fresh_memory() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the allocator is told to keep memory with glibc only")
    faults = {}
    for keep in ("0", "1"):
        environment = {**os.environ, "STSBP_KEEP_MEMORY": keep, "JAX_PLATFORMS": "cpu"}
        printed = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        ).stdout
        faults[keep] = int(printed)
    assert faults["1"] < faults["0"] / 10, faults


def test_the_step_of_a_mask_may_be_a_number_of_any_integer_type() -> None:
    masks = [np.asarray(JAX.dropout_mask(1, 16, step, (2, 50), 0.5)) for step in (3, np.int8(3), np.uint64(3))]  # type: ignore[arg-type]
    assert 0 < masks[0].mean() < 1
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("device", ["cpu", "cpu:xla"])
def test_delays_that_change_compile_nothing(device: str, caplog: pytest.LogCaptureFixture) -> None:
    network = NetworkSpec.parse("T5-6-T3-5", input_shape=(6,), outputs=4)
    trainer = JaxBackend(device).trainer(network, VanRossum(), AdamW(lr=1e-3, delay_lr=1.0))
    state, whole_steps = trainer.init(initial_weights(network, seed=0)), set[bytes]()
    with caplog.at_level(logging.INFO, logger="stsbp_jax"):
        for batch in batches(network, [4] * 4):
            state, _ = trainer.step(state, batch)
            trainer.predict(state, batch.inputs, 8)
            delays = trainer.export_state(state)["weight/delay2.steps"]
            whole_steps.add(np.rint(delays).tobytes())
    assert len(whole_steps) > 1
    # Two updates: that of the delays has constants and a domain of its own.
    compiled = [r.getMessage().rsplit(" in ")[0] for r in caplog.records]
    assert [text for text in compiled if text != "compiled weight grids"] == [
        *("compiled gradients", "compiled update", "compiled update", "compiled output"),
    ]
    assert len(compiled) == len(set(compiled)) + 1
