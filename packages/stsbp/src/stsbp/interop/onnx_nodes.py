"""Nodes of an ONNX graph, and equations as nodes. Each operation of an expression is one operator, rounded once.

No operator here combines two operations. Some are written in a form that keeps optimisers from combining them
(docs/deploy.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.expressions import Expr, Recurrence, merged
from stsbp_spec.equations.printers import new_state
from stsbp_spec.typing import AnyArray

__all__ = ["EquationStep", "Nodes", "tensor"]

_OPERATORS = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "exp": "Exp",
    "lt": "Less", "ge": "GreaterOrEqual", "spike": "GreaterOrEqual", "where": "Where",
}  # fmt: skip
"""Operations of expressions, except `snap`."""


def tensor(name: str, data_type: TensorProto.DataType, *dims: int | str) -> ValueInfoProto:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, data_type, dims)


@dataclass
class Nodes:
    """Nodes and constants of a graph, in order."""

    nodes: dict[str, NodeProto] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: AnyArray) -> str:
        """Add a constant, unless it exists. Returns its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def integers(self, name: str, *values: int) -> str:
        """Add a constant list of integers, unless it exists. Returns its name."""
        return self.constant(name, np.array(values, np.int64))

    def add(self, op: str, inputs: Sequence[str], name: str, *outputs: str, **attributes: Any) -> str:
        """Add a node, unless it exists. Its output has its name, unless `outputs` are given. Returns the first
        output."""
        outputs = outputs or (name,)
        node = helper.make_node(op, inputs, outputs, name=name, **attributes)
        existing = self.nodes.setdefault(name, node)
        assert existing == node, name
        return outputs[0]

    def graph(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], doc: str
    ) -> GraphProto:
        """A graph of all these nodes."""
        constants = [*self.constants.values()]
        return helper.make_graph([*self.nodes.values()], name, inputs, outputs, constants, doc_string=doc)


class EquationStep:
    """One step of an equation among the nodes of a graph.

    Args:
        nodes: receives its operators.
        prefix: prefix of the names of all values.
        equation: the equation.
        values: names of its parameters, inputs and states in the graph.
        constants: names of those values that are constants of the graph. All others have the same shape.

    Attributes:
        states, outputs: names of the values of the new states and the outputs, by their names in the equation.
    """

    def __init__(
        self, nodes: Nodes, prefix: str, equation: Recurrence, values: Mapping[str, str], constants: Iterable[str]
    ) -> None:
        self._nodes, self._prefix, self._states = nodes, prefix, equation.states
        self._constants, self._used_names = {*constants}, {*values.values()}
        value_names: list[str] = []
        operations, index_of = merged(equation.roots)
        for x, operands in operations:
            value_names.append(
                values[str(x.name)] if x.op == "variable" else self._value(x, [value_names[i] for i in operands])
            )
        self.states = {name: value_names[index_of[id(x)]] for name, x in equation.states.items()}
        self.outputs = {name: value_names[index_of[id(x)]] for name, x in equation.outputs.items()}

    def _value(self, x: Expr, operands: Sequence[str]) -> str:
        if x.op == "constant":
            return self._number(x.value)
        name = self._unused_name(x.name or x.op)
        if self._constants.issuperset(operands):
            self._constants.add(name)
        return self._operation(x.op, operands, name)

    def _operation(self, op: str, operands: Sequence[str], name: str) -> str:
        add = self._nodes.add
        if op == "snap":
            magnitude = add("Abs", operands, f"{name}/abs")
            is_small = add("Less", [magnitude, self._number(FLOOR)], f"{name}/small")
            return add("Where", [is_small, self._number(0.0), *operands], name)
        if op == "div" and operands[0] in self._constants:
            # onnxruntime computes c/b as (1/b) c, which rounds twice. It does not do so with -(-1/b).
            opposite = add("Neg", operands[:1], f"{name}/opposite")
            return add("Neg", [add("Div", [opposite, operands[1]], f"{name}/quotient")], name)
        return add(_OPERATORS[op], operands, name)

    def _number(self, value: float) -> str:
        number_text = "floor" if value == FLOOR else repr(value)
        name = self._nodes.constant(f"{self._prefix}{number_text}", np.array(value, np.float32))
        self._constants.add(name)
        return name

    def _unused_name(self, base: str) -> str:
        base = new_state(base) if base in self._states else base
        name, number = f"{self._prefix}{base}", 1
        while name in self._used_names:
            number += 1
            name = f"{self._prefix}{base}{number}"
        self._used_names.add(name)
        return name

    def result(self, value: str, template: str, name: str) -> str:
        """A value as an output of the graph, with the shape of `template`."""
        spread = self.spread(value, template, name)
        return self._nodes.add("Identity", [value], name) if spread == value else spread

    def spread(self, value: str, template: str, name: str) -> str:
        """A value with the shape of `template`: a constant under another name, and any other value as it is."""
        if value not in self._constants:
            return value
        return self._nodes.add("Expand", [value, self._nodes.add("Shape", [template], f"{template}/shape")], name)
