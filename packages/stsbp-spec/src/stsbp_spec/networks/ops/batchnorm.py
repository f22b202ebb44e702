"""Batch normalisation of weighted sums (Ioffe and Szegedy 2015), exact in any order: `y = (z - mean) a + shift`.

The sums are normalised per channel (in a fully connected layer: per neuron), over the `n = T B H W` sums of the whole
batch. For a static input, they are over its one frame, `n = B H W`.

    a = scale F g / s,   s = sqrt(g^2 var + eps),   mean = sum z / n,   var = sum (z - mean)^2 / n

`g` is the training gain before the weights, dropout's `1/(1 - rate)`. With it, statistics are those of `g z`, and the
filter after `y` has no gain. After a pooling by sums (avgpool2d.py), `z` are the undivided sums. `F` is 1, or the
threshold times a number (tdBN, Zheng et al. 2021), so that the width of `y` is that of a threshold. Evaluation uses
running averages of `g mean` and `g^2 var` (the biased variance), and no gain. After each update, they become
`r = (1 - momentum) r + momentum x`.

Forward pass. `z` is an integer `k` in units of `2^-exponent`, below `2^24` (grid.py). `sum k` and `sum k^2`, with the
squares in two pieces of 24 bits, are therefore sums of integers. They are exact in int64 in any order, over any number
of processes (`moments`). They are shifted by the integer `m` next to the mean, so that no cancellation occurs. All
further steps are in float64. Each operation rounds once, with the square root of IEEE 754 (`statistics`). `mean`, `a`
and `shift` are float32. The sums are normalised in float32:

    y = snap(snap((z - mean) a) + shift)

Backward pass, with `S = sum dy`, `Q = sum dy (z - mean)` and `x = (z - mean) g / s`:

    dshift = S,   dscale = sum dy x F = Q F g / s
    dz = a (dy - S / n - x (sum dy x) / n) = a (dy - S / n - (z - mean) r),   r = (g / s)^2 Q / n

`fast`: `S` and `sum dy k` are computed in float64, in any order. `reproducible`: `dy` is rounded to an error grid of
`b = 53 - 12 - ceil(log2 n)` bits. With `k = h 2^12 + l` in pieces of 12 bits (`|h| <= 2^12`, `0 <= l < 2^12`), the sums
of `dy`, `dy h` and `dy l` are exact in float64 in any order (`error_moments`). Further steps are in float64 on numbers
per channel (`backward_coefficients`). `S/n` and `r` are rounded once to float32, and

    dz = snap(a snap(snap(dy - S/n) - snap((z - mean) r)))

Padded steps of shorter samples, and the silent samples of an empty part, are in no sum.
In evaluation, `S/n` and `r` are 0, because the statistics are constants. Errors that the grid of `dy` sets to zero are
not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from stsbp_spec.contract.arrays import NUMPY, ArrayArithmetic
from stsbp_spec.contract.grid import CEILING, FLOOR, ceil_log2
from stsbp_spec.equations.expressions import Recurrence, named, snap, variable
from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.models.learned import Learned
from stsbp_spec.typing import Array, Float32, Shape
from stsbp_spec.validation import real

__all__ = [
    "BACKWARD",
    "FORWARD",
    "SCALE",
    "SHIFT",
    "STATISTICS",
    "BatchNorm",
    "ChannelArithmetic",
    "Coefficients",
    "backward_coefficients",
    "coefficients",
    "error_moments",
    "moments",
    "norm_error_bits",
    "of_batch",
    "of_running",
    "running",
    "statistics",
    "summands",
    "updated_statistic",
]

SCALE = Learned(1.0, low=-CEILING, high=CEILING, per="channel")
SHIFT = Learned(0.0, low=-CEILING, high=CEILING, per="channel")

STATISTICS = {
    "mean": Learned(0.0, low=-CEILING, high=CEILING, per="channel"),
    "variance": Learned(1.0, low=0.0, high=CEILING, per="channel"),
}
"""Initial values and domains of the running statistics, which are not learned, but stored with what is."""

PIECE_BITS = 12
"""Bits of the pieces of `z` that are multiplied with errors."""

SQUARE_BITS = 24
"""Bits of the pieces of `z^2`."""

MAX_SUMS = 2**29
"""Largest number of sums that are normalised together. Float64 can hold the integer `MAX_SUMS 2^24`."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of a projection.

    Args:
        momentum: weight of a batch in the running statistics, in (0, 1].
        eps: added to the variance, from 1e-12 to 1.
        factor: factor of the normalised sums before the learned scale. For tdBN: the neurons' threshold times alpha.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    factor: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("momentum", 0.0, 1.0), ("eps", 1e-12, 1.0), ("factor", 2.0**-32, 2.0**32)):
            value = real(f"{name} of batch normalisation", getattr(self, name))
            if not low <= value <= high or value == 0:
                domain_text = "above 0 and at most 1" if name == "momentum" else f"from {low:g} to {high:g}"
                raise SpecError(f"{name} of batch normalisation must be {domain_text}, got {value:g}")
            object.__setattr__(self, name, value)

    def learned(self) -> dict[str, Learned]:
        """The learned parameters, by name."""
        return {"scale": SCALE, "shift": SHIFT}

    def initial(self, channels: int) -> dict[str, Float32]:
        """The initial running statistics, `[C]` by name."""
        return {name: x.values((channels,)) for name, x in STATISTICS.items()}


