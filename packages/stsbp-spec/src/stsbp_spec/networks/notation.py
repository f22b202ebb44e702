"""The notation of the papers, `12C5-P2-64C5-P2`: layers as text, and text as layers.

Grammar (docs/networks.md has examples):

    network = layer { "-" layer }
    layer   = channels "C" axes [ "R" axes ] { option }   convolution of a kernel, and its neurons
            | units [ "R" ] { option }                    fully connected layer, and its neurons
            | "P" axes | "M" axes                 average and max pooling over windows
            | "G"                                 average pooling over all rows and columns
            | "U" axes                            upsampling: rows and columns repeated
            | "F"                                 flattening to one axis
            | "T" steps                           learned delays of the spikes, at most this many steps
            | "D" rate                            dropout of the incoming spikes
            | "[" branch { "|" branch } "]+"      sum of branches that read one input; a single branch is added to it
    branch  = network | nothing                   an empty branch passes its input on
    option  = "p" axes | "s" axes                 padding and stride, convolutions only
            | "d" rate                            dropout of this layer's spikes, the same as "-D" rate after it
            | "b"                                 a bias
            | "bn"                                batch normalisation
            | "{" key "=" value { "," key "=" value } "}"    keys: bits, delay, neuron, and the neuron's parameters; for
                                                             convolutions also dilation (axes) and groups; for batch
                                                             normalisation also momentum, eps and factor
    axes    = number [ "x" number ]               for rows and columns, or rows "x" columns

"R": the neurons read their own spikes of the previous step, through a full connection or through a convolution (odd
kernel) that keeps their size. `{recurrent=one-to-one}`: through one weight per neuron.

The neuron is `lif`, `if`, `alif` or `plif`. Its parameters are those of its class: `tau_m`, `tau_s`, `threshold`, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, TypeVar, get_args

import numpy as np

from stsbp_spec.contract.grid import MAX_WEIGHT_BITS
from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.models.neurons import LIF, NeuronModel, as_model, parameters, with_parameters
from stsbp_spec.networks.graph import MAX_LAYERS, Input, Neurons, Node
from stsbp_spec.networks.layers import Branches, Layer, SpikingLayer
from stsbp_spec.networks.nodes import node_tables, written_table
from stsbp_spec.networks.ops import (
    MERGES,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LearnedDelay,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
    axes,
)
from stsbp_spec.networks.ops.base import Merge, Op, Passing, Pool2d, Weighted
from stsbp_spec.validation import read_number, shown

__all__ = [
    "checked",
    "described",
    "layer_at",
    "parse_layers",
    "parse_neurons",
    "parse_nodes",
    "parse_weights",
    "recurrence",
    "written",
    "written_neurons",
    "written_nodes",
    "written_operation",
    "written_weights",
]

T = TypeVar("T")

_OPERATIONS = ("weights", "neurons", "layer", *MERGES)
"""Keys of the operation of a node (nodes.py)."""
_PLAIN: tuple[type[Any], ...] = tuple(kind for kind in get_args(Layer) if kind not in (SpikingLayer, Branches))


def parse_layers(
    notation: str,
    *,
    outputs: int | None,
    padding: str,
    neuron: NeuronModel | None,
    output_neuron: NeuronModel | None = None,
    weight_bits: int,
    dropout: float,
) -> tuple[list[Layer], list[tuple[int, int]]]:
    """The layers of a notation, and the start and length of each layer's text. Arguments: see `NetworkSpec.parse`.

    Raises:
        NetworkError: the notation is malformed. The message points at the token.
    """
    if padding not in ("valid", "same"):
        raise SpecError(f"padding is 'valid' or 'same', got {shown(padding)}")
    if not isinstance(notation, str):
        raise SpecError(f"the notation of a network is a string, got {shown(notation)}")
    if len(notation) > _MOST_CHARACTERS:
        raise SpecError(f"the notation of a network has at most {_MOST_CHARACTERS:,} characters, got {len(notation):,}")
    if not isinstance(neuron := neuron or LIF(), NeuronModel):
        raise SpecError(
            f"the neuron of a network is LIF(...), IF(...) or ALIF(...) of stsbp_spec, which describe it; "
            f"got {shown(neuron)}, of {type(neuron).__module__}"
        )
    dropout = Dropout(dropout).rate
    parser = _Parser(notation, padding, neuron, weight_bits, dropout)
    layers: list[Layer] = []
    spans: list[tuple[int, int]] = []
    tokens = parser.tokens()
    if len(tokens) > MAX_LAYERS:
        start = tokens[MAX_LAYERS][0]
        raise parser.fail(f"a network has at most {MAX_LAYERS:,} layers, got {len(tokens):,}", start, 1)
    output = Linear(outputs, weight_bits=weight_bits) if outputs is not None else None
    for position, (start, text) in enumerate(tokens):
        parsed = parser.layer(text, start)
        is_output = position == len(tokens) - 1 and (output is None or _has_outputs(parsed[0], output))
        if not is_output:
            parsed = parser.dropped(parsed, tokens[position + 1][1] if position + 1 < len(tokens) else "")
        layers += parsed
        spans += [(start, len(text))] * len(parsed)
    if output is not None and not (layers and _has_outputs(layers[-1], output)):
        layers.append(SpikingLayer(output, output_neuron or neuron))
        spans.append((len(notation), 1))
    return layers, spans


def parse_nodes(text: str, *, padding: str, neuron: NeuronModel | None, weight_bits: int) -> tuple[Node, ...]:
    """The nodes of a network that is written node by node (nodes.py), without the input.

    Arguments: see `NetworkSpec.parse`.

    Raises:
        NetworkError: the text is not TOML, or a node is malformed. The message names the node.
    """
    nodes = list[Node]()
    for table in node_tables(text, _OPERATIONS):
        try:
            op = _parse_operation(table.kind, table.operation, padding, neuron or LIF(), weight_bits)
        except SpecError as error:
            raise NetworkError.of(error, node=table.name) from None
        nodes.append(Node(table.name, op, table.inputs, table.shares))
    return tuple(nodes)


def _parse_operation(kind: str, text: Any, padding: str, neuron: NeuronModel, weight_bits: int) -> Op:
    if kind in MERGES:
        if text is not True:
            raise SpecError(f"{kind} = true, got {shown(text)}")
        return MERGES[kind]()
    if not isinstance(text, str):
        raise SpecError(f"{kind} is a text, got {shown(text)}")
    if kind == "weights":
        return parse_weights(text, padding=padding, weight_bits=weight_bits)
    if kind == "neurons":
        return Neurons(parse_neurons(text, neuron))
    layers, _ = parse_layers(text, outputs=None, padding=padding, neuron=neuron, weight_bits=weight_bits, dropout=0.0)
    if len(layers) != 1 or not isinstance(layers[0], Op):
        raise SpecError(f"layer is one layer without neurons, such as P2 or D0.2, got {shown(text)}")
    return layers[0]


def written_nodes(nodes: Iterable[Node]) -> str:
    """Inverse of `parse_nodes`. The result contains every parameter, so it is read alike with any default neuron.

    Raises:
        NetworkError: an operation has no text form.
    """
    tables = (node for node in nodes if not isinstance(node.op, Input))
    return "\n".join(written_table(node.name, written_operation(node), node.inputs, node.shares) for node in tables)


def written_operation(node: Node) -> str:
    """The line of a node's operation, such as `weights = "8C3p1{bits=12}"`. Raises `NetworkError`."""
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


