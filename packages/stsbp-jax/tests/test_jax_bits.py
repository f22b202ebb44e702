"""Potentials, spikes and errors have the reference's bits, however JAX transforms and compiles the functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stsbp_jax import lif, psp
from stsbp_jax.backend import JaxBackend
from stsbp_jax.contract import grid
from stsbp_jax.equations import recurrence
from stsbp_jax.ops import conv2d
from stsbp_spec import LIF, PSP, AbstractBackend, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import (
    Expr,
    Names,
    Recurrence,
    constant,
    named,
    snap,
    spike,
    sqrt,
    variable,
    where,
)
from stsbp_spec.equations.ranges import flushes_of
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.models.neurons.base import Step
from stsbp_spec.models.surrogates import FastSigmoid, Surrogate
from stsbp_spec.networks.ops import IDENTITY, Conv2d
from stsbp_spec.reference.backend import NumpyBackend

NEURON = LIF(tau_m=3.0, tau_s=5 / 3)
NUMPY = NumpyBackend()
JAX = JaxBackend("cpu:xla" if jax.default_backend() == "cpu" else None)
"""XLA's own code: what it makes of sums and products is seen here."""


def differing_bits(a: Any, b: Any) -> int:
    """Number of float32 values whose bits differ."""
    a_bits, b_bits = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (a, b))
    assert a_bits.shape == b_bits.shape
    return int(np.count_nonzero(a_bits != b_bits))


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
    expected = NUMPY.run(network, weights, inputs, steps)
    got = JAX.run(network, weights, inputs, steps)
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


def potentials(neuron: NeuronModel, z: Any, steps: int) -> Any:
    """Membrane potentials of the traced pairs."""
    return JAX.neuron_potentials(JAX.neuron_forward(neuron, neuron.psp.filter(), z, steps)[1])


def reference(neuron: NeuronModel, z: Any, steps: int) -> tuple[Any, Any]:
    """Spikes and membrane potentials."""
    spikes, residuals = NUMPY.neuron_forward(neuron, neuron.psp.filter(), z, steps)
    return spikes, NUMPY.neuron_potentials(residuals)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_lif_bits_survive(transform: Callable[[Any], Any]) -> None:
    z = drive(25, 2, 301)
    spikes, expected = reference(NEURON, z, 25)
    assert 0.02 < spikes.mean() < 0.5
    assert differing_bits(transform(lambda z: potentials(NEURON, z, 25))(z), expected) == 0


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_psp_bits_survive(transform: Callable[[Any], Any]) -> None:
    s = (drive(25, 2, 301) > 0.5).astype(np.float32)
    expected = NUMPY.psp_forward(PSP(5 / 3), s)
    assert differing_bits(transform(lambda s: psp(PSP(5 / 3), s))(s), expected) == 0


def test_bits_differ_without_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.devices()[0].platform != "cpu":
        pytest.skip("shown for XLA's CPU compiler")
    z = drive(25, 2, 301)
    monkeypatch.setattr(recurrence, "Rounding", lambda data: lambda product: product)
    equations = neuron_equations(NEURON.psp.filter(), NEURON)
    # Not by the backend, which remembers what it has traced.
    got = jax.jit(lambda z: recurrence.recur(equations.forward, equations.constants, {"z": z}, 25)["u"])(z)
    # If this ever fails, XLA no longer fuses multiply-adds here, and the tests above no longer guard anything.
    assert differing_bits(got, reference(NEURON, z, 25)[1]) > 0


def test_lif_fires_where_the_threshold_is_met_exactly() -> None:
    z = np.zeros((2, 1, 3), np.float32)
    z[0, 0] = 1.0, np.nextafter(np.float32(1), np.float32(0)), np.nextafter(np.float32(1), np.float32(2))
    spikes = lif(LIF(threshold=1.0), IDENTITY, jnp.asarray(z), 2)
    np.testing.assert_array_equal(np.asarray(spikes)[0, 0], [1, 0, 1])


def test_lif_decays_into_the_floor_as_the_reference_does() -> None:
    z = np.zeros((120, 1, 64), np.float32)
    z[0] = drive(1, 64)
    neuron = LIF(tau_m=5 / 3, tau_s=3.0)
    expected = reference(neuron, z, 120)[1]
    assert 0 < np.abs(expected[expected != 0]).min() < 2.0**-60
    z[0] *= 2.0**-60
    expected = reference(neuron, z, 120)[1]
    assert (expected[-1] == 0).all()
    assert differing_bits(potentials(neuron, jnp.asarray(z), 120), expected) == 0


@dataclass(frozen=True)
class Tired(NeuronModel):
    """A neuron that no backend knows: two states, a way back that is derived, and everything that XLA would rewrite."""

    name: ClassVar[str] = "tired"
    states: ClassVar[tuple[str, ...]] = ("m", "b")

    tau_m: float = 5.0
    rho: float = 0.9
    tau_s: float = 5 / 3
    surrogate: Surrogate = field(default_factory=lambda: FastSigmoid(3.0))

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"km": 1 - 1 / self.tau_m, "rho": self.rho, "rest": 1 - self.rho, "vth": 0.3, "scale": 3.3}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m + i / p.scale))
        threshold = named("threshold", snap(p.vth + 0.1 + s.b))
        o = spike(u, threshold)
        b = snap(p.rho * s.b + p.rest * where(o, 1, 0))
        return Step(u, o, {"m": snap(p.km * u - where(o, threshold, 0)), "b": b})


