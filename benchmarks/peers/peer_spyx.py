"""spyx (JAX): convolutions on all frames at once and `CuBaLIF` in a scan over time, jitted as a whole.

The whole network in one scan is many times slower on a CPU, where XLA computes convolutions inside a loop naively.

Its reset subtracts the threshold; it has no reset to zero. Modes: `plain` alone, which is compiled already.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from problem import Problem
from spyx import axn
from spyx import nn as spyx


class Pool(nnx.Module):  # type: ignore[misc]
    """Average pooling without state."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: Any) -> Any:
        """`[B, H, W, C]` to `[B, H/size, W/size, C]`."""
        return nnx.avg_pool(x, (self.size, self.size), (self.size, self.size))


class Channels(nnx.Module):  # type: ignore[misc]
    """Flatten as PyTorch does, channels first, so that the weights of the full connection fit."""

    def __call__(self, x: Any) -> Any:
        """`[B, H, W, C]` to `[B, N]`."""
        return (jnp.moveaxis(x, -1, 1) if x.ndim == 4 else x).reshape(x.shape[0], -1)


class Spyx:
    """A network in training."""

    def __init__(self, problem: Problem) -> None:
        self.versions = {name: importlib.metadata.version(name) for name in ("spyx", "flax", "jax", "jaxlib")}
        self.model, self.parts = network(problem)
        self.frames = jnp.asarray(np.moveaxis(problem.frames, 2, -1))
        self.target = jax.nn.one_hot(jnp.asarray(problem.labels), 10)
        self.optimizer = nnx.Optimizer(self.model, optax.adamw(problem.lr, weight_decay=0.0), wrt=nnx.Param)
        scale = problem.input_scale

        def loss(model: Any, frames: Any, target: Any) -> Any:
            out = spikes(model, frames.astype(jnp.float32) * scale)
            return ((out.mean(0) - target) ** 2).sum(1).mean()

        @nnx.jit  # type: ignore[untyped-decorator]
        def update(model: Any, optimizer: Any, frames: Any, target: Any) -> Any:
            value, gradients = nnx.value_and_grad(loss)(model, frames, target)
            optimizer.update(model, gradients)
            return value

        self.update = update
        self.scale = scale

    def step(self) -> None:
        """Forward, loss, backward, update."""
        value = self.update(self.model, self.optimizer, self.frames, self.target)
        jax.block_until_ready((value, nnx.state(self.model, nnx.Param)))  # type: ignore[no-untyped-call]

    def check(self) -> dict[str, Any]:
        """The checks of torch_network.Peer, on the first layer and on the output."""
        first = spyx.Sequential(*self.parts[:2])

        def spikes_of(model: Any, frames: Any) -> Any:
            return np.asarray(spikes(model, frames.astype(jnp.float32) * self.scale))

        first_spikes = spikes_of(first, self.frames)
        rates = [float(first_spikes.mean()), float(spikes_of(self.model, self.frames).mean())]
        assert set(np.unique(first_spikes)) <= {0.0, 1.0}, "spikes are 0 and 1"
        assert 1e-3 < rates[0] < 0.6, f"rates of the first and last layer: {rates}"
        cut = len(first_spikes) // 2
        assert np.array_equal(spikes_of(first, self.frames.at[cut:].set(0))[:cut], first_spikes[:cut]), "not causal"
        assert not np.array_equal(spikes_of(first, self.frames.at[:cut].set(0))[cut:], first_spikes[cut:]), "no memory"
        return {"spike_rates": [round(rate, 5) for rate in rates], "causal": True, "remembers": True}


def spikes(model: Any, x: Any) -> Any:
    """Output spikes of `[T, B, ...]`: neurons are run over time, everything else sees all frames at once."""
    for layer in model.layers:
        if isinstance(layer, spyx.CuBaLIF):
            # `CuBaLIF.initial_state` doubles every axis, but only channels hold two states.
            state = jnp.zeros((*x.shape[1:-1], 2 * x.shape[-1]))
            x, _ = spyx.run(spyx.Sequential(layer), x, [state])
        else:
            frames = layer(x.reshape(-1, *x.shape[2:]))
            x = frames.reshape(*x.shape[:2], *frames.shape[1:])
    return x


def network(problem: Problem) -> tuple[Any, list[Any]]:
    """The network and its parts, with the problem's weights."""
    rngs = nnx.Rngs(0)
    parts: list[Any] = []
    shape: tuple[int, ...] = tuple(int(n) for n in np.moveaxis(problem.frames, 2, -1).shape[2:])
    for layer in problem.layers:
        if layer["kind"] == "pool":
            parts.append(Pool(layer["size"]))
            shape = (shape[0] // layer["size"], shape[1] // layer["size"], shape[2])
            continue
        w = problem.weights[layer["weight"]] / problem.tau_s
        if layer["kind"] == "conv":
            padding, kernel = layer["padding"], w.shape[2]
            projection: Any = nnx.Conv(
                w.shape[1], len(w), (kernel, kernel), padding=[(padding, padding)] * 2, use_bias=False, rngs=rngs
            )
            projection.kernel[...] = jnp.asarray(w.transpose(2, 3, 1, 0))
            shape = (*(n + 2 * padding - kernel + 1 for n in shape[:2]), len(w))
        else:
            parts.append(Channels())
            projection = nnx.Linear(w.shape[1], len(w), use_bias=False, rngs=rngs)
            projection.kernel[...] = jnp.asarray(w.T)
            shape = (len(w),)
        parts.append(projection)
        alpha, beta = 1 - 1 / problem.tau_s, 1 - 1 / problem.tau_m
        neurons = spyx.CuBaLIF(
            shape, alpha=alpha, beta=beta, threshold=problem.threshold, activation=axn.superspike(3), rngs=rngs
        )
        parts.append(neurons)
    return spyx.Sequential(*parts), parts


def build(problem: Problem, mode: str) -> Spyx:
    """See the module."""
    if mode != "plain":
        raise ValueError("spyx has the mode plain alone")
    return Spyx(problem)
