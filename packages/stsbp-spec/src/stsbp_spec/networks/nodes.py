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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.networks.graph import MAX_LAYERS, Edge
from stsbp_spec.validation import listed, shown

__all__ = ["NodeTable", "check_name", "is_nodes", "node_tables", "written_table"]

_MOST_CHARACTERS = 1 << 20
_MOST_DOTS = 100
"""Largest number of dots in a line. Keys with many parts would make tomllib slow."""


@dataclass(frozen=True)
class NodeTable:
    """The table of a node. notation.py has the texts of operations.

    Attributes:
        name: name of the node.
        kind: the key of its operation, such as `weights` or `add`.
        operation: the value of this key.
        inputs: the nodes that it reads.
        shares: name of the node whose weights it also uses; None: none.
    """

    name: str
    kind: str
    operation: Any
    inputs: tuple[Edge, ...]
    shares: str | None = None


def is_nodes(text: object) -> bool:
    """Whether a text describes a network node by node, rather than in the notation (also wrongly, with `[node]`)."""
    return isinstance(text, str) and re.match(r"(\s*#[^\n]*\n)*\s*\[\[?\s*node\s*\]", text) is not None


def node_tables(text: str, kinds: tuple[str, ...]) -> Iterator[NodeTable]:
    """The tables of a text, one for each node.

    Args:
        text: the TOML text.
        kinds: the keys that an operation may have. A table has exactly one of them.

    Raises:
        NetworkError: the text is not TOML, or a table is malformed. The message names the node.
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
    for number, table in enumerate(tables, start=1):
        name = table.get("name")
        check_name(name, number)
        try:
            yield _node_table(name, table, kinds)
        except SpecError as error:
            raise NetworkError.of(error, node=name) from None


def check_name(name: object, number: int) -> None:
    """Raise `NetworkError` unless the node number `number` may have this name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name) or len(name) > 100:
        raise NetworkError(f"the name of node {number} is made of letters, digits, _ and ., got {shown(name)}")


def _node_table(name: str, table: Mapping[str, Any], kinds: tuple[str, ...]) -> NodeTable:
    keys = ("name", *kinds, "from", "weights_of")
    if unknown := [key for key in table if key not in keys]:
        raise SpecError(f"unknown key {shown(unknown[0])}; known: {', '.join(keys)}")
    given_kinds = [kind for kind in kinds if kind in table]
    if len(given_kinds) != 1:
        raise SpecError(f"a node has one of {', '.join(kinds)}, got {listed(given_kinds) or 'none'}")
    shares = table.get("weights_of")
    if shares is not None and not isinstance(shares, str):
        raise SpecError(f"weights_of is the name of a node, got {shown(shares)}")
    kind = given_kinds[0]
    return NodeTable(name, kind, table[kind], tuple(_edges(table.get("from"))), shares)


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


def written_table(name: str, operation: str, inputs: Iterable[Edge], shares: str | None) -> str:
    """The table of a node as TOML. `operation` is the line of its operation, such as `weights = "8C3"`."""
    edges = [f'"{e.source}"' if not e.delay else f'{{node = "{e.source}", delay = {e.delay}}}' for e in inputs]
    lines = ["[[node]]", f'name = "{name}"', operation, f"from = [{', '.join(edges)}]"]
    lines += [f'weights_of = "{shares}"'] if shares is not None else []
    return "\n".join(lines) + "\n"
