"""The paper's literal algorithm: the filter before the weights, step by step, Eq. (3a), (4), (5), (10)-(18).

It works in any number type that numpy's object or float arrays can hold. In float64, it is the reference for `fast`
gradients. With a smoothed spike, finite differences check this float64 version itself. With `fractions.Fraction`, it is
the reference without rounding. The code is slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from stsbp_spec.models.losses import Hamming, Loss, MeanSquaredError, SpikeCount, VanRossum
from stsbp_spec.models.neurons import ALIF, IF, LIF, Readout
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.graph import BoundNode, Input, Network, Neurons, Op, Weighted
from stsbp_spec.networks.ops import (
    PSP,
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    LearnedDelay,
    MaxPool2d,
    OneToOne,
    Upsample2d,
)
from stsbp_spec.networks.ops.avgpool2d import Pool2d
from stsbp_spec.networks.ops.base import Passing
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Shape

__all__ = ["Literal", "LiteralRun", "surrogate_derivative"]

Number = Callable[[Any], Any]


@dataclass(frozen=True)
class LiteralRun:
    """The results of a forward pass: lists of `[B, ...]` with one element per step, by the names of nodes.

    Attributes:
        values: the output of each node: spikes for a population, `W a_t` for weights.
        entered: the potentials `a_t^{l-1}` that were the input of each of the weights.
        u, threshold: potentials and thresholds of each population.
    """

    values: dict[str, list[AnyArray]]
    entered: dict[str, list[AnyArray]]
    u: dict[str, list[AnyArray]]
    threshold: dict[str, list[AnyArray]]

    @property
    def o(self) -> dict[str, list[AnyArray]]:
        """Spikes of each population."""
        return {name: self.values[name] for name in self.u}


class _Neuron:
    """A neuron model in the number type: how its potential decays, and how its threshold changes.

    `u_t = decayed(u_{t-1}, o_{t-1}, v_{t-1}) + i_t`, `v_t = vth + beta a_t`, `a_t = ka a_{t-1} + ca o_{t-1}`.
    A learned decay is `km`, with one value per channel or one for all. A readout never spikes.
    """

    def __init__(self, literal: Literal, bound_node: BoundNode, parameters: Mapping[str, AnyArray]) -> None:
        op = bound_node.node.op
        assert isinstance(op, Neurons)
        number, neuron = literal.number, op.model
        self.one = number(1)
        if not isinstance(neuron, (LIF, IF, ALIF, PLIF, Readout)):
            raise TypeError(f"no literal form of the neuron {neuron!r}")
        self.subtracts = not isinstance(neuron, Readout) and neuron.reset == "subtract"
        self.km: Any = self.one
        if isinstance(neuron, PLIF):
            self.km = _of_channels(parameters[bound_node.parameters["decay"]], bound_node.output.shape)
        elif not isinstance(neuron, IF):
            self.km = literal.decay(neuron.tau_m)[0]
        self.vth = number(neuron.threshold)
        self.ka, self.ca = literal.decay(neuron.tau_a) if isinstance(neuron, ALIF) else (self.one, number(0))
        self.beta = number(neuron.beta) if isinstance(neuron, ALIF) else number(0)

    def decayed(self, u: AnyArray, o: AnyArray, v: AnyArray) -> AnyArray:
        """The remaining potential after a step."""
        result: AnyArray = self.km * (u - v * o) if self.subtracts else self.km * u * (self.one - o)
        return result

    def by_km(self, u: AnyArray, o: AnyArray, v: AnyArray) -> AnyArray:
        """Derivative of `decayed` with respect to `km`."""
        result: AnyArray = u - v * o if self.subtracts else u * (self.one - o)
        return result

    def by_u(self, o: AnyArray) -> Any:
        """Derivative of `decayed` with respect to `u`."""
        return self.km if self.subtracts else self.km * (self.one - o)

    def by_o(self, u: AnyArray, v: AnyArray) -> AnyArray:
        """Derivative of `decayed` with respect to `o`."""
        result: AnyArray = -self.km * (v if self.subtracts else u)
        return result

    def by_v(self, o: AnyArray) -> AnyArray:
        """Derivative of `decayed` with respect to `v`."""
        result: AnyArray = -self.km * o if self.subtracts else self.km * o * 0
        return result


@dataclass(frozen=True)
class _Normalisation:
    """Batch normalisation with the filter before the weights, float64.

    `y = A (W a - mean r) + shift r`, `A = scale F / sqrt(var + eps)`. `a` are filtered spikes, and `r` is the response
    of the filter to a constant 1. Mean and variance are those of `z = W o`, with the unfiltered spikes `o`.
    """

    name: str
    norm: BatchNorm
    z: AnyArray
    filtered: AnyArray
    response: AnyArray
    mean: AnyArray
    variance: AnyArray
    scale: AnyArray
    shift: AnyArray
    training: bool

    def forward(self) -> list[AnyArray]:
        """The input of the neurons, step by step."""
        response = self._steps
        return list(self._broadcast(self.factor) * self._centred + self._broadcast(self.shift) * response)

    def backward(
        self, grad_output: list[AnyArray], gradients: dict[str, AnyArray]
    ) -> tuple[list[AnyArray], list[AnyArray] | None]:
        """Errors of `W a`; and, if the statistics are those of the batch, errors of `W o`."""
        d, factor = np.stack(grad_output), self._broadcast(self.factor)
        of_factor, of_shift = self._sum(d * self._centred), self._sum(d * self._steps)
        gradients[f"{self.name}.scale"] = of_factor * self.norm.factor / np.sqrt(self.variance + self.norm.eps)
        gradients[f"{self.name}.shift"] = of_shift
        if not self.training:
            return list(factor * d), None
        n = self.z.size // len(self.mean)
        of_mean, of_variance = -self.factor * of_shift, -self.factor * of_factor / (2 * (self.variance + self.norm.eps))
        deviation = self.z - self._broadcast(self.mean)
        return list(factor * d), list(self._broadcast(of_mean / n) + self._broadcast(2 * of_variance / n) * deviation)

    @property
    def factor(self) -> AnyArray:
        """`A`, `[C]`."""
        factor: AnyArray = self.scale * self.norm.factor / np.sqrt(self.variance + self.norm.eps)
        return factor

    @property
    def _steps(self) -> AnyArray:
        return self.response.reshape(-1, *(1,) * (self.z.ndim - 1))

    @property
    def _centred(self) -> AnyArray:
        centred: AnyArray = self.filtered - self._broadcast(self.mean) * self._steps
        return centred

    def _broadcast(self, x: AnyArray) -> AnyArray:
        return x.reshape(1, 1, -1, *(1,) * (self.z.ndim - 3))

    def _sum(self, x: AnyArray) -> AnyArray:
        sums: AnyArray = np.moveaxis(x, 2, 0).reshape(x.shape[2], -1).sum(axis=1)
        return sums


def surrogate_derivative(surrogate: Surrogate, x: AnyArray, number: Number = float) -> AnyArray:
    """`h(x)`, written independently. This form checks the expressions, so it must not share code with them."""
    one, size = number(1), np.abs(x)
    h: AnyArray
    if isinstance(surrogate, Rectangle):
        width = number(surrogate.width)
        h = np.where(size < width / number(2), one / width, number(0))
    elif isinstance(surrogate, Triangle):
        y = one - size / number(surrogate.width)
        h = np.where(y > 0, y, number(0))
    elif isinstance(surrogate, FastSigmoid):
        h = one / (one + number(surrogate.beta) * size) ** 2
    elif isinstance(surrogate, Arctan):
        h = one / (one + (number(math.pi / 2 * surrogate.alpha) * x) ** 2)
    elif isinstance(surrogate, Logistic):
        # Not s (1 - s), because the second factor loses precision far from the threshold.
        z = np.exp(-size / surrogate.width)
        h = z / (1 + z) ** 2 / surrogate.width
    else:
        raise TypeError(f"no literal form of the surrogate {surrogate!r}")
    return h


class Literal:
    """One network in the literal form.

    Args:
        network: the network. It must not have dropout.
        number: function that converts a Python number to the number type: `float` or `fractions.Fraction`.
        smooth: replace the spike by the surrogate's primitive, for finite differences.
        training: normalise with the statistics of the batch instead of running statistics.
    """

    def __init__(
        self, network: NetworkSpec | Network, number: Number = float, *, smooth: bool = False, training: bool = False
    ) -> None:
        self.graph = network if isinstance(network, Network) else network.graph
        self.number = number
        self.smooth = smooth
        self.training = training
        self.parameters = {node.name: node.shares or node.name for node in self.graph.nodes}

    def array(self, x: AnyArray) -> AnyArray:
        """`x` in the number type."""
        if self.number is float:
            return x.astype(np.float64)
        exact: AnyArray = np.vectorize(lambda value: self.number(float(value)), otypes=[object])(x)
        return exact

    def decay(self, tau: float) -> tuple[Any, Any]:
        """`1 - 1/tau` and `1/tau`."""
        one, tau_ = self.number(1), self.number(tau)
        return one - one / tau_, one / tau_

    def forward(
        self,
        weights: dict[str, AnyArray],
        inputs: list[AnyArray],
        recorded: Mapping[str, tuple[list[AnyArray], list[AnyArray], list[AnyArray]]] | None = None,
    ) -> LiteralRun:
        """The forward pass, lines 1-9.

        Args:
            weights: all parameters, in the number type.
            inputs: one `[B, ...]` per step, in the number type.
            recorded: potentials, spikes and thresholds of populations, which are then not computed.
        """
        run, graph = LiteralRun({}, {}, {}, {}), self.graph
        recurrent = {name for names in graph.recurrent.values() for name in names}
        for bound_node in graph.bound_nodes:
            node = bound_node.node
            read = [self.delayed(run.values[e.source], e.delay) for e in node.inputs if e.source in run.values]
            if isinstance(node.op, Input):
                run.values[node.name] = inputs
            elif node.name in recurrent:
                run.entered[node.name] = []
            elif isinstance(node.op, Weighted):
                pending = bound_node.inputs[0].pending
                entered = read[0] if pending is None else self.psp(pending, read[0])  # Eq. (3a)
                run.entered[node.name] = entered
                w = weights[node.shares or node.name] * self._undivided(bound_node)
                run.values[node.name] = [self.product(node.op, w, x) for x in entered]
                if node.op.norm is not None:
                    run.values[node.name] = self._normalised(bound_node, weights, w, read[0], entered).forward()
            elif isinstance(node.op, Neurons):
                self._fire(bound_node, weights, read, run, None if recorded is None else recorded[node.name])
            elif isinstance(node.op, LearnedDelay):
                run.values[node.name] = self.late(read[0], weights[f"{node.name}.steps"])
            else:
                run.values[node.name] = [self.through(node.op, *step_inputs) for step_inputs in zip(*read, strict=True)]
        return run

    def _undivided(self, bound_node: BoundNode) -> Any:
        """The factor that undoes the division of a pooling. Sums that are normalised are sums of undivided spikes."""
        assert isinstance(bound_node.node.op, Weighted)
        return self.number(1 if bound_node.node.op.norm is None else bound_node.inputs[0].divisor)

    def _normalised(
        self,
        bound_node: BoundNode,
        weights: Mapping[str, AnyArray],
        w: AnyArray,
        raw: list[AnyArray],
        entered: list[AnyArray],
    ) -> _Normalisation:
        """Batch normalisation of the sums of spikes `raw`. `entered` are the sums of filtered spikes."""
        op, name, pending = bound_node.node.op, bound_node.node.name, bound_node.inputs[0].pending
        assert isinstance(op, Weighted)
        assert op.norm is not None
        if self.number is not float:
            raise TypeError("batch normalisation takes a square root, which is not always a fraction")
        ones = [self.array(np.ones(1))] * len(raw)
        response = ones if pending is None else self.psp(pending, ones)
        z = np.stack([self.product(op, w, x) for x in raw])
        filtered = np.stack([self.product(op, w, x) for x in entered])
        if self.training:
            axes = tuple(axis for axis in range(z.ndim) if axis != 2)
            mean, variance = z.mean(axes), z.var(axes)
        else:
            mean, variance = weights[f"{name}.mean"], weights[f"{name}.variance"]
        affine = weights[f"{name}.scale"], weights[f"{name}.shift"]
        return _Normalisation(name, op.norm, z, filtered, np.stack(response), mean, variance, *affine, self.training)

    def _fire(
        self,
        bound_node: BoundNode,
        weights: Mapping[str, AnyArray],
        read: list[list[AnyArray]],
        run: LiteralRun,
        recorded: tuple[list[AnyArray], list[AnyArray], list[AnyArray]] | None,
    ) -> None:
        """Potentials and spikes of a population, step by step."""
        op, name = bound_node.node.op, bound_node.node.name
        assert isinstance(op, Neurons)
        neuron, steps = _Neuron(self, bound_node, weights), len(read[0])
        sums = [sum(step_inputs[1:], step_inputs[0]) for step_inputs in zip(*read, strict=True)]
        for parameter, response in self._biases(bound_node, steps):
            bias = _of_channels(weights[parameter], bound_node.output.shape)
            sums = [x + share * bias for x, share in zip(sums, response, strict=True)]
        u_list, o_list, threshold = list[AnyArray](), list[AnyArray](), list[AnyArray]()
        run.u[name], run.values[name], run.threshold[name] = u_list, o_list, threshold
        loops = self._loops(bound_node)
        slow, quick = ([self.number(0)] * len(loops) for _ in range(2))
        a: Any = self.number(0)
        for t in range(steps):
            u = sums[t]
            for i, (weights_name, loop) in enumerate(loops):
                ks, cs, kr = self._filter(op.model.psp)
                previous = o_list[-1] if o_list else u * self.number(0)
                slow[i], quick[i] = ks * slow[i] + cs * previous, kr * quick[i] + cs * previous
                potential = slow[i] - quick[i] if op.model.psp.tau_rise else slow[i]
                run.entered[weights_name].append(potential)
                u = u + self.product(loop, weights[self.parameters[weights_name]], potential)
            if u_list:
                u = u + neuron.decayed(u_list[-1], o_list[-1], threshold[-1])  # Eq. (4)
                a = neuron.ka * a + neuron.ca * o_list[-1]
            v = neuron.vth + neuron.beta * a + u * self.number(0)
            if isinstance(op.model, Readout):
                o = u * self.number(0)
            elif self.smooth:
                o = op.model.surrogate.primitive(u - v)
            else:
                o = self.array((u >= v).astype(np.float64))  # Eq. (5)
            u, o, v = (u, o, v) if recorded is None else (series[t] for series in recorded)
            u_list.append(u)
            o_list.append(o)
            threshold.append(v)

    def _loops(self, bound_node: BoundNode) -> list[tuple[str, Weighted]]:
        """The recurrent weights of a population."""
        ops = {node.name: node.op for node in self.graph.nodes}
        loops = []
        for name in self.graph.recurrent.get(bound_node.node.name, ()):
            op = ops[name]
            assert isinstance(op, Weighted)
            loops.append((name, op))
        return loops

    def _biases(self, bound_node: BoundNode, steps: int) -> list[tuple[str, list[Any]]]:
        """For each projection with a bias: the name of the bias, and its filter's response to a constant 1 over
        time."""
        ones = [self.array(np.ones(1))] * steps
        return [
            (f"{edge.source}.bias", ones if values.pending is None else self.psp(values.pending, ones))
            for edge, values in zip(bound_node.node.inputs, bound_node.inputs, strict=True)
            if values.biased
        ]

    @property
    def _output_psp(self) -> PSP:
        """The filter of the van Rossum distance."""
        op = self.graph.nodes[-1].op
        assert isinstance(op, Neurons)
        return op.model.psp.first_order

    def delayed(self, x: list[AnyArray], delay: int) -> list[AnyArray]:
        """The sequence delayed by `delay` steps, beginning with zeros."""
        return [x[t - delay] if t >= delay else x[0] * self.number(0) for t in range(len(x))]

    def late(self, x: list[AnyArray], delays: AnyArray, *, earlier: bool = False) -> list[AnyArray]:
        """Each channel of `x`, later (or earlier) by the whole number of steps that is nearest to its delay.

        A tie is the even number. What is not in `x` is zero.
        """
        whole = [-round(delay) if earlier else round(delay) for delay in delays]
        return [self._shifted(x, t, whole) for t in range(len(x))]

    def _shifted(self, x: list[AnyArray], t: int, steps: list[int]) -> AnyArray:
        """Each channel of `x` as it was `steps` before step `t`."""
        nothing = x[0] * self.number(0)
        at = [x[t - count] if 0 <= t - count < len(x) else nothing for count in steps]
        return np.stack([values[:, channel] for channel, values in enumerate(at)], axis=1)

    def _of_delays(self, x: list[AnyArray], delays: AnyArray, grad_output: list[AnyArray]) -> AnyArray:
        """The gradient of `delays`: the error times the slope of `x` between the two steps around `t - delay`."""
        before, after = ([math.floor(delay) + more for delay in delays] for more in (1, 0))
        terms = [d * (self._shifted(x, t, before) - self._shifted(x, t, after)) for t, d in enumerate(grad_output)]
        return _by_channel(sum(terms[1:], terms[0]), len(delays))

    def loss(self, loss: Loss, run: LiteralRun, targets: list[AnyArray]) -> Any:
        """Mean over the batch of the loss on the output, in the number type (Hamming as half the square)."""
        o, batch = run.values[self.graph.nodes[-1].name], len(targets[0])
        if isinstance(loss, MeanSquaredError):
            u = run.u[self.graph.nodes[-1].name]
            squares = sum(((x - y) * (x - y)).sum() for x, y in zip(u, targets, strict=True))
            return squares / self.number(len(targets) * targets[0].size)
        if isinstance(loss, VanRossum):
            differences = self.psp(self._output_psp, [x - y for x, y in zip(o, targets, strict=True)])
            total = sum((d * d).sum() for d in differences)
        elif isinstance(loss, Hamming):
            # Half the square: its derivative is the error signal of the spec.
            total = sum(((x - y) * (x - y)).sum() for x, y in zip(o, targets, strict=True))
        elif isinstance(loss, SpikeCount):
            rates = (sum(o) - sum(targets)) / self.number(len(o))
            total = (rates * rates).sum()
        else:
            raise TypeError(f"unknown loss {loss!r}")
        return total / self.number(2 * batch)

    def backward(
        self,
        loss: Loss,
        weights: dict[str, AnyArray],
        run: LiteralRun,
        targets: list[AnyArray],
        penalties: Mapping[str, RatePenalty] = MappingProxyType({}),
    ) -> dict[str, AnyArray]:
        """The backward pass, lines 11-31: gradients of the mean loss by name, with rate penalties by population."""
        graph = self.graph
        errors = {graph.nodes[-1].name: self._at_output(loss, run, targets)}
        recurrent = {name for names in graph.recurrent.values() for name in names}
        gradients: dict[str, AnyArray] = {}
        for bound_node in reversed(graph.bound_nodes):
            node = bound_node.node
            if node.name in recurrent or isinstance(node.op, Input):
                continue
            grad_output = errors.pop(node.name)
            if node.name in penalties:
                of_penalty = self._penalty_error(penalties[node.name], run.values[node.name])
                grad_output = [d + of_penalty for d in grad_output]
            if isinstance(node.op, Neurons):
                grad_potentials = self._neurons_adjoint(bound_node, weights, run, grad_output, gradients)
                grad_inputs = [grad_potentials] * len(node.inputs)
            elif isinstance(node.op, Weighted):
                w = weights[node.shares or node.name] * self._undivided(bound_node)
                entered, pending, direct = run.entered[node.name], bound_node.inputs[0].pending, None
                if node.op.norm is not None:
                    (edge,) = node.inputs
                    raw = self.delayed(run.values[edge.source], edge.delay)
                    norm = self._normalised(bound_node, weights, w, raw, entered)
                    grad_output, direct = norm.backward(grad_output, gradients)
                contributions = [self.adjoint(node.op, w, x, d) for x, d in zip(entered, grad_output, strict=True)]
                total = sum((term for term, _ in contributions[1:]), contributions[0][0])  # Eq. (18)
                entering = [d for _, d in contributions]
                entering = entering if pending is None else self.psp_adjoint(pending, entering)
                if direct is not None:
                    contributions = [self.adjoint(node.op, w, x, d) for x, d in zip(raw, direct, strict=True)]
                    total = total + sum(term for term, _ in contributions)
                    entering = [d + term for d, (_, term) in zip(entering, contributions, strict=True)]
                _accumulate(gradients, node.shares or node.name, total * self._undivided(bound_node))
                grad_inputs = [entering]
            elif isinstance(node.op, LearnedDelay):
                (edge,), parameter = node.inputs, f"{node.name}.steps"
                read = [self.delayed(run.values[edge.source], edge.delay)]
                gradients[parameter] = self._of_delays(read[0], weights[parameter], grad_output)
                grad_inputs = [self.late(grad_output, weights[parameter], earlier=True)]
            else:
                read = [self.delayed(run.values[e.source], e.delay) for e in node.inputs]
                parts = [self.through_adjoint(node.op, x, d) for *x, d in zip(*read, grad_output, strict=True)]
                grad_inputs = [list(grad_steps) for grad_steps in zip(*parts, strict=True)]
            for edge, error in zip(node.inputs, grad_inputs, strict=True):
                if edge.source in recurrent:
                    continue
                zero = error[0] * self.number(0)
                error = [*error[edge.delay :], *[zero] * min(edge.delay, len(error))]
                previous = errors.get(edge.source)
                errors[edge.source] = (
                    error if previous is None else [x + y for x, y in zip(previous, error, strict=True)]
                )
        return gradients

    def penalty(self, penalty: RatePenalty, o: list[AnyArray]) -> Any:
        """The rate penalty of a population with the spikes `o` of each step, in the number type."""
        excess = self._excess(penalty, o)
        return self.number(penalty.weight) * (excess * excess).sum() / self.number(excess.size)

    def _penalty_error(self, penalty: RatePenalty, o: list[AnyArray]) -> AnyArray:
        """The derivative of the penalty with respect to the spike of any step."""
        excess, steps = self._excess(penalty, o), self.number(len(o))
        error: AnyArray = excess * self.number(2) * self.number(penalty.weight) / (self.number(excess.size) * steps)
        return error

    def _excess(self, penalty: RatePenalty, o: list[AnyArray]) -> AnyArray:
        excess: AnyArray = sum(o[1:], o[0]) / self.number(len(o)) - self.number(penalty.target)
        return np.where(excess > self.number(0), excess, self.number(0))

    def _at_output(self, loss: Loss, run: LiteralRun, targets: list[AnyArray]) -> list[AnyArray]:
        """`dL/do` of the output; of a readout, `dL/du`."""
        steps, batch = len(targets), self.number(len(targets[0]))
        if isinstance(loss, MeanSquaredError):
            u, factor = run.u[self.graph.nodes[-1].name], self.number(2) / self.number(steps * targets[0].size)
            return [factor * (x - y) for x, y in zip(u, targets, strict=True)]
        o = run.values[self.graph.nodes[-1].name]
        if isinstance(loss, VanRossum):
            psp = self._output_psp
            differences = self.psp(psp, [x - y for x, y in zip(o, targets, strict=True)])
            return self.psp_adjoint(psp, [d / batch for d in differences])
        if isinstance(loss, Hamming):
            return [(x - y) / batch for x, y in zip(o, targets, strict=True)]
        return [(sum(o) - sum(targets)) / (self.number(steps * steps) * batch)] * steps

    def _neurons_adjoint(
        self,
        bound_node: BoundNode,
        weights: Mapping[str, AnyArray],
        run: LiteralRun,
        grad_output: list[AnyArray],
        gradients: dict[str, AnyArray],
    ) -> list[AnyArray]:
        """`dL/du` of each step from `dL/do`, to which recurrent weights add, and gradients of the population itself.

        `grad_output` of a readout is the part of `dL/du` that does not go through later potentials.
        """
        op, name = bound_node.node.op, bound_node.node.name
        assert isinstance(op, Neurons)
        neuron, loops = _Neuron(self, bound_node, weights), self._loops(bound_node)
        u, o, v = run.u[name], run.values[name], run.threshold[name]
        zero = self.array(np.zeros(u[0].shape))
        membrane_factor, adaptation_factor, for_decay = zero, zero, zero
        ks, cs, kr = self._filter(op.model.psp)
        psp_factor, rise_factor, recurrent_grad = [zero] * len(loops), [zero] * len(loops), zero
        grad_potentials: list[AnyArray] = [zero] * len(u)
        terms: list[Any] = [self.number(0)] * len(loops)
        for t in reversed(range(len(u))):
            for_decay = for_decay + membrane_factor * neuron.by_km(u[t], o[t], v[t])
            if isinstance(op.model, Readout):
                membrane_factor = grad_potentials[t] = grad_output[t] + neuron.km * membrane_factor
                continue
            h = surrogate_derivative(op.model.surrogate, u[t] - v[t], self.number)
            at_spike = h * (
                grad_output[t]
                + recurrent_grad
                + neuron.by_o(u[t], v[t]) * membrane_factor
                + neuron.ca * adaptation_factor
            )
            at_threshold = neuron.by_v(o[t]) * membrane_factor - at_spike
            # Eq. (12), (16), (14), (10)
            membrane_factor = grad_potentials[t] = at_spike + neuron.by_u(o[t]) * membrane_factor
            adaptation_factor = neuron.ka * adaptation_factor + neuron.beta * at_threshold
            recurrent_grad = zero
            for i, (weights_name, loop) in enumerate(loops):
                term, entering = self.adjoint(
                    loop, weights[self.parameters[weights_name]], run.entered[weights_name][t], grad_potentials[t]
                )
                terms[i] = terms[i] + term
                psp_factor[i] = entering + ks * psp_factor[i]  # Eq. (13), (17), (15), (11)
                rise_factor[i] = entering + kr * rise_factor[i]
                recurrent_grad = recurrent_grad + cs * (
                    psp_factor[i] - rise_factor[i] if op.model.psp.tau_rise else psp_factor[i]
                )
        for (weights_name, _), term in zip(loops, terms, strict=True):
            _accumulate(gradients, self.parameters[weights_name], term)
        for parameter, response in self._biases(bound_node, len(u)):
            total = sum(share * d for share, d in zip(response, grad_potentials, strict=True))
            gradients[parameter] = _by_channel(total, len(weights[parameter]))
        if isinstance(op.model, PLIF):
            parameter = bound_node.parameters["decay"]
            gradients[parameter] = _by_channel(for_decay, len(weights[parameter]))
        return grad_potentials

    def _filter(self, psp: PSP) -> tuple[Any, Any, Any]:
        """Decay, factor and the decay of the rise."""
        ks, cs = self.decay(psp.tau_s)
        kr = self.number(0)
        if psp.tau_rise:
            cs = self.number(1) / (self.number(psp.tau_s) - self.number(psp.tau_rise))
            kr = self.decay(psp.tau_rise)[0]
        return ks, self.number(1) if psp.gain == "unit" else cs, kr

    def psp(self, psp: PSP, s: list[AnyArray]) -> list[AnyArray]:
        """Eq. (3a), or the difference of two such filters."""
        k, c, rise = self._filter(psp)
        a = self._exponential(k, c, s)
        if not psp.tau_rise:
            return a
        return [x - y for x, y in zip(a, self._exponential(rise, c, s), strict=True)]

    def psp_adjoint(self, psp: PSP, d: list[AnyArray]) -> list[AnyArray]:
        """Eq. (13), (17), (15), (11): the same filter, run from the last step to the first."""
        return self.psp(psp, d[::-1])[::-1]

    @staticmethod
    def _exponential(k: Any, c: Any, s: list[AnyArray]) -> list[AnyArray]:
        a: list[AnyArray] = []
        for x in s:
            a.append(k * a[-1] + c * x if a else c * x)
        return a

    def through(self, op: Op, *x: AnyArray) -> AnyArray:
        """The output of an operation without weights in one step."""
        if isinstance(op, Add):
            return sum(x[1:], x[0])
        if isinstance(op, Concat):
            return np.concatenate(x, axis=1)
        (s,) = x
        if isinstance(op, Passing):
            op = op.at(s.shape[1:])
        if isinstance(op, AvgPool2d):
            means: AnyArray = np.stack(self.in_windows(op, s)).sum(axis=0) / self.number(op.area)
            return means
        if isinstance(op, MaxPool2d):
            largest: AnyArray = np.stack(self.in_windows(op, s)).max(axis=0)
            return largest
        if isinstance(op, Upsample2d):
            return np.kron(s, np.ones(op.factors, int)).astype(s.dtype)
        if isinstance(op, Flatten):
            return s.reshape(len(s), -1)
        if isinstance(op, Dropout):
            return s
        raise TypeError(f"no literal form of {op!r}")

    @staticmethod
    def in_windows(pool: Pool2d, x: AnyArray) -> list[AnyArray]:
        """Views of `x` `[B, C, H, W]`. For each position in a window, row by row: the inputs at this position."""
        rows, columns = pool.sizes
        height, width = x.shape[2] // rows * rows, x.shape[3] // columns * columns
        return [x[:, :, i:height:rows, j:width:columns] for i in range(rows) for j in range(columns)]

    def through_adjoint(self, op: Op, x: list[AnyArray], d: AnyArray) -> list[AnyArray]:
        """Errors of the inputs `x` from the error of the output."""
        if isinstance(op, Passing):
            op = op.at(x[0].shape[1:])
        if isinstance(op, Flatten):
            return [d.reshape(x[0].shape)]
        if isinstance(op, Concat):
            ends = np.cumsum([branch.shape[1] for branch in x])
            return [d[:, end - branch.shape[1] : end] for branch, end in zip(x, ends, strict=True)]
        grad_input = self.array(np.zeros(x[0].shape))
        if isinstance(op, Upsample2d):
            rows, columns = op.factors
            for b, c, y, z in np.ndindex(d.shape):
                grad_input[b, c, y // rows, z // columns] += d[b, c, y, z]
        elif isinstance(op, AvgPool2d):
            for view in self.in_windows(op, grad_input):
                view[...] = d / self.number(op.area)
        elif isinstance(op, MaxPool2d):
            # Only the first maximum gets the error. Later inputs that are equally large get nothing.
            largest, assigned = self.through(op, x[0]), np.zeros(d.shape, bool)
            for view, value in zip(self.in_windows(op, grad_input), self.in_windows(op, x[0]), strict=True):
                view[...] = np.where((value == largest) & ~assigned, d, view)
                assigned |= value == largest
        else:
            return [d] * len(x)
        return [grad_input]

    def product(self, op: Weighted, w: AnyArray, x: AnyArray) -> AnyArray:
        """`W a`, `[B, ...]`."""
        if isinstance(op, OneToOne):
            return x * w[:, 0]
        if isinstance(op, Conv2d):
            parts = [
                np.moveaxis(windows.reshape(*windows.shape[:3], -1) @ rows.reshape(len(rows), -1).T, 3, 1)
                for windows, rows in zip(self._windows(op, x), np.split(w, op.groups), strict=True)
            ]
            return np.concatenate(parts, axis=1)
        return x.reshape(len(x), -1) @ w.T

    def adjoint(self, op: Weighted, w: AnyArray, x: AnyArray, d: AnyArray) -> tuple[AnyArray, AnyArray]:
        """The contribution of one step to Eq. (18), and `W^T d`."""
        if isinstance(op, OneToOne):
            return (d * x).sum(axis=0)[:, None], d * w[:, 0]
        if not isinstance(op, Conv2d):
            return d.T @ x.reshape(len(x), -1), (d @ w).reshape(x.shape)
        (_, _, rows, columns), terms = d.shape, list[AnyArray]()
        padded = self._padded(op, self.array(np.zeros(x.shape)))
        inputs: list[AnyArray] = np.split(padded, op.groups, axis=1)
        groups = zip(self._windows(op, x), np.split(w, op.groups), np.split(d, op.groups, axis=1), inputs, strict=True)
        for windows, kernels, error, into in groups:
            terms.append(np.tensordot(error, windows, ((0, 2, 3), (0, 1, 2))))
            for y in range(rows):
                for z in range(columns):
                    into[self._kernel_slices(op, y, z)] += np.tensordot(error[:, :, y, z], kernels, (1, 0))
        (pad_rows, pad_columns), (height, width) = op.paddings, x.shape[2:]
        inner = np.concatenate(inputs, axis=1)[:, :, pad_rows : pad_rows + height, pad_columns : pad_columns + width]
        return np.concatenate(terms), inner

    def _windows(self, conv: Conv2d, x: AnyArray) -> list[AnyArray]:
        """The inputs of the kernels of each group, `[B, H', W', C / groups, rows, columns]`."""
        _, rows, columns = conv.output_shape(x.shape[1:])
        return [
            np.stack(
                [np.stack([part[self._kernel_slices(conv, y, z)] for z in range(columns)], 1) for y in range(rows)], 1
            )
            for part in np.split(self._padded(conv, x), conv.groups, axis=1)
        ]

    def _padded(self, conv: Conv2d, x: AnyArray) -> AnyArray:
        (pad_rows, pad_columns), (height, width) = conv.paddings, x.shape[2:]
        padded = self.array(np.zeros((*x.shape[:2], height + 2 * pad_rows, width + 2 * pad_columns)))
        padded[:, :, pad_rows : pad_rows + height, pad_columns : pad_columns + width] = x
        return padded

    @staticmethod
    def _kernel_slices(conv: Conv2d, y: int, x: int) -> tuple[slice, ...]:
        """The position of the kernel on the padded input for the output at row `y` and column `x`."""
        axes = zip((y, x), conv.strides, conv.extents, conv.dilations, strict=True)
        return (
            slice(None),
            slice(None),
            *(
                slice(position * stride, position * stride + extent, dilation)
                for position, stride, extent, dilation in axes
            ),
        )


def _accumulate(gradients: dict[str, AnyArray], name: str, term: AnyArray) -> None:
    """Add a term to the gradient of weights. Several nodes may use the same weights."""
    gradients[name] = gradients[name] + term if name in gradients else term


def _of_channels(values: AnyArray, shape: Shape) -> AnyArray:
    """Numbers per channel, or one for all, in a shape that broadcasts against arrays `[B, ...]` of `shape`."""
    return values.reshape(1, len(values), *(1 for _ in shape[1:]))


def _by_channel(x: AnyArray, count: int) -> AnyArray:
    """Sums of `[B, C, ...]` over all axes except `C`, or over all axes if `count` is 1."""
    sums: AnyArray = np.moveaxis(x, 1, 0).reshape(count, -1).sum(axis=1)
    return sums
