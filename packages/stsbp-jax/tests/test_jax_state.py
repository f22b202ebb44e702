"""`apply` of networks that are graphs: in chunks of time, potentials and their gradients, under vmap and shard_map."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stsbp_jax import Output, apply, distance
from stsbp_spec import LIF, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.passes import Trace, backward_segment, forward_segment
from stsbp_spec.engine.plan import plan
from stsbp_spec.engine.rules import PassContext
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses.cross_entropy import CrossEntropy
from stsbp_spec.networks.ops.batchnorm import running
from stsbp_spec.reference.backend import NumpyBackend

STEPS, BATCH, GAIN = 5, 3, 6.0
NOTATIONS = {
    "recurrent and delayed": "5R{delay=2,neuron=plif}",
    "learned delays": "T2-3C3-T1-F-T9-4",
    "residual and normalised": "3C3p1bn-[3C3p1]+",
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


def example(name: str) -> tuple[NetworkSpec, dict[str, Any], Any, Any]:
    outputs = None if "[[node]]" in NOTATIONS[name] else 3
    network = NetworkSpec.parse(NOTATIONS[name], input_shape=(2, 4, 4), outputs=outputs, neuron=LIF(3, 5 / 3))
    rng = np.random.default_rng(1)
    x = (rng.random((STEPS, BATCH, 2, 4, 4)) < 0.4).astype(np.uint8)
    return network, dict(initial_weights(network, 1, GAIN)), x, (rng.random((STEPS, BATCH, 3)) < 0.4).astype(np.uint8)


@pytest.mark.parametrize("name", NOTATIONS)
def test_calls_with_chunks_of_time_have_the_bits_of_one_call(name: str) -> None:
    network, weights, x, _ = example(name)
    layers = NumpyBackend().run(network, weights, x, STEPS).layers
    undivided = apply(network, weights, x, STEPS, full=True)
    assert isinstance(undivided, Output)
    assert list(undivided.potentials) == list(layers)
    for key, layer in layers.items():
        assert layer.spikes.any()
        np.testing.assert_array_equal(undivided.potentials[key], layer.potentials)
    np.testing.assert_array_equal(undivided.spikes, layers[list(layers)[-1]].spikes)
    state, spikes = None, []
    for chunk in (x[:1], x[1:4], x[4:]):
        output = jax.jit(partial(apply, network, steps=len(chunk), full=True))(weights, chunk, state=state)
        state = output.state
        spikes.append(output.spikes)
    np.testing.assert_array_equal(np.concatenate(spikes), undivided.spikes)
    for key, arrays in undivided.state.items():
        assert state is not None
        for a, b in zip(state[key], arrays, strict=True):
            np.testing.assert_array_equal(a, b)
    assert state is not None
    other_size: Any = {key: tuple(np.repeat(x, 2, -1) for x in arrays) for key, arrays in state.items()}
    one_less: Any = {key: arrays[1:] for key, arrays in state.items()}
    for inputs, wrong in ((x[:, :2], state), (x, other_size), (x, one_less)):
        with pytest.raises(ShapeError, match=r"in the state have the shapes \[.*\], not \[.*\]; the state belongs to"):
            apply(network, weights, inputs, STEPS, state=wrong)
    with pytest.raises(ShapeError, match=r"the state does not contain .*; it belongs to another network"):
        apply(network, weights, x, STEPS, state={})
    for key, arrays in state.items():
        wrong = {**state, key: (*arrays[:-1], np.full(np.shape(arrays[-1]), np.nan, np.float32))}
        with pytest.raises(NumericError, match=r"the state of .* holds a value that is not finite"):
            apply(network, weights, x, STEPS, state=wrong)


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ((-1, 0), "seed must be an integer from 0 to"),
        ((2**32, 0), "seed must be an integer from 0 to"),
        ((0.9, 1), "seed must be an integer from 0 to .*, got 0.9"),
        ((np.float32(3), 1), "seed must be an integer from 0 to"),
        ((0, 0.5), "step of dropout must be an integer from 0 to .*, got 0.5"),
        ((0, 2**40), "step of dropout must be an integer from 0 to"),
        ((0, -1), "step of dropout must be an integer from 0 to"),
        ((0, jnp.ones(2, np.int32)), "step of dropout must be an integer from 0 to"),
        ((1, 2, 3), r"dropout is None or \(seed, step\), got"),
        (3, r"dropout is None or \(seed, step\), got 3"),
    ],
)
def test_dropout_of_what_are_no_integers_of_32_bits_is_refused(dropout: Any, message: str) -> None:
    network, weights, x, _ = example("residual and normalised")
    with pytest.raises(SpecError, match=message):
        apply(network, weights, x, STEPS, dropout=dropout, full=True)


def test_dropout_of_traced_integers_is_taken_and_of_traced_fractions_refused() -> None:
    network = NetworkSpec.parse("6-D0.5-3", input_shape=(2, 4, 4), neuron=LIF(3, 5 / 3))
    weights, (_, _, x, _) = dict(initial_weights(network, 1, GAIN)), example("residual and normalised")
    traced = jax.jit(lambda seed, step: apply(network, weights, x, STEPS, dropout=(seed, step)))
    assert np.array_equal(traced(7, np.uint32(2**32 - 1)), apply(network, weights, x, STEPS, dropout=(7, 2**32 - 1)))
    for wrong, name in (((0.9, 1), "seed"), ((1, np.ones(2, int)), "step")):
        with pytest.raises(SpecError, match=rf"the {name} of dropout must be an integer, got \w+ \[2?\]"):
            traced(*wrong)


@pytest.mark.parametrize("name", NOTATIONS)
def test_gradients_within_a_call_are_those_of_the_reference(name: str) -> None:
    """With potentials asked for and not used, in training: statistics come too."""
    network, weights, x, y = example(name)
    expected = NumpyBackend().value_and_grad(
        network, VanRossum(), weights, Batch(x, y), precision="reproducible", dropout=(0, 0)
    )

    def objective(learned: dict[str, Any]) -> tuple[Any, Any]:
        output = apply(network, {**weights, **learned}, x, STEPS, dropout=(0, 0), precision="reproducible", full=True)
        return distance(VanRossum(), network.output_psp, output.spikes, y), output.statistics

    learned = {key: weights[key] for key in network.parameters}
    gradients, statistics = jax.jit(jax.grad(objective, has_aux=True))(learned)
    assert set(gradients) == set(expected.gradients)
    for key, g in expected.gradients.items():
        assert g.any()
        np.testing.assert_array_equal(gradients[key], g, err_msg=key)
    assert set(statistics) == set(network.statistics)
    for projection in network.graph.normalised:
        norm = projection.synapse.norm
        assert norm is not None
        for key in ("mean", "variance"):
            name = f"{projection.name}.{key}"
            of_batch = (np.asarray(statistics[name], np.float64) - 0.9 * weights[name]) / 0.1
            assert np.abs(np.asarray(statistics[name]) - weights[name]).max() > 0
            moved = running(norm, weights[name], of_batch.astype(np.float32))
            np.testing.assert_allclose(statistics[name], moved, rtol=1e-5)
    if network.statistics:
        with pytest.raises(SpecError, match="call apply with full=True and keep"):
            apply(network, weights, x, STEPS, dropout=(0, 0))


@pytest.mark.filterwarnings("error")
def test_gradients_of_potentials_are_those_of_the_reference() -> None:
    """Of one layer: its steps by numpy, with an error of spikes and one of potentials."""
    network, weights, x, _ = example("recurrent and delayed")
    network = NetworkSpec.parse("3R", input_shape=(2, 4, 4), neuron=LIF(3, 5 / 3))
    weights, rng, numpy = dict(initial_weights(network, 1, GAIN)), np.random.default_rng(2), NumpyBackend()
    of_o, of_u = (rng.normal(size=(STEPS, BATCH, 3)).astype(np.float32) for _ in range(2))

    def objective(weights: Any) -> Any:
        output = apply(network, weights, x, STEPS, precision="reproducible", full=True)
        return (output.spikes * of_o).sum() + (output.potentials["linear1"] * of_u).sum()

    gradients = jax.jit(jax.grad(objective))(weights)
    walk = plan(numpy, network.graph, fused=False)
    (segment,) = walk.segments
    wq = {key: numpy.weight_grid(p, weights[key])[0] for p in network.graph.projections for key in [p.name]}
    run = PassContext(wq, STEPS, None, BatchSlice(0, BATCH, BATCH), initial_states={})
    _, residuals = forward_segment(numpy, segment, run, {walk.input: x})
    population = segment.steps[-1].name
    residuals[population] = residuals[population]._replace(error=of_u)
    trace = Trace(numpy, walk, run, of_o, {}, lambda _: residuals, {})
    expected = backward_segment([trace], segment, [{population: [of_o]}], "reproducible")
    assert set(expected) == set(gradients)
    for key, g in expected.items():
        assert g.any()
        np.testing.assert_array_equal(gradients[key], numpy.rounded(g), err_msg=key)


def test_potentials_of_a_readout_take_a_cross_entropy() -> None:
    network = NetworkSpec.parse("4-3{neuron=readout,tau_m=5}", input_shape=(9,), neuron=LIF(3, 5 / 3))
    weights, labels = dict(initial_weights(network, 0, GAIN)), np.arange(BATCH)
    x = (np.random.default_rng(0).random((STEPS, BATCH, 9)) < 0.4).astype(np.uint8)
    y = np.broadcast_to(np.eye(3, dtype=np.uint8)[labels], (STEPS, BATCH, 3)).copy()
    expected = NumpyBackend().value_and_grad(network, CrossEntropy(), weights, Batch(x, y))

    def objective(weights: Any) -> Any:
        evidence = apply(network, weights, x, STEPS, full=True).potentials["linear2"].mean(0)
        return -jax.nn.log_softmax(evidence)[labels, labels].mean()

    value, gradients = jax.jit(jax.value_and_grad(objective))(weights)
    assert float(value) == pytest.approx(expected.loss, rel=1e-5)
    for key, g in expected.gradients.items():
        assert np.abs(gradients[key] - g).max() <= 1e-4 * np.abs(g).max(), key


@pytest.mark.filterwarnings("error")  # of JAX, where it has no float64
def test_mapped_networks_have_the_bits_of_each() -> None:
    """Over samples, with gradients and a state, and over networks."""
    network, weights, x, y = example("recurrent and delayed")
    begun = apply(network, weights, x[:2], 2, full=True).state
    one = partial(apply, network, steps=STEPS - 2, full=True)
    unmapped = one(weights, x[2:], state=begun)
    mapped = jax.jit(jax.vmap(lambda x, state: one(weights, x, state=state), 1, 1))(
        x[2:, :, None], jax.tree.map(lambda a: a[:, :, None], begun)
    )
    np.testing.assert_array_equal(mapped.spikes[:, :, 0], unmapped.spikes)
    np.testing.assert_array_equal(mapped.potentials["linear1"][:, :, 0], unmapped.potentials["linear1"])

    def objective(weights: Any, x: Any, y: Any) -> Any:
        spikes = apply(network, weights, x, STEPS, precision="reproducible")
        return distance(VanRossum(), network.output_psp, spikes, y)

    mapped_gradients = jax.jit(jax.vmap(jax.grad(objective), (None, 1, 1)))(weights, x[:, :, None], y[:, :, None])
    for i in range(BATCH):
        batch = Batch(x[:, i : i + 1].copy(), y[:, i : i + 1].copy())
        result = NumpyBackend().value_and_grad(network, VanRossum(), weights, batch, precision="reproducible")
        for key, g in result.gradients.items():
            np.testing.assert_array_equal(mapped_gradients[key][i], g, err_msg=key)
    several = {key: jnp.stack([w, 0.5 * w]) for key, w in weights.items()}
    spikes = jax.jit(jax.vmap(lambda weights: apply(network, weights, x, STEPS)))(several)
    np.testing.assert_array_equal(spikes[1], apply(network, jax.tree.map(lambda w: w[1], several), x, STEPS))


SHARDED = """
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
from stsbp_jax import apply, avgpool2d, conv2d, distance, lif, linear, psp, snap_weights
from stsbp_spec import LIF, PSP, AvgPool2d, Conv2d, Linear, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.models.neurons.plif import PLIF

