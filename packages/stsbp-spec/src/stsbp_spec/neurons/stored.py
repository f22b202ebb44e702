"""A neuron model as text: its expressions as data, so that a run is loaded without the module that wrote the model.

The text is JSON: constants, names, and the nodes of all expressions, operands before what is made of them. Nothing in
it is executed but by the printers, which know the operations of expr.py and no others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from stsbp_spec.errors import SpecError
from stsbp_spec.expr import CONDITIONS, OPERATIONS, Expr, Names, ordered, variable
from stsbp_spec.neurons.base import Adjoint, NeuronModel, Step, above_zero, steps
from stsbp_spec.surrogates import Surrogate
from stsbp_spec.synapses.psp import rise_time
from stsbp_spec.typing import AnyArray
from stsbp_spec.values import shown

__all__ = ["StoredNeuron", "StoredSurrogate", "as_text", "from_text"]

_FORMAT = 1
_LONGEST = 2**18
_MOST_NODES = 4096
_LARGEST = float(np.finfo(np.float32).max)


def as_text(neuron: NeuronModel) -> str:
    """The model, its surrogate and all of its numbers, as JSON.

    Raises:
        SpecError: the model contradicts itself, for example about its states.
    """
    if isinstance(neuron, StoredNeuron):
        return neuron.text
    surrogate = neuron.surrogate
    p, s, d, q = (
        _placeholders(kind, names)
        for kind, names in (
            ("p", neuron.constants()), ("s", neuron.states), ("d", neuron.carried), ("q", surrogate.constants()),
        )
    )  # fmt: skip
    step = neuron.step(p, s, variable("i"))
    slope = surrogate.expression(q, variable("x"))

    def h(x: Expr) -> Expr:
        return Expr("surrogate", (x,))

    back = neuron.adjoint(p, d, variable("u"), variable("g"), h)
    roots = {"u": step.u, "spike": step.spike, "slope": slope}
    roots |= {f"s.{name}": x for name, x in step.states.items()}
    if back is not None:
        roots |= {"current": back.current, **{f"d.{name}": x for name, x in back.carried.items()}}
    numbers: dict[int, int] = {}
    nodes: list[list[Any]] = []
    for x in ordered(roots.values()):
        numbers[id(x)] = len(nodes)
        what = x.value.hex() if x.op == "constant" else x.name
        nodes.append([x.op, what, *(numbers[id(a)] for a in x.args)])
    data = {
        "format": _FORMAT,
        "name": neuron.name,
        "states": list(neuron.states),
        "carried": list(neuron.carried) if back is not None else [],
        "constants": {name: float(value).hex() for name, value in neuron.constants().items()},
        "surrogate": {
            "name": surrogate.name,
            "constants": {k: float(v).hex() for k, v in surrogate.constants().items()},
        },
        "tau_s": float(neuron.tau_s).hex(),
        "tau_rise": float(neuron.tau_rise).hex(),
        "threshold": float(neuron.threshold).hex(),
        "parameters": {each.name: str(getattr(neuron, each.name)) for each in fields(neuron)},  # type: ignore[arg-type]
        "nodes": nodes,
        "roots": {name: numbers[id(x)] for name, x in roots.items()},
    }
    return json.dumps(data, separators=(",", ":"))


def _placeholders(kind: str, names: Any) -> Names:
    return Names(kind, {name: Expr("variable", name=f"{kind}.{name}") for name in names})


class _Data:
    """What a text says, checked."""

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise SpecError(f"a neuron model has at most {_LONGEST:,} characters, got {len(text):,}")
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise SpecError(f"a neuron model of format {shown(data['format'])}; this version reads {_FORMAT}")
            self.name, self.states, self.carried = _word(data["name"]), _words(data["states"]), _words(data["carried"])
            self.constants = {_word(k): _number(v) for k, v in data["constants"].items()}
            self.surrogate_name = _word(data["surrogate"]["name"].replace("-", "_")).replace("_", "-")
            self.surrogate_constants = {_word(k): _number(v) for k, v in data["surrogate"]["constants"].items()}
            self.tau_s, self.threshold = _number(data["tau_s"]), _number(data["threshold"])
            self.tau_rise = _number(data["tau_rise"])
            self.parameters = {_word(k): str(v)[:100] for k, v in data["parameters"].items()}
            self.nodes, self.roots = data["nodes"], {str(k): int(v) for k, v in data["roots"].items()}
            if len(self.nodes) > _MOST_NODES:
                raise SpecError(f"a neuron model has at most {_MOST_NODES:,} operations, got {len(self.nodes):,}")
            self._check()
        except SpecError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise SpecError(f"the stored neuron model is damaged: {shown(error)}") from error

    def _check(self) -> None:
        kinds: list[bool] = []
        for number, (op, what, *args) in enumerate(self.nodes):
            if any(not isinstance(a, int) or not 0 <= a < number for a in args):
                raise ValueError(f"operation {number} asks for one after it")
            if op in ("variable", "constant"):
                count = 0
                if op == "constant":
                    _number(what)
                elif not all(part.isidentifier() for part in what.split(".", 1)):
                    raise ValueError(f"operation {number} has the name {what!r}")
            else:
                count = 1 if op == "surrogate" else OPERATIONS[op]
                if what is not None:
                    _word(what)
                if any(kinds[a] != (op == "where" and place == 0) for place, a in enumerate(args)):
                    raise ValueError(f"operation {number} takes a condition for a number")
            if len(args) != count:
                raise ValueError(f"operation {number}, {op}, takes {count} operands")
            kinds.append(op in CONDITIONS)
        wanted = {"u", "spike", "slope", *(f"s.{name}" for name in self.states)}
        if self.carried:
            wanted |= {"current", *(f"d.{name}" for name in self.carried)}
        if set(self.roots) != wanted or not all(0 <= n < len(self.nodes) for n in self.roots.values()):
            raise ValueError("its results are not those of its states")
        if any(kinds[n] != (root == "spike") for root, n in self.roots.items()):
            raise ValueError("a spike is a condition, and every other result a number")

    def built(self, known: Mapping[str, Expr], h: Callable[[Expr], Expr] | None, roots: tuple[str, ...]) -> list[Expr]:
        """The expressions of some results, in terms of the `known` variables."""
        made: list[Expr | None] = []
        needed = self._under(roots)
        for number, (op, what, *args) in enumerate(self.nodes):
            operands = tuple(made[a] for a in args)
            x: Expr | None = None
            if number not in needed:
                pass
            elif op == "variable":
                if what not in known:
                    raise SpecError(f"the stored neuron model is damaged: there is no {shown(what)}")
                x = known[what]
            elif op == "constant":
                x = Expr("constant", value=float(np.float32(_number(what))))
            elif op == "surrogate":
                inner = operands[0]
                assert h is not None
                assert inner is not None
                x = h(inner)
            else:
                x = Expr(op, operands, name=what)
            made.append(x)
        found = [made[self.roots[root]] for root in roots]
        return [x for x in found if x is not None]

    def _under(self, roots: tuple[str, ...]) -> set[int]:
        found: set[int] = set()
        waiting = [self.roots[root] for root in roots]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.nodes[number][2:]
        return found


@lru_cache(maxsize=64)
def _read(text: str) -> _Data:
    """A model and its surrogate are of one text."""
    return _Data(text)


def _word(x: Any) -> str:
    if not isinstance(x, str) or not x.isidentifier() or not x.isascii() or len(x) > 100 or x[0] == "_":
        raise ValueError(f"{x!r} is no name")
    return x


def _words(x: Any) -> tuple[str, ...]:
    return tuple(_word(each) for each in x)


def _number(x: Any) -> float:
    try:
        value = float.fromhex(x)
    except OverflowError:
        value = math.inf
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{x!r} is not finite in float32")
    return value


@dataclass(frozen=True)
class StoredSurrogate(Surrogate):
    """The surrogate of a stored model."""

    name: ClassVar[str] = "stored"
    text: str = ""

    def __post_init__(self) -> None:
        _ = self.data

    @property
    def data(self) -> _Data:
        """What the text says."""
        return _read(self.text)

    def constants(self) -> Mapping[str, float]:
        return self.data.surrogate_constants

    def expression(self, p: Names, x: Expr) -> Expr:
        known = {f"q.{name}": getattr(p, name) for name in self.data.surrogate_constants}
        return self.data.built({**known, "x": x}, None, ("slope",))[0]

    def primitive(self, x: AnyArray) -> AnyArray:
        raise NotImplementedError("a stored surrogate has no primitive, which is for tests of the model itself")

    def __str__(self) -> str:
        return self.data.surrogate_name


@dataclass(frozen=True, repr=False)
class StoredNeuron(NeuronModel):
    """A neuron model from its text."""

    name: ClassVar[str] = "stored"
    text: str = ""
    tau_s: float = field(default=4.0, init=False, compare=False)
    tau_rise: float = field(default=0.0, init=False, compare=False)
    threshold: float = field(default=1.0, init=False, compare=False)
    surrogate: Surrogate = field(default_factory=lambda: _UNSET, init=False, compare=False)

    def __post_init__(self) -> None:
        data = self.data
        object.__setattr__(self, "tau_s", steps("tau_s", data.tau_s))
        object.__setattr__(self, "tau_rise", rise_time("tau_rise", data.tau_rise))
        _ = self.psp
        object.__setattr__(self, "threshold", above_zero("threshold", data.threshold))
        object.__setattr__(self, "surrogate", StoredSurrogate(self.text))

    @property
    def data(self) -> _Data:
        """What the text says."""
        return _read(self.text)

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the states."""
        return self.data.states

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of what a written adjoint carries."""
        return self.data.carried

    def constants(self) -> Mapping[str, float]:
        return self.data.constants

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        known = {**self._constants(p), **{f"s.{name}": getattr(s, name) for name in self.states}, "i": i}
        u, spike, *states = self.data.built(known, None, ("u", "spike", *(f"s.{name}" for name in self.states)))
        return Step(u, spike, dict(zip(self.states, states, strict=True)))

    def adjoint(self, p: Names, d: Names, u: Expr, g: Expr, h: Callable[[Expr], Expr]) -> Adjoint | None:
        if not self.carried:
            return None
        known = {**self._constants(p), **{f"d.{name}": getattr(d, name) for name in self.carried}, "u": u, "g": g}
        current, *carried = self.data.built(known, h, ("current", *(f"d.{name}" for name in self.carried)))
        return Adjoint(current, dict(zip(self.carried, carried, strict=True)))

    def _constants(self, p: Names) -> dict[str, Expr]:
        return {f"p.{name}": getattr(p, name) for name in self.data.constants}

    def written(self) -> dict[str, str]:
        """The model's own name and parameters."""
        return {"neuron": self.data.name, **self.data.parameters}

    def __repr__(self) -> str:
        pairs = ", ".join(f"{name}={value}" for name, value in self.data.parameters.items())
        return f"{self.data.name}({pairs})"


_UNSET: Any = None


def from_text(text: str) -> StoredNeuron:
    """The model that `as_text` wrote.

    Raises:
        SpecError: the text is damaged.
    """
    return StoredNeuron(text)
