"""Segments of a network as differentiable functions of tensors: what the modules of nn.py call.

A segment is a population with what stands before it (stsbp_spec.plan), computed by the steps of the backend on the
device of its inputs, so that its bits and gradients are those of every backend. It is

- an `autograd.Function` that keeps what the steps leave, in ordinary code;
- a custom operator of `torch.library`, which `torch.compile` and `torch.export` take as it is; it computes the steps
  once more on its way back, and so does
- the function that `torch.func` transforms (`vmap`, `grad`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from stsbp_spec.collective import Part
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.graph import Edge, Input, Network, Neurons, Node, Op, Values, Weighted
from stsbp_spec.neurons.stored import as_text
from stsbp_spec.passes import Trace, back_through, through, together
from stsbp_spec.plan import Segment, plan
from stsbp_spec.rules import Deferred, Run
from stsbp_spec.typing import Shape
from torch.utils import _pytree as pytree

from stsbp_torch.backend import TorchBackend
from stsbp_torch.checks import check_finite, check_inputs
from stsbp_torch.layout import empty, laid_out

__all__ = [
    "Layer",
    "Piece",
    "Settings",
    "backend_of",
    "compute",
    "key_of",
    "known",
    "once",
    "one_by_one",
]

Found = TypeVar("Found")


@dataclass(frozen=True)
class Entering(Input):
    """What enters a layer that stands alone."""

    values: Values = field(default_factory=lambda: Values(()))

    def infer(self, *inputs: Values) -> Values:
        """As the layer was told."""
        return self.values


class Settings(NamedTuple):
    """How a segment is computed.

    Attributes:
        steps: `T`.
        training: whether spikes are dropped and the gains of training apply ...
        seed, step: ... and of which masks; the step may be a tensor, which no traced program has as a constant.
        precision: of the way back.
        checked: whose inputs are looked at, for messages; empty: they are known to be good.
        hint: what such a message ends with.
    """

    steps: int
    training: bool = False
    seed: int = 0
    step: int | torch.Tensor = 0
    precision: str = "fast"
    checked: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Piece:
    """A segment of a network."""

    network: Network
    index: int = 0

    @cached_property
    def segment(self) -> Segment[torch.Tensor]:
        """As the CPU computes it; what enters and leaves it is the same on every device."""
        return plan(_backend("cpu"), self.network).segments[self.index]

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the network's parameters in it."""
        found: list[str] = []
        for place in (place for step in self.segment.steps for place in step.places):
            if isinstance(place.node.op, Weighted):
                found.append(place.node.name)
            elif isinstance(place.node.op, Neurons):
                found += [*self.network.recurrent.get(place.node.name, ()), *place.parameters.values()]
        return tuple(found)


@dataclass(frozen=True)
class Layer:
    """Operations one after the other that stand alone: the network that they are hangs on the shape of their input.

    Args:
        ops: with their names in messages.
        values: what enters, of any shape.
    """

    ops: tuple[tuple[str, Op], ...]
    values: Values

    def at(self, inputs: Sequence[torch.Tensor], steps: int) -> Piece:
        """The network for some inputs."""
        (x,) = inputs
        return _network_of(self, tuple(int(n) for n in x.shape[2:]), bool(len(x) == 1 and steps > 1))


@lru_cache(maxsize=256)
def _network_of(layer: Layer, shape: Shape, static: bool) -> Piece:
    values = replace(layer.values, shape=shape, static=static)
    # What neurons learn has the name of what they read.
    source = layer.ops[0][0] if values.weighted else "input"
    nodes = [Node(source, Entering(shape, values=values))]
    for name, op in layer.ops:
        name = "neurons" if isinstance(op, Neurons) else name
        nodes.append(Node(name, op, (Edge(source),)))
        source = name
    return Piece(Network(tuple(nodes)))


_MADE: dict[str, Piece | Layer] = {}


