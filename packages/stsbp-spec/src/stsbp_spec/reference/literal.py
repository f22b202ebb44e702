"""The paper's algorithm to the letter: the filter before the weights, step by step, Eq. (3a), (4), (5), (10)-(18).

Works in any number type that numpy's object or float arrays hold: float64 measures `fast` gradients and, with a
smoothed spike, is itself checked by finite differences; `fractions.Fraction` is the oracle without rounding. Slow on
purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.network import Block, NetworkSpec
from stsbp_spec.neurons import ALIF, IF, LIF
from stsbp_spec.neurons.plif import PLIF
from stsbp_spec.surrogates import Arctan, FastSigmoid, Logistic, Rectangle, Surrogate, Triangle
from stsbp_spec.synapses import PSP, AvgPool2d, Conv2d
from stsbp_spec.typing import AnyArray

__all__ = ["Literal", "LiteralRun"]

Number = Callable[[Any], Any]


@dataclass(frozen=True)
class LiteralRun:
    """Of each block: the potentials `a_t^{l-1}` that met the weights, `u`, `o`, thresholds: lists of `[B, ...]`."""

    entered: list[list[AnyArray]]
    u: list[list[AnyArray]]
    o: list[list[AnyArray]]
    threshold: list[list[AnyArray]]


class _Neuron:
    """A neuron model in the number type: what it leaves of a potential, and how its threshold moves.

    `u_t = left(u_{t-1}, o_{t-1}, v_{t-1}) + i_t`, `v_t = vth + beta a_t`, `a_t = ka a_{t-1} + ca o_{t-1}`.
    A decay that is learned is `km` of each channel, or of all.
    """

    def __init__(self, literal: Literal, block: Block, parameters: Mapping[str, AnyArray]) -> None:
        number, neuron = literal.number, block.neuron
        self.one = number(1)
        if not isinstance(neuron, (LIF, IF, ALIF, PLIF)):
            raise TypeError(f"no literal form of the neuron {neuron!r}")
        self.subtracts = neuron.reset == "subtract"
        self.km: Any = self.one
        if isinstance(neuron, PLIF):
            decay = parameters[f"{block.name}.decay"]
            self.km = decay.reshape(1, len(decay), *(1 for _ in block.output_shape[1:]))
        elif not isinstance(neuron, IF):
            self.km = literal.decay(neuron.tau_m)[0]
        self.vth = number(neuron.threshold)
        self.ka, self.ca = literal.decay(neuron.tau_a) if isinstance(neuron, ALIF) else (self.one, number(0))
        self.beta = number(neuron.beta) if isinstance(neuron, ALIF) else number(0)

    def left(self, u: AnyArray, o: AnyArray, v: AnyArray) -> AnyArray:
        """What is left of a potential after a step."""
        result: AnyArray = self.km * (u - v * o) if self.subtracts else self.km * u * (self.one - o)
        return result

    def by_km(self, u: AnyArray, o: AnyArray, v: AnyArray) -> AnyArray:
        """Derivative of `left` by `km`."""
        result: AnyArray = u - v * o if self.subtracts else u * (self.one - o)
        return result

    def by_u(self, o: AnyArray) -> Any:
        """Derivative of `left` by `u`."""
        return self.km if self.subtracts else self.km * (self.one - o)

    def by_o(self, u: AnyArray, v: AnyArray) -> AnyArray:
        """Derivative of `left` by `o`."""
        result: AnyArray = -self.km * (v if self.subtracts else u)
        return result

    def by_v(self, o: AnyArray) -> AnyArray:
        """Derivative of `left` by `v`."""
        result: AnyArray = -self.km * o if self.subtracts else self.km * o * 0
        return result


class Literal:
    """One network in the literal form.

    Args:
        network: without dropout.
        number: makes a number of the wanted type from a Python number: `float` or `fractions.Fraction`.
        smooth: replace the spike by the surrogate's primitive, for finite differences.
    """

    def __init__(self, network: NetworkSpec, number: Number = float, *, smooth: bool = False) -> None:
        self.network = network
        self.number = number
        self.smooth = smooth

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

    def forward(self, weights: dict[str, AnyArray], inputs: list[AnyArray]) -> LiteralRun:
        """Lines 1-9. `weights` (all parameters) and `inputs` (one `[B, ...]` per step) are in the number type."""
        run = LiteralRun([], [], [], [])
        potentials = inputs
        if self.network.input_psp is not None:
            potentials = self.psp(self.network.input_psp, potentials)
        for block in self.network.blocks:
            entered = [self.before(block, x) for x in potentials]
            neuron, response = _Neuron(self, block, weights), self.response(block, len(potentials))
            u_list: list[AnyArray] = []
            o_list: list[AnyArray] = []
            threshold: list[AnyArray] = []
            a: Any = self.number(0)
            for x in entered:
                u = self.product(block, weights[block.name], x)
                if block.synapse.bias:
                    u = u + response[len(u_list)] * self.bias(block, weights)
                if u_list:
                    u = u + neuron.left(u_list[-1], o_list[-1], threshold[-1])  # Eq. (4)
                    a = neuron.ka * a + neuron.ca * o_list[-1]
                v = neuron.vth + neuron.beta * a + u * self.number(0)
                if self.smooth:
                    o = block.neuron.surrogate.primitive(u - v)
                else:
                    o = self.array((u >= v).astype(np.float64))  # Eq. (5)
                u_list.append(u)
                o_list.append(o)
                threshold.append(v)
            run.entered.append(entered)
            run.u.append(u_list)
            run.o.append(o_list)
            run.threshold.append(threshold)
            potentials = self.psp(block.neuron.psp, o_list)  # Eq. (3a)
        return run

    def loss(self, loss: Loss, run: LiteralRun, targets: list[AnyArray]) -> Any:
        """Mean over the batch of the loss on the output, in the number type (Hamming as half the square)."""
        o, batch = run.o[-1], len(targets[0])
        if isinstance(loss, VanRossum):
            differences = self.psp(
                self.network.output_psp.first_order, [x - y for x, y in zip(o, targets, strict=True)]
            )
            total = sum((d * d).sum() for d in differences)
        elif isinstance(loss, Hamming):
            # Half the square: its derivative is the error signal which the spec fixes.
            total = sum(((x - y) * (x - y)).sum() for x, y in zip(o, targets, strict=True))
        elif isinstance(loss, SpikeCount):
            rates = (sum(o) - sum(targets)) / self.number(len(o))
            total = (rates * rates).sum()
        else:
            raise TypeError(f"unknown loss {loss!r}")
        return total / self.number(2 * batch)

    def backward(
        self, loss: Loss, weights: dict[str, AnyArray], run: LiteralRun, targets: list[AnyArray]
    ) -> dict[str, AnyArray]:
        """Lines 11-31: gradients of the mean loss by layer name."""
        steps, batch = len(targets), self.number(len(targets[0]))
        direct: list[AnyArray] = [np.zeros(1)] * steps  # dL/do of the output, not through its potential
        from_above: list[AnyArray] = [np.zeros(1)] * steps  # dL/da of Eq. (13), or the spatial term of Eq. (11)
        zero = self.array(np.zeros(targets[0].shape))
        o = run.o[-1]
        if isinstance(loss, VanRossum):
            differences = self.psp(
                self.network.output_psp.first_order, [x - y for x, y in zip(o, targets, strict=True)]
            )
            from_above = [d / batch for d in differences]
            direct = [zero] * steps
        else:
            from_above = [zero] * steps
            if isinstance(loss, Hamming):
                direct = [(x - y) / batch for x, y in zip(o, targets, strict=True)]
            else:
                direct = [(sum(o) - sum(targets)) / (self.number(steps * steps) * batch)] * steps
        gradients: dict[str, AnyArray] = {}
        for index in reversed(range(len(self.network.blocks))):
            block = self.network.blocks[index]
            neuron = _Neuron(self, block, weights)
            # The loss sees the output through a filter of first order.
            psp = block.neuron.psp if index < len(self.network.blocks) - 1 else block.neuron.psp.first_order
            ks, cs = self.decay(psp.tau_s)
            kr = self.number(0)
            if psp.tau_rise:
                kr, cs = (
                    self.decay(psp.tau_rise)[0],
                    self.number(1) / (self.number(psp.tau_s) - self.number(psp.tau_rise)),
                )
            u, o, v = run.u[index], run.o[index], run.threshold[index]
            psp_factor = rise_factor = membrane_factor = adaptation_factor = self.array(np.zeros(u[0].shape))
            gradient = None
            for_decay = for_bias = self.array(np.zeros(u[0].shape))
            response = self.response(block, steps)
            below: list[AnyArray] = [np.zeros(1)] * steps
            for t in reversed(range(steps)):
                psp_factor = from_above[t] + ks * psp_factor  # Eq. (13), (17), (15), (11)
                rise_factor = (from_above[t] if psp.tau_rise else 0) + kr * rise_factor
                for_decay = for_decay + membrane_factor * neuron.by_km(u[t], o[t], v[t])
                h = self.derivative(block.neuron.surrogate, u[t] - v[t])
                at_spike = cs * (psp_factor - rise_factor) + direct[t] + neuron.by_o(u[t], v[t]) * membrane_factor
                at_spike = h * (at_spike + neuron.ca * adaptation_factor)
                at_threshold = neuron.by_v(o[t]) * membrane_factor - at_spike
                # Eq. (12), (16), (14), (10)
                membrane_factor = at_spike + neuron.by_u(o[t]) * membrane_factor
                adaptation_factor = neuron.ka * adaptation_factor + neuron.beta * at_threshold
                for_bias = for_bias + response[t] * membrane_factor
                term, below[t] = self.adjoint(block, weights[block.name], run.entered[index][t], membrane_factor)
                gradient = term if gradient is None else gradient + term  # Eq. (18)
            assert gradient is not None
            gradients[block.name] = gradient
            if block.synapse.bias:
                (count,) = weights[f"{block.name}.bias"].shape
                gradients[f"{block.name}.bias"] = np.moveaxis(for_bias, 1, 0).reshape(count, -1).sum(axis=1)
            if isinstance(block.neuron, PLIF):
                (count,) = weights[f"{block.name}.decay"].shape
                gradients[f"{block.name}.decay"] = np.moveaxis(for_decay, 1, 0).reshape(count, -1).sum(axis=1)
            from_above = below
            direct = [self.array(np.zeros(1))] * steps
        return gradients

    def response(self, block: Block, steps: int) -> list[Any]:
        """What the filter after the weights makes of a constant 1, step by step."""
        ones = [self.array(np.ones(1))] * steps
        return ones if block.psp is None else self.psp(block.psp, ones)

    @staticmethod
    def bias(block: Block, weights: Mapping[str, AnyArray]) -> AnyArray:
        """The bias of each channel, as the layer's neurons take it."""
        own = weights[f"{block.name}.bias"]
        return own.reshape(1, len(own), *(1 for _ in block.output_shape[1:]))

    def derivative(self, surrogate: Surrogate, x: AnyArray) -> AnyArray:
        """`h(x)`, written here once more: this form judges the expressions, so it shares nothing with them."""
        one, size = self.number(1), np.abs(x)
        h: AnyArray
        if isinstance(surrogate, Rectangle):
            width = self.number(surrogate.width)
            h = np.where(size < width / self.number(2), one / width, self.number(0))
        elif isinstance(surrogate, Triangle):
            y = one - size / self.number(surrogate.width)
            h = np.where(y > 0, y, self.number(0))
        elif isinstance(surrogate, FastSigmoid):
            h = one / (one + self.number(surrogate.beta) * size) ** 2
        elif isinstance(surrogate, Arctan):
            h = one / (one + (self.number(math.pi / 2 * surrogate.alpha) * x) ** 2)
        elif isinstance(surrogate, Logistic):
            # Not s (1 - s), whose second factor loses its digits far from the threshold.
            z = np.exp(-size / surrogate.width)
            h = z / (1 + z) ** 2 / surrogate.width
        else:
            raise TypeError(f"no literal form of the surrogate {surrogate!r}")
        return h

    def psp(self, psp: PSP, s: list[AnyArray]) -> list[AnyArray]:
        """Eq. (3a), or the difference of two such filters."""
        k, c = self.decay(psp.tau_s)
        if psp.tau_rise:
            c = self.number(1) / (self.number(psp.tau_s) - self.number(psp.tau_rise))
        a = self._exponential(k, c, s)
        if not psp.tau_rise:
            return a
        return [x - y for x, y in zip(a, self._exponential(self.decay(psp.tau_rise)[0], c, s), strict=True)]

    @staticmethod
    def _exponential(k: Any, c: Any, s: list[AnyArray]) -> list[AnyArray]:
        a: list[AnyArray] = []
        for x in s:
            a.append(k * a[-1] + c * x if a else c * x)
        return a

    def before(self, block: Block, x: AnyArray) -> AnyArray:
        """Pooling in front of the weights."""
        for layer in block.before:
            if isinstance(layer, AvgPool2d):
                k = layer.size
                b, c, h, w = x.shape
                windows = x[:, :, : h // k * k, : w // k * k].reshape(b, c, h // k, k, w // k, k)
                x = windows.sum(axis=(3, 5)) / self.number(k * k)
        return x

    def before_adjoint(self, block: Block, d: AnyArray) -> AnyArray:
        """Adjoint of `before`."""
        shapes = [block.input_shape]
        for layer in block.before:
            shapes.append(layer.output_shape(shapes[-1]))
        for layer, shape in zip(reversed(block.before), reversed(shapes[:-1]), strict=True):
            if isinstance(layer, AvgPool2d):
                k = layer.size
                spread = np.repeat(np.repeat(d, k, axis=2), k, axis=3) / self.number(k * k)
                d = self.array(np.zeros((len(d), *shape)))
                d[:, :, : spread.shape[2], : spread.shape[3]] = spread
        return d

    def product(self, block: Block, w: AnyArray, x: AnyArray) -> AnyArray:
        """`W a`, `[B, ...]`."""
        if isinstance(block.synapse, Conv2d):
            conv = block.synapse
            parts = [
                np.moveaxis(windows.reshape(*windows.shape[:3], -1) @ rows.reshape(len(rows), -1).T, 3, 1)
                for windows, rows in zip(self._windows(conv, x), np.split(w, conv.groups), strict=True)
            ]
            return np.concatenate(parts, axis=1)
        return x.reshape(len(x), -1) @ w.T

    def adjoint(self, block: Block, w: AnyArray, x: AnyArray, d: AnyArray) -> tuple[AnyArray, AnyArray]:
        """One step's term of Eq. (18), and `W^T d` carried through the pooling in front."""
        conv = block.synapse
        if not isinstance(conv, Conv2d):
            below = (d @ w).reshape(len(d), *block.synapse_shape)
            return d.T @ x.reshape(len(x), -1), self.before_adjoint(block, below)
        (_, _, rows, columns), terms = d.shape, list[AnyArray]()
        padded = self._padded(conv, self.array(np.zeros(x.shape)))
        inputs: list[AnyArray] = np.split(padded, conv.groups, axis=1)
        each = zip(
            self._windows(conv, x), np.split(w, conv.groups), np.split(d, conv.groups, axis=1), inputs, strict=True
        )
        for windows, own, error, into in each:
            terms.append(np.tensordot(error, windows, ((0, 2, 3), (0, 1, 2))))
            for y in range(rows):
                for z in range(columns):
                    into[self._place(conv, y, z)] += np.tensordot(error[:, :, y, z], own, (1, 0))
        (above, left), (height, width) = conv.paddings, x.shape[2:]
        inner = np.concatenate(inputs, axis=1)[:, :, above : above + height, left : left + width]
        return np.concatenate(terms), self.before_adjoint(block, inner)

    def _windows(self, conv: Conv2d, x: AnyArray) -> list[AnyArray]:
        """What the kernels of each group see, `[B, H', W', C / groups, rows, columns]`."""
        _, rows, columns = conv.output_shape(x.shape[1:])
        return [
            np.stack([np.stack([part[self._place(conv, y, z)] for z in range(columns)], 1) for y in range(rows)], 1)
            for part in np.split(self._padded(conv, x), conv.groups, axis=1)
        ]

    def _padded(self, conv: Conv2d, x: AnyArray) -> AnyArray:
        (above, left), (height, width) = conv.paddings, x.shape[2:]
        padded = self.array(np.zeros((*x.shape[:2], height + 2 * above, width + 2 * left)))
        padded[:, :, above : above + height, left : left + width] = x
        return padded

    @staticmethod
    def _place(conv: Conv2d, y: int, x: int) -> tuple[slice, ...]:
        """Where the kernel of the output at row `y` and column `x` lies on the padded input."""
        lies = zip((y, x), conv.strides, conv.extents, conv.dilations, strict=True)
        return (
            slice(None),
            slice(None),
            *(slice(at * stride, at * stride + extent, apart) for at, stride, extent, apart in lies),
        )