def described(node: Node) -> tuple[str, str]:
    """The description of a node and of the nodes it reads, for tables."""
    operation = node.op.symbol if isinstance(node.op, Merge) else written_operation(node).partition(" = ")[2].strip('"')
    reads = ", ".join(f"{e.source}@-{e.delay}" if e.delay else e.source for e in node.inputs)
    return operation, reads


def _has_outputs(layer: Layer, output: Linear) -> bool:
    """Whether `layer` already has the outputs of `output`, so that no output layer must be appended."""
    return isinstance(layer, SpikingLayer) and isinstance(layer.synapse, Linear) and layer.synapse.units == output.units


def parse_weights(text: str, *, padding: str, weight_bits: int) -> Conv2d | Linear | OneToOne:
    """Parse weights without neurons, `64C3p1bn{bits=8}` or `one-to-one`. Raises `NetworkError`."""
    if text.partition("{")[0].strip() == _ONE_TO_ONE:
        text = "1" + text.strip()[len(_ONE_TO_ONE) :]
        return OneToOne(weight_bits=_weights(text, padding, weight_bits).weight_bits)
    return _weights(text, padding, weight_bits)


def _weights(text: str, padding: str, weight_bits: int) -> Conv2d | Linear:
    parser = _Parser(text, padding, LIF(), weight_bits, 0.0)
    layers = parser.layer(text.strip(), 0)
    if not isinstance(layer := layers[0], SpikingLayer) or len(layers) > 1 or layer != SpikingLayer(layer.synapse):
        raise parser.fail("expected weights without neurons, such as 64C3p1 or 256b", 0, len(text))
    return layer.synapse


