"""Plots as PNG files with matplotlib (the extra `plots`): plots of networks, and functions that all plots share."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsbp_spec.networks.graph import Edge, Input, Neurons, Node, Weighted
from stsbp_spec.networks.notation import described
from stsbp_spec.networks.ops.base import Merge
from stsbp_spec.networks.spec import NetworkSpec

from stsbp.errors import ConfigError
from stsbp.files import OutputKind, atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["PLOT", "Box", "Link", "boxes", "check_plots", "escape_dollars", "new_figure", "plot_network", "save"]

_SOFTWARE = "stsbp"
PLOT = OutputKind("a plot of stsbp", re.compile(rb"\x89PNG\r\n.{0,200}Software\x00stsbp", re.DOTALL))
"""The kind of file that a plot may replace."""


def check_plots() -> None:
    """Raise `ConfigError` if matplotlib is missing, before any measurement starts."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('--plot needs matplotlib; install it with: python -m pip install "stsbp[plots]"')


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches. It needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def escape_dollars(text: str) -> str:
    """Text from outside for a figure. matplotlib reads text between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        FileError: the file cannot be written, or an existing file is of another kind.
    """
    with atomic_writer(PLOT.target_path(path)) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": _SOFTWARE})


@dataclass(frozen=True)
class Link:
    """An arrow from the box `source`, with a delay of `delay` steps and the label `text`."""

    source: str
    delay: int = 0
    text: str = ""


@dataclass
class Box:
    """A node in the drawing, or a population together with weights that only it reads.

    Attributes:
        kind: `input`, `neurons`, `merge` or `other`.
        text: lines of text.
        links: arrows from the boxes that it reads. A recurrence links a box to itself.
        depth: number of boxes on the longest path from the input.
        position: horizontal position; 0 is the middle.
    """

    kind: str
    text: str
    links: list[Link]
    depth: int = 0
    position: float = field(default=0.0)


def boxes(network: NetworkSpec) -> dict[str, Box]:
    """The boxes of a network by the names of nodes, in the order of the nodes."""
    graph = network.graph
    nodes = {node.name: node for node in graph.nodes}
    recurrent_names = {name for names in graph.recurrent.values() for name in names}
    projection_owners = {
        edge.source: node.name
        for node in graph.nodes
        if isinstance(node.op, Neurons)
        for edge in node.inputs
        if isinstance(nodes[edge.source].op, Weighted) and len(graph.readers[edge.source]) == 1 and not edge.delay
    }
    boxes_by_name: dict[str, Box] = {}
    for node in graph.nodes:
        if node.name in projection_owners:
            continue
        weights = [nodes[edge.source] for edge in node.inputs if edge.source in projection_owners]
        several = sum(projection.name not in recurrent_names for projection in weights) > 1
        links = [
            *_links(weights, recurrent_names, several),
            *(_link(e) for e in node.inputs if e.source not in projection_owners),
        ]
        text_lines = [node.name if not weights else weights[0].name, *_description(node, weights, recurrent_names)]
        text_lines.append("x".join(map(str, graph.values[node.name].shape)))
        text = (
            node.op.symbol
            if isinstance(node.op, Merge)
            else "\n".join(text_line for text_line in text_lines if text_line)
        )
        box = Box(_box_kind(node), text, links)
        box.depth = max((boxes_by_name[link.source].depth + 1 for link in links if link.source != node.name), default=0)
        boxes_by_name[node.name] = box
    for depth in range(1 + max(box.depth for box in boxes_by_name.values())):
        row = [box for box in boxes_by_name.values() if box.depth == depth]
        for index, box in enumerate(row):
            box.position = index - (len(row) - 1) / 2
    return boxes_by_name


def _links(weights: Sequence[Node], recurrent_names: set[str], several: bool) -> list[Link]:
    links = []
    for projection in weights:
        (edge,) = projection.inputs
        text = described(projection)[0].partition("{")[0] if several and projection.name not in recurrent_names else ""
        links.append(Link(edge.source, 0 if projection.name in recurrent_names else edge.delay, text))
    return links


def _link(edge: Edge) -> Link:
    return Link(edge.source, edge.delay)


def _box_kind(node: Node) -> str:
    if isinstance(node.op, Neurons):
        return "neurons"
    return "input" if isinstance(node.op, Input) else "merge" if isinstance(node.op, Merge) else "other"


