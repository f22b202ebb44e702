"""Networks as data and as notation: what is read, what is refused and where the message points, what is printed."""

from __future__ import annotations

import cProfile
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.contract.random import Stream, check_seed, keep_mask
from stsbp_spec.errors import ExactnessError, NetworkError, SpecError
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.optim import AdamW
from stsbp_spec.models.surrogates import SURROGATES, Triangle
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import (
    IDENTITY,
    PSP,
    Add,
    AvgPool2d,
    Conv2d,
    Dropout,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.ops.batchnorm import BatchNorm
from stsbp_spec.networks.ops.dropout import substream
from stsbp_spec.networks.spec import MAX_LAYERS, Branches, Layer, NetworkSpec, SpikingLayer

_NMNIST = {"input_shape": (2, 34, 34), "outputs": 10}


def test_the_notation_of_the_papers() -> None:
    network = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10)
    assert network.layers == (
        SpikingLayer(Conv2d(12, 5)),
        AvgPool2d(2),
        SpikingLayer(Conv2d(64, 5)),
        AvgPool2d(2),
        SpikingLayer(Linear(10)),
    )
    assert network.weight_shapes == {"conv1": (12, 2, 5, 5), "conv2": (64, 12, 5, 5), "linear3": (10, 1600)}
    assert network.outputs == 10
    assert str(network) == "12C5-P2-64C5-P2-10"


def test_options_of_layers() -> None:
    network = NetworkSpec.parse(
        "8C3p1s2d0.25{tau_m=5,threshold=0.7,surrogate=triangle:width=0.5}-P2-D0.5-16{bits=6, tau_s = 2}-4",
        input_shape=(1, 9, 9),
        neuron=LIF(tau_m=3),
    )
    assert network.layers == (
        SpikingLayer(Conv2d(8, 3, stride=2, padding=1), LIF(tau_m=5, threshold=0.7, surrogate=Triangle(0.5))),
        Dropout(0.25),
        AvgPool2d(2),
        Dropout(0.5),
        SpikingLayer(Linear(16, weight_bits=6), LIF(tau_m=3, tau_s=2)),
        SpikingLayer(Linear(4), LIF(tau_m=3)),
    )


def test_a_layer_has_a_bias_where_it_says_so() -> None:
    network = NetworkSpec.parse("8C3b-P2-16d0.5b-5b", input_shape=(1, 9, 9), outputs=5)
    conv, _, linear, _, last = network.layers
    assert isinstance(conv, SpikingLayer)
    assert conv.synapse == Conv2d(8, 3, bias=True)
    assert isinstance(linear, SpikingLayer)
    assert linear.synapse == Linear(16, bias=True)
    assert last == SpikingLayer(Linear(5, bias=True), LIF())
    assert str(network) == "8C3b-P2-16b-D0.5-5b"
    assert NetworkSpec.parse(network.notation, input_shape=(1, 9, 9)) == network
    shapes = {name: parameter.shape for name, parameter in network.parameters.items() if name.endswith(".bias")}
    assert shapes == {"conv1.bias": (8,), "linear2.bias": (16,), "linear3.bias": (5,)}
    assert not any(name.endswith(".bias") for name in NetworkSpec.parse("8C3-4", input_shape=(1, 9, 9)).parameters)
    with pytest.raises(NetworkError, match="bias is given twice"):
        NetworkSpec.parse("8C3bb-4", input_shape=(1, 9, 9))
    with pytest.raises(SpecError, match="bias is True or False, got 1"):
        Conv2d(8, 3, bias=1)  # type: ignore[arg-type]


def test_same_padding_dropout_everywhere_and_spaces() -> None:
    network = NetworkSpec.parse(" 4C5 - P2 -4C3p0- 8 ", input_shape=(1, 12, 12), outputs=3, padding="same", dropout=0.1)
    assert str(network) == "4C5p2-D0.1-P2-4C3-D0.1-8-D0.1-3"


def test_outputs_are_not_appended_twice() -> None:
    assert str(NetworkSpec.parse("20-10", input_shape=(5,), outputs=10)) == "20-10"
    assert str(NetworkSpec.parse("10-20", input_shape=(5,), outputs=10)) == "10-20-10"
    assert str(NetworkSpec.parse("20-10", input_shape=(5,), dropout=0.5)) == "20-D0.5-10"


def test_blocks_of_direct_coding() -> None:
    first, second, third = NetworkSpec.parse(
        "P2-4C3-D0.5-P4-6{tau_s=2}-D0.2-D0.5-3", input_shape=(3, 30, 30), coding="direct", neuron=LIF(tau_s=5)
    ).blocks
    assert (first.static, first.input.exponent, first.input.maximum, first.psp) == (True, 10, 255 / 256, None)
    assert (first.input.bits, first.fan_in, first.synapse_shape) == (10, 27, (3, 15, 15))
    assert first.filter(training=True) == IDENTITY
    assert (second.static, second.input.exponent, second.input.maximum, second.psp) == (False, 4, 1.0, PSP(5))
    assert second.filter(training=True) == PSP(5).filter(2.0)
    assert second.filter(training=False) == PSP(5).filter()
    assert third.input.gain == 1 / 0.8 * 2
    assert third.psp == PSP(2)


def test_blocks_of_events() -> None:
    network = NetworkSpec.parse("4-3", input_shape=(2, 3, 3), input_psp=PSP(3), input_max=7)
    assert (network.blocks[0].psp, network.blocks[0].input.maximum, network.blocks[0].input.bits) == (PSP(3), 7.0, 3)
    assert NetworkSpec.parse("4-3", input_shape=(2, 3, 3)).blocks[0].filter(training=False) == IDENTITY


