"""The notation of the papers, `12C5-P2-64C5-P2`: layers as text, and text as layers.

Grammar (docs/networks.md has examples):

    network = layer { "-" layer }
    layer   = channels "C" axes { option }        convolution of a kernel, and its neurons
            | units { option }                    full connection and its neurons
            | "P" size                            average pooling, size a power of two
            | "D" rate                            dropout of the spikes that pass
    option  = "p" axes | "s" axes                 padding and stride, convolutions only
            | "d" rate                            dropout of this layer's spikes, the same as "-D" rate after it
            | "b"                                 a bias
            | "bn"                                batch normalisation
            | "{" key "=" value { "," key "=" value } "}"    keys: bits, neuron, and the neuron's parameters; of
                                                             convolutions dilation (axes) and groups as well, of batch
                                                             normalisation momentum, eps and factor
    axes    = number [ "x" number ]               of rows and columns, or of rows "x" of columns

The neuron is `lif`, `if`, `alif` or `plif`; its parameters are those of its class: `tau_m`, `tau_s`, `threshold`, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from stsbp_spec.errors import NetworkError, SpecError
from stsbp_spec.layers import MAX_LAYERS, Layer, SpikingLayer
from stsbp_spec.neurons import LIF, NeuronModel, as_model, parameters, with_parameter
from stsbp_spec.synapses import axes
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.synapses.batchnorm import BatchNorm
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.synapses.dropout import Dropout
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.values import read_number, shown

__all__ = ["checked", "layer_at", "parse_layers", "written"]

T = TypeVar("T")


def parse_layers(
    notation: str,
    *,
    outputs: int | None,
    padding: str,
    neuron: NeuronModel | None,
    weight_bits: int,
    dropout: float,
) -> tuple[list[Layer], list[tuple[int, int]]]:
    """Layers of a notation, and start and length of the text of each; the arguments are those of `NetworkSpec.parse`.

    Raises:
        NetworkError: the notation is malformed; the message points at the token.
    """
    if padding not in ("valid", "same"):
        raise SpecError(f"padding is 'valid' or 'same', got {shown(padding)}")
    if not isinstance(notation, str):
        raise SpecError(f"the notation of a network is a string, got {shown(notation)}")
    if len(notation) > _MOST_CHARACTERS:
        raise SpecError(f"the notation of a network has at most {_MOST_CHARACTERS:,} characters, got {len(notation):,}")
    if not isinstance(neuron := neuron or LIF(), NeuronModel):
        raise SpecError(f"the neuron of a network is LIF(...), IF(...) or ALIF(...), got {shown(neuron)}")
    dropout = Dropout(dropout).rate
    parser = _Parser(notation, padding, neuron, weight_bits)
    layers: list[Layer] = []
    places: list[tuple[int, int]] = []
    tokens = parser.tokens()
    if len(tokens) > MAX_LAYERS:
        start = tokens[MAX_LAYERS][0]
        raise parser.fail(f"a network has at most {MAX_LAYERS:,} layers, got {len(tokens):,}", start, 1)
    output = Linear(outputs, weight_bits=weight_bits) if outputs is not None else None
    for position, (start, text) in enumerate(tokens):
        parsed = parser.layer(text, start)
        is_output = position == len(tokens) - 1 and (output is None or _ends(parsed[0], output))
        if isinstance(parsed[0], SpikingLayer) and len(parsed) == 1 and dropout > 0 and not is_output:
            parsed = [parsed[0], Dropout(dropout)]
        layers += parsed
        places += [(start, len(text))] * len(parsed)
    if output is not None and not (layers and _ends(layers[-1], output)):
        layers.append(SpikingLayer(output, neuron))
        places.append((len(notation), 1))
    return layers, places


def _ends(layer: Layer, output: Linear) -> bool:
    """Whether a network that ends with `layer` has the outputs of `output`."""
    return isinstance(layer, SpikingLayer) and isinstance(layer.synapse, Linear) and layer.synapse.units == output.units


def written(layer: Layer, *, full: bool = False) -> str:
    if isinstance(layer, AvgPool2d):
        return f"P{layer.size}"
    if isinstance(layer, Dropout):
        # Positional: an exponent's sign would read as the next layer's separator.
        return f"D{np.format_float_positional(layer.rate, trim='-')}"
    synapse, neuron = layer.synapse, layer.neuron
    if isinstance(synapse, Conv2d):
        text = f"{synapse.channels}C{axes.written(synapse.kernel)}"
        text += f"p{axes.written(synapse.padding)}" if synapse.padding or full else ""
        text += f"s{axes.written(synapse.stride)}" if synapse.stride != 1 or full else ""
        keys = _geometry_keys(synapse)
    else:
        text, keys = f"{synapse.units}", []
    text += "b" if synapse.bias else ""
    if synapse.norm is not None:
        text += "bn"
        keys += _norm_keys(synapse.norm)
    if full:
        keys += [*_neuron_keys(neuron), f"bits={synapse.weight_bits}"]
    return text + (f"{{{','.join(keys)}}}" if keys else "")


def _geometry_keys(conv: Conv2d) -> list[str]:
    """The keys of a convolution in notation, without what a plain one need not say."""
    dilation = [f"dilation={axes.written(conv.dilation)}"] if conv.dilation != 1 else []
    return dilation + ([f"groups={conv.groups}"] if conv.groups > 1 else [])


def _norm_keys(norm: BatchNorm) -> list[str]:
    """The keys of batch normalisation in notation, without what it is by default."""
    found = {name: getattr(norm, name) for name in _NORM}
    return [f"{name}={value}" for name, value in found.items() if value != getattr(BatchNorm(), name)]


def _neuron_keys(neuron: NeuronModel) -> list[str]:
    """The keys of a neuron in notation, without what a plain LIF neuron need not say."""
    plain = {"neuron": LIF.name, "reset": "zero", "tau_rise": "0.0"}
    return [f"{key}={value}" for key, value in neuron.written().items() if plain.get(key) != value]


def layer_at(layers: list[Layer], position: int) -> int:
    start = 0
    for i, layer in enumerate(layers):
        if start + len(written(layer)) >= position:
            return i
        start += len(written(layer)) + 1
    return len(layers) - 1


def checked(make: Callable[[], T], notation: str, start: int, length: int) -> T:
    """Call `make`; turn a `SpecError` into one that points at the token."""
    try:
        return make()
    except SpecError as error:
        raise NetworkError.of(error, notation=notation, start=start, length=length) from None


_NORM = tuple(field.name for field in fields(BatchNorm))
_MAX_DIGITS = 9
_AXES = r"\d+(?:x\d+)?"
_GEOMETRY = ("dilation", "groups")
_MOST_CHARACTERS = 1 << 22
"""Of a notation: 64 for each of the most layers that there may be."""


def _axes(text: str) -> axes.PerAxis:
    """`3`, or `3x5` as (3, 5)."""
    rows, by, columns = text.partition("x")
    return (int(rows), int(columns)) if by else int(rows)


def _whole(key: str, value: str) -> int:
    """The integer of a key, of at most 9 digits; raises `ValueError` where it is none."""
    read_number(value)
    if len(value) > _MAX_DIGITS:
        raise SpecError(f"{key} has at most {_MAX_DIGITS} digits, got {len(value)}")
    return int(value)


@dataclass(frozen=True)
class _Given:
    """Keys of a convolution and of batch normalisation; None: the layer has none."""

    geometry: dict[str, Any] | None
    norm: dict[str, float] | None

    @property
    def known(self) -> tuple[str, ...]:
        return (*(() if self.geometry is None else _GEOMETRY), *(() if self.norm is None else _NORM))


@dataclass(frozen=True)
class _Parser:
    notation: str
    padding: str
    neuron: NeuronModel
    weight_bits: int

    _LAYER = re.compile(
        rf"(?P<channels>\d+)C(?P<kernel>{_AXES})|P(?P<pool>\d+)|D(?P<rate>\d*\.?\d+)|(?P<units>\d+)", re.ASCII
    )
    _OPTION = re.compile(
        rf"p(?P<padding>{_AXES})|s(?P<stride>{_AXES})|d(?P<dropout>\d*\.?\d+)|(?P<norm>bn)|(?P<bias>b)"
        r"|\{(?P<keys>[^{}]*)\}",
        re.ASCII,
    )

    def fail(self, message: str, start: int, length: int) -> NetworkError:
        return NetworkError(message, notation=self.notation, start=start, length=length)

    def check_digits(self, match: re.Match[str], at: int) -> None:
        """Refuse integers of more than 9 digits: no layer is that large, and Python reads no integer of thousands."""
        for group, text in match.groupdict().items():
            if text is None or group in ("rate", "dropout", "norm", "bias", "keys"):
                continue
            for number in re.finditer(r"\d+", text):
                if (length := len(number.group())) > _MAX_DIGITS:
                    message = f"a number has at most {_MAX_DIGITS} digits, got {length}"
                    raise self.fail(message, at + match.start(group) + number.start(), length)

    def tokens(self) -> list[tuple[int, str]]:
        """Split at "-", except inside braces; returns start and text of each token."""
        tokens, start, depth = [], 0, 0
        for i, character in enumerate(self.notation + "-"):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if i == len(self.notation) and depth > 0:
                raise self.fail("a brace is not closed", start, i - start)
            if character == "-" and depth <= 0:
                token = self.notation[start:i]
                if not token.strip():
                    raise self.fail("a layer is missing here", min(start, max(0, len(self.notation) - 1)), 1)
                lead = len(token) - len(token.lstrip())
                tokens.append((start + lead, token.strip()))
                start = i + 1
        return tokens

    def layer(self, token: str, start: int) -> list[Layer]:
        match = self._LAYER.match(token)
        if match is None:
            known = "16C3 (convolution), 256 (full connection), P2 (pooling), D0.2 (dropout)"
            raise self.fail(f"unknown layer {shown(token)}; known forms: {known}", start, len(token))
        self.check_digits(match, start)
        values = match.groupdict()
        rest, at = token[match.end() :], start + match.end()
        place = (start, len(token))
        if values["pool"] is not None or values["rate"] is not None:
            if rest:
                raise self.fail(f"pooling and dropout take no option, got {shown(rest)}", at, len(rest))
            if values["pool"]:
                return [checked(lambda: AvgPool2d(int(values["pool"])), self.notation, *place)]
            return [checked(lambda: Dropout(float(values["rate"])), self.notation, *place)]
        conv = values["channels"] is not None
        geometry: dict[str, Any] = {}
        given: set[str] = set()
        neuron, bits, rate, bias = self.neuron, self.weight_bits, None, False
        norm: dict[str, float] | None = None
        while rest:
            option = self._OPTION.match(rest)
            if option is None:
                raise self.fail(f"unknown option {shown(rest)}; known: p1, s2, d0.2, b, bn, {{tau_m=5}}", at, len(rest))
            self.check_digits(option, at)
            found = {k: v for k, v in option.groupdict().items() if v is not None}
            ((key, value),) = found.items()
            if key in given:
                raise self.fail(f"{key} is given twice", at, option.end())
            if key != "keys":
                given.add(key)
            if key in ("padding", "stride"):
                if not conv:
                    raise self.fail(f"a full connection has no {key}", at, option.end())
                geometry[key] = _axes(value)
            elif key == "dropout":
                rate = float(value)
            elif key == "bias":
                bias = True
            elif key == "norm":
                norm = {}
            else:
                given_to = _Given(geometry if conv else None, norm)
                neuron, bits = self.keys(value, at + 1, neuron, bits, given, given_to)
            rest, at = rest[option.end() :], at + option.end()
        made = None if norm is None else checked(lambda: BatchNorm(**norm), self.notation, *place)
        if conv:
            kernel, channels = _axes(values["kernel"]), int(values["channels"])
            conv_ = checked(
                lambda: Conv2d(channels, kernel, **geometry, weight_bits=bits, bias=bias, norm=made),
                self.notation,
                *place,
            )
            if "padding" not in geometry and self.padding == "same":
                conv_ = replace(conv_, padding=self.same(conv_, *place))
            synapse: Conv2d | Linear = conv_
        else:
            units = int(values["units"])
            synapse = checked(lambda: Linear(units, weight_bits=bits, bias=bias, norm=made), self.notation, *place)
        layers: list[Layer] = [SpikingLayer(synapse, neuron)]
        if rate is not None:
            layers.append(checked(lambda: Dropout(rate), self.notation, *place))
        return layers

    def same(self, conv: Conv2d, start: int, length: int) -> tuple[int, int]:
        """The padding that keeps the input's size under a stride of 1."""
        rows, columns = conv.extents
        if rows % 2 == 0 or columns % 2 == 0:
            near = tuple((extent - 1) // 2 for extent in conv.extents)
            message = (
                f"padding 'same' needs an odd kernel: zeros around the input cannot keep its size under a "
                f"{conv.kernels[0]}x{conv.kernels[1]} kernel; give the option p, for example "
                f"p{axes.written(axes.per_axis('padding', near, 0))}"
            )
            raise self.fail(message, start, length)
        return rows // 2, columns // 2

    def keys(
        self, text: str, at: int, neuron: NeuronModel, bits: int, given: set[str], others: _Given
    ) -> tuple[NeuronModel, int]:
        """Read `tau_m=5,threshold=0.8`; `given` holds the options read before and takes these.

        `others` take what is no neuron's.
        """
        pairs = text.split(",")
        starts = list(accumulate((len(pair) + 1 for pair in pairs), initial=at))
        # The model first: what else may be said depends on it.
        order = sorted(zip(starts, pairs, strict=False), key=lambda each: not each[1].strip().startswith("neuron="))
        for at, pair in order:
            key, equals, value = pair.partition("=")
            key, value = key.strip(), value.strip()
            try:
                if not equals or not value:
                    raise SpecError(f"expected key=value, got {shown(pair)}")
                if key in given:
                    raise SpecError(f"{key} is given twice")
                given.add(key)
                if key == "neuron" and value == neuron.written()["neuron"]:
                    continue
                if key == "neuron":
                    neuron = as_model(value, {each: getattr(neuron, each) for each in parameters(neuron)})
                elif key == "bits":
                    bits = _whole(key, value)
                elif key in _GEOMETRY and others.geometry is not None:
                    numbers = [_whole(key, each) for each in value.split("x", maxsplit=key == "dilation")]
                    others.geometry[key] = numbers[0] if len(numbers) == 1 else tuple(numbers)
                elif key in _NORM and others.norm is not None:
                    others.norm[key] = read_number(value)
                elif key in neuron.written():
                    neuron = with_parameter(neuron, key, value)
                else:
                    known = ", ".join((*neuron.written(), "bits", *others.known))
                    raise SpecError(f"unknown parameter {shown(key)}; known: {known}")
            except ValueError as error:
                message = str(error) if isinstance(error, SpecError) else f"{key} must be a number, got {shown(value)}"
                raise self.fail(message, at, len(pair)) from None
        return neuron, bits