def summands(frames: int, shape: Shape) -> int:
    """`n` for `frames` frames of sums of `shape`, `(C, H, W)` or `(N,)`.

    Raises:
        ExactnessError: there are more sums than float64 adds exactly.
    """
    n = frames * math.prod(shape[1:])
    if n > MAX_SUMS:
        raise ExactnessError(
            f"batch normalisation of {n} sums in a channel is not exact; it is exact for at most 2^29 "
            "sums. Use smaller batches or fewer steps"
        )
    return n


def norm_error_bits(n: int) -> int:
    """Bits of the error grid on which `error_moments` of `n` errors are exact."""
    return 53 - PIECE_BITS - ceil_log2(n)


def _equations() -> tuple[Recurrence, Recurrence]:
    z, mean, a, shift, dy, of_all, slope = map(variable, ("z", "mean", "a", "shift", "dy", "of_all", "slope"))
    y = snap(named("x", snap((z - mean) * a)) + shift)
    centred = named("centred", snap(snap(dy - of_all) - snap((z - mean) * slope)))
    return (
        Recurrence("batchnorm_forward", (), ("z", "mean", "a", "shift"), {}, {"y": y}),
        Recurrence(
            "batchnorm_backward", (), ("z", "dy", "mean", "a", "of_all", "slope"), {}, {"dz": snap(centred * a)}
        ),
    )


FORWARD, BACKWARD = _equations()
"""From `z` to `y`, and from `z` and `dy` to `dz`; `of_all` is `S/n`, `slope` is `r`."""


# Sums of all elements of a channel. Backends should make these fast.
def _units(z: Any, exponent: Any, arithmetic: ArrayArithmetic[Any]) -> Any:
    """`z` `[T, B, C, ...]` in units of `2^-exponent`, int64 `[C, n]`."""
    # In two steps, because a single power of two may be outside the range of float32.
    half_exponent = exponent >> 1
    units = z * arithmetic.power_of_two(half_exponent) * arithmetic.power_of_two(exponent - half_exponent)
    return arithmetic.int64(arithmetic.by_channel(units, z.shape[arithmetic.channel_axis]))


def moments(z: Array, exponent: Array, arithmetic: ArrayArithmetic[Any] = NUMPY) -> Array:
    """`sum k` and the pieces of `sum k^2 = high 2^24 + low`, `0 <= low < 2^24`, of each channel, int64 `[3, C]`.

    Args:
        z: sums, `[T, B, C, ...]`.
        exponent: `[1]`; `z` is `k 2^-exponent` with whole numbers `|k| <= 2^24`.
        arithmetic: that of the arrays.
    """
    total, k = arithmetic.channel_sums, _units(z, exponent, arithmetic)
    squares = k * k
    # In float64 without the two pieces, even the sum of 33 large squares can be inexact.
    low = total(squares & (2**SQUARE_BITS - 1))
    high = total(squares >> SQUARE_BITS) + (low >> SQUARE_BITS)
    sums: Array = arithmetic.xp.stack([total(k), high, low & (2**SQUARE_BITS - 1)])
    return sums


