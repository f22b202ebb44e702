"""Networks node by node: read, written, refused by name, and what they compute against the literal form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.oracles.literal import Literal
from stsbp_spec import ALIF, IF, LIF, LOSSES, Batch, Linear, NetworkSpec, OneToOne, SpikingLayer, initial_weights
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.neurons import NeuronModel
from stsbp_spec.networks.graph import Edge, Neurons, Node, Projection
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.networks.notation import parse_nodes, written_nodes
from stsbp_spec.networks.ops import AvgPool2d, Conv2d
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32

NUMPY = NumpyBackend()

TEXT = """# weights that are used twice, a population of two projections, recurrence, a skip with a delay
[[node]]
name = "conv1"
weights = "4C3p1"
from = "input"

[[node]]
name = "again"
weights = "4C3p1s1{bits=6}"
weights_of = "conv1"
from = {node = "input", delay = 2}

[[node]]
name = "fires"
neurons = "tau_m=5,tau_s=3,threshold=0.43"
from = ["conv1", "again"]

[[node]]
name = "pool"
layer = "P2"
from = "fires"

[[node]]
name = "hidden"
weights = "6b"
from = "pool"

[[node]]
name = "own"
weights = "one-to-one{bits=7}"
from = {node = "h", delay = 1}

[[node]]
name = "h"
neurons = "threshold=0.43"
from = ["hidden", "own"]

[[node]]
name = "out"
weights = "3"
from = "h"

[[node]]
name = "skip"
weights = "3"
from = {node = "fires", delay = 1}