def key_of(made: Piece | Layer) -> str:
    """What operators find a segment or a layer by: no other computation has it."""
    ops = made.ops if isinstance(made, Layer) else [(node.name, node.op) for node in made.network.nodes]
    edges = () if isinstance(made, Layer) else (made.index, [node.inputs for node in made.network.nodes])
    texts = [(name, as_text(op.model) if isinstance(op, Neurons) else repr(op)) for name, op in ops]
    text = repr((texts, edges, made.values if isinstance(made, Layer) else ()))
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    _MADE.setdefault(key, made)
    return key


def _piece(key: str, inputs: Sequence[torch.Tensor], steps: int) -> Piece:
    made = known(_MADE, key)
    return made.at(inputs, steps) if isinstance(made, Layer) else made


def known(made: Mapping[str, Found], key: str) -> Found:
    """What this process made under a key of a traced program; `SpecError` where it made nothing."""
    if key not in made:
        raise SpecError(
            "this program computes a network or a loss that was not made in this process: make the module that was "
            "exported, for example Network(spec), and call it once, before the program runs"
        )
    return made[key]


@cache
def _backend(device: str) -> TorchBackend:
    return TorchBackend(device)


def backend_of(x: torch.Tensor) -> TorchBackend:
    """The backend that computes on the device of `x`."""
    return _backend("cpu" if x.device.type == "cpu" else f"cuda:{x.device.index or 0}")


def compute(
    key: str, settings: Settings, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What a segment makes, float32 in the order of `Segment.left`; differentiable in `inputs` and `parameters`.

    Args:
        key: of the segment.
        settings: how.
        inputs: in the order of `Segment.sources`, `[1 or T, B, ...]`.
        parameters: in the order of `Piece.parameters`; weights are rounded to their grids here.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        steps, training, seed, step, *rest = settings
        number = step if isinstance(step, torch.Tensor) else torch.tensor(step)
        how = (key, steps, training, seed, *rest)
        return list(_Computed.apply(len(inputs), how, number, *inputs, *parameters))  # type: ignore[no-untyped-call]
    piece = _piece(key, inputs, settings.steps)
    return list(_Kept.apply(piece, settings, len(inputs), *inputs, *parameters))  # type: ignore[no-untyped-call]


_NO_SECOND = (
    "second derivatives are not defined, since the surrogate that stands for a spike's derivative has none: leave "
    "create_graph=True out"
)


def _forward(
    piece: Piece, settings: Settings, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], of_input: bool
) -> tuple[list[torch.Tensor], Trace[torch.Tensor]]:
    """What a segment makes and leaves; with `of_input` so that the way back leads to the inputs as well."""
    backend, batch = backend_of(inputs[0]), inputs[0].shape[1]
    walk = plan(backend, piece.network, of_input=of_input)
    segment = walk.segments[piece.index]
    given = {
        name: _native(settings, piece.network, name, x.detach())
        for name, x in zip(segment.sources, inputs, strict=True)
    }
    dropout = (settings.seed, int(settings.step)) if settings.training else None
    on_grid = _on_grid(piece, backend, dict(zip(piece.parameters, weights, strict=True)))
    run = Run(on_grid, settings.steps, dropout, Part(0, batch, batch))
    ((made, residuals),) = together(backend, run, [through(backend, segment, run, given)])
    outputs = [laid_out(made[name].float()) for name in segment.left]
    return outputs, Trace(backend, walk, run, outputs[-1], {}, lambda _: dict(residuals), {})


def _native(settings: Settings, network: Network, name: str, x: torch.Tensor) -> torch.Tensor:
    """An input as the steps take it: spikes and counts as bytes, all else as float32."""
    values = network.values[name]
    if settings.checked and values.weighted:
        check_finite(settings.checked, x)
    elif settings.checked:
        # Who gives a network images is told of their whole numbers.
        unit = 0 if isinstance(network.nodes[0].op, Entering) else values.exponent
        largest = values.maximum * 2.0**unit
        check_inputs(settings.checked, x * 2.0**unit if unit else x, values.exponent - unit, largest, settings.hint)
    whole = not values.weighted and values.exponent == 0 and values.maximum <= 255
    return laid_out(x.to(torch.uint8) if whole else x.float())