_NEURONS = st.builds(
    LIF,
    tau_m=st.floats(1, 100),
    tau_s=st.floats(1, 100),
    threshold=st.floats(0.01, 10),
    surrogate=st.builds(
        lambda name, value: SURROGATES[name](value),  # type: ignore[call-arg]
        st.sampled_from(sorted(SURROGATES)),
        st.floats(0.01, 100),
    ),
)
_NORMS = st.builds(BatchNorm, st.floats(0.01, 1), st.floats(1e-12, 1), st.floats(0.01, 100))
_LAYERS: st.SearchStrategy[Layer] = st.one_of(
    st.builds(
        SpikingLayer,
        st.builds(
            Conv2d, st.integers(1, 9), st.just(3), st.integers(1, 2), st.integers(0, 2), weight_bits=st.integers(2, 12)
        ),
        _NEURONS,
    ),
    st.builds(
        SpikingLayer,
        st.builds(
            Conv2d,
            st.just(4),
            st.tuples(st.integers(2, 3), st.integers(2, 4)),
            st.tuples(st.integers(1, 2), st.integers(1, 2)),
            st.tuples(st.integers(0, 1), st.integers(0, 1)),
            dilation=st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 2), st.integers(1, 2))),
            bias=st.booleans(),
        ),
        _NEURONS,
    ),
    st.builds(SpikingLayer, st.builds(Conv2d, st.just(3), st.just(1), norm=_NORMS), _NEURONS),
    st.builds(AvgPool2d, st.sampled_from([1, 2, 3, (1, 2), (3, 1)])),
    st.builds(MaxPool2d, st.sampled_from([1, 2, (2, 1)])),
    st.builds(Upsample2d, st.sampled_from([1, 2, (1, 3)])),
    st.builds(Dropout, st.floats(0, 0.99, exclude_max=True)),
)


@given(layers=st.lists(_LAYERS, max_size=3), outputs=st.integers(1, 20), neuron=_NEURONS)
def test_canonical_notation_reads_back(layers: list[Layer], outputs: int, neuron: LIF) -> None:
    network = NetworkSpec((2, 40, 41), (*layers, SpikingLayer(Linear(outputs), neuron)))
    assert NetworkSpec.parse(network.notation, input_shape=(2, 40, 41)) == network


