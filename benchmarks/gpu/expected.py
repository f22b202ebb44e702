"""What a GPU should take, on paper: `python benchmarks/gpu/expected.py [--gpu h100] [--scale 1]` prints the table.

An expectation, not a measurement. Each piece of work has the bytes that it must move, the operations that it must do,
and how often the host launches something for it. It takes as long as the slowest of the three: bytes at a share of what
a copy moves, operations at a share of what the unit can do, launches at what the host needs for one. The shares are
guesses that were written down before anything was seen; `verdict` says how a measured time stands to them.

Peak numbers are NVIDIA's for dense operations (H100 SXM5: 3.35 TB/s, 66.9 TFLOP/s float32, 989.4 half precision on
tensor cores, 66.9 float64 on tensor cores, 50 MB of L2 cache).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

sys.path[:0] = [str(Path(__file__).parents[1])]

from harness import guarded, parser_of, table, write_report  # noqa: E402
from stsbp.benchmarks.cases import CASES, Case  # noqa: E402
from stsbp.benchmarks.kernels import BACKWARD_BYTES, COPIED, FORWARD_BYTES, SIZES  # noqa: E402
from stsbp.training.build import build_network  # noqa: E402
from stsbp_spec.networks.layers import Block  # noqa: E402
from stsbp_spec.networks.ops import AvgPool2d, Conv2d  # noqa: E402
from stsbp_spec.networks.spec import NetworkSpec  # noqa: E402

Unit: TypeAlias = Literal["none", "float32", "half", "float64"]


@dataclass(frozen=True)
class Gpu:
    """Peak numbers.

    Attributes:
        bandwidth: of its memory, bytes a second, those read and those written.
        cache: bytes of L2.
        float32, half, float64: operations a second, a multiply-add counts as two; half and float64 on tensor cores.
    """

    name: str
    bandwidth: float
    cache: float
    float32: float
    half: float
    float64: float

    @property
    def copy(self) -> float:
        """Bytes a second of a large copy: 0.9 of the peak."""
        return 0.9 * self.bandwidth

    def rate(self, unit: Unit) -> float:
        """Operations a second that large products reach: 0.6 of the peak, on tensor cores in half precision 0.4."""
        peak = {"none": math.inf, "float32": self.float32, "half": self.half, "float64": self.float64}[unit]
        return peak * (0.4 if unit == "half" else 0.6)


GPUS = {
    "h100": Gpu("H100 SXM5", 3.35e12, 50e6, 66.9e12, 989.4e12, 66.9e12),
    "h200": Gpu("H200 SXM", 4.8e12, 50e6, 66.9e12, 989.4e12, 66.9e12),
}
NEURONS_SHARE = 0.85
"""Of the copy's speed, which the neurons' kernels are to reach."""
NODE = 1.5e-6
"""Seconds between two kernels of a CUDA graph, at least."""


@dataclass(frozen=True)
class Host:
    """What the host needs.

    Attributes:
        launch: seconds to launch one kernel from Python; of a compiled program from its runtime.
        call: seconds of one call of a neuron's kernel, its outputs allocated.
        fixed: seconds of a step beside launches: checks, walking, two waits, what is read.
    """

    launch: float
    call: float
    fixed: float


BACKENDS = {
    "torch": Host(7e-6, 40e-6, 0.5e-3),
    "cupy": Host(15e-6, 50e-6, 0.5e-3),
    "jax": Host(2.5e-6, 40e-6, 0.5e-3),
}
"""Backends on a GPU."""


@dataclass(frozen=True)
class Work:
    """A piece of a training step.

    Attributes:
        group: `forward`, `neurons`, `backward` or `rest`.
        bytes: read and written, each array once.
        operations: two for a multiply-add.
        unit: that does them.
        launches: kernels.
        share: of the copy's speed.
    """

    group: str
    what: str
    bytes: float
    operations: float = 0.0
    unit: Unit = "none"
    launches: int = 1
    share: float = NEURONS_SHARE

    def seconds(self, gpu: Gpu) -> float:
        """On the device."""
        moving = self.bytes / (self.share * gpu.copy)
        return max(moving, self.operations / gpu.rate(self.unit), self.launches * NODE)


@dataclass(frozen=True)
class Expectation:
    """Of one row of a report of `stsbp benchmark`.

    Attributes:
        group, case, what: of the row.
        seconds: expected, with each kernel launched by the host ...
        recorded: ... and as a CUDA graph; None: not for this row.
        bytes, operations, launches: it is made of.
    """

    group: str
    case: str
    what: str
    seconds: float
    recorded: float | None
    bytes: float
    operations: float
    launches: int


def kernels(gpu: Gpu, backend: str, scale: float = 1.0) -> list[Expectation]:
    """Rows of `stsbp benchmark kernels`."""
    rows, host = [], BACKENDS[backend]
    for steps, full in SIZES:
        neurons = max(1, round(full * scale))
        case = f"T={steps} N={neurons}"
        copied = 8.0 * max(1, round(COPIED * scale))
        rows.append(Expectation("kernels", case, "copy", copied / gpu.copy, None, copied, 0, 1))
        for name, per_value in (("forward", FORWARD_BYTES), ("backward", BACKWARD_BYTES)):
            bytes_moved = float(per_value * steps * neurons)
            # JAX has no kernel of its own: a step of time is some launches.
            launches = 3 * steps if backend == "jax" else 1
            seconds = max(bytes_moved / (NEURONS_SHARE * gpu.copy), host.call, launches * host.launch)
            rows.append(Expectation("kernels", case, f"lif {name}", seconds, None, bytes_moved, 0, launches))
    return rows


def step(gpu: Gpu, backend: str, case: Case, scale: float = 1.0) -> Expectation:
    """The row `training step` of `stsbp benchmark step`, precision `fast`."""
    network, batch = build_network(case.config(scale), case.inputs), max(1, round(case.batch * scale))
    work = [*_step(backend, network, case.steps, batch)]
    on_device, launches = sum(piece.seconds(gpu) for piece in work), sum(piece.launches for piece in work)
    host = BACKENDS[backend]
    seconds = max(on_device, launches * host.launch) + host.fixed
    recorded = None if backend == "jax" else on_device + host.fixed
    name = f"{case.net}-{network.outputs} T={case.steps} B={batch}"
    return Expectation(
        "step", name, "training step", seconds, recorded,
        sum(piece.bytes for piece in work), sum(piece.operations for piece in work), launches,
    )  # fmt: skip


def _step(backend: str, network: NetworkSpec, steps: int, batch: int) -> Iterator[Work]:
    weights = sum(math.prod(parameter.shape) for parameter in network.parameters.values())
    count = len(network.parameters)
    for number, block in enumerate(network.blocks):
        static = number == 0 and network.coding == "direct"
        frames = batch if static else steps * batch
        yield from _weights(backend, block, frames, first=number == 0)
        neurons = steps * batch * math.prod(block.output_shape)
        # Of an image the sums are the same at every step, and so are their errors.
        sums = 4 * (neurons / steps if static else neurons)
        loops = steps if backend == "jax" else 1
        yield Work("neurons", f"{block.name} forward", sums + 5 * neurons, launches=loops)
        yield Work("neurons", f"{block.name} backward", sums + 9 * neurons, launches=loops)
        yield Work("rest", f"{block.name} rate", neurons, launches=2)
    # CuPy's launches were counted on an emulated GPU (emulator/gpu/steps.py), the others from the code.
    small, norm, loss = {"torch": (32, 7, 12), "cupy": (5, 2, 3), "jax": (10, 4, 12)}[backend]
    once = (0, 0) if backend == "cupy" else (2, 4)
    yield Work("rest", "weight grids", 16 * weights, launches=small * count + once[0])
    yield Work("rest", "gradient norm", 8 * weights, launches=norm * count + once[1])
    yield Work("rest", "update", 28 * weights, launches=count)
    yield Work("rest", "loss and inputs", 0, launches=loss)


def _weights(backend: str, block: Block, frames: int, *, first: bool) -> Iterator[Work]:
    """Pooling and weights, both ways."""
    for layer, shape in block.entering:
        if isinstance(layer, AvgPool2d):
            large, small = float(frames * math.prod(shape)), float(frames * math.prod(layer.output_shape(shape)))
            # torch makes floats first.
            several = backend == "torch"
            forward_bytes = 9 * large + 12 * small if several else large + 4 * small
            backward_bytes = 16 * large + 12 * small if several else 4 * large + 4 * small
            yield Work("forward", f"{block.name} pooling", forward_bytes, launches=3 if several else 1)
            yield Work("backward", f"{block.name} pooling", backward_bytes, launches=5 if several else 1)
    inputs, outputs = float(frames * math.prod(block.input.shape)), float(frames * math.prod(block.output_shape))
    fan_in = math.prod(block.weight_shape[1:])
    operations = 2.0 * outputs * fan_in
    unfolded = backend == "cupy" and isinstance(block.synapse, Conv2d)
    windows = outputs / block.output_shape[0] * fan_in if unfolded else 0.0
    unit: Unit = "half" if backend == "cupy" else "float32"
    # On CuPy windows are written and read, forward in half precision, backward as float32; elsewhere inputs are floats.
    forward_bytes = inputs + 4 * outputs + (2 * 2 * windows if unfolded else (0 if backend == "cupy" else 8 * inputs))
    yield Work("forward", block.name, forward_bytes, operations, unit, launches=2)
    of_weights = 4 * outputs + (inputs + 2 * 4 * windows if unfolded else 4 * inputs)
    # CuPy casts and lays out the weights; the windows of a convolution are launches of their own.
    own_launches = 1 if unfolded else 0
    launches = 3 + own_launches if backend == "cupy" else 3
    yield Work("backward", f"{block.name} gradient", of_weights, operations, "float32", launches=launches)
    if not first:
        input_bytes = 4 * outputs + 4 * inputs + 2 * 4 * windows
        launches = 1 + own_launches if backend == "cupy" else 3
        yield Work("backward", f"{block.name} input's error", input_bytes, operations, "float32", launches=launches)


def verdict(measured: float, expected: float) -> str:
    """How a measured time stands to the expected one, in words."""
    ratio = measured / expected
    for limit, text in (
        (0.67, "faster: does it measure what it should?"),
        (1.25, "as expected"),
        (2.0, "slower"),
        (5.0, "much slower: profile it"),
    ):
        if ratio <= limit:
            return f"{ratio:.2f} x, {text}"
    return f"{ratio:.1f} x, something is wrong"


def expectation_table(gpu: Gpu, scale: float = 1.0) -> str:
    """All expectations as Markdown."""
    of_kernels = []
    for rows in zip(*(kernels(gpu, backend, scale) for backend in BACKENDS), strict=True):
        times = (f"{1e6 * row.seconds:.0f}" for row in rows)
        of_kernels.append((f"{rows[0].what}, {rows[0].case}", f"{rows[0].bytes / 1e6:.0f}", *times))
    of_steps = []
    for case in CASES.values():
        for backend in BACKENDS:
            row = step(gpu, backend, case, scale)
            recorded = "" if row.recorded is None else f"{1e3 * row.recorded:.2f}"
            work = (f"{row.bytes / 1e6:.0f}", f"{row.operations / 1e9:.1f}", row.launches)
            of_steps.append((row.case, backend, *work, f"{1e3 * row.seconds:.2f}", recorded))
    columns = ("training step", "backend", "MB", "GFLOP", "launches", "expected, ms", "as a CUDA graph, ms")
    first = table(["kernel", "MB", *(f"{name}, us" for name in BACKENDS)], of_kernels)
    return f"{first}\n\n{table(columns, of_steps)}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or write the expectations of a GPU and each backend as JSON."""
    parser = parser_of(__doc__, "scale", "out")
    parser.add_argument("--gpu", default="h100", choices=list(GPUS))
    options = parser.parse_args(arguments)
    gpu, scale = GPUS[options.gpu], options.scale
    print(expectation_table(gpu, scale))
    rows = [
        {"backend": backend, **vars(row)}
        for backend in BACKENDS
        for row in (*kernels(gpu, backend, scale), *(step(gpu, backend, case, scale) for case in CASES.values()))
    ]
    write_report(options.out, None, {"scale": scale}, gpu=vars(gpu), rows=rows)


if __name__ == "__main__":
    sys.exit(guarded(main))
