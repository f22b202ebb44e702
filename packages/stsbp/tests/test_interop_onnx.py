"""`stsbp export --to onnx`: standard operators, and in onnxruntime the bits of the reference."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from small_networks import IMAGE, SAMPLES, SMALL, STEPS, VECTOR, Case, Small, case, drawn
from stsbp.errors import ConfigError, FileError
from stsbp.interop.onnx_file import write
from stsbp.interop.program import About, program
from stsbp_spec import CONTRACT_VERSION, PSP, NetworkSpec, initial_weights, open_backend
from stsbp_spec.engine.results import RunResult
from stsbp_spec.equations.expressions import OPERATIONS, Expr, Names, exp, ordered, spike, sqrt, unsnapped, where
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.neurons.base import NeuronModel, Step
from stsbp_spec.networks.graph import Edge, Neurons, Node
from stsbp_spec.networks.ops import Flatten, Linear
from stsbp_spec.typing import AnyArray

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

MISSING = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def installed(package: str) -> tuple[int, ...]:
    """The version of a package."""
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
ABOUT = About("a run", "5a", STEPS, ("yes", "no"))


def onnx_model(network_case: Case, **options: bool) -> ModelProto:
    from stsbp.interop.onnx_model import model

    return model(program(network_case.network, network_case.weights), ABOUT, **options)


def session(model: ModelProto, level: str = "ORT_ENABLE_ALL", threads: int = 1, optimised: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_inputs(network: NetworkSpec, inputs: AnyArray, steps: int) -> dict[str, AnyArray]:
    return {"frames": inputs} if network.coding == "events" else {"images": inputs, "steps": np.array(steps)}


def run_session(session: Any, feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def same(one: AnyArray, other: AnyArray) -> bool:
    """Whether arrays are of one type and shape, and equal to the bit."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def differing(network_case: Case, outputs: Mapping[str, AnyArray], hidden: bool = True) -> list[str]:
    """Values of the model that are not the reference's, to the bit."""
    wrong, blocks = [], network_case.network.blocks
    for block in blocks if hidden else blocks[-1:]:
        run, prefix = network_case.run.layers[block.name], "" if block is blocks[-1] else f"{block.population}/"
        for name, expected in (("spikes", run.spikes), ("potentials", run.potentials)):
            if not same(outputs[f"{prefix}{name}"], expected):
                wrong.append(f"{prefix}{name}")
    return wrong


@pytest.mark.parametrize("name", SMALL)
def test_onnxruntime_gives_every_layers_bits_at_every_level_of_optimisation(name: str) -> None:
    network_case = case(name)
    model, feed = onnx_model(network_case, layers=True), model_inputs(network_case.network, network_case.inputs, STEPS)
    for level in LEVELS:
        assert differing(network_case, run_session(session(model, level), feed)) == [], level
    assert differing(network_case, run_session(session(model, threads=2), feed)) == []


@pytest.mark.skipif(not MISSING and installed("onnx") < (1, 22), reason="onnx before 1.22 loses states of a Scan")
@pytest.mark.parametrize(
    "name", ["alif", "delay", "learned delays of maps", "recurrent convolution", "residual", "image, bias", "nodes"]
)
def test_the_reference_of_onnx_gives_the_same_bits(name: str) -> None:
    from onnx.reference import ReferenceEvaluator

    network_case = case(name)
    evaluator = ReferenceEvaluator(onnx_model(network_case, layers=True))
    outputs = dict(
        zip(
            evaluator.output_names,
            evaluator.run(None, model_inputs(network_case.network, network_case.inputs, STEPS)),
            strict=True,
        )
    )
    assert differing(network_case, outputs) == []


