"""Networks as text for people: a line a layer, and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stsbp_spec.graph import Projection
from stsbp_spec.layers import Block, Branches, Layer, SpikingLayer
from stsbp_spec.notation import recurrence, written
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Coding, Shape

__all__ = ["described", "table"]


class _Line(NamedTuple):
    """A layer, or a bracket of branches, with the shapes before and after it; `block` of a spiking layer."""

    text: str
    full: str
    before: Shape
    after: Shape
    block: Block | None


def _lines(layers: Sequence[Layer], blocks: Iterator[Block], shape: Shape, indent: str = "") -> Iterator[_Line]:
    for layer in layers:
        if isinstance(layer, Branches):
            after = shape
            for number, branch in enumerate(layer.branches):
                bracket = indent + ("|" if number else "[")
                yield _Line(bracket, bracket, shape, shape, None)
                for line in _lines(branch, blocks, shape, f"{indent}  "):
                    yield line
                    if number == 0:
                        after = line.after
            yield _Line(f"{indent}]+", f"{indent}]+", after, after, None)
            shape = after
            continue
        before, shape = shape, layer.output_shape(shape)
        block = next(blocks) if isinstance(layer, SpikingLayer) else None
        yield _Line(indent + written(layer), indent + written(layer, full=True), before, shape, block)


def _times(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)


def _learned(block: Block) -> dict[str, Shape]:
    """Shapes of what the neurons of a block learn, by name."""
    return {name: x.shape(block.output_shape) for name, x in block.learned.items()}


def described(
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    coding: Coding,
    input_shape: Shape,
    input_max: int,
    input_psp: PSP | None,
) -> str:
    """`repr` of a network: what each layer makes of its input."""
    values = f", values up to {input_max}" if input_max > 1 else ""
    filtered = f", filtered with {input_psp!r}" if input_psp is not None else ""
    lines = [f"input: {coding} {_times(input_shape)}{values}{filtered}"]
    for line in _lines(layers, iter(blocks), input_shape):
        name, weights = "", ""
        if (block := line.block) is not None:
            name, weights = f"{block.name}: ", f", weights {_times(block.weight_shape)}"
            if block.recurrent is not None:
                weights += f", recurrent {_times(block.recurrent.weight_shape)}"
            weights += "".join(f", {own} {_times(size)}" for own, size in _learned(block).items())
        lines.append(f"{name}{line.full}  {_times(line.before)} -> {_times(line.after)}{weights}")
    return "\n  ".join(["NetworkSpec(", *lines]) + "\n)"


def table(
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    coding: Coding,
    input_shape: Shape,
    headroom: dict[str, float] | None,
) -> str:
    """`NetworkSpec.table`."""
    kind = "headroom" if headroom is not None else "guaranteed"
    rows = [("layer", "", "output", "parameters", "mult-adds", "bits", kind)]
    rows.append(("input", coding, _times(input_shape), "", "", "", ""))
    parameters = adds = 0

    def weights(text: str, each: Projection, learned: int) -> None:
        nonlocal parameters, adds
        size = math.prod(each.weight_shape) + learned
        parameters += size
        adds += each.multiply_adds
        room = headroom[each.name] if headroom is not None else each.guaranteed_headroom
        shape, bits = _times(each.output_shape), str(each.synapse.weight_bits)
        rows.append((each.name, text, shape, f"{size:,}", f"{each.multiply_adds:,}", bits, f"{room:+.1f}"))

    for line in _lines(layers, iter(blocks), input_shape):
        if (block := line.block) is None:
            shape = "" if line.text.strip() in ("[", "|") else _times(line.after)
            rows.append(("", line.text, shape, "", "", "", ""))
            continue
        weights(line.text, block, sum(map(math.prod, _learned(block).values())))
        if block.recurrent is not None:
            weights(f"{line.text[: -len(line.text.lstrip())]}{recurrence(block.layer)}", block.recurrent, 0)
    rows.append(("total", "", "", f"{parameters:,}", f"{adds:,}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
