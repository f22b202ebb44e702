"""Convolutions by the thousand, compared with integer sums: `python -m campaigns.convolutions --help`.

Torch and its library oneDNN choose an algorithm by geometry and by memory layout, and some choices are wrong. A case is
a drawn geometry, with operands in drawn memory layouts. Operands are small integers, so all sums are exact in float32,
and every result must be equal to the sums of 64-bit integers.

A wrong result of stsbp is a fault. Wrong results of torch's own functions, on the same operands, are only counted. They
show what a version of torch must be protected from.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import click
import numpy as np
import torch
from stsbp_cpu.ops import conv2d as cpu_conv2d
from stsbp_spec.networks.ops.conv2d import Conv2d
from stsbp_spec.typing import AnyArray, Precision
from stsbp_torch.engine.layout import laid_out
from stsbp_torch.ops import conv2d, conv2d_bytes
from stsbp_torch.ops.dense import DENSE

from campaigns.calls import aligned, progress_line

__all__ = ["Case", "Tally", "command", "drawn_case", "results_of_stsbp", "results_of_torch", "search"]

_TOLD_EVERY = 30.0
"""Seconds between two lines of progress."""
LAYOUTS = ("channels first", "channels last", "any strides")
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Result = tuple[str, torch.Tensor | AnyArray | None, str]
"""Name of a function, what it returned, and which operand of `Case.expected` this should be."""


@dataclass(frozen=True)
class Case:
    """A convolution with its operands: inputs `[T, B, C, H, W]`, weights, and errors `[T, B, C', H', W']`, int64."""

    seed: int
    conv: Conv2d
    s: AnyArray
    w: AnyArray
    dz: AnyArray
    threads: int

    def __str__(self) -> str:
        conv = self.conv
        geometry = f"kernel {conv.kernel}, stride {conv.stride}, padding {conv.padding}, dilation {conv.dilation}"
        return f"seed {self.seed}: inputs {self.s.shape} to {self.dz.shape}, {geometry}, {conv.groups} groups"

    def expected(self) -> dict[str, AnyArray]:
        """Sums of integers: `z`, `ds` and `dW`."""
        conv, groups = self.conv, self.conv.groups
        (pad_top, pad_left), (down, across), (rows, columns) = conv.paddings, conv.strides, conv.dilations
        *frames, c, h, width = self.s.shape
        height, width_out = self.dz.shape[-2:]
        padded = np.zeros((*frames, groups, c // groups, h + 2 * pad_top, width + 2 * pad_left), np.int64)
        padded[..., pad_top : pad_top + h, pad_left : pad_left + width] = self.s.reshape(*frames, groups, -1, h, width)
        w = self.w.reshape(groups, -1, *self.w.shape[1:])
        dz = self.dz.reshape(*frames, groups, -1, height, width_out)
        z, ds, dw = np.zeros_like(dz), np.zeros_like(padded), np.zeros_like(w)
        for i, j in np.ndindex(*conv.kernels):
            first_row, first_column = i * rows, j * columns
            window = (
                ...,
                slice(first_row, first_row + (height - 1) * down + 1, down),
                slice(first_column, first_column + (width_out - 1) * across + 1, across),
            )
            z += np.einsum("tbgchw,gkc->tbgkhw", padded[window], w[..., i, j])
            ds[window] += np.einsum("tbgkhw,gkc->tbgchw", dz, w[..., i, j])
            dw[..., i, j] = np.einsum("tbgkhw,tbgchw->gkc", dz, padded[window])
        ds = ds[..., pad_top : pad_top + h, pad_left : pad_left + width]
        return {"z": z.reshape(self.dz.shape), "ds": ds.reshape(self.s.shape), "dW": dw.reshape(self.w.shape)}


def drawn_case(seed: int) -> Case:
    """The case of a seed. Lengths of 1 are frequent, because torch decides by them."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: int) -> int:
        return choices[int(rng.integers(len(choices)))]

    # Convolutions of bytes take square geometries without groups only.
    square = one_of(0, 0, 1)
    groups = 1 if square else one_of(1, 1, 1, 2, 3)
    c, channels = groups * one_of(1, 1, 1, 2, 3, 4, 8, 16, 17), groups * one_of(1, 1, 2, 3, 4, 6, 8, 16, 17)
    kernel, stride, dilation = (
        (one_of(*choices), one_of(*choices)) for choices in ((1, 1, 2, 3, 3, 4, 5), (1, 1, 2, 3), (1, 1, 1, 2))
    )
    if square:
        kernel, stride, dilation = (kernel[0],) * 2, (stride[0],) * 2, (1, 1)
    extents = [apart * (size - 1) + 1 for size, apart in zip(kernel, dilation, strict=True)]
    padding = (min(one_of(0, 0, 1, 2), extents[0] - 1), min(one_of(0, 0, 1, 2), extents[1] - 1))
    padding = (padding[0],) * 2 if square else padding
    h, width = (max(1, n - 2 * pad) + int(rng.integers(7)) for n, pad in zip(extents, padding, strict=True))
    conv = Conv2d(channels, kernel, stride, padding, dilation=dilation, groups=groups)
    frames = one_of(1, 1, 2, 3, 4), one_of(1, 1, 2, 3, 4)
    return Case(
        seed,
        conv,
        rng.integers(0, 2 if rng.integers(2) else 16, (*frames, c, h, width)),
        rng.integers(-9, 10, conv.weight_shape((c, h, width))),
        rng.integers(-9, 10, (*frames, *conv.output_shape((c, h, width)))),
        one_of(1, 2),
    )