def operators(graph: GraphProto) -> Iterator[Any]:
    """Nodes of a graph and of the loops in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from operators(attribute.g)


def kinds(graph: GraphProto) -> Counter[str]:
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in operators(graph))


def constants(graph: GraphProto) -> Iterator[tuple[str, AnyArray]]:
    """Names and float32 constants of a graph and of the loops in it."""
    from onnx import TensorProto, numpy_helper

    for initializer in graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            yield initializer.name, numpy_helper.to_array(initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from constants(attribute.g)


LAYOUT = "com.microsoft.nchwc"
"""Operators of onnxruntime for convolutions and pooling whose channels lie in blocks."""


def nonzero(values: AnyArray) -> bytes:
    """Numbers that are not zero, in order of size: of weights in any layout."""
    return np.sort(values[values != 0], axis=None).tobytes()


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("name", SMALL)
def test_the_optimiser_leaves_weights_and_arithmetic_alone(name: str, level: str, tmp_path: Path) -> None:
    import onnx

    network_case = case(name)
    model = onnx_model(network_case)
    session(model, level, optimised=tmp_path / "optimised.onnx")
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    operators_before, operators_after = kinds(model.graph), kinds(optimised)
    # Harmless: layouts, and names of results.
    for op in ("Conv", "AveragePool", "MaxPool"):
        operators_after[op] += operators_after.pop(f"{LAYOUT}.{op}", 0)
    for op in (f"{LAYOUT}.ReorderInput", f"{LAYOUT}.ReorderOutput"):
        operators_after.pop(op, None)
    del operators_before["Identity"]
    operators_after.pop("Identity", None)
    # So is a factor of 2^-8, of the bytes of an image, within a product of matrices.
    if fused := [node for node in operators(optimised) if node.op_type == "FusedMatMul"]:
        assert network_case.network.coding == "direct"
        assert [a.f for node in fused for a in node.attribute if a.name == "alpha"] == [2.0**-8]
        del operators_after["com.microsoft.FusedMatMul"]
        operators_after.update(["MatMul", "Mul"])
    # And factors of 1, which are left out.
    ones = {name for name, x in constants(model.graph) if x.size == 1 and x == 1}
    by_one = sum(node.op_type == "Mul" and not ones.isdisjoint(node.input) for node in operators(model.graph))
    assert operators_before["Mul"] - by_one <= operators_after.pop("Mul") <= operators_before.pop("Mul")
    assert +operators_after == +operators_before
    assert all(len(node.input) == 2 for node in operators(optimised) if node.op_type in ("Conv", "MatMul"))
    constants_after = {nonzero(x) for _, x in constants(optimised)}
    assert {
        nonzero(weights.values) for weights in program(network_case.network, network_case.weights).weights.values()
    } <= constants_after


@pytest.mark.parametrize(
    "name", ["delay", "learned delays", "learned delays of maps", "recurrent", "residual", "image"]
)
@pytest.mark.parametrize(("steps", "samples"), [(1, 1), (2, 5), (13, 1)])
def test_steps_and_samples_are_free(name: str, steps: int, samples: int) -> None:
    small_case, network = case(name), case(name).network
    rng = np.random.default_rng(3)
    lead = (samples,) if network.coding == "direct" else (steps, samples)
    inputs = rng.integers(0, 2 if network.coding == "events" else 256, (*lead, *network.input_shape), dtype=np.uint8)
    run = open_backend("numpy").run(network, small_case.weights, inputs, steps)
    resized_case = Case(network, small_case.weights, inputs, run)
    assert (
        differing(
            resized_case,
            run_session(session(onnx_model(resized_case)), model_inputs(network, inputs, steps)),
            hidden=False,
        )
        == []
    )


@pytest.mark.parametrize("name", ["full", "second order", "normalised"])
def test_fading_states_become_zero_at_the_same_step(name: str) -> None:
    network_case = case(name)
    inputs = np.concatenate([network_case.inputs[:1], np.zeros((400, *network_case.inputs.shape[1:]), np.uint8)])
    run = open_backend("numpy").run(network_case.network, network_case.weights, inputs, len(inputs))
    faded = Case(network_case.network, network_case.weights, inputs, run)
    if name != "normalised":
        assert [np.abs(layer.potentials[-1]).max() for layer in run.layers.values()] == [0.0] * len(run.layers)
    assert (
        differing(
            faded,
            run_session(
                session(onnx_model(faded, layers=True)), model_inputs(network_case.network, inputs, len(inputs))
            ),
        )
        == []
    )


def zeros(session: Any, samples: int) -> dict[str, AnyArray]:
    """States before the first step."""
    shapes = {
        model_input.name: model_input.shape
        for model_input in session.get_inputs()
        if model_input.name.endswith("/before")
    }
    return {
        name: np.zeros([samples if dim == "B" else dim for dim in shape], np.float32) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_a_stream_gives_what_one_call_gives(name: str, length: int) -> None:
    network_case = case(name)
    stream = session(onnx_model(network_case, layers=True, states=True))
    states, chunks = zeros(stream, SAMPLES), list[dict[str, AnyArray]]()
    for first in range(0, STEPS, length):
        part = (
            network_case.inputs
            if network_case.network.coding == "direct"
            else network_case.inputs[first : first + length]
        )
        chunks.append(
            run_session(stream, {**model_inputs(network_case.network, part, min(length, STEPS - first)), **states})
        )
        states = {f"{k.removesuffix('/after')}/before": x for k, x in chunks[-1].items() if k.endswith("/after")}
    outputs = {k: np.concatenate([x[k] for x in chunks]) for k in chunks[0] if not k.endswith("/after")}
    assert differing(network_case, outputs) == []


# Networks that the small ones leave out.

IMAGE_AND_SPIKES = """\
[[node]]
name = "still"
weights = "6"
from = "input"

