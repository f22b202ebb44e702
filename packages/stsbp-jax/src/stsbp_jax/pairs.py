"""The operations as stsbp_spec.passes walks through them, inside a jit and channels-last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from stsbp_spec.backend import AbstractBackend
from stsbp_spec.expr import Recurrence
from stsbp_spec.synapses import AvgPool2d, Conv2d, Linear
from stsbp_spec.tables import implementation
from stsbp_spec.typing import Precision, Shape

from stsbp_jax.grid import error_grid, wide
from stsbp_jax.recurrence import recur
from stsbp_jax.synapses import avgpool2d, conv2d, dropout, linear

__all__ = ["PAIRS", "Pairs"]

_SYNAPSES: dict[type, Any] = {Conv2d: conv2d, Linear: linear}


class Pairs:
    """The part of `AbstractBackend` that computes, on traced channels-last arrays."""

    block_forward = AbstractBackend.block_forward
    block_backward = AbstractBackend.block_backward
    neuron_forward = AbstractBackend.neuron_forward
    neuron_backward = AbstractBackend.neuron_backward
    learned_gradient = AbstractBackend.learned_gradient
    neuron_potentials = AbstractBackend.neuron_potentials
    psp_forward = AbstractBackend.psp_forward
    psp_backward = AbstractBackend.psp_backward
    loss_error = AbstractBackend.loss_error
    adamw = AbstractBackend.adamw

    def recur(
        self,
        recurrence: Recurrence,
        constants: Mapping[str, Any],
        inputs: Mapping[str, Array],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Array]:
        return recur(recurrence, constants, inputs, steps, summed=summed)

    def spread(self, values: Array, shape: Shape) -> Array:
        return jnp.broadcast_to(values, (1, *shape))

    def totals(self, x: Array, count: int) -> Array:
        with wide():
            return x.reshape(-1, count).astype(np.float64).sum(axis=0).astype(np.float32)

    def synapse_forward(self, synapse: Conv2d | Linear, s: Array, wq: Array) -> tuple[Array, Any]:
        return implementation("jax", _SYNAPSES, synapse, "synapse").forward(synapse, s, wq), (s, wq)

    def synapse_backward(
        self, synapse: Conv2d | Linear, residuals: Any, dz: Array, *, precision: Precision, need_input: bool
    ) -> tuple[Array | None, Array]:
        s, wq = residuals
        back: tuple[Array | None, Array] = implementation("jax", _SYNAPSES, synapse, "synapse").backward(
            synapse, s, wq, dz, precision=precision, need_input=need_input
        )
        return back

    def avgpool2d_forward(self, pool: AvgPool2d, s: Array) -> tuple[Array, Shape]:
        return avgpool2d.forward(pool, s), s.shape

    def avgpool2d_backward(self, pool: AvgPool2d, shape: Shape, d: Array) -> Array:
        return avgpool2d.backward(pool, shape, d)

    def dropout_mask(self, seed: Array, layer: int, step: Array, shape: Shape, rate: float) -> Array:
        return dropout.mask(seed, layer, step, shape, rate)

    def dropout(self, mask: Array, s: Array) -> Array:
        return dropout.forward(mask, s)

    def error_grid(self, dz: Array, bits: int) -> tuple[Array, Array]:
        return error_grid(dz, bits)

    def pack_spikes(self, s: Array) -> Any:
        # Behind the barrier the compiler cannot see that a block is run on the same spikes again.
        barrier: Any = jax.lax.optimization_barrier
        return barrier(jnp.packbits(s.astype(np.uint8), axis=None)), s.shape, s.dtype

    def unpack_spikes(self, packed: Any) -> Array:
        bits, shape, dtype = packed
        return jnp.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(dtype)


PAIRS = cast(AbstractBackend, Pairs())
