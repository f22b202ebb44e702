"""The layers in ordinary JAX code: gradients under every transformation, the page's example, the public names."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stsbp_jax
from jax.experimental.sparse import BCOO
from stsbp_jax import apply, avgpool2d, clip_to_domain, conv2d, distance, lif, linear, snap_weights
from stsbp_jax.engine import checks
from stsbp_spec import (
    LIF,
    PSP,
    AvgPool2d,
    Batch,
    Conv2d,
    Hamming,
    Linear,
    Loss,
    NetworkSpec,
    SpikeCount,
    VanRossum,
    initial_weights,
)
from stsbp_spec.equations.assembly import loss_padding
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.neurons import Readout
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.networks.ops.maxpool2d import MaxPool2d
from stsbp_spec.networks.ops.upsample2d import Upsample2d
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Coding, Precision

STEPS, BATCH = 7, 3
LIST: Any = [[[1]]]
NO_WEIGHTS: Any = None
FLAT, IMAGES = jnp.zeros((3, 2, 4)), jnp.zeros((3, 2, 4, 4, 1))
WRAPPERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": lambda f: jax.value_and_grad(f),
    "jit": lambda f: jax.jit(jax.value_and_grad(f)),
    "checkpoint": lambda f: jax.jit(jax.value_and_grad(jax.checkpoint(f))),
    "vmap": lambda f: (
        lambda w, x, y: jax.tree.map(
            lambda a: a[1],
            jax.jit(jax.vmap(jax.value_and_grad(f), (None, 0, 0)))(w, jnp.stack([x[::-1], x]), jnp.stack([y, y])),
        )
    ),
}


def example(coding: Coding = "events") -> tuple[NetworkSpec, dict[str, Any], Any, Any]:
    network = NetworkSpec.parse(
        "4C3-P2-6C3p1s2-D0.2", input_shape=(2, 12, 12), outputs=5, coding=coding, neuron=LIF(5.0, 3.0), dropout=0.2
    )
    rng = np.random.default_rng(3)
    if coding == "events":
        x = (rng.random((STEPS, BATCH, 2, 12, 12)) < 0.3).astype(np.uint8)
    else:
        x = rng.integers(0, 256, (BATCH, 2, 12, 12), dtype=np.uint8)
    y = (rng.random((STEPS, BATCH, 5)) < 0.3).astype(np.uint8)
    return network, dict(initial_weights(network, seed=0)), x, y


@cache
def compiled_apply() -> Any:
    """`apply` of the example's network under a jit, with the inputs as argument."""
    network, weights, _, _ = example()
    return jax.jit(lambda x: apply(network, weights, x, STEPS))


@cache
def transformed_lif() -> list[Any]:
    """`lif` under a jit and under a vmap, with its input as argument."""

    def fired(z: Any) -> Any:
        return lif(LIF(), PSP(3.0).filter(), z, 6)

    return [jax.jit(fired), jax.vmap(fired, 1, 1)]


@cache
def compiled_distance() -> Any:
    return jax.jit(partial(distance, Hamming(), PSP(4)))


CASES = [
    *(("jit", loss()) for loss in (VanRossum, Hamming, SpikeCount)),
    ("vmap", VanRossum()),
    *(pytest.param(name, VanRossum(), marks=pytest.mark.long) for name in ("eager", "checkpoint")),
]


@pytest.mark.parametrize(("wrapper", "loss"), CASES, ids=str)
def test_apply_reproducible_gradients_equal_reference(wrapper: str, loss: Loss) -> None:
    network, weights, x, y = example()

    def objective(weights: Any, x: Any, y: Any) -> Any:
        spikes = apply(network, weights, x, STEPS, dropout=(1, 2), precision="reproducible")
        return distance(loss, network.output_psp, spikes, y)

    value, gradients = WRAPPERS[wrapper](objective)(weights, x, y)
    expected = NumpyBackend().value_and_grad(
        network, loss, weights, Batch(x, y), precision="reproducible", dropout=(1, 2)
    )
    assert float(value) == pytest.approx(expected.loss, rel=1e-6)
    for name, g in expected.gradients.items():
        assert g.any()
        np.testing.assert_array_equal(gradients[name], g, err_msg=name)


def test_apply_knows_every_layer() -> None:
    network = NetworkSpec.parse(
        "4C3x2p1x0{dilation=1x2,groups=2}-M1x2-6C2b-P3x1-U2-F", input_shape=(2, 8, 8), outputs=5, neuron=LIF(5, 3, 0.5)
    )
    rng = np.random.default_rng(3)
    x, y = ((rng.random((STEPS, BATCH, *shape)) < 0.4).astype(np.uint8) for shape in ((2, 8, 8), (5,)))
    weights = initial_weights(network, seed=0, gain=2.0)
    expected = NumpyBackend().value_and_grad(network, VanRossum(), weights, Batch(x, y), precision="reproducible")

    def value(weights: Any) -> Any:
        return distance(VanRossum(), network.output_psp, apply(network, weights, x, STEPS, precision="reproducible"), y)

    assert expected.spikes.any()
    for name, g in jax.jit(jax.grad(value))(weights).items():
        assert g.any()
        np.testing.assert_array_equal(g, expected.gradients[name], err_msg=name)