[[node]]
name = "a"
neurons = ""
from = ["still"]

[[node]]
name = "moves"
weights = "6"
from = [{node = "a", delay = 1}]

[[node]]
name = "again"
weights = "6"
from = [{node = "spikes", delay = 1}]

[[node]]
name = "spikes"
neurons = ""
from = ["moves", "still", "again"]

[[node]]
name = "twice"
add = true
from = [{node = "a", delay = 1}, {node = "a", delay = 3}, "spikes"]

[[node]]
name = "frames"
weights = "4"
from = "twice"

[[node]]
name = "potentials"
neurons = ""
from = [{node = "frames", delay = 2}]
"""
"""Populations that read an image beside spikes and themselves, one edge twice, sums with a delay, awkward names."""

NORMALISED_LATER = """\
[[node]]
name = "conv"
weights = "4C3bn"
from = "input"

[[node]]
name = "fires"
neurons = ""
from = [{node = "conv", delay = 2}]

[[node]]
name = "out"
weights = "4"
from = "fires"

[[node]]
name = "output"
neurons = ""
from = "out"
"""
"""Before the first sums come zeros, not normalised ones."""

MORE = {
    "image and recurrence": Small("10R", VECTOR, "direct"),
    "image and spikes": Small(IMAGE_AND_SPIKES, VECTOR, "direct"),
    "normalised sums, later": Small(NORMALISED_LATER, IMAGE),
    "one neuron": Small("1", (1,)),
    "global pooling by 25": Small("4C3p1-G-5", (2, 5, 5)),
    "pooled image": Small("P3-4C2-P2x1-U2-F-7", (2, 9, 9), "direct"),
    "upsampling by 41": Small("2C3-U41x3-P41x3-4", (1, 5, 5)),
}


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("name", MORE)
def test_networks_beyond_the_small_ones(name: str, states: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, name, MORE[name])
    network_case = case(name)
    for level in LEVELS:
        opened = session(onnx_model(network_case, layers=True, states=states), level)
        feed = model_inputs(network_case.network, network_case.inputs, STEPS) | zeros(opened, SAMPLES)
        assert differing(network_case, run_session(opened, feed)) == [], level


# Neurons of one's own: every operation of an expression, and what optimisers might make of it.


@dataclass(frozen=True)
class Odd(NeuronModel):
    """Every operation, a potential that is a state and may be -0, and a state that is a number."""

    name: ClassVar[str] = "odd"
    states: ClassVar[tuple[str, ...]] = ("m", "fixed")

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"vth": self.threshold, "one": 1.0, "k": 1 / 3}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        # 1/x * y is not y/x.
        slow = (1 / (1 + abs(i))) * (i - s.m) + (p.one / (2 + abs(s.m))) * (s.m * p.k)
        new = where(slow < 0, -sqrt(abs(slow)), slow / 3 + s.fixed)
        m = unsnapped(where(abs(i) >= 0.3, new, -(s.fixed * 0)))
        return Step(s.m, spike(s.m, p.vth * 0.2), {"m": m, "fixed": p.k + 0 * p.vth})


@dataclass(frozen=True)
class Exponential(NeuronModel):
    """Not exact."""

    name: ClassVar[str] = "exponential"
    states: ClassVar[tuple[str, ...]] = ("m",)

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"vth": self.threshold}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = s.m + i
        return Step(u, spike(u, p.vth), {"m": exp(-abs(u))})


@dataclass(frozen=True)
class Always(NeuronModel):
    """A neuron that spikes at every step, whatever it reads."""

    name: ClassVar[str] = "always"
    states: ClassVar[tuple[str, ...]] = ("m",)

    def constants(self) -> Mapping[str, float | np.float32]:
        return {"vth": self.threshold}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = p.vth * 2
        return Step(u, spike(u, p.vth), {"m": s.m + i})


def of_neuron(neuron: NeuronModel, net: str = "8C3p1-10") -> Case:
    network = NetworkSpec.parse(net, input_shape=IMAGE, outputs=4, neuron=neuron)
    inputs = (np.random.default_rng(2).random((STEPS, SAMPLES, *IMAGE)) < 0.4).astype(np.uint8)
    weights = initial_weights(network, 5, 3.0)
    return Case(network, weights, inputs, open_backend("numpy").run(network, weights, inputs, STEPS))


def test_every_operation_of_an_expression_is_exact() -> None:
    network_case = of_neuron(Odd())
    used = {
        x.op
        for population in program(network_case.network, network_case.weights).populations.values()
        for x in ordered(population.step.roots)
    }
    assert used >= {*OPERATIONS} - {"exp", "unsnapped"}
    potentials = network_case.run.layers["conv1"].potentials
    assert 0.1 < (potentials[1:] == 0).mean() < 0.9, "zeros of either sign"
    for level in LEVELS:
        assert (
            differing(
                network_case,
                run_session(
                    session(onnx_model(network_case, layers=True), level),
                    model_inputs(network_case.network, network_case.inputs, STEPS),
                ),
            )
            == []
        )


@pytest.mark.parametrize("net", ["8C3p1-10", "10R"])
def test_a_neuron_may_ignore_its_current(net: str) -> None:
    network_case = of_neuron(Always(), net)
    outputs = run_session(
        session(onnx_model(network_case, layers=True)), model_inputs(network_case.network, network_case.inputs, STEPS)
    )
    assert not differing(network_case, outputs)


def test_inexact_functions_are_named(tmp_path: Path) -> None:
    def inexact_lines(network_case: Case) -> list[str]:
        lines = write(program(network_case.network, network_case.weights), ABOUT, tmp_path / "it.onnx")
        return [line for line in lines if line.startswith("neurons")]

    exponential = of_neuron(Exponential())
    assert [line[:22] for line in inexact_lines(exponential)] == [f"neurons{i}: exp is not e" for i in (1, 2, 3)]
    assert [line[:23] for line in inexact_lines(of_neuron(Odd()))] == [f"neurons{i}: sqrt is exact" for i in (1, 2, 3)]
    assert inexact_lines(case("full")) == []
    outputs = run_session(
        session(onnx_model(exponential)), model_inputs(exponential.network, exponential.inputs, STEPS)
    )
    assert np.allclose(outputs["potentials"][0], exponential.run.layers["linear3"].potentials[0], atol=1e-5)


def test_counts_of_events_and_a_filter_of_the_input() -> None:
    network = NetworkSpec.parse("10", input_shape=VECTOR, outputs=4, input_psp=PSP(3.0, 1.5), input_max=200)
    inputs = np.random.default_rng(2).integers(0, 201, (STEPS, SAMPLES, *VECTOR), dtype=np.uint8)
    weights = {name: x / np.float32(64) for name, x in initial_weights(network, 5, 3.0).items()}
    network_case = Case(network, weights, inputs, open_backend("numpy").run(network, weights, inputs, STEPS))
    assert 0.02 < network_case.run.layers["linear1"].spikes.mean() < 0.95
    assert (
        differing(
            network_case,
            run_session(session(onnx_model(network_case, layers=True)), model_inputs(network, inputs, STEPS)),
        )
        == []
    )


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(("most", "least"), [(0.4, 0.0), (6.0, 0.0), (25.0, 20.0)])
def test_learned_delays_of_an_image_of_any_length(most: float, least: float, states: bool) -> None:
    """All delays 0, some of them, and all longer than the run."""
    network = NetworkSpec.parse("4C3-T25-F-T25-8", input_shape=(1, 6, 6), outputs=4, coding="direct")
    drawn_case = drawn(network, 4)
    weights = {
        name: np.linspace(least, most, len(x), dtype=np.float32) if name.endswith(".steps") else x
        for name, x in drawn_case.weights.items()
    }
    run = open_backend("numpy").run(network, weights, drawn_case.inputs, STEPS)
    network_case = Case(network, weights, drawn_case.inputs, run)
    model_session = session(onnx_model(network_case, layers=True, states=states))
    before = zeros(model_session, SAMPLES)
    frames = {name: len(x) for name, x in before.items() if name.startswith("delay")}
    assert frames == ({f"delay2{end}/before": round(most) for end in ("", ".2")} if states and most > 1 else {})
    outputs = run_session(model_session, {**model_inputs(network, drawn_case.inputs, STEPS), **before})
    assert differing(network_case, outputs) == []
    assert run.layers["conv1"].spikes.any()


# The file.


def test_the_model_says_what_it_is() -> None:
    network_case = case("recurrent convolution")
    model = onnx_model(network_case, states=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert {node.domain for node in operators(model.graph)} == {""}
    assert model.ir_version == 7
    names = [node.name for node in operators(model.graph)]
    assert {"neurons1.new_i", "neurons1.u"} <= {*names}
    assert len({*names}) == len(names)
    assert {node.name for node in network_case.network.graph.nodes} <= {*names}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert NetworkSpec.parse(metadata.pop("network"), input_shape=IMAGE) == network_case.network
    assert json.loads(metadata.pop("classes")) == ["yes", "no"]
    assert metadata == {
        "run": "a run",
        "checkpoint_sha256": "5a",
        "steps": str(STEPS),
        "contract_version": str(CONTRACT_VERSION),
        "input_max": "1",
    }
    documents = {node.name: node.doc_string for node in operators(model.graph)}
    assert "i = snap(k * i + c * z)" in documents["neurons2"]
    assert documents["conv1.recurrent"].startswith("Conv2d(channels=4")
    dimensions = {info.name: info.type.tensor_type.shape.dim for info in model.graph.value_info}
    shapes = {name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in dimensions.items()}
    assert shapes["conv1/sums"][1:] == [4, 8, 8]
    assert shapes["conv1/frames"] == shapes["neurons1/frames"] == ["T", "B", 4, 8, 8]
    assert shapes["linear2/sums"] == ["T", "B", 4]


def test_names_of_others_do_no_harm(tmp_path: Path) -> None:
    network_case, about = case("image"), About("a\udcff\x00\n", "5a", 3, ("\ud800", "'\""))
    write(program(network_case.network, network_case.weights), about, tmp_path / "it.onnx")
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "it.onnx").metadata_props}
    assert metadata["run"] == "a\\xff\\x00\\x0a"
    assert tuple(json.loads(metadata["classes"])) == about.classes


def test_an_unknown_layer_is_refused_by_name() -> None:
    class Own(Flatten):
        """A layer of somebody's own."""

    nodes = (
        Node("mine", Own(), (Edge("input"),)),
        Node("out", Linear(4), (Edge("mine"),)),
        Node("output", Neurons(LIF()), (Edge("out"),)),
    )
    network = NetworkSpec(IMAGE, nodes=nodes)
    network_case = Case(network, initial_weights(network, 5, 3.0), np.zeros(1, np.uint8), RunResult({}, {}))
    with pytest.raises(ConfigError, match="mine: no ONNX operators are known for Own"):
        onnx_model(network_case)


