"""Networks as frozen data, and the notation of the papers: `12C5-P2-64C5-P2`.

Grammar (docs/networks.md has examples):

    network = layer { "-" layer }
    layer   = channels "C" kernel { option }      convolution and its neurons
            | units { option }                    full connection and its neurons
            | "P" size                            average pooling, size a power of two
            | "D" rate                            dropout of the spikes that pass
    option  = "p" padding | "s" stride            convolutions only
            | "d" rate                            dropout of this layer's spikes, the same as "-D" rate after it
            | "{" key "=" value { "," key "=" value } "}"    keys: bits, neuron, and the neuron's parameters

The neuron is `lif`, `if` or `alif`; its parameters are those of its class: `tau_m`, `tau_s`, `threshold`, ...

A `NetworkSpec` is a sequence of layers; `NetworkSpec.blocks` groups it as it is computed: what passes before the
weights (pooling, dropout), the weights, the filter after them, the neurons.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np

from stsbp_spec.errors import ExactnessError, NetworkError, SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS, MAX_WEIGHT_BITS, MIN_WEIGHT_BITS
from stsbp_spec.neurons import LIF, NeuronModel, as_model, parameters, with_parameter
from stsbp_spec.surrogates import number
from stsbp_spec.synapses.avgpool2d import AvgPool2d
from stsbp_spec.synapses.conv2d import Conv2d
from stsbp_spec.synapses.dropout import Dropout
from stsbp_spec.synapses.linear import Linear
from stsbp_spec.synapses.psp import IDENTITY, PSP, SynapticFilter
from stsbp_spec.typing import Coding, Shape
from stsbp_spec.values import MAX_SIZE, integer, shown

__all__ = ["MAX_BEFORE", "MAX_LAYERS", "Block", "Layer", "NetworkSpec", "SpikingLayer"]

MAX_LAYERS = 2**16
"""Layers of a network."""

MAX_BEFORE = 16
"""Layers of pooling and dropout before one spiking layer; as many dropout masks have a random stream of their own."""


@dataclass(frozen=True)
class SpikingLayer:
    """Weights and the neurons after them.

    Args:
        synapse: how the neurons are connected to the layer below.
        neuron: their parameters.
        weight_bits: bits of the weight grid, sign included, 2 to 12.
    """

    synapse: Conv2d | Linear
    neuron: NeuronModel = field(default_factory=LIF)
    weight_bits: int = MAX_WEIGHT_BITS

    def __post_init__(self) -> None:
        if not isinstance(self.synapse, (Conv2d, Linear)):
            raise SpecError(f"a spiking layer's synapse is Conv2d(...) or Linear(...), got {shown(self.synapse)}")
        if not isinstance(self.neuron, NeuronModel):
            raise SpecError(f"a spiking layer's neuron is LIF(...), IF(...) or ALIF(...), got {shown(self.neuron)}")
        bits = integer(self.weight_bits)
        if bits is None or not MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS:
            raise SpecError(
                f"weight bits must be {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}, got {shown(self.weight_bits)}"
            )
        object.__setattr__(self, "weight_bits", bits)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the layer's spikes for an input of `shape`."""
        return self.synapse.output_shape(shape)


Layer: TypeAlias = SpikingLayer | AvgPool2d | Dropout


