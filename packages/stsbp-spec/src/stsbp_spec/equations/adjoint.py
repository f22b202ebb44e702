"""The backward pass of a step, derived from the step by reverse-mode differentiation, in one fixed order.

The order is part of the rules of exact arithmetic. Nodes are visited from the last to the first of `expr.ordered`. At
each node, the operands get their terms from left to right. The terms of a node are added in the order in which they
arise:

    x + y   d, d              x < y, x >= y       nothing
    x - y   d, -d             where(o, x, y)      (x - y) d to a spike o; where(o, d, 0); where(o, 0, d)
    x * y   y d, x d          spike(u, v)         r = h(u - v) d; r, -r
    x / y   d / y, -(q d)/y   snap(x)             d
    -x      -d                abs(x)              where(x < 0, -d, d)
    sqrt(x) d / (q + q)       exp(x)              q d                         q: the result, d: its cotangent

Every product, every quotient and every factor in this table is snapped to zero below 2^-100. Otherwise they could
become so small that libraries which flush subnormal numbers would continue with other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, islice

from stsbp_spec.equations.expressions import Expr, constant, ordered, snap, variable, where
from stsbp_spec.errors import SpecError

__all__ = ["derive", "free_variables", "kept_values", "simplified", "substituted"]

_ZERO = constant(0)
_MOST_VISITS = 2**17
"""Largest number of nodes to visit in the search for the fewest values to keep."""


def derive(
    results: Iterable[tuple[Expr, Expr]], variables: Sequence[Expr], surrogate: Callable[[Expr], Expr]
) -> list[Expr]:
    """Cotangents of `variables`, simplified.

    Args:
        results: the results of a step, each with its cotangent.
        variables: variables whose cotangents are computed.
        surrogate: `h(x)` of `x = u - threshold`.
    """
    simplify = _Simplifier()
    pairs = [(x.args[0] if x.op == "unsnapped" else x, d) for x, d in results]
    cotangents: dict[int, Expr] = {}

    def add(x: Expr, term: Expr) -> None:
        cotangents[id(x)] = cotangents[id(x)] + term if id(x) in cotangents else term

    for x, d in pairs:
        add(x, d)
    for x in reversed(ordered(x for x, _ in pairs)):
        if id(x) in cotangents:
            for operand, term in _terms(x, cotangents[id(x)], surrogate, partial(_factor, simplify)):
                add(operand, term)
    return simplified([cotangents.get(id(x), _ZERO) for x in variables])


def _terms(
    x: Expr, d: Expr, surrogate: Callable[[Expr], Expr], factor: Callable[[Expr], Expr]
) -> list[tuple[Expr, Expr]]:
    a = x.args
    if x.op == "add":
        return [(a[0], d), (a[1], d)]
    if x.op == "sub":
        return [(a[0], d), (a[1], -d)]
    if x.op == "mul":
        return [(a[0], snap(factor(a[1]) * d)), (a[1], snap(factor(a[0]) * d))]
    if x.op == "div":
        return [(a[0], snap(d / factor(a[1]))), (a[1], -snap(snap(factor(x) * d) / factor(a[1])))]
    if x.op == "neg":
        return [(a[0], -d)]
    if x.op == "snap":
        return [(a[0], d)]
    if x.op == "where":
        number = [(a[0], snap(factor(a[1] - a[2]) * d))] if a[0].op == "spike" else []
        return [*number, (a[1], where(a[0], d, 0)), (a[2], where(a[0], 0, d))]
    if x.op == "spike":
        r = snap(surrogate(a[0] - a[1]) * d)
        return [(a[0], r), (a[1], -r)]
    if x.op == "abs":
        return [(a[0], where(a[0] < 0, -d, d))]
    if x.op == "sqrt":
        return [(a[0], snap(d / factor(x + x)))]
    if x.op == "exp":
        return [(a[0], snap(factor(x) * d))]
    return []


def _factor(simplify: _Simplifier, x: Expr) -> Expr:
    """A value of the step, used as a factor: snapped, unless it already is."""
    x = simplify(x)
    inner = x.args[0] if x.op == "neg" else x
    return x if inner.op in ("variable", "constant", "snap") else snap(x)


def simplified(roots: Sequence[Expr]) -> list[Expr]:
    """`roots` without additions of zero, products with zero or one, and repeated snaps. Their values are the same."""
    simplify = _Simplifier()
    return [simplify(x) for x in roots]


class _Simplifier:
    """Implements `simplified`, and visits no node twice."""

    def __init__(self) -> None:
        # Keep the nodes themselves alive, so that no new node can get the `id` of a deleted one.
        self._results: dict[int, tuple[Expr, Expr]] = {}

    def __call__(self, x: Expr) -> Expr:
        stack = [x]
        while stack:
            node = stack[-1]
            if missing := [a for a in node.args if id(a) not in self._results] if id(node) not in self._results else []:
                stack += missing
                continue
            stack.pop()
            if id(node) not in self._results:
                operands = tuple(self._results[id(operand)][1] for operand in node.args)
                self._results[id(node)] = node, _simplified_node(node, operands)
        return self._results[id(x)][1]


def _simplified_node(x: Expr, operands: tuple[Expr, ...]) -> Expr:
    if x.op == "add" and _is(operands[0], 0):
        return operands[1]
    if x.op in ("add", "sub") and _is(operands[1], 0):
        return operands[0]
    if x.op == "sub" and _is(operands[0], 0):
        return _simplified_node(-operands[1], (operands[1],))
    if x.op == "mul" and (_is(operands[0], 0) or _is(operands[1], 0)):
        return _ZERO
    if x.op == "mul" and _is(operands[0], 1):
        return operands[1]
    if x.op in ("mul", "div") and _is(operands[1], 1):
        return operands[0]
    if x.op in ("div", "neg", "snap") and _is(operands[0], 0):
        return _ZERO
    if x.op == "neg" and operands[0].op == "neg":
        return operands[0].args[0]
    if x.op == "snap" and operands[0].op == "snap":
        return operands[0]
    if x.op == "where" and operands[1].op == operands[2].op == "constant" and operands[1].value == operands[2].value:
        return operands[1]
    return x.with_operands(operands)


def _is(x: Expr, value: float) -> bool:
    return x.op == "constant" and x.value == value


def free_variables(roots: Iterable[Expr]) -> list[str]:
    """Names of the variables in the expressions `roots`, in order."""
    return list(dict.fromkeys(str(x.name) for x in ordered(roots) if x.op == "variable"))


def substituted(roots: Sequence[Expr], replacements: Mapping[int, Expr]) -> list[Expr]:
    """`roots` with replacements for the nodes whose `id` is in `replacements`. Nodes that only these contain are not
    visited."""
    replaced: dict[int, Expr] = dict(replacements)
    stack = [*roots]
    while stack:
        x = stack[-1]
        if missing := [operand for operand in x.args if id(operand) not in replaced] if id(x) not in replaced else []:
            stack += missing
            continue
        stack.pop()
        if id(x) not in replaced:
            replaced[id(x)] = x.with_operands(tuple(replaced[id(operand)] for operand in x.args))
    return [replaced[id(x)] for x in roots]


def kept_values(
    roots: Sequence[Expr], available: Iterable[str], free: Mapping[str, Expr], candidates: Mapping[str, Expr]
) -> tuple[dict[str, Expr], list[Expr]]:
    """The smallest set of values that a forward step must keep so that the backward pass can be computed.

    Args:
        roots: the backward pass, in terms of nodes of the step.
        available: variables that are available in any case.
        free: values of the step that are kept in any case, by name.
        candidates: other values of the step that may be kept, by name.

    Returns:
        The values to keep by name, beginning with the values of `free` that are read; and `roots` in terms of variables
        with these names.

    Raises:
        SpecError: the candidates do not suffice.
    """
    available_names = set(available)
    subsets = (chosen for count in range(len(candidates) + 1) for chosen in combinations(candidates, count))
    # If the search would take too long, keep all values that are read.
    max_subsets = _MOST_VISITS // (1 + len(ordered(roots)))
    for chosen in chain(islice(subsets, max_subsets), [tuple(candidates)]):
        values = {**free, **{name: candidates[name] for name in chosen}}
        replaced = substituted(roots, {id(x): variable(name) for name, x in values.items()})
        read_names = [name for name in free_variables(replaced) if name not in available_names]
        if all(name in values for name in read_names):
            return {name: x for name, x in values.items() if name in read_names}, replaced
    raise SpecError("the backward pass needs values of the step that have no name; name them with named(...)")