TIRED = Tired()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("transform", ["eager", "jit", "vmap", "constant"])
def test_a_neuron_of_two_states_has_the_reference_bits_both_ways(transform: str, static: bool) -> None:
    filter, steps = TIRED.psp.filter(), 9
    z, ds = drive(1 if static else steps, 2, 301), drive(steps, 2, 301)
    equations = neuron_equations(filter, TIRED)
    assert len(equations.kept) > 1
    assert len(equations.backward.states) > 2
    spikes, residuals = NUMPY.neuron_forward(TIRED, filter, z, steps)
    expected = NUMPY.neuron_backward(TIRED, filter, residuals, ds)[0]
    assert 0.02 < spikes.mean() < 0.5

    def both(z: Any, ds: Any) -> Any:
        s, pullback = jax.vjp(lambda z: lif(TIRED, filter, z, steps), z)
        return s, *pullback(ds)

    wrapped: dict[str, Callable[[Any, Any], Any]] = {
        "eager": both,
        "jit": jax.jit(both),
        "vmap": lambda z, ds: [x[1] for x in jax.jit(jax.vmap(both))(jnp.stack([-z, z]), jnp.stack([ds, ds]))],
        "constant": lambda z, ds: jax.jit(lambda: both(jnp.asarray(z), jnp.asarray(ds)))(),
    }
    s, dz = wrapped[transform](z, ds)
    np.testing.assert_array_equal(s, spikes)
    assert dz.shape == z.shape
    assert differing_bits(dz, expected) == 0
    native, saved = JAX.neuron_forward(TIRED, filter, JAX.asarray(z), steps)
    assert native.dtype == np.uint8
    for name, values in residuals.kept.items():
        assert differing_bits(saved.kept[name], values) == 0, name


@pytest.mark.parametrize(
    ("memory", "coding"),
    [
        # Events, and steps that keep everything, are in test_on_cpu.py, and both ways of this neuron above.
        ("low", "direct"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("full", "events"), ("low", "events"), ("full", "direct"))
        ),
    ],
)
def test_a_neuron_of_two_states_trains_to_the_reference_bits(memory: Any, coding: Any) -> None:
    network = NetworkSpec.parse(
        "6C3-P2-D0.2-20", input_shape=(2, 10, 10), outputs=5, coding=coding, neuron=Tired(tau_s=3.0)
    )
    rng = np.random.default_rng(5)
    shape = (6, 3, 2, 10, 10)
    inputs = (rng.random(shape) < 0.3).astype(np.uint8) if coding == "events" else rng.integers(0, 256, shape[1:])
    batch = Batch(inputs.astype(np.uint8), (rng.random((6, 3, 5)) < 0.3).astype(np.uint8))
    trained = []
    backends: list[AbstractBackend] = [NUMPY, JAX]
    for backend in backends:
        trainer = backend.trainer(
            network, VanRossum(), AdamW(lr=0.01, clip_norm=1.0), precision="reproducible", seed=1, memory=memory
        )
        state = trainer.init(initial_weights(network, seed=0, gain=2.0))
        for _ in range(3):
            state, result = trainer.step(state, batch)
        assert min(result.rates.values()) > 0
        trained.append(trainer.export_state(state))
    for name, expected in trained[0].items():
        assert differing_bits(trained[1][name], expected) == 0, name


NAMES = ("p", "q", "x", "y", "s", "t")


def _combined(x: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(lambda a, b: a + b, x, x),
        st.builds(lambda a, b: a - b, x, x),
        st.builds(lambda a, b: a * b, x, x),
        st.builds(lambda a, b: snap(a / (1 + abs(b))), x, x),
        st.builds(lambda a, b: a / sqrt(1 + abs(b)), x, x),
        st.builds(lambda a, b, c: where(a < b, b, c), x, x, x),
        st.builds(snap, x),
        st.builds(lambda a, b, c: a / b / c, x, st.just(variable("p")), st.just(variable("q"))),
    )


NUMBERS = st.sampled_from(NAMES).map(variable) | st.sampled_from([0.1, 1.0, -3.3]).map(constant)
EXPRESSIONS = st.recursive(NUMBERS, _combined, max_leaves=12)


def same_as_numpy(equation: Recurrence, inputs: dict[str, Any], steps: int, *, summed: tuple[str, ...] = ()) -> None:
    constants = {"p": np.float32(0.7), "q": np.float32(1.3)}
    expected = NUMPY.recur(equation, constants, inputs, steps, summed=summed)
    got = jax.jit(lambda inputs: recurrence.recur(equation, constants, inputs, steps, summed=summed))(inputs)
    assert set(got) == set(equation.outputs)
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        np.testing.assert_array_equal(got[name], values, err_msg=name)