def test_apply_direct_coding_equals_reference() -> None:
    network, weights, x, y = example("direct")
    expected = NumpyBackend().value_and_grad(network, VanRossum(), weights, Batch(x, y), precision="reproducible")

    @jax.jit
    def gradients(weights: Any) -> Any:
        return jax.grad(
            lambda w: distance(
                VanRossum(), network.output_psp, apply(network, w, x, STEPS, precision="reproducible"), y
            )
        )(weights)

    np.testing.assert_array_equal(apply(network, weights, x, STEPS), expected.spikes)
    for name, g in gradients(weights).items():
        np.testing.assert_array_equal(g, expected.gradients[name], err_msg=name)


def test_apply_gradient_in_float_inputs_is_there() -> None:
    network, weights, x, y = example()
    g = jax.grad(lambda x: distance(Hamming(), network.output_psp, apply(network, weights, x, STEPS), y))(
        x.astype(np.float32)
    )
    assert g.shape == x.shape
    assert np.abs(g).max() > 0


def test_apply_with_weights_that_are_not_finite_is_seen_in_the_gradient() -> None:
    network, weights, x, y = example()
    weights["conv2"] = weights["conv2"] * np.float32(np.inf)
    g = jax.grad(lambda w: distance(VanRossum(), network.output_psp, apply(network, w, x, STEPS), y))(weights)
    assert np.isnan(g["conv2"]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_or_stay_not_finite(value: float) -> None:
    z = np.zeros((6, 2, 5), np.float32)
    z[2, 1, 3] = value
    filter = PSP(3.0).filter()
    for sums in (z, jnp.asarray(z)):
        with pytest.raises(NumericError, match="the input of lif holds a value that is not finite"):
            lif(LIF(), filter, sums, 6)  # type: ignore[arg-type]
    for function in transformed_lif():
        spikes = np.asarray(function(jnp.asarray(z)))
        expected = np.zeros_like(z)
        expected[2:, 1, 3] = np.nan
        assert np.array_equal(spikes, expected, equal_nan=True)
    network, weights, x, _ = example()
    frames = x.astype(np.float32)
    frames[3, 1, 0, 5, 5] = value
    with pytest.raises(NumericError, match="the input of apply holds a value that is not finite"):
        apply(network, weights, frames, STEPS)
    spikes = np.asarray(compiled_apply()(frames))
    assert np.isnan(spikes[3:, 1]).all()
    assert np.isfinite(spikes[:, [0, 2]]).all()


@pytest.mark.parametrize("value", [2.0, 0.25, -1.0, 1 + 2.0**-23])
def test_inputs_that_are_no_spikes_are_refused_or_become_nan(value: float) -> None:
    network, weights, x, _ = example()
    frames = x.astype(np.float32)
    assert np.array_equal(apply(network, weights, frames, STEPS), apply(network, weights, x, STEPS))
    frames[4, 2, 1, 3, 3] = value
    with pytest.raises(ShapeError, match="the inputs of apply must be spikes, 0 or 1, got"):
        apply(network, weights, frames, STEPS)
    # A jit that closes over the frames has their values.
    with pytest.raises(ShapeError, match="the inputs of apply must be spikes, 0 or 1, got"):
        jax.jit(lambda w: apply(network, w, frames, STEPS))(weights)
    spikes = np.asarray(compiled_apply()(frames))
    assert np.isnan(spikes[4:, 2]).all()
    assert np.isfinite(spikes[:4]).all()


@pytest.mark.parametrize("is_on_host", [True, False])
@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        (lambda x: checks.check_finite("x", x), np.inf, "x holds a value that is not finite"),
        (lambda x: checks.in_domain("x", x, 0, 1), 1.5, "x is 1.5, outside of its domain from 0 to 1"),
        (lambda x: checks.on_grid("x", x, 0, 1), 0.25, "x must be spikes, 0 or 1, got 0.25"),
        (lambda x: checks.on_grid("x", x, 8, 255 / 256), 1.0, r"multiples of 2\^-8 from 0 to 0.996094, got 1"),
    ],
)
def test_checks_see_the_last_element_on_the_host_and_on_an_accelerator(
    call: Any, value: float, message: str, is_on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_is_on_host", lambda x: is_on_host)
    monkeypatch.setattr(checks, "_PART", 10)
    x = np.zeros((2, 6, 5), np.float32)
    call(jax.device_put(x))
    x[1, 5, 4] = value
    for array in (x, x.astype(np.float64), jax.device_put(x)):
        with pytest.raises((NumericError, ShapeError), match=message):
            call(array)


def test_images_of_other_types_are_multiples_of_a_256th() -> None:
    network, weights, x, _ = example("direct")
    grey = x.astype(np.float32) / 256
    assert np.array_equal(apply(network, weights, grey, STEPS), apply(network, weights, x, STEPS))
    for wrong in (x.astype(np.int32), x.astype(np.float32), grey + np.float32(2.0**-9)):
        with pytest.raises(ShapeError, match=r"the inputs of apply must be multiples of 2\^-8 from 0 to 0.996"):
            apply(network, weights, wrong, STEPS)


def test_layers_compose_by_hand_to_what_apply_computes() -> None:
    network = NetworkSpec.parse("4C3-P2", input_shape=(2, 12, 12), outputs=5)
    conv, out = network.blocks
    weights = initial_weights(network, seed=0)
    x = (np.random.default_rng(3).random((STEPS, BATCH, 2, 12, 12)) < 0.3).astype(np.float32)
    s = jnp.moveaxis(jnp.asarray(x), 2, -1)
    z = conv2d(Conv2d(4, 3), s, snap_weights(conv, jnp.asarray(weights["conv1"])))
    s = avgpool2d(AvgPool2d(2), lif(LIF(), conv.filter(training=False), z, STEPS))
    s = lif(LIF(), LIF().psp.filter(), linear(Linear(5), s, snap_weights(out, jnp.asarray(weights["linear2"]))), STEPS)
    np.testing.assert_array_equal(s, apply(network, weights, x, STEPS))


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_gradients_of_layers_by_hand_are_those_of_apply(precision: Precision) -> None:
    network = NetworkSpec.parse("4C3-P2", input_shape=(2, 8, 8), outputs=5, neuron=LIF(3, 2, 0.4))
    conv, out = network.blocks
    random = np.random.default_rng(3)
    x = (random.random((STEPS, BATCH, 2, 8, 8)) < 0.4).astype(np.float32)
    y = (random.random((STEPS, BATCH, 5)) < 0.3).astype(np.uint8)

    def by_hand(weights: Any, s: Any) -> Any:
        neuron = network.blocks[0].neuron
        z = conv2d(Conv2d(4, 3), s, snap_weights(conv, weights["conv1"]), precision)
        s = avgpool2d(AvgPool2d(2), lif(neuron, conv.filter(training=False), z, STEPS, precision=precision))
        z = linear(Linear(5), s, snap_weights(out, weights["linear2"]), precision)
        return distance(VanRossum(), network.output_psp, lif(neuron, out.filter(training=False), z, STEPS), y)

    def by_apply(weights: Any, s: Any) -> Any:
        spikes = apply(network, weights, jnp.moveaxis(s, -1, 2), STEPS, precision=precision)
        return distance(VanRossum(), network.output_psp, spikes, y)

    arguments = initial_weights(network, seed=0, gain=2.0), jnp.moveaxis(jnp.asarray(x), 2, -1)
    actual, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*arguments) for f in (by_hand, by_apply))
    assert actual[0] == expected[0]
    for ours, theirs in zip(*map(jax.tree.leaves, (actual[1], expected[1])), strict=True):
        assert (ours.dtype, ours.shape) == (np.float32, theirs.shape)
        assert np.abs(theirs).max() > 0
        assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_float64_does_not_leak_into_the_callers_trace() -> None:
    network, weights, x, y = example()

    @jax.jit
    def objective(weights: Any) -> Any:
        spikes = apply(network, weights, x, STEPS, precision="reproducible")
        return distance(VanRossum(), network.output_psp, spikes, y) + jnp.sum(jnp.arange(3.0))

    value, gradients = jax.value_and_grad(objective)(weights)
    assert value.dtype == np.float32
    assert {g.dtype for g in gradients.values()} == {np.dtype(np.float32)}
    assert jnp.arange(3.0).dtype == np.float32


