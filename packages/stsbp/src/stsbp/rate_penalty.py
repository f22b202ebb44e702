"""The setting `rate_penalty`: the layers of a network whose firing rates cost, as `conv1=0.05:1,linear2=0.1:3`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from stsbp_spec.contract.grid import CEILING, FLOOR
from stsbp_spec.models.rate_penalty import LayerPenalties, RatePenalty
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.validation import listed, read_number, shown

from stsbp.errors import ConfigError, did_you_mean

__all__ = ["canonical", "describe_penalties", "penalties_of", "text_of"]

FORM = "TARGET:WEIGHT or LAYER=TARGET:WEIGHT, for example 0.05:1 or conv1=0.05:1"


class _Part(NamedTuple):
    """A part of the setting. `layer` is a name with wildcards; empty: all hidden layers. A weight of 0: no penalty."""

    layer: str
    target: float
    weight: float

    def __str__(self) -> str:
        return f"{self.layer}{'=' * bool(self.layer)}{self.target!r}:{self.weight!r}"


def _parts(text: str) -> Iterator[_Part]:
    for part in text.split(",") if text.strip() else ():
        layer, is_of_layer, numbers = part.strip().rpartition("=")
        try:
            target, weight = map(read_number, numbers.split(":"))
        except ValueError:
            raise ValueError(f"Input should be {FORM}, got {shown(part)}") from None
        if (is_of_layer and not layer.strip()) or not math.isfinite(target + weight):
            raise ValueError(f"Input should be {FORM}, got {shown(part)}")
        if not 0 <= target < 1:
            raise ValueError(f"Input should have a target in spikes per step, from 0 to less than 1, got {shown(part)}")
        if weight != 0 and not FLOOR <= weight <= CEILING:
            raise ValueError(f"Input should have a weight of 0, or from 2^-100 to 2^100, got {shown(part)}")
        yield _Part(layer.strip(), target, weight)


def canonical(text: str) -> str:
    """The setting in one form for each meaning. Raises `ValueError` if it is not such a setting."""
    return ",".join(map(str, _parts(text)))


def penalties_of(network: NetworkSpec, text: str) -> dict[str, RatePenalty]:
    """The rate penalties of a network's layers, by the names of its blocks.

    If several parts of `text` fit a layer, the last one counts. A weight of 0 takes a penalty away.

    Args:
        network: the network.
        text: the setting.

    Raises:
        ConfigError: a name fits no layer that spikes. The message lists the layers.
    """
    spiking = [block.name for block in network.blocks if block.neuron.makes_spikes]
    penalties = dict[str, RatePenalty]()
    for part in _parts(text):
        layers = _matched(network, spiking, part.layer)
        for layer in layers:
            penalties.pop(layer, None)
        if part.weight:
            penalties |= dict.fromkeys(layers, RatePenalty(part.target, part.weight))
    return penalties


def _matched(network: NetworkSpec, spiking: list[str], name: str) -> list[str]:
    """The layers that a part of the setting names."""
    output = network.blocks[-1].name
    if not name:
        hidden = [layer for layer in spiking if layer != output]
        if not hidden:
            raise ConfigError(
                "--rate-penalty: the network has no hidden layer; to penalise the output layer, give its name: "
                f"--rate-penalty {output}=TARGET:WEIGHT"
            )
        return hidden
    layers = [layer for layer in spiking if fnmatchcase(layer, name)]
    if not layers and fnmatchcase(output, name):
        raise ConfigError(f"--rate-penalty {name}=...: {output} is a readout, which does not spike; leave it out")
    if not layers:
        raise ConfigError(
            f"--rate-penalty {shown(name)}: the network has no such layer{did_you_mean(name, spiking)}; layers that "
            f"spike are {listed(spiking)}"
        )
    return layers


def text_of(penalties: LayerPenalties) -> str:
    """The setting for penalties by layer: the inverse of `penalties_of`."""
    return ",".join(str(_Part(layer, penalty.target, penalty.weight)) for layer, penalty in penalties)


def describe_penalties(penalties: Iterable[tuple[str, RatePenalty]]) -> str:
    """One line about the rate penalties of layers; empty if there are none."""
    texts = [f"{layer} above {penalty.target:g} (weight {penalty.weight:g})" for layer, penalty in penalties]
    return f"rate penalty: {listed(texts)}" if texts else ""
