"""A recurrent layer in training, here and in other libraries, in turn: `python benchmarks/recurrent.py --envs FOLDER`.

One update (forward, backward, AdamW) of a network of one recurrent layer and a readout: spikes of INPUTS channels, 256
LIF neurons that read their own spikes of the step before through a full connection, 10 output neurons, T = 100,
B = 64. As in compare.py each library lives in a process and an environment of its own (`nox -s bench_peers` makes
them) and makes a step when it is told to; all start from the same weights, and the checks of peers/torch_network.py
hold.
The projection of the input is one product over all steps wherever the library lets it be one.

Modes of the peers: those of peers/torch_network.py, and of norse `cell` (see peers/peer_norse.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from compare import compare, table
from options import count, guarded, parser_of, write_report
from problem import Problem
from stsbp.benchmarks.device import describe
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import open_backend

__all__ = ["main", "make_problem"]

OUTPUTS, DENSITY, GAIN = 10, 0.05, 2.0
PEERS = {
    "norse": ("plain", "step", "cell", "network"),
    "snntorch": ("plain", "step", "network"),
    "spikingjelly": ("plain", "network"),
}
"""Modes of each that are timed: `plain` where it is not the slowest, and what compiles."""


def make_problem(steps: int, batch: int, inputs: int, neurons: int, precision: str) -> Problem:
    """The network, its initial weights and a random batch."""
    notation = f"{neurons}R"
    network = NetworkSpec.parse(notation, input_shape=(inputs,), outputs=OUTPUTS)
    random = np.random.default_rng(0)
    return Problem(
        layers=[
            {"kind": "recurrent", "weight": "linear1", "recurrent": "linear1.recurrent"},
            {"kind": "linear", "weight": "linear2"},
        ],
        weights=initial_weights(network, 0, GAIN),
        inputs=(random.random((steps, batch, inputs)) < DENSITY).astype(np.uint8),
        labels=random.integers(0, OUTPUTS, batch),
        steps=steps,
        tau_m=5.0,
        tau_s=3.0,
        threshold=0.5,
        lr=1e-4,
        setup={"case": "recurrent", "network": notation, "outputs": OUTPUTS, "precision": precision},
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print a table, write JSON."""
    parser = parser_of(__doc__, "rounds", "out", rounds=15)
    location = parser.add_mutually_exclusive_group(required=True)
    location.add_argument("--envs", type=Path, help="folder of the peers' environments, one a name")
    location.add_argument("--here", action="store_true", help="the peers are installed beside stsbp")
    parser.add_argument("--steps", type=count, default=100, help="T")
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--inputs", type=count, default=256, help="input channels")
    parser.add_argument("--neurons", type=count, default=256)
    parser.add_argument("--precision", choices=["fast", "reproducible"], default="fast", help="of stsbp")
    parser.add_argument("--own", nargs="*", default=["torch", "jax"], help="backends of stsbp, e.g. torch=cpu:eager")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="which of them")
    parser.add_argument("--modes", nargs="*", help="of each peer; default: those that may be its fastest")
    parser.add_argument("--patience", type=float, default=900, help="seconds for a library to compile and warm up")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, steadier on a busy machine; give each one thread (OMP_NUM_THREADS=1 and "
        "NUMBA_NUM_THREADS=1), since threads that wait use it too",
    )
    options = parser.parse_args(arguments)
    interpreter = Path(sys.executable)
    libraries = [(interpreter, "stsbp", mode) for mode in options.own]
    for peer in options.peers:
        python = interpreter if options.here else options.envs / peer / "bin" / "python"
        libraries += [(python, peer, mode) for mode in (options.modes or PEERS[peer])]
    sizes = (options.steps, options.batch, options.inputs, options.neurons)
    problem = make_problem(*sizes, options.precision)
    logs = (options.out or Path("recurrent")).parent / "logs"
    loads = [os.getloadavg()[0]]
    clock = {"wall": "seconds", "cpu": "processor_seconds"}[options.clock]
    records = compare(problem, libraries, rounds=options.rounds, patience=options.patience, logs=logs, clock=clock)
    loads.append(os.getloadavg()[0])
    title = "T={} B={}, {} inputs, {} neurons".format(*sizes)
    print(f"\n{title}, {options.precision}, {options.clock} clock, load {loads[0]:.1f} and, after, {loads[1]:.1f}\n")
    print(table(records))
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("rounds", "precision", "clock")}
    settings |= {"load": loads, "threads": os.environ.get("OMP_NUM_THREADS")}
    report = {"format": 1, "machine": describe(open_backend("numpy"), settings), "size": title, "records": records}
    write_report(report, options.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
