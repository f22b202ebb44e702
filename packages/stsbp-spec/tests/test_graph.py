"""Networks as graphs: what edges carry, in which order nodes stand, what is refused and at which node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.equations.expressions import Expr, Names, spike
from stsbp_spec.errors import ExactnessError, NetworkError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons import LIF, PLIF, NeuronModel
from stsbp_spec.models.neurons.base import Step, parameter
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node, Op, Projection, Values
from stsbp_spec.networks.ops import IDENTITY, PSP, Add, AvgPool2d, Conv2d, Dropout, Linear, OneToOne
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.networks.ops.dropout import substream
from stsbp_spec.networks.spec import NetworkSpec

INPUT = Node("input", Input((2, 9, 9)))
SPIKES = Values((2, 8, 8), pending=PSP(3))


def chain(*nodes: tuple[str, Op]) -> tuple[Node, ...]:
    """Nodes of which each reads the one before it, from `INPUT` on."""
    names = ["input", *(name for name, _ in nodes)]
    return (INPUT, *(Node(name, op, (Edge(source),)) for (name, op), source in zip(nodes, names, strict=False)))


HIDDEN = chain(("w1", Conv2d(4, 3)), ("n1", Neurons(LIF(tau_s=5))), ("w2", Linear(3)), ("n2", Neurons(LIF())))


LEARNING = PLIF()


@dataclass(frozen=True)
class Learner(NeuronModel):
    """Neurons that learn a number of any name."""

    name: ClassVar[str] = "learner"
    states: ClassVar[tuple[str, ...]] = ("m",)
    value: str = parameter("value", lambda name, value: value)

    def constants(self) -> Mapping[str, float]:
        return {}

    def learned(self) -> Mapping[str, Learned]:
        return {self.value: Learned(0.5, 0, 1)}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = s.m + i
        return Step(u, spike(u, 1), {"m": getattr(p, self.value) * u})


@dataclass(frozen=True)
class Sum(Op):
    """Adds spike trains."""

    def infer(self, *inputs: Values) -> Values:
        return replace(inputs[0], maximum=sum(values.maximum for values in inputs))


def test_what_edges_carry() -> None:
    network = Network(
        chain(
            ("pool", AvgPool2d(2)),
            ("conv", Conv2d(4, 3)),
            ("fires", Neurons(LIF(tau_s=5))),
            ("drop", Dropout(0.5)),
            ("again", Dropout(0.2)),
            ("linear", Linear(3)),
            ("out", Neurons(LIF(tau_s=2))),
        )
    )
    pooled = Values((2, 4, 4), exponent=2)
    fired = Values((4, 2, 2), pending=PSP(5))
    dropped = replace(fired, gain=2.0)
    assert network.values == {
        "input": Values((2, 9, 9)),
        "pool": pooled,
        "conv": replace(pooled, shape=(4, 2, 2), weighted=True),
        "fires": fired,
        "drop": dropped,
        "again": replace(dropped, gain=2.0 * (1 / 0.8)),
        "linear": Values((3,), pending=PSP(5), gain=2.0 * (1 / 0.8), weighted=True),
        "out": Values((3,), pending=PSP(2)),
    }
    assert network.projections == (
        Projection("conv", 0, Conv2d(4, 3), pooled),
        Projection("linear", 1, Linear(3), network.values["again"]),
    )


@pytest.mark.parametrize(
    ("op", "values"),
    [
        (Input((4,), "direct", PSP(2)), Values((4,), 8, 255 / 256, static=True, pending=PSP(2))),
        (Input((4,), largest=7), Values((4,), 0, 7.0)),
        (Input((4,), psp=PSP(2)), Values((4,), 0, 1.0, pending=PSP(2))),
    ],
)
def test_what_an_input_carries(op: Input, values: Values) -> None:
    assert op.infer() == values


@pytest.mark.parametrize(("values", "bits"), [(Values((1,)), 0), (Values((1,), 2), 2), (Values((1,), 0, 7.0), 3),
                                              (Values((1,), 8, 255 / 256), 8), (Values((1,), 0, 8.0), 3)])  # fmt: skip
def test_bits_of_values(values: Values, bits: int) -> None:
    assert values.bits == bits
    assert values.maximum * 2**values.exponent <= 2**bits


def test_a_gain_belongs_to_training_and_folds_into_the_pending_synapse() -> None:
    values = replace(SPIKES, gain=1.25)
    assert values.filter(training=True) == PSP(3).filter(1.25)
    assert values.filter(training=False) == PSP(3).filter()
    image = Values((4,), gain=1.25)
    assert image.filter(training=True) == replace(IDENTITY, gain=IDENTITY.gain * IDENTITY.gain.dtype.type(1.25))
    assert image.filter(training=False) == IDENTITY


@given(order=st.permutations(range(5)))
def test_nodes_are_put_in_order(order: list[int]) -> None:
    network = Network(tuple(HIDDEN[i] for i in order))
    assert [node.name for node in network.nodes] == ["input", "w1", "n1", "w2", "n2"]
    assert network == Network(HIDDEN)
    assert hash(network) == hash(Network(HIDDEN))
    assert network != Network((*HIDDEN[:-1], replace(HIDDEN[-1], op=Neurons(LIF(tau_m=3)))))


def fork() -> tuple[Node, ...]:
    """Two populations that read one, and their sum."""
    return (
        INPUT,
        Node("w1", Conv2d(4, 3), (Edge("input"),)),
        Node("n1", Neurons(LIF()), (Edge("w1"),)),
        Node("left", Conv2d(4, 3, padding=1), (Edge("n1"),)),
        Node("pool", AvgPool2d(1), (Edge("n1"),)),
        Node("right", Conv2d(4, 1), (Edge("pool"),)),
        Node("fires left", Neurons(LIF()), (Edge("left"),)),
        Node("fires right", Neurons(LIF()), (Edge("right"),)),
        Node("sum", Sum(), (Edge("fires right"), Edge("fires left"), Edge("n1"))),
        Node("w2", Linear(3), (Edge("sum"),)),
        Node("n2", Neurons(LIF()), (Edge("w2"),)),
    )


def test_nodes_that_could_stand_in_several_places_keep_their_order() -> None:
    network = Network(fork())
    assert network.nodes == fork()
    assert network.values["sum"].maximum == 3
    assert network.readers["n1"] == ("left", "pool", "sum")
    assert network.readers["n2"] == ()
    last_first = Network(fork()[::-1])
    names = [node.name for node in last_first.nodes]
    assert names == [
        "input", "w1", "n1", "pool", "right", "fires right", "left", "fires left", "sum", "w2", "n2",
    ]  # fmt: skip
    assert last_first.readers["n1"] == ("pool", "left", "sum")


def test_places_count_populations_and_what_stands_since_the_last() -> None:
    bound_nodes = [(bound_node.layer, bound_node.position) for bound_node in Network(fork()).bound_nodes]
    assert bound_nodes == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0), (3, 1), (3, 2)]


def test_a_chain_has_the_streams_of_its_blocks() -> None:
    network = NetworkSpec.parse("D0.1-8C3d0.2-P2-D0.3-16d0.5-D0.25-12-6", input_shape=(2, 12, 12), outputs=3)
    drops = [bound_node for bound_node in network.graph.bound_nodes if isinstance(bound_node.node.op, Dropout)]
    assert [substream(bound_node.layer, bound_node.position) for bound_node in drops] == [0, 16, 18, 32, 33]
    assert [bound_node.node.name for bound_node in drops] == [
        "dropout1.0", "dropout2.0", "dropout2.2", "dropout3.0", "dropout3.1",
    ]  # fmt: skip
    assert [block.population for block in network.blocks] == [
        bound_node.node.name for bound_node in network.graph.bound_nodes if isinstance(bound_node.node.op, Neurons)
    ]


def recurrent(op: Op) -> tuple[Node, ...]:
    """A population that reads itself through `op`."""
    loop, both = Node("own", op, (Edge("n1", 1),)), (Edge("w1"), Edge("own"))
    return (INPUT, Node("w1", Conv2d(4, 3), (Edge("input"),)), loop, Node("n1", Neurons(LIF(tau_s=5)), both))


def test_a_population_may_read_itself_a_step_later() -> None:
    network = Network(recurrent(Conv2d(4, 1))[::-1])
    assert [node.name for node in network.nodes] == ["input", "w1", "own", "n1"]
    assert network.recurrent == {"n1": ("own",)}
    assert network.values["own"] == Values((4, 7, 7), pending=PSP(5), weighted=True)
    assert network.projections[1].input == Values((4, 7, 7), pending=PSP(5))


REFUSED = [
    (chain(("w1", Conv2d(4, 10)), ("n1", Neurons(LIF()))), "w1", "the kernel, 10x10, is larger than its input, 9x9"),
    (chain(("p", AvgPool2d(16)), ("w1", Linear(4)), ("n1", Neurons(LIF()))), "p", "the window, 16x16, is larger than"),
    (chain(("w1", Linear(4)), ("w2", Linear(4)), ("n1", Neurons(LIF()))), "w2", "Linear takes spikes, but its input"),
    (chain(("w1", Conv2d(4, 3)), ("p", AvgPool2d(2)), ("n1", Neurons(LIF()))), "p", "AvgPool2d takes spikes, but its"),
    (chain(("w1", Linear(4)), ("d", Dropout(0.5)), ("n1", Neurons(LIF()))), "d", "Dropout takes spikes, but its input"),
    (chain(("n1", Neurons(LIF()))), "n1", "Neurons takes weighted sums, but its input is spikes"),
    (chain(("i", Input((4,))), ("w1", Linear(4))), "i", "Input takes no input, got 1"),
    ((*HIDDEN[:3], replace(HIDDEN[3], inputs=())), "w2", "Linear takes one input, got 0"),
    (
        (*HIDDEN[:4], Node("w3", Linear(4), (Edge("n1"),)), Node("both", Neurons(LIF()), (Edge("w2"), Edge("w3")))),
        "both",
        "all projections to one population must have the same shape, but these have (3,) and (4,)",
    ),
    ((*HIDDEN[:2], Node("n1", Neurons(LIF()), ())), "n1", "Neurons takes one input, got 0"),
    (
        (*HIDDEN[:2], Node("n1", Neurons(LIF()), (Edge("w1", -1),))),
        "n1",
        "it reads w1 with a delay of -1; a delay is 0 to 65536 steps",
    ),
    (
        (Node("input", Input((2, 9, 9), "direct")), HIDDEN[1], Node("w", Conv2d(4, 3), (Edge("input", 2),))),
        "w",
        "input is the same at every step, so it cannot be read with a delay",
    ),
    (
        recurrent(Linear(3)),
        "own",
        "projections to one population must have the same shape, but these have (4, 7, 7) and",
    ),
    ((*recurrent(Conv2d(4, 1))[:3], Node("n1", Neurons(LIF()), (Edge("own"),))), "n1", "it reads nothing but itself"),
    (
        (*recurrent(Conv2d(4, 1))[:2], Node("own", Conv2d(4, 1), (Edge("n1", 2),)), recurrent(Conv2d(4, 1))[3]),
        "n1",
        "it reads itself through own, n1; only a population may read itself, with a delay of 1",
    ),
    (
        (*recurrent(Conv2d(4, 1))[:3], Node("n1", Neurons(LIF()), (Edge("w1"), Edge("own", 1)))),
        "n1",
        "it reads itself through own, n1; only a population may read itself, with a delay of 1",
    ),
    (
        (
            INPUT,
            Node("w1", Linear(4), (Edge("input"),)),
            Node("n1", Neurons(LIF()), (Edge("w1"), Edge("back"))),
            Node("w2", Linear(4), (Edge("n1"),)),
            Node("n2", Neurons(LIF()), (Edge("w2"),)),
            Node("back", Linear(4), (Edge("n2", 1),)),
        ),
        "w2",
        "it reads itself through n1, back, n2, w2; only a population may read itself",
    ),
    (recurrent(OneToOne()), "own", "a one-to-one connection needs an input (N,), got (4, 7, 7); take a depthwise"),
    (
        (
            INPUT,
            Node("w1", Linear(4), (Edge("input"),)),
            Node("n1", Neurons(LIF()), (Edge("w1"),)),
            Node("both", Add(), (Edge("n1"), Edge("n1", 1))),
            Node("w2", OneToOne(), (Edge("both"),)),
            Node("n2", Neurons(LIF()), (Edge("w2"),)),
        ),
        "w2",
        "OneToOne takes spikes (0 or 1), but its input is sums or means of spikes",
    ),
    (
        (
            *recurrent(Conv2d(4, 1)),
            Node("w2", Linear(3), (Edge("n1"),)),
            Node("n2", Neurons(LIF()), (Edge("w2"), Edge("own"))),
        ),
        "n2",
        "own is the recurrence of n1; no other node may read it",
    ),
    ((*HIDDEN[:2], Node("n1", Neurons(LIF()), (Edge("w9"),))), "n1", "there is no node 'w9' that it could read"),
    ((*HIDDEN[:2], Node("w1", Neurons(LIF()), (Edge("w1"),))), "w1", "the name is given twice"),
    (
        (INPUT, Node("w1", Linear(3), (Edge("w1"),))),
        "w1",
        "it reads itself through w1; only a population may read",
    ),
    (
        (INPUT, Node("a", Sum(), (Edge("input"), Edge("c"))), *(Node(x, Sum(), (Edge(y),)) for x, y in ("ba", "cb"))),
        "b",
        "it reads itself through a, c, b; only a population may read itself",
    ),
    (
        (*HIDDEN, *(Node(name, Linear(3), (Edge("n1"),)) for name in ("w3", "w4"))),
        "n2",
        "no node reads it, and it is not the output",
    ),
    (
        chain(*((f"d{i}", Dropout(0.5)) for i in range(17)), ("w1", Linear(3)), ("n1", Neurons(LIF()))),
        "d16",
        "dropout must be among the first 16 nodes after the input or a population, but it is number 17; put it earlier",
    ),
    *(
        (
            (INPUT, Node("a", weights, (Edge("input"),)), Node(name, Linear(4), (Edge("input"),)), reader),
            name,
            f"{owner} has a parameter of this name; rename the node",
        )
        for weights, owner, names in (
            (Linear(4, bias=True), "p", ("a.bias",)),
            (Linear(4), "p", ("a.decay",)),
            (
                Linear(4, norm=BatchNorm()),
                "a",
                ("a.scale", "a.shift", "a.mean", "a.variance", "a.exponent", "a.frames"),
            ),
        )
        for name in names
        for reader in (Node("p", Neurons(PLIF() if "decay" in name else LIF()), (Edge("a"), Edge(name))),)
    ),
    *(
        (
            (
                INPUT,
                Node("w", Linear(3, bias=neuron is not LEARNING), (Edge("input"),)),
                Node("p1", Neurons(neuron), (Edge("w"),)),
                Node("p2", Neurons(neuron), (Edge("w"),)),
                Node("both", Add(), (Edge("p1"), Edge("p2"))),
                *(Node("v", Linear(3), (Edge("both"),)), Node("out", Neurons(LIF()), (Edge("v"),))),
            ),
            "p2",
            f"w is read more than once, but only one reader can learn w.{name}; let this one read another node with",
        )
        for neuron, name in ((LIF(), "bias"), (LEARNING, "decay"))
    ),
    (
        (
            INPUT,
            Node("w", Linear(3, bias=True), (Edge("input"),)),
            Node("p", Neurons(LIF()), (Edge("w"), Edge("w", 2))),
        ),
        "p",
        "w is read more than once, but only one reader can learn w.bias",
    ),
    *(
        (
            (
                INPUT,
                Node("w", Linear(3, bias=bias, norm=norm), (Edge("input"),)),
                Node("v", Linear(3, bias=True), (Edge("input"),)),
                Node("p", Neurons(Learner(value=name)), (Edge("w"), Edge("v"))),
            ),
            "p",
            f"its neurons learn {name}, but the weights before them have a parameter of this name; rename that of",
        )
        for name, bias, norm in (
            ("bias", True, None), ("bias2", False, None), ("scale", False, BatchNorm()), ("mean", False, BatchNorm()),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "at", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_what_is_no_network_is_refused_at_its_node(nodes: tuple[Node, ...], at: str, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        Network(nodes)
    assert caught.value.node == at
    assert message in caught.value.reason
    assert str(caught.value) == f"node {at}: {caught.value.reason}"


def test_the_first_sixteen_nodes_may_be_dropout_and_pooling_may_stand_anywhere() -> None:
    pools = [Node(f"p{i}", AvgPool2d(1), (Edge("input"),)) for i in range(20)]
    weights = [Node(f"w{i}", Linear(3), (Edge(pool.name),)) for i, pool in enumerate(pools)]
    Network((INPUT, *pools, *weights, Node("n", Neurons(LIF()), tuple(Edge(node.name) for node in weights))))
    network = Network(chain(*((f"d{i}", Dropout(0.5)) for i in range(16)), ("w", Linear(3)), ("n", Neurons(LIF()))))
    assert network.bound_nodes[16].position == 15


def test_a_network_has_one_input() -> None:
    second = Node("second", Input((2, 9, 9)))
    both = (INPUT, second, Node("sum", Sum(), (Edge("input"), Edge("second"))))
    for nodes, names in (((), "none"), (both, "input, second")):
        with pytest.raises(NetworkError, match=f"a network has one Input, got {names}"):
            Network(nodes)


@pytest.mark.parametrize(("inputs", "fits"), [(2**24, True), (2**24 + 1, False)])
def test_sums_that_no_grid_makes_exact_are_refused_at_their_node(inputs: int, fits: bool) -> None:
    nodes = (
        Node("input", Input((inputs,))),
        Node("w", Linear(3, weight_bits=12), (Edge("input"),)),
        Node("n", Neurons(LIF()), (Edge("w"),)),
    )
    if fits:
        assert Network(nodes).projections[0].guaranteed_headroom < 0
        return
    with pytest.raises(
        ExactnessError, match=r"node w: the sums of 16777217 spikes \(0 or 1\) cannot be exact"
    ) as caught:
        Network(nodes)
    assert isinstance(caught.value, NetworkError)
    assert caught.value.node == "w"


def test_the_numbers_of_weights_where_they_stand() -> None:
    pooled = Values((2, 6, 5), exponent=2, maximum=3.0)
    conv = Projection("conv", 0, Conv2d(4, 3, padding=1, weight_bits=5), pooled)
    assert (conv.weight_shape, conv.output_shape, conv.fan_in) == ((4, 2, 3, 3), (4, 6, 5), 18)
    assert conv.multiply_adds == 18 * 4 * 6 * 5
    # 18 inputs of at most 3, each with the largest weight, 15, in units of a quarter.
    assert conv.guaranteed_headroom == pytest.approx(math.log2(2**24 / (18 * 15 * 3 * 4)))
    # Inputs have 4 bits; 7 frames of 30 errors meet a weight, 36 weights of 5 bits meet an input.
    assert conv.error_bits(frames=7) == min(53 - 4 - 8, 53 - 5 - 6)
    assert conv.error_bits(frames=2**10) == 53 - 4 - 15


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((SPIKES,), "Add takes two inputs or more, got 1"),
        (
            (SPIKES, replace(SPIKES, weighted=True)),
            "Add takes spikes, but one of its inputs is weighted sums; put Neurons",
        ),
        (
            (SPIKES, replace(SPIKES, shape=(2, 8, 7))),
            "the inputs of Add must have the same shape, got (2, 8, 8) and (2, 8, 7)",
        ),
        (
            (SPIKES, replace(SPIKES, pending=PSP(2))),
            "the inputs of Add must have the same synapse, got PSP(tau_s=3.0) and PSP(tau",
        ),
        (
            (SPIKES, replace(SPIKES, pending=None)),
            "the inputs of Add must have the same synapse, got PSP(tau_s=3.0) and None",
        ),
        (
            (SPIKES, SPIKES, replace(SPIKES, gain=2.0)),
            "the inputs of Add must have the same factor of dropout, got 1.0 and 2.0",
        ),
        ((SPIKES, replace(SPIKES, static=True)), "Add takes inputs that change with time, or images, not both"),
        ((replace(SPIKES, static=True), SPIKES), "Add takes inputs that change with time, or images, not both"),
        (
            (SPIKES, replace(SPIKES, maximum=255.0)),
            "sums of spikes are stored in bytes, at most 255, but these reach 256",
        ),
        ((SPIKES, replace(SPIKES, exponent=24)), "the sums have 25 bits, but float32 holds only 24"),
    ],
)
def test_what_cannot_be_added_is_refused(inputs: tuple[Values, ...], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Add().infer(*inputs)
    assert message in str(caught.value)


def test_sums_have_the_finest_unit_and_the_sum_of_the_largest_values() -> None:
    means = replace(SPIKES, exponent=2)
    assert Add().infer(SPIKES, means, SPIKES) == replace(SPIKES, exponent=2, maximum=3.0)
    assert Add().infer(SPIKES, replace(SPIKES, maximum=254.0)).maximum == 255
    assert Add().infer(means, replace(SPIKES, maximum=255.0)) == replace(means, maximum=256.0)
    assert Add().infer(replace(SPIKES, exponent=22), SPIKES).bits == 23
    image = replace(SPIKES, exponent=8, maximum=255 / 256, static=True)
    assert Add().infer(image, image) == replace(image, maximum=510 / 256)


def test_bits_of_the_errors_that_a_recurrence_sends_back() -> None:
    """So many that float64 adds their products with the weights exactly."""
    for op, shape, terms in ((Linear(5), (5,), 5), (Conv2d(3, 3, padding=1), (3, 4, 4), 27), (OneToOne(), (5,), 1)):
        for bits in (12, 5):
            projection = Projection("own", 0, replace(op, weight_bits=bits), Values(shape, pending=PSP(2)))
            error_bits = projection.sample_error_bits
            assert 2 ** (error_bits + bits) * terms <= 2**53 < 2 ** (error_bits + 1 + bits) * terms


def test_a_network_is_shown_as_its_nodes() -> None:
    assert repr(Network(HIDDEN)) == f"Network(nodes={HIDDEN!r})"


def test_bits_of_weights_belong_to_them() -> None:
    for make in (lambda bits: Linear(3, weight_bits=bits), lambda bits: Conv2d(3, 3, weight_bits=bits)):
        assert [make(bits).weight_bits for bits in (2, 12)] == [2, 12]
        for bits in (1, 13, 2.5):
            with pytest.raises(SpecError, match="weight bits must be 2 to 12, got"):
                make(bits)