def _on_grid(piece: Piece, backend: TorchBackend, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights on their grids, and what neurons learned, which must lie in its domain.

    Of copies: storage that numpy has seen cannot be resized any more, as FSDP does with that of parameters.
    """
    found = {name: x.detach().clone() for name, x in weights.items()}
    for name, x in found.items():
        expected = piece.network.parameters[name].shape
        if tuple(x.shape) != expected:
            raise ShapeError(f"{name} has the shape {list(expected)}, got {list(x.shape)}")
    projections = [projection for projection in piece.network.projections if projection.name in weights]
    made = backend.weight_grids(projections, [found[projection.parameter] for projection in projections])
    found.update({projection.name: wq for projection, (wq, _) in zip(projections, made, strict=True)})
    for name, x in found.items():
        if (learned := piece.network.parameters[name].learned) is not None:
            low, high = (float(end) for end in torch.aminmax(x))
            if not learned.low <= low <= high <= learned.high:
                worst = high if high > learned.high else low
                raise NumericError(
                    f"{name} is {worst:g}, outside of its domain from {learned.low:g} to {learned.high:g}; call "
                    "clip_to_domain() after each step of the optimiser"
                )
    return found


def _backward(
    piece: Piece, trace: Trace[torch.Tensor], precision: Any, errors: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Errors of inputs, then gradients of parameters, from errors of the outputs; None: nothing comes back."""
    segment = trace.plan.segments[piece.index]
    waiting: dict[str, list[Any]] = {
        name: [laid_out(error)] for name, error in zip(segment.left, errors, strict=True) if error is not None
    }
    (found,) = together(trace.backend, trace.run, [back_through(trace, segment, waiting, precision)])
    rounded = {name: trace.backend.rounded(x) for name, x in found.items()}
    return [*(_total(waiting.get(name, [])) for name in segment.sources), *map(rounded.get, piece.parameters)]


def _total(errors: Sequence[torch.Tensor | Deferred[torch.Tensor]]) -> torch.Tensor | None:
    """The error of what a segment reads from those of its readers in it, which came from the last to the first."""
    arrays = [error.array() if isinstance(error, Deferred) else error for error in reversed(errors)]
    return laid_out(sum(arrays[1:], arrays[0])) if arrays else None


class _Kept(torch.autograd.Function):
    """A segment that keeps what its steps leave for the way back."""

    @staticmethod
    def forward(
        ctx: Any, piece: Piece, settings: Settings, count: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        of_input = any(ctx.needs_input_grad[3 : 3 + count])
        outputs, trace = _forward(piece, settings, tensors[:count], tensors[count:], of_input)
        ctx.set_materialize_grads(False)
        ctx.piece, ctx.precision, ctx.types = piece, settings.precision, [x.dtype for x in tensors]
        if any(ctx.needs_input_grad):
            left = trace.residuals(trace.plan.segments[piece.index]), dict(trace.run.weights)
            leaves, ctx.spec = pytree.tree_flatten(left)
            # What autograd saves is free again after the way back.
            ctx.save_for_backward(*(x for x in leaves if isinstance(x, torch.Tensor)))
            ctx.others = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
            ctx.backend, ctx.walk, ctx.run = trace.backend, trace.plan, replace(trace.run, weights={})
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SpecError(_NO_SECOND)
        tensors = iter(ctx.saved_tensors)
        leaves = [next(tensors) if other is None else other[0] for other in ctx.others]
        residuals, weights = pytree.tree_unflatten(leaves, ctx.spec)
        run = replace(ctx.run, weights=weights)
        trace = Trace(ctx.backend, ctx.walk, run, torch.empty(0), {}, lambda _: residuals, {})
        found = _backward(ctx.piece, trace, ctx.precision, errors)
        return None, None, None, *(x if x is None else x.to(t) for x, t in zip(found, ctx.types, strict=True))


@torch.library.custom_op("stsbp::segment", mutates_args=())
def _segment(
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    number: torch.Tensor,
    key: str,
    steps: int,
    training: bool,
    seed: int,
    precision: str,
    checked: str,
    hint: str,
) -> list[torch.Tensor]:
    settings = Settings(steps, training, seed, number, precision, checked, hint)
    return _forward(_piece(key, inputs, steps), settings, inputs, weights, of_input=False)[0]


@_segment.register_fake
def _(
    inputs: list[torch.Tensor], weights: list[torch.Tensor], number: torch.Tensor, key: str, steps: int, *rest: Any
) -> list[torch.Tensor]:
    piece, x = _piece(key, inputs, steps), inputs[0]
    every = [piece.network.values[name] for name in piece.segment.left]
    shapes = [(1 if values.static else steps, x.shape[1], *values.shape) for values in every]
    return [empty(shape, torch.float32, x.device) for shape in shapes]


@torch.library.custom_op("stsbp::segment_back", mutates_args=())
def _segment_back(
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    errors: list[torch.Tensor],
    of_input: bool,
    number: torch.Tensor,
    key: str,
    steps: int,
    training: bool,
    seed: int,
    precision: str,
) -> list[torch.Tensor]:
    piece, settings = _piece(key, inputs, steps), Settings(steps, training, seed, number, precision)
    _, trace = _forward(piece, settings, inputs, weights, of_input=of_input)
    found = _backward(piece, trace, settings.precision, errors)
    wanted = found if of_input else found[len(inputs) :]
    tensors = [*(inputs if of_input else []), *weights]
    return [torch.zeros_like(x) if g is None else g.to(x.dtype) for x, g in zip(tensors, wanted, strict=True)]


@_segment_back.register_fake
def _(
    inputs: list[torch.Tensor], weights: list[torch.Tensor], errors: list[torch.Tensor], of_input: bool, *rest: Any
) -> list[torch.Tensor]:
    below = [empty(x.shape, x.dtype, x.device) for x in inputs] if of_input else []
    return below + [torch.empty_like(w) for w in weights]


class _Once(torch.autograd.Function):
    """A way back, which has none itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Callable[..., list[torch.Tensor]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(call(*tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Any:
        raise SpecError(_NO_SECOND)


def once(call: Callable[..., list[torch.Tensor]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An operator of a way back; its derivative is refused."""
    if torch.compiler.is_compiling():
        return tuple(call(*tensors))
    found: tuple[torch.Tensor, ...] = _Once.apply(call, *tensors)  # type: ignore[no-untyped-call]
    return found


def one_by_one(op: Any) -> Any:
    """How an operator is mapped: by one call for each."""

    def at(i: int, x: Any, axis: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [at(i, each, own) for each, own in zip(x, axis or [None] * len(x), strict=True)]
        return x if axis is None else x.select(axis, i)

    def rule(info: Any, axes: Sequence[Any], *given: Any) -> tuple[list[torch.Tensor], list[int]]:
        calls = [op(*(at(i, x, axis) for x, axis in zip(given, axes, strict=True))) for i in range(info.batch_size)]
        stacked = [torch.stack(each) for each in zip(*calls, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


torch.library.register_vmap(_segment, one_by_one(torch.ops.stsbp.segment))
torch.library.register_vmap(_segment_back, one_by_one(torch.ops.stsbp.segment_back))


class _Computed(torch.autograd.Function):
    """A segment by the operators: nothing is kept, so that it can be traced and mapped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        count: int, how: tuple[Any, ...], number: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return tuple(torch.ops.stsbp.segment(list(tensors[:count]), list(tensors[count:]), number, *how))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.count, ctx.how, number, *tensors = inputs
        ctx.save_for_backward(number, *tensors)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_input, count, ends = any(ctx.needs_input_grad[3 : 3 + ctx.count]), ctx.count, len(errors)
        how = ctx.how[:5]

        def call(*given: torch.Tensor) -> list[torch.Tensor]:
            number, *tensors = given[ends:]
            errors = list(given[:ends])
            return torch.ops.stsbp.segment_back(  # type: ignore[no-any-return]
                tensors[:count], tensors[count:], errors, of_input, number, *how
            )

        found = once(call, *errors, *ctx.saved_tensors)
        return None, None, None, *([] if of_input else [None] * count), *found
