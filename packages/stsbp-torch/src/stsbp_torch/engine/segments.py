"""Segments of a network as differentiable functions of tensors, which the modules of nn.py call.

A segment is a population with the operations before it (stsbp_spec.engine.plan). The steps of the backend compute it on
the device of its inputs, so its bits and gradients are the same as in every backend. There are three forms of a
segment:

- In ordinary code, it is an `autograd.Function` that keeps the residuals of the steps.
- For `torch.compile` and `torch.export`, it is a custom operator of `torch.library`. The operator appears unchanged in
  the traced program. Its backward pass computes the steps of the forward pass again.
- For `torch.func` (`vmap`, `grad`), it is a function that can be transformed. Its backward pass computes the steps of
  the forward pass again, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.passes import Trace, backward_segment, forward_segment, states_after
from stsbp_spec.engine.plan import Delays, Population, Segment, plan
from stsbp_spec.engine.rules import Deferred, PassContext
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.models.neurons.stored import as_text
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node, Op, Projection, Values, Weighted
from stsbp_spec.networks.ops.batchnorm import STATISTICS, updated_statistic
from stsbp_spec.networks.ops.delay import LearnedDelay
from stsbp_spec.typing import Shape
from torch.utils import _pytree as pytree

from stsbp_torch.backend import TorchBackend
from stsbp_torch.engine.checks import RETURNED, check_finite, check_inputs, check_state
from stsbp_torch.engine.layout import empty, laid_out

__all__ = [
    "SegmentKey",
    "StandaloneLayer",
    "TorchSegment",
    "TorchSegmentOutput",
    "TorchSegmentSettings",
    "backend_of",
    "call_backward_operator",
    "compute",
    "map_by_loop",
    "registered",
    "segment_key_of",
]

Registered = TypeVar("Registered")
States: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LayerInput(Input):
    """The input of a layer that is used on its own."""

    values: Values = field(default_factory=lambda: Values(()))

    def infer(self, *inputs: Values) -> Values:
        """The description of the input that was given to the layer."""
        return self.values


class TorchSegmentSettings(NamedTuple):
    """How a segment is computed.

    Attributes:
        steps: `T`.
        training: whether dropout and the gains of training apply.
        seed, step: seed and step of the dropout masks. The step may be a tensor, so that it is not a constant in a
            traced program.
        precision: precision of the backward pass.
        full: whether the segment takes and returns a state, and returns potentials.
        checked: name, for messages, of the module whose inputs are checked; empty: the inputs are not checked.
        hint: end of such a message.
        may_be_scaled: whether the check looks for pixels that were scaled to 0 to 1.
    """

    steps: int
    training: bool = False
    seed: int = 0
    step: int | torch.Tensor = 0
    precision: str = "fast"
    full: bool = False
    checked: str = ""
    hint: str = ""
    may_be_scaled: bool = False


class TorchSegmentOutput(NamedTuple):
    """The results of a segment.

    Attributes:
        outputs: outputs in the order of `Segment.outputs`, float32: each as often as edges read it, because
            autograd adds the errors of several readers of one tensor in another order than the spec.
        potentials: potentials of the segment's population, float32 `[T, B, ...]`, if `full`; None: `full` is false, or
            there is no population.
        statistics: running statistics after the batch, by the names of the network, in training.
        state: state for the next steps, by the names of `passes.states_after`, float32, if `full`.
    """

    outputs: list[torch.Tensor]
    potentials: torch.Tensor | None
    statistics: dict[str, torch.Tensor]
    state: dict[str, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class TorchSegment:
    """A segment of a network."""

    network: Network
    index: int = 0

    @cached_property
    def segment(self) -> Segment[torch.Tensor]:
        """The segment as the CPU computes it, node by node. Its inputs and outputs are the same on every device."""
        return plan(_backend("cpu"), self.network, fused=False).segments[self.index]

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the outputs of other segments that each edge into the segment reads, in order."""
        segment = self.segment
        return tuple(source for step in segment.steps for source in step.sources if source in segment.sources)

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """How many edges of later segments read each output. The output of the network has one reader more."""
        walk = plan(_backend("cpu"), self.network, fused=False)
        later_reads = [
            name for i in range(self.index + 1, len(walk.segments)) for name in TorchSegment(self.network, i).reads
        ]
        return tuple([*later_reads, walk.output].count(name) for name in self.segment.outputs)

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """Projections in the segment, including those of a recurrence."""
        return self.segment.projections(self.network)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the network's parameters in the segment."""
        names: list[str] = []
        by_name = {projection.name: projection.parameter for projection in self.projections}
        for bound_node in self.segment.bound_nodes:
            name, op = bound_node.node.name, bound_node.node.op
            if isinstance(op, Weighted):
                names += [
                    by_name[name],
                    *(f"{name}.{parameter}" for parameter in ({} if op.norm is None else op.norm.learned())),
                ]
            elif isinstance(op, Neurons):
                loops = self.network.recurrent.get(name, ())
                names += [*(by_name[loop] for loop in loops), *bound_node.parameters.values()]
            elif isinstance(op, LearnedDelay):
                names += bound_node.parameters.values()
        return tuple(dict.fromkeys(names))

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Names of the segment's running statistics."""
        names = {bound_node.node.name for bound_node in self.segment.bound_nodes}
        return tuple(name for name in self.network.statistics if name.rpartition(".")[0] in names)

    @cached_property
    def fires(self) -> bool:
        """Whether it ends with a population."""
        return self.segment.population is not None

    @cached_property
    def states(self) -> tuple[States, States]:
        """Names in the states that the segment returns in evaluation and in training, with their numbers of arrays.

        The numbers can differ, because filters with different gains have states of their own.
        """
        evaluation, training = (tuple(self._states(training)) for training in (False, True))
        return evaluation, training

    def _states(self, training: bool) -> Iterator[tuple[str, int]]:
        for step in self.segment.steps:
            yield from ((edge, 1) for edge in step.delayed.values())
            if isinstance(step, Population):
                yield step.name, 1 + len(step.equations[training].forward.states)
            elif isinstance(step, Delays):
                yield step.name, 1

    def shape_of_state(self, name: str) -> tuple[int, Shape]:
        """Number of steps in an array of the state, and shape of the array for one sample."""
        source, _, edge = name.partition(">")
        op = next(node.op for node in self.network.nodes if node.name == source)
        kept_steps = op.kept_steps if isinstance(op, LearnedDelay) else 1
        return int(edge.rpartition("@")[2]) if edge else kept_steps, self.network.values[source].shape