def test_example_of_the_page_runs_and_learns() -> None:
    pytest.importorskip("optax")
    page = Path(__file__).parents[3] / "docs" / "jax.md"
    code, more, _ = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in (code, more):
        exec(compile(block, str(page), "exec"), names)
    assert np.array_equal(
        names["output"].spikes[0], names["apply"](names["recurrent"], names["initial"], names["sounds"], 20)[-1]
    )
    assert np.abs(names["slope"]["linear1.recurrent"]).max() > 0
    assert names["losses"][-1] < 0.5 * names["losses"][0]


def programs(caplog: pytest.LogCaptureFixture, call: Callable[[], Any]) -> int:
    """Number of programs that JAX compiles for a call."""
    caplog.clear()
    with jax.log_compiles():
        jax.tree.map(np.asarray, call())
    return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)


@pytest.mark.parametrize(
    ("name", "most"),
    [("apply", 1), ("full", 1), ("distance", 1), ("lengths", 1), ("layers", 8), ("neurons", 1), ("gradient", 12)],
)
def test_a_call_outside_of_a_jit_compiles_few_programs_and_none_again(
    name: str, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    neuron = PLIF(3, 2, 0.5)
    network = NetworkSpec.parse("3C3-P2", input_shape=(2, 11, 11), outputs=4, neuron=neuron)
    conv, out = network.blocks
    weights, rng = initial_weights(network, 2), np.random.default_rng(3)
    shapes = ((2, 11, 11), (11, 11, 2), (4,))
    x, s, y = (jax.device_put((rng.random((4, 2, *shape)) < 0.3).astype(np.float32)) for shape in shapes)

    def layers() -> Any:
        z = conv2d(Conv2d(3, 3), s, snap_weights(conv, weights["conv1"]))
        pooled = [
            pool(z)
            for pool in (
                partial(avgpool2d, AvgPool2d(2)),
                partial(stsbp_jax.maxpool2d, MaxPool2d(2)),
                partial(stsbp_jax.upsample2d, Upsample2d(2)),
            )
        ]
        return linear(Linear(4), pooled[0], snap_weights(out, weights["linear2"])), stsbp_jax.psp(PSP(3), z), pooled

    def objective(weights: Any) -> Any:
        return distance(VanRossum(), network.output_psp, apply(network, weights, x, 4), y)

    calls: dict[str, Callable[[], Any]] = {
        "apply": lambda: apply(network, weights, x, 4),
        "full": lambda: apply(network, weights, x, 4, full=True, dropout=(1, 2))[0],
        "distance": lambda: distance(VanRossum(), PSP(3), y, y),
        "lengths": lambda: distance(VanRossum(), PSP(3), y, y, np.array([4, 3])),
        "layers": layers,
        "neurons": lambda: lif(neuron, PSP(3).filter(), s, 4),
        "gradient": lambda: jax.grad(objective)(weights),
    }
    assert 0 < programs(caplog, calls[name]) <= most
    assert programs(caplog, calls[name]) == 0


def test_public_names() -> None:
    """All of them are there, and none is loaded before it is asked for."""
    assert sorted(stsbp_jax.__all__) == [
        "ALIF", "Hamming", "IF", "JaxBackend", "LIF", "NetworkSpec", "Output", "PLIF", "PSP", "SpikeCount", "VanRossum",
        "apply", "avgpool2d", "clip_to_domain", "conv2d", "distance", "flatten", "initial_weights", "keep_mask", "lif",
        "linear", "maxpool2d", "psp", "rate_penalty", "snap_weights", "upsample2d",
    ]  # fmt: skip
    for name in stsbp_jax.__all__:
        assert getattr(stsbp_jax, name).__doc__
        assert name in dir(stsbp_jax)
    with pytest.raises(AttributeError, match="has no attribute 'Lif'"):
        _ = stsbp_jax.Lif
    code = "import sys, stsbp_jax; print([m for m in ('jax', 'stsbp_spec') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1, 0])
def test_steps_that_are_not_those_of_the_inputs_are_refused(steps: int) -> None:
    network, weights, x, _ = example()
    with pytest.raises(ShapeError, match=f"have {STEPS} steps, expected {steps}" if steps else "without empty axes"):
        apply(network, weights, x, steps)
    with pytest.raises(ShapeError, match=f"steps = {steps}"):
        lif(LIF(), PSP(3.0).filter(), jnp.zeros((STEPS, 2, 3)), steps)


@pytest.mark.parametrize("steps", ["5", None, 5.0, True])
def test_steps_that_are_no_whole_number_are_refused(steps: Any) -> None:
    network, weights, x, _ = example()
    with pytest.raises(ShapeError, match=f"steps must be a whole number, got {steps!r}"):
        apply(network, weights, x, steps)


@pytest.mark.parametrize("weights", [None, [1.0], "linear1"])
def test_weights_that_are_no_dict_are_refused(weights: Any) -> None:
    network, _, x, _ = example()
    with pytest.raises(ShapeError, match=f"weights must be a dict of arrays by name, got {type(weights).__name__}"):
        apply(network, weights, x, STEPS)


def test_one_step_is_a_number_of_steps() -> None:
    network, weights, x, _ = example()
    expected = NumpyBackend().run(network, weights, np.asarray(x[:1]), 1).layers
    np.testing.assert_array_equal(apply(network, weights, x[:1], 1), list(expected.values())[-1].spikes)


def test_inputs_of_another_shape_and_unknown_precisions_are_refused() -> None:
    network, weights, x, _ = example()
    for bad in (x[:, :0], x[:0], x[0], x[..., 1:]):
        with pytest.raises(ShapeError, match=r"\[T, B, ...\] without empty axes"):
            apply(network, weights, bad, STEPS)
    with pytest.raises(ShapeError, match=r'if these are images, .* only a network with coding="direct" reads them'):
        apply(network, weights, x[0], STEPS)
    with pytest.raises(SpecError, match="precision is 'fast' or 'reproducible', got 'exact'"):
        apply(network, weights, x, STEPS, precision="exact")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: stsbp_jax.flatten(jnp.zeros((3, 2, 4, 4))), r"must have the axes \[T, B, N\] or"),
        (lambda: stsbp_jax.flatten(LIST), "got list; convert it with jax.numpy.asarray"),
        (lambda: stsbp_jax.avgpool2d(AvgPool2d(2), FLAT), "pooling needs an input"),
        (lambda: stsbp_jax.avgpool2d(AvgPool2d(5), IMAGES), "5x5, is larger than its input, 4x4"),
        (lambda: stsbp_jax.maxpool2d(MaxPool2d(5), IMAGES), "5x5, is larger than its input, 4x4"),
        (lambda: jax.grad(lambda s: stsbp_jax.maxpool2d(MaxPool2d(2), s).sum())(FLAT), "pooling needs an input"),
        (lambda: jax.grad(lambda s: stsbp_jax.upsample2d(Upsample2d(2), s).sum())(FLAT), "upsampling needs an input"),
        (lambda: stsbp_jax.linear(Linear(5), FLAT, jnp.zeros((6, 4))), r"Linear must have the shape \(5, 4\), got \(6"),
        (lambda: stsbp_jax.linear(Linear(5), FLAT, NO_WEIGHTS), "the weights must be a dense array"),
        (lambda: stsbp_jax.conv2d(Conv2d(2, 3), FLAT, jnp.zeros((2, 1, 3, 3))), "a convolution needs an input"),
        (lambda: stsbp_jax.conv2d(Conv2d(2, 3), IMAGES, jnp.zeros((2, 1, 3, 2))), r"shape \(2, 1, 3, 3\), got"),
    ],
)
def test_operations_refuse_shapes_that_do_not_fit(compute: Callable[[], Any], message: str) -> None:
    with pytest.raises((ShapeError, SpecError), match=message):
        compute()