mesh, whole, split = Mesh(np.array(jax.devices()), ("d",)), P(), P(None, "d")
rng = np.random.default_rng(0)
s = (rng.random((3, 6, 2, 6, 6)) < 0.3).astype(np.float32)
last, z = np.moveaxis(s, 2, -1), rng.normal(size=(3, 6, 5)).astype(np.float32)
kernel, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 3, 3), (5, 72)))
network = NetworkSpec.parse("5R{delay=1}", input_shape=(2, 6, 6), outputs=3)
weights = dict(initial_weights(network, 0, 6.0))
y = (rng.random((3, 6, 3)) < 0.3).astype(np.float32)
state = apply(network, weights, s, 3, full=True).state
cases = {
    "conv2d": (partial(conv2d, Conv2d(3, 3)), (last, kernel), (split, whole)),
    "linear": (partial(linear, Linear(5)), (last, matrix), (split, whole)),
    "avgpool2d": (partial(avgpool2d, AvgPool2d(2)), (last,), (split,)),
    "psp": (partial(psp, PSP(3)), (z,), (split,)),
    "lif": (lambda z: lif(LIF(), PSP(3).filter(), z, 3), (z,), (split,)),
    "plif": (lambda z, d: lif(PLIF(), PSP(3).filter(), z, 3, {"decay": d}), (z, np.full(1, 0.5, np.float32)),
             (split, whole)),
    "apply": (lambda w, x, state: apply(network, w, x, 3, state=state, full=True), (weights, s, state),
              (whole, split, split)),
}
assert jax.device_count() == 3
for name, (function, given, specs) in cases.items():
    for check in (True, False) if name == "apply" else (True,):
        sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=check)
        for a, b in zip(jax.tree.leaves(jax.jit(sharded)(*given)), jax.tree.leaves(function(*given)), strict=True):
            assert np.array_equal(a, b), (name, check)
