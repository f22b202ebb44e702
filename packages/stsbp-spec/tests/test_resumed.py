"""Networks that go on from a state: the bits of one pass, and errors of potentials on the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_spec import ALIF, LIF, NetworkSpec, NeuronModel, initial_weights
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.passes import Trace, backward_segment, forward_segment, states_after
from stsbp_spec.engine.plan import Segment, plan
from stsbp_spec.engine.rules import PassContext
from stsbp_spec.equations.assembly import resumable_equations
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray

STEPS, BATCH = 6, 2
NOTATIONS = [
    "5R{neuron=plif}-4{recurrent=one-to-one,reset=subtract,tau_rise=1.5}",
    "5{delay=2}-4{delay=3}",
    "3C3R3-[3C3p1]+-4bn",
    "T3-3C3-T1-F-T9-4R",
]
NUMPY = NumpyBackend()


def walked(
    spec: NetworkSpec, wq: dict[str, AnyArray], x: AnyArray, earlier: dict[str, Any] | None
) -> tuple[dict[str, AnyArray], dict[str, Any], dict[str, Any]]:
    """What the nodes make, the residuals of all steps, and what enters the steps after these."""
    walk = plan(NUMPY, spec.graph, fused=False)
    run = PassContext(wq, len(x), None, BatchSlice(0, BATCH, BATCH), initial_states=earlier)
    values, residuals, later = {walk.input: x}, dict[str, Any](), dict[str, Any]()
    for segment in walk.segments:
        outputs, saved = forward_segment(NUMPY, segment, run, values)
        values |= outputs
        residuals |= saved
        if earlier is not None:
            later |= states_after(segment, saved)
    return values, residuals, later


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("neuron", [LIF(3, 5 / 3), ALIF(3, 5 / 3, beta=0.6)], ids=["lif", "alif"])
def test_passes_over_chunks_of_time_have_the_bits_of_one(notation: str, neuron: NeuronModel) -> None:
    spec = NetworkSpec.parse(notation, input_shape=(2, 4, 4), outputs=3, neuron=neuron)
    wq = dict(initial_weights(spec, 1, 6.0))
    for projection in spec.graph.projections:
        wq[projection.name] = NUMPY.weight_grid(projection, wq[projection.parameter])[0]
    x = (np.random.default_rng(0).random((STEPS, BATCH, 2, 4, 4)) < 0.4).astype(np.uint8)
    undivided, _, _ = walked(spec, wq, x, None)
    for chunks in ([x[t : t + 1] for t in range(STEPS)], [x[:2], x[2:3], x[3:]]):
        state, chunk_outputs = dict[str, Any](), list[dict[str, AnyArray]]()
        for chunk in chunks:
            values, _, state = walked(spec, wq, chunk, state)
            chunk_outputs.append(values)
        for name, expected in undivided.items():
            assert np.array_equal(np.concatenate([values[name] for values in chunk_outputs]), expected), name
    fired = {name: x.any() for name, x in undivided.items() if name.startswith("neurons")}
    assert all(fired.values()), fired


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_stream_has_the_bits_of_a_run(notation: str) -> None:
    spec = NetworkSpec.parse(notation, input_shape=(2, 4, 4), outputs=3, neuron=LIF(3, 5 / 3))
    weights = initial_weights(spec, 1, 6.0)
    x = (np.random.default_rng(0).random((STEPS, BATCH, 2, 4, 4)) < 0.4).astype(np.uint8)
    layers = NUMPY.run(spec, weights, x, STEPS).layers
    stream = NUMPY.stream(spec, weights, BATCH)
    for t in range(STEPS):
        assert np.array_equal(stream.step(x[t]), layers[spec.blocks[-1].name].spikes[t])
        for name, layer in stream.layers.items():
            assert layer.spikes.tobytes() == layers[name].spikes[t].tobytes()
            assert layer.potentials.tobytes() == layers[name].potentials[t].tobytes()
    assert stream.steps == STEPS


@pytest.mark.parametrize("neuron", [LIF(3, 2), LIF(3, 2, reset="subtract"), ALIF(3, 2), PLIF(3, 2)], ids=str)
def test_errors_of_potentials_go_back_as_those_of_spikes_do(neuron: NeuronModel) -> None:
    """An error `h` times that of a spike is the same at its potential; without any the way back is the plain one's."""
    both = resumable_equations((PSP(5 / 3).filter(),), neuron)
    rng = np.random.default_rng(1)
    z, g = (rng.normal(1, 2, (STEPS, 9)).astype(np.float32) for _ in range(2))
    learned = {free: np.full((1, 9), 0.7, np.float32) for free in both.plain.learned.values()}
    outputs = NUMPY.recur(both.of_potentials.forward, both.plain.constants, {"z": z, **learned}, STEPS)
    saved = {name: outputs[name] for name in both.of_potentials.kept}
    nothing = np.zeros_like(g)

    def backward(gu: AnyArray, g: AnyArray) -> AnyArray:
        inputs = {**saved, "gu": gu, "g": g, **learned}
        return NUMPY.recur(both.of_potentials.backward, both.plain.constants, inputs, STEPS)["dz"]

    plain_outputs = NUMPY.recur(both.plain.forward, both.plain.constants, {"z": z, **learned}, STEPS)
    plain = {name: plain_outputs[name] for name in both.plain.kept}
    expected = NUMPY.recur(both.plain.backward, both.plain.constants, {**plain, "g": g, **learned}, STEPS)["dz"]
    assert np.abs(backward(nothing, g) - expected).max() <= 1e-6 * np.abs(expected).max()
    # At the last step nothing comes from later ones.
    last = np.zeros_like(g)
    last[-1] = g[-1]
    of_spike, of_u = backward(nothing, last), backward(last, nothing)
    if neuron.name != "alif":
        slope = 1 / (1 + (np.pi * (outputs["u"][-1] - 1)) ** 2)
        assert np.allclose(of_spike[-1], slope * of_u[-1], rtol=1e-5)
    assert np.array_equal(of_u[-1], (np.float32(3 / 5) * last[-1]).astype(np.float32))


