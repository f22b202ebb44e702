"""Concatenations of branches: shapes, units, what is refused by name, and networks with them in every form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_spec import LIF, LOSSES, Batch, NetworkSpec, initial_weights
from stsbp_spec.contract.arrays import ArrayArithmetic
from stsbp_spec.engine.plan import ByRule, plan, rule_of
from stsbp_spec.engine.results import ValueAndGrad
from stsbp_spec.engine.rules import Rule
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.networks.graph import Edge, Node, Values
from stsbp_spec.networks.notation import described, written_nodes
from stsbp_spec.networks.ops import MERGES, PSP, Add, Concat
from stsbp_spec.networks.ops.base import Merge, Op
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Array, Float32

SPIKES = Values((2, 8, 7), pending=PSP(3))
MEANS = replace(SPIKES, exponent=4)
NUMPY = NumpyBackend()


def test_channels_follow_each_other_in_the_finest_unit_and_the_largest_value() -> None:
    assert Concat().infer(SPIKES, replace(SPIKES, shape=(5, 8, 7))) == replace(SPIKES, shape=(7, 8, 7))
    assert Concat().infer(SPIKES, SPIKES, SPIKES).shape == (6, 8, 7)
    assert Concat().infer(replace(SPIKES, shape=(4,)), replace(SPIKES, shape=(3,))).shape == (7,)
    counts = replace(SPIKES, maximum=9.0)
    for inputs in ((SPIKES, MEANS, counts), (counts, SPIKES, MEANS)):
        assert Concat().infer(*inputs) == Values((6, 8, 7), 4, 9.0, pending=PSP(3))
    halved = replace(SPIKES, gain=2.0, divisor=9)
    assert Concat().infer(halved, halved) == replace(halved, shape=(4, 8, 7))
    image = Values((3, 8, 7), 8, 255 / 256, static=True)
    assert Concat().infer(image, image) == replace(image, shape=(6, 8, 7))
    # No value is changed, so counts need not fit in a byte together.
    assert Concat().infer(replace(SPIKES, maximum=255.0), SPIKES).maximum == 255


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "Concat takes two inputs or more, got 0"),
        ((SPIKES,), "Concat takes two inputs or more, got 1"),
        (
            (SPIKES, replace(SPIKES, weighted=True)),
            "Concat takes spikes, but one of its inputs is weighted sums; put Neurons between them",
        ),
        (
            (SPIKES, replace(SPIKES, shape=(2, 8, 8))),
            "the inputs of Concat must have the same rows and columns, got (2, 8, 7) and (2, 8, 8)",
        ),
        (
            (SPIKES, SPIKES, replace(SPIKES, shape=(2, 7, 7))),
            "the inputs of Concat must have the same rows and columns, got (2, 8, 7) and (2, 7, 7)",
        ),
        (
            (replace(SPIKES, shape=(4,)), replace(SPIKES, shape=(4, 1, 1))),
            "the inputs of Concat must have the same rows and columns, got (4,) and (4, 1, 1)",
        ),
        (
            (SPIKES, replace(SPIKES, pending=PSP(2))),
            "the inputs of Concat must have the same synapse, got PSP(tau_s=3.0) and PSP(tau_s=2.0)",
        ),
        (
            (SPIKES, replace(SPIKES, pending=None)),
            "the inputs of Concat must have the same synapse, got PSP(tau_s=3.0) and None",
        ),
        (
            (SPIKES, replace(SPIKES, gain=2.0)),
            "the inputs of Concat must have the same factor of dropout, got 1.0 and 2.0",
        ),
        (
            (replace(SPIKES, divisor=9), SPIKES),
            "the inputs of Concat must have the same divisor of pooled sums, got 9 and 1",
        ),
        ((SPIKES, replace(SPIKES, static=True)), "Concat takes inputs that change with time, or images, not both"),
        ((replace(SPIKES, static=True), SPIKES), "Concat takes inputs that change with time, or images, not both"),
        (
            (replace(SPIKES, exponent=22), replace(SPIKES, maximum=8.0)),
            "the concatenated values have 25 bits, but float32 holds only 24",
        ),
    ],
)
def test_what_cannot_be_concatenated_is_refused(inputs: tuple[Values, ...], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Concat().infer(*inputs)
    assert message in str(caught.value)
    # One unit less fits.
    assert Concat().infer(replace(SPIKES, exponent=22), replace(SPIKES, maximum=4.0)).bits == 24


def _node(name: str, operation: str, *sources: str) -> str:
    read = ", ".join(source if source.startswith("{") else f'"{source}"' for source in sources)
    return f'[[node]]\nname = "{name}"\n{operation}\nfrom = [{read}]\n'


TEXT = "\n".join(
    (
        _node("conv1", 'weights = "3C3p1"', "input"),
        _node("one", 'neurons = ""', "conv1"),
        _node("conv2", 'weights = "2C1"', "one"),
        _node("two", 'neurons = ""', "conv2"),
        _node("both", "concat = true", "two", '{node = "one", delay = 2}', "two"),
        _node("conv3", 'weights = "4C3"', "both"),
        _node("three", 'neurons = ""', "conv3"),
        _node("out", 'weights = "3"', "three"),
        _node("output", 'neurons = ""', "out"),
    )
)


def spec(text: str = TEXT, **options: Any) -> NetworkSpec:
    return NetworkSpec.parse(text, input_shape=(2, 6, 5), neuron=LIF(3, 5 / 3, 0.4), **options)


def test_a_network_with_a_concatenation_is_written_and_read_again() -> None:
    network = spec()
    (node,) = (node for node in network.nodes if node.name == "both")
    assert node == Node("both", Concat(), (Edge("two"), Edge("one", 2), Edge("two")))
    assert network.graph.values["both"].shape == (7, 6, 5)
    assert network.weight_shapes["conv3"] == (4, 7, 3, 3)
    text = written_nodes(network.nodes)
    assert 'name = "both"\nconcat = true\nfrom = ["two", {node = "one", delay = 2}, "two"]' in text
    assert NetworkSpec.parse(text, input_shape=(2, 6, 5)) == network
    assert described(node) == ("concat", "two, one@-2, two")
    rows = [line.split() for line in network.table().splitlines()]
    assert ["both", "concat", "<-", "two,", "one@-2,", "two", "7x6x5"] in rows
    assert {Add: "add", Concat: "concat"} == {kind: key for key, kind in MERGES.items()}


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("concat = true", "concat = 1", {}, "node both: concat = true, got 1"),
        ("concat = true", "concat = true\nadd = true", {}, "node both: a node has one of weights, neurons, layer, add"),
        ("2C1", "2C3", {}, "node both: the inputs of Concat must have the same rows and columns, got (2, 4, 3) and (3"),
        ('name = "two"\nneurons = ""', 'name = "two"\nneurons = "tau_s=9"', {}, "node both: the inputs of Concat must"),
        ('"two", {node = "one", delay = 2}, "two"', '"two"', {}, "node both: Concat takes two inputs or more, got 1"),
        ('"two", {node = "one"', '"conv2", {node = "one"', {}, "node both: Concat takes spikes, but one of its inputs"),
        (
            '"two", {node = "one", delay = 2}, "two"',
            '{node = "input", delay = 1}, "input"',
            {"coding": "direct"},
            "node both: input is the same at every step, so it cannot be read with a delay",
        ),
        ('{node = "one", delay = 2}', '"input"', {"coding": "direct"}, "node both: the inputs of Concat must have the"),
    ],
)
def test_what_does_not_fit_in_a_network_is_refused_at_its_node(
    old: str, new: str, options: dict[str, Any], message: str
) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(NetworkError) as caught:
        spec(TEXT.replace(old, new), **options)
    assert message in str(caught.value)


def _problem(network: NetworkSpec) -> tuple[dict[str, Float32], Batch]:
    rng = np.random.default_rng(3)
    inputs = (rng.random((7, 4, *network.input_shape)) < 0.4).astype(np.uint8)
    return dict(initial_weights(network, 1, 3.0)), Batch(inputs, (rng.random((7, 4, 3)) < 0.4).astype(np.uint8))


def _gradients(network: NetworkSpec, weights: dict[str, Float32], batch: Batch) -> ValueAndGrad:
    return NUMPY.value_and_grad(network, LOSSES["hamming"], weights, batch, precision="reproducible", dropout=(1, 0))


def test_weights_of_a_concatenation_are_those_of_its_branches_side_by_side() -> None:
    """A convolution of the concatenation computes what one convolution for each branch does together."""
    network = spec(TEXT.replace('"two", {node = "one", delay = 2}, "two"', '"two", {node = "one", delay = 2}'))
    apart = TEXT.replace(_node("both", "concat = true", "two", '{node = "one", delay = 2}', "two"), "")
    apart = apart.replace(_node("conv3", 'weights = "4C3"', "both"), _node("first", 'weights = "4C3"', "two"))
    second = _node("second", 'weights = "4C3"', '{node = "one", delay = 2}')
    apart = apart.replace(
        _node("three", 'neurons = ""', "conv3"), second + _node("three", 'neurons = ""', "first", "second")
    )
    weights, batch = _problem(network)
    # The same grid for both parts: a multiple of 1/64 of each magnitude.
    weights["conv3"] = (np.rint(weights["conv3"] * 64) / 64).astype(np.float32)
    split = {**weights, "first": weights["conv3"][:, :2].copy(), "second": weights["conv3"][:, 2:].copy()}
    del split["conv3"]
    concatenated, parts = _gradients(network, weights, batch), _gradients(spec(apart), split, batch)
    assert concatenated.spikes.any()
    assert np.array_equal(concatenated.spikes, parts.spikes)
    joined = np.concatenate([parts.gradients["first"], parts.gradients["second"]], axis=1)
    # Each projection has an error grid of its own, with more than 24 bits, so only the last bits differ.
    assert np.abs(concatenated.gradients["conv3"]).max() > 0
    np.testing.assert_allclose(concatenated.gradients["conv3"], joined, rtol=0, atol=2e-6 * np.abs(joined).max())
    for name in ("conv1", "conv2", "out"):
        expected = parts.gradients[name]
        np.testing.assert_allclose(concatenated.gradients[name], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_concatenation_needs_no_rule_of_a_backend() -> None:
    (step,) = (step for step in plan(NUMPY, spec().graph).steps if step.name == "both")
    assert type(step) is ByRule
    assert step.delays == (0, 2, 0)
    assert Concat not in NUMPY.rules


class Own(NumpyBackend):
    """A backend with a rule of its own for concatenations."""

    used = 0

    @property
    def rules(self) -> dict[type[Op], Rule[AnyArray]]:
        derived = rule_of(NUMPY, Concat())

        def forward(op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
            self.used += 1
            return derived.forward(op, *inputs)

        return {**super().rules, Concat: Rule(forward, derived.backward)}


def test_a_rule_of_a_backend_goes_before_the_derived_one() -> None:
    backend, network = Own(), spec()
    weights, batch = _problem(network)
    backend.run(network, weights, batch.inputs, 7)
    assert backend.used > 0


@dataclass(frozen=True)
class Unwritten(Merge):
    """An operation that no text names."""

    key: ClassVar[str] = "add"
    symbol: ClassVar[str] = "?"
    outcome: ClassVar[str] = "values"

    def output_shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        return shapes[0]

    def largest(self, *maxima: float) -> float:
        return max(maxima)

    def forward(self, arithmetic: ArrayArithmetic[Array], *inputs: Array) -> tuple[Array, Any]:
        return inputs[0], None

    def backward(self, arithmetic: ArrayArithmetic[Array], residuals: Any, error: Array) -> Any:
        return error, None


def test_an_operation_without_text_is_not_written_as_another_one() -> None:
    with pytest.raises(NetworkError, match=r"node x: there is no text for Unwritten\(\)"):
        written_nodes([Node("x", Unwritten(), (Edge("a"), Edge("b")))])


@pytest.mark.parametrize("shapes", [((2, 4, 3), (1, 4, 3), (3, 4, 3)), ((5,), (2,))])
def test_what_a_spike_reaches_through_merged_branches(shapes: tuple[tuple[int, ...], ...]) -> None:
    merged_shape = Concat().output_shape(*shapes)
    counts = np.arange(np.prod(merged_shape), dtype=np.int64).reshape(merged_shape)
    ends = np.cumsum([shape[0] for shape in shapes])[:-1]
    for reached, expected in zip(Concat().reached(counts, shapes), np.split(counts, ends), strict=True):
        assert reached.dtype == np.int64
        assert np.array_equal(reached, expected)
    first, second = Add().reached(counts, [merged_shape, merged_shape])
    assert np.array_equal(first, counts)
    assert np.array_equal(second, counts)