def _recurrent(channels: int) -> st.SearchStrategy[Conv2d]:
    """Convolutions that keep the size of `channels`."""
    return st.builds(
        lambda rows, columns, bits: Conv2d(channels, (rows, columns), 1, (rows // 2, columns // 2), weight_bits=bits),
        st.sampled_from([1, 3]),
        st.sampled_from([1, 3]),
        st.integers(2, 12),
    )


# Layers that keep the shape (4, H, W) and the synapse, so that they may stand in any branch.
_KEEPING: st.SearchStrategy[Layer] = st.recursive(
    st.builds(
        SpikingLayer,
        st.builds(Conv2d, st.just(4), st.just(3), padding=st.just(1), bias=st.booleans())
        | st.builds(Conv2d, st.just(4), st.just(3), padding=st.just(1), norm=_NORMS),
        st.builds(LIF, st.floats(1, 100)),
        recurrent=st.none() | _recurrent(4),
        delay=st.integers(0, 3),
    ),
    lambda inner: st.builds(
        lambda full, others: Branches((full, *others)),
        st.lists(inner, min_size=1, max_size=2).map(tuple),
        st.lists(st.lists(inner, max_size=2).map(tuple), min_size=1, max_size=2),
    ).filter(lambda layer: all(layer.branches[:-1])),
    max_leaves=6,
)


@given(
    layers=st.lists(_KEEPING, max_size=3),
    connected=st.none() | st.builds(Linear, st.just(5), weight_bits=st.integers(2, 12)),
    one_to_one=st.none() | st.builds(OneToOne, weight_bits=st.integers(2, 12)),
    delay=st.integers(0, 9),
)
def test_notation_of_branches_recurrence_and_delays_reads_back(
    layers: list[Layer], connected: Linear | None, one_to_one: OneToOne | None, delay: int
) -> None:
    first, second = (
        SpikingLayer(Linear(5, weight_bits=7), recurrent=recurrent, delay=delay)
        for recurrent in (connected, one_to_one)
    )
    network = NetworkSpec((4, 6, 5), (SpikingLayer(Conv2d(4, 3, padding=1)), *layers, first, second))
    assert NetworkSpec.parse(network.notation, input_shape=(4, 6, 5)) == network
    spaced = re.sub(r"[][|]|-(?![a-z0-9]*-?one)", r" \g<0> ", network.notation).replace("] +", "]+")
    assert NetworkSpec.parse(spaced, input_shape=(4, 6, 5)) == network
    assert len(network.graph.recurrent) == network.notation.count("R") + network.notation.count("one-to-one")


@given(
    tokens=st.lists(
        st.sampled_from(
            ["2C1", "2C3p1", "R3", "R1", "8", "5", "R", "b", "[", "]+", "]", "|", "-", "-", "{delay=1}", "P1", "D0.5",
             "{recurrent=one-to-one}", "{recurrent_bits=5}", "{delay=", "}"]
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_brackets_are_read_or_refused_with_a_place_in_them(tokens: list[str]) -> None:
    text = "".join(tokens)
    _read_or_refused(text, (2, 4, 4))


def test_recurrence_delays_and_branches_as_layers() -> None:
    network = NetworkSpec.parse(
        "4C3R3x1p1-[4C3p1{delay=2}|4C1b-[4C3p1]+]+-8R{recurrent_bits=5,bits=7}-6{recurrent=one-to-one}",
        input_shape=(2, 6, 5),
        outputs=3,
    )
    assert network.layers == (
        SpikingLayer(Conv2d(4, 3, padding=1), recurrent=Conv2d(4, (3, 1), padding=(1, 0))),
        Branches(
            (
                (SpikingLayer(Conv2d(4, 3, padding=1), delay=2),),
                (SpikingLayer(Conv2d(4, 1, bias=True)), Branches(((SpikingLayer(Conv2d(4, 3, padding=1)),), ()))),
            )
        ),
        SpikingLayer(Linear(8, weight_bits=7), recurrent=Linear(8, weight_bits=5)),
        SpikingLayer(Linear(6), recurrent=OneToOne()),
        SpikingLayer(Linear(3)),
    )
    assert list(network.graph.recurrent.items()) == [
        ("neurons1", ("conv1.recurrent",)),
        ("neurons5", ("linear5.recurrent",)),
        ("neurons6", ("linear6.recurrent",)),
    ]
    assert network.weight_shapes == {
        "conv1": (4, 2, 3, 3), "conv1.recurrent": (4, 4, 3, 1), "conv2": (4, 4, 3, 3), "conv3": (4, 4, 1, 1),
        "conv4": (4, 4, 3, 3), "linear5": (8, 120), "linear5.recurrent": (8, 8), "linear6": (6, 8),
        "linear6.recurrent": (6, 1), "linear7": (3, 6),
    }  # fmt: skip
    sums = [node for node in network.graph.nodes if isinstance(node.op, Add)]
    assert [[edge.source for edge in node.inputs] for node in sums] == [
        ["neurons4", "neurons3"],
        ["neurons2", "add5.0"],
    ]
    assert network.graph.values["add5.1"].maximum == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikingLayer(Linear(3), recurrent=Linear(3, bias=True)), "a recurrence has no bias; give it to"),
        (lambda: SpikingLayer(Linear(3), recurrent=Linear(3, norm=BatchNorm())), "a recurrence has no batch normal"),
        (lambda: SpikingLayer(Conv2d(3, 3), recurrent=Conv2d(3, 3)), "a recurrent convolution has an odd kernel k"),
        (lambda: SpikingLayer(Conv2d(3, 3), recurrent=Conv2d(3, 2, padding=1)), "a recurrent convolution has an odd"),
        (
            lambda: SpikingLayer(Conv2d(4, 3), recurrent=Conv2d(4, 3, padding=1, groups=2)),
            "a recurrent convolution has an odd kernel k, stride 1 and padding k // 2",
        ),
        (lambda: SpikingLayer(Linear(3), recurrent=LIF()), "a spiking layer's recurrence is Linear"),  # type: ignore[arg-type]
        (lambda: SpikingLayer(Linear(3), delay=-1), "a delay must be at least 0, got -1"),
        (lambda: SpikingLayer(Linear(3), delay=1.5), "a delay must be"),  # type: ignore[arg-type]
        (lambda: Branches(((SpikingLayer(Linear(3)),),)), "branches are two or more, got 1"),
        (lambda: NetworkSpec((3,), (Branches(((Linear(3),), ())),)), "weights without neurons"),  # type: ignore[arg-type]
        (
            lambda: NetworkSpec((4,), (SpikingLayer(Linear(3), recurrent=Linear(4)),)),
            "must have the same shape, but these have",
        ),
        (lambda: OneToOne(weight_bits=13), "weight bits must be 2 to 12, got 13"),
    ],
)
def test_layers_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert message in str(caught.value)


@given(text=st.text(alphabet="0123456789CPDRpsdb.{}=,-_[]|+ tau", max_size=20))
def test_any_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    _read_or_refused(text, (2, 12, 12))


def _read_or_refused(text: str, input_shape: tuple[int, ...]) -> None:
    refused = None
    try:
        network = NetworkSpec.parse(text, input_shape=input_shape, outputs=3)
    except NetworkError as error:
        refused = error
    if refused is None:
        assert NetworkSpec.parse(str(network), input_shape=input_shape) == network
        assert NetworkSpec.parse(network.notation, input_shape=input_shape) == network
    else:
        assert refused.notation == text
        assert 0 <= refused.start <= len(text)
        assert set(str(refused).splitlines()[-1].strip()) == {"^"}


MALFORMED = [
    # (notation, the part that the caret must point at, a part of the message)
    ("12C5-P2-64C55", "64C55", "the kernel, 55x55, is larger than its input, 15x15"),
    ("12C5-X3-10", "X3", "unknown layer 'X3'; known forms"),
    ("12C5-c5", "c5", "unknown layer 'c5'"),
    ("0C5", "0C5", "channels must be at least 1, got 0"),
    ("12C0", "12C0", "kernel must be at least 1, got 0"),
    ("12C5s0", "12C5s0", "stride must be at least 1, got 0"),
    ("12C5p5", "12C5p5", "padding 5 must be smaller than the kernel, 5"),
    ("12C5-0", "0", "the units of a full connection must be at least 1, got 0"),
    ("12C5-P2x31", "P2x31", "the window, 2x31, is larger than its input, 30x30"),
    ("12C5-M31", "M31", "the window, 31x31, is larger than its input, 30x30"),
    ("12C5-M0", "M0", "a pooling window must be at least 1, got 0"),
    ("12C5-U0", "U0", "a factor of upsampling must be at least 1, got 0"),
    ("12C5-U", "U", "unknown layer 'U'; known forms"),
    ("12C5-M2s2", "s2", "pooling and dropout take no option, got 's2'"),
    ("12C5-Gb", "b", "pooling and dropout take no option, got 'b'"),
    ("12C5-U2x", "x", "upsampling and flattening take no option, got 'x'"),
    ("12C5-F2", "2", "upsampling and flattening take no option, got '2'"),
    ("12C5-P1234567890", "1234567890", "a number has at most 9 digits, got 10"),
    ("100-M2", "M2", "pooling needs an input (C, H, W), got (100,)"),
    ("100-G", "G", "pooling needs an input (C, H, W), got (100,)"),
    ("12C5-F-U2", "U2", "upsampling needs an input (C, H, W), got (10800,)"),
    ("12C5-F-3C3", "3C3", "a convolution needs an input (C, H, W), got (10800,)"),
    ("12C5-P0", "P0", "at least 1, got 0"),
    ("12C5-P32", "P32", "the window, 32x32, is larger than its input, 30x30"),
    ("12C5-P2s1", "s1", "pooling and dropout take no option, got 's1'"),
    ("12C5-D1.0", "D1.0", "a dropout rate is in [0, 1), got 1"),
    ("12C5d2", "12C5d2", "a dropout rate is in [0, 1), got 2"),
    ("12C5x", "x", "unknown option 'x'"),
    ("12C5p1x", "x", "unknown option 'x'"),
    ("12C5x0", "12C5x0", "kernel must be at least 1, got 0"),
    ("12C3x5p3x1", "12C3x5p3x1", "padding 3x1 must be smaller than the kernel, 3x5"),
    ("12C3p5{dilation=2}", "12C3p5{dilation=2}", "padding 5 must be smaller than the kernel, 3 with dilation 2"),
    ("12C3{dilation=2x}", "dilation=2x", "dilation must be an integer, got '2x'"),
    ("12C3{dilation=0}", "12C3{dilation=0}", "dilation must be at least 1, got 0"),
    ("12C3{groups=5}", "12C3{groups=5}", "12 channels cannot be divided into 5 groups"),
    ("12C3{groups=2x2}", "groups=2x2", "groups must be an integer, got '2x2'"),
    ("12C3-9C3{groups=9}", "9C3{groups=9}", "the input's 12 channels cannot be divided into 9 groups"),
    ("12C3x1234567890", "1234567890", "a number has at most 9 digits, got 10"),
    ("10{groups=2}", "groups=2", "unknown parameter 'groups'; known: neuron"),
    ("12C3x35-5", "12C3x35", "the kernel, 3x35, is larger than its input, 34x34"),
    ("12C3{dilation=17}-5", "12C3{dilation=17}", "the kernel, 3x3 with dilation 17, is larger than its input"),
    ("100p1", "p1", "a full connection has no padding"),
    ("100s2", "s2", "a full connection has no stride"),
    ("12C5{tau=5}", "tau=5", "unknown parameter 'tau'; known: neuron, tau_m"),
    ("12C5{tau_m=fast}", "tau_m=fast", "tau_m must be a number, got 'fast'"),
    ("12C5{tau_m=0.5}", "tau_m=0.5", "must be at least 1, got 0.5"),
    ("12C5{tau_m=5,threshold=0}", "threshold=0", "threshold must be a finite number above 0"),
    ("12C5{tau_m}", "tau_m", "expected key=value, got 'tau_m'"),
    ("12C5{surrogate=step}", "surrogate=step", "unknown surrogate 'step'"),
    ("12C5{bits=many}", "bits=many", "bits must be an integer"),
    ("12C5{bits=13}", "12C5{bits=13}", "weight bits must be 2 to 12, got 13"),
    ("12C5{tau_m=5", "12C5{tau_m=5", "a brace is not closed"),
    ("100-12C5", "12C5", "a convolution needs an input (C, H, W), got (100,)"),
    ("8{tau_m=5,tau_m=6}", "tau_m=6", "tau_m is given twice"),
    ("8{tau_m=5}{tau_m=6}", "tau_m=6", "tau_m is given twice"),
    ("8C3p1p2", "p2", "padding is given twice"),
    ("8C3s1s1", "s1", "stride is given twice"),
    ("8d0.2d0.3", "d0.3", "dropout is given twice"),
    ("8C3-\u0665", "\u0665", "unknown layer"),
    ("8{bits=\u0665}", "bits=\u0665", "bits must be an integer"),
    ("8{tau_m=1_0}", "tau_m=1_0", "tau_m must be a number, got '1_0'"),
    ("8{threshold=1e-300}", "threshold=1e-300", "threshold must be from 2^-100"),
    ("8-1234567890", "1234567890", "a number has at most 9 digits, got 10"),
    ("8C3p1234567890", "1234567890", "a number has at most 9 digits, got 10"),
    ("9" * 50, "9" * 50, "a number has at most 9 digits, got 50"),
    ("4C4-10", "4C4", "padding 'same' needs an odd kernel"),
    ("8{bits=1234567890}", "bits=1234567890", "bits has at most 9 digits, got 10"),
    ("100-P2", "P2", "pooling needs an input (C, H, W), got (100,)"),
    ("12C5R", "R", "unknown option 'R'"),
    ("12C5R2", "12C5R2", "a recurrent convolution has an odd kernel k, stride 1 and padding k // 2"),
    ("12C5R0", "12C5R0", "kernel must be at least 1, got 0"),
    ("12C5R1234567890", "1234567890", "a number has at most 9 digits, got 10"),
    ("12C5{recurrent=one-to-one}", "12C5{recurrent=one-to-one}", "a one-to-one connection needs an input (N,)"),
    ("8{recurrent=all}", "recurrent=all", "recurrent is one-to-one, got 'all'; write 128R or 16C3R3 for others"),
    ("8R{recurrent_bits=1}", "8R{recurrent_bits=1}", "weight bits must be 2 to 12, got 1"),
    ("8R{recurrent_bits=x}", "recurrent_bits=x", "recurrent_bits must be an integer, got 'x'"),
    ("8R{recurrent_bits=1e1}", "recurrent_bits=1e1", "recurrent_bits must be an integer, got '1e1'"),
    ("8{recurrent_bits=8}", "8{recurrent_bits=8}", "recurrent_bits needs a recurrence: R, or recurrent=one-to-one"),
    ("8R{recurrent=one-to-one}", "8R{recurrent=one-to-one}", "R and recurrent=one-to-one are two kinds of recurrence"),
    ("U999999999-5", "U999999999", "more than 2^40 values for each step"),
    ("8{delay=65537}", "8{delay=65537}", "with a delay of 65537; a delay is 0 to 65536 steps"),
    ("8{delay=-1}", "8{delay=-1}", "a delay must be at least 0, got -1"),
    ("8{delay=1.5}", "delay=1.5", "delay must be an integer, got '1.5'"),
    ("8-[8", "[8", "a bracket is not closed"),
    ("8-[8]", "[8]", "a bracket must end with ]+, which adds its branches"),
    ("8-[8]+b", "[8]+b", "a bracket must end with ]+, which adds its branches"),
    ("8-[]+", "[]+", "a branch is missing; only the last one may be empty (it is the input itself)"),
    ("8-[8||]+", "[8||]+", "a branch is missing; only the last one may be empty (it is the input itself)"),
    ("8-[|8]+", "[|8]+", "a branch is missing; only the last one may be empty (it is the input itself)"),
    ("8-[8-]+", "]", "a layer is missing here"),
    ("8-]+", "]+", "unknown layer ']+'"),
    ("8-[4]+", "[4]+", "the inputs of Add must have the same shape, got (4,) and (8,)"),
    ("8-[8{tau_s=7}]+", "[8{tau_s=7}]+", "the inputs of Add must have the same synapse"),
    ("8-[8d0.5]+", "[8d0.5]+", "the inputs of Add must have the same factor of dropout"),
    ("8-" + "[" * 17 + "8" + "]+" * 17, "[8]+", "branches can be nested at most 16 deep"),
]


def test_a_wrong_input_is_the_fault_of_no_layer() -> None:
    with pytest.raises(NetworkError, match=r"the shape \(16384, 16384, 8192\), more than 2\^40 values"):
        NetworkSpec.parse("4C1", input_shape=(16384, 16384, 8192), outputs=3)


@pytest.mark.parametrize(("notation", "token", "message"), MALFORMED, ids=[row[0][:40] for row in MALFORMED])
def test_a_malformed_network_is_refused_at_its_token(notation: str, token: str, message: str) -> None:
    padding = "same" if "'same'" in message else "valid"
    with pytest.raises(NetworkError) as caught:
        NetworkSpec.parse(notation, input_shape=(2, 34, 34), outputs=10, padding=padding)
    text, shown, caret = str(caught.value).splitlines()
    assert message in text
    assert shown.strip() == notation
    start = caret.index("^") - 2
    assert (start, notation[start : start + caret.count("^")]) == (notation.rindex(token), token)


_LONG = "4-" * 50_000


@pytest.mark.parametrize(
    ("notation", "token"),
    [
        (_LONG + "x" * 1_000_000 + "-4", "x" * 80),
        (_LONG + "P2-4", "P2"),
        ("9" * 5000, "9" * 80),
        ("8{tau_m=" + "1" * 500_000 + "z}", "tau_m=" + "1" * 74),
        ("8{" + "k" * 500_000 + "=1}", "k" * 80),
        ("8d" + "1" * 5_000, "8d" + "1" * 78),
        ("8C3p1" + "q" * 500_000, "q" * 80),
        ("P2" + "q" * 500_000, "q" * 80),
        ("8" + "[" * 500_000, "[" * 80),
        ("[" * 500_000, "[" * 80),
        ("[8|" * 500_000, "[8|" * 26 + "[8"),
        ("8{surrogate=" + "a" * 500_000 + "}", "surrogate=" + "a" * 70),
        ("8{surrogate=arctan:alpha=" + "a" * 500_000 + "}", "surrogate=arctan:alpha=" + "a" * 57),
        ("4-" * 70_000 + "4", "4"),
    ],
    ids=[
        "layer",
        "late",
        "digits",
        "value",
        "key",
        "rate",
        "option",
        "pool",
        "surrogate",
        "parameter",
        "layers",
        "late brackets",
        "brackets",
        "branches",
    ],
)
def test_an_error_in_a_long_notation_shows_its_surroundings_alone(notation: str, token: str) -> None:
    with pytest.raises(NetworkError) as caught:
        NetworkSpec.parse(notation, input_shape=(4,), outputs=10)
    text, shown, caret = str(caught.value).splitlines()
    assert len(text) < 300
    assert len(shown) < 130
    start = caret.index("^")
    assert shown[start : start + caret.count("^")] == token
    assert caught.value.notation == notation
    assert notation[caught.value.start :].startswith(token)


def test_an_error_shows_no_control_characters() -> None:
    with pytest.raises(NetworkError) as caught:
        NetworkSpec.parse("8\x1b[31m\n-q", input_shape=(4,), outputs=10)
    assert str(caught.value).splitlines()[1:] == [
        "  8\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}-q",
        "   ^^^^^",
    ]
    assert all(line.isprintable() for line in str(caught.value).splitlines())


def test_a_network_of_many_layers_is_read_in_linear_time() -> None:
    """Counted in function calls, which no other load of the machine changes."""

    def calls(layers: int) -> int:
        text = "-".join(["4"] * layers)
        profile = cProfile.Profile()
        network = profile.runcall(NetworkSpec.parse, text, input_shape=(4,), outputs=4)
        assert len(network.layers) == layers
        return sum(entry.callcount for entry in profile.getstats())

    small, large = calls(500), calls(2000)
    assert large < 4.5 * small


def test_a_notation_of_megabytes_is_refused_before_it_is_read() -> None:
    longest = "1" + "a" * (2**22 - 1)
    with pytest.raises(NetworkError, match="unknown option 'aaa"):
        NetworkSpec.parse(longest, input_shape=(4,), outputs=4)
    profile = cProfile.Profile()
    with pytest.raises(SpecError, match=r"at most 4,194,304 characters, got 4,194,305$"):
        profile.runcall(NetworkSpec.parse, longest + "a", input_shape=(4,), outputs=4)
    # Counted in function calls: far fewer than characters.
    assert sum(entry.callcount for entry in profile.getstats()) < 100


@pytest.mark.parametrize(("notation", "column"), [("12C5--P2", 5), ("-12C5", 0), ("12C5-", 4), ("", 0)])
def test_a_missing_layer_is_refused_where_it_is_missing(notation: str, column: int) -> None:
    with pytest.raises(NetworkError, match="a layer is missing here") as caught:
        NetworkSpec.parse(notation, input_shape=(2, 34, 34), outputs=10)
    assert str(caught.value).splitlines()[-1].index("^") - 2 == column


def test_layers_without_neurons_and_things_that_are_no_layers_are_refused_by_position() -> None:
    hidden, end = SpikingLayer(Linear(8)), SpikingLayer(Linear(3))
    for layer, message in (
        (
            Linear(3),
            r"layers\[1\] is Linear\(units=3, weight_bits=12, bias=False, norm=None\), weights without neurons; write "
            r"SpikingLayer\(Linear\(\.\.\.\)\)",
        ),
        (Conv2d(3, 3), r"layers\[1\] is Conv2d\(.*; write SpikingLayer\(Conv2d\(\.\.\.\)\)"),
        (LIF(), r"layers\[1\] is LIF\(.*; a layer is SpikingLayer"),
        ("12C5", r"layers\[1\] is '12C5'; a layer is SpikingLayer"),
        (None, r"layers\[1\] is None; a layer is SpikingLayer"),
    ):
        with pytest.raises(NetworkError, match=message):
            NetworkSpec((4,), (hidden, layer, end))  # type: ignore[arg-type]
    for layers in ("8-3", 5, end):
        with pytest.raises(SpecError, match="the layers of a network are a sequence"):
            NetworkSpec((4,), layers)  # type: ignore[arg-type]
    anything: Any = AvgPool2d(2)
    with pytest.raises(SpecError, match=r"synapse is Conv2d\(\.\.\.\) or Linear"):
        SpikingLayer(anything)
    with pytest.raises(SpecError, match=r"neuron is LIF\(\.\.\.\)"):
        SpikingLayer(Linear(3), anything)
    with pytest.raises(SpecError, match=r"surrogate is one of Rectangle\(\), .*, got 'arctan'"):
        LIF(surrogate="arctan")  # type: ignore[arg-type]


def test_numbers_of_axes_are_one_integer_where_they_agree() -> None:
    apart = Conv2d(4, (3, 5), [2, 1], (0, 2), dilation=(1, 1))  # type: ignore[arg-type]
    assert (apart.kernel, apart.stride, apart.padding, apart.dilation) == ((3, 5), (2, 1), (0, 2), 1)
    assert Conv2d(4, (3, 3), (2, 2), (1, 1)) == Conv2d(4, 3, 2, 1)
    assert MaxPool2d((2, 2)) == MaxPool2d(2)
    assert Upsample2d((np.int64(1), 3)).factor == (1, 3)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"stride is an integer or a pair \(rows, columns\), got \(1, 2, 3\)"):
        Conv2d(4, 3, (1, 2, 3))  # type: ignore[arg-type]


def test_a_division_that_no_binary_number_gives_is_part_of_the_filter() -> None:
    network = NetworkSpec.parse(
        "4C3-P3-D0.2-8C1-P2x1-G-5b", input_shape=(2, 20, 17), neuron=LIF(3, 5), input_max=3, outputs=7
    )
    second, third = network.blocks[1], network.blocks[2]
    assert (second.input.exponent, second.input.maximum, second.input.divisor) == (0, 9.0, 9)
    assert second.filter(training=False) == PSP(5).filter(1 / 9)
    assert second.filter(training=True) == PSP(5).filter(1.25 / 9)
    # Means of 2x1, then the sum over 3x5 of them: multiples of a half up to 15.
    assert third.synapse_shape == (8, 1, 1)
    assert (third.input.exponent, third.input.maximum, third.input.divisor) == (1, 15.0, 15)
    assert third.input.bits == 5
    biased = third.filter(training=False)
    assert biased.constants()["gain"] == np.float32(1 / 15)
    assert biased.constants()["c"] == PSP(5).filter().gain  # type: ignore[attr-defined]
    assert network.blocks[3].input.divisor == 1


def test_equal_networks_have_one_notation() -> None:
    first = SpikingLayer(Conv2d(4, 3, weight_bits=8), LIF(8.0, 4.0, 1.0, Triangle(2.0)))
    exact = NetworkSpec((2, 9, 9), (first, Dropout(0.5), SpikingLayer(Linear(3), LIF(3.0))))
    conversions: tuple[tuple[Any, Any, Any], ...] = (
        (int, int, float),
        (int, float, np.float64),
        (np.int64, np.float32, np.float16),
        (np.uint8, np.int16, Fraction),
    )
    for integer, real, half in conversions:
        layers = (
            SpikingLayer(
                Conv2d(integer(4), integer(3), weight_bits=integer(8)),
                LIF(real(8), real(4), real(1), Triangle(real(2))),
            ),
            Dropout(half(0.5)),
            SpikingLayer(Linear(integer(3)), LIF(real(3))),
        )
        same = NetworkSpec(tuple(integer(n) for n in (2, 9, 9)), layers, input_max=integer(1))
        assert (same, same.notation, repr(same)) == (exact, exact.notation, repr(exact))
    assert exact.notation.startswith(
        "4C3p0s1{neuron=lif,tau_m=8.0,tau_s=4.0,threshold=1.0,surrogate=triangle:width=2.0,reset=zero,tau_rise=0.0,"
        "psp_gain=normalised,bits=8}-D0.5-"
    )
    assert NetworkSpec.parse(exact.notation.replace(".0", ""), input_shape=(2, 9, 9)) == exact


@pytest.mark.parametrize("value", [True, np.True_, "8", None, 8j, [8]], ids=repr)
def test_what_is_no_number_is_refused(value: Any) -> None:
    for make in (
        lambda: LIF(tau_m=value),
        lambda: LIF(tau_s=value),
        lambda: LIF(threshold=value),
        lambda: PSP(value),
        lambda: Dropout(value),
        lambda: Triangle(value),
        lambda: AdamW(lr=value),
        lambda: Conv2d(4, value),
        lambda: MaxPool2d((2, value)),
        lambda: Upsample2d(value),
        lambda: Conv2d(4, 3, (1, value)),
        lambda: Conv2d(4, 3, dilation=value),
        lambda: Conv2d(4, 3, groups=value),
        lambda: Linear(value),
        lambda: AvgPool2d(value),
        lambda: Linear(3, weight_bits=value),
        lambda: NetworkSpec((4,), (SpikingLayer(Linear(3)),), input_max=value),
        lambda: NetworkSpec((value,), (SpikingLayer(Linear(3)),)),
    ):
        with pytest.raises(SpecError):
            make()


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["huge", "negative"])
def test_numbers_of_thousands_of_digits_are_refused_in_a_short_line(value: int) -> None:
    for make in (
        lambda: LIF(tau_m=value),
        lambda: LIF(threshold=value),
        lambda: PSP(value),
        lambda: Dropout(value),
        lambda: Triangle(value),
        lambda: AdamW(lr=value),
        lambda: AdamW(beta1=value),
        lambda: AdamW(warmup_steps=-abs(value)),
        lambda: Conv2d(value, 3),
        lambda: Conv2d(4, 3, padding=value),
        lambda: Linear(value),
        lambda: AvgPool2d(value),
        lambda: Linear(3, weight_bits=value),
        lambda: NetworkSpec((4,), (SpikingLayer(Linear(3)),), input_max=value),
        lambda: NetworkSpec((value,), (SpikingLayer(Linear(3)),)),
        lambda: NetworkSpec.parse("3", input_shape=(4,), outputs=value),
        lambda: NetworkSpec.parse("3", input_shape=(2, value, 5)),
        lambda: check_seed(value),
    ):
        with pytest.raises(SpecError) as caught:
            make()
        assert len(str(caught.value)) < 250


