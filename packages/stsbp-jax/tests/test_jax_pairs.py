"""Each pair of the backend alone against the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from stsbp_jax.backend import JaxBackend
from stsbp_spec import LIF, LOSSES, PSP, AdamW, AvgPool2d, Conv2d, Linear, Loss, NetworkSpec
from stsbp_spec.errors import ExactnessError, NumericError
from stsbp_spec.reference import roundoff
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.surrogates import SURROGATES, Surrogate
from stsbp_spec.synapses import IDENTITY, Filter
from stsbp_spec.typing import Precision, Shape

NUMPY, JAX = NumpyBackend(), JaxBackend()
RNG = np.random.default_rng(11)


def spikes(*shape: int) -> npt.NDArray[np.float32]:
    return (RNG.random(shape) < 0.3).astype(np.float32)


def normal(*shape: int) -> npt.NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def same_bits(got: Any, expected: npt.NDArray[Any]) -> None:
    values = JAX.numpy(got)
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)


SYNAPSES: dict[str, tuple[Conv2d | Linear, Shape]] = {
    "conv": (Conv2d(5, 3), (2, 9, 7)),
    "padding": (Conv2d(4, 3, padding=1), (3, 8, 8)),
    "stride": (Conv2d(6, 3, stride=2), (2, 10, 9)),
    "stride and padding": (Conv2d(3, 5, stride=3, padding=2), (2, 11, 13)),
    "1x1": (Conv2d(7, 1), (3, 4, 4)),
    "linear": (Linear(9), (40,)),
    "linear on images": (Linear(9), (3, 4, 5)),
}


@pytest.mark.parametrize(("synapse", "shape"), SYNAPSES.values(), ids=SYNAPSES.keys())
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_synapse(synapse: Conv2d | Linear, shape: Shape, precision: Precision) -> None:
    s = spikes(4, 3, *shape)
    wq = RNG.integers(-2047, 2048, synapse.weight_shape(shape)).astype(np.float32) * np.float32(2.0**-10)
    z, residuals = NUMPY.synapse_forward(synapse, s, wq)
    got, got_residuals = JAX.synapse_forward(synapse, JAX.asarray(s), JAX.asarray(wq))
    same_bits(got, z)
    dz, _ = NUMPY.error_grid(normal(*z.shape), 24)
    ds, dw = NUMPY.synapse_backward(synapse, residuals, dz, precision=precision, need_input=True)
    got_ds, got_dw = JAX.synapse_backward(synapse, got_residuals, JAX.asarray(dz), precision=precision, need_input=True)
    assert ds is not None
    assert got_ds is not None
    if precision == "reproducible":
        same_bits(got_ds, ds)
        same_bits(got_dw, dw)
    else:
        near_ds, near_dw = roundoff.synapse_backward(synapse, s, wq, roundoff.exact(dz), need_input=True)
        assert near_ds is not None
        for narrow, near in ((got_ds, near_ds), (got_dw, near_dw)):
            assert (np.abs(JAX.numpy(narrow) - near.value) <= near.bound).all()
    without, again = JAX.synapse_backward(
        synapse, got_residuals, JAX.asarray(dz), precision=precision, need_input=False
    )
    assert without is None
    same_bits(again, JAX.numpy(got_dw))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_avgpool2d(size: int) -> None:
    s, pool = spikes(3, 2, 5, 9, 11), AvgPool2d(size)
    pooled, residuals = NUMPY.avgpool2d_forward(pool, s)
    got, got_residuals = JAX.avgpool2d_forward(pool, JAX.asarray(s))
    same_bits(got, pooled)
    d = normal(*pooled.shape)
    same_bits(JAX.avgpool2d_backward(pool, got_residuals, JAX.asarray(d)), NUMPY.avgpool2d_backward(pool, residuals, d))


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (4, 33), (1, 1)])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**32 - 1, 2**31 + 5)])
def test_dropout_mask(shape: Shape, seed: int, step: int) -> None:
    for layer, rate in ((0, 0.2), (17, 0.5), (3, 0.0), (3, 1 - 2**-40)):
        expected = NUMPY.dropout_mask(seed, layer, step, shape, rate)
        same_bits(JAX.dropout_mask(seed, layer, step, shape, rate), expected)


@pytest.mark.parametrize("surrogate", [cls() for cls in SURROGATES.values()], ids=SURROGATES.keys())
@pytest.mark.parametrize("static", [False, True], ids=["moving", "static"])
@pytest.mark.parametrize("filter", [PSP(5 / 3).filter(1.25), IDENTITY], ids=["psp", "no filter"])
def test_lif(surrogate: Surrogate, static: bool, filter: Filter) -> None:
    neuron = LIF(tau_m=3.0, tau_s=5.0, surrogate=surrogate)
    z, g = normal(1 if static else 9, 4, 3, 5, 5), normal(9, 4, 3, 5, 5)
    s, residuals = NUMPY.lif_forward(neuron, filter, z, 9)
    got, got_residuals = JAX.lif_forward(neuron, filter, JAX.asarray(z), 9)
    same_bits(got, s)
    same_bits(JAX.lif_potentials(got_residuals), NUMPY.lif_potentials(residuals))
    dz = NUMPY.lif_backward(neuron, filter, residuals, g)
    got_dz = JAX.lif_backward(neuron, filter, got_residuals, JAX.asarray(g))
    if surrogate.exact:
        same_bits(got_dz, dz)
    else:
        # exp differs by an ulp or two between libraries; the recursion carries it on.
        constants = roundoff.exact(float(filter.decay)), roundoff.exact(float(filter.gain))
        u, error = roundoff.exact(residuals.u), roundoff.exact(g)
        near = roundoff.neuron_backward(neuron, constants, u, s, error, static=static)
        assert (np.abs(JAX.numpy(got_dz) - near.value) <= near.bound).all()


def test_lif_one_static_step() -> None:
    z, g = normal(1, 2, 6), normal(1, 2, 6)
    _, residuals = NUMPY.lif_forward(LIF(), IDENTITY, z, 1)
    _, got = JAX.lif_forward(LIF(), IDENTITY, JAX.asarray(z), 1)
    same_bits(JAX.lif_backward(LIF(), IDENTITY, got, JAX.asarray(g)), NUMPY.lif_backward(LIF(), IDENTITY, residuals, g))


@pytest.mark.parametrize("tau", [1.0, 5 / 3, 3.0])
def test_psp(tau: float) -> None:
    s, da = spikes(12, 3, 7), normal(12, 3, 7)
    same_bits(JAX.psp_forward(PSP(tau), JAX.asarray(s)), NUMPY.psp_forward(PSP(tau), s))
    same_bits(JAX.psp_backward(PSP(tau), JAX.asarray(da)), NUMPY.psp_backward(PSP(tau), da))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_loss_error(loss: Loss) -> None:
    s, targets = (spikes(9, 7, 10).astype(np.uint8) for _ in range(2))
    expected = NUMPY.loss_error(loss, PSP(3.0), s, targets)
    assert expected.any()
    same_bits(JAX.loss_error(loss, PSP(3.0), JAX.asarray(s), JAX.asarray(targets)), expected)


WEIGHTS = {
    "normal": normal(20, 300),
    "one sign": np.abs(normal(20, 300)),
    "equal": np.full((20, 300), 0.75, np.float32),
    "rounds up to the limit": np.full((20, 300), np.nextafter(np.float32(1), np.float32(0)), np.float32),
    "tiny": normal(20, 300) * np.float32(2.0**-90),
    "below the floor": normal(20, 300) * np.float32(2.0**-110),
    "zero": np.zeros((20, 300), np.float32),
    "huge": normal(20, 300) * np.float32(1e30),
}


@pytest.mark.parametrize("w", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("coding", ["events", "direct"])
@pytest.mark.parametrize("bits", [12, 5, 2])
def test_weight_grid(w: npt.NDArray[np.float32], coding: Any, bits: int) -> None:
    network = NetworkSpec.parse("20", input_shape=(300,), outputs=20, coding=coding, weight_bits=bits)
    expected, found = NUMPY.weight_grid(network.blocks[0], w)
    got, got_grid = JAX.weight_grid(network.blocks[0], JAX.asarray(w))
    same_bits(got, expected)
    assert got_grid == found


def test_weight_grid_takes_a_coarser_one_where_the_bound_fails() -> None:
    network = NetworkSpec.parse("3", input_shape=(40_000,), outputs=3, coding="direct")
    w = np.abs(normal(3, 40_000))
    expected, found = NUMPY.weight_grid(network.blocks[0], w)
    assert found.bits < 8
    got, got_grid = JAX.weight_grid(network.blocks[0], JAX.asarray(w))
    same_bits(got, expected)
    assert got_grid == found


def test_weight_grid_raises_what_the_spec_raises() -> None:
    block = NetworkSpec.parse("2", input_shape=(60_000,), outputs=2, coding="direct").blocks[0]
    with pytest.raises(NumericError, match="layer linear1: a weight is not finite"):
        JAX.weight_grid(block, JAX.asarray(np.full((2, 60_000), np.nan, np.float32)))
    fitting = np.ones((2, 60_000), np.float32)
    same_bits(JAX.weight_grid(block, JAX.asarray(fitting))[0], NUMPY.weight_grid(block, fitting)[0])
    wider = NetworkSpec.parse("2", input_shape=(65_793,), outputs=2, coding="direct").blocks[0]
    object.__setattr__(wider, "input_max", 1.0)  # 65,793 * 256 units no longer fit
    with pytest.raises(ExactnessError, match="layer linear1: sums of 65793 inputs"):
        JAX.weight_grid(wider, JAX.asarray(np.ones((2, 65_793), np.float32)))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 2.0**-99, 2.0**-105, 0.0, 1e30])
@pytest.mark.parametrize("bits", [51, 33, 24, 13])
def test_error_grid(scale: float, bits: int) -> None:
    dz = normal(5, 3, 40) * np.float32(scale)
    got, counts = JAX.error_grid(JAX.asarray(dz), bits)
    expected, numbers = NUMPY.error_grid(dz, bits)
    same_bits(got, expected)
    assert np.asarray(counts).sum(axis=0).tolist() == numbers.tolist()


@pytest.mark.parametrize("scale", [1.0, 1e-12, 2.0**-110, 1e20])
def test_gradient_norm(scale: float) -> None:
    gradients = [normal(50, 40) * np.float32(scale), normal(3) * np.float32(scale / 7)]
    assert JAX.gradient_norm([JAX.asarray(g) for g in gradients]) == NUMPY.gradient_norm(gradients)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_norm_is_not_finite_where_a_gradient_is_not(bad: float) -> None:
    gradients = [normal(4), np.array([1, bad], np.float32)]
    expected = NUMPY.gradient_norm(gradients)
    np.testing.assert_equal(JAX.gradient_norm([JAX.asarray(g) for g in gradients]), expected)


def test_adamw() -> None:
    optimizer = AdamW(lr=3e-3, weight_decay=0.02, warmup_steps=3, total_steps=30)
    w, m, v = normal(500), np.zeros(500, np.float32), np.zeros(500, np.float32)
    native = tuple(JAX.asarray(x) for x in (w, m, v))
    for step in range(30):
        # Magnitudes from far below what a square can hold to large ones.
        g = (normal(500) * np.exp(RNG.uniform(-38, 12, 500))).astype(np.float32)
        scalars = optimizer.scalars(step, np.float32(0.37))
        w, m, v = NUMPY.adamw(scalars, w, g, m, v)
        native = JAX.adamw(scalars, native[0], JAX.asarray(g), native[1], native[2])
        for got, expected in zip(native, (w, m, v), strict=True):
            same_bits(got, expected)
