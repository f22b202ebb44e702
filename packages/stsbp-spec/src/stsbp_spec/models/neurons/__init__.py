"""Neuron models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from stsbp_spec.errors import SpecError, did_you_mean
from stsbp_spec.models.neurons.alif import ALIF
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.models.neurons.integrate_and_fire import IF
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.neurons.readout import Readout
from stsbp_spec.models.neurons.stored import StoredNeuron
from stsbp_spec.models.surrogates import parse_surrogate
from stsbp_spec.models.user_classes import calling, imported, names_a_class, read_pairs, split
from stsbp_spec.validation import read_number, shown

NEURONS: dict[str, type[NeuronModel]] = {cls.name: cls for cls in (LIF, IF, ALIF, PLIF)}
"""All neuron models by name. `readout` is not in this list, because it can only be the output of a network."""

_IN_NOTATION: dict[str, type[NeuronModel]] = NEURONS | {Readout.name: Readout}

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "NEURONS",
    "PLIF",
    "NeuronModel",
    "Readout",
    "as_model",
    "parameters",
    "parse_neuron",
    "with_parameters",
]


def parameters(neuron: NeuronModel | type[NeuronModel]) -> tuple[str, ...]:
    """Names of the parameters of a model."""
    return tuple(field.name for field in fields(neuron))  # type: ignore[arg-type]


def as_model(name: str, values: Mapping[str, Any]) -> NeuronModel:
    """A neuron of the model `name`. Those of the parameters in `values` that the model has are set.

    Raises:
        SpecError: there is no such model, or a value is outside its domain.
    """
    models = _IN_NOTATION
    if name not in models:
        raise SpecError(f"unknown neuron {shown(name)}{did_you_mean(name, models)}; known: {', '.join(models)}")
    return _with_values(models[name], values)


def _with_values(model: type[NeuronModel], values: Mapping[str, Any]) -> NeuronModel:
    names = parameters(model)
    return model(**{key: value for key, value in values.items() if key in names})


def with_parameters(neuron: NeuronModel, texts: Mapping[str, str]) -> NeuronModel:
    """`neuron` with parameters read from text. They are set together, because some are checked against each other.

    Raises:
        SpecError: the model has no such parameter, or a value is invalid.
    """
    # A text that says what is so needs no reading: the model or the surrogate may have no name of its own.
    written = neuron.written()
    values = {key: _read_parameter(neuron, key, text) for key, text in texts.items() if written.get(key) != text}
    if not values:
        return neuron
    return _with_values(type(neuron), {**{name: getattr(neuron, name) for name in parameters(neuron)}, **values})


def _read_parameter(neuron: NeuronModel, key: str, text: str) -> Any:
    """The value of one parameter."""
    if isinstance(neuron, StoredNeuron):
        raise SpecError(
            f"the parameters of {neuron} cannot be changed in a network; give them after its class: :{key}=..."
        )
    if key not in parameters(neuron):
        names = ", ".join(parameters(neuron))
        raise SpecError(f"the neuron {neuron.name!r} has no parameter {shown(key)}; it has: {names}")
    if key == "surrogate":
        return parse_surrogate(text)
    if isinstance(getattr(neuron, key), str):
        return text
    try:
        return read_number(text)
    except ValueError:
        raise SpecError(f"{key} must be a number, got {shown(text)}") from None


def parse_neuron(text: str, defaults: Mapping[str, Any]) -> NeuronModel:
    """Read `"alif"`, `"alif:beta=1.8:reset=subtract"`, or a class of another module, `"my_module:MyNeuron:tau_m=5"`.

    Parameters that are not named get the values in `defaults`. The module may also be in the current folder.

    Raises:
        SpecError: the model or a parameter is unknown, or a value is outside its domain; the module cannot be imported.
    """
    name, *pairs = text.strip().split(":")
    if names_a_class(text, NEURONS):
        model: type[NeuronModel] = imported(text, (NeuronModel,), "neuron model")
        _, name, pairs = split(text)
    elif name in NEURONS:
        model = NEURONS[name]
    else:
        raise SpecError(
            f"unknown neuron {shown(name)}{did_you_mean(name, NEURONS)}; known: {', '.join(NEURONS)}, and classes of "
            "your own as module:Class"
        )
    with calling(f"the neuron {shown(name)} cannot be made"):
        neuron = _with_values(model, defaults)
    return with_parameters(neuron, dict(read_pairs(pairs, f"neuron {name!r}")))
