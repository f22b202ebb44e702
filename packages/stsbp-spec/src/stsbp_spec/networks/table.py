"""Networks as text for people: one line per layer, and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from stsbp_spec.networks.graph import BoundNode, Input, Network, Neurons, Projection, Weighted
from stsbp_spec.networks.layers import Block
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.typing import Shape

__all__ = ["LayerLine", "described", "table"]


_Row: TypeAlias = tuple[str, str, str, str, str, str, str]


class LayerLine(NamedTuple):
    """A layer, or a bracket of branches, with the shapes before and after it.

    Attributes:
        text, full: the layer in notation, without and with all parameters.
        block, loop: the block of a spiking layer, and its recurrent connection in notation.
        delays: number of learned delays of a layer without weights.
    """

    text: str
    full: str
    input_shape: Shape
    output_shape: Shape
    block: Block | None = None
    loop: str = ""
    delays: int = 0


def _nodes(
    graph: Network, texts: Mapping[str, tuple[str, str]], *, headroom: dict[str, float] | None
) -> tuple[list[_Row], int, int]:
    """One row per node, and the sums of parameters and multiply-adds."""
    projections = {projection.name: projection for projection in graph.projections}
    rows, parameters, adds = list[_Row](), 0, 0
    for bound_node in graph.bound_nodes:
        node = bound_node.node
        if isinstance(node.op, Input):
            continue
        operation, reads = texts[node.name]
        names = [name for name in (node.name, *_owned(bound_node)) if name in graph.parameters]
        size = sum(math.prod(graph.parameters[name].shape) for name in names)
        cells = (f"{size:,}" if names else "", "", "", "")
        if (projection := projections.get(node.name)) is not None:
            room = headroom[projection.name] if headroom is not None else projection.guaranteed_headroom
            bits, adds = str(projection.synapse.weight_bits), adds + projection.multiply_adds
            cells = (
                f"{size:,}" if names else f"of {projection.parameter}",
                f"{projection.multiply_adds:,}",
                bits,
                f"{room:+.1f}",
            )
        parameters += size
        rows.append((node.name, f"{operation} <- {reads}", _times(bound_node.output.shape), *cells))
    return rows, parameters, adds


def _owned(bound_node: BoundNode) -> tuple[str, ...]:
    """Parameters of a node other than its weights."""
    op, name = bound_node.node.op, bound_node.node.name
    if isinstance(op, (Neurons, Passing)):
        return tuple(bound_node.parameters.values())
    norm = op.norm if isinstance(op, Weighted) else None
    return () if norm is None else tuple(f"{name}.{parameter}" for parameter in norm.learned())


def _times(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)


def _learned(block: Block) -> dict[str, Shape]:
    """Shapes of a block's learned parameters other than its weights, by name."""
    norm = block.synapse.norm
    learned = {**block.learned, **({} if norm is None else norm.learned())}
    return {name: x.shape(block.output_shape) for name, x in learned.items()}


def described(graph: Network, lines: Sequence[LayerLine], texts: Mapping[str, tuple[str, str]]) -> str:
    """`repr` of a network: each layer, or without `lines` each node, with the shape of its output.

    Args:
        graph: the network.
        lines: its layers.
        texts: descriptions of the nodes and of the nodes that they read, by name.
    """
    source = graph.nodes[0].op
    assert isinstance(source, Input)
    coding, input_shape = source.coding, source.shape
    values = f", values up to {source.largest}" if source.largest > 1 else ""
    filtered = f", filtered with {source.psp!r}" if source.psp is not None else ""
    rows = [f"input: {coding} {_times(input_shape)}{values}{filtered}"]
    if not lines:
        for bound_node in graph.bound_nodes[1:]:
            operation, reads = texts[bound_node.node.name]
            rows.append(f"{bound_node.node.name}: {operation} <- {reads}  {_times(bound_node.output.shape)}")
    for line in lines:
        name, weights = "", ""
        if (block := line.block) is not None:
            name, weights = f"{block.name}: ", f", weights {_times(block.weight_shape)}"
            if block.recurrent is not None:
                weights += f", recurrent {_times(block.recurrent.weight_shape)}"
            weights += "".join(f", {parameter} {_times(size)}" for parameter, size in _learned(block).items())
        rows.append(f"{name}{line.full}  {_times(line.input_shape)} -> {_times(line.output_shape)}{weights}")
    return "\n  ".join(["NetworkSpec(", *rows]) + "\n)"


def table(
    graph: Network,
    lines: Sequence[LayerLine],
    texts: Mapping[str, tuple[str, str]],
    headroom: dict[str, float] | None,
) -> str:
    """`NetworkSpec.table`. Without `lines`, it is a table of the graph's nodes; `texts`: see `described`."""
    source = graph.nodes[0].op
    assert isinstance(source, Input)
    coding, input_shape = source.coding, source.shape
    kind = "headroom" if headroom is not None else "guaranteed"
    rows = [("layer", "", "output", "parameters", "mult-adds", "bits", kind)]
    rows.append(("input", coding, _times(input_shape), "", "", "", ""))
    parameters = adds = 0

    def weights(text: str, projection: Projection, learned: int) -> None:
        nonlocal parameters, adds
        size = math.prod(projection.weight_shape) + learned
        parameters += size
        adds += projection.multiply_adds
        room = headroom[projection.name] if headroom is not None else projection.guaranteed_headroom
        shape, bits = _times(projection.output_shape), str(projection.synapse.weight_bits)
        rows.append((projection.name, text, shape, f"{size:,}", f"{projection.multiply_adds:,}", bits, f"{room:+.1f}"))

    for line in lines:
        if (block := line.block) is None:
            shape = "" if line.text.strip() in ("[", "|") else _times(line.output_shape)
            rows.append(("", line.text, shape, f"{line.delays:,}" if line.delays else "", "", "", ""))
            parameters += line.delays
            continue
        weights(line.text, block, sum(map(math.prod, _learned(block).values())))
        if block.recurrent is not None:
            weights(line.loop, block.recurrent, 0)
    if not lines:
        node_rows, parameters, adds = _nodes(graph, texts, headroom=headroom)
        rows += node_rows
    rows.append(("total", "", "", f"{parameters:,}", f"{adds:,}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = []
    for row in rows:
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(aligned)