@dataclass(frozen=True)
class Block:
    """One spiking layer with what stands before it, as backends compute it.

    Attributes:
        name: `conv1`, `conv2`, `linear3`, ...: the key of its weights.
        index: position among the blocks, from 0.
        before: pooling and dropout between the layer below and the weights.
        input_shape: shape of the spikes (or image) that enter, `(C, H, W)` or `(N,)`.
        synapse_shape: their shape after `before`.
        output_shape: shape of the block's spikes.
        input_exponent: inputs of the weights are multiples of `2^-input_exponent` ...
        input_max: ... in `[0, input_max]`.
        static: whether one input serves all steps (direct coding, first block).
        psp: synaptic filter of the layer below; None: inputs enter unfiltered.
        dropout_gain: product of the `1/(1-p)` of the dropout in `before`.
    """

    name: str
    index: int
    before: tuple[AvgPool2d | Dropout, ...]
    layer: SpikingLayer
    input_shape: Shape
    synapse_shape: Shape
    output_shape: Shape
    input_exponent: int
    input_max: float
    static: bool
    psp: PSP | None
    dropout_gain: float

    @property
    def synapse(self) -> Conv2d | Linear:
        """The weights' geometry."""
        return self.layer.synapse

    @property
    def neuron(self) -> NeuronModel:
        """The neurons' parameters."""
        return self.layer.neuron

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weights, output axis first."""
        return self.synapse.weight_shape(self.synapse_shape)

    @property
    def fan_in(self) -> int:
        """Summands of one output."""
        return self.synapse.summands(self.synapse_shape)[0]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the weights on one dense frame."""
        return self.fan_in * math.prod(self.output_shape)

    @property
    def input_bits(self) -> int:
        """`b` with all inputs at most `2^b` units."""
        return math.ceil(math.log2(self.input_max)) + self.input_exponent

    @property
    def guaranteed_headroom(self) -> float:
        """Headroom in bits if every weight had the largest magnitude and one sign; real weights have more."""
        largest = 2 ** (self.layer.weight_bits - 1) - 1
        return EXACT_LIMIT_BITS - math.log2(self.fan_in * largest * self.input_max) - self.input_exponent

    def dropout_substream(self, place: int) -> int:
        """The `layer` of `random.keep_mask` for the dropout at `before[place]`: no two masks of a step share bits.

        `place` is below `MAX_BEFORE` and `index` below `MAX_LAYERS`, so `256 * substream` stays below 2^32.
        """
        return MAX_BEFORE * self.index + place

    def filter(self, *, training: bool) -> SynapticFilter:
        """Filter after the weights, with the factor of dropout in training."""
        gain = self.dropout_gain if training else 1.0
        if self.psp is not None:
            return self.psp.filter(gain)
        return replace(IDENTITY, gain=type(IDENTITY.gain)(gain))