def test_a_network_that_ends_with_a_readout_is_refused() -> None:
    network = NetworkSpec.parse("6", input_shape=(9,), outputs=3, output_neuron=Readout())
    with pytest.raises(
        SpecError, match=r"the network 6-3 ends with a readout.* full=True and use the potentials of linear2"
    ):
        apply(network, dict(initial_weights(network, 0)), np.zeros((2, 1, 9), np.uint8), 2)


@pytest.mark.parametrize("key", ["conv1.mean", "conv1.variance"])
def test_running_statistics_outside_of_their_domain_are_refused_or_become_nan(key: str) -> None:
    network = NetworkSpec.parse("3C3bn-P2-6", input_shape=(2, 6, 6), outputs=4)
    weights: dict[str, Any] = {**initial_weights(network, 1, 3.0)}
    x = np.ones((4, 2, 2, 6, 6), np.uint8)
    expected = apply(network, weights, x, 4)
    compiled = jax.jit(lambda weights: apply(network, weights, x, 4))
    assert np.array_equal(compiled(weights), expected)
    values = {-1.0, 2.0**101} if key == "conv1.variance" else {2.0**101}
    for value in values:
        wrong = {**weights, key: np.where(np.arange(3) == 1, np.float32(value), weights[key])}
        with pytest.raises(
            NumericError, match=rf"^{key} is {value:g}, outside of its domain from .*; give running".replace("+", r"\+")
        ):
            apply(network, wrong, x, 4)
        assert np.isnan(compiled(wrong)).any()
        # In training, they are replaced by those of the batch.
        apply(network, wrong, x, 4, dropout=(0, 0), full=True)
    # Infinite and NaN values are refused like those of weights.
    infinite = {**weights, key: np.full(3, np.inf, np.float32)}
    with pytest.raises(NumericError, match="holds a value that is not finite"):
        apply(network, infinite, x, 4)
    assert np.isnan(compiled(infinite)).any()


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, np.nan])
def test_a_distance_of_what_is_no_spike_train_is_refused_or_nan(value: float) -> None:
    good = np.ones((4, 2, 3), np.float32)
    bad = good.copy()
    bad[3, 1, 2] = value
    assert distance(Hamming(), PSP(4), good, good) == 0
    for spikes, targets in ((good, bad), (bad, good)):
        with pytest.raises((ShapeError, NumericError), match="of distance"):
            distance(Hamming(), PSP(4), spikes, targets)
        assert np.isnan(compiled_distance()(spikes, targets))
    with pytest.raises(ShapeError, match=r"got \(4, 2, 3\) and \(4, 1, 3\)"):
        distance(Hamming(), PSP(4), good, good[:, :1])
    with pytest.raises(ShapeError, match=r"got \(4, 2, 3\) and \(2, 4, 3\); one of them is \[B, T, N\]: swap its axes"):
        distance(Hamming(), PSP(4), good, good.swapaxes(0, 1))


