"""Networks as text for people: a line a layer, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stsbp_spec.layers import Block
from stsbp_spec.notation import written
from stsbp_spec.synapses.psp import PSP
from stsbp_spec.typing import Coding, Shape

__all__ = ["described", "table"]


def _times(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)


def _learned(block: Block) -> dict[str, Shape]:
    """Shapes of what the neurons of a block learn, by name."""
    return {name: x.shape(block.output_shape) for name, x in block.learned.items()}


def described(
    blocks: Sequence[Block], coding: Coding, input_shape: Shape, input_max: int, input_psp: PSP | None
) -> str:
    """`repr` of a network: what each layer makes of its input."""
    values = f", values up to {input_max}" if input_max > 1 else ""
    filtered = f", filtered with {input_psp!r}" if input_psp is not None else ""
    lines = [f"input: {coding} {_times(input_shape)}{values}{filtered}"]
    for block in blocks:
        shape = block.input_shape
        for layer in (*block.before, block.layer):
            before, shape = shape, layer.output_shape(shape)
            name, weights = "", ""
            if layer is block.layer:
                name, weights = f"{block.name}: ", f", weights {_times(block.weight_shape)}"
                weights += "".join(f", {own} {_times(size)}" for own, size in _learned(block).items())
            lines.append(f"{name}{written(layer, full=True)}  {_times(before)} -> {_times(shape)}{weights}")
    return "\n  ".join(["NetworkSpec(", *lines]) + "\n)"


def table(blocks: Sequence[Block], coding: Coding, input_shape: Shape, headroom: dict[str, float] | None) -> str:
    """`NetworkSpec.table`."""
    kind = "headroom" if headroom is not None else "guaranteed"
    rows = [("layer", "", "output", "parameters", "mult-adds", "bits", kind)]
    rows.append(("input", coding, _times(input_shape), "", "", "", ""))
    parameters = adds = 0
    for block in blocks:
        shape = block.input_shape
        for layer in block.before:
            shape = layer.output_shape(shape)
            rows.append(("", written(layer), _times(shape), "", "", "", ""))
        size = math.prod(block.weight_shape) + sum(map(math.prod, _learned(block).values()))
        parameters += size
        adds += block.multiply_adds
        room = headroom[block.name] if headroom is not None else block.guaranteed_headroom
        rows.append(
            (
                block.name,
                written(block.layer),
                _times(block.output_shape),
                f"{size:,}",
                f"{block.multiply_adds:,}",
                str(block.synapse.weight_bits),
                f"{room:+.1f}",
            )
        )
    rows.append(("total", "", "", f"{parameters:,}", f"{adds:,}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