@dataclass(frozen=True)
class NetworkSpec:
    """A feed-forward network of spiking neurons.

    Args:
        input_shape: `(C, H, W)` or `(N,)`.
        layers: from input to output; the last one is a `SpikingLayer` with `Linear` weights.
        coding: `direct` (one uint8 image for all steps, value `x / 256`) or `events` (uint8 frames).
        input_psp: filter of the input; None: it enters unfiltered.
        input_max: the largest event count of a frame's pixel, 1 for binary frames.

    Raises:
        NetworkError: a layer does not fit its input, or the last layer is no spiking linear one.
    """

    input_shape: Shape
    layers: tuple[Layer, ...]
    coding: Coding = "events"
    input_psp: PSP | None = None
    input_max: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", _input_shape(self.input_shape))
        object.__setattr__(self, "layers", _layers(self.layers))
        if self.coding not in ("direct", "events"):
            raise SpecError(f"coding is 'direct' or 'events', got {shown(self.coding)}")
        largest = integer(self.input_max)
        if largest is None or not 1 <= largest <= 255:
            raise SpecError(f"input_max is an event count from 1 to 255, got {shown(self.input_max)}")
        object.__setattr__(self, "input_max", largest)
        tokens = [_token(layer) for layer in self.layers]
        notation = "-".join(tokens) or "(empty)"
        if not self.layers:
            raise NetworkError("a network needs at least one layer", notation=notation)
        starts = list(accumulate((len(token) + 1 for token in tokens), initial=0))
        shape, before = self.input_shape, 0
        for layer, token, start in zip(self.layers, tokens, starts, strict=False):
            before = 0 if isinstance(layer, SpikingLayer) else before + 1
            try:
                if before > MAX_BEFORE:
                    raise SpecError(
                        f"at most {MAX_BEFORE} layers of pooling and dropout may stand before a spiking one"
                    )
                shape = layer.output_shape(shape)
            except SpecError as error:
                raise NetworkError(str(error), notation=notation, start=start, length=len(token)) from None
        last = self.layers[-1]
        if not (isinstance(last, SpikingLayer) and isinstance(last.synapse, Linear)):
            at = len(notation) - len(tokens[-1])
            message = "the last layer must be a full connection, one unit per output (give outputs=...)"
            raise NetworkError(message, notation=notation, start=at, length=len(tokens[-1]))
        spiking = [i for i, layer in enumerate(self.layers) if isinstance(layer, SpikingLayer)]
        for block, i in zip(self.blocks, spiking, strict=True):
            bound = block.fan_in * (2 ** (MIN_WEIGHT_BITS - 1) - 1) * block.input_max
            if math.log2(bound) + block.input_exponent > EXACT_LIMIT_BITS:
                values = f"inputs with {block.input_bits}-bit values" if block.input_bits > 0 else "spikes (0 or 1)"
                raise _ExactNetworkError(
                    f"the sums of {block.fan_in} {values} cannot be exact in float32, "
                    f"even with {MIN_WEIGHT_BITS}-bit weights; pool or convolve first",
                    notation=notation,
                    start=starts[i],
                    length=len(tokens[i]),
                )

    @classmethod
    def parse(
        cls,
        notation: str,
        *,
        input_shape: Shape,
        outputs: int | None = None,
        coding: Coding = "events",
        padding: str = "valid",
        neuron: NeuronModel | None = None,
        weight_bits: int = MAX_WEIGHT_BITS,
        dropout: float = 0.0,
        input_psp: PSP | None = None,
        input_max: int = 1,
    ) -> NetworkSpec:
        """Read the notation of the papers, for example `"12C5-P2-64C5-P2"`.

        Args:
            notation: see the grammar in this module's docstring.
            input_shape: `(C, H, W)` or `(N,)`.
            outputs: output neurons; a linear layer of this size is appended unless the notation ends with it.
            coding: see the class.
            padding: of convolutions without the option `p`: `"valid"` (none) or `"same"` (`kernel // 2`, odd kernels).
            neuron: parameters of layers that do not give their own.
            weight_bits: likewise.
            dropout: rate after every hidden spiking layer that has no option `d`.
            input_psp: see the class.
            input_max: see the class.

        Raises:
            NetworkError: the notation is malformed or the network impossible; the message points at the token.
        """
        if padding not in ("valid", "same"):
            raise SpecError(f"padding is 'valid' or 'same', got {shown(padding)}")
        if not isinstance(notation, str):
            raise SpecError(f"the notation of a network is a string, got {shown(notation)}")
        if len(notation) > _MOST_CHARACTERS:
            raise SpecError(
                f"the notation of a network has at most {_MOST_CHARACTERS:,} characters, got {len(notation):,}"
            )
        shape = _input_shape(input_shape)
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
        output = Linear(outputs) if outputs is not None else None
        for position, (start, token) in enumerate(tokens):
            parsed = parser.layer(token, start)
            ends = position == len(tokens) - 1 and isinstance(parsed[0], SpikingLayer)
            is_output = ends and (output is None or parsed[0].synapse == output)  # type: ignore[union-attr]
            if isinstance(parsed[0], SpikingLayer) and len(parsed) == 1 and dropout > 0 and not is_output:
                parsed = [parsed[0], Dropout(dropout)]
            layers += parsed
            places += [(start, len(token))] * len(parsed)
        last = layers[-1] if layers else None
        if output is not None and not (isinstance(last, SpikingLayer) and last.synapse == output):
            layers.append(SpikingLayer(output, neuron, weight_bits))
            places.append((len(notation), 1))
        at_layer = shape
        for layer, (start, length) in zip(layers, places, strict=True):
            at_layer = _checked(lambda layer=layer, s=at_layer: layer.output_shape(s), notation, start, length)
        try:
            return cls(shape, tuple(layers), coding, input_psp, input_max)
        except NetworkError as error:
            # The network's own message points into its canonical notation; point into the user's instead.
            at = _layer_at(layers, error.start)
            message = str(error).split("\n")[0]
            raise type(error)(message, notation=notation, start=places[at][0], length=places[at][1]) from None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The layers grouped as backends compute them; see `Block`."""
        blocks: list[Block] = []
        before: list[AvgPool2d | Dropout] = []
        shape, psp = self.input_shape, self.input_psp
        exponent, largest = (8, 255 / 256) if self.coding == "direct" else (0, float(self.input_max))
        entering, gain = shape, 1.0
        for layer in self.layers:
            if not isinstance(layer, SpikingLayer):
                before.append(layer)
                shape = layer.output_shape(shape)
                if isinstance(layer, AvgPool2d):
                    exponent += layer.exponent
                else:
                    gain *= layer.gain
                continue
            kind = "conv" if isinstance(layer.synapse, Conv2d) else "linear"
            output = layer.output_shape(shape)
            blocks.append(
                Block(
                    name=f"{kind}{len(blocks) + 1}",
                    index=len(blocks),
                    before=tuple(before),
                    layer=layer,
                    input_shape=entering,
                    synapse_shape=shape,
                    output_shape=output,
                    input_exponent=exponent,
                    input_max=largest,
                    static=self.coding == "direct" and not blocks,
                    psp=psp,
                    dropout_gain=gain,
                )
            )
            before, psp, gain = [], layer.neuron.psp, 1.0
            shape = entering = output
            exponent, largest = 0, 1.0
        return tuple(blocks)

    @property
    def outputs(self) -> int:
        """Number of output neurons."""
        return self.blocks[-1].output_shape[0]

    @property
    def output_psp(self) -> PSP:
        """Filter of the output spikes, used by the van Rossum distance."""
        return self.blocks[-1].neuron.psp

    @property
    def weight_shapes(self) -> dict[str, Shape]:
        """Shape of each block's weights by its name."""
        return {block.name: block.weight_shape for block in self.blocks}

    @property
    def notation(self) -> str:
        """Canonical notation with every parameter spelled out; `parse` reads it back to an equal network."""
        return "-".join(_token(layer, full=True) for layer in self.layers)

    def __str__(self) -> str:
        return "-".join(_token(layer) for layer in self.layers)

    def __repr__(self) -> str:
        values = f", values up to {self.input_max}" if self.input_max > 1 else ""
        filtered = f", filtered with {self.input_psp!r}" if self.input_psp is not None else ""
        lines = [f"input: {self.coding} {_times(self.input_shape)}{values}{filtered}"]
        for block in self.blocks:
            shape = block.input_shape
            for layer in (*block.before, block.layer):
                before, shape = shape, layer.output_shape(shape)
                name, weights = "", ""
                if layer is block.layer:
                    name, weights = f"{block.name}: ", f", weights {_times(block.weight_shape)}"
                lines.append(f"{name}{_token(layer, full=True)}  {_times(before)} -> {_times(shape)}{weights}")
        return "\n  ".join(["NetworkSpec(", *lines]) + "\n)"

    def table(self, headroom: dict[str, float] | None = None) -> str:
        """The network as text: shapes, parameters, multiply-adds per step, exactness headroom of each layer.

        Args:
            headroom: bits measured on actual weights by layer name (`WeightGrid.headroom`); without it the guaranteed
                headroom is shown, which holds for any weights of `weight_bits` bits where it is not negative.
        """
        kind = "headroom" if headroom is not None else "guaranteed"
        rows = [("layer", "", "output", "parameters", "mult-adds", "bits", kind)]
        rows.append(("input", self.coding, _times(self.input_shape), "", "", "", ""))
        parameters = adds = 0
        for block in self.blocks:
            shape = block.input_shape
            for layer in block.before:
                shape = layer.output_shape(shape)
                rows.append(("", _token(layer), _times(shape), "", "", "", ""))
            size = math.prod(block.weight_shape)
            parameters += size
            adds += block.multiply_adds
            room = headroom[block.name] if headroom is not None else block.guaranteed_headroom
            rows.append(
                (
                    block.name,
                    _token(block.layer),
                    _times(block.output_shape),
                    f"{size:,}",
                    f"{block.multiply_adds:,}",
                    str(block.layer.weight_bits),
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


class _ExactNetworkError(NetworkError, ExactnessError):
    """A network whose exactness bound cannot hold."""


def _input_shape(shape: object) -> Shape:
    """`shape` as a tuple of ints, or `SpecError`."""
    sizes = tuple(integer(n) for n in shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    if len(sizes) not in (1, 3) or not all(n is not None and 1 <= n <= MAX_SIZE for n in sizes):
        limit = f"integers from 1 to {MAX_SIZE}"
        raise SpecError(f"an input shape is (C, H, W) or (N,), {limit}, got {shown(shape)}")
    return tuple(n for n in sizes if n is not None)


def _layers(layers: object) -> tuple[Layer, ...]:
    """`layers` as a tuple, or an error that names the first which is no layer."""
    if not isinstance(layers, Iterable) or isinstance(layers, str):
        raise SpecError(f"the layers of a network are a sequence (NetworkSpec.parse reads text), got {shown(layers)}")
    found = tuple(layers)
    if len(found) > MAX_LAYERS:
        raise NetworkError(f"a network has at most {MAX_LAYERS:,} layers, got {len(found):,}")
    for i, layer in enumerate(found):
        if isinstance(layer, (Conv2d, Linear)):
            instead = f"SpikingLayer({type(layer).__name__}(...))"
            raise NetworkError(f"layers[{i}] is {shown(layer)}, weights without neurons; write {instead}")
        if not isinstance(layer, (SpikingLayer, AvgPool2d, Dropout)):
            known = "SpikingLayer(Conv2d(...)), SpikingLayer(Linear(...)), AvgPool2d(...) or Dropout(...)"
            raise NetworkError(f"layers[{i}] is {shown(layer)}; a layer is {known}")
    return found


def _times(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)


def _token(layer: Layer, *, full: bool = False) -> str:
    if isinstance(layer, AvgPool2d):
        return f"P{layer.size}"
    if isinstance(layer, Dropout):
        # Positional: an exponent's sign would read as the next layer's separator.
        return f"D{np.format_float_positional(layer.rate, trim='-')}"
    synapse, neuron = layer.synapse, layer.neuron
    if isinstance(synapse, Conv2d):
        text = f"{synapse.channels}C{synapse.kernel}"
        text += f"p{synapse.padding}" if synapse.padding or full else ""
        text += f"s{synapse.stride}" if synapse.stride > 1 or full else ""
    else:
        text = f"{synapse.units}"
    if full:
        text += f"{{{','.join([*_neuron_keys(neuron), f'bits={layer.weight_bits}'])}}}"
    return text


def _neuron_keys(neuron: NeuronModel) -> list[str]:
    """The keys of a neuron in notation, without what a plain LIF neuron need not say."""
    plain = {"neuron": LIF.name, "reset": "zero", "tau_rise": "0.0"}
    return [f"{key}={value}" for key, value in neuron.written().items() if plain.get(key) != value]


def _layer_at(layers: list[Layer], position: int) -> int:
    start = 0
    for i, layer in enumerate(layers):
        if start + len(_token(layer)) >= position:
            return i
        start += len(_token(layer)) + 1
    return len(layers) - 1


def _checked(make, notation: str, start: int, length: int):  # type: ignore[no-untyped-def]
    """Call `make`; turn a `SpecError` into one that points at the token."""
    try:
        return make()
    except NetworkError:
        raise
    except SpecError as error:
        raise NetworkError(str(error), notation=notation, start=start, length=length) from None


_MAX_DIGITS = 9
_MOST_CHARACTERS = 1 << 22
"""Of a notation: 64 for each of the most layers that there may be."""


@dataclass(frozen=True)
class _Parser:
    notation: str
    padding: str
    neuron: NeuronModel
    weight_bits: int

    _LAYER = re.compile(
        r"(?P<channels>\d+)C(?P<kernel>\d+)|P(?P<pool>\d+)|D(?P<rate>\d*\.?\d+)|(?P<units>\d+)", re.ASCII
    )
    _OPTION = re.compile(r"p(?P<padding>\d+)|s(?P<stride>\d+)|d(?P<dropout>\d*\.?\d+)|\{(?P<keys>[^{}]*)\}", re.ASCII)

    def fail(self, message: str, start: int, length: int) -> NetworkError:
        return NetworkError(message, notation=self.notation, start=start, length=length)

    def check_digits(self, match: re.Match[str], at: int) -> None:
        """Refuse integers of more than 9 digits: no layer is that large, and Python reads no integer of thousands."""
        for group, text in match.groupdict().items():
            if text is not None and group not in ("rate", "dropout", "keys") and len(text) > _MAX_DIGITS:
                message = f"a number has at most {_MAX_DIGITS} digits, got {len(text)}"
                raise self.fail(message, at + match.start(group), len(text))

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
            make = (
                (lambda: AvgPool2d(int(values["pool"]))) if values["pool"] else (lambda: Dropout(float(values["rate"])))
            )
            try:
                return [make()]
            except SpecError as error:
                kind = _ExactNetworkError if isinstance(error, ExactnessError) else NetworkError
                raise kind(str(error), notation=self.notation, start=start, length=len(token)) from None
        conv = values["channels"] is not None
        geometry: dict[str, int] = {}
        given: set[str] = set()
        neuron, bits, rate = self.neuron, self.weight_bits, None
        while rest:
            option = self._OPTION.match(rest)
            if option is None:
                raise self.fail(f"unknown option {shown(rest)}; known: p1, s2, d0.2, {{tau_m=5}}", at, len(rest))
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
                geometry[key] = int(value)
            elif key == "dropout":
                rate = float(value)
            else:
                neuron, bits = self.keys(value, at + 1, neuron, bits, given)
            rest, at = rest[option.end() :], at + option.end()
        if conv:
            kernel = int(values["kernel"])
            if "padding" not in geometry and self.padding == "same":
                if kernel % 2 == 0:
                    message = (
                        f"padding 'same' needs an odd kernel: zeros around the input cannot keep its size under a "
                        f"{kernel}x{kernel} kernel; give the option p, for example p{max(kernel // 2 - 1, 0)}"
                    )
                    raise self.fail(message, *place)
                geometry["padding"] = kernel // 2
            synapse: Conv2d | Linear = _checked(
                lambda: Conv2d(int(values["channels"]), kernel, **geometry), self.notation, *place
            )
        else:
            synapse = _checked(lambda: Linear(int(values["units"])), self.notation, *place)
        layers: list[Layer] = [_checked(lambda: SpikingLayer(synapse, neuron, bits), self.notation, *place)]
        if rate is not None:
            layers.append(_checked(lambda: Dropout(rate), self.notation, *place))
        return layers

    def keys(self, text: str, at: int, neuron: NeuronModel, bits: int, given: set[str]) -> tuple[NeuronModel, int]:
        """Read `tau_m=5,threshold=0.8`; `given` holds the options read before and takes these."""
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
                if key == "neuron":
                    neuron = as_model(value, {each: getattr(neuron, each) for each in parameters(neuron)})
                elif key == "bits":
                    number(value)
                    if len(value) > _MAX_DIGITS:
                        raise SpecError(f"bits has at most {_MAX_DIGITS} digits, got {len(value)}")
                    bits = int(value)
                elif key in parameters(neuron):
                    neuron = with_parameter(neuron, key, value)
                else:
                    known = ", ".join(("neuron", *parameters(neuron), "bits"))
                    raise SpecError(f"unknown parameter {shown(key)}; known: {known}")
            except ValueError as error:
                message = str(error) if isinstance(error, SpecError) else f"{key} must be a number, got {shown(value)}"
                raise self.fail(message, at, len(pair)) from None
        return neuron, bits
