"""A trained network as an ONNX model. Its standard operators compute the same as stsbp, bit for bit.

Weights are applied to the spikes of all steps at once, outside of the loop over time. Each population is a `Scan` over
the steps, whose body is its equation, operator by operator. The operations after the weighted sums are thus in another
graph, so no optimiser can fold a factor or a bias into the weights, which would round differently. The weights of a
recurrence are inside the loop. Their sums are states of the loop: they leave the body, and enter it at the next step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper
from stsbp_spec import CONTRACT_VERSION
from stsbp_spec.equations.expressions import Recurrence, constant, where
from stsbp_spec.equations.printers import LANGUAGES, definition
from stsbp_spec.networks.graph import BoundNode, Edge, Input, Neurons, Op
from stsbp_spec.networks.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.ops.avgpool2d import Pool2d
from stsbp_spec.networks.ops.base import Passing, Weighted
from stsbp_spec.networks.ops.batchnorm import FORWARD
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.typing import Float32, Shape

import stsbp
from stsbp.errors import ConfigError, printable
from stsbp.interop.onnx_nodes import EquationStep, Nodes, tensor
from stsbp.interop.program import About, GridWeights, NetworkProgram, PopulationStep

__all__ = ["OPSET", "model"]

OPSET = 13
"""Version of the operators."""

_IR_VERSION = 7
"""Version of the file format, that of opset 13."""

_MOST_BYTES = 2**31 - 2**24
"""Largest size of the weights in one file in bytes. Protocol buffers are limited to 2 GB."""

_FLOAT, _UINT8, _INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
_END = np.iinfo(np.int64).max
"""End of a slice that reaches to the end of the axis."""
_TIME = "/t"
"""Name of the step number, for loops without any other sequence. No name in an equation is like it."""


def model(program: NetworkProgram, about: About, *, layers: bool = False, states: bool = False) -> ModelProto:
    """The network as a checked model, with the shapes of all values.

    Args:
        program, about: the network, and information about its run for the model.
        layers: whether spikes and potentials of hidden layers are outputs too.
        states: whether states are inputs and outputs.

    Raises:
        ConfigError: a layer cannot be exported, or the weights do not fit in a file.
    """
    sizes = {name: weights.values.nbytes for name, weights in program.weights.items()}
    if sum(sizes.values()) > _MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"the weights of the network have {sum(sizes.values()):,} bytes, {largest} alone {sizes[largest]:,}, and "
            f"an ONNX file holds {_MOST_BYTES:,}"
        )
    onnx_model = helper.make_model(
        _Exporter(program, layers, states).graph(),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="stsbp",
        producer_version=stsbp.__version__,
    )
    metadata = {
        "run": printable(about.name),
        "checkpoint_sha256": about.checkpoint,
        "classes": json.dumps(about.classes),
        "steps": str(about.steps),
        "contract_version": str(CONTRACT_VERSION),
        "network": program.network.notation,
        "input_max": str(255 if program.network.coding == "direct" else program.network.input_max),
    }
    helper.set_model_props(onnx_model, metadata)
    onnx_model = onnx.shape_inference.infer_shapes(onnx_model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model


@dataclass
class _NodeOutput:
    """The output of a node, float32, and its names in the model.

    Attributes:
        name: name of the node.
        shape: shape for one sample and step.
        static: whether the same array is used at all steps.
        frames: name of the form `[T, B, ...]`, static `[B, ...]`; empty if only `rows` exists so far.
        rows: name of the form `[T * B, ...]`, static `[B, ...]`, which convolutions and pooling read; may be empty too.
    """

    name: str
    shape: Shape
    static: bool
    frames: str = ""
    rows: str = ""


@dataclass
class _LoopInputs:
    """The inputs of a population's loop, by their names in the equation.

    Attributes:
        fixed: outer values that are the same at all steps. They are also carried, because onnxruntime 1.20 ends the
            process if a loop reads a convolution from outside.
        carried: values that are carried from step to step, by their outer names: states, sums of a recurrence.
        sequences: outer values of which each step reads one element.
    """

    fixed: dict[str, str]
    carried: dict[str, str]
    sequences: dict[str, str]


class _Exporter:
    """Makes the graph of a network, node by node."""

    def __init__(self, program: NetworkProgram, layers: bool, states: bool) -> None:
        self.program, self.layers, self.states = program, layers, states
        self.direct = program.network.coding == "direct"
        self.nodes = Nodes()
        self.values: dict[str, _NodeOutput] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.shapes: dict[str, ValueInfoProto] = {}
        """Descriptions of values for which the library infers no shape, or one without T."""
        self.state_inputs: list[ValueInfoProto] = []
        self.state_outputs: list[ValueInfoProto] = []

    def graph(self) -> GraphProto:
        """The whole network."""
        for bound_node in self.program.network.graph.bound_nodes:
            if bound_node.node.name not in self.program.recurrent:
                self.values[bound_node.node.name] = self._value(bound_node)
        doc = "Spikes and potentials are those of stsbp, bit for bit."
        graph = self.nodes.graph("stsbp", [*self.inputs, *self.state_inputs], [*self.outputs, *self.state_outputs], doc)
        graph.value_info.extend(self.shapes.values())
        return graph

    def _value(self, bound_node: BoundNode) -> _NodeOutput:
        node, op = bound_node.node, bound_node.node.op
        if isinstance(op, Input):
            return self._input(bound_node)
        if isinstance(op, Neurons):
            return self._population(bound_node, self.program.populations[node.name])
        sources = [self._edge_output(edge) for edge in node.inputs]
        if type(op) is Dropout:
            return sources[0]
        output = _NodeOutput(node.name, bound_node.output.shape, sources[0].static)
        if isinstance(op, Weighted):
            self._weighted(output, op, sources[0], self.program.weights[node.name])
        else:
            self._passed(output, op, sources)
        return output

    def _input(self, bound_node: BoundNode) -> _NodeOutput:
        name, shape, values = bound_node.node.name, bound_node.output.shape, f"{bound_node.node.name}/values"
        if not self.direct:
            self.inputs.append(tensor("frames", _UINT8, "T", "B", *shape))
            return _NodeOutput(name, shape, False, self.nodes.add("Cast", ["frames"], name, values, to=_FLOAT))
        self.inputs += [tensor("images", _UINT8, "B", *shape), tensor("steps", _INT64)]
        pixels = self.nodes.add("Cast", ["images"], f"{name}/pixels", to=_FLOAT)
        unit = self.nodes.constant(f"{name}/unit", np.array(2.0**-bound_node.output.exponent, np.float32))
        return _NodeOutput(name, shape, True, self.nodes.add("Mul", [pixels, unit], name, values))

    def _weighted(self, output: _NodeOutput, op: Weighted, source: _NodeOutput, weights: GridWeights) -> None:
        name = output.name
        if type(op) is Conv2d:
            output.rows = self._sums(self.nodes, weights, self._rows(source), f"{name}/sums")
        else:
            x = self._flat(source) if type(op) is Linear else self._frames(source)
            output.frames = self._sums(self.nodes, weights, x, f"{name}/sums")
        if (norm := weights.norm) is not None:
            z, prefix = self._frames(output), f"{name}/norm."
            numbers = {"mean": norm.mean, "a": norm.a, "shift": norm.shift}
            norm_constants = {
                k: self.nodes.constant(f"{prefix}{k}", _spread(x, output.shape)) for k, x in numbers.items()
            }
            output.frames = EquationStep(
                self.nodes, prefix, FORWARD, {"z": z, **norm_constants}, norm_constants.values()
            ).outputs["y"]

    def _sums(self, nodes: Nodes, weights: GridWeights, x: str, output: str) -> str:
        """Weighted sums of `x`. They are exact, so the order of addition does not matter."""
        name, op, values = weights.projection.name, weights.projection.synapse, weights.values
        attributes: dict[str, Any] = {"doc_string": f"{op}, multiples of 2^-{weights.exponent}"}
        if type(op) is Conv2d:
            w, (padding_rows, padding_columns) = nodes.constant(f"{name}/weights", values), op.paddings
            attributes |= {
                "kernel_shape": op.kernels,
                "strides": op.strides,
                "pads": (padding_rows, padding_columns, padding_rows, padding_columns),
            }
            return nodes.add("Conv", [x, w], name, output, dilations=op.dilations, group=op.groups, **attributes)
        if type(op) is Linear:
            return nodes.add("MatMul", [x, nodes.constant(f"{name}/weights", values.T)], name, output, **attributes)
        if type(op) is OneToOne:
            return nodes.add(
                "Mul", [x, nodes.constant(f"{name}/weights", values.reshape(-1))], name, output, **attributes
            )
        raise _unknown(name, op)

    # Operations without weights: `_PASSES` names the method of each.

    def _passed(self, output: _NodeOutput, op: Op, sources: list[_NodeOutput]) -> None:
        if isinstance(op, Passing):
            op = op.at(sources[0].shape)
        if type(op) not in _PASSES:
            raise _unknown(output.name, op)
        _PASSES[type(op)](self, output, op, sources)

    def _added(self, output: _NodeOutput, op: Add, sources: list[_NodeOutput]) -> None:
        output.frames = self.nodes.add(
            "Sum", [self._frames(value) for value in sources], output.name, f"{output.name}/values"
        )

    def _concatenated(self, output: _NodeOutput, op: Concat, sources: list[_NodeOutput]) -> None:
        # From the end, because frames of images that are the same at all steps have no axis of time.
        frames, axis = [self._frames(value) for value in sources], -len(output.shape)
        output.frames = self.nodes.add("Concat", frames, output.name, f"{output.name}/values", axis=axis)

    def _flattened(self, output: _NodeOutput, op: Flatten, sources: list[_NodeOutput]) -> None:
        output.frames = self._flat(sources[0])

    def _upsampled(self, output: _NodeOutput, op: Upsample2d, sources: list[_NodeOutput]) -> None:
        name, scales = output.name, np.array([1, 1, *op.factors], np.float32)
        resize_options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
        operands = [self._rows(sources[0]), "", self.nodes.constant(f"{name}/scales", scales)]
        output.rows = self.nodes.add("Resize", operands, name, f"{name}/values", doc_string=str(op), **resize_options)

    def _largest(self, output: _NodeOutput, op: MaxPool2d, sources: list[_NodeOutput]) -> None:
        self._windows("MaxPool", output, op, [self._rows(sources[0])])

    def _averaged(self, output: _NodeOutput, op: AvgPool2d, sources: list[_NodeOutput]) -> None:
        (value,) = sources
        if op.divisor == 1:
            self._windows("AveragePool", output, op, [self._rows(value)])
            return
        # Use sums, which are divided after the weights. The mean of such windows would be rounded.
        ones = self.nodes.constant(f"{output.name}/ones", np.ones((value.shape[0], 1, *op.sizes), np.float32))
        self._windows("Conv", output, op, [self._rows(value), ones], group=value.shape[0])

    def _windows(self, operator: str, output: _NodeOutput, op: Pool2d, operands: list[str], **attributes: Any) -> None:
        """An operator on windows of `[n, C, H, W]`."""
        attributes |= {"kernel_shape": op.sizes, "strides": op.sizes, "doc_string": str(op)}
        output.rows = self.nodes.add(operator, operands, output.name, f"{output.name}/values", **attributes)

    # Neurons: a loop over the steps.

    def _population(self, bound_node: BoundNode, population: PopulationStep) -> _NodeOutput:
        """Add the loop over the steps of a population. Output neurons also give the outputs of the model."""
        name, shape, last = (
            bound_node.node.name,
            bound_node.output.shape,
            bound_node.node is self.program.network.graph.nodes[-1],
        )
        output = _NodeOutput(name, shape, False, self._shaped(f"{name}/frames", shape, static=False))
        loop_inputs, is_output = self._loop_inputs(bound_node, population), last or self.layers
        carried_inputs = [self._initial_state(state, shape) for state in loop_inputs.carried.values()]
        carried_outputs = [
            *(f"{state}/after" for state in loop_inputs.carried.values()),
            *(f"{name}/{z}" for z in loop_inputs.fixed),
        ]
        spikes, potentials = ("spikes", "potentials") if last else (f"{name}/spikes", f"{name}/potentials")
        self.nodes.add(
            "Scan",
            [*carried_inputs, *loop_inputs.fixed.values(), *loop_inputs.sequences.values()],
            name,
            *[*carried_outputs, output.frames, potentials][: None if is_output else -1],
            body=self._body(bound_node, population, loop_inputs, potentials=is_output),
            num_scan_inputs=len(loop_inputs.sequences),
            doc_string=definition(population.step, LANGUAGES["numpy"]),
        )
        if is_output:
            self.nodes.add("Cast", [output.frames], f"{name}/uint8", spikes, to=_UINT8)
            self.outputs.append(tensor(spikes, _UINT8, "T", "B", *shape))
            self.outputs.append(tensor(potentials, _FLOAT, "T", "B", *shape))
        return output

    def _loop_inputs(self, bound_node: BoundNode, population: PopulationStep) -> _LoopInputs:
        """The inputs of a population, and where they come from."""
        name = bound_node.node.name
        loop_inputs = _LoopInputs({}, {state: f"{name}/{state}" for state in population.step.states}, {})
        for z, edge in zip(population.sums, bound_node.node.inputs, strict=True):
            if edge.source in self.program.recurrent:
                loop_inputs.carried[z] = edge.source
            elif (source := self._edge_output(edge)).static:
                loop_inputs.fixed[z] = self._frames(source)
            else:
                loop_inputs.sequences[z] = self._frames(source)
        if not loop_inputs.sequences:
            loop_inputs.sequences[_TIME] = self._time()
        return loop_inputs

    def _body(
        self, bound_node: BoundNode, population: PopulationStep, loop_inputs: _LoopInputs, *, potentials: bool
    ) -> GraphProto:
        """One step: from carried values and elements of sequences to carried values, spikes and potentials."""
        name, shape, nodes = bound_node.node.name, bound_node.output.shape, Nodes()
        prefix = f"{name}."
        constants = {k: nodes.constant(f"{prefix}{k}", np.array(x)) for k, x in population.constants.items()}
        constants |= {k: nodes.constant(f"{prefix}{k}", _spread(x, shape)) for k, x in population.learned.items()}
        input_keys = (*loop_inputs.carried, *loop_inputs.fixed, *loop_inputs.sequences)
        input_names = {k: f"{prefix}{k}" for k in input_keys}
        step = EquationStep(nodes, prefix, _unsigned(population.step), input_names | constants, constants.values())
        template = input_names[population.sums[0]]
        spikes = step.spread(step.outputs["o"], template, f"{prefix}o/spread")
        spikes = nodes.add("Cast", [spikes], f"{prefix}o/float", to=_FLOAT)
        results = {k: step.states[k] for k in population.step.states}
        for z in [k for k in loop_inputs.carried if k not in results]:
            source = loop_inputs.carried[z]
            results[z] = self._sums(nodes, self.program.weights[source], spikes, f"{source}/sums")
        results |= {z: input_names[z] for z in loop_inputs.fixed} | {"o": spikes}
        if potentials:
            results["u"] = step.outputs["u"]
        body_outputs = [step.result(value, template, f"{prefix}{k}/next") for k, value in results.items()]
        body_inputs = [tensor(input_names[k], _FLOAT, "B", *shape) for k in input_keys if k != _TIME]
        if _TIME in input_names:
            body_inputs.append(tensor(input_names[_TIME], _INT64))
        return nodes.graph(
            f"{name}/step", body_inputs, [tensor(value, _FLOAT, "B", *shape) for value in body_outputs], ""
        )

    def _initial_state(self, state: str, shape: Shape) -> str:
        """A state before the first step: zeros, unless states are inputs."""
        if self.states:
            return self._state_input(state, "B", *shape)
        return self.nodes.add(
            "ConstantOfShape", [self._shape_with_batch(shape, static=True)], f"/zeros/{_size_text(shape)}"
        )

    def _state_input(self, state: str, *dims: int | str) -> str:
        """A value that is an input before the first step, and an output after the last step."""
        self.state_inputs.append(tensor(f"{state}/before", _FLOAT, *dims))
        self.state_outputs.append(tensor(f"{state}/after", _FLOAT, *dims))
        return f"{state}/before"

    def _time(self) -> str:
        """Numbers of the steps, `[T]`, for a population whose inputs are the same at all steps."""
        start, increment = (self.nodes.constant(f"/time/{x}", np.array(x, np.int64)) for x in (0, 1))
        return self.nodes.add("Range", [start, self._number_of_steps(), increment], "/time")

    def _number_of_steps(self) -> str:
        """`T`, without an axis."""
        if self.direct:
            return "steps"
        first = self.nodes.constant("/time/0", np.array(0, np.int64))
        return self.nodes.add("Gather", [self._steps_and_batch(), first], "/shape/T", axis=0)

    # Inputs of a node, in the form that it needs.

    def _edge_output(self, edge: Edge) -> _NodeOutput:
        source = self.values[edge.source]
        return self._delayed(source, edge.delay) if edge.delay else source

    def _delayed(self, source: _NodeOutput, delay: int) -> _NodeOutput:
        """Zeros or given values, followed by all frames except the last `delay`."""
        name, add, integers = f"{source.name}@-{delay}", self.nodes.add, self.nodes.integers
        delayed = _NodeOutput(name, source.shape, False, f"{name}/frames")
        if name in self.nodes.nodes:
            return delayed
        padded, since = self._with_earlier(name, source, delay), integers(f"{name}/since", -delay)
        add("Slice", [padded, integers("/start", 0), since, integers("/axis", 0)], name, delayed.frames)
        self._shaped(delayed.frames, source.shape, static=False)
        return delayed

    def _with_earlier(self, name: str, source: _NodeOutput, count: int) -> str:
        """The frames of a run, after `count` earlier ones: zeros, or the given values of the state `name`."""
        frames, integers = self._frames(source), self.nodes.integers
        if not self.states:
            pads = integers(f"{name}/pads", count, *[0] * (2 * len(source.shape) + 3))
            return self.nodes.add("Pad", [frames, pads], f"{name}/whole")
        earlier = self._state_input(name, count, "B", *source.shape)
        padded = self.nodes.add("Concat", [earlier, frames], f"{name}/whole", axis=0)
        bounds = [integers(f"{name}/since", -count), integers("/end", _END), integers("/axis", 0)]
        self.nodes.add("Slice", [padded, *bounds], f"{name}/rest", f"{name}/after")
        return padded

    def _delayed_by_channel(self, output: _NodeOutput, op: LearnedDelay, sources: list[_NodeOutput]) -> None:
        """Learned delays: for each channel, the frames from its delay on, out of earlier frames and those of the
        run."""
        (source,), delays, name = sources, self.program.delays[output.name].astype(np.int64), output.name
        if not (longest := int(delays.max())):
            output.frames, output.rows = source.frames, source.rows
            return
        add, integers, axes = self.nodes.add, self.nodes.integers, len(source.shape) + 2
        padded = self._with_earlier(name, source, longest)
        # The operator that reads another step for each channel expects channels and steps first.
        by_channel = add("Transpose", [padded], f"{name}/channels", perm=[2, 0, 1, *range(3, axes)])
        first = self.nodes.constant(f"{name}/first", (longest - delays).reshape(-1, 1, 1))
        times = add("Reshape", [self._time(), integers("/time/column", -1, 1)], "/time/steps")
        indices = add("Add", [first, times], f"{name}/indices")
        delayed = add("GatherND", [by_channel, indices], name, f"{name}/delayed", batch_dims=1)
        frames = add("Transpose", [delayed], f"{name}/frames", perm=[1, 2, 0, *range(3, axes)])
        output.frames = self._shaped(frames, source.shape, static=False)

    def _frames(self, value: _NodeOutput) -> str:
        if not value.frames and value.static:
            value.frames = value.rows
        elif not value.frames:
            shape = self._shape_with_batch(value.shape, static=False)
            frames = self.nodes.add("Reshape", [value.rows, shape], f"{value.name}/frames")
            value.frames = self._shaped(frames, value.shape, static=False)
        return value.frames

    def _rows(self, value: _NodeOutput) -> str:
        if not value.rows and value.static:
            value.rows = value.frames
        elif not value.rows:
            shape = self.nodes.integers(f"/rows/{_size_text(value.shape)}", -1, *value.shape)
            value.rows = self.nodes.add("Reshape", [value.frames, shape], f"{value.name}/rows")
        return value.rows

    def _flat(self, value: _NodeOutput) -> str:
        """`[T, B, N]`, static `[B, N]`."""
        if len(value.shape) == 1:
            return self._frames(value)
        flat_shape = (math.prod(value.shape),)
        shape = self._shape_with_batch(flat_shape, static=value.static)
        flat = self.nodes.add("Reshape", [value.frames or value.rows, shape], f"{value.name}/flat")
        return self._shaped(flat, flat_shape, static=value.static)

    def _shaped(self, name: str, shape: Shape, *, static: bool) -> str:
        """`name`, with a description of its value as `[T, B, ...]`, static `[B, ...]`."""
        self.shapes[name] = tensor(name, _FLOAT, *("B",) if static else ("T", "B"), *shape)
        return name

    # Shapes. T and B are only known when the model runs.

    def _shape_with_batch(self, shape: Shape, *, static: bool) -> str:
        """`[T, B, ...]`, static `[B, ...]`, as a value of the model."""
        sizes = self.nodes.integers(f"/shape/{_size_text(shape)}", *shape)
        lead, name = (self._batch(), "B") if static else (self._steps_and_batch(), "TxB")
        return self.nodes.add("Concat", [lead, sizes], f"/shape/{name}x{_size_text(shape)}", axis=0)

    def _batch(self) -> str:
        """`[B]`."""
        axis = 0 if self.direct else 1
        shape = self.nodes.add("Shape", [self.inputs[0].name], "/shape/input")
        return self._part(shape, axis, axis + 1, "/shape/B")

    def _steps_and_batch(self) -> str:
        """`[T, B]`."""
        if not self.direct:
            return self._part(self.nodes.add("Shape", ["frames"], "/shape/input"), 0, 2, "/shape/TxB")
        steps = self.nodes.add("Reshape", ["steps", self.nodes.integers("/shape/1", 1)], "/shape/T")
        return self.nodes.add("Concat", [steps, self._batch()], "/shape/TxB", axis=0)

    def _part(self, value: str, start: int, end: int, name: str) -> str:
        """`value[start:end]`."""
        bounds = [self.nodes.integers(f"/slice/{x}", x) for x in (start, end)]
        return self.nodes.add("Slice", [value, *bounds], name)


_PASSES: Mapping[type[Op], Callable[[_Exporter, _NodeOutput, Any, list[_NodeOutput]], None]] = {
    Add: _Exporter._added,
    Concat: _Exporter._concatenated,
    Flatten: _Exporter._flattened,
    Upsample2d: _Exporter._upsampled,
    MaxPool2d: _Exporter._largest,
    AvgPool2d: _Exporter._averaged,
    LearnedDelay: _Exporter._delayed_by_channel,
}
"""For each operation without weights, the method that adds its operators to the model."""


def _size_text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _spread(x: Float32, shape: Shape) -> Float32:
    """Numbers of channels, `[C]`, or of all, `[1]`, in a form that broadcasts against values of `shape`."""
    return x.reshape(-1, *[1] * (len(shape) - 1))


def _unsigned(step: Recurrence) -> Recurrence:
    """The equation with +0 for zeros of potentials, as in stsbp. Snapped potentials have no other zeros."""
    u = step.outputs["u"]
    return step if u.op == "snap" else step.changed(outputs={**step.outputs, "u": where(constant(0) >= abs(u), 0, u)})


def _unknown(name: str, op: Op) -> ConfigError:
    return ConfigError(f"{name}: no ONNX operators are known for {type(op).__name__}; the network cannot be exported")