@dataclass(frozen=True)
class StandaloneLayer:
    """A sequence of operations that is used on its own. The network that it forms depends on the shape of its input.

    Args:
        ops: the operations, with their names for messages.
        values: description of the input; its shape is ignored.
    """

    ops: tuple[tuple[str, Op], ...]
    values: Values

    @property
    def fires(self) -> bool:
        """Whether it ends with a population."""
        return isinstance(self.ops[-1][1], Neurons)

    @property
    def states(self) -> tuple[States, States]:
        """See `TorchSegment.states`."""
        op = self.ops[-1][1]
        if not isinstance(op, Neurons):
            return (), ()
        equations = neuron_equations(self.values.filter(training=False), op.model)
        neuron_states = (("neurons", 1 + len(equations.forward.states)),)
        return neuron_states, neuron_states

    def segment_for(self, inputs: Sequence[torch.Tensor], steps: int) -> TorchSegment:
        """The network for these inputs."""
        (x,) = inputs
        return _network_of(self, tuple(int(n) for n in x.shape[2:]), bool(len(x) == 1 and steps > 1))


@lru_cache(maxsize=256)
def _network_of(layer: StandaloneLayer, shape: Shape, static: bool) -> TorchSegment:
    values = replace(layer.values, shape=shape, static=static)
    # Learned parameters of neurons are named after the node that the neurons read.
    source = layer.ops[0][0] if values.weighted else "input"
    nodes = [Node(source, LayerInput(shape, values=values))]
    for name, op in layer.ops:
        name = "neurons" if isinstance(op, Neurons) else name
        nodes.append(Node(name, op, (Edge(source),)))
        source = name
    return TorchSegment(Network(tuple(nodes)))