def test_an_error_of_potentials_meets_that_of_spikes() -> None:
    """Through a whole segment, weights included: their gradients add."""
    spec = NetworkSpec.parse("3R", input_shape=(5,), neuron=LIF(3, 5 / 3, reset="subtract"))
    wq = {p.name: NUMPY.weight_grid(p, initial_weights(spec, 1, 4.0)[p.name])[0] for p in spec.graph.projections}
    rng = np.random.default_rng(2)
    x = (rng.random((STEPS, BATCH, 5)) < 0.5).astype(np.uint8)
    of_o, of_u = (rng.normal(size=(STEPS, BATCH, 3)).astype(np.float32) for _ in range(2))

    def gradients(of_o: AnyArray, of_u: AnyArray) -> dict[str, AnyArray]:
        _, residuals, _ = walked(spec, wq, x, {})
        walk = plan(NUMPY, spec.graph, fused=False)
        segment: Segment[Any] = walk.segments[0]
        name = str(segment.population)
        residuals[name] = residuals[name]._replace(error=of_u)
        run = PassContext(wq, STEPS, None, BatchSlice(0, BATCH, BATCH), initial_states={})
        trace = Trace(NUMPY, walk, run, of_o, {}, lambda _: residuals, {})
        return backward_segment([trace], segment, [{name: [of_o]}], "fast")

    none = np.zeros_like(of_o)
    both, spikes, potentials = gradients(of_o, of_u), gradients(of_o, none), gradients(none, of_u)
    for name, g in both.items():
        assert np.abs(potentials[name]).max() > 0.1
        assert np.abs(g - spikes[name] - potentials[name]).max() <= 1e-5 * np.abs(g).max(), name