@pytest.mark.parametrize("loss", [VanRossum(), Hamming(), SpikeCount()], ids=str)
def test_a_distance_leaves_out_what_comes_after_a_samples_length(loss: Loss) -> None:
    """Lengths are numbers, or traced: one program serves all of them."""
    rng = np.random.default_rng(5)
    s, y = (rng.integers(0, 2, (STEPS, BATCH, 4)).astype(np.float32) for _ in range(2))
    traces = []

    @jax.jit
    @jax.value_and_grad
    def traced(s: Any, lengths: Any) -> Any:
        traces.append(lengths)
        return distance(loss, PSP(3), s, y, lengths)

    numpy = NumpyBackend()
    for lengths in (np.array([7, 2, 5]), np.array([1, 7, 6]), np.full(3, STEPS)):
        value, g = traced(s, lengths)
        expected = loss.mean(s.astype(np.uint8), y.astype(np.uint8), PSP(3), lengths)
        padding = loss_padding(loss, PSP(3), lengths, BATCH, s.shape)
        assert float(value) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(g, numpy.loss_error(loss, PSP(3), s, y, BATCH, padding))
        plain, same = jax.value_and_grad(lambda s, n=lengths: distance(loss, PSP(3), s, y, n))(s)
        assert float(plain) == pytest.approx(float(value), rel=1e-6)
        np.testing.assert_array_equal(same, g)
    np.testing.assert_array_equal(g, numpy.loss_error(loss, PSP(3), s, y))
    assert len(traces) == 1
    for wrong in ([7, 0, 3], [7, 8, 3]):
        with pytest.raises(ShapeError, match="lengths must be from 1 to 7, the number of steps; sample 1 has"):
            distance(loss, PSP(3), s, y, np.array(wrong))
        assert np.isnan(traced(s, np.array(wrong))[0])
    with pytest.raises(ShapeError, match=r"lengths must be integers \[B\] = \[3\]"):
        distance(loss, PSP(3), s, y, np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match=r"lengths must be integers \[B\] = \[3\], got int32 \[2\]"):
        traced(s, np.array([1, 2], np.int32))


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_what_neurons_learn_has_a_gradient(per: str, precision: Precision) -> None:
    rng, numpy, filter = np.random.default_rng(0), NumpyBackend(), PSP(3).filter()
    neuron = PLIF(3, 2, 0.5, reset="subtract", per=per)
    z, g = (rng.normal(size=(9, 2, 4)).astype(np.float32) for _ in range(2))
    learned = {"decay": rng.random(4 if per == "channel" else 1).astype(np.float32)}
    s, residuals = numpy.neuron_forward(neuron, filter, z, 9, learned)
    dz, terms = numpy.neuron_backward(neuron, filter, residuals, g)

    def fired(z: Any, learned: Any) -> Any:
        return lif(neuron, filter, z, 9, learned, precision=precision)

    spikes, pullback = jax.vjp(jax.jit(fired), jnp.asarray(z), jax.tree.map(jnp.asarray, learned))
    assert np.array_equal(spikes, s)
    grad_sums, gradients = pullback(jnp.asarray(g))
    assert np.array_equal(grad_sums, dz)
    expected = numpy.learned_gradient(terms["decay"], len(learned["decay"]), precision)
    assert np.abs(expected).min() > 0.01
    # In float64 the order of a sum may show in the last of its bits, of which float32 keeps one.
    assert np.allclose(gradients["decay"], expected, rtol=0 if precision == "reproducible" else 2.0**-23, atol=0)