def error_moments(dy: Array, z: Array, exponent: Array, arithmetic: ArrayArithmetic[Any] = NUMPY) -> Array:
    """`sum dy`, `sum dy h` and `sum dy l` of each channel, float64 `[3, C]`, with `k = h 2^12 + l`: see `moments`."""
    total, k = arithmetic.channel_sums, _units(z, exponent, arithmetic)
    d = arithmetic.float64(arithmetic.by_channel(dy, dy.shape[arithmetic.channel_axis]))
    high, low = total(d * (k >> PIECE_BITS)), total(d * (k & (2**PIECE_BITS - 1)))
    sums: Array = arithmetic.xp.stack([total(d), high, low])
    return sums


# Further steps, on numbers per channel.
class ChannelArithmetic:
    """Operations on float64 and int64 numbers per channel, arrays `[C]`.

    Each operation rounds once. Products and quotients use the methods below, because a library that compiles may fuse
    or replace the operators. Sums and differences, and `+ - * // >> &` of int64, use Python's operators.

    Args:
        arithmetic: that of the arrays.
    """

    def __init__(self, arithmetic: ArrayArithmetic[Any] = NUMPY) -> None:
        self._arithmetic = arithmetic

    def float64(self, x: Any) -> Any:
        """Convert int64 or float32 to float64."""
        return self._arithmetic.float64(x)

    def float32(self, x: Any) -> Any:
        """Round to float32; below the floor, the result is 0."""
        rounded = self._arithmetic.float32(x)
        return rounded * self._arithmetic.float32(self._arithmetic.xp.abs(rounded) >= FLOOR)

    def multiply(self, a: Any, b: Any) -> Any:
        """`a b`; `b` may be a Python number."""
        return a * b

    def divide(self, a: Any, b: Any) -> Any:
        """`a / b`; one of them may be a Python number."""
        return a / b

    def root(self, a: Any) -> Any:
        """`sqrt(a)`, as IEEE 754 rounds it."""
        return self._arithmetic.xp.sqrt(a)

    def scaled(self, a: Any, exponent: Any) -> Any:
        """`a 2^exponent` for integers `[1]` from -1022 to 1023."""
        return self.multiply(a, self.power_of_two(exponent))

    def power_of_two(self, exponent: Any) -> Any:
        """`2^exponent`, float64."""
        return self._arithmetic.wide_power_of_two(exponent)


class Coefficients(NamedTuple, Generic[Array]):
    """The coefficients that normalise the sums of a layer, `[C]` each.

    Attributes:
        mean, a: coefficients of `FORWARD`, float32.
        wide_mean: mean of the sums, float64.
        stretch: `F g / s`, float64.
        narrowing: `(g / s)^2`, float64.
        batch: `g mean` and `g^2 var`, float32 `[2, C]`, for the running averages.
    """

    mean: Array
    a: Array
    wide_mean: Array
    stretch: Array
    narrowing: Array
    batch: tuple[Array, Array]


def of_batch(
    arithmetic: ChannelArithmetic,
    sums: Any,
    exponent: Any,
    scale: Array,
    frames: Any = None,
    *,
    norm: BatchNorm,
    n: int,
    gain: float,
) -> Coefficients[Array]:
    """Coefficients from `moments` of all `n` elements, the learned scale `[C]`, and the gain before the weights.

    If samples have lengths, `n` counts the elements of one frame, and `frames` `[1]` the frames that are not padding.
    """
    mean, variance = statistics(arithmetic, sums, exponent, n if frames is None else frames * n + 0 * sums[0])
    return coefficients(arithmetic, norm, mean, variance, scale, gain)


def of_running(
    arithmetic: ChannelArithmetic, mean: Array, variance: Array, scale: Array, *, norm: BatchNorm
) -> Coefficients[Array]:
    """Coefficients from running statistics and the learned scale, float32 `[C]`."""
    return coefficients(arithmetic, norm, arithmetic.float64(mean), arithmetic.float64(variance), scale, 1.0)


