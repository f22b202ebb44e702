"""`stsbp equations`: shows equations in the form in which the backends run them."""

from __future__ import annotations

from typing import Any

import click
import numpy as np
from stsbp_spec.equations.assembly import filter_equations, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, definition
from stsbp_spec.equations.ranges import flushes_of
from stsbp_spec.errors import did_you_mean
from stsbp_spec.models.losses import LOSSES, Loss, parse_loss
from stsbp_spec.models.neurons import NEURONS, NeuronModel, parse_neuron
from stsbp_spec.models.optim import OPTIMIZERS
from stsbp_spec.models.rate_penalty import ADDED, EXCESS
from stsbp_spec.models.surrogates import SURROGATES, Surrogate, equation, parse_surrogate
from stsbp_spec.models.user_classes import calling, imported, names_a_class
from stsbp_spec.networks.ops import PSP
from stsbp_spec.validation import shown

from stsbp.cli import COMMANDS
from stsbp.cli.common import Choice, completes, say
from stsbp.errors import ConfigError

__all__ = ["command"]

_OTHERS = (*SURROGATES, "filter", *LOSSES, "rate-penalty", *OPTIMIZERS)


@click.command("equations", short_help=COMMANDS["equations"])
@click.argument("name", shell_complete=completes([*NEURONS, *_OTHERS]))
@click.option(
    "--as",
    "language",
    default="numpy",
    show_default=True,
    type=Choice(list(LANGUAGES)),
    help="Language of the output.",
)
def command(name: str, language: str) -> None:
    """Show the equations of NAME for one forward step and one backward step, as a backend runs them.

    Each printed operation rounds once. NAME is one of these:

    \b
    - a neuron, for example lif or alif:surrogate=triangle
    - a surrogate derivative, for example triangle:width=0.5
    - the synaptic filter: filter
    - a loss: van-rossum, hamming or spike-count
    - the penalty on firing rates: rate-penalty
    - an optimiser: adamw, adam or sgd
    - a class of your own, for example my_module:MyNeuron

    The languages of --as are:

    \b
    - numpy, torch, jax: functions for these libraries
    - numba: kernels on the CPU
    - triton: kernels of the torch backend on CUDA
    - cuda: kernels of CuPy
    - c: exported C
    """
    subject = _subject_of(name)
    # The code of a user-defined class may fail.
    with calling(f"the equations of {shown(name)} cannot be written"):
        recurrences = _recurrences(subject)
        flushes = () if isinstance(subject, list) else flushes_of(subject)
    say("\n".join(definition(recurrence, LANGUAGES[language]) for recurrence in recurrences))
    for flush in flushes:
        say(f"warning: {flush}", err=True)


def _subject_of(name: str) -> NeuronModel | Surrogate | Loss | list[Recurrence]:
    """The model, surrogate or loss called NAME, or the recurrences of something else."""
    model_name = name.split(":")[0]
    if names_a_class(name, {**NEURONS, **SURROGATES}):
        cls: type[Any] = imported(name, (NeuronModel, Surrogate, Loss), "neuron model, surrogate or loss")
        if issubclass(cls, Loss):
            return parse_loss(name)
        return parse_surrogate(name, foreign=True) if issubclass(cls, Surrogate) else parse_neuron(name, {})
    if model_name in NEURONS:
        return parse_neuron(name, {})
    if model_name in SURROGATES:
        return parse_surrogate(name)
    if name in LOSSES:
        return LOSSES[name]
    if name == "filter":
        filter_recurrences = filter_equations(PSP().filter())
        return [filter_recurrences.forward, filter_recurrences.backward]
    if name == "rate-penalty":
        return [EXCESS, ADDED]
    if name in OPTIMIZERS:
        scalars = OPTIMIZERS[name]().scalars(0, np.float32(1))
        return [scalars.update, scalars.learned_update]
    known_names = (*NEURONS, *_OTHERS)
    raise ConfigError(
        f"no equation is called {shown(name)}{did_you_mean(name, known_names)}; there are: {', '.join(known_names)}"
    )


def _recurrences(subject: NeuronModel | Surrogate | Loss | list[Recurrence]) -> list[Recurrence]:
    if isinstance(subject, list):
        return subject
    if isinstance(subject, Surrogate):
        return [equation(subject)]
    if isinstance(subject, NeuronModel):
        recurrences = neuron_equations(PSP().filter(), subject)
        return [recurrences.forward, recurrences.backward]
    passes = loss_equations(subject)
    return [passes.backward] if passes.forward is None else [passes.forward, passes.backward]
