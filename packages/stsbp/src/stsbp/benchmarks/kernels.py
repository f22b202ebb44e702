"""The memory traffic of the fused LIF pair, compared with a plain copy in the same run.

The forward pass reads z (4 bytes per neuron and step), and writes u (4) and the spike (1). The backward pass reads u
(4), the spike (1) and the incoming error (4), and writes dL/dz (4). A backend that stores more, or reads its arrays
twice, takes longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.models.neurons.lif import LIF
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import Float32

from stsbp.benchmarks.device import copier, queued, synchronise
from stsbp.benchmarks.result import Announce, Row
from stsbp.benchmarks.timing import Timing, interleaved

__all__ = ["BACKWARD_BYTES", "COPIED", "FORWARD_BYTES", "SIZES", "measure"]

FORWARD_BYTES, BACKWARD_BYTES = 9, 13
SIZES = ((4, 2_000_000), (25, 2_000_000), (100, 250_000))
"""Numbers of steps and neurons."""

COPIED = 32 * 2**20
"""Number of floats in the copy: 128 MB in each direction, more than any cache can hold."""


def measure(backend: AbstractBackend, *, scale: float, rounds: int, announce: Announce) -> list[Row]:
    """Time the LIF pair at each of `SIZES`, alternating with the copy.

    Args:
        backend: the backend to measure.
        scale: factor of the number of neurons and of the size of the copy.
        rounds: number of timed rounds.
        announce: function that receives what is measured next.
    """
    rows: list[Row] = []
    for steps, full_neurons in SIZES:
        neurons = max(1, round(full_neurons * scale))
        case = f"T={steps} N={neurons}"
        announce(f"LIF neurons, {case}")
        copy, bytes_copied = copier(backend, max(1, round(COPIED * scale)))
        forward, backward, density = _pair(backend, steps, neurons)
        timings = interleaved({"copy": copy, "forward": forward, "backward": backward}, rounds=rounds)
        calls = queued(backend)
        times = {name: Timing(tuple(x / calls for x in timing.seconds)) for name, timing in timings.items()}
        bandwidth = bytes_copied / times["copy"].median
        rows.append(Row("kernels", case, "copy", times["copy"], detail=_bandwidth(bytes_copied, times["copy"].median)))
        for name, per_step in (("forward", FORWARD_BYTES), ("backward", BACKWARD_BYTES)):
            bytes_moved = per_step * steps * neurons
            detail = {**_bandwidth(bytes_moved, times[name].median), "spike_rate": density}
            ratio = detail["bytes_per_second"] / bandwidth
            rows.append(Row("kernels", case, f"lif {name}", times[name], "copy", ratio, detail))
    return rows


def _bandwidth(count: int, seconds: float) -> dict[str, Any]:
    return {"bytes": count, "bytes_per_second": count / seconds}


def _pair(backend: AbstractBackend, steps: int, neurons: int) -> tuple[Callable[[], None], Callable[[], None], float]:
    """`queued` forward and backward calls on synthetic input with about one spike per ten neurons; and the exact
    share."""
    neuron, filter, calls = LIF(tau_m=5.0, tau_s=3.0), PSP(3.0).filter(), queued(backend)
    z = backend.asarray(_noise(steps, neurons, seed=1, mean=0.3, width=1.4))
    error = backend.asarray(_noise(steps, neurons, seed=2, mean=0.0, width=1.0))
    spikes, residuals = backend.neuron_forward(neuron, filter, z, steps)
    rate = backend.spike_rate(spikes)
    del spikes

    # Drop the results before the next call, so that a backend can reuse their memory.
    def forward() -> None:
        for _ in range(calls - 1):
            backend.neuron_forward(neuron, filter, z, steps)
        synchronise(backend.neuron_forward(neuron, filter, z, steps)[0])

    def backward() -> None:
        for _ in range(calls - 1):
            backend.neuron_backward(neuron, filter, residuals, error)
        synchronise(backend.neuron_backward(neuron, filter, residuals, error)[0])

    return forward, backward, rate


def _noise(steps: int, neurons: int, *, seed: int, mean: float, width: float) -> Float32:
    """Uniformly distributed float32 numbers `[T, 1, N]`, independent in time."""
    random = np.random.default_rng(seed).random((steps, 1, neurons), dtype=np.float32)
    random -= np.float32(0.5)
    random *= np.float32(width)
    random += np.float32(mean)
    return random