def written_weights(weights: Weighted) -> str:
    """Inverse of `parse_weights`. The result always contains the bits."""
    if isinstance(weights, OneToOne):
        return f"{_ONE_TO_ONE}{{bits={weights.weight_bits}}}"
    assert isinstance(weights, (Conv2d, Linear))
    text, keys = _written_synapse(weights, "", full=True)
    return f"{text}{{{','.join([*keys, f'bits={weights.weight_bits}'])}}}"


def parse_neurons(text: str, neuron: NeuronModel) -> NeuronModel:
    """Parse a neuron model, `neuron=alif,tau_m=5`. Missing parameters are those of `neuron`. Raises `NetworkError`."""
    keys = _Keys(neuron, MAX_WEIGHT_BITS)
    parser = _Parser(text, "valid", neuron, MAX_WEIGHT_BITS, 0.0)
    parsed = parser.keys(text, 0, keys, set(), _LayerKeys(None, None)) if text.strip() else keys
    if parsed != replace(keys, neuron=parsed.neuron):
        raise parser.fail("expected a neuron model and its parameters, and nothing else", 0, len(text))
    return parsed.neuron


def written_neurons(neuron: NeuronModel) -> str:
    """Inverse of `parse_neurons`. The result contains every parameter, so it is read alike with any default neuron."""
    return ",".join(f"{key}={value}" for key, value in neuron.written().items())


def written(layer: Layer, *, full: bool = False) -> str:
    """A layer in notation. `full`: with all parameters of the neurons and the bits of the weights."""
    if isinstance(layer, Branches):
        *branches, last = ("-".join(written(sublayer, full=full) for sublayer in branch) for branch in layer.branches)
        return f"[{'|'.join(branches if not last and len(branches) == 1 else [*branches, last])}]+"
    if isinstance(layer, Dropout):
        # Positional, because the sign of an exponent would be read as the separator of the next layer.
        return f"D{np.format_float_positional(layer.rate, trim='-')}"
    if isinstance(layer, Pool2d):
        return f"{'M' if isinstance(layer, MaxPool2d) else 'P'}{axes.written(layer.size)}"
    if isinstance(layer, Upsample2d):
        return f"U{axes.written(layer.factor)}"
    if isinstance(layer, (GlobalAvgPool, Flatten)):
        return "G" if isinstance(layer, GlobalAvgPool) else "F"
    if isinstance(layer, LearnedDelay):
        return f"T{layer.maximum}"
    if isinstance(layer, Passing):
        raise SpecError(f"there is no notation for {shown(layer)}")
    synapse, neuron = layer.synapse, layer.neuron
    text, keys = _written_synapse(synapse, recurrence(layer), full=full)
    keys += [f"recurrent={_ONE_TO_ONE}"] if isinstance(layer.recurrent, OneToOne) else []
    keys += [f"delay={layer.delay}"] if layer.delay else []
    if layer.recurrent is not None and layer.recurrent.weight_bits != synapse.weight_bits:
        keys.append(f"recurrent_bits={layer.recurrent.weight_bits}")
    if full:
        keys += [written_neurons(neuron), f"bits={synapse.weight_bits}"]
    return text + (f"{{{','.join(keys)}}}" if keys else "")


def _written_synapse(synapse: Conv2d | Linear, recurrent: str, *, full: bool) -> tuple[str, list[str]]:
    """The weights of a layer in notation, and their keys. `full`: with paddings and strides that are not set."""
    if isinstance(synapse, Conv2d):
        text = f"{synapse.channels}C{axes.written(synapse.kernel)}{recurrent}"
        text += f"p{axes.written(synapse.padding)}" if synapse.padding or full else ""
        text += f"s{axes.written(synapse.stride)}" if synapse.stride != 1 or full else ""
        keys = _geometry_keys(synapse)
    else:
        text, keys = f"{synapse.units}{recurrent}", []
    text += "b" if synapse.bias else ""
    if synapse.norm is not None:
        text += "bn"
        keys += _norm_keys(synapse.norm)
    return text, keys


