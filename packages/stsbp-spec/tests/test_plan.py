"""Plans and the walk: which steps are taken, fused and run again; errors of several readers; what has no rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from stsbp_spec.engine.passes import Trace, backward_pass, forward_pass
from stsbp_spec.engine.plan import Chain, plan
from stsbp_spec.engine.results import Batch
from stsbp_spec.engine.rules import BackwardResult, Deferred, Fusion, PassContext, Rule, Step
from stsbp_spec.errors import BackendError
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node, Op, Values
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import PSP, Add, AvgPool2d, Conv2d, Linear
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, Memory, Precision

STEPS, BATCH = 6, 3
NEURON = LIF(3, 5 / 3, 0.5)


@dataclass(frozen=True)
class Sum(Op):
    """Adds spike trains."""

    def infer(self, *inputs: Values) -> Values:
        return replace(inputs[0], maximum=sum(values.maximum for values in inputs))


def _sum(op: Op, *inputs: AnyArray) -> tuple[AnyArray, int]:
    return np.add.reduce(inputs, axis=0, dtype=np.uint8), len(inputs)


class Adding(NumpyBackend):
    """The reference with a rule for `Sum`."""

    @property
    def rules(self) -> Mapping[type[Op], Rule[AnyArray]]:
        return {**super().rules, Sum: Rule(_sum, lambda op, readers, error: (error,) * readers)}


# `shared` is pooled once for two readers, and `n1` is read by `left`, by `shared` and by `sum`.
FORK = Network(
    (
        Node("input", Input((2, 9, 9))),
        Node("w1", Conv2d(4, 3), (Edge("input"),)),
        Node("n1", Neurons(NEURON), (Edge("w1"),)),
        Node("shared", AvgPool2d(1), (Edge("n1"),)),
        Node("left", Conv2d(4, 3, padding=1), (Edge("n1"),)),
        Node("fires left", Neurons(NEURON), (Edge("left"),)),
        Node("right", Conv2d(4, 1), (Edge("shared"),)),
        Node("fires right", Neurons(NEURON), (Edge("right"),)),
        Node("third", Conv2d(4, 3, padding=1), (Edge("shared"),)),
        Node("fires third", Neurons(NEURON), (Edge("third"),)),
        Node("pair", Sum(), (Edge("fires right"), Edge("fires third"))),
        Node("sum", Sum(), (Edge("pair"), Edge("n1"), Edge("fires left"))),
        Node("w2", Linear(3), (Edge("sum"),)),
        Node("n2", Neurons(NEURON), (Edge("w2"),)),
    )
)


def _weights(network: Network) -> dict[str, Float32]:
    rng = np.random.default_rng(1)
    return {
        p.name: np.rint(rng.standard_normal(p.weight_shape) * 512 / p.fan_in**0.5).astype(np.float32) / np.float32(256)
        for p in network.projections
    }


def _inputs(network: Network) -> AnyArray:
    return (np.random.default_rng(2).random((STEPS, BATCH, *network.values["input"].shape)) < 0.4).astype(np.uint8)


def _error() -> Float32:
    return np.random.default_rng(3).standard_normal((STEPS, BATCH, 3)).astype(np.float32)


def test_the_steps_of_a_chain() -> None:
    network = NetworkSpec.parse("P2-4C3-P2-D0.5-5", input_shape=(2, 12, 12), outputs=3).graph
    steps_of = plan(NumpyBackend(), network)
    names = ["pool1.0", "conv1", "neurons1", "pool2.0", "dropout2.1", "linear2", "neurons2", "linear3", "neurons3"]
    assert [step.name for step in steps_of.steps] == names
    assert [step.sources for step in steps_of.steps] == [(name,) for name in ["input", *names[:-1]]]
    assert [step.needed for step in steps_of.steps] == [(False,)] * 2 + [(True,)] * 7
    assert (steps_of.input, steps_of.output) == ("input", "neurons3")
    assert [segment.population for segment in steps_of.segments] == ["neurons1", "neurons2", "neurons3"]
    assert [segment.sources for segment in steps_of.segments] == [("input",), ("neurons1",), ("neurons2",)]


def _segments(network: Network) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    """Sources of each segment, those that nothing reads later, and the outputs that are kept."""
    return [(part.sources, part.released, part.outputs) for part in plan(Adding(), network).segments]


def test_what_a_segment_reads_lets_go_of_and_keeps() -> None:
    assert _segments(FORK) == [
        (("input",), ("input",), ("n1",)),
        (("n1",), (), ("shared", "fires left")),
        (("shared",), (), ("fires right",)),
        (("shared",), ("shared",), ("fires third",)),
        (
            ("fires right", "fires third", "n1", "fires left"),
            ("fires right", "fires third", "n1", "fires left"),
            ("n2",),
        ),
    ]
    chain = NetworkSpec.parse("4C3-P2-5-3", input_shape=(2, 9, 9)).graph
    names = ["input", "neurons1", "neurons2", "neurons3"]
    assert _segments(chain) == [((a,), (a,), (b,)) for a, b in pairwise(names)]
    pooled = Network((*FORK.nodes[:3], Node("shared", AvgPool2d(1), (Edge("n1"),))))
    assert _segments(pooled) == [(("input",), ("input",), ("n1",)), (("n1",), ("n1",), ("shared",))]
    assert plan(Adding(), pooled).segments[-1].population is None


def test_a_delayed_edge_ends_a_chain() -> None:
    backend = Fusing(Putting)
    nodes = [replace(node, inputs=(Edge("n1", 1),)) if node.name == "left" else node for node in FORK.nodes]
    plan(backend, Network(tuple(nodes)))
    assert ("left", "fires left") in backend.chains
    nodes = [
        replace(node, inputs=(Edge("pair"), Edge("n1"), Edge("fires left", 2))) if node.name == "sum" else node
        for node in FORK.nodes
    ]
    nodes = [replace(node, inputs=(Edge("sum", 1),)) if node.name == "w2" else node for node in nodes]
    backend = Fusing(Putting)
    plan(backend, Network(tuple(nodes)))
    assert ("w2", "n2") in backend.chains
    assert ("sum",) in backend.chains


def test_a_plan_is_made_once_for_a_backend_and_a_network() -> None:
    backend, network = NumpyBackend(), NetworkSpec.parse("5-3", input_shape=(4,))
    first = plan(backend, network.graph)
    assert plan(backend, network.graph) is first
    assert plan(backend, NetworkSpec.parse("5-3", input_shape=(4,)).graph) is first
    assert plan(backend, NetworkSpec.parse("6-3", input_shape=(4,)).graph) is not first
    assert plan(NumpyBackend(), network.graph) is not first


def test_an_operation_without_a_rule_is_named_with_its_backend() -> None:
    with pytest.raises(
        BackendError, match=r"^backend 'numpy' does not know the operation Sum; it knows Conv2d, Linear"
    ):
        plan(NumpyBackend(), FORK)


def _by_hand(backend: Adding, wq: Mapping[str, Float32]) -> tuple[AnyArray, dict[str, Float32], list[Float32]]:
    """Output spikes, gradients, and the three errors of the spikes of `n1`, in the order of its readers."""
    residuals: dict[str, Any] = {}

    def weights(name: str, s: AnyArray) -> AnyArray:
        op = FORK.nodes[[node.name for node in FORK.nodes].index(name)].op
        z, residuals[name] = backend.rule(op).forward(op, s, wq[name])
        return z

    def neurons(name: str, z: AnyArray, psp: PSP | None = NEURON.psp) -> AnyArray:
        filter = FORK.values["w1" if psp is None else "left"].filter(training=False)
        s, residuals[name] = backend.neuron_forward(NEURON, filter, z, STEPS)
        return s

    n1 = neurons("n1", weights("w1", _inputs(FORK)), None)
    pooled = n1.astype(np.float32)
    left, right, third = (
        neurons(f"fires {name}", weights(name, s)) for name, s in (("left", n1), ("right", pooled), ("third", pooled))
    )
    output = neurons("n2", weights("w2", n1 + left + right + third))

    gradients: dict[str, Float32] = {}

    def backward(weighted: str, fires: str, error: AnyArray, need_input: bool = True) -> Any:
        filter = FORK.values[weighted].filter(training=False)
        dz, _ = backend.neuron_backward(NEURON, filter, residuals[fires], error)
        op = FORK.nodes[[node.name for node in FORK.nodes].index(weighted)].op
        ds, gradients[weighted] = backend.rule(op).backward(
            op, residuals[weighted], dz, precision="fast", need_input=need_input
        )
        return ds

    grad_sum = backward("w2", "n2", _error())
    from_third, from_right, from_left = (
        backward(name, f"fires {name}", grad_sum) for name in ("third", "right", "left")
    )
    errors = [from_right + from_third, from_left, grad_sum]
    backward("w1", "n1", errors[0] + errors[1] + errors[2], need_input=False)
    return output, gradients, errors


def test_errors_of_several_readers_are_added_in_the_order_of_the_nodes() -> None:
    backend, wq = Adding(), _weights(FORK)
    output, gradients, (shared, first, last) = _by_hand(backend, wq)
    assert 0.05 < output.mean() < 0.95
    assert not np.array_equal(shared + first + last, last + first + shared)
    trace = forward_pass(backend, FORK, wq, _inputs(FORK), STEPS, None)
    assert np.array_equal(trace.output, output)
    computed = backward_pass(trace, _error(), "fast")
    assert list(computed) == ["w2", "third", "right", "left", "w1"]
    for name, gradient in gradients.items():
        assert computed[name].tobytes() == gradient.tobytes(), name


def test_errors_of_one_reader_are_added_in_the_order_of_its_edges() -> None:
    """A sum reads a population three times: at the same step, and with two delays."""
    delays = (0, 2, 1)
    network = Network(
        (
            Node("input", Input((9,))),
            Node("w1", Linear(6), (Edge("input"),)),
            Node("n1", Neurons(NEURON), (Edge("w1"),)),
            Node("sum", Add(), tuple(Edge("n1", delay) for delay in delays)),
            Node("w2", Linear(3), (Edge("sum"),)),
            Node("n2", Neurons(NEURON), (Edge("w2"),)),
        )
    )
    backend, wq = NumpyBackend(), _weights(network)
    trace = forward_pass(backend, network, wq, _inputs(network), STEPS, None)
    computed = backward_pass(trace, _error(), "fast")

    def backward(weights: str, residuals: Any, s: AnyArray, error: AnyArray, need_input: bool) -> Any:
        dz, _ = backend.neuron_backward(NEURON, network.values[weights].filter(training=False), residuals, error)
        op = next(node.op for node in network.nodes if node.name == weights)
        _, saved = backend.rule(op).forward(op, s, wq[weights])
        return backend.rule(op).backward(op, saved, dz, precision="fast", need_input=need_input)

    fresh = forward_pass(backend, network, wq, _inputs(network), STEPS, None)
    (_, first), (_, second) = fresh.populations()
    total: AnyArray = sum((backend.shift_time(first.spikes, delay) for delay in delays), np.zeros_like(first.spikes))
    error, _ = backward("w2", second, total, _error(), True)
    shifted = [backend.shift_time(error, -delay) for delay in delays]
    in_order, reversed_ = shifted[0] + shifted[1] + shifted[2], shifted[2] + shifted[1] + shifted[0]
    gradients = [backward("w1", first, _inputs(network), e, False)[1] for e in (in_order, reversed_)]
    assert not np.array_equal(*gradients)
    assert computed["w1"].tobytes() == gradients[0].tobytes()


def test_gradients_of_shared_weights_are_added_in_the_order_of_their_uses() -> None:
    def network(*, shared: bool) -> Network:
        owner = "b" if shared else None
        return Network(
            (
                Node("input", Input((6,))),
                Node("a", Linear(6), (Edge("input"),), owner),
                Node("n1", Neurons(NEURON), (Edge("a"),)),
                Node("b", Linear(6), (Edge("n1"),)),
                Node("n2", Neurons(NEURON), (Edge("b"),)),
                Node("c", Linear(6), (Edge("n2"),), owner),
                Node("n3", Neurons(NEURON), (Edge("c"),)),
                Node("w", Linear(3), (Edge("n3"),)),
                Node("n", Neurons(NEURON), (Edge("w"),)),
            )
        )

    backend, wq = NumpyBackend(), _weights(network(shared=False))
    wq |= {"a": wq["b"], "c": wq["b"]}
    shared_gradients, separate = (
        backward_pass(
            forward_pass(backend, graph, wq, _inputs(graph), STEPS, None), _error(), "reproducible"
        )
        for graph in (network(shared=True), network(shared=False))
    )  # fmt: skip
    a, b, c = (separate[name] for name in "abc")
    assert not np.array_equal(a + b + c, c + b + a)
    assert not np.array_equal(a + b + c, b + a + c) or not np.array_equal(a + b + c, b + c + a)
    assert shared_gradients["b"].tobytes() == (a + b + c).tobytes()
    assert set(shared_gradients) == {"b", "w"}


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_little_memory_gives_the_same_numbers_where_nodes_are_shared(precision: Precision) -> None:
    def numbers(memory: Memory) -> tuple[Trace[AnyArray], dict[str, AnyArray]]:
        trace = forward_pass(Adding(), FORK, _weights(FORK), _inputs(FORK), STEPS, None, memory)
        return trace, backward_pass(trace, _error(), precision)

    (full, expected), (low, computed) = numbers("full"), numbers("low")
    assert list(low.spikes) == list(full.spikes) == ["n1", "fires left", "fires right", "fires third", "n2"]
    assert len(low.spikes) == 5
    for name, spikes in full.spikes.items():
        assert np.array_equal(low.spikes[name], spikes), name
    assert {name: x.tobytes() for name, x in computed.items()} == {name: x.tobytes() for name, x in expected.items()}
    layers = ["w1", "left", "right", "third", "w2"] if precision == "reproducible" else []
    assert list(low.zeroed) == list(full.zeroed) == layers
    assert all(np.array_equal(low.zeroed[name], full.zeroed[name]) for name in layers)


@dataclass(frozen=True, eq=False)
class Later(Deferred[AnyArray]):
    """An error that notes where it becomes an array."""

    of: str
    error: AnyArray
    became: list[str]

    def array(self) -> AnyArray:
        self.became.append(self.of)
        return self.error


@dataclass(frozen=True, eq=False)
class Putting(Chain[AnyArray]):
    """Hands its error on as `Later`."""

    became: list[str] = field(default_factory=list)

    def backward_slice(
        self, run: PassContext[AnyArray], saved: Any, grad: Any, precision: Precision
    ) -> BackwardResult[AnyArray]:
        grad = grad.error if isinstance(grad, Later) else grad
        result = super().backward_slice(run, saved, grad, precision)
        (grad_input,) = result.grad_inputs
        assert not isinstance(grad_input, Deferred)
        return (
            result if grad_input is None else result._replace(grad_inputs=(Later(self.name, grad_input, self.became),))
        )


class Taking(Putting):
    """Takes it as well."""

    takes_deferred = True


class Fusing(Adding):
    """Fuses every chain up to a population."""

    def __init__(self, kind: type[Putting]) -> None:
        super().__init__()
        self.kind = kind
        self.chains: list[tuple[str, ...]] = []
        self.became: list[str] = []

    @property
    def fusions(self) -> Sequence[Fusion[AnyArray]]:
        return (self.fuse,)

    def fuse(self, chain: tuple[Step[AnyArray], ...]) -> Step[AnyArray] | None:
        self.chains.append(tuple(step.name for step in chain))
        if not chain[-1].fires:
            return None
        return self.kind(tuple(step.bound_nodes[0] for step in chain), chain[0].needed, chain, self.became)


def test_a_fusion_is_offered_chains_in_which_each_is_read_by_the_next_alone() -> None:
    backend = Fusing(Putting)
    steps = plan(backend, FORK).steps
    assert backend.chains == [
        ("sum", "w2", "n2"), ("pair",), ("third", "fires third"), ("right", "fires right"), ("left", "fires left"),
        ("shared",), ("w1", "n1"),
    ]  # fmt: skip
    assert [step.name for step in steps] == ["n1", "shared", "fires left", "fires right", "fires third", "pair", "n2"]
    assert steps[-1].sources == ("pair", "n1", "fires left")
    network = NetworkSpec.parse("P2-4C3-P2-D0.5-3", input_shape=(2, 12, 12)).graph
    backend = Fusing(Putting)
    assert [step.name for step in plan(backend, network).steps] == ["neurons1", "neurons2"]
    assert backend.chains == [("pool2.0", "dropout2.1", "linear2", "neurons2"), ("pool1.0", "conv1", "neurons1")]


CHAIN = NetworkSpec.parse("P1-4C3-P2-5-3", input_shape=(2, 9, 9), neuron=NEURON).graph


@pytest.mark.parametrize(("kind", "became"), [(Putting, ["neurons3", "neurons2"]), (Taking, [])])
@pytest.mark.parametrize("memory", ["full", "low"])
def test_an_error_of_a_backends_own_form_goes_where_it_is_taken(
    kind: type[Putting], became: list[str], memory: Memory
) -> None:
    backend, wq, x = Fusing(kind), _weights(CHAIN), _inputs(CHAIN)
    trace = forward_pass(backend, CHAIN, wq, x, STEPS, None, memory)
    computed = backward_pass(trace, _error(), "fast")
    expected = backward_pass(forward_pass(NumpyBackend(), CHAIN, wq, x, STEPS, None), _error(), "fast")
    assert {name: g.tobytes() for name, g in computed.items()} == {name: g.tobytes() for name, g in expected.items()}
    assert backend.became == became


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_statistics_of_a_chain_are_those_of_its_parts(micro_batch: int | None) -> None:
    network = NetworkSpec.parse("D0.2-4C3bn-P2-5bn-3", input_shape=(2, 9, 9), neuron=NEURON)
    targets = (np.random.default_rng(4).random((STEPS, BATCH, 3)) < 0.4).astype(np.uint8)
    states = []
    fusing = Fusing(Putting)
    for backend in (NumpyBackend(), fusing):
        trainer = backend.trainer(network, VanRossum(), AdamW(), precision="reproducible", micro_batch=micro_batch)
        state, _ = trainer.step(trainer.init(initial_weights(network, 1)), Batch(_inputs(network.graph), targets))
        states.append(trainer.export_state(state))
    assert ("dropout1.0", "conv1", "neurons1") in fusing.chains
    assert {name for name in states[0] if "mean" in name} == {"weight/conv1.mean", "weight/linear2.mean"}
    assert {name: x.tobytes() for name, x in states[1].items()} == {name: x.tobytes() for name, x in states[0].items()}


def test_an_error_is_an_array_where_several_nodes_read() -> None:
    class Summing(Fusing):
        """Leaves the sum out of the fusion, which has several inputs."""

        def fuse(self, chain: tuple[Step[AnyArray], ...]) -> Step[AnyArray] | None:
            steps = tuple(step for step in chain if step.name != "sum")
            return super().fuse(steps) if steps else None

    backend, wq = Summing(Taking), _weights(FORK)
    computed = backward_pass(forward_pass(backend, FORK, wq, _inputs(FORK), STEPS, None), _error(), "fast")
    _, expected, _ = _by_hand(Adding(), wq)
    assert {name: g.tobytes() for name, g in computed.items()} == {name: g.tobytes() for name, g in expected.items()}
    # The sum takes no other form, and two or three read `shared` and `n1`.
    assert sorted(backend.became) == ["fires left", "fires right", "fires third", "n2"]


def test_of_a_trace_the_spikes_are_left() -> None:
    backend, wq = NumpyBackend(), _weights(CHAIN)
    trace = forward_pass(backend, CHAIN, wq, _inputs(CHAIN), STEPS, None)
    potentials = {name: residuals.kept["u"] for name, residuals in trace.populations()}
    assert list(potentials) == list(trace.spikes) == ["neurons1", "neurons2", "neurons3"]
    for name, u in potentials.items():
        assert np.array_equal(u >= np.float32(NEURON.threshold), trace.spikes[name] != 0)
    backward_pass(trace, _error(), "fast")
    assert all(not trace.residuals(segment) for segment in trace.plan.segments)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_pass_before_no_backward_pass_frees_what_earlier_segments_saved(keeps: bool) -> None:
    network = NetworkSpec.parse("4C3-P2-5", input_shape=(2, 8, 8), outputs=3).graph
    backend = NumpyBackend()
    trace = forward_pass(backend, network, _weights(network), _inputs(network), STEPS, None, keeps=keeps)
    names = [*trace.residuals(plan(backend, network).segments[-1])]
    assert names[-2:] == ["linear3", "neurons3"]
    assert (len(names) == 2) == (not keeps)
