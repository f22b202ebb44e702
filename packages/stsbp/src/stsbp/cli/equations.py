"""`stsbp equations`: an equation as the backends print and run it."""

from __future__ import annotations

import click
from stsbp_spec.equations import filter_equations, loss_equations, neuron_equations
from stsbp_spec.errors import did_you_mean
from stsbp_spec.expr import Recurrence
from stsbp_spec.losses import LOSSES
from stsbp_spec.neurons import NEURONS, names_a_class, parse_neuron
from stsbp_spec.optim.adamw import UPDATE
from stsbp_spec.printers import LANGUAGES, function
from stsbp_spec.synapses import PSP
from stsbp_spec.values import shown

from stsbp.cli import COMMANDS
from stsbp.cli.common import Choice, completes, say
from stsbp.errors import ConfigError

__all__ = ["command"]

_OTHERS = ("filter", *LOSSES, "adamw")


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

    NAME is a neuron (lif, lif:reset=subtract, alif:surrogate=triangle, my_module:MyNeuron), the synaptic filter
    (filter), the error of a loss (van-rossum, hamming, spike-count) or adamw.
    """
    say("\n".join(function(recurrence, LANGUAGES[language]) for recurrence in _recurrences(name)))


def _recurrences(name: str) -> list[Recurrence]:
    first = name.split(":")[0]
    if first in NEURONS or names_a_class(name):
        neuron = neuron_equations(PSP().filter(), parse_neuron(name, {}))
        return [neuron.forward, neuron.backward]
    if name == "filter":
        alone = filter_equations(PSP().filter())
        return [alone.forward, alone.backward]
    if name in LOSSES:
        loss = loss_equations(LOSSES[name])
        return [loss.backward] if loss.forward is None else [loss.forward, loss.backward]
    if name == "adamw":
        return [UPDATE]
    known = (*NEURONS, *_OTHERS)
    raise ConfigError(f"no equation is called {shown(name)}{did_you_mean(name, known)}; there are: {', '.join(known)}")