def _description(node: Node, weights: Sequence[Node], recurrent_names: set[str]) -> list[str]:
    """The text of a box: its weights and its neuron model."""
    if isinstance(node.op, Input):
        return [node.op.coding]
    if isinstance(node.op, Neurons):
        first = [described(projection)[0].partition("{")[0] for projection in weights[:1]]
        return [
            " ".join(
                [*first, node.op.model.name, *(["recurrent"] if recurrent_names & {w.name for w in weights} else [])]
            )
        ]
    return [described(node)[0].partition("{")[0]]


_COLOURS = {"input": "0.85", "neurons": "#cfe2f3", "merge": "#fce5cd", "other": "white"}
_COLUMN_DISTANCE, _ROW_DISTANCE = 2.6, 1.05
"""Distances between boxes in inches."""


def plot_network(network: NetworkSpec, path: Path) -> None:
    """Draw a network from the input at the top to the output.

    Raises:
        ConfigError: matplotlib is missing.
        FileError: the file cannot be written.
    """
    check_plots()
    boxes_by_name = boxes(network)
    columns = 1 + 2 * max(abs(box.position) for box in boxes_by_name.values())
    depth = 1 + max(box.depth for box in boxes_by_name.values())
    figure = new_figure(max(4.0, 0.8 + _COLUMN_DISTANCE * columns), 0.6 + _ROW_DISTANCE * depth)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-_COLUMN_DISTANCE * (columns / 2 + 0.2), _COLUMN_DISTANCE * (columns / 2 + 0.2))
    axes.set_ylim(-_ROW_DISTANCE * (depth - 0.4), _ROW_DISTANCE * 0.6)
    texts = {name: _box(axes, box) for name, box in boxes_by_name.items()}
    for name, box in boxes_by_name.items():
        drawn_sources: list[str] = []
        for link in box.links:
            _arrow(axes, texts, boxes_by_name, link, name, drawn_sources.count(link.source))
            drawn_sources.append(link.source)
    save(figure, path)


def _box(axes: Axes, box: Box) -> Text:
    style = "circle" if box.kind == "merge" else "round,pad=0.35"
    face = {"boxstyle": style, "facecolor": _COLOURS[box.kind], "edgecolor": "0.3", "linewidth": 0.8}
    x, y = _COLUMN_DISTANCE * box.position, -_ROW_DISTANCE * box.depth
    return axes.text(x, y, box.text, ha="center", va="center", fontsize=8, bbox=face, zorder=3)


def _arrow(
    axes: Axes, texts: dict[str, Text], boxes_by_name: dict[str, Box], link: Link, name: str, number: int
) -> None:
    """An arrow between boxes. `number` counts the arrows between the same two. It is bent if it passes other boxes."""
    (x, y), (x0, y0) = texts[name].get_position(), texts[link.source].get_position()
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 0.9, "shrinkA": 1, "shrinkB": 1}
    if link.source == name:
        loop_x = x + 0.06 + 0.032 * max(map(len, boxes_by_name[name].text.splitlines()))
        arrow |= {"connectionstyle": "arc3,rad=-1.8"}
        axes.annotate("", (loop_x, y - 0.12), (loop_x, y + 0.12), arrowprops=arrow, zorder=2)
        return
    passes = boxes_by_name[name].depth - boxes_by_name[link.source].depth > 1 and x == x0
    bend = -0.45 * (passes + number)
    arrow |= {"connectionstyle": f"arc3,rad={bend}", "linestyle": "dashed" if link.delay else "solid"}
    arrow |= {"patchA": texts[link.source].get_bbox_patch(), "patchB": texts[name].get_bbox_patch()}
    axes.annotate("", (x, y), (x0, y0), arrowprops=arrow, zorder=2)
    delay_text = f"{link.delay} step{'s' * (link.delay > 1)} later" if link.delay else ""
    if caption := ", ".join(text for text in (link.text, delay_text) if text):
        middle, is_left = ((x + x0 + bend * (y - y0)) / 2, (y + y0 - bend * (x - x0)) / 2), link.text and not bend
        placement: dict[str, Any] = {
            "xytext": (-4 if is_left else 4, 0),
            "textcoords": "offset points",
            "ha": "right" if is_left else "left",
        }
        axes.annotate(caption, middle, fontsize=7, color="0.3", va="center", zorder=4, **placement)
