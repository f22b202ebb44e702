"""A network written node by node, in TOML. It can describe networks for which the notation of the papers has no form.

    [[node]]
    name = "conv1"
    weights = "8C3p1"                 # as in the notation, with options; or "one-to-one"
    from = "input"

    [[node]]
    name = "fires"
    neurons = "neuron=alif,tau_m=5"   # as between the notation's braces; "" is the default neuron of the network
    from = ["conv1", "skip"]

A node has exactly one of `weights`, `neurons`, `layer` (a layer without neurons in the notation: `P2`, `D0.2`), and an
operation that merges branches (`synapses.MERGES`): `add = true`, `concat = true`. `from` names the nodes that it reads,
in order. `{node = "fires", delay = 1}` reads that node with a delay of 1 step. `weights_of` names a node whose weights
this node also uses. The input is called `input`. The last node is the output.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.neurons import LIF, NeuronModel
from stsbp_spec.networks.graph import Edge, Input, Neurons, Node, Op, Weighted
from stsbp_spec.networks.layers import MAX_LAYERS, Branches, Layer, SpikingLayer
from stsbp_spec.networks.notation import (
    parse_layers,
    parse_neurons,
    parse_weights,
    written,
    written_neurons,
    written_weights,
)
from stsbp_spec.networks.ops import MERGES
from stsbp_spec.networks.ops.base import Merge
from stsbp_spec.validation import listed, shown

__all__ = ["check_name", "described", "is_nodes", "parse_nodes", "written_nodes"]

_KINDS = ("weights", "neurons", "layer", *MERGES)
_KEYS = ("name", *_KINDS, "from", "weights_of")
_MOST_CHARACTERS = 1 << 20
_MOST_DOTS = 100
"""Largest number of dots in a line. Keys with many parts would make tomllib slow."""
_PLAIN: tuple[type[Any], ...] = tuple(kind for kind in get_args(Layer) if kind not in (SpikingLayer, Branches))


def is_nodes(text: object) -> bool:
    """Whether a text describes a network node by node, rather than in the notation (also wrongly, with `[node]`)."""
    return isinstance(text, str) and re.match(r"(\s*#[^\n]*\n)*\s*\[\[?\s*node\s*\]", text) is not None


def parse_nodes(text: str, *, padding: str, neuron: NeuronModel | None, weight_bits: int) -> tuple[Node, ...]:
    """The nodes of a text, without the input. Arguments: see `NetworkSpec.parse`.

    Raises:
        NetworkError: the text is not TOML, or a node is malformed. The message names the node.
    """
    if len(text) > _MOST_CHARACTERS:
        raise NetworkError(f"a network has at most {_MOST_CHARACTERS:,} characters, got {len(text):,}")
    # Python's splitlines() knows ends of lines that TOML does not have.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MOST_DOTS:
            raise NetworkError(f"a line of a network has at most {_MOST_DOTS} dots")
        # TOML would complain of a table that is declared twice, and only if there are several.
        if re.match(r"\s*\[\s*node\s*\]", line):
            raise NetworkError(f"line {number} is [node]; write [[node]], with two brackets, before every node")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # For an integer of more than 4,300 digits, Python raises another error, with advice for programmers.
        reason = "a number is too long" if "integer string conversion" in str(error) else str(error)
        raise NetworkError(f"the network is not valid TOML: {reason}") from None
    if set(document) != {"node"}:
        raise NetworkError(f"a network consists of [[node]] tables, got {listed(map(shown, document)) or 'nothing'}")
    tables = document["node"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise NetworkError("node is an array of tables: write [[node]]")
    if len(tables) > MAX_LAYERS:
        raise NetworkError(f"a network has at most {MAX_LAYERS:,} nodes, got {len(tables):,}")
    nodes = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name")
        check_name(name, number)
        try:
            nodes.append(_node(name, table, padding, neuron or LIF(), weight_bits))
        except SpecError as error:
            raise NetworkError.of(error, node=name) from None
    return tuple(nodes)


def check_name(name: object, number: int) -> None:
    """Raise `NetworkError` unless the node number `number` may have this name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name) or len(name) > 100:
        raise NetworkError(f"the name of node {number} is made of letters, digits, _ and ., got {shown(name)}")


