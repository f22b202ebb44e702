"""Where the sparse kernels of the torch backend overtake the dense ones on this CPU, operation by operation.

`python benchmarks/crossover.py [--out FILE.json]`. For each convolution of the two networks that is fed spikes: the
forward pass (convolution, filter, neurons) as sparse kernel, as convolution of bytes and as convolution of floats,
and the gradient of the weights (with the neurons' backward pass) as sparse kernel and as oneDNN's, over densities
of the input after the pooling; and the error of the input, computed where a compact surrogate needs it or
everywhere, over the share that is needed. The crossing is interpolated on the logarithm of the density.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import guarded, parser_of, write_report
from stsbp.benchmarks.cases import CASES, Case
from stsbp.benchmarks.timing import interleaved
from stsbp.training.build import build_network
from stsbp_cpu.engine import block as sparse
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.plan import plan
from stsbp_spec.engine.rules import PassContext
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import AvgPool2d
from stsbp_spec.registry import open_backend
from stsbp_torch.ops import conv2d, conv2d_bytes

OPERATIONS = (
    ("forward", "sparse", "bytes"),
    ("forward", "sparse", "floats"),
    ("gradient", "sparse", "dense"),
    ("error", "needed", "dense"),
)
DENSITIES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


def crossing(densities: list[float], sparse_times: list[float], dense_times: list[float]) -> float | None:
    """The density at which the sparse kernel stops being faster; None where it is not at the smallest."""
    gain = [math.log(d / s) for s, d in zip(sparse_times, dense_times, strict=True)]
    if gain[0] <= 0:
        return None
    for i in range(1, len(gain)):
        if gain[i] <= 0:
            low, high = math.log(densities[i - 1]), math.log(densities[i])
            return math.exp(low + (high - low) * gain[i - 1] / (gain[i - 1] - gain[i]))
    return 1.0


def operations(
    backend: Any, step: sparse.SparseBlock, weights: Any, steps: int, batch: int, density: float
) -> dict[str, Any]:
    """Pieces of work of one block on random spikes."""
    conv, neuron, (entering,) = step.conv, step.neurons.op.model, step.bound_nodes[0].inputs
    area = next(
        (bound_node.node.op.area for bound_node in step.bound_nodes if isinstance(bound_node.node.op, AvgPool2d)), 1
    )
    pixel_density = 1 - (1 - density) ** (1 / area)
    random = np.random.default_rng(1)
    frames = (random.random((steps, batch, *entering.shape), np.float32) < pixel_density).astype(np.uint8)
    s = backend.asarray(frames)
    wq, _ = backend.weight_grid(step.projection, backend.asarray(weights))
    run = PassContext({step.projection.name: wq}, steps, (0, 0), BatchSlice(0, batch, batch))
    layer_input, filter = step.conv_input(run, s), step.neurons.filters[run.training]
    floats = step.dense.saved_for_backward(step.floats(layer_input)[0], wq)
    learned = step.neurons.learned(run)
    spikes, neurons = step.fire(layer_input, wq, filter, steps, learned)
    ds = backend.asarray(random.standard_normal(tuple(spikes.shape), np.float32))

    def forward_sums(of_bytes: bool) -> None:
        step.neurons.forward_slice(run, step.sums(layer_input, wq, of_bytes=of_bytes))

    def dense_gradient() -> None:
        dz, _, _ = step.propagate(layer_input, neurons, ds, filter, need_error=True, need_weights=False)
        conv2d.backward(conv, floats, dz, precision="fast", need_input=False)

    work: dict[str, Callable[[], object]] = {
        "forward sparse": lambda: step.fire(layer_input, wq, filter, steps, learned),
        "forward floats": lambda: forward_sums(False),
        # The error of `z` is stored for the layer below, as in training.
        "gradient sparse": lambda: step.propagate(
            layer_input, neurons, ds, filter, need_error=step.needed[0], need_weights=True
        ),
        "gradient dense": dense_gradient,
    }
    if step.needed[0] and step.may_defer:
        deferred = sparse.DeferredError(step, layer_input, wq, backend.asarray(neurons.kept["u"].numpy()))
        # Potentials of the layer below: near the threshold as often as its neurons spike here.
        potentials_below = backend.asarray(np.where(frames > 0, np.float32(neuron.threshold), np.float32(-9)))
        work["error needed"] = lambda: deferred.needed(potentials_below, neuron)
        work["error dense"] = deferred.all
    if conv2d_bytes.usable(conv, step.projection.input.shape, int(step.projection.input.maximum * layer_input.size**2)):
        work["forward bytes"] = lambda: forward_sums(True)
    return work


def measure(case: Case, *, rounds: int, scale: float) -> list[dict[str, Any]]:
    """Times and crossings of every block of a network that is fed spikes."""
    backend = open_backend("torch", "cpu")
    config = case.config(scale, surrogate="triangle:width=0.5")
    network = build_network(config, case.inputs)
    weights = initial_weights(network, config.seed, config.init_gain)
    records: list[dict[str, Any]] = []
    for step in plan(backend, network.graph).steps:
        if not isinstance(step, sparse.SparseBlock):
            continue
        name_of_weights = step.projection.name
        times: dict[str, list[float]] = {}
        for density in DENSITIES:
            work = operations(backend, step, weights[name_of_weights], case.steps, config.batch_size, density)
            for name, timing in interleaved(work, rounds=rounds).items():
                times.setdefault(name, []).append(timing.median)
        crossings = {
            f"{operation} {fewer} / {dense}": crossing(list(DENSITIES), times[f"{operation} {fewer}"], times[key])
            for operation, fewer, dense in OPERATIONS
            if (key := f"{operation} {dense}") in times
        }
        records.append({"case": case.name, "block": name_of_weights, "seconds": times, "crossings": crossings})
    return records


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    options = parser_of(__doc__, "rounds", "scale", "out").parse_args(arguments)
    records = [r for case in CASES.values() for r in measure(case, rounds=options.rounds, scale=options.scale)]
    for r in records:
        print(f"\n{r['case']} {r['block']}: milliseconds at densities {', '.join(map(str, DENSITIES))}")
        for name, seconds in r["seconds"].items():
            print(f"  {name:16} " + " ".join(f"{1e3 * x:7.2f}" for x in seconds))
        for name, density in r["crossings"].items():
            print(f"  {name}: " + ("never faster" if density is None else f"up to a density of {density:.3f}"))
    settings = {"rounds": options.rounds, "scale": options.scale, "densities": DENSITIES}
    write_report(options.out, open_backend("torch", "cpu"), settings, blocks=records)


if __name__ == "__main__":
    sys.exit(guarded(main))