_REGISTRY: dict[str, TorchSegment | StandaloneLayer] = {}


class SegmentKey(NamedTuple):
    """A segment or a layer, in the form in which traced programs contain it.

    Attributes:
        key: unique key by which operators find the segment or layer.
        copies: `TorchSegment.copies`.
        fires: whether it ends with a population, which has potentials.
        statistics: `TorchSegment.statistics`.
        states: `TorchSegment.states`.
    """

    key: str
    copies: tuple[int, ...]
    fires: bool
    statistics: tuple[str, ...]
    states: tuple[States, States]

    def result_counts(self, settings: TorchSegmentSettings) -> tuple[int, int, int]:
        """Number of outputs, of potentials and of statistics."""
        statistics = len(self.statistics) if settings.training else 0
        return sum(self.copies), int(settings.full and self.fires), statistics


def segment_key_of(segment: TorchSegment | StandaloneLayer) -> SegmentKey:
    """Register a segment or a layer in this process."""
    ops = (
        segment.ops
        if isinstance(segment, StandaloneLayer)
        else [(node.name, node.op) for node in segment.network.nodes]
    )
    edges = (
        () if isinstance(segment, StandaloneLayer) else (segment.index, [node.inputs for node in segment.network.nodes])
    )
    texts = [(name, as_text(op.model) if isinstance(op, Neurons) else repr(op)) for name, op in ops]
    text = repr((texts, edges, segment.values if isinstance(segment, StandaloneLayer) else ()))
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    _REGISTRY.setdefault(key, segment)
    if isinstance(segment, TorchSegment):
        return SegmentKey(key, segment.copies, segment.fires, segment.statistics, segment.states)
    return SegmentKey(key, (1,), segment.fires, (), segment.states)


def _segment_for(key: str, inputs: Sequence[torch.Tensor], steps: int) -> TorchSegment:
    segment = registered(_REGISTRY, key)
    return segment.segment_for(inputs, steps) if isinstance(segment, StandaloneLayer) else segment


def registered(registry: Mapping[str, Registered], key: str) -> Registered:
    """The object that this process registered under a key of a traced program; `SpecError` if there is none."""
    if key not in registry:
        raise SpecError(
            "this program uses a network or a loss that was not created in this process; before "
            "running it, create the exported module, for example Network(spec), and call it once"
        )
    return registry[key]


@cache
def _backend(device: str) -> TorchBackend:
    return TorchBackend(device)


def backend_of(x: torch.Tensor) -> TorchBackend:
    """The backend for the device of `x`."""
    if x.device.type not in ("cpu", "cuda"):
        raise BackendError(f"the modules compute on cpu and cuda, got a tensor on the device {x.device}; move it there")
    return _backend("cpu" if x.device.type == "cpu" else f"cuda:{x.device.index or 0}")


