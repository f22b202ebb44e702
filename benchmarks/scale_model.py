"""A training step on many devices, on paper: `python benchmarks/scale_model.py`.

The network says what a step exchanges: a maximum for each layer with weights, the sums of all gradients (8 bytes a
number in `reproducible` precision, 4 in `fast`), one report. Links and devices are assumptions, given as options. A sum
goes round a ring of n devices, 2 (n - 1) delays and 2 (n - 1) / n of the bytes, or through a tree, 2 log2(n) delays and
twice the bytes, whichever is sooner. A device's speed is what it makes of the network's multiply-adds. Sums of the
layers above are under way while those below are computed, so that only what the backward pass does not cover is
waited for; maxima are waited for.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from harness import factor, guarded, parser_of, table
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Coding, Shape

NETWORKS: dict[str, tuple[str, Shape, Coding, str, int, int, int]] = {
    "N-MNIST": ("12C5-P2-64C5-P2", (2, 34, 34), "events", "valid", 10, 25, 50),
    "CIFAR-10, small": ("32C3-64C3-P2-128C3-P2-128C3-256", (3, 32, 32), "direct", "same", 10, 5, 50),
    "CIFAR-10, full": (
        "128C3-256C3-P2-512C3-P2-1024C3-512C3-1024-512", (3, 32, 32), "direct", "same", 10, 5, 50,
    ),
    # VGG-11 without its last full connections: 9.2 million weights of convolutions and 0.5 of the classifier.
    "224 x 224, 11 layers": (
        "64C3-P2-128C3-P2-256C3-256C3-P2-512C3-512C3-P2-512C3-512C3-P2-P4",
        (3, 224, 224), "direct", "same", 1000, 4, 32,
    ),
}  # fmt: skip
"""Notation, input, coding, padding, outputs, steps, and samples a device."""


@dataclass(frozen=True)
class Load:
    """What one step of a network computes and sends.

    Attributes:
        multiply_adds: of a device, forward and backward, all steps.
        layers: with weights, and so maxima that are waited for.
        numbers: of gradients.
        report: bytes of output spikes and counts of a device.
    """

    multiply_adds: float
    layers: int
    numbers: int
    report: int


@dataclass(frozen=True)
class Link:
    """Seconds of delay, and bytes a second of the slowest link of a ring."""

    delay: float
    bandwidth: float

    def small(self, devices: int) -> float:
        """Seconds of a message that is all delay."""
        return 2 * math.ceil(math.log2(devices)) * self.delay if devices > 1 else 0.0

    def total(self, devices: int, size: float) -> float:
        """Seconds of a sum of `size` bytes."""
        if devices == 1:
            return 0.0
        ring = 2 * (devices - 1) * (self.delay + size / devices / self.bandwidth)
        return min(ring, self.small(devices) + 2 * size / self.bandwidth)


def load_of(name: str) -> Load:
    """The load of a network of `NETWORKS`."""
    notation, shape, coding, padding, outputs, steps, batch = NETWORKS[name]
    network = NetworkSpec.parse(notation, input_shape=shape, outputs=outputs, coding=coding, padding=padding)
    macs = 0
    for projection in network.graph.projections:
        frames = 1 if projection.input.static else steps
        # Forward, the gradient of the weights, and, but for the first layer, the error of the input.
        macs += (2 if projection.index == 0 else 3) * frames * projection.multiply_adds
    numbers = sum(math.prod(parameter.shape) for parameter in network.parameters.values())
    return Load(batch * macs, len(network.graph.projections), numbers, steps * batch * outputs // 8 + 24 * 8)


def times(load: Load, link: Link, devices: int, speed: float, *, reproducible: bool) -> tuple[float, float]:
    """Seconds of computing, and of waiting for others, of a step."""
    computing = load.multiply_adds / speed
    sums = link.total(devices, (8 if reproducible else 4) * load.numbers)
    # Two thirds of the step are the backward pass, in which sums are under way.
    waiting = max(0.0, sums - computing * 2 / 3) + link.small(devices)
    if reproducible:
        waiting += load.layers * link.small(devices)
    return computing, waiting


def main(arguments: list[str] | None = None) -> None:
    """Print a table for each precision."""
    parser = parser_of(__doc__)
    parser.add_argument("--speed", type=factor, default=20.0, help="of a device, tera multiply-adds a second, fast")
    parser.add_argument("--exact", type=factor, default=4.0, help="how much slower a device is in float64 products")
    parser.add_argument("--node-delay", type=factor, default=8.0, help="microseconds between devices of a node")
    parser.add_argument("--node-bandwidth", type=factor, default=200.0, help="GB/s between devices of a node")
    parser.add_argument("--net-delay", type=factor, default=20.0, help="microseconds between nodes")
    parser.add_argument("--net-bandwidth", type=factor, default=40.0, help="GB/s between nodes, of each device's link")
    options = parser.parse_args(arguments)
    node = Link(options.node_delay * 1e-6, options.node_bandwidth * 1e9)
    net = Link(options.net_delay * 1e-6, options.net_bandwidth * 1e9)
    rows = []
    for name in NETWORKS:
        load = load_of(name)
        for precision, size, slower in (("fast", 4, 1.0), ("reproducible", 8, options.exact)):
            reproducible, speed = size == 8, options.speed * 1e12 / slower
            cells = [f"{1e3 * times(load, node, 1, speed, reproducible=reproducible)[0]:.2f}"]
            for devices, link in ((8, node), (512, net)):
                computing, waiting = times(load, link, devices, speed, reproducible=reproducible)
                cells.append(f"{1e3 * (computing + waiting):.2f} ms, {computing / (computing + waiting):.0%}")
            sent = (f"{load.numbers / 1e6:.2f} M", load.layers * reproducible, f"{size * load.numbers / 1e6:.2f}")
            rows.append((name, precision, *sent, *cells))
    columns = "network, precision, weights, maxima, MB a step, 1 device ms, 8 in a node, 512 in 64 nodes"
    print(table(columns.split(", "), rows))


if __name__ == "__main__":
    sys.exit(guarded(main))