def recurrence(layer: SpikingLayer) -> str:
    """The recurrent connection of a layer in notation."""
    if isinstance(layer.recurrent, Conv2d):
        return f"R{axes.written(layer.recurrent.kernel)}"
    return "R" if isinstance(layer.recurrent, Linear) else ""


def _geometry_keys(conv: Conv2d) -> list[str]:
    """The keys of a convolution in notation, without those that have their default values."""
    dilation = [f"dilation={axes.written(conv.dilation)}"] if conv.dilation != 1 else []
    return dilation + ([f"groups={conv.groups}"] if conv.groups > 1 else [])


def _norm_keys(norm: BatchNorm) -> list[str]:
    """The keys of batch normalisation in notation, without those that have their default values."""
    values = {name: getattr(norm, name) for name in _NORM}
    return [
        f"{name}={np.format_float_positional(value, trim='-')}"
        for name, value in values.items()
        if value != getattr(BatchNorm(), name)
    ]


def layer_at(layers: list[Layer], position: int) -> int:
    start = 0
    for i, layer in enumerate(layers):
        if start + len(written(layer)) >= position:
            return i
        start += len(written(layer)) + 1
    return len(layers) - 1


def checked(build: Callable[[], T], notation: str, start: int, length: int) -> T:
    """Call `build`. A `SpecError` becomes an error that points at the token."""
    try:
        return build()
    except SpecError as error:
        raise NetworkError.of(error, notation=notation, start=start, length=length) from None


_NORM = tuple(field.name for field in fields(BatchNorm))
_ONE_TO_ONE = "one-to-one"
_MAX_DIGITS = 9
_MAX_DEPTH = 16
"""Largest depth of nested branches."""
_NO_NUMBERS = ("rate", "dropout", "norm", "bias", "keys", "recurrent", "bare", "kind")
_AXES = r"\d+(?:x\d+)?"
_GEOMETRY = ("dilation", "groups")
_INTEGERS = ("bits", "delay", "recurrent_bits")
_MOST_CHARACTERS = 1 << 22
"""Largest length of a notation: 64 characters for each of the largest number of layers."""


def _axes(text: str) -> axes.PerAxis:
    """`3`, or `3x5` as (3, 5)."""
    rows, separator, columns = text.partition("x")
    return (int(rows), int(columns)) if separator else int(rows)


def _passing(groups: Mapping[str, Any]) -> Passing:
    """The layer without weights that the groups of `_Parser._LAYER` describe."""
    if groups["rate"] is not None:
        return Dropout(float(groups["rate"]))
    if groups["bare"] is not None:
        return GlobalAvgPool() if groups["bare"] == "G" else Flatten()
    if groups["delay"] is not None:
        return LearnedDelay(int(groups["delay"]))
    size = _axes(groups["size"])
    if groups["kind"] == "U":
        return Upsample2d(size)
    return MaxPool2d(size) if groups["kind"] == "M" else AvgPool2d(size)


def _integer(key: str, value: str) -> int:
    """The integer value of a key, of at most 9 digits. Raises `ValueError` if it is not an integer."""
    if len(value) > _MAX_DIGITS:
        raise SpecError(f"{key} has at most {_MAX_DIGITS} digits, got {len(value)}")
    if re.fullmatch(r"[+-]?\d+", value, re.ASCII) is None:
        raise ValueError(value)
    return int(value)


@dataclass(frozen=True)
class _LayerKeys:
    """Keys of a convolution and of batch normalisation. None: the layer does not have one."""

    geometry: dict[str, Any] | None
    norm: dict[str, float] | None

    @property
    def names(self) -> tuple[str, ...]:
        return (*(() if self.geometry is None else _GEOMETRY), *(() if self.norm is None else _NORM))


