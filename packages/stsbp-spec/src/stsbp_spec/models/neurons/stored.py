"""A neuron model as text (stored.py). A run can then be loaded without the module that defined the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from stsbp_spec.equations.expressions import Expr, Names, variable
from stsbp_spec.equations.stored import (
    Stored,
    StoredExpressions,
    dumped,
    loaded,
    nodes_of,
    number,
    numbers,
    placeholders,
    refusing,
    texts,
    word,
    words,
    written,
)
from stsbp_spec.errors import SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons.base import Adjoint, NeuronModel, Step, above_zero, steps
from stsbp_spec.models.surrogates.functions import Surrogate
from stsbp_spec.models.surrogates.stored import StoredSurrogate, described
from stsbp_spec.networks.ops.psp import rise_time

__all__ = ["StoredNeuron", "as_text", "from_text"]


def as_text(neuron: NeuronModel) -> str:
    """The model, its surrogate and all its numbers, as JSON.

    Raises:
        SpecError: the model is inconsistent, for example in the names of its states.
    """
    if isinstance(neuron, StoredNeuron):
        return neuron.text
    surrogate = neuron.surrogate
    of_step = (*neuron.constants(), *neuron.learned())
    p, s, d, q = (
        placeholders(kind, names)
        for kind, names in (
            ("p", of_step), ("s", neuron.states), ("d", neuron.carried), ("q", surrogate.constants()),
        )
    )  # fmt: skip
    step = neuron.step(p, s, variable("i"))
    slope = surrogate.expression(q, variable("x"))

    def h(x: Expr) -> Expr:
        return Expr("surrogate", (x,))

    adjoint = neuron.adjoint(p, d, variable("u"), variable("g"), h)
    roots = {"u": step.u, "spike": step.spike, "slope": slope}
    roots |= {f"s.{name}": x for name, x in step.states.items()}
    if adjoint is not None:
        roots |= {"current": adjoint.current, **{f"d.{name}": x for name, x in adjoint.carried.items()}}
        roots |= {f"l.{name}": x for name, x in adjoint.learned.items()}
    # Older texts have no gain. A text without one means the gain `normalised`.
    omitted = ("psp_gain",) if neuron.psp_gain == "normalised" else ()
    parameters = [parameter.name for parameter in fields(neuron)]  # type: ignore[arg-type]
    data = {
        "name": neuron.name,
        "states": list(neuron.states),
        "carried": list(neuron.carried) if adjoint is not None else [],
        "constants": written(neuron.constants()),
        "learned": {name: [x.initial.hex(), x.low.hex(), x.high.hex(), x.per] for name, x in neuron.learned().items()},
        "surrogate": described(surrogate),
        **written({"tau_s": neuron.tau_s, "tau_rise": neuron.tau_rise, "threshold": neuron.threshold}),
        "parameters": {name: str(getattr(neuron, name)) for name in parameters if name not in omitted},
        **({} if omitted else {"psp_gain": neuron.psp_gain}),
        **nodes_of(roots),
    }
    return dumped(data)


class _NeuronContents:
    """The contents of a text, checked."""

    def __init__(self, text: str) -> None:
        data = loaded(text, "neuron model")
        with refusing("neuron model"):
            self.name, self.states, self.carried = word(data["name"]), words(data["states"]), words(data["carried"])
            self.constants = numbers(data["constants"])
            # Older texts have no learned parameters.
            self.learned = {
                word(name): Learned(number(initial), number(low), number(high), per)
                for name, (initial, low, high, per) in data.get("learned", {}).items()
            }
            self.tau_s, self.threshold = number(data["tau_s"]), number(data["threshold"])
            self.tau_rise = number(data["tau_rise"])
            self.psp_gain = word(data.get("psp_gain", "normalised"))
            self.parameters = texts(data["parameters"])
            roots = {"u", "spike", "slope", *(f"s.{name}" for name in self.states)}
            if self.carried:
                roots |= {"current", *(f"d.{name}" for name in self.carried), *(f"l.{name}" for name in self.learned)}
            self.graph = StoredExpressions("neuron model", data, roots, {"spike"})
            # Make a text of the surrogate alone, so that surrogates with the same equation are equal.
            surrogate_data = {"parameters": {}, "compact": False, **data["surrogate"]}
            slope = self.graph.built(_AnyVariable(), ("slope",), _no_surrogate)[0]
            self.surrogate = StoredSurrogate(dumped({**surrogate_data, **nodes_of({"slope": slope})}))


class _AnyVariable(dict[str, Expr]):
    """A mapping that makes a variable for any name."""

    def __missing__(self, key: str) -> Expr:
        return Expr("variable", name=key)

    def __contains__(self, key: object) -> bool:
        return True


def _no_surrogate(x: Expr) -> Expr:
    raise SpecError("the stored neuron model is damaged: its surrogate uses a surrogate derivative")


@dataclass(frozen=True, repr=False)
class StoredNeuron(Stored[_NeuronContents], NeuronModel):
    """A neuron model that was loaded from its text."""

    contents = _NeuronContents
    name: ClassVar[str] = "stored"
    tau_s: float = field(default=4.0, init=False, compare=False)
    tau_rise: float = field(default=0.0, init=False, compare=False)
    psp_gain: str = field(default="normalised", init=False, compare=False)
    threshold: float = field(default=1.0, init=False, compare=False)
    surrogate: Surrogate = field(default_factory=lambda: _UNSET, init=False, compare=False)

    def __post_init__(self) -> None:
        data = self.data
        object.__setattr__(self, "tau_s", steps("tau_s", data.tau_s))
        object.__setattr__(self, "tau_rise", rise_time("tau_rise", data.tau_rise))
        object.__setattr__(self, "psp_gain", data.psp_gain)
        _ = self.psp
        object.__setattr__(self, "threshold", above_zero("threshold", data.threshold))
        object.__setattr__(self, "surrogate", data.surrogate)

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the states."""
        return self.data.states

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the values that a written adjoint passes from step to step."""
        return self.data.carried

    def constants(self) -> Mapping[str, float]:
        return self.data.constants

    def learned(self) -> Mapping[str, Learned]:
        return self.data.learned

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        variables = {**self._constants(p), **{f"s.{name}": getattr(s, name) for name in self.states}, "i": i}
        u, spike, *states = self.data.graph.built(variables, ("u", "spike", *(f"s.{name}" for name in self.states)))
        return Step(u, spike, dict(zip(self.states, states, strict=True)))

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Callable[[Expr], Expr]) -> Adjoint | None:
        if not self.carried:
            return None
        variables = {**self._constants(p), **{f"d.{name}": getattr(d, name) for name in self.carried}, "u": u, "g": g}
        roots = ("current", *(f"d.{name}" for name in self.carried), *(f"l.{name}" for name in self.data.learned))
        current, *other_results = self.data.graph.built(variables, roots, h)
        results = iter(other_results)
        carried = {name: next(results) for name in self.carried}
        return Adjoint(current, carried, {name: next(results) for name in self.data.learned})

    def _constants(self, p: Names) -> dict[str, Expr]:
        return {f"p.{name}": getattr(p, name) for name in (*self.data.constants, *self.data.learned)}

    def written(self) -> dict[str, str]:
        """The original model's name and parameters."""
        return {"neuron": self.data.name, **self.data.parameters}


_UNSET: Any = None


def from_text(text: str) -> StoredNeuron:
    """The model from a text that `as_text` wrote.

    Raises:
        SpecError: the text is damaged.
    """
    return StoredNeuron(text)