def _node(name: str, table: Mapping[str, Any], padding: str, neuron: NeuronModel, weight_bits: int) -> Node:
    if unknown := [key for key in table if key not in _KEYS]:
        raise SpecError(f"unknown key {shown(unknown[0])}; known: {', '.join(_KEYS)}")
    kinds = [kind for kind in _KINDS if kind in table]
    if len(kinds) != 1:
        raise SpecError(f"a node has one of {', '.join(_KINDS)}, got {listed(kinds) or 'none'}")
    kind, text = kinds[0], table[kinds[0]]
    if kind in MERGES:
        if text is not True:
            raise SpecError(f"{kind} = true, got {shown(text)}")
    elif not isinstance(text, str):
        raise SpecError(f"{kind} is a text, got {shown(text)}")
    op: Op
    if kind == "weights":
        op = parse_weights(text, padding=padding, weight_bits=weight_bits)
    elif kind == "neurons":
        op = Neurons(parse_neurons(text, neuron))
    elif kind in MERGES:
        op = MERGES[kind]()
    else:
        options: dict[str, Any] = {"padding": padding, "neuron": neuron, "weight_bits": weight_bits, "dropout": 0.0}
        layers, _ = parse_layers(text, outputs=None, **options)
        if len(layers) != 1 or not isinstance(layers[0], Op):
            raise SpecError(f"layer is one layer without neurons, such as P2 or D0.2, got {shown(text)}")
        op = layers[0]
    shares = table.get("weights_of")
    if shares is not None and not isinstance(shares, str):
        raise SpecError(f"weights_of is the name of a node, got {shown(shares)}")
    return Node(name, op, tuple(_edges(table.get("from"))), shares)


def _edges(sources: object) -> Iterable[Edge]:
    if sources is None:
        raise SpecError("from is missing; it names what the node reads")
    for source in sources if isinstance(sources, list) else [sources]:
        if isinstance(source, str):
            yield Edge(source)
        elif isinstance(source, dict) and set(source) == {"node", "delay"} and isinstance(source["node"], str):
            yield Edge(source["node"], source["delay"])
        else:
            raise SpecError(
                f'from is the name of a node or {{node = "name", delay = 1}}, or several, got {shown(source)}'
            )


def written_nodes(nodes: Iterable[Node]) -> str:
    """Inverse of `parse_nodes`. The result contains every parameter, so it is read alike with any default neuron.

    Raises:
        NetworkError: an operation has no text form.
    """
    return "\n".join(_written(node) for node in nodes if not isinstance(node.op, Input))


def described(node: Node) -> tuple[str, str]:
    """The description of a node and of the nodes it reads, for tables."""
    operation = node.op.symbol if isinstance(node.op, Merge) else _operation_text(node).partition(" = ")[2].strip('"')
    reads = ", ".join(f"{e.source}@-{e.delay}" if e.delay else e.source for e in node.inputs)
    return operation, reads


def _written(node: Node) -> str:
    edges = [f'"{e.source}"' if not e.delay else f'{{node = "{e.source}", delay = {e.delay}}}' for e in node.inputs]
    lines = ["[[node]]", f'name = "{node.name}"', _operation_text(node), f"from = [{', '.join(edges)}]"]
    lines += [f'weights_of = "{node.shares}"'] if node.shares is not None else []
    return "\n".join(lines) + "\n"


def _operation_text(node: Node) -> str:
    op = node.op
    if isinstance(op, Weighted):
        return f'weights = "{written_weights(op)}"'
    if isinstance(op, Neurons):
        return f'neurons = "{written_neurons(op.model)}"'
    if isinstance(op, Merge) and MERGES.get(op.key) is type(op):
        return f"{op.key} = true"
    if isinstance(op, _PLAIN):
        return f'layer = "{written(op)}"'
    raise NetworkError(f"there is no text for {shown(op)}", node=node.name)