def test_masks_of_one_step_never_share_bits() -> None:
    """A full house: 16 places before each of many blocks, and no key like another's or another stream's."""
    network = NetworkSpec.parse("-".join(["-".join([*["D0.5"] * 16, "3"])] * 40), input_shape=(3,))
    first, last = network.blocks[0], replace(network.blocks[-1], index=MAX_LAYERS - 1)
    keys = [
        (Stream.DROPOUT + 256 * substream(block.index, place)) % 2**32
        for block in (*network.blocks, last)
        for place in range(16)
    ]
    keys += [(Stream.INIT + 256 * block.index) % 2**32 for block in (first, *network.blocks[1:], last)]
    assert len(set(keys)) == len(keys)
    with pytest.raises(NetworkError, match="dropout must be among the first 16 nodes") as caught:
        NetworkSpec.parse("-".join([*["D0.5"] * 17, "3"]), input_shape=(3,))
    assert caught.value.start == 16 * 5


def test_masks_of_ordinary_networks_stay_as_they_were() -> None:
    """A run that was begun by an older version goes on with the masks that it would have drawn."""
    network = NetworkSpec.parse("D0.1-8C3d0.2-P2-D0.3-16d0.5-D0.25-12-6", input_shape=(2, 12, 12), outputs=3)
    digest, streams = hashlib.sha256(), []
    for block in network.blocks:
        shape = block.input_shape
        for place, layer in enumerate(block.before):
            if isinstance(layer, Dropout):
                streams.append(substream(block.index, place))
                digest.update(keep_mask(7, streams[-1], 5, (2, *shape), layer.rate).tobytes())
            shape = layer.output_shape(shape)
    assert streams == [0, 16, 18, 32, 33]
    assert digest.hexdigest() == "2a141da0f84f95de260c0a35d475c449a39ad6d045425ec04d3ce354413fccbc"