def test_weights_that_fill_no_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.interop.onnx_model._MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="linear2 alone 4,096, and an ONNX file holds 1,000"):
        onnx_model(case("recurrent convolution"))


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    network_case, out = case("full"), tmp_path / "it.onnx"
    exported = program(network_case.network, network_case.weights)
    out.write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(FileError, match="is there already and is not an ONNX model of stsbp"):
        write(exported, ABOUT, out)
    assert out.read_bytes() == b"\x08\x07\x12\x07pytorch"
    out.unlink()
    write(exported, ABOUT, out)
    stateless = out.read_bytes()
    write(exported, ABOUT, out, states=True)
    assert out.read_bytes() != stateless


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network_case = case("full")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "stsbp\[onnx\]"'):
        write(program(network_case.network, network_case.weights), ABOUT, tmp_path / "it.onnx")
    assert not any(tmp_path.iterdir())


def test_the_command_exports_what_the_run_predicts(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    import onnx

    run, out = tmp_path / "run", tmp_path / "deep" / "it.onnx"
    assert train_tiny(run).exit_code == 0
    done = stsbp("export", run, "--to", "onnx", "--out", out, "--layers", "--states")
    assert done.exit_code == 0, done.output
    assert "reads images uint8 [B, 1, 8, 8]\nreads steps int64\n" in done.output
    assert "gives spikes uint8 [T, B, 10]\ngives potentials float32 [T, B, 10]\n" in done.output
    assert "gives neurons1/spikes uint8 [T, B, 12]\n" in done.output
    assert "reads neurons1/m/before float32 [B, 12]\n" in done.output
    trained = package.load_run(run, backend="numpy")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    opened = session(onnx.load(out))
    outputs = run_session(opened, {**model_inputs(trained.network, images, 3), **zeros(opened, 5)})
    assert same(outputs["spikes"], trained.predict(images).spikes)
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert (metadata["run"], metadata["checkpoint_sha256"]) == ("run", trained.info["sha256"])
    assert json.loads(metadata["classes"]) == list("0123456789")


def test_options_of_one_form_are_no_options_of_another(stsbp: Callable[..., Result]) -> None:
    done = stsbp("export", "run", "--to", "c", "--out", "it", "--states")
    assert done.exit_code == 1
    assert "--states is an option of the format onnx alone, not of c" in done.output


PAGE = Path(__file__).parents[3] / "docs" / "deploy.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")
def test_the_pages_blocks_run_one_after_the_other(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## ONNX\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "sh", "python"]
    # The page takes the default; here the numpy backend alone need be there.
    monkeypatch.setattr("stsbp_spec.registry.default_backend", lambda: "numpy")
    names: dict[str, Any] = {}
    for kind, block in blocks:
        if kind == "sh":
            for line in block.splitlines():
                small = ["--limit", 50] if " train " in line else []
                assert stsbp(*shlex.split(line)[1:], *small).exit_code == 0, line
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, str(PAGE), "exec"), names)
    assert names["spikes"].shape == names["potentials"].shape == (8, 3, 10)
    assert names["spikes"].any()