def test_learned_numbers_of_another_shape_are_refused() -> None:
    neuron, filter, z = PLIF(per="channel"), PSP(3).filter(), jnp.zeros((2, 1, 3))
    begun = {"decay": jnp.full(3, 0.875)}
    assert np.array_equal(lif(neuron, filter, z + 1, 2), lif(neuron, filter, z + 1, 2, begun))
    for wrong in ({}, {"decay": jnp.zeros(1)}, {"decay": jnp.zeros(3, np.int32)}, {**begun, "other": jnp.zeros(3)}):
        with pytest.raises(ShapeError, match=r"the learned parameters of plif are {'decay': \(\(3,\), 'float32'\)}"):
            lif(neuron, filter, z, 2, wrong)


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_apply_has_gradients_of_what_neurons_learn(precision: Precision) -> None:
    neuron = PLIF(3, 2, 0.4, per="channel")
    network = NetworkSpec.parse("4C3-P2-6{per=layer}", input_shape=(2, 8, 8), outputs=5, neuron=neuron)
    rng, loss = np.random.default_rng(3), VanRossum()
    x = (rng.random((STEPS, BATCH, 2, 8, 8)) < 0.3).astype(np.uint8)
    y = (rng.random((STEPS, BATCH, 5)) < 0.3).astype(np.uint8)
    weights = dict(initial_weights(network, 1, 3.0))
    weights["conv1.decay"] = rng.random(4).astype(np.float32)

    @jax.jit
    def objective(weights: Any) -> Any:
        return distance(loss, network.output_psp, apply(network, weights, x, STEPS, precision=precision), y)

    gradients = jax.grad(objective)(weights)
    expected = NumpyBackend().value_and_grad(network, loss, weights, Batch(x, y), precision=precision).gradients
    assert set(gradients) == set(expected) == set(network.parameters)
    for name, g in expected.items():
        if precision == "reproducible":
            assert np.array_equal(gradients[name], g), name
        else:
            assert np.abs(np.asarray(gradients[name]) - g).max() <= 1e-5 * np.abs(g).max(), name
    assert np.abs(expected["conv1.decay"]).min() > 0
    moved: dict[str, Any] = {**weights, "conv1.decay": jnp.array([1.5, -0.5, 2.0**-101, 0.5], np.float32)}
    assert np.isnan(jax.jit(lambda weights: apply(network, weights, x, STEPS))(moved)).any()
    with pytest.raises(NumericError, match=r"conv1.decay is 1.5, outside of its domain from 0 to 1; call clip_to"):
        apply(network, moved, x, STEPS)
    clipped = clip_to_domain(network, moved)
    assert clipped["conv1.decay"].tolist() == [1.0, 0.0, 0.0, 0.5]
    assert np.isfinite(apply(network, clipped, x, STEPS)).all()


