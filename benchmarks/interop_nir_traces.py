"""One LIF neuron beside the traces of others: `python benchmarks/interop_nir_traces.py NIR/paper/01_lif`.

The paper of NIR comes with a graph of one LIF (`tau` 2.5 ms, `r` 1, `v_threshold` 0.1, steps of 0.1 ms) and, for each
of several simulators, with input, potential and spikes of 1,000 steps. Ours is `v = (1 - dt/tau) v + x` in units of
`r dt/tau`, so that the weight is 1 and the threshold 2.5. Printed is where each one spikes, and how far its potential
is from ours, in units of the threshold, at steps where neither has spiked since both were below half of it.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from stsbp_spec import NetworkSpec, open_backend
from stsbp_spec.models.neurons import LIF
from stsbp_spec.typing import Float32, Float64, UInt8

THRESHOLDS = {
    "lif_nengo": 1.0,
    "lif_snntorch": 2.5,
    "lif_spinnaker2": 2.5,
    "lif_lava_cpu_fixed": 1600.0,
    "lif_lava_loihi_fixed": 1600.0,
}
"""Of traces in units of their own; that of the file is 0.1. Those in integers add 640 for a spike of 0.04."""


def ours(inputs: UInt8) -> tuple[Float32, UInt8]:
    """Potentials after each reset, and spikes, `[T]`."""
    network = NetworkSpec.parse("1", input_shape=(1,), outputs=1, neuron=LIF(tau_m=25, tau_s=1, threshold=2.5))
    weights = {"linear1": np.ones((1, 1), np.float32)}
    (layer,) = open_backend("numpy").run(network, weights, inputs[:, None, None], len(inputs)).layers.values()
    spikes = layer.spikes[:, 0, 0]
    return np.where(spikes == 1, 0, layer.potentials[:, 0, 0]), spikes


def distance(potentials: Float32, other: Float64) -> float:
    """The largest distance of potentials up to the first spike of either, which resets them differently."""
    return float(np.abs(potentials - other).max(initial=0))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Print a table in Markdown."""
    print("| trace | spikes at | ours at | largest distance before the first spike | ... a step later |")
    print("|---|---|---|---|---|")
    for path in sorted(folder.glob("lif_*.csv")):
        inputs, potentials, spikes = np.loadtxt(path, delimiter=",").T
        our_potentials, our_spikes = ours((inputs > 0).astype(np.uint8))
        threshold = THRESHOLDS.get(path.stem, 0.1)
        potentials, our_potentials = potentials / threshold, our_potentials / np.float32(2.5)
        at, our_at = np.flatnonzero(spikes), np.flatnonzero(our_spikes)
        first = min(at[0], our_at[0])
        late = distance(our_potentials[: first - 1], potentials[1:first])
        columns = [path.stem, *(" ".join(map(str, steps)) for steps in (at, our_at))]
        print(
            "| "
            + " | ".join([*columns, f"{distance(our_potentials[:first], potentials[:first]):.2g}", f"{late:.2g}"])
            + " |"
        )


if __name__ == "__main__":
    main()
