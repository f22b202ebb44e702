"""The array arithmetic of the contract, written once over the array library of a backend.

A library is passed as a namespace with functions of the array API standard (2024.12, https://data-apis.org/array-api):
jax.numpy, those of array-api-compat, `NumpyNames`, or a small class with the functions `NAMES`. The only other need is
a function that reads the bits of numbers as numbers of another type.

No function here reads a number on the host, so a device is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic

import numpy as np

from stsbp_spec.contract.grid import FINEST_ERROR_EXPONENT, FLOOR, SMALLEST_NORMAL
from stsbp_spec.typing import AnyArray, Array, Shape

__all__ = ["NAMES", "NUMPY", "ArrayArithmetic", "NumpyNames", "snap"]

NAMES = (
    "abs", "arange", "argmax", "astype", "broadcast_to", "clip", "concat", "count_nonzero", "cumulative_sum", "exp",
    "max", "maximum", "moveaxis", "round", "sqrt", "stack", "sum", "take_along_axis", "where", "zeros",
    "zeros_like", "float32", "float64", "int32", "int64", "uint8",
)  # fmt: skip
"""All names of the standard that a namespace needs."""

_FLOOR_BITS = int(np.float32(FLOOR).view(np.int32))
_MANTISSA_BITS, _BIAS = 23, 127
_INFINITY_BITS = 255 << _MANTISSA_BITS


class NumpyNames:
    """numpy, or a library with numpy's names such as CuPy, with the standard's names that old versions do not have.

    Args:
        library: the library.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self.concat, self.round = library.concatenate, library.rint
        # A look-up of each call in the library would take as long as a small operation.
        vars(self).update({name: getattr(library, name) for name in NAMES if not hasattr(self, name)})

    def astype(self, x: Any, dtype: Any, *, copy: bool = True) -> Any:
        """`x` as an array of another type."""
        return x.astype(dtype, copy=copy)

    # numpy's own functions of these names take several times as long as such an operation on a small array.
    def clip(self, x: Any, low: Any, high: Any) -> Any:
        """`x`, at least `low`, if there is one, and at most `high`."""
        smaller = self._library.minimum(x, high)
        return smaller if low is None else self._library.maximum(smaller, low)

    def max(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Largest elements along axes."""
        return x.max(axis=axis, keepdims=keepdims)

    def sum(self, x: Any, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        """Sums along axes."""
        return x.sum(axis=axis, dtype=dtype, keepdims=keepdims)

    def count_nonzero(self, x: Any) -> Any:
        """Number of elements that are not zero, as an array."""
        return self._library.asarray(self._library.count_nonzero(x))

    def cumulative_sum(self, x: Any, *, axis: int) -> Any:
        """Running sums along an axis."""
        return self._library.cumsum(x, axis=axis)


class ArrayArithmetic(Generic[Array]):
    """The contract's operations on the arrays of one library. Shapes are logical, as in `Operations`.

    Args:
        xp: namespace with the functions `NAMES` of the array API standard.
        view: function of an array and a type of `xp`. It reads the bits of the elements as numbers of that type, which
            has the same size.
        channel_axis: axis of the channels in native arrays of layers. -1 if they are channels-last.
        spikes: type of native spikes. None: uint8.
    """

    def __init__(self, xp: Any, view: Callable[[Any, Any], Any], *, channel_axis: int = 2, spikes: Any = None) -> None:
        self.xp = xp
        self.view = view
        self.channel_axis = channel_axis
        self.spikes = xp.uint8 if spikes is None else spikes

    # Types and powers of two.
    def zeros(self, shape: Shape) -> Array:
        """Float32 zeros."""
        return self.xp.zeros(shape, dtype=self.xp.float32)

    def silence(self, shape: Shape) -> Array:
        """Spikes, all zero."""
        return self.xp.zeros(shape, dtype=self.spikes)

    def concatenate(self, arrays: Sequence[Any]) -> Array:
        """Arrays concatenated along the first axis."""
        return self.xp.concat(list(arrays))

    def float32(self, x: Any) -> Array:
        """`x` as float32."""
        return self.xp.astype(x, self.xp.float32, copy=False)

    def float64(self, x: Any) -> Any:
        """`x` as float64."""
        return self.xp.astype(x, self.xp.float64, copy=False)

    def int64(self, x: Any) -> Any:
        """`x` as int64."""
        return self.xp.astype(x, self.xp.int64, copy=False)

    def power_of_two(self, exponent: Any) -> Any:
        """`2^exponent`, float32, for int32 from -126 to 127."""
        return self.view((exponent + _BIAS) << _MANTISSA_BITS, self.xp.float32)

    def wide_power_of_two(self, exponent: Any) -> Any:
        """`2^exponent`, float64, for integers from -1022 to 1023."""
        return self.view((self.int64(exponent) + 1023) << 52, self.xp.float64)

    # Grids.
    def magnitudes(self, x: Any) -> Any:
        """Bits of the magnitudes of float32, int32. As integers, they order magnitudes; NaN is above all numbers."""
        return self.view(x, self.xp.int32) & 0x7FFFFFFF

    def largest_error(self, dz: Any) -> Any:
        """`Operations.largest_error`: bits of the largest magnitude, int32 `[1]`."""
        return self.xp.max(self.magnitudes(dz)).reshape((1,))

    def scales(self, largest: Any, bits: int) -> tuple[Any, Any]:
        """`2^q`, zero if below `FLOOR`, and `2^-q` of `grid.error_exponent` from bits of largest magnitudes."""
        # Bits of 2^q. The sum of the exponent fields of 2^q and 2^-q is twice the bias.
        exponent = bits + 126 + _BIAS - (largest >> _MANTISSA_BITS)
        power = self.xp.clip(exponent, None, FINEST_ERROR_EXPONENT + _BIAS) << _MANTISSA_BITS
        scale = self.view(self.xp.where(largest < _FLOOR_BITS, 0, power), self.xp.float32)
        return scale, self.view((2 * _BIAS << _MANTISSA_BITS) - power, self.xp.float32)

    def error_grid(self, dz: Any, bits: int, largest: Any | None = None) -> tuple[Array, Array]:
        """`Operations.error_grid`: errors on their grid of `bits` bits, and the counts of `grid.ZeroedErrors`, `[2]`.

        Args:
            dz: errors of the whole batch, or of a part of it.
            bits: bits of the grid.
            largest: `largest_error` of the whole batch. None: `dz` is the whole batch.
        """
        xp = self.xp
        largest_bits = self.largest_error(dz) if largest is None else largest
        # `math.frexp`, with which `grid.error_exponent` is defined, has the exponent 0 for infinity and NaN.
        largest_bits = xp.where(largest_bits < _INFINITY_BITS, largest_bits, 126 << _MANTISSA_BITS)
        # numpy multiplies by numbers without axes in place. Integers keep their axis, because numpy 1 makes int64 of
        # an int32 without axes to which it adds a Python number.
        scale, inverse_scale = self.scales(largest_bits, bits)
        on_grid = xp.round(dz * scale[0]) * inverse_scale[0]
        normal = xp.abs(dz) >= SMALLEST_NORMAL
        zeroed, nonzero = xp.count_nonzero(normal & (on_grid == 0)), xp.count_nonzero(normal)
        return on_grid, xp.concat([zeroed.reshape((1,)), nonzero.reshape((1,))])

    def sample_grid(self, dz: Any, bits: int) -> Array:
        """Errors `[1, B, ...]` of one step. The errors of each sample are on an error grid of their own.

        Recurrent connections send these errors back through their weights, step by step. Their sums never mix errors of
        different samples. With a grid per sample, the result does not depend on which process computes the other
        samples.
        """
        # One grid for all steps would need room for errors that grow by 2^2 (small recurrent weights) to 2^20 (large
        # ones). Too much room wastes bits of all errors; with too little, all processes would have to repeat the loop
        # together.
        axes = (0, *range(2, len(dz.shape)))
        scale, inverse_scale = self.scales(self.xp.max(self.magnitudes(dz), axis=axes, keepdims=True), bits)
        return self.xp.round(dz * scale) * inverse_scale

    def weight_exponent(self, largest: Any, bits: int) -> Any:
        """`q` of the finest grid that `bits` bits allow, int32, from bits of the largest magnitude of weights.

        `grid.fit_weight_grid` defines it for finite weights that are not too small or too large.
        """
        xp = self.xp
        # The bits of weights that are not finite are no exponent.
        q = xp.clip(bits + 125 - (largest >> _MANTISSA_BITS), -126, 126)
        units = xp.round(self.view(largest, xp.float32) * self.power_of_two(q))
        return q - xp.astype(units > 2 ** (bits - 1) - 1, xp.int32)

    def first_grid(self, w: Any, bits: int) -> tuple[Array, Array]:
        """Weights on the grid of `weight_exponent`; and the numbers for the host.

        These are float64 `[2]`: bits of the largest magnitude, and the largest partial sum in units of the grid. If a
        weight is not finite or too large, only the first number has a meaning.
        """
        largest = self.largest_error(w)
        q = self.weight_exponent(largest, bits)
        wq, largest_sum = self.round_weights(w, self.power_of_two(q), self.power_of_two(-q))
        return wq, self.xp.concat([self.float64(largest), largest_sum.reshape((1,))])

    def round_weights(self, w: Any, scale: Any, inverse_scale: Any) -> tuple[Array, Array]:
        """Weights `[out, ...]` on a grid, and the largest partial sum of a row in units of the grid, float64."""
        xp = self.xp
        units = xp.round(w * scale)
        rows = self.float64(units.reshape((w.shape[0], -1)))
        # The sum of the positive weights, or that of the negative ones: half the sum of magnitudes, plus or minus half
        # the sum. All of these are exact.
        largest_sum = xp.max(xp.sum(xp.abs(rows), axis=1) + xp.abs(xp.sum(rows, axis=1))) / 2
        return units * inverse_scale, largest_sum

    # Steps and samples that do not count.
    def mask_steps(self, x: Any, inside: Any) -> Array:
        """`x` `[T, B, ...]` with zeros where `inside`, `[1 or T, B]`, is not above 0."""
        mask = inside.reshape((*inside.shape, *(1,) * (len(x.shape) - 2))) > 0
        return self.xp.where(mask, x, 0)

    def mask_samples(self, x: Any, count: Any) -> Array:
        """`x` `[T, B, ...]` with zeros for all samples except the first `count`."""
        samples = self.xp.arange(x.shape[1], dtype=self.xp.int32)
        return self.mask_steps(x, self.xp.astype(samples < count, self.xp.uint8).reshape((1, -1)))

    # Delays.
    def whole_delays(self, delays: Any) -> Any:
        """Delays, float32 `[C]`, as whole steps, int32. Ties are rounded to even."""
        return self.xp.astype(self.xp.round(delays), self.xp.int32)

    def delayed(self, x: Any, steps: Any) -> Array:
        """`x` `[T, B, C, ...]` with each channel shifted to later times, or to earlier times if negative.

        The gaps become zero. `steps` is int32 `[C]`. Its values are read on the device, as those of `x`.
        """
        xp, last = self.xp, x.shape[0] - 1
        times = xp.arange(x.shape[0], dtype=xp.int32).reshape((-1, *(1,) * (len(x.shape) - 1)))
        sources = times - self.broadcast(steps, tuple(x.shape[1:]))
        # An index outside is read at an end, and the result is not used.
        shifted = xp.take_along_axis(x, xp.clip(sources, 0, last), axis=0)
        return xp.where((sources >= 0) & (sources <= last), shifted, 0)

    def delay_terms(self, x: Any, delays: Any, error: Any) -> Array:
        """Terms of the gradients of `delays`, float64 `[T, B, C, ...]`. Arguments: `Operations.delay_gradient`."""
        # No delay is negative, so this is their floor.
        whole = self.xp.astype(delays, self.xp.int32)
        slope = self.float64(self.delayed(x, whole + 1)) - self.float64(self.delayed(x, whole))
        terms: Array = self.float64(error) * slope[x.shape[0] - error.shape[0] :]
        return terms

    # Channels.
    def broadcast(self, values: Any, shape: Shape) -> Array:
        """`values` `[C]` or `[1]`, repeated for each element of `shape`, which is the native shape of `[B, C, ...]`."""
        trailing_axes = len(shape) - self.channel_axis if self.channel_axis > 0 else 0
        return self.xp.broadcast_to(values.reshape((-1, *(1,) * trailing_axes)), (1, *shape))

    def by_channel(self, x: Any, count: int) -> Array:
        """`x` `[T, B, C, ...]` as `[count, n]`, or `[n, count]` if native arrays are channels-last.

        `count` is `C`, or 1 for all elements together.
        """
        if self.channel_axis < 0:
            return x.reshape((-1, count))
        return self.xp.moveaxis(x, self.channel_axis, 0).reshape((count, -1))

    def channel_sums(self, x: Any, dtype: Any = None) -> Array:
        """Sums of the elements of each channel, `[count]`, from `by_channel`."""
        return self.xp.sum(x, axis=0 if self.channel_axis < 0 else 1, dtype=dtype)

    def channels_joined(self, arrays: Sequence[Any]) -> Array:
        """Arrays `[T, B, C, ...]` concatenated along their channels. Arrays of several types become float32."""
        if len({x.dtype for x in arrays}) > 1:
            arrays = [self.float32(x) for x in arrays]
        # The channels come last, because backends whose native axis is another one keep them last in memory, and
        # libraries write the result in the order of the axes they are given.
        last = [self.xp.moveaxis(x, self.channel_axis, -1) for x in arrays]
        return self.xp.moveaxis(self.xp.concat(last, axis=-1), -1, self.channel_axis)

    def channels_split(self, x: Any, counts: Sequence[int]) -> tuple[Array, ...]:
        """The inverse of `channels_joined`: arrays of their own with `counts` channels each."""
        last, first, parts = self.xp.moveaxis(x, self.channel_axis, -1), 0, list[Array]()
        for count in counts:
            # One array, concatenated with nothing, is a copy whose memory has no gaps.
            part = self.xp.concat([last[..., first : first + count]], axis=-1)
            parts.append(self.xp.moveaxis(part, -1, self.channel_axis))
            first += count
        return tuple(parts)

    def channel_totals(self, x: Any, count: int) -> Array:
        """`Operations.channel_totals`: float64 sums `[count]` of the elements of each channel, or of all elements."""
        return self.channel_sums(self.by_channel(x, count), self.xp.float64)

    # Spikes as bits.
    def unpacked(self, bits: Any, steps: int) -> Array:
        """Frames `[steps, ...]` of zeros and ones from bytes of eight steps each, with the lowest bit first."""
        xp = self.xp
        bit_positions = xp.arange(8, dtype=xp.uint8).reshape((-1, *(1,) * (len(bits.shape) - 1)))
        frames = (bits[:, None] >> bit_positions) & 1
        return frames.reshape((-1, *bits.shape[1:]))[:steps]

    def pack(self, s: Any) -> Array:
        """Zeros and ones as bits, uint8 `[n]`. The first of eight values is the highest bit."""
        xp, count = self.xp, math.prod(s.shape)
        flat = xp.astype(s, xp.uint8, copy=False).reshape((-1,))
        padded = xp.concat([flat, xp.zeros((-count % 8,), dtype=xp.uint8)])
        return xp.sum(padded.reshape((-1, 8)) << self._shifts(), axis=1, dtype=xp.uint8)

    def unpack(self, bits: Any, count: int) -> Array:
        """The first `count` values of `pack`, uint8 `[count]`."""
        return ((bits[:, None] >> self._shifts()) & 1).reshape((-1,))[:count]

    def _shifts(self) -> Array:
        return 7 - self.xp.arange(8, dtype=self.xp.uint8)


def snap(x: Any, number: Callable[[float], Any] = np.float32) -> AnyArray:
    """`x`, a numpy array of any shape, with magnitudes below 2^-100 replaced by zero.

    `number` converts constants to its type.
    """
    snapped: AnyArray = np.where(np.abs(x) < number(FLOOR), number(0.0), x)
    return snapped


def _numpy_view(x: AnyArray, dtype: Any) -> AnyArray:
    return x.view(dtype)


NUMPY: ArrayArithmetic[AnyArray] = ArrayArithmetic(NumpyNames(np), _numpy_view)
"""The arithmetic of numpy arrays."""