def compute(
    handle: SegmentKey,
    settings: TorchSegmentSettings,
    inputs: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    carried: Sequence[torch.Tensor] = (),
) -> TorchSegmentOutput:
    """Compute a segment. Outputs and potentials are differentiable in `inputs` and `parameters`.

    Args:
        handle: the segment.
        settings: how the segment is computed.
        inputs: inputs in the order of `TorchSegment.reads`, `[1 or T, B, ...]`.
        parameters: parameters in the order of `TorchSegment.parameters`. This function rounds weights to their grids.
        carried: running statistics in the order of `TorchSegment.statistics` and, if `full`, the arrays of the state in
            the order of `TorchSegment.states`. Without these arrays, the segment starts at rest.
    """
    sizes, tensors = (len(inputs), len(parameters)), (*inputs, *parameters, *carried)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        steps, training, seed, step, *options = settings
        number = step if isinstance(step, torch.Tensor) else torch.tensor(step, dtype=torch.int64, device="cpu")
        operator_options = (handle.key, steps, training, seed, *options)
        results = list(_Computed.apply(handle, sizes, operator_options, number, *tensors))  # type: ignore[no-untyped-call]
    else:
        results = list(_SegmentWithResiduals.apply(handle, settings, sizes, *tensors))  # type: ignore[no-untyped-call]
    outputs, potentials, statistics = handle.result_counts(settings)
    new_statistics = results[outputs + potentials : outputs + potentials + statistics]
    state_arrays = results[outputs + potentials + statistics :]
    state: dict[str, tuple[torch.Tensor, ...]] = {}
    if settings.full:
        for name, count in handle.states[settings.training]:
            state[name], state_arrays = tuple(state_arrays[:count]), state_arrays[count:]
    running_statistics = dict(zip(handle.statistics, new_statistics, strict=True)) if settings.training else {}
    return TorchSegmentOutput(results[:outputs], results[outputs] if potentials else None, running_statistics, state)


_NO_SECOND = (
    "second derivatives are not defined, because stsbp defines no derivative of a surrogate "
    "derivative; leave create_graph=True out"
)


def _forward(
    torch_segment: TorchSegment,
    settings: TorchSegmentSettings,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    carried: Sequence[torch.Tensor],
    of_input: bool,
) -> tuple[list[torch.Tensor], Trace[torch.Tensor]]:
    """The results and the residuals of a segment. `of_input`: the backward pass is to reach the inputs as well."""
    backend, batch = backend_of(inputs[0]), inputs[0].shape[1]
    walk = plan(backend, torch_segment.network, of_input=of_input, fused=not settings.full)
    segment = walk.segments[torch_segment.index]
    values = {
        name: _native(settings, torch_segment.network, name, x.detach())
        for name, x in dict(zip(torch_segment.reads, inputs, strict=True)).items()
    }
    dropout = (settings.seed, int(settings.step)) if settings.training else None
    statistics = {name: x.detach() for name, x in zip(torch_segment.statistics, carried, strict=False)}
    # In training, batches are normalised by their own statistics.
    for name, x in () if settings.training else statistics.items():
        domain = STATISTICS[name.rpartition(".")[2]]
        _check_domain(name, x, domain, "load running statistics of a network whose training stayed finite")
    on_grid = _on_grid(torch_segment, backend, dict(zip(torch_segment.parameters, weights, strict=True))) | statistics
    initial_state = _state(torch_segment, settings, carried[len(statistics) :], batch) if settings.full else None
    run = PassContext(on_grid, settings.steps, dropout, BatchSlice(0, batch, batch), initial_states=initial_state)
    outputs, residuals = forward_segment(backend, segment, run, values)
    results = [laid_out(outputs[name].float()) for name in segment.outputs]
    if settings.full and torch_segment.fires:
        results.append(
            laid_out(backend.neuron_potentials(segment.steps[-1].population(residuals[segment.steps[-1].name])))
        )
    if settings.training:
        results += _updated_statistics(torch_segment, backend, segment, residuals, statistics)
    if settings.full:
        results += [x.float() for arrays in states_after(segment, residuals).values() for x in arrays]
    return results, Trace(backend, walk, run, results[0], {}, lambda _: dict(residuals), {})


