"""Neurons in C: one function per population, which filters its sums, computes the step of its equation, and fires."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from stsbp_spec.equations.adjoint import free_variables, substituted
from stsbp_spec.equations.expressions import Expr, Recurrence, named, ordered, snap
from stsbp_spec.equations.printers import Language, lines
from stsbp_spec.networks.ops.batchnorm import FORWARD
from stsbp_spec.typing import Shape

from stsbp.interop.c_source.arrays import Array
from stsbp.interop.c_source.texts import C_LANGUAGE, function, loops, times
from stsbp.interop.program import PopulationStep

__all__ = ["BATCHNORM", "SNAP", "Fire", "WeightedSums", "batchnorm", "elements", "reduced"]

SNAP = ["static float snap(float x)", "{", "    return (fabsf(x) < 0x1p-100f) ? 0.0f : x;", "}"]


def batchnorm(language: Language) -> list[str]:
    """The function that normalises a sum."""
    printed = lines(FORWARD, language)
    inputs = ", ".join(f"float {language.word.format(name)}" for name in FORWARD.inputs)
    body = [*(line.text for line in printed.lines), f"return {printed.outputs['y']};"]
    return function(f"static float batchnorm({inputs})", body)


BATCHNORM = batchnorm(C_LANGUAGE)


@dataclass(frozen=True)
class WeightedSums:
    """Weighted sums as an equation reads them.

    Attributes:
        pointer: pointer to the first of them, in C: to `int32_t` with `exponent`, else to `float`.
        exponent: the sums are in units of `2^-exponent`; None: they are the values themselves.
        norm: tables of mean, factor and shift of each channel, if they are normalised.
        limit: largest magnitude.
    """

    pointer: str
    exponent: int | None = None
    norm: tuple[str, ...] = ()
    limit: float = inf

    def read(self, name: str, channel: str) -> str:
        """One of them as a `float`, read from the pointer `name`."""
        if self.exponent is None:
            return f"{name}[n]"
        # This is exact: fewer than 2^24 units, times a power of two.
        number = f"(float){name}[n] * {float(2.0**-self.exponent).hex()}f".replace(".0000000000000p", "p")
        norm_arguments = "".join(f", {table}[{channel}]" for table in self.norm)
        return f"batchnorm({number}{norm_arguments})" if self.norm else number


def elements(shape: Shape, by_channel: bool, rows: Sequence[str]) -> tuple[list[str], str]:
    """Loops over all neurons `n` of a shape, and the name of their channel."""
    size = Array(shape, 1, 0).size
    if len(shape) == 1 or not by_channel:
        return loops([("n", size)], rows), "n"
    number = f"const int32_t n = {times('p', shape[0])} + c;"
    return loops([("p", size // shape[0]), ("c", shape[0])], [number, *rows]), "c"


def reduced(population: PopulationStep, sums: Mapping[str, WeightedSums]) -> Recurrence:
    """The step without states that have no effect: those that nothing reads, and those of filters with a decay of 0.

    For such a filter, `i = snap(k i + c z)` becomes `snap(c z)`. `k i` is a zero as long as `i` is finite, which it is
    if `z` is a weighted sum. Unfiltered inputs have this form.
    """
    step = population.step
    for name, new in step.states.items():
        if (product := _unfiltered_product(new, name, population, sums)) is not None:
            unfiltered = snap(product) if new.name is None else named(new.name, snap(product))
            roots = substituted(step.roots, {id(new): unfiltered})
            reduced_roots = dict(zip([*step.states, *step.outputs], roots, strict=True))
            step = step.changed(
                states={key: reduced_roots[key] for key in step.states},
                outputs={key: reduced_roots[key] for key in step.outputs},
            )
    while unread := [name for name in step.states if name not in free_variables(step.roots)]:
        step = step.changed(states={key: x for key, x in step.states.items() if key not in unread})
    return step


def _unfiltered_product(
    new: Expr, state: str, population: PopulationStep, sums: Mapping[str, WeightedSums]
) -> Expr | None:
    """`c z` if the new value of a state is `snap(k state + c z)` with `k = 0`, and finite; else None."""
    if new.op != "snap" or new.args[0].op != "add":
        return None
    decayed, product = new.args[0].args
    if (decayed.op, product.op) != ("mul", "mul"):
        return None
    (k, old), (c, z) = decayed.args, product.args
    constants = population.constants
    if old.name != state or constants.get(str(k.name)) != 0 or c.name not in constants or z.name not in sums:
        return None
    return product if abs(float(constants[str(c.name)])) * sums[str(z.name)].limit < 2.0**127 else None


@dataclass(frozen=True)
class Fire:
    """The function of a population.

    Attributes:
        population: the population.
        sums: the sums for each input of its equation, by name.
        learned: tables of learned parameters of each channel, by name.
        step: its step.
        states: pointers to the states that `step` reads, by name.
        spikes: pointer to the spikes.
        potentials: pointer to the potentials.
        traced: the macro with which potentials are kept; None: they are always kept.
    """

    population: PopulationStep
    step: Recurrence
    sums: Mapping[str, WeightedSums]
    learned: Mapping[str, str]
    states: Mapping[str, str]
    spikes: str
    potentials: str
    traced: str | None

    @cached_property
    def _variables_read(self) -> frozenset[str]:
        return frozenset(str(x.name) for x in ordered(self.step.roots) if x.op == "variable")

    def text(self, name: str, state: str) -> list[str]:
        """The text of the function `name`. `state` is the type of the state."""
        population, step, shape = self.population, self.step, self.population.bound_node.output.shape
        numbers = {key: population.constants[key] for key in step.parameters if key in self._variables_read}
        numbers |= {key: x.reshape(-1)[0] for key, x in population.learned.items() if x.size == 1}
        declarations = [self._declared(key, C_LANGUAGE.constant(float(x))) for key, x in numbers.items()]
        used = {key: weighted_sums for key, weighted_sums in self.sums.items() if key in self._variables_read}
        declarations += [
            f"const {'float' if weighted_sums.exponent is None else 'int32_t'} *{key} = {weighted_sums.pointer};"
            for key, weighted_sums in used.items()
        ]
        by_channel = bool(self.learned) or any(weighted_sums.norm for weighted_sums in self.sums.values())
        _, channel = elements(shape, by_channel, [])
        body = [self._declared(key, weighted_sums.read(key, channel)) for key, weighted_sums in used.items()]
        body += [self._declared(key, f"{table}[{channel}]") for key, table in self.learned.items()]
        body += [self._declared(key, f"{pointer}[n]") for key, pointer in self.states.items()]
        printed = lines(step, C_LANGUAGE)
        body += [line.text for line in printed.lines]
        body += [f"{pointer}[n] = {printed.states[key]};" for key, pointer in self.states.items()]
        body += [f"{self.spikes}[n] = (uint8_t)({printed.outputs['o']} ? 1u : 0u);"]
        body += self._trace_lines(printed.outputs["u"], "\n".join(body))
        loop_lines, _ = elements(shape, by_channel, body)
        return function(f"static void {name}({state} *state)", [*declarations, "", *loop_lines])

    def _declared(self, name: str, value: str) -> str:
        return C_LANGUAGE.number.format(C_LANGUAGE.word.format(name), value)

    def _trace_lines(self, u: str, body: str) -> list[str]:
        """Statements that keep the potential `u`."""
        statements = [f"{self.potentials}[n] = {u};"]
        if self.traced is None:
            return statements
        # Compilers warn about a value that is never read.
        unread = ["#else", f"(void){u};"] if len(re.findall(rf"\b{u}\b", body)) == 1 else []
        return [f"#if defined({self.traced})", *statements, *unread, "#endif"]
