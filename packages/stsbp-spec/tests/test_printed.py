"""What is printed, as text: a change of a model, a derivation or a printer is seen as a change of these files.

python packages/stsbp-spec/tests/test_printed.py        writes them again
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stsbp_spec.equations.assembly import filter_equations, loss_equations, neuron_equations
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, definition
from stsbp_spec.models.losses import LOSSES, OF_REAL_TARGETS
from stsbp_spec.models.neurons import ALIF, IF, LIF, NEURONS, PLIF
from stsbp_spec.models.optim import adam, sgd
from stsbp_spec.models.optim.adamw import LEARNED_UPDATE, UPDATE
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import IDENTITY, PSP

FILES = Path(__file__).parent / "printed"
NEURON_MODELS = [kind(reset=reset) for kind in (LIF, IF, ALIF, PLIF) for reset in ("zero", "subtract")]


def recurrences() -> Iterator[tuple[str, Recurrence]]:
    """Every equation of the spec under a heading."""
    filters = {"one time constant": PSP(4), "a rise": PSP(4, 2)}
    for neuron in NEURON_MODELS:
        pair = neuron_equations(filters["one time constant"].filter(), neuron)
        yield from ((f"{neuron.name}, reset {neuron.reset}", x) for x in (pair.forward, pair.backward))
    for name, surrogate in SURROGATES.items():
        yield f"lif with {name}", neuron_equations(IDENTITY, replace(LIF(), surrogate=surrogate())).backward
    for name, psp in filters.items():
        alone = filter_equations(psp.filter())
        yield from ((f"filter of {name}", x) for x in (alone.forward, alone.backward))
    for name, loss in (LOSSES | OF_REAL_TARGETS).items():
        error = loss_equations(loss)
        yield from ((f"error of {name}", x) for x in (error.forward, error.backward) if x is not None)
    yield "adamw", UPDATE
    yield "adamw of what neurons learn", LEARNED_UPDATE
    yield "adam", adam.UPDATE
    yield "sgd", sgd.UPDATE
    yield "sgd of what neurons learn", sgd.LEARNED_UPDATE


def printed(language: str) -> str:
    """All of them in a language."""
    return "\n".join(f"# {heading}\n{definition(x, LANGUAGES[language])}" for heading, x in recurrences())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_equation_is_printed_as_before(language: str) -> None:
    stored = (FILES / f"{language}.txt").read_text(encoding="utf-8")
    assert printed(language) == stored, f"to write the files again: python {Path(__file__).name}"


def test_every_model_and_language_is_there() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(LANGUAGES)
    assert {type(neuron) for neuron in NEURON_MODELS} == set(NEURONS.values())
    headings = [heading for heading, _ in recurrences()]
    assert all(f"lif with {name}" in headings for name in SURROGATES)


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for name in LANGUAGES:
        (FILES / f"{name}.txt").write_text(printed(name), encoding="utf-8")