def _state(
    torch_segment: TorchSegment, settings: TorchSegmentSettings, arrays: Sequence[torch.Tensor], batch: int
) -> dict[str, tuple[torch.Tensor, ...]]:
    """The state by name, in the types that the steps take; empty if there are no arrays."""
    if not arrays:
        return {}
    remaining, state = iter(arrays), dict[str, tuple[torch.Tensor, ...]]()
    for name, count in torch_segment.states[settings.training]:
        length, shape = torch_segment.shape_of_state(name)
        state_arrays = [laid_out(next(remaining).detach()) for _ in range(count)]
        for x in state_arrays:
            if x.dtype != torch.float32 or tuple(x.shape) != (length, batch, *shape):
                raise ShapeError(
                    f"the arrays of {name} in the state must be float32 {[length, batch, *shape]}, got {x.dtype} "
                    f"{list(x.shape)}; {RETURNED} for the same samples"
                )
            check_state(name, x)
        if _is_bytes(torch_segment.network, name.partition(">")[0]):
            spikes = state_arrays[0].to(torch.uint8)
            if not torch.equal(spikes.float(), state_arrays[0]):
                raise ShapeError(f"the spikes of {name} in the state must be whole numbers from 0 to 255; {RETURNED}")
            largest = torch_segment.network.values[name.partition(">")[0]].maximum
            if bool((spikes > largest).any()):
                raise ShapeError(f"the spikes of {name} in the state are more than {largest:g}; {RETURNED}")
            state_arrays[0] = spikes
        state[name] = tuple(state_arrays)
    return state


def _is_bytes(network: Network, name: str) -> bool:
    """Whether the steps take the output of a node, spikes or counts, as bytes."""
    node, values = next(node for node in network.nodes if node.name == name), network.values[name]
    if node.op.keeps_bytes:
        return all(_is_bytes(network, edge.source) for edge in node.inputs)
    is_count = isinstance(node.op, (Input, Neurons)) and not values.weighted
    return is_count and values.exponent == 0 and values.maximum <= 255