def in_layout(x: AnyArray, layout: str, rng: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    """`x`, whose last axes are `(C, H, W)`, as a tensor with these strides.

    `any strides`: the axes are in any order, often that of channels last. Axes of length 1 have any stride, which may
    fit no order.
    """
    axes = list(range(x.ndim))
    order = {"channels first": axes, "channels last": [*axes[:-3], *axes[-2:], axes[-3]]}.get(layout)
    memory = order or (rng.permutation(axes).tolist() if rng.integers(3) == 0 else [*axes[:-3], *axes[-2:], axes[-3]])
    strides, size = [0] * x.ndim, 1
    for axis in reversed(memory):
        strides[axis], size = size, size * x.shape[axis]
    tensor = torch.empty_strided(x.shape, strides, dtype=dtype).copy_(torch.from_numpy(x))
    if order is None:
        strides = [int(rng.integers(40)) if n == 1 else stride for n, stride in zip(x.shape, strides, strict=True)]
    return tensor.as_strided(x.shape, strides)


def results_of_stsbp(case: Case, rng: np.random.Generator) -> Iterator[Result]:
    """What the functions of stsbp return, each for operands in layouts of their own."""
    conv, shape = case.conv, tuple(case.s.shape)

    def operands() -> Operands:
        s, w, dz = (
            in_layout(x, LAYOUTS[int(rng.integers(3))], rng, dtype)
            for x, dtype in ((case.s, (torch.uint8, torch.float32)[int(rng.integers(2))]), *_floats(case))
        )
        return s, w, dz

    s, w, dz = operands()
    z, residuals = conv2d.forward(conv, s, w)
    yield "torch forward", z, "z"
    yield "torch forward, residuals", conv2d.backward(conv, residuals, dz, precision="fast", need_input=True)[1], "dW"
    precisions: tuple[Precision, ...] = ("fast", "reproducible")
    for precision in precisions:
        for need_input, need_weights in ((True, True), (True, False), (False, True)):
            s, w, dz = operands()
            # Chunks of one frame, of a few, or of all.
            with mock.patch.object(conv2d, "_CHUNK_BYTES", 8 ** int(rng.integers(9))):
                ds, dw = conv2d.backward(
                    conv,
                    conv2d.Conv2dSavedTensors(laid_out(s.float()), w),
                    dz,
                    precision=precision,
                    need_input=need_input,
                    need_weights=need_weights,
                )
            if need_input:
                yield f"torch backward, {precision}", ds, "ds"
            if need_weights:
                yield f"torch backward, {precision}", dw, "dW"
    s, w, dz = operands()
    yield "torch input_error", conv2d.input_error(conv, w, dz, shape), "ds"
    if conv.square and conv2d_bytes.usable(conv, shape[2:], int(case.s.max())):
        s, w, dz = operands()
        yield (
            "torch forward of bytes",
            conv2d_bytes.forward(conv, conv2d_bytes.doubled(laid_out(s.byte())), w, 1 / 16),
            "z / 16",
        )
    s, w, dz = operands()
    yield "cpu with torch, forward", DENSE.forward(conv, s, w), "z"
    ds, dw = DENSE.backward(conv, s, w, dz, need_input=True)
    yield "cpu with torch, backward", ds, "ds"
    yield "cpu with torch, backward", dw, "dW"
    yield "cpu with torch, input_error", DENSE.input_error(conv, w, dz, shape), "ds"
    arrays = tuple(x.numpy() for x in operands())
    yield "cpu forward", cpu_conv2d.forward(conv, arrays[0], arrays[1])[0], "z"
    grad_input, gradient = cpu_conv2d.backward(
        conv, cpu_conv2d.Conv2dSaved(arrays[0], arrays[1]), arrays[2], precision="fast", need_input=True
    )
    yield "cpu backward", grad_input, "ds"
    yield "cpu backward", gradient, "dW"
    yield "cpu input_error", cpu_conv2d.input_error(conv, arrays[1], arrays[2], shape), "ds"


def _floats(case: Case) -> tuple[tuple[AnyArray, torch.dtype], ...]:
    return (case.w, torch.float32), (case.dz, torch.float32)


def results_of_torch(case: Case, rng: np.random.Generator) -> Iterator[Result]:
    """What torch's own functions return, with the operands' layouts in the name."""
    conv, frames = case.conv, (case.s.shape[0] * case.s.shape[1], *case.s.shape[2:])
    geometry = conv.strides, conv.paddings, conv.dilations
    for dtype, bits in ((torch.float32, ""), (torch.float64, " of float64")):
        names = [LAYOUTS[int(rng.integers(3))] for _ in range(3)]
        arrays = case.s.reshape(frames), case.w, case.dz.reshape(-1, *case.dz.shape[2:])
        x, w, error = (in_layout(a, name, rng, dtype) for a, name in zip(arrays, names, strict=True))
        z = torch.nn.functional.conv2d(x, w, None, *geometry, conv.groups)
        yield f"F.conv2d{bits}: inputs {names[0]}, weights {names[1]}", z, "z"
        layouts = f"inputs {names[0]}, weights {names[1]}, errors {names[2]}"
        arguments = error, x, w, None, *geometry, False, [0, 0], conv.groups, [True, True, False]
        try:
            ds, dw, _ = torch.ops.aten.convolution_backward(*arguments)
        except RuntimeError:
            yield f"convolution_backward{bits}, an error: {layouts}", None, "ds"
            continue
        yield f"convolution_backward{bits}, inputs' part: {layouts}", ds, "ds"
        yield f"convolution_backward{bits}, weights' part: {layouts}", dw, "dW"


@dataclass
class Tally:
    """How many results there were of each function, how many were wrong, and the first cases of stsbp's that were."""

    results: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    of_torch: set[str] = field(default_factory=set)

    def table(self) -> str:
        """Results and wrong results. Of torch's own functions, only those with a wrong result are listed."""
        stsbp = [name for name in self.results if name not in self.of_torch]
        torch_ = sorted(name for name in self.of_torch if self.wrong[name])
        rows = [(name, f"{self.results[name]:,}", f"{self.wrong[name]:,}") for name in (*stsbp, *torch_)]
        return aligned([("function", "results", "wrong"), *rows])


def search(seeds: range, tell: Callable[[str], object] = lambda _: None) -> Tally:
    """Compute the cases of these seeds. `tell` is called twice a minute with the progress."""
    tally, threads = Tally(), torch.get_num_threads()
    began = reported = time.monotonic()
    try:
        for seed in seeds:
            case, rng = drawn_case(seed), np.random.default_rng((seed, 1))
            torch.set_num_threads(case.threads)
            expected = case.expected()
            expected["z / 16"] = expected["z"] / 16
            with conv2d.exact_math():
                for results, tried in ((results_of_stsbp, False), (results_of_torch, True)):
                    for name, result, quantity in results(case, rng):
                        _count(tally, case, name, result, expected[quantity], tried)
            if (now := time.monotonic()) - reported > _TOLD_EVERY:
                reported, done = now, seed + 1 - seeds.start
                seconds_left = (now - began) / done * (len(seeds) - done)
                tell(progress_line(done, len(tally.faults), now - began, seconds_left))
    finally:
        torch.set_num_threads(threads)
    return tally


def _count(
    tally: Tally, case: Case, name: str, result: torch.Tensor | AnyArray | None, expected: AnyArray, of_torch: bool
) -> None:
    tally.results[name] += 1
    if of_torch:
        tally.of_torch.add(name)
    if result is not None and np.array_equal(np.asarray(result).reshape(expected.shape), expected):
        return
    tally.wrong[name] += 1
    if not of_torch:
        tally.faults.append(f"{name}: {case}")


@click.command()
@click.option("--cases", default=2000, show_default=True, type=click.IntRange(1), help="Geometries to draw.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first case; each later case has the next one.")
def command(cases: int, seed: int) -> None:
    """Compare convolutions of torch and cpu with integer sums. A wrong result of stsbp is an error."""
    tally = search(range(seed, seed + cases), lambda line: click.echo(line, err=True))
    click.echo(tally.table())
    click.echo(f"torch {torch.__version__}, {cases:,} cases from seed {seed}: {len(tally.faults)} faults")
    for line in tally.faults[:20]:
        click.echo(line)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    command()