def statistics(arithmetic: ChannelArithmetic, sums: Any, exponent: Any, n: Any) -> tuple[Any, Any]:
    """Mean and variance, float64 `[C]`, from `moments` of all `n` elements, an int or int64 `[C]`."""
    total, high, low = sums[0], sums[1], sums[2]
    # sum (k - m)^2 = sum k^2 - n m^2 - 2 m d with m the integer next to the mean, sum k = n m + d.
    # Without m, n sum k^2 - (sum k)^2 would need integers of 106 bits, but a GPU has none above 64 bits.
    m = (2 * total + n) // (2 * n)
    d, square = total - n * m, m * m
    high = high - n * (square >> SQUARE_BITS)
    low = low - n * (square & (2**SQUARE_BITS - 1)) - 2 * m * d
    high, low = high + (low >> SQUARE_BITS), low & (2**SQUARE_BITS - 1)
    centred_squares = arithmetic.multiply(arithmetic.float64(high), 2.0**SQUARE_BITS) + arithmetic.float64(low)
    count = float(n) if isinstance(n, int) else arithmetic.float64(n)
    mean_offset = arithmetic.divide(arithmetic.float64(d), count)
    variance = arithmetic.divide(centred_squares, count) - arithmetic.multiply(mean_offset, mean_offset)
    return (
        arithmetic.scaled(arithmetic.divide(arithmetic.float64(total), count), -exponent),
        arithmetic.scaled(variance, -2 * exponent),
    )


def coefficients(
    arithmetic: ChannelArithmetic, norm: BatchNorm, mean: Any, variance: Any, scale: Array, gain: float
) -> Coefficients[Array]:
    """Coefficients from mean and variance, float64 `[C]`, of a batch or running, and the learned scale, float32
    `[C]`."""
    width = arithmetic.multiply(variance, gain * gain)
    s2 = width + norm.eps
    s = arithmetic.root(s2)
    stretch = arithmetic.divide(norm.factor * gain, s)
    a = arithmetic.float32(arithmetic.multiply(arithmetic.float64(scale), stretch))
    batch = arithmetic.float32(arithmetic.multiply(mean, gain)), arithmetic.float32(width)
    return Coefficients(arithmetic.float32(mean), a, mean, stretch, arithmetic.divide(gain * gain, s2), batch)


def backward_coefficients(
    arithmetic: ChannelArithmetic,
    sums: Any,
    exponent: Any,
    forward_coefficients: Coefficients[Array],
    frames: Any = None,
    *,
    n: int,
    training: bool,
) -> tuple[Array, Array, Array, Array]:
    """`S/n` and `r`, float32 `[C]`, and the gradients of scale and shift, float64 `[C]`, from all `error_moments`.

    With running statistics, `S/n` and `r` are zeros. `frames` and `n`: see `of_batch`.
    """
    total, high, low = sums[0], sums[1], sums[2]
    with_z = arithmetic.scaled(arithmetic.multiply(high, 2.0**PIECE_BITS) + low, -exponent)
    centred_products = with_z - arithmetic.multiply(forward_coefficients.wide_mean, total)
    gradients = arithmetic.multiply(centred_products, forward_coefficients.stretch), total
    if not training:
        zeros = arithmetic.float32(arithmetic.multiply(total, 0.0))
        return zeros, zeros, *gradients
    count = float(n) if frames is None else arithmetic.float64(frames * n)
    slope = arithmetic.multiply(arithmetic.divide(centred_products, count), forward_coefficients.narrowing)
    return arithmetic.float32(arithmetic.divide(total, count)), arithmetic.float32(slope), *gradients


def updated_statistic(arithmetic: ChannelArithmetic, statistic: Array, batch: Array, *, norm: BatchNorm) -> Array:
    """A running statistic `[C]` after a batch: computed in float64, rounded once, and 0 below the floor."""
    decayed = arithmetic.multiply(arithmetic.float64(statistic), 1 - norm.momentum)
    updated: Array = arithmetic.float32(decayed + arithmetic.multiply(arithmetic.float64(batch), norm.momentum))
    return updated


def running(norm: BatchNorm, statistic: Float32, batch: Float32) -> Float32:
    """`updated_statistic` for numpy arrays."""
    return updated_statistic(ChannelArithmetic(), statistic, batch, norm=norm)
