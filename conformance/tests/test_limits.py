"""Error grids at the limit of their bits, on every backend: errors whose last bits decide how many bits a grid has.

All neurons have the surrogate derivative 1 and no memory, so that the errors of the weighted sums are the given errors
of the output. In each batch, the largest error is 1. Other errors end with a bit of one unit of the grid, which stays,
or of half a unit, which is rounded away. One bit more or less of the grid changes one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_spec.contract.grid import ceil_log2
from stsbp_spec.distributed.collective import Alone, BatchSlice
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.passes import backward_pass, backward_passes, forward_pass, forward_passes
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import Rectangle
from stsbp_spec.networks.graph import Edge, Input, Network, Neurons, Node
from stsbp_spec.networks.ops import BatchNorm, Linear, OneToOne
from stsbp_spec.typing import AnyArray, Float32

BATCH = 8
NEURON = LIF(tau_m=1, tau_s=1, threshold=0.25, surrogate=Rectangle(1.0))

WEIGHTS_BITS = 53 - ceil_log2(BATCH)
"""One bit of input, `BATCH` frames, and weights of 2 bits into one neuron."""
BIAS_BITS = 53 - ceil_log2(BATCH)
NORM_BITS = 53 - 12 - ceil_log2(BATCH)
LOOP_BITS = 53 - 12


def _errors(bits: int) -> Float32:
    """Errors of the samples, `[B]`, for a grid of `bits` bits, whose unit is `2^-(bits - 1)`."""
    unit = 2.0 ** -(bits - 1)
    ends = [0.0, unit, unit / 2, -unit, 1.5 * unit]
    # Small enough multiples of 2^14 units that float32 holds the sums.
    large = [1.0, *(sign * k * 2.0**14 * unit for k, sign in ((3, 1), (5, 1), (7, -1), (9, 1)))]
    errors = np.array([a + b for a, b in zip(large, ends, strict=True)], np.float32)
    assert (errors == np.array(large) + np.array(ends)).all()
    return np.concatenate([errors, np.zeros(BATCH - len(errors), np.float32)])


def _on_grid(errors: Float32, bits: int) -> Float32:
    unit = 2.0 ** -(bits - 1)
    return (np.rint(errors.astype(np.float64) / unit) * unit).astype(np.float32)


def _network(weights: Linear) -> Network:
    return Network(
        (
            Node("input", Input((BATCH,))),
            Node("w", weights, (Edge("input"),)),
            Node("n", Neurons(NEURON), (Edge("w"),)),
        )
    )


def _gradients(
    backend: AbstractBackend[Any], network: Network, wq: dict[str, AnyArray], error: Float32, sizes: list[int]
) -> dict[str, AnyArray]:
    """Gradients of one step whose sample `b` has an event in input `b`, computed in parts of these sizes."""
    firsts = np.cumsum([0, *sizes[:-1]])
    parts = [BatchSlice(int(first), size, BATCH) for first, size in zip(firsts, sizes, strict=True)]
    frames = np.eye(BATCH, dtype=np.uint8)[None]
    inputs = [backend.encode(frames[:, part.first : part.end], "events") for part in parts]
    native = {name: backend.asarray(x) for name, x in wq.items()}
    traces = forward_passes(backend, network, native, inputs, 1, None, parts, Alone(), "full")
    errors = [backend.asarray(error[:, part.first : part.end].copy()) for part in parts]
    gradients = backward_passes(traces, errors, "reproducible")
    return {name: backend.numpy(x) for name, x in gradients.items()}


PARTS = pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5]], ids=["whole", "single samples", "two parts"])


@PARTS
def test_the_grid_of_weights_has_the_bits_of_the_whole_batch(stsbp_backend: AbstractBackend, sizes: list[int]) -> None:
    network = _network(Linear(1, weight_bits=2))
    errors = _errors(WEIGHTS_BITS)
    assert network.projections[0].error_bits(frames=BATCH) == WEIGHTS_BITS
    wq = {"w": np.zeros((1, BATCH), np.float32)}
    gradients = _gradients(stsbp_backend, network, wq, errors.reshape(1, BATCH, 1), sizes)
    assert gradients["w"].reshape(-1).tolist() == _on_grid(errors, WEIGHTS_BITS).tolist()


@PARTS
def test_the_grid_of_learned_parameters_has_the_bits_of_the_whole_batch(
    stsbp_backend: AbstractBackend, sizes: list[int]
) -> None:
    network, errors = _network(Linear(BATCH, bias=True)), _errors(BIAS_BITS)
    wq = {"w": np.zeros((BATCH, BATCH), np.float32), "w.bias": np.zeros(BATCH, np.float32)}
    gradients = _gradients(stsbp_backend, network, wq, np.diag(errors)[None], sizes)
    assert gradients["w.bias"].tolist() == _on_grid(errors, BIAS_BITS).tolist()


@PARTS
def test_the_grid_of_normalised_sums_has_the_bits_of_the_whole_batch(
    stsbp_backend: AbstractBackend, sizes: list[int]
) -> None:
    network, errors = _network(Linear(BATCH, norm=BatchNorm())), _errors(NORM_BITS)
    # With running statistics, whose grid is the same as that of the statistics of a batch.
    one, zero = np.ones(BATCH, np.float32), np.zeros(BATCH, np.float32)
    wq = {"w": np.zeros((BATCH, BATCH), np.float32), "w.scale": one, "w.shift": zero}
    wq |= {"w.mean": zero, "w.variance": one, "w.exponent": np.array([0], np.int32)}
    gradients = _gradients(stsbp_backend, network, wq, np.diag(errors)[None], sizes)
    assert gradients["w.shift"].tolist() == _on_grid(errors, NORM_BITS).tolist()


def test_the_grid_of_a_recurrence_has_the_bits_of_its_weights(stsbp_backend: AbstractBackend) -> None:
    """The error of the second step reaches the first one through weights of 1."""
    network = Network(
        (
            Node("input", Input((BATCH,))),
            Node("w", Linear(BATCH, weight_bits=2), (Edge("input"),)),
            Node("own", OneToOne(), (Edge("n", 1),)),
            Node("n", Neurons(NEURON), (Edge("w"), Edge("own"))),
        )
    )
    errors = _errors(LOOP_BITS)
    wq = {"w": np.zeros((BATCH, BATCH), np.float32), "own": np.ones((BATCH, 1), np.float32)}
    native = {name: stsbp_backend.asarray(x) for name, x in wq.items()}
    frames = np.zeros((2, 1, BATCH), np.uint8)
    frames[0, 0, 0] = 1
    trace = forward_pass(stsbp_backend, network, native, stsbp_backend.encode(frames, "events"), 2, None)
    error = np.stack([np.zeros((1, BATCH), np.float32), errors[None]])
    gradients = backward_pass(trace, stsbp_backend.asarray(error), "reproducible")
    # The weights from input 0 have the errors of the first step, on a grid with more bits.
    assert stsbp_backend.numpy(gradients["w"])[:, 0].tolist() == _on_grid(errors, LOOP_BITS).tolist()