def _updated_statistics(
    torch_segment: TorchSegment,
    backend: TorchBackend,
    segment: Segment[torch.Tensor],
    residuals: Mapping[str, Any],
    statistics: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """The running statistics after a batch."""
    batch: dict[str, torch.Tensor] = {}
    for step in segment.steps:
        if step.normalises:
            batch.update(step.statistics(residuals[step.name]))
    norms = {projection.name: projection.synapse.norm for projection in torch_segment.network.normalised}
    return [
        backend.of_channels(updated_statistic, x, batch[name], norm=norms[name.rpartition(".")[0]])
        for name, x in statistics.items()
    ]


def _native(settings: TorchSegmentSettings, network: Network, name: str, x: torch.Tensor) -> torch.Tensor:
    """An input in the type that the steps take: spikes and counts as bytes, everything else as float32."""
    values = network.values[name]
    if settings.checked and values.weighted:
        check_finite(settings.checked, x)
    elif settings.checked:
        # For images at the input of a network, the message quotes whole numbers.
        unit = 0 if isinstance(network.nodes[0].op, LayerInput) else values.exponent
        largest = values.maximum * 2.0**unit
        check_inputs(
            settings.checked,
            x * 2.0**unit if unit else x,
            values.exponent - unit,
            largest,
            settings.hint,
            may_be_scaled=settings.may_be_scaled,
        )
    return laid_out(x.to(torch.uint8) if _is_bytes(network, name) else x.float())


def _on_grid(
    torch_segment: TorchSegment, backend: TorchBackend, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Weights on their grids, and learned parameters of neurons, which must be in their domains.

    The function copies the parameters first. FSDP resizes the storage of parameters, and torch cannot resize storage
    that numpy has used.
    """
    on_grid = {name: x.detach().clone() for name, x in weights.items()}
    for name, x in on_grid.items():
        expected = torch_segment.network.parameters[name].shape
        if tuple(x.shape) != expected:
            raise ShapeError(f"{name} has the shape {list(expected)}, got {list(x.shape)}")
    rounded = backend.weight_grids(
        torch_segment.projections, [on_grid[projection.parameter] for projection in torch_segment.projections]
    )
    masters = {name: on_grid[name] for name in weights}
    for projection, (wq, chosen) in zip(torch_segment.projections, rounded, strict=True):
        on_grid[projection.name] = wq
        if projection.synapse.norm is not None:
            unit = chosen.exponent + projection.input.exponent
            on_grid[f"{projection.name}.exponent"] = torch.tensor([unit], dtype=torch.int32, device=wq.device)
    for name, x in masters.items():
        if (learned := torch_segment.network.parameters[name].learned) is not None:
            _check_domain(name, x, learned, "call clip_to_domain() after each step of the optimiser")
    return on_grid


def _check_domain(name: str, x: torch.Tensor, domain: Learned, remedy: str) -> None:
    """Raise `NumericError` unless all elements of `x`, any shape, are in a domain."""
    # One copy to the host, for which a GPU is waited for.
    low, high = torch.stack(torch.aminmax(x)).tolist()
    if not domain.low <= low <= high <= domain.high:
        worst = high if high > domain.high else low
        raise NumericError(
            f"{name} is {worst:g}, outside of its domain from {domain.low:g} to {domain.high:g}; {remedy}"
        )


def _backward(
    torch_segment: TorchSegment, trace: Trace[torch.Tensor], precision: Any, errors: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Error signals of the inputs, then gradients of the parameters, from the error signals of the results.

    None stands for an input or parameter that no error signal reaches.
    """
    segment, population = trace.plan.segments[torch_segment.index], trace.plan.segments[torch_segment.index].population
    pending: dict[str, list[Any]] = {}
    edges = [name for name, count in zip(segment.outputs, torch_segment.copies, strict=True) for _ in range(count)]
    for name, error in reversed([*zip(edges, errors, strict=False)]):
        if error is not None:
            pending.setdefault(name, []).append(laid_out(error))
    residuals = trace.residuals(segment)
    error = errors[len(edges)] if trace.run.initial_states is not None and population is not None else None
    # Zeros are left out, because torch.func and torch.compile also give them where a loss reads no potentials.
    if population is not None and error is not None and bool(error.any()):
        pending.setdefault(population, [torch.zeros_like(error)])
        residuals[population] = residuals[population]._replace(error=laid_out(error))
    trace.residuals = lambda _: residuals
    gradients = backward_segment([trace], segment, [pending], precision)
    rounded = {name: trace.backend.rounded(x) for name, x in (*gradients.items(), *trace.batch_gradients.items())}
    for projection in torch_segment.projections:
        if projection.shares is not None and (gradient := rounded.pop(projection.name, None)) is not None:
            rounded[projection.shares] = (
                rounded[projection.shares] + gradient if projection.shares in rounded else gradient
            )
    return [*_input_gradients(torch_segment.reads, pending), *map(rounded.get, torch_segment.parameters)]


def _input_gradients(reads: Sequence[str], pending: Mapping[str, list[Any]]) -> Iterator[torch.Tensor | None]:
    """The error signal of each edge. `pending` has those of each source, beginning with the last one.

    An edge without an error has none in `pending`, so the errors are given to the first edges. This keeps their order.
    """
    for name in reads:
        error = pending[name].pop() if pending.get(name) else None
        array = error.array() if isinstance(error, Deferred) else error
        yield None if array is None else laid_out(array)


def _copied(handle: SegmentKey, results: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The results of a segment, with a view of each output for each of its readers."""
    outputs = [
        x if i == 0 else x.view_as(x) for x, count in zip(results, handle.copies, strict=False) for i in range(count)
    ]
    return (*outputs, *results[len(handle.copies) :])


class _SegmentWithResiduals(torch.autograd.Function):
    """A segment that keeps the residuals of its steps for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, handle: SegmentKey, settings: TorchSegmentSettings, sizes: tuple[int, int], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        inputs, weights, carried = _split_tensors(tensors, sizes)
        torch_segment = _segment_for(handle.key, inputs, settings.steps)
        of_input = any(ctx.needs_input_grad[3 : 3 + len(inputs)])
        results, trace = _forward(torch_segment, settings, inputs, weights, carried, of_input)
        copies = _copied(handle, results)
        outputs, potentials, _ = handle.result_counts(settings)
        ctx.mark_non_differentiable(*copies[outputs + potentials :])
        ctx.set_materialize_grads(False)
        ctx.torch_segment, ctx.precision, ctx.untracked = torch_segment, settings.precision, len(carried)
        ctx.types = [x.dtype for x in tensors[: sum(sizes)]]
        if any(ctx.needs_input_grad):
            saved = trace.residuals(trace.plan.segments[torch_segment.index]), dict(trace.run.weights)
            leaves, ctx.spec = pytree.tree_flatten(saved)
            # Autograd frees the saved tensors after the backward pass.
            ctx.save_for_backward(*(x for x in leaves if isinstance(x, torch.Tensor)))
            ctx.static_leaves = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
            ctx.backend, ctx.walk, ctx.run = trace.backend, trace.plan, replace(trace.run, weights={}, coefficients={})
        return copies

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SpecError(_NO_SECOND)
        tensors = iter(ctx.saved_tensors)
        leaves = [next(tensors) if leaf is None else leaf[0] for leaf in ctx.static_leaves]
        residuals, weights = pytree.tree_unflatten(leaves, ctx.spec)
        run = replace(ctx.run, weights=weights)
        trace = Trace(
            ctx.backend, ctx.walk, run, torch.empty(0, dtype=torch.float32, device="cpu"), {}, lambda _: residuals, {}
        )
        gradients = _backward(ctx.torch_segment, trace, ctx.precision, errors)
        typed = (x if x is None else x.to(t) for x, t in zip(gradients, ctx.types, strict=True))
        return None, None, None, *typed, *(None,) * ctx.untracked


def _split_tensors(tensors: Sequence[torch.Tensor], sizes: tuple[int, int]) -> list[list[torch.Tensor]]:
    inputs, weights = sizes
    return [list(tensors[:inputs]), list(tensors[inputs : inputs + weights]), list(tensors[inputs + weights :])]


@torch.library.custom_op("stsbp::segment", mutates_args=())
def _segment(
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    carried: list[torch.Tensor],
    number: torch.Tensor,
    key: str,
    steps: int,
    training: bool,
    seed: int,
    precision: str,
    full: bool,
    checked: str,
    hint: str,
    may_be_scaled: bool,
) -> list[torch.Tensor]:
    settings = TorchSegmentSettings(steps, training, seed, number, precision, full, checked, hint, may_be_scaled)
    return _forward(_segment_for(key, inputs, steps), settings, inputs, weights, carried, of_input=False)[0]


@_segment.register_fake
def _(
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    carried: list[torch.Tensor],
    number: torch.Tensor,
    key: str,
    steps: int,
    training: bool,
    seed: int,
    precision: str,
    full: bool,
    *unused: Any,
) -> list[torch.Tensor]:
    torch_segment, batch = _segment_for(key, inputs, steps), inputs[0].shape[1]
    output_values = [torch_segment.network.values[name] for name in torch_segment.segment.outputs]
    shapes = [(1 if values.static else steps, batch, *values.shape) for values in output_values]
    if full and (name := torch_segment.segment.population) is not None:
        shapes.append((steps, batch, *torch_segment.network.values[name].shape))
    if training:
        shapes += [torch_segment.network.statistics[name].shape for name in torch_segment.statistics]
    if full:
        of_state = ((torch_segment.shape_of_state(name), count) for name, count in torch_segment.states[training])
        shapes += [(length, batch, *shape) for (length, shape), count in of_state for _ in range(count)]
    return [empty(shape, torch.float32, inputs[0].device) for shape in shapes]


@torch.library.custom_op("stsbp::segment_back", mutates_args=())
def _segment_back(
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    carried: list[torch.Tensor],
    errors: list[torch.Tensor],
    of_input: bool,
    number: torch.Tensor,
    key: str,
    steps: int,
    training: bool,
    seed: int,
    precision: str,
    full: bool,
) -> list[torch.Tensor]:
    torch_segment, settings = (
        _segment_for(key, inputs, steps),
        TorchSegmentSettings(steps, training, seed, number, precision, full),
    )
    _, trace = _forward(torch_segment, settings, inputs, weights, carried, of_input=of_input)
    gradients = _backward(torch_segment, trace, settings.precision, errors)
    requested = gradients if of_input else gradients[len(inputs) :]
    tensors = [*(inputs if of_input else []), *weights]
    results, used = list[torch.Tensor](), {x.untyped_storage().data_ptr() for x in errors}
    for x, g in zip(tensors, requested, strict=True):
        gradient = torch.zeros_like(x) if g is None else g.to(x.dtype)
        # Results of an operator must not share memory, but a sum gives all its inputs the same error.
        results.append(gradient.clone() if gradient.untyped_storage().data_ptr() in used else gradient)
        used.add(gradient.untyped_storage().data_ptr())
    return results


@_segment_back.register_fake
def _(
    inputs: list[torch.Tensor], weights: list[torch.Tensor], carried: Any, errors: Any, of_input: bool, *unused: Any
) -> list[torch.Tensor]:
    grad_inputs = [empty(x.shape, x.dtype, x.device) for x in inputs] if of_input else []
    return grad_inputs + [torch.empty_like(w) for w in weights]


class _BackwardOperatorCall(torch.autograd.Function):
    """A backward pass, which cannot be differentiated itself.

    Without it, torch would differentiate the operator of the backward pass and report a missing formula.
    """

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


def call_backward_operator(call: Callable[..., list[torch.Tensor]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Call the operator of a backward pass. Differentiating the operator raises an error."""
    if torch.compiler.is_compiling():
        return tuple(call(*tensors))
    results: tuple[torch.Tensor, ...] = _BackwardOperatorCall.apply(call, *tensors)  # type: ignore[no-untyped-call]
    return results


def map_by_loop(op: Any) -> Any:
    """The `vmap` rule of an operator: one call for each element.

    An operator with this rule returns a list of tensors, also if there is only one.
    """

    def element_of(i: int, x: Any, axis: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [
                element_of(i, element, element_axis)
                for element, element_axis in zip(x, axis or [None] * len(x), strict=True)
            ]
        return x if axis is None else x.select(axis, i)

    def rule(info: Any, axes: Sequence[Any], *arguments: Any) -> tuple[list[torch.Tensor], list[int]]:
        calls = [
            op(*(element_of(i, x, axis) for x, axis in zip(arguments, axes, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = [torch.stack(results) for results in zip(*calls, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


torch.library.register_vmap(_segment, map_by_loop(torch.ops.stsbp.segment))
torch.library.register_vmap(_segment_back, map_by_loop(torch.ops.stsbp.segment_back))


class _Computed(torch.autograd.Function):
    """A segment that is computed by the operators. It keeps no residuals, so that it can be traced and mapped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        handle: SegmentKey,
        sizes: tuple[int, int],
        options: tuple[Any, ...],
        number: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return _copied(handle, torch.ops.stsbp.segment(*_split_tensors(tensors, sizes), number, *options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        handle, ctx.sizes, ctx.options, number, *tensors = inputs
        ctx.untracked = len(tensors) - sum(ctx.sizes)
        ctx.mark_non_differentiable(*output[sum(handle.copies) + (ctx.options[5] and handle.fires) :])
        ctx.save_for_backward(number, *tensors)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sizes, options, error_count = ctx.sizes, ctx.options[:6], len(errors)
        of_input = any(ctx.needs_input_grad[4 : 4 + sizes[0]])

        def call(*flat_tensors: torch.Tensor) -> list[torch.Tensor]:
            errors, (number, *tensors) = list(flat_tensors[:error_count]), flat_tensors[error_count:]
            inputs, weights, carried = _split_tensors(tensors, sizes)
            return torch.ops.stsbp.segment_back(  # type: ignore[no-any-return]
                inputs, weights, carried, errors, of_input, number, *options
            )

        gradients = call_backward_operator(call, *errors, *ctx.saved_tensors)
        return None, None, None, None, *([] if of_input else [None] * sizes[0]), *gradients, *(None,) * ctx.untracked