@dataclass(frozen=True)
class _Parser:
    notation: str
    padding: str
    neuron: NeuronModel
    weight_bits: int
    dropout: float

    _LAYER = re.compile(
        rf"(?P<channels>\d+)C(?P<kernel>{_AXES})(?:R(?P<around>{_AXES}))?|(?P<units>\d+)(?P<recurrent>R)?"
        rf"|(?P<bare>[GF])|(?P<kind>[PMU])(?P<size>{_AXES})|T(?P<delay>\d+)|D(?P<rate>\d*\.?\d+)",
        re.ASCII,
    )
    _OPTION = re.compile(
        rf"p(?P<padding>{_AXES})|s(?P<stride>{_AXES})|d(?P<dropout>\d*\.?\d+)|(?P<norm>bn)|(?P<bias>b)"
        r"|\{(?P<keys>[^{}]*)\}",
        re.ASCII,
    )

    def fail(self, message: str, start: int, length: int) -> NetworkError:
        return NetworkError(message, notation=self.notation, start=start, length=length)

    def check_digits(self, match: re.Match[str], start: int) -> None:
        """Refuse integers of more than 9 digits. No layer is that large, and Python refuses to parse very long ones."""
        for group, text in match.groupdict().items():
            if text is None or group in _NO_NUMBERS:
                continue
            for number in re.finditer(r"\d+", text):
                if (length := len(number.group())) > _MAX_DIGITS:
                    message = f"a number has at most {_MAX_DIGITS} digits, got {length}"
                    raise self.fail(message, start + match.start(group) + number.start(), length)

    def tokens(self, start: int = 0, end: int | None = None) -> list[tuple[int, str]]:
        """Split at "-", except inside braces and brackets. Returns the start and the text of each token."""
        return self.split("-", "a layer is missing here", start, len(self.notation) if end is None else end)

    def split(self, separator: str, missing: str, start: int, end: int) -> list[tuple[int, str]]:
        """Split from `start` to `end`, except inside braces and brackets. An empty part raises the message
        `missing`."""
        tokens, braces, brackets, last_character = [], 0, 0, separator
        for i in range(start, end + 1):
            character = self.notation[i] if i < end else separator
            braces += {"{": 1, "}": -1}.get(character, 0)
            # A bracket can only open at the start of a layer or branch.
            if braces <= 0 and (brackets > 0 or (character == "[" and last_character in "-|")):
                brackets += {"[": 1, "]": -1}.get(character, 0)
            last_character = last_character if character.isspace() else character
            if i == end and braces > 0:
                raise self.fail("a brace is not closed", start, i - start)
            if i == end and brackets > 0:
                raise self.fail("a bracket is not closed", start, i - start)
            if character == separator and braces <= 0 and brackets <= 0:
                token = self.notation[start:i]
                if not token.strip() and missing:
                    raise self.fail(missing, min(start, max(0, len(self.notation) - 1)), 1)
                lead = len(token) - len(token.lstrip())
                tokens.append((start + lead, token.strip()))
                start = i + 1
        return tokens

    def branches(self, token: str, start: int, depth: int) -> Branches:
        """`[64C3-64C3]+`, or `[64C3|16C1-64C3]+`."""
        if not token.endswith("]+"):
            raise self.fail("a bracket must end with ]+, which adds its branches", start, len(token))
        if depth >= _MAX_DEPTH:
            raise self.fail(f"branches can be nested at most {_MAX_DEPTH} deep", start, len(token))
        end = start + len(token) - 2
        parts = self.split("|", "", start + 1, end)
        if not parts[0][1] or any(not text for _, text in parts[1:-1]):
            raise self.fail(
                "a branch is missing; only the last one may be empty (it is the input itself)", start, len(token)
            )
        branches = [self.branch(branch_start, branch_start + len(text), depth + 1) for branch_start, text in parts]
        return Branches((*branches, ()) if len(branches) == 1 else tuple(branches))

    def branch(self, start: int, end: int, depth: int) -> tuple[Layer, ...]:
        tokens = self.tokens(start, end) if start < end else []
        layers: list[Layer] = []
        for position, (token_start, text) in enumerate(tokens):
            following = tokens[position + 1][1] if position + 1 < len(tokens) else "["
            layers += self.dropped(self.layer(text, token_start, depth), following)
        return tuple(layers)

    def dropped(self, parsed: list[Layer], following: str) -> list[Layer]:
        """Add the dropout of all hidden layers, unless the layer has its own or its spikes enter branches."""
        if isinstance(parsed[0], SpikingLayer) and len(parsed) == 1 and self.dropout > 0 and following[:1] != "[":
            return [parsed[0], Dropout(self.dropout)]
        return parsed

    def layer(self, token: str, start: int, depth: int = 0) -> list[Layer]:
        if token.startswith("["):
            return [self.branches(token, start, depth)]
        match = self._LAYER.match(token)
        if match is None:
            forms = (
                "16C3 (convolution), 256 (full connection), P2, M2, G (pooling), U2 (upsampling), F (flattening), "
                "T20 (learned delays), D0.2 (dropout), [16C3]+ (branches)"
            )
            raise self.fail(f"unknown layer {shown(token)}; known forms: {forms}", start, len(token))
        self.check_digits(match, start)
        values = match.groupdict()
        options, option_start = token[match.end() :], start + match.end()
        span = (start, len(token))
        if values["channels"] is None and values["units"] is None:
            if options:
                kinds = {"U": "upsampling and flattening", "F": "upsampling and flattening", "T": "learned delays"}.get(
                    match.group()[0], "pooling and dropout"
                )
                raise self.fail(f"{kinds} take no option, got {shown(options)}", option_start, len(options))
            return [checked(lambda: _passing(values), self.notation, *span)]
        is_conv = values["channels"] is not None
        geometry: dict[str, Any] = {}
        option_keys: set[str] = set()
        keys, rate, bias = _Keys(self.neuron, self.weight_bits), None, False
        norm: dict[str, float] | None = None
        while options:
            option = self._OPTION.match(options)
            if option is None:
                raise self.fail(
                    f"unknown option {shown(options)}; known: p1, s2, d0.2, b, bn, {{tau_m=5}}",
                    option_start,
                    len(options),
                )
            self.check_digits(option, option_start)
            named_groups = {k: v for k, v in option.groupdict().items() if v is not None}
            ((key, value),) = named_groups.items()
            if key in option_keys:
                raise self.fail(f"{key} is given twice", option_start, option.end())
            if key != "keys":
                option_keys.add(key)
            if key in ("padding", "stride"):
                if not is_conv:
                    raise self.fail(f"a full connection has no {key}", option_start, option.end())
                geometry[key] = _axes(value)
            elif key == "dropout":
                rate = float(value)
            elif key == "bias":
                bias = True
            elif key == "norm":
                norm = {}
            else:
                layer_keys = _LayerKeys(geometry if is_conv else None, norm)
                keys = self.keys(value, option_start + 1, keys, option_keys, layer_keys)
            options, option_start = options[option.end() :], option_start + option.end()
        batch_norm = None if norm is None else checked(lambda: BatchNorm(**norm), self.notation, *span)
        if is_conv:
            kernel, channels = _axes(values["kernel"]), int(values["channels"])
            conv = checked(
                lambda: Conv2d(channels, kernel, **geometry, weight_bits=keys.bits, bias=bias, norm=batch_norm),
                self.notation,
                *span,
            )
            if "padding" not in geometry and self.padding == "same":
                conv = replace(conv, padding=self.same(conv, *span))
            synapse: Conv2d | Linear = conv
        else:
            units = int(values["units"])
            synapse = checked(
                lambda: Linear(units, weight_bits=keys.bits, bias=bias, norm=batch_norm), self.notation, *span
            )
        recurrent_bits = keys.bits if keys.recurrent_bits is None else keys.recurrent_bits
        recurrent: Conv2d | Linear | OneToOne | None = None
        if keys.recurrent and (values["recurrent"] or values["around"]):
            raise self.fail(f"R and recurrent={_ONE_TO_ONE} are two kinds of recurrence; give only one", *span)
        if keys.recurrent_bits is not None and not (keys.recurrent or values["recurrent"] or values["around"]):
            message = f"recurrent_bits needs a recurrence: R, or recurrent={_ONE_TO_ONE}"
            raise self.fail(message, *span)
        if keys.recurrent:
            recurrent = checked(lambda: OneToOne(weight_bits=recurrent_bits), self.notation, *span)
        elif values["recurrent"]:
            recurrent = checked(lambda: Linear(units, weight_bits=recurrent_bits), self.notation, *span)
        elif values["around"]:
            recurrent_conv = checked(
                lambda: Conv2d(channels, _axes(values["around"]), weight_bits=recurrent_bits), self.notation, *span
            )
            rows, columns = recurrent_conv.kernels
            recurrent = replace(recurrent_conv, padding=(rows // 2, columns // 2))
        layers: list[Layer] = [
            checked(
                lambda: SpikingLayer(synapse, keys.neuron, recurrent=recurrent, delay=keys.delay), self.notation, *span
            )
        ]
        if rate is not None:
            layers.append(checked(lambda: Dropout(rate), self.notation, *span))
        return layers

    def same(self, conv: Conv2d, start: int, length: int) -> tuple[int, int]:
        """The padding with which a stride of 1 keeps the size of the input."""
        rows, columns = conv.extents
        if rows % 2 == 0 or columns % 2 == 0:
            nearly_same = tuple((extent - 1) // 2 for extent in conv.extents)
            message = (
                f"padding 'same' needs an odd kernel: zeros around the input cannot keep its size under a "
                f"{conv.kernels[0]}x{conv.kernels[1]} kernel; give the option p, for example "
                f"p{axes.written(axes.per_axis('padding', nearly_same, 0))}"
            )
            raise self.fail(message, start, length)
        return rows // 2, columns // 2

    def keys(self, text: str, start: int, keys: _Keys, option_keys: set[str], layer_keys: _LayerKeys) -> _Keys:
        """Read `tau_m=5,threshold=0.8`. `option_keys` holds the options that were read before, and gets the new ones.

        `layer_keys` receives the keys that are not the neuron's.
        """
        span = start, len(text)
        pairs = text.split(",")
        starts = list(accumulate((len(pair) + 1 for pair in pairs), initial=start))
        neuron_values: dict[str, str] = {}
        spans: dict[str, tuple[int, int]] = {}
        # Read the model first, because the other allowed keys depend on it.
        order = sorted(zip(starts, pairs, strict=False), key=lambda entry: not entry[1].strip().startswith("neuron="))
        for pair_start, pair in order:
            key, equals, value = pair.partition("=")
            key, value = key.strip(), value.strip()
            try:
                if not equals or not value:
                    raise SpecError(f"expected key=value, got {shown(pair)}")
                if key in option_keys:
                    raise SpecError(f"{key} is given twice")
                option_keys.add(key)
                if key in _GEOMETRY and layer_keys.geometry is not None:
                    numbers = [_integer(key, number) for number in value.split("x", maxsplit=key == "dilation")]
                    layer_keys.geometry[key] = numbers[0] if len(numbers) == 1 else tuple(numbers)
                elif key in _NORM and layer_keys.norm is not None:
                    layer_keys.norm[key] = read_number(value)
                elif key in keys.neuron.written() and key not in ("neuron", "recurrent", *_INTEGERS):
                    neuron_values[key], spans[key] = value, (pair_start, len(pair))
                else:
                    keys = _with_key(keys, key, value, layer_keys.names)
            except ValueError as error:
                kind = "an integer" if key in (*_GEOMETRY, *_INTEGERS) else "a number"
                message = str(error) if isinstance(error, SpecError) else f"{key} must be {kind}, got {shown(value)}"
                raise self.fail(message, pair_start, len(pair)) from None
        try:
            return replace(keys, neuron=with_parameters(keys.neuron, neuron_values))
        except SpecError as error:
            wrong = (key for key, value in neuron_values.items() if not _can_be_set(keys.neuron, key, value))
            raise self.fail(str(error), *spans.get(next(wrong, ""), span)) from None


@dataclass(frozen=True)
class _Keys:
    """The contents of braces."""

    neuron: NeuronModel
    bits: int
    delay: int = 0
    recurrent: bool = False
    recurrent_bits: int | None = None


def _can_be_set(neuron: NeuronModel, key: str, value: str) -> bool:
    """Whether one parameter alone can have this value."""
    try:
        with_parameters(neuron, {key: value})
    except SpecError:
        return False
    return True


def _with_key(keys: _Keys, key: str, value: str, layer_keys: tuple[str, ...]) -> _Keys:
    neuron = keys.neuron
    if key == "neuron":
        if value == neuron.written()["neuron"]:
            return keys
        return replace(keys, neuron=as_model(value, {name: getattr(neuron, name) for name in parameters(neuron)}))
    if key in _INTEGERS:
        numbers: dict[str, Any] = {key: _integer(key, value)}
        return replace(keys, **numbers)
    if key == "recurrent":
        if value != _ONE_TO_ONE:
            raise SpecError(f"recurrent is {_ONE_TO_ONE}, got {shown(value)}; write 128R or 16C3R3 for others")
        return replace(keys, recurrent=True)
    allowed = ", ".join((*neuron.written(), "bits", "delay", "recurrent", "recurrent_bits", *layer_keys))
    raise SpecError(f"unknown parameter {shown(key)}; known: {allowed}")