# Each example is compiled; making a failing one smaller would take minutes.
@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(x=EXPRESSIONS, y=EXPRESSIONS, reverse=st.booleans(), summed=st.booleans(), static=st.booleans())
def test_whatever_is_written_rounds_as_in_the_reference(
    x: Expr, y: Expr, reverse: bool, summed: bool, static: bool
) -> None:
    # States are kept between -2 and 2, so that nothing overflows.
    states = {"s": where(abs(x) < 2, x, 0.3), "t": where(abs(y) < 2, y, -0.7)}
    outputs = {"out": x, "fires": y >= x} | ({"total": states["s"]} if summed else {})
    equation = Recurrence("random", ("p", "q"), ("x", "y"), states, outputs, reverse=reverse)
    inputs = {"x": drive(1 if static else 4, 3, 67), "y": (drive(4, 3, 67) > 0.5).astype(np.uint8)}
    same_as_numpy(equation, inputs, 4, summed=("total",) if summed else ())


@pytest.mark.parametrize(
    "written",
    [
        lambda p, q, x, y: x * y + y,
        lambda p, q, x, y: (x + p) + q,
        lambda p, q, x, y: (x - 0.1) - 3.3,
        lambda p, q, x, y: x / p,
        lambda p, q, x, y: x / 3.3,
        lambda p, q, x, y: (x / y) / p,
        lambda p, q, x, y: x / (y / p),
        lambda p, q, x, y: x / sqrt(y),
        lambda p, q, x, y: x * p * q,
        lambda p, q, x, y: x * y + p * y,
        lambda p, q, x, y: p / q + x,
        lambda p, q, x, y: p * 0.1 + x * 0.3,
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_what_xla_would_rewrite_rounds_as_written(written: Callable[..., Expr], steps: int) -> None:
    p, q, x, y = (variable(name) for name in "pqxy")
    value = written(p, q, x, y)
    states = {} if steps == 1 else {"s": value}
    equation = Recurrence("written", ("p", "q"), ("x", "y"), states, {"out": value})
    same_as_numpy(equation, {"x": drive(steps, 9, 301), "y": np.abs(drive(steps, 9, 301)) + np.float32(0.1)}, steps)


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
    requests = []

    def chunks(frames: int, frame_bytes: int) -> int:
        requests.append((frames, frame_bytes))
        return 2

    monkeypatch.setattr(conv2d, "_chunks", chunks)
    conv = Conv2d(5, 3, padding=1, stride=2)
    s, wq = jnp.ones((3, 2, 7, 9, 4)), jnp.ones((5, 4, 3, 3))
    z = conv2d.forward(conv, s, wq)
    conv2d.backward(conv, s, wq, z, precision="fast", need_input=True)
    conv2d.backward(conv, s, wq, z, precision="reproducible", need_input=False)
    windows = 4 * 5 * 3 * 3 * 4  # H' W' k k C
    assert requests == [(6, 4 * windows), (6, 4 * windows), (6, 8 * windows)]


def test_an_output_that_has_the_name_of_a_state_is_not_taken_for_it() -> None:
    s, x = variable("s"), variable("x")
    new = snap(s + x)
    equation = Recurrence("counted", (), ("x",), {"s": new}, {"s": new, "fires": s >= 0.5})
    same_as_numpy(equation, {"x": drive(5, 3, 67)}, 5)


def test_spikes_that_follow_from_what_is_kept_are_no_array_of_the_scan() -> None:
    for neuron in (LIF(), TIRED):
        forward = neuron_equations(PSP(3.0).filter(), neuron).forward
        inputs = {"z": jnp.ones((4, 2, 3))}
        traced = jax.make_jaxpr(
            lambda inputs, neuron=neuron, forward=forward: recurrence.recur(
                forward, neuron_equations(PSP(3.0).filter(), neuron).constants, inputs, 4
            )
        )(inputs)
        (scan,) = (equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan")
        assert {str(x.aval.dtype) for x in scan.outvars} == {"float32"}


@dataclass(frozen=True)
class Loud(NeuronModel):
    """A model whose square of the current is snapped or not before it is made large."""

    name: ClassVar[str] = "loud"
    states: ClassVar[tuple[str, ...]] = ("m",)

    threshold: float = 1.0
    hushed: float = 0.0

    def constants(self) -> Mapping[str, float]:
        return {"km": 0.75, "vth": self.threshold, "gain": 2.0**70}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        square = snap(i * i) if self.hushed else i * i
        u = named("u", s.m + square * p.gain * p.gain)
        o = spike(u, p.vth)
        return Step(u, o, {"m": where(o, 0, p.km * u)})


@pytest.mark.parametrize("hushed", [False, True])
def test_a_product_that_is_flagged_is_flushed_and_a_snapped_one_has_the_reference_bits(hushed: bool) -> None:
    neuron = Loud(hushed=float(hushed))
    assert [flush.expression for flush in flushes_of(neuron)] == ([] if hushed else ["i * i"])
    z = np.float32(2.0**-66) * drive(12, 2, 37)
    spikes, expected = reference(neuron, z, 12)
    assert spikes.any() is not np.bool_(hushed)
    assert bool(differing_bits(potentials(neuron, z, 12), expected)) is not hushed