[[node]]
name = "output"
neurons = "threshold=0.43"
from = ["out", "skip"]
"""


def spec(text: str = TEXT, **options: Any) -> NetworkSpec:
    return NetworkSpec.parse(text, input_shape=(2, 4, 4), **options)


def test_nodes_are_read_in_order() -> None:
    network = spec(neuron=LIF(tau_s=2), weight_bits=9)
    names = [node.name for node in network.graph.nodes]
    assert names == ["input", "conv1", "again", "fires", "pool", "hidden", "own", "h", "out", "skip", "output"]
    assert network.graph.recurrent == {"h": ("own",)}
    shared = network.nodes[1]
    assert shared == Node("again", Conv2d(4, 3, padding=1, weight_bits=6), (Edge("input", 2),), "conv1")
    assert network.nodes[5].op == OneToOne(weight_bits=7)
    assert network.nodes[6] == Node("h", Neurons(LIF(tau_s=2, threshold=0.43)), (Edge("hidden"), Edge("own")))
    assert [projection.name for projection in network.graph.projections if projection.synapse.weight_bits == 9] == [
        "conv1", "hidden", "out", "skip",
    ]  # fmt: skip
    assert list(network.parameters) == ["conv1", "hidden", "own", "hidden.bias", "out", "skip"]
    assert network.weight_shapes["conv1"] == (4, 2, 3, 3)
    assert (network.outputs, network.output_psp) == (3, LIF(tau_s=2).psp)
    assert [(block.name, block.population, block.index) for block in network.blocks] == [
        ("conv1", "fires", 0), ("hidden", "h", 1), ("out", "output", 2),
    ]  # fmt: skip
    assert isinstance(network.blocks[1].recurrent, Projection)
    assert network.blocks[1].recurrent.name == "own"
    assert network.blocks[1].entering == ((AvgPool2d(2), (4, 4, 4)),)
    assert network.blocks[1].synapse_shape == (4, 2, 2)


def test_what_is_written_is_read_back() -> None:
    network = spec(neuron=LIF(tau_m=3, tau_s=2), weight_bits=9)
    parsed = NetworkSpec.parse(network.notation, input_shape=(2, 4, 4), neuron=LIF(7), weight_bits=4, padding="same")
    assert parsed == network
    assert written_nodes(parsed.nodes) == network.notation
    assert str(network) == "11 nodes: 4C3p1, 6b, 3"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("4C3bn-P2-D0.1-8b-5R", (1, 8, 8)),
        ("4C3R3p1{delay=1}-G", (1, 8, 8)),
        ("4C3p1s2-M2-U2-F-6", (1, 8, 8)),
        ("8{recurrent=one-to-one}-8R{delay=1,recurrent_bits=5}", (6,)),
    ],
)
def test_a_chain_of_nodes_is_shown_as_layers(text: str, shape: tuple[int, ...]) -> None:
    """`stsbp.save_run` writes networks as nodes; they are the same networks."""
    layers = NetworkSpec.parse(text, input_shape=shape, outputs=3)
    nodes = NetworkSpec(shape, nodes=layers.graph.nodes[1:])
    assert str(nodes) == str(layers) == f"{text}-3"
    assert NetworkSpec.parse(nodes.notation, input_shape=shape) == nodes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("8-[8]+-6{delay=2}", "10 nodes: 8, 8, 6, 3"),
        ("[4C3p1|4C3p1-4C3p1]+-G", "11 nodes: 4C3p1, 4C3p1, 4C3p1, 3"),
    ],
)
def test_branches_of_nodes_are_shown_as_their_weights(text: str, name: str) -> None:
    shape = (1, 8, 8) if "C" in text else (8,)
    layers = NetworkSpec.parse(text, input_shape=shape, outputs=3)
    assert str(NetworkSpec(shape, nodes=layers.graph.nodes[1:])) == name


def test_a_chain_that_layers_cannot_express_is_shown_as_nodes() -> None:
    own = Node("own", Linear(4, bias=True), (Edge("n", 1),))
    nodes = (Node("w", Linear(4), (Edge("input"),)), own, Node("n", Neurons(LIF()), (Edge("w"), Edge("own"))))
    assert str(NetworkSpec((5,), nodes=nodes)) == "4 nodes: 4"


@pytest.mark.parametrize(
    "other",
    [LIF(tau_s=1.5, psp_gain="unit"), LIF(tau_s=9, tau_rise=8), LIF(reset="subtract"), ALIF(5, psp_gain="unit"), IF()],
    ids=repr,
)
def test_what_is_written_is_read_back_whatever_the_default_neuron_is(other: NeuronModel) -> None:
    nodes, layers = spec(neuron=LIF(tau_m=3, tau_s=2)), NetworkSpec.parse("6", input_shape=(5,), outputs=2)
    assert NetworkSpec.parse(nodes.notation, input_shape=(2, 4, 4), neuron=other) == nodes
    assert NetworkSpec.parse(layers.notation, input_shape=(5,), neuron=other) == layers


def test_a_convolution_without_padding_is_read_back_whatever_the_default_padding_is() -> None:
    network = spec(TEXT.replace("4C3p1", "4C1"))
    assert NetworkSpec.parse(network.notation, input_shape=(2, 4, 4), padding="same") == network
    chain = NetworkSpec.parse("2C3", input_shape=(2, 4, 4), outputs=2)
    nodes = NetworkSpec((2, 4, 4), nodes=chain.graph.nodes[1:])
    assert NetworkSpec.parse(nodes.notation, input_shape=(2, 4, 4), padding="same") == nodes


def test_a_table_shows_what_each_node_reads() -> None:
    rows = spec().table().splitlines()
    assert rows[3].split() == [
        "again",
        "4C3p1s1{bits=6}",
        "<-",
        "input@-2",
        "4x4x4",
        "of",
        "conv1",
        "1,152",
        "6",
        "+14.9",
    ]
    assert rows[9].split()[:4] == ["out", "3{bits=12}", "<-", "h"]
    assert rows[-1].split() == ["total", "390", "2,616"]
    assert "h: neuron=lif,tau_m=8.0" in repr(spec())


@pytest.mark.parametrize("first", [True, False])
def test_one_bracket_for_two_is_named_with_its_line(first: bool) -> None:
    lines = TEXT.splitlines()
    places = [i for i, text in enumerate(lines, start=1) if text == "[[node]]"]
    at = places[0] if first else places[1]
    lines[at - 1] = "[ node ]"
    with pytest.raises(NetworkError, match=rf"line {at} is \[node\]; write \[\[node\]\], with two brackets"):
        spec("\n".join(lines))


def test_chains_and_branches_are_no_nodes() -> None:
    assert is_nodes(TEXT)
    assert is_nodes("\n# a\n  [[ node ]]")
    assert not any(map(is_nodes, ("12C5-P2", "[[8C3p1]+-4]+", "[8C3p1]+", "", 5)))
    assert spec("2C3p1-[[2C3p1]+-2C3p1]+-4").outputs == 4


def test_as_data() -> None:
    nodes = (
        Node("w", Linear(3), (Edge("input"),)),
        Node("w2", Linear(3), (Edge("input", 1),)),
        Node("n", Neurons(LIF()), (Edge("w"), Edge("w2"))),
    )
    network = NetworkSpec((4,), nodes=nodes)
    assert NetworkSpec.parse(network.notation, input_shape=(4,)) == network
    with pytest.raises(NetworkError, match="by layers or by nodes, not by both"):
        NetworkSpec((4,), (SpikingLayer(Linear(3)),), nodes=nodes)


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


REFUSED = [
    (changed('from = "input"', ""), "node conv1: from is missing; it names what the node reads"),
    (changed('from = "input"', "from = 3"), 'node conv1: from is the name of a node or {node = "name", delay = 1}'),
    (changed("delay = 2", "delay = -2"), "node again: it reads input with a delay of -2; a delay is 0 to 65536 steps"),
    (changed("delay = 2", 'delay = "2"'), "node again: it reads input with a delay of '2'"),
    (changed('name = "pool"', 'name = "po ol"'), "the name of node 4 is made of letters, digits, _ and ., got 'po ol'"),
    (changed('name = "pool"', "name = 3"), "the name of node 4 is made of letters"),
    (changed('name = "pool"', 'name = "h"'), "node h: the name is given twice"),
    (
        changed('layer = "P2"', 'layer = "P2"\nweights = "3"'),
        "node pool: a node has one of weights, neurons, layer, add, concat",
    ),
    (
        changed('layer = "P2"', 'size = "P2"'),
        "node pool: unknown key 'size'; known: name, weights, neurons",
    ),
    (changed('layer = "P2"', ""), "node pool: a node has one of weights, neurons, layer, add, concat, got none"),
    (changed('layer = "P2"', "layer = 2"), "node pool: layer is a text, got 2"),
    (changed('layer = "P2"', "add = false"), "node pool: add = true, got False"),
    (
        changed('layer = "P2"', 'layer = "8"'),
        "node pool: layer is one layer without neurons, such as P2",
    ),
    (changed('layer = "P2"', 'layer = "P2-P2"'), "node pool: layer is one layer without neurons"),
    (changed('"4C3p1"', '"4C3q1"'), "node conv1: unknown option 'q1'"),
    (changed('"4C3p1"', '"4C3R3"'), "node conv1: expected weights without neurons, such as 64C3p1 or 256b"),
    (changed('"4C3p1"', '"4C3d0.5"'), "node conv1: expected weights without neurons"),
    (changed('"4C3p1"', '"P2"'), "node conv1: expected weights without neurons"),
    (changed('"4C3p1"', '"4C3p1{tau_m=5}"'), "node conv1: expected weights without neurons"),
    (changed('"threshold=0.43"', '"thresh=0.4"'), "node h: unknown parameter 'thresh'; known: neuron, tau_m"),
    (changed('"threshold=0.43"', '"bits=5"'), "node h: expected a neuron model and its parameters, and nothing else"),
    (changed('weights_of = "conv1"', "weights_of = 5"), "node again: weights_of is the name of a node, got 5"),
    (
        changed('weights_of = "conv1"', 'weights_of = "pool"'),
        "node again: no node 'pool' has weights that it could",
    ),
    (changed('weights_of = "conv1"', 'weights_of = "out"'), "node again: the weights of out have the shape (3, 6)"),
    (changed('layer = "P2"', 'layer = "P2"\nweights_of = "conv1"'), "node pool: only weights can be shared"),
    (
        TEXT.partition('[[node]]\nname = "hidden')[0],
        "node pool: the last node is the output; it must be neurons after a full",
    ),
    (TEXT + '[[node]]\nname = "z"\nlayer = "P1"\nfrom = "fires"', "node output: no node reads it, and it is not the"),
    (TEXT.replace('"3"', '"3', 1), "the network is not valid TOML: "),
    (TEXT + "[other]\na = 1", "a network consists of [[node]] tables, got 'node', 'other'"),
    ('[[node]]\nname = "a' + ".a" * 101 + '"', "a line of a network has at most 100 dots"),
    # Only "\n" ends a line of TOML, so this is one key.
    ('[[node]]\na."\u2028"' + ('.c."\u2028"') * 500 + " = 1", "a line of a network has at most 100 dots"),
    ("[[node]]\nx = " + "[" * 5000, "the network is not valid TOML"),
    ("[[node]]\nx = " + "9" * 5000, "the network is not valid TOML: a number is too long"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_what_is_malformed_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        spec(text)
    assert message in str(caught.value)


def test_the_outputs_must_be_those_of_the_data() -> None:
    assert spec(outputs=3).outputs == 3
    with pytest.raises(NetworkError, match="node output: the network has 3 outputs, but the data need 4"):
        spec(outputs=4)


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"output_neuron": IF()}], ids=lambda option: next(iter(option)))
def test_options_of_layers_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"{next(iter(option))} is not used for a network written node by node"):
        NetworkSpec.parse(TEXT, input_shape=(2, 4, 4), **option)


def test_a_first_projection_that_is_no_layer_is_refused_at_once() -> None:
    nodes = (
        Node("w", Linear(4), (Edge("input"),)),
        Node("p", Neurons(LIF()), (Edge("w"),)),
        Node("own", OneToOne(), (Edge("p"),)),
        Node("q", Neurons(LIF()), (Edge("own"),)),
        Node("v", Linear(2), (Edge("q"),)),
        Node("out", Neurons(LIF()), (Edge("v"),)),
    )
    with pytest.raises(NetworkError, match="node q: the first projection to neurons must be a convolution or"):
        NetworkSpec((3,), nodes=nodes)


def test_a_table_does_not_go_through_all_parameters_for_each_node() -> None:
    class Unread(dict[str, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("the table reads all parameters")

    network = spec()
    expected = network.table()
    network.graph.__dict__["parameters"] = Unread(network.graph.parameters)
    assert network.table() == expected


def test_a_name_that_no_text_can_have_is_refused() -> None:
    nodes = (Node("my w", Linear(2), (Edge("input"),)), Node("p", Neurons(LIF()), (Edge("my w"),)))
    with pytest.raises(NetworkError, match=r"the name of node 1 is made of .*, got 'my w'"):
        NetworkSpec((3,), nodes=nodes)


def test_what_no_text_stands_for_is_refused() -> None:
    with pytest.raises(
        NetworkError, match="the first projection to neurons must be a convolution or a full connection"
    ):
        _ = NetworkSpec(
            (4,), nodes=(Node("w", OneToOne(), (Edge("input"),)), Node("n", Neurons(LIF()), (Edge("w"),)))
        ).blocks


def test_a_text_is_limited() -> None:
    with pytest.raises(NetworkError, match="at most 1,048,576 characters"):
        parse_nodes("#" * (2**20 + 1), padding="valid", neuron=None, weight_bits=12)


def problem(network: NetworkSpec) -> tuple[dict[str, Float32], Batch]:
    """Weights of few bits, which every grid of the network holds, and a batch in which all layers fire."""
    rng = np.random.default_rng(5)
    weights = {
        name: (rng.integers(-7, 12, parameter.shape) / 16).astype(np.float32)
        for name, parameter in network.parameters.items()
    }
    inputs = (rng.random((6, 3, 2, 4, 4)) < 0.4).astype(np.uint8)
    return weights, Batch(inputs, (rng.random((6, 3, network.outputs)) < 0.3).astype(np.uint8))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_gradients_against_the_literal_form(loss: str, precision: Any) -> None:
    network = spec()
    weights, batch = problem(network)
    literal = Literal(network)
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    run = literal.forward(wide, [literal.array(x) for x in batch.inputs])
    expected = literal.backward(LOSSES[loss], wide, run, [literal.array(x) for x in batch.targets])
    layers = NUMPY.run(network, weights, batch.inputs, 6).layers
    for block in network.blocks:
        assert np.array_equal(np.stack(run.o[block.population]), layers[block.name].spikes)
        assert 0.1 < layers[block.name].spikes.mean() < 0.9, block.name
    computed = NUMPY.value_and_grad(network, LOSSES[loss], weights, batch, precision=precision).gradients
    assert set(computed) == set(expected) == set(network.parameters)
    for name, gradient in expected.items():
        assert np.count_nonzero(gradient) > gradient.size // 3
        assert np.abs(computed[name] - gradient).max() <= 2e-6 * np.abs(gradient).max(), name


def test_shared_weights_have_the_sum_of_the_gradients_of_their_uses() -> None:
    network = spec()
    apart = NetworkSpec((2, 4, 4), nodes=tuple(replace(node, shares=None) for node in network.nodes))
    weights, batch = problem(network)
    one = NUMPY.value_and_grad(network, LOSSES["hamming"], weights, batch, precision="reproducible").gradients
    both = {**weights, "again": weights["conv1"]}
    two = NUMPY.value_and_grad(apart, LOSSES["hamming"], both, batch, precision="reproducible").gradients
    assert np.array_equal(one["conv1"], two["conv1"] + two["again"])
    assert all(np.array_equal(one[name], two[name]) for name in one if name != "conv1")


TWO_READERS = """
[[node]]
name = "sums"
weights = "3C2"
from = "input"
[[node]]
name = "slow"
neurons = "tau_m=9,threshold=0.3"
from = "sums"
[[node]]
name = "fast"
neurons = "tau_m=2,threshold=0.3"
from = "sums"
[[node]]
name = "both"
add = true
from = ["slow", "fast"]
[[node]]
name = "last"
weights = "3"
from = "both"
[[node]]
name = "output"
neurons = ""
from = "last"
"""


@pytest.mark.parametrize(
    "network", [spec(), NetworkSpec.parse(TWO_READERS, input_shape=(2, 4, 4))], ids=["shared", "two readers"]
)
def test_fast_gradients_of_weights_that_are_used_twice_are_within_their_bound(network: NetworkSpec) -> None:
    weights, batch = problem(network)
    layers = NUMPY.run(network, weights, batch.inputs, 6).layers
    loss, wq = LOSSES["hamming"], weights_on_grid(NUMPY, network.graph, weights)[0]
    error = roundoff.loss_error(loss, network.output_psp, layers[network.blocks[-1].name].spikes, batch.targets)
    near = roundoff.gradients(network, wq, batch.inputs, layers, error)
    gradients = NUMPY.value_and_grad(network, loss, weights, batch, precision="fast").gradients
    assert set(near) == set(gradients)
    for name, x in near.items():
        assert x.value.any(), name
        assert (np.abs(gradients[name] - x.value) <= x.bound).all(), name
        assert (x.bound <= 1e-4 * np.abs(x.value).max()).all(), name


def test_populations_that_read_the_same_sums_are_layers_of_their_own() -> None:
    network = NetworkSpec.parse(
        """
        [[node]]
        name = "sums"
        weights = "5"
        from = "input"
        [[node]]
        name = "slow"
        neurons = "tau_m=9"
        from = "sums"
        [[node]]
        name = "quick"
        neurons = "tau_m=2"
        from = "sums"
        [[node]]
        name = "both"
        add = true
        from = ["slow", "quick"]
        [[node]]
        name = "out"
        weights = "3"
        from = "both"
        [[node]]
        name = "output"
        neurons = ""
        from = "out"
        """,
        input_shape=(4,),
    )
    assert [block.name for block in network.blocks] == ["sums", "quick", "out"]
    assert [block.parameter for block in network.blocks] == ["sums", "sums", "out"]
    inputs = (np.random.default_rng(0).random((9, 2, 4)) < 0.5).astype(np.uint8)
    layers = NUMPY.run(network, initial_weights(network, 0, 3.0), inputs, 9).layers
    assert list(layers) == ["sums", "quick", "out"]
    assert not np.array_equal(layers["sums"].potentials, layers["quick"].potentials)