def test_weights_that_do_not_fit_are_refused() -> None:
    network, weights, x, _ = example()
    w, block = weights["conv2"], network.blocks[1]
    hole = np.where(np.arange(w.size).reshape(w.shape) == 7, np.float32(np.nan), w)
    for bad, error, message in (
        (w[:, :3], ShapeError, r"weights\['conv2'\] must be floating-point numbers \(6, 4, 3, 3\), got float32"),
        (w.astype(np.int32), ShapeError, r"weights\['conv2'\] must be floating-point numbers .*, got int32"),
        (hole, NumericError, r"weights\['conv2'\] holds a value that is not finite"),
        (w * np.float32(2.0**110), NumericError, "layer conv2: a weight of magnitude .* is too large"),
    ):
        with pytest.raises(error, match=message):
            snap_weights(block, bad)
        with pytest.raises(error, match=message):
            apply(network, {**weights, "conv2": bad}, x, STEPS)
    del weights["conv2"]
    with pytest.raises(ShapeError, match="weights must have the layers conv1, conv2, linear3, but they lack conv2"):
        apply(network, weights, x, STEPS)


def test_weights_of_other_floating_types_are_converted_to_float32() -> None:
    network, weights, x, y = example()
    halves = {name: np.asarray(w, np.float16) for name, w in weights.items()}
    singles = {name: np.asarray(w, np.float32) for name, w in halves.items()}
    expected = np.asarray(apply(network, singles, x, STEPS))
    assert expected.any()
    assert np.array_equal(apply(network, halves, x, STEPS), expected)
    assert np.array_equal(
        snap_weights(network.blocks[0], halves["conv1"]), snap_weights(network.blocks[0], singles["conv1"])
    )
    with jax.enable_x64(True):
        doubles = {name: jnp.asarray(w, np.float64) for name, w in singles.items()}
        assert np.array_equal(apply(network, doubles, x, STEPS), expected)
        slopes = jax.grad(lambda w: distance(VanRossum(), network.output_psp, apply(network, w, x, STEPS), y))(doubles)
        assert {g.dtype for g in slopes.values()} == {np.dtype(np.float64)}


def chained(uses: int) -> str:
    """Populations that are connected by the same weights, used several times."""
    nodes = ['[[node]]\nname = "w"\nweights = "9"\nfrom = "input"', '[[node]]\nname = "f"\nneurons = ""\nfrom = "w"']
    for i in range(uses):
        shared = 'weights_of = "w0"\n' if i else ""
        source = f"f{i - 1}" if i else "f"
        nodes.append(f'[[node]]\nname = "w{i}"\nweights = "9"\n{shared}from = "{source}"')
        nodes.append(f'[[node]]\nname = "f{i}"\nneurons = ""\nfrom = "w{i}"')
    nodes.append(f'[[node]]\nname = "out"\nweights = "4"\nfrom = "f{uses - 1}"')
    nodes.append('[[node]]\nname = "end"\nneurons = ""\nfrom = "out"')
    return "\n".join(nodes)


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