block = network.blocks[0]
snapping = jax.shard_map(partial(snap_weights, block), mesh=mesh, in_specs=whole, out_specs=whole)
snapped = jax.jit(snapping)(weights["linear1"])
assert np.array_equal(snapped, snap_weights(block, weights["linear1"]))

def loss(weights, x, y):
    return jax.lax.pmean(distance(VanRossum(), network.output_psp, apply(network, weights, x, 3), y), "d")

def of_all(weights):
    return jax.shard_map(loss, mesh=mesh, in_specs=(whole, split, split), out_specs=whole)(weights, s, y)

found = jax.jit(jax.grad(of_all))(weights)
expected = jax.grad(lambda w: distance(VanRossum(), network.output_psp, apply(network, w, s, 3), y))(weights)
for name in network.parameters:
    assert np.abs(expected[name]).max() > 0
    assert np.abs(found[name] - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name
print("as on one")
"""


def test_public_functions_work_under_shard_map() -> None:
    """On three devices, with the types of arrays that vary followed and not."""
    code = 'import os; os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"\n' + SHARDED
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "as on one", run.stderr[-3000:]


def test_hidden_spikes_stand_beside_hidden_potentials() -> None:
    network = NetworkSpec.parse("[8|8{delay=1}]+-6R-5", input_shape=(4,), outputs=3)
    weights = initial_weights(network, 0, 6.0)
    frames = np.random.default_rng(0).random((9, 5, 4)) < 0.5
    out = apply(network, weights, frames, 9, full=True)
    layers = NumpyBackend().run(network, weights, frames.astype(np.uint8), steps=9).layers
    assert list(out.layer_spikes) == list(out.potentials) == list(layers)
    for name, expected in layers.items():
        assert expected.spikes.any(), name
        assert np.array_equal(out.layer_spikes[name], expected.spikes), name
    rates = jax.grad(lambda w: apply(network, w, frames, 9, full=True).layer_spikes["linear1"].mean())(weights)
    assert np.any(rates["linear1"])
    with pytest.raises(ShapeError, match=r"inputs have 9 steps, expected 5; they look like \[B, T, ...\]"):
        apply(network, weights, frames, 5)
