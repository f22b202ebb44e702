"""Faults in the operations between neurons: pooling, weights and their grid, error grids, convolutions, full
connections, upsampling and flattening."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from stsbp_spec.contract import grid
from stsbp_spec.contract.grid import WeightGrid
from stsbp_spec.engine.backend import ValueAndGrad
from stsbp_spec.networks.graph import Op, Projection
from stsbp_spec.networks.ops import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Upsample2d
from stsbp_spec.networks.ops.base import Weighted
from stsbp_spec.reference.backend import NumpyBackend, of_windows, pool_windows
from stsbp_spec.typing import AnyArray, Float32, Int64

from stsbp_conformance.faults.changes import Change, Fault, method, rule

__all__ = ["FAULTS"]


def _output(other: Callable[..., AnyArray]) -> Change:
    """A forward function whose output is `other(output, op, *inputs)`."""

    def forward(correct: Change, op: Op, *inputs: AnyArray) -> tuple[AnyArray, Any]:
        output, residuals = correct(op, *inputs)
        return other(output, op, *inputs), residuals

    return forward


def _weight_gradient(other: Callable[..., AnyArray]) -> Change:
    """A backward function whose weight gradient is `other(gradient, op)`."""

    def backward(correct: Change, op: Op, *args: Any, **options: Any) -> tuple[AnyArray | None, AnyArray | None]:
        ds, dw = correct(op, *args, **options)
        return ds, None if dw is None else other(dw, op)

    return backward


def _halves_away_from_zero(correct: Change, projection: Projection, w: Float32) -> tuple[Float32, WeightGrid]:
    units = correct(projection, w)[1]
    scaled = np.abs(w) * np.float32(2.0**units.exponent)
    return np.copysign(np.floor(scaled + np.float32(0.5)), w) * np.float32(2.0**-units.exponent), units


def _cut_gradients(correct: Change, *args: Any, **kwargs: Any) -> ValueAndGrad:
    result: ValueAndGrad = correct(*args, **kwargs)
    network, weights = args[0], args[2]
    cut = {}
    for block in network.blocks:
        wq, units = correct.__self__.weight_grid(block, weights[block.name])  # type: ignore[attr-defined]
        near = np.abs(wq - weights[block.name]) < 2.0 ** (-units.exponent - 2)
        cut[block.name] = result.gradients[block.name] * near
    return replace(result, gradients=cut)


def _zeros_counted(correct: Change, dz: Float32, *args: Any) -> tuple[Float32, Int64]:
    errors, _ = correct(dz, *args)
    return errors, np.array([np.count_nonzero(errors == 0), np.count_nonzero(dz)], np.int64)


def _of_tf32(correct: Change, op: Op, residuals: Any, error: AnyArray, **options: Any) -> Any:
    if options.get("precision") == "fast":
        mantissa, exponent = np.frexp(error)
        error = np.ldexp(np.rint(mantissa * np.float32(2048)) / np.float32(2048), exponent).astype(np.float32)
    return correct(op, residuals, error, **options)


def _first_rows(correct: Change, conv: Conv2d, *inputs: AnyArray) -> tuple[AnyArray, Any]:
    z, residuals = correct(conv, *inputs)
    dense, _ = correct(replace(conv, stride=1), *inputs)
    return np.ascontiguousarray(dense[..., : z.shape[-2], : z.shape[-1]]), residuals


def _shifted_by_the_padding(correct: Change, conv: Conv2d, *args: Any, **options: Any) -> Any:
    ds, dw = correct(conv, *args, **options)
    return ds if ds is None else np.roll(ds, conv.paddings[1], axis=-1), dw


def _neighbours(correct: Change, conv: Conv2d, *inputs: AnyArray) -> tuple[AnyArray, Any]:
    z, residuals = correct(conv, *inputs)
    if conv.dilation != 1:
        rows, columns = (min(pad, kernel - 1) for pad, kernel in zip(conv.paddings, conv.kernels, strict=True))
        dense, _ = correct(replace(conv, dilation=1, padding=(rows, columns)), *inputs)
        z = np.resize(dense, z.shape)
    return z, residuals


def _max_pooling(receivers: Callable[[AnyArray], AnyArray]) -> type[NumpyBackend]:
    """The error of a max pooling goes to the inputs that `receivers` chooses in windows `[..., area]`."""

    def forward(correct: Change, pool: MaxPool2d, s: AnyArray) -> tuple[AnyArray, Any]:
        windows = pool_windows(pool, s)
        return correct(pool, s)[0], (s.shape, windows.reshape(*windows.shape[:-2], pool.area))

    def backward(correct: Change, pool: MaxPool2d, residuals: Any, error: AnyArray) -> AnyArray:
        shape, windows = residuals
        routed = np.where(receivers(windows), error[..., None], np.float32(0))
        return of_windows(routed.reshape(*error.shape, *pool.sizes), shape)

    return rule(MaxPool2d, forward=forward, backward=backward)


def _first_largest(windows: AnyArray) -> Any:
    return np.equal(np.arange(windows.shape[-1]), windows.argmax(axis=-1)[..., None])


def _blocks_by_columns(correct: Change, up: Upsample2d, residuals: Any, error: AnyArray) -> AnyArray:
    turned = correct(Upsample2d(up.factors[::-1]), residuals, error.swapaxes(-1, -2))
    return np.ascontiguousarray(turned.swapaxes(-1, -2))


# fmt: off
FAULTS = (
    Fault("PoolingSums", "Pooling adds up windows instead of taking their mean.",
          rule(AvgPool2d, forward=_output(lambda means, pool, s: means * np.float32(pool.area)))),
    Fault("PoolingAdjointScaled", "The adjoint of pooling does not divide by the window.",
          rule(AvgPool2d, backward=lambda correct, pool, *args: correct(pool, *args) * np.float32(pool.area))),
    Fault("WeightsOffTheGrid", "The forward pass uses the master weights.",
          method(weight_grid=lambda correct, projection, w: (w, correct(projection, w)[1]))),
    Fault("HalvesAwayFromZero", "The weight grid rounds halves away from zero instead of to even.",
          method(weight_grid=_halves_away_from_zero)),
    Fault("FinerGrid", "The bound of the weight grid is not checked: no coarser grid is taken.",
          method(weight_grid=lambda correct, projection, w: grid.weight_grid(
              w, weight_bits=projection.synapse.weight_bits, input_exponent=0, input_max=1.0, layer=projection.name))),
    Fault("StraightThroughBroken",
          "The gradient is cut where the weight grid changed a weight by more than a quarter unit.",
          method(value_and_grad=_cut_gradients)),
    Fault("ErrorGridBit", "The error grid is coarser by one bit.",
          method(error_grid=lambda correct, dz, bits, *args: correct(dz, bits - 1, *args))),
    Fault("ErrorGridMissing", "No error grid in reproducible precision.",
          method(error_grid=lambda correct, dz, *args: (dz, correct(dz, *args)[1]))),
    Fault("ErrorGridCap", "The error grid of version 1 of the contract, with at most 24 bits.",
          method(error_grid=lambda correct, dz, bits, *args: correct(dz, min(24, bits), *args))),
    Fault("ZerosCountAsZeroed", "Errors that were already zero before the grid are counted as zeroed by it.",
          method(error_grid=_zeros_counted)),
    Fault("SinglePrecisionSums", "Reproducible precision adds in float32.",
          rule(Weighted, backward=lambda correct, *args, **options: correct(*args, **options | {"precision": "fast"}))),
    Fault("HalfPrecisionGradients", "Fast precision rounds errors to the 11 bits of TF32.",
          rule(Weighted, backward=_of_tf32)),
    Fault("TransposedKernel", "A true convolution: the kernel's rows and columns run backwards.",
          rule(Conv2d, forward=lambda correct, conv, s, wq: correct(conv, s, wq[..., ::-1, ::-1]))),
    Fault("KernelSwapped", "The weight gradient of a convolution has rows and columns swapped.",
          rule(Conv2d, backward=_weight_gradient(lambda dw, conv: np.ascontiguousarray(dw.swapaxes(2, 3))))),
    Fault("StrideIgnored", "The strided convolution reads the first rows and columns, as if the stride were 1.",
          rule(Conv2d, forward=_first_rows)),
    Fault("PaddingIgnored", "The input gradient of a padded convolution is shifted by the padding.",
          rule(Conv2d, backward=_shifted_by_the_padding)),
    Fault("DilationIgnored", "The dilated convolution reads neighbours, as if the dilation were 1.",
          rule(Conv2d, forward=_neighbours)),
    Fault("GroupsExchanged", "Each group of a convolution reads the channels of the group before it.",
          rule(Conv2d, forward=lambda correct, conv, s, wq: (
              correct(conv, np.roll(s, wq.shape[1], axis=2), wq)[0], correct(conv, s, wq)[1]))),
    Fault("GradientOfGroupsExchanged", "The weight gradients of the groups of a convolution are exchanged.",
          rule(Conv2d, backward=_weight_gradient(lambda dw, conv: np.roll(dw, len(dw) // conv.groups, axis=0)))),
    Fault("KernelReadByColumns", "The gradient of a kernel that is not square is laid out column by column.",
          rule(Conv2d, backward=_weight_gradient(lambda dw, conv: dw if isinstance(conv.kernel, int) else (
              np.ascontiguousarray(dw.swapaxes(2, 3)).reshape(dw.shape))))),
    Fault("SumsDividedTwice", "A pooling that should give sums divides them, and the filter divides again.",
          rule(AvgPool2d, forward=_output(lambda sums, pool, s: sums / np.float32(pool.divisor)))),
    Fault("ErrorToTheLastLargest", "The error of a max pooling goes to the last of the largest inputs.",
          _max_pooling(lambda windows: _first_largest(windows[..., ::-1])[..., ::-1])),
    Fault("ErrorToAllLargest", "The error of a max pooling goes to all of the largest inputs.",
          _max_pooling(lambda windows: windows == windows.max(axis=-1, keepdims=True))),
    Fault("SilentWindowsWithoutError", "The error of a max pooling is lost if no neuron in the window spiked.",
          _max_pooling(lambda windows: _first_largest(windows) & (windows.max(axis=-1, keepdims=True) > 0))),
    Fault("UpsampledInTiles", "Upsampling repeats the image, not each of its rows and columns.",
          rule(Upsample2d, forward=_output(lambda image, up, s: np.tile(s, up.factors)))),
    Fault("BlocksAddedByColumns", "The errors of an upsampled block are added column by column.",
          rule(Upsample2d, backward=_blocks_by_columns)),
    Fault("LayerFlattenedOtherwise", "Flattening takes (H, W, C) instead of (C, H, W).",
          rule(Flatten, forward=_output(lambda z, op, s: (
              np.moveaxis(s, 2, -1).reshape(z.shape) if s.ndim == 5 else z)))),
    Fault("FlattenedOtherwise", "A fully connected layer flattens (H, W, C) instead of (C, H, W).",
          rule(Linear, forward=lambda correct, op, s, wq: (
              correct(op, s.transpose(0, 1, 3, 4, 2) if s.ndim == 5 else s, wq)[0], correct(op, s, wq)[1]))),
)