@pytest.mark.parametrize("notation", ["12-[9|9|9]+", "12-[12|12|]+", "12-D0.3-[9|9|9]+", chained(4), CONCATENATED])
def test_errors_of_several_readers_and_gradients_of_several_uses_are_added_in_order(notation: str) -> None:
    outputs = None if "node" in notation else 4
    network = NetworkSpec.parse(notation, input_shape=(7,), outputs=outputs, neuron=LIF(3, 5 / 3, 0.4))
    rng = np.random.default_rng(0)
    x, y = ((rng.random((STEPS, BATCH, n)) < 0.4).astype(np.uint8) for n in (7, 4))
    weights = initial_weights(network, seed=1, gain=3.0)
    expected = NumpyBackend().value_and_grad(
        network, VanRossum(), weights, Batch(x, y), precision="reproducible", dropout=(1, 2)
    )

    def value(weights: Any) -> Any:
        spikes = apply(network, weights, x, STEPS, dropout=(1, 2), precision="reproducible")
        return distance(VanRossum(), network.output_psp, spikes, y)

    for name, g in jax.grad(value)(weights).items():
        assert g.any()
        np.testing.assert_array_equal(g, expected.gradients[name], err_msg=name)


def test_layers_refuse_an_unknown_precision() -> None:
    x, w = jnp.zeros((STEPS, BATCH, 5, 5, 2)), jnp.zeros((4, 2, 3, 3))
    wrong: Any = "reproducable"
    calls: list[Callable[[], Any]] = [
        lambda: conv2d(Conv2d(4, 3), x, w, wrong),
        lambda: linear(Linear(3), x, jnp.zeros((3, 50)), wrong),
        lambda: lif(LIF(), PSP(3.0).filter(), x, STEPS, precision=wrong),
    ]
    for call in calls:
        with pytest.raises(SpecError, match="precision is 'fast' or 'reproducible', got 'reproducable'"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.tolist(), "dense array of real numbers, got list; convert it with jax.numpy.asarray"),
        (lambda x: BCOO.fromdense(jnp.asarray(x)), "dense array of real numbers, got BCOO; .* with .todense"),
        (lambda x: x.astype(np.complex64), "an array of real numbers, got an array of complex64"),
        (lambda x: x.astype(str), "an array of real numbers, got an array of <U"),
        (lambda x: None, "dense array of real numbers, got NoneType"),
    ],
    ids=["list", "sparse", "complex", "text", "None"],
)
def test_arguments_that_are_no_dense_arrays_of_real_numbers_are_refused(change: Any, message: str) -> None:
    network = NetworkSpec.parse("4", input_shape=(5,), outputs=2)
    weights, frames = initial_weights(network, 1), np.ones((3, 2, 5), np.float32)
    spikes = np.ones((3, 2, 2), np.float32)
    for call, name in (
        (lambda: apply(network, weights, change(frames), 3), "the input of apply"),
        (lambda: apply(network, {**weights, "linear1": change(weights["linear1"])}, frames, 3), "weights.'linear1'."),
        (lambda: distance(Hamming(), network.output_psp, change(spikes), spikes), "the spikes of distance"),
        (lambda: distance(Hamming(), network.output_psp, spikes, change(spikes)), "the targets of distance"),
    ):
        with pytest.raises(ShapeError, match=f"{name} must be (a )?{message}"):
            call()


@pytest.mark.parametrize(
    ("setting", "value"), [(jax.numpy_rank_promotion, "raise"), (jax.numpy_dtype_promotion, "strict")]
)
def test_apply_where_jax_may_not_promote(setting: Any, value: str) -> None:
    network = NetworkSpec.parse("4d0.2", input_shape=(3,), outputs=2)
    weights, frames = initial_weights(network, 0), np.ones((3, 2, 3), np.uint8)
    with setting(value):
        jax.jit(jax.grad(lambda w, x: apply(network, w, x, 3, dropout=(0, 1)).sum())).lower(weights, frames)


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_apply_takes_spikes_that_jax_does_not_promote(dtype: str) -> None:
    network = NetworkSpec.parse("4", input_shape=(3,), outputs=2)
    spikes = jnp.ones((3, 2, 3), np.uint8).astype(getattr(jnp, dtype))
    jax.jit(lambda w, x: apply(network, w, x, 3)).lower(initial_weights(network, 0), spikes)