def test_a_network_without_a_linear_end_is_refused() -> None:
    with pytest.raises(NetworkError, match="the last layer must be a full connection") as caught:
        NetworkSpec.parse("12C5-P2", input_shape=(2, 34, 34))
    assert str(caught.value).splitlines()[1:] == ["  12C5-P2", "       ^^"]


def test_sums_without_end_are_refused() -> None:
    with pytest.raises(ExactnessError, match="cannot be exact in float32"):
        NetworkSpec.parse("-".join(["U999-P999"] * 60), input_shape=(1, 9, 9), outputs=10)


def test_a_network_whose_sums_cannot_be_exact_is_refused_at_its_layer() -> None:
    with pytest.raises(ExactnessError, match=r"sums of 110592 inputs .* cannot be exact in float32") as caught:
        NetworkSpec.parse("P2-100-10", input_shape=(3, 384, 384), coding="direct")
    assert isinstance(caught.value, NetworkError)
    assert str(caught.value).splitlines()[1:] == ["  P2-100-10", "     ^^^"]


def test_sums_of_too_many_spikes_are_called_sums_of_spikes() -> None:
    with pytest.raises(ExactnessError, match=r"sums of 18939904 spikes \(0 or 1\) cannot be exact"):
        NetworkSpec.parse("10", input_shape=(1, 4352, 4352))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (2, 34)}, "an input shape is"),
        ({"input_shape": (0, 34, 34)}, "an input shape is"),
        ({"coding": "rate"}, "coding is 'direct' or 'events'"),
        ({"input_max": 0}, "input_max is an event count from 1 to 255"),
        ({"input_max": 256}, "input_max is an event count from 1 to 255"),
        ({"padding": "full"}, "padding is 'valid' or 'same'"),
        ({"input_psp": 4.0}, r"input_psp is PSP\(...\) or None, got 4.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"input_shape": (2, 34, 34), "outputs": 10, **options}
    with pytest.raises(SpecError, match=message):
        NetworkSpec.parse("20", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("tau", [0.5, float("nan"), float("inf"), -3])
def test_time_constants_are_at_least_one_step(tau: float) -> None:
    for make in (lambda: LIF(tau_m=tau), lambda: LIF(tau_s=tau), lambda: PSP(tau)):
        with pytest.raises(SpecError, match="time constant in steps and must be at least 1"):
            make()


@pytest.mark.parametrize("threshold", [1e-300, 2.0**-101, 1e300, 3.5e38])
def test_thresholds_are_positive_finite_numbers_of_float32(threshold: float) -> None:
    with pytest.raises(SpecError, match=r"threshold must be from 2\^-100 to the largest float32"):
        LIF(threshold=threshold)
    assert LIF(threshold=2.0**-100).threshold == 2.0**-100
    assert LIF(threshold=3.4e38).threshold == 3.4e38


def test_time_constants_do_not_vanish_in_float32() -> None:
    for make in (lambda tau: LIF(tau_m=tau), lambda tau: LIF(tau_s=tau), lambda tau: PSP(tau)):
        make(2.0**100)
        for tau in (1e308, 2.0**101):
            with pytest.raises(SpecError, match=r"tau_[ms] must be at most 2\^100"):
                make(tau)


def test_table() -> None:
    network = NetworkSpec.parse("12C5-P2-64C5{bits=8}-P2", input_shape=(2, 34, 34), outputs=10)
    assert network.table() == "\n".join(
        [
            "layer            output    parameters  mult-adds  bits  guaranteed",
            "input    events  2x34x34",
            "conv1    12C5    12x30x30         600    540,000    12        +7.4",
            "         P2      12x15x15",
            "conv2    64C5    64x11x11      19,200  2,323,200     8        +6.8",
            "         P2      64x5x5",
            "linear3  10      10            16,000     16,000    12        +0.4",
            "total                          35,800  2,879,200",
        ]
    )
    measured = network.table({"conv1": 10.04, "conv2": 9.0, "linear3": 6.96})
    assert [line.split()[-1] for line in measured.splitlines()] == [
        "headroom", "2x34x34", "+10.0", "12x15x15", "+9.0", "64x5x5", "+7.0", "2,879,200",
    ]  # fmt: skip


def test_initial_weights() -> None:
    network = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10)
    weights = initial_weights(network, 3, gain=1.2)
    for block in network.blocks:
        w = weights[block.name]
        assert (w.shape, w.dtype.name) == (block.weight_shape, "float32")
        deviation = 1.2 * (2 / block.fan_in) ** 0.5
        # The standard error of a uniform's standard deviation is below 0.45 / sqrt(n); five of them.
        assert abs(w.std() / deviation - 1) < 2.3 / w.size**0.5
        assert abs(w).max() <= deviation * 3**0.5 * (1 + 1e-6)
    redrawn, other = initial_weights(network, 3, gain=1.2), initial_weights(network, 4, gain=1.2)
    assert all((w == redrawn[name]).all() and (w != other[name]).mean() > 0.99 for name, w in weights.items())
    assert (weights["conv1"].reshape(-1)[:600] != weights["conv2"].reshape(-1)[:600]).mean() > 0.99


@pytest.mark.parametrize("gain", [1e31, 1e308, math.inf, math.nan])
def test_initial_weights_that_no_grid_holds(gain: float) -> None:
    network = NetworkSpec.parse("8", input_shape=(4,), outputs=2)
    with pytest.raises(SpecError, match=r"weights of layer linear1 must be below 2\^100, and init_gain .* larger"):
        initial_weights(network, 0, gain)
    assert np.isfinite(initial_weights(network, 0, 1e29)["linear1"]).all()


def test_printed_network_shows_the_sizes_of_every_layer() -> None:
    text = "6C5s2-P2-D0.1"
    network = NetworkSpec.parse(text, input_shape=(2, 18, 18), outputs=10, input_max=3, input_psp=PSP(2.0))
    parameters = (
        "{neuron=lif,tau_m=8.0,tau_s=4.0,threshold=1.0,surrogate=arctan:alpha=2.0,reset=zero,tau_rise=0.0,"
        "psp_gain=normalised,bits=12}"
    )
    assert repr(network).splitlines() == [
        "NetworkSpec(",
        "  input: events 2x18x18, values up to 3, filtered with PSP(tau_s=2.0)",
        f"  conv1: 6C5p0s2{parameters}  2x18x18 -> 6x7x7, weights 6x2x5x5",
        "  P2  6x7x7 -> 6x3x3",
        "  D0.1  6x3x3 -> 6x3x3",
        f"  linear2: 10{parameters}  6x3x3 -> 10, weights 10x54",
        ")",
    ]
