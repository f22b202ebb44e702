"""`stsbp equations`: an equation as the backends print and run it."""

from __future__ import annotations

from typing import Any

import click
from stsbp_spec.equations import filter_equations, loss_equations, neuron_equations
from stsbp_spec.errors import did_you_mean
from stsbp_spec.expr import Recurrence
from stsbp_spec.foreign import calling, imported, names_a_class
from stsbp_spec.losses import LOSSES, Loss, parse_loss
from stsbp_spec.neurons import NEURONS, NeuronModel, parse_neuron
from stsbp_spec.optim.adamw import UPDATE
from stsbp_spec.printers import LANGUAGES, function
from stsbp_spec.surrogates import SURROGATES, Surrogate, equation, parse_surrogate
from stsbp_spec.synapses import PSP
from stsbp_spec.values import shown

from stsbp.cli import COMMANDS
from stsbp.cli.common import Choice, completes, say
from stsbp.errors import ConfigError

__all__ = ["command"]

_OTHERS = (*SURROGATES, "filter", *LOSSES, "adamw")


@click.command("equations", short_help=COMMANDS["equations"])
@click.argument("name", shell_complete=completes([*NEURONS, *_OTHERS]))
@click.option(
    "--as",
    "language",
    default="numpy",
    show_default=True,
    type=Choice(list(LANGUAGES)),
    help="Language to print it in: numba is torch on the CPU, triton torch on CUDA, cuda is CuPy.",
)
def command(name: str, language: str) -> None:
    """Show what NAME computes: one step forward and one step back, each operation rounded once, as a backend runs it.

    NAME is a neuron (lif, lif:reset=subtract, alif:surrogate=triangle), a surrogate derivative (triangle:width=0.5),
    the synaptic filter (filter), the error of a loss (van-rossum, hamming, spike-count), adamw, or a class of your own
    (my_module:MyNeuron, my_module:MyLoss:weight=5).
    """
    say("\n".join(function(recurrence, LANGUAGES[language]) for recurrence in _recurrences(name)))


def _recurrences(name: str) -> list[Recurrence]:
    first = name.split(":")[0]
    if names_a_class(name, {**NEURONS, **SURROGATES}):
        return _own(name)
    if first in NEURONS:
        return _of_neuron(parse_neuron(name, {}))
    if first in SURROGATES:
        return [equation(parse_surrogate(name))]
    if name == "filter":
        alone = filter_equations(PSP().filter())
        return [alone.forward, alone.backward]
    if name in LOSSES:
        return _of_loss(LOSSES[name])
    if name == "adamw":
        return [UPDATE]
    known = (*NEURONS, *_OTHERS)
    raise ConfigError(f"no equation is called {shown(name)}{did_you_mean(name, known)}; there are: {', '.join(known)}")


def _own(name: str) -> list[Recurrence]:
    """The equations of a class of the user's own: a neuron model, a surrogate or a loss."""
    cls: type[Any] = imported(name, (NeuronModel, Surrogate, Loss), "neuron model, surrogate or loss")
    with calling(f"the equations of {shown(name)} cannot be written"):
        if issubclass(cls, Loss):
            return _of_loss(parse_loss(name))
        if issubclass(cls, Surrogate):
            return [equation(parse_surrogate(name, foreign=True))]
        return _of_neuron(parse_neuron(name, {}))


def _of_neuron(neuron: NeuronModel) -> list[Recurrence]:
    both = neuron_equations(PSP().filter(), neuron)
    return [both.forward, both.backward]


def _of_loss(loss: Loss) -> list[Recurrence]:
    passes = loss_equations(loss)
    return [passes.backward] if passes.forward is None else [passes.forward, passes.backward]
