"""Membrane potentials and spikes have the reference's bits, however JAX transforms and compiles the functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from stsbp_jax import grid
from stsbp_jax.backend import JaxBackend
from stsbp_jax.neurons import lif
from stsbp_jax.synapses import conv2d, psp
from stsbp_spec import LIF, PSP, NetworkSpec, initial_weights
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.reference.neurons import lif as reference
from stsbp_spec.reference.synapses import psp as reference_psp
from stsbp_spec.synapses import IDENTITY, Conv2d

NEURON = LIF(tau_m=3.0, tau_s=5 / 3)


def differing_bits(a: Any, b: Any) -> int:
    """Number of float32 values whose bits differ."""
    left, right = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (a, b))
    assert left.shape == right.shape
    return int(np.count_nonzero(left != right))


def drive(*shape: int) -> npt.NDArray[np.float32]:
    """Weighted inputs that make about one neuron in ten fire."""
    return np.random.default_rng(7).normal(0.2, 1.0, shape).astype(np.float32)


def test_run_full_size_network_has_reference_bits() -> None:
    tau_m, tau_s, steps, batch = 5.0, 5 / 3, 25, 2  # at tau 2 products are exact, and fused multiply-adds stay unseen
    network = NetworkSpec.parse(
        "12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10, neuron=LIF(tau_m=tau_m, tau_s=tau_s)
    )
    weights = initial_weights(network, seed=1, gain=2.0)
    inputs = (np.random.default_rng(0).random((steps, batch, 2, 34, 34)) < 0.08).astype(np.uint8)
    inputs[steps // 2 :, :, :, :17] = 0  # a silent half, which decays
    expected = NumpyBackend().run(network, weights, inputs, steps)
    got = JaxBackend().run(network, weights, inputs, steps)
    assert list(got.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        assert layer.spikes.any() or name == "linear3"
        assert differing_bits(got.layers[name].potentials, layer.potentials) == 0, name
        np.testing.assert_array_equal(got.layers[name].spikes, layer.spikes)
    assert got.grids == expected.grids


TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    "vmap": lambda f: lambda z: jax.jit(jax.vmap(f, in_axes=2, out_axes=2))(z[:, :, :, None])[:, :, :, 0],
    "constant": lambda f: lambda z: jax.jit(lambda: f(z))(),
    "grad": lambda f: lambda z: jax.jit(lambda z: jax.vjp(f, z)[0])(z),
    "scan": lambda f: lambda z: jax.jit(lambda z: jax.lax.scan(lambda c, x: (c, f(x)), 0, z[None])[1][0])(z),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_lif_bits_survive(transform: Callable[[Any], Any]) -> None:
    z = drive(25, 2, 301)
    spikes, expected = reference.forward(NEURON, NEURON.psp.filter(), z, 25)
    assert 0.02 < spikes.mean() < 0.5
    got = transform(lambda z: lif.forward(NEURON, NEURON.psp.filter(), z, 25))(z)
    assert differing_bits(got, expected.u) == 0


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_psp_bits_survive(transform: Callable[[Any], Any]) -> None:
    s = (drive(25, 2, 301) > 0.5).astype(np.float32)
    expected = reference_psp.forward(PSP(5 / 3), s)
    assert differing_bits(transform(lambda s: psp.forward(PSP(5 / 3), s))(s), expected) == 0


def test_bits_differ_without_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.devices()[0].platform != "cpu":
        pytest.skip("shown for XLA's CPU compiler")
    z = drive(25, 2, 301)
    monkeypatch.setattr(lif, "Rounding", lambda data: lambda product: product)
    got = jax.jit(lambda z: lif.forward(NEURON, NEURON.psp.filter(), z, 25))(z)
    # If this ever fails, XLA no longer fuses multiply-adds here, and the tests above no longer guard anything.
    assert differing_bits(got, reference.forward(NEURON, NEURON.psp.filter(), z, 25)[1].u) > 0


def test_lif_fires_where_the_threshold_is_met_exactly() -> None:
    z = np.zeros((2, 1, 3), np.float32)
    z[0, 0] = 1.0, np.nextafter(np.float32(1), np.float32(0)), np.nextafter(np.float32(1), np.float32(2))
    u = lif.forward(LIF(threshold=1.0), IDENTITY, jnp.asarray(z), 2)
    np.testing.assert_array_equal(np.asarray(lif.spikes(LIF(threshold=1.0), u))[0, 0], [1, 0, 1])


def test_lif_decays_into_the_floor_as_the_reference_does() -> None:
    z = np.zeros((120, 1, 64), np.float32)
    z[0] = drive(1, 64)
    neuron = LIF(tau_m=5 / 3, tau_s=3.0)
    expected = reference.forward(neuron, neuron.psp.filter(), z, 120)[1].u
    assert 0 < np.abs(expected[expected != 0]).min() < 2.0**-60
    z[0] *= 2.0**-60
    expected = reference.forward(neuron, neuron.psp.filter(), z, 120)[1].u
    assert (expected[-1] == 0).all()
    assert differing_bits(lif.forward(neuron, neuron.psp.filter(), jnp.asarray(z), 120), expected) == 0


def test_divide_and_square_root_are_correctly_rounded_both_ways() -> None:
    rng = np.random.default_rng(3)
    a, b = (np.exp(rng.uniform(-40, 40, 200_000)).astype(np.float32) for _ in range(2))
    for divide, root in (
        (grid.divide, grid.square_root),
        (grid._divide_wide, grid._square_root_wide),
    ):
        assert differing_bits(jax.jit(divide)(a, b), a / b) == 0
        assert differing_bits(jax.jit(root)(a), np.sqrt(a)) == 0


@pytest.mark.parametrize(
    ("frames", "frame_bytes", "chunks"),
    [
        (100, 2**20, 25),  # 4 MB each
        (7, 2**20, 1),
        (13, 2**20, 13),  # nothing between divides
        (8191, 10_000, 1),  # its only divisor leaves chunks too small to be worth a loop
        (16, 2**18, 1),
        (32, 2**18, 2),
        (33, 2**18, 3),
        (37, 2**18, 1),
        (37, 2**18 + 1, 37),
    ],
)
def test_frames_are_cut_into_the_fewest_equal_chunks(frames: int, frame_bytes: int, chunks: int) -> None:
    assert conv2d._chunks(frames, frame_bytes) == chunks


def test_a_chunk_is_measured_by_its_unfolded_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def chunks(frames: int, frame_bytes: int) -> int:
        asked.append((frames, frame_bytes))
        return 2

    monkeypatch.setattr(conv2d, "_chunks", chunks)
    conv = Conv2d(5, 3, padding=1, stride=2)
    s, wq = jnp.ones((3, 2, 7, 9, 4)), jnp.ones((5, 4, 3, 3))
    z = conv2d.forward(conv, s, wq)
    conv2d.backward(conv, s, wq, z, precision="fast", need_input=True)
    conv2d.backward(conv, s, wq, z, precision="reproducible", need_input=False)
    windows = 4 * 5 * 3 * 3 * 4  # H' W' k k C
    assert asked == [(6, 4 * windows), (6, 4 * windows), (6, 8 * windows)]
