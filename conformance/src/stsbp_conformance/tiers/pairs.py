"""Tier 5: each operation's forward and backward pair in isolation, bit for bit against the numpy reference.

Sizes are odd on purpose, states decay to below the floor, potentials reach the threshold exactly, roundings have ties,
and output errors are random. Results that may differ between libraries (`exp` in the logistic surrogate, the order of
`fast` sums) are compared with a bound instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import CEILING, FLOOR, SMALLEST_NORMAL, round_to_grid
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.engine.plan import rule_of
from stsbp_spec.engine.trainer import zeroed_numbers
from stsbp_spec.equations.assembly import loss_padding, neuron_equations
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.models.lengths import inside
from stsbp_spec.models.losses import OF_CLASSES
from stsbp_spec.models.neurons import ALIF, LIF, PLIF, NeuronModel
from stsbp_spec.networks.ops import (
    IDENTITY,
    PSP,
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Flatten,
    LearnedDelay,
    Linear,
    MaxPool2d,
    OneToOne,
    Upsample2d,
    batchnorm,
)
from stsbp_spec.networks.ops.base import Passing, Values
from stsbp_spec.networks.ops.psp import Biased, SynapticFilter
from stsbp_spec.networks.spec import Block, NetworkSpec, SpikingLayer
from stsbp_spec.typing import AnyArray, Array, Float32, Shape

from stsbp_conformance.cases import EXACT_LOSSES, normal, real_targets, spikes
from stsbp_conformance.check import Check, Compared, Mismatch, Verdict
from stsbp_conformance.oracles import roundoff
from stsbp_conformance.reference import NUMPY

__all__ = ["CHECKS", "IMAGES", "WIDE", "Body", "pair_check", "powers", "values"]

Body = Callable[[AbstractBackend, Compared], None]


def pair_check(id: str, body: Body) -> Check:
    """A check of this tier."""

    def run(backend: AbstractBackend) -> Verdict:
        compared = Compared()
        body(backend, compared)
        return compared.verdict()

    return Check(5, id, run)


def values(backend: AbstractBackend[Array], x: Array, dtype: type[np.generic]) -> AnyArray:
    """A native array as numpy of `dtype`. A backend may store small integers in another type, but must keep the
    values."""
    array = backend.numpy(x)
    converted: AnyArray = array.astype(dtype)
    if not np.array_equal(converted.astype(array.dtype), array, equal_nan=array.dtype.kind == "f"):
        raise Mismatch(f"values do not fit {np.dtype(dtype)}: the array is {array.dtype}")
    return converted


def _encode() -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        images = np.arange(2 * 3 * 7 * 9, dtype=np.int64).reshape(2, 3, 7, 9).astype(np.uint8)
        direct = values(backend, backend.encode(images, "direct"), np.float32)
        compared.equal("direct coding", direct, images[None].astype(np.float32) / np.float32(256))
        frames = spikes((4, 2, 2, 5, 3), 0.4, 1) * np.uint8(3)
        compared.equal("events", values(backend, backend.encode(frames, "events"), np.uint8), frames)
        for shape in ((9, 2, 3, 5, 2), (8, 3, 7), (17, 1, 1, 3, 3)):
            trains = spikes(shape, 0.4, 2)
            bits = PackedFrames.of(trains)
            # Bits of the last byte beyond the last step must be ignored.
            bits.bits[-1] |= np.uint8(256 - 2 ** (1 + (shape[0] - 1) % 8))
            compared.equal(f"events as bits, {shape}", values(backend, backend.unpack(bits), np.uint8), trains)

    return body


def _block(notation: str, input_shape: Shape, **options: Any) -> Block:
    return NetworkSpec.parse(f"{notation}-3", input_shape=input_shape, **options).blocks[0]


def _conv(conv: Conv2d, input_shape: Shape) -> Block:
    return NetworkSpec(input_shape, (SpikingLayer(conv), SpikingLayer(Linear(3)))).blocks[0]


def _synapse_input(block: Block, pooled: bool, lead: Shape) -> AnyArray:
    s = spikes((*lead, *block.synapse_shape), 0.3, 4)
    if not pooled:
        return s
    means: Float32 = spikes((16, *s.shape), 0.3, 5).sum(axis=0).astype(np.float32) / np.float32(16)
    return means


def _synapse(block: Block, *, pooled: bool = False, lead: Shape = (3, 2)) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        s = _synapse_input(block, pooled, lead)
        wq = NUMPY.weight_grid(block, normal(block.weight_shape, 6))[0]
        synapse, rule, expected_rule = block.synapse, backend.rule(block.synapse), NUMPY.rule(block.synapse)
        z, residuals = expected_rule.forward(synapse, s, wq)
        native_z, native = rule.forward(synapse, backend.asarray(s), backend.asarray(wq))
        compared.equal("z", values(backend, native_z, np.float32), z)
        errors = round_to_grid(normal(z.shape, 7), 12)
        ds, dw = expected_rule.backward(synapse, residuals, errors, precision="reproducible", need_input=True)
        computed = rule.backward(synapse, native, backend.asarray(errors), precision="reproducible", need_input=True)
        compared.true("ds is there when asked for", computed[0] is not None and ds is not None)
        assert ds is not None
        compared.equal("ds, reproducible", backend.numpy(computed[0]), ds)
        compared.equal("dW, reproducible", values(backend, computed[1], np.float64), dw)
        compared.equal("dW, rounded", backend.numpy(backend.rounded(computed[1])), dw.astype(np.float32))
        errors = normal(z.shape, 8)
        _, native = rule.forward(synapse, backend.asarray(s), backend.asarray(wq))
        computed = rule.backward(synapse, native, backend.asarray(errors), precision="fast", need_input=True)
        near = roundoff.synapse_backward(synapse, s, wq, roundoff.exact(errors), need_input=True)
        for label, got, expected in zip(("ds", "dW"), computed, near, strict=True):
            assert expected is not None
            compared.within(f"{label}, fast", backend.numpy(got), expected, random=True)
        _, native = rule.forward(synapse, backend.asarray(s), backend.asarray(wq))
        none, _ = rule.backward(synapse, native, backend.asarray(errors), precision="fast", need_input=False)
        compared.true("ds is None when not asked for", none is None)
        errors = round_to_grid(normal(z.shape, 7), 12)
        _, native = rule.forward(synapse, backend.asarray(s), backend.asarray(wq))
        alone, none = rule.backward(
            synapse, native, backend.asarray(errors), precision="reproducible", need_input=True, need_weights=False
        )
        compared.true("dW is None when not asked for", none is None and alone is not None)
        compared.equal("ds alone, reproducible", backend.numpy(alone), ds)

    return body


def _passing(op: Passing, shape: Shape, kind: str) -> Body:
    """An operation without weights on spikes, `counts` or `grey` values. Some counts have several equal maxima."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        s: AnyArray = spikes(shape, 0.4, 9)
        if kind == "counts":
            s = s * (1 + spikes(shape, 0.4, 10) + spikes(shape, 0.3, 11))
        elif kind == "grey":
            s = round_to_grid(np.abs(normal(shape, 9)) % np.float32(1), 8)
        out, residuals = NUMPY.rule(op).forward(op, s)
        native_out, native = backend.rule(op).forward(op, backend.asarray(s))
        compared.equal("output", values(backend, native_out, out.dtype.type), out)
        d = normal(out.shape, 10)
        grad_input = NUMPY.rule(op).backward(op, residuals, d)
        compared.equal("adjoint", backend.numpy(backend.rule(op).backward(op, native, backend.asarray(d))), grad_input)

    return body


def _dropout(rate: float, shape: Shape, layer: int, seed: int, step: int) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        mask = NUMPY.dropout_mask(seed, layer, step, shape, rate)
        native = backend.dropout_mask(seed, layer, step, shape, rate)
        compared.equal("mask", values(backend, native, np.uint8), mask)
        s = spikes((4, *shape), 0.5, 11)
        compared.equal("spikes", values(backend, backend.dropout(native, backend.asarray(s)), np.uint8), s * mask)
        d = normal((4, *shape), 12)
        compared.equal("errors", backend.numpy(backend.dropout(native, backend.asarray(d))), d * mask)

    return body


def _loss_error_of_lengths(name: str, tau: float, shape: Shape, lengths: tuple[int, ...]) -> Body:
    """Compare with each sample alone, with its own length, in a batch of twice the size."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        loss, psp, batch = EXACT_LOSSES[name], PSP(tau), 2 * len(lengths)
        s: AnyArray = normal(shape, 17) if loss.of_potentials else spikes(shape, 0.4, 17)
        targets: AnyArray = real_targets(shape, 18) if loss.real_targets else spikes(shape, 0.3, 18)
        padding_arrays = loss_padding(loss, psp, np.array(lengths), batch, shape)
        padding = {key: backend.asarray(x) for key, x in padding_arrays.items()}
        error = backend.numpy(
            backend.loss_error(loss, psp, backend.asarray(s), backend.asarray(targets), batch, padding)
        )
        expected = np.zeros(shape, np.float32)
        for b, length in enumerate(lengths):
            sample = slice(length), slice(b, b + 1)
            expected[sample] = NUMPY.loss_error(loss, psp, s[sample], targets[sample], batch)
        compared.equal("dL/do", error, expected)

    return body


def _readout_error(name: str, lengths: tuple[int, ...] | None) -> Body:
    """Compare with numpy in float64. float32 results may differ.

    The mean of 14 steps, below 1 on average, is off by at most 2^-21. A probability is therefore off by half of that,
    and by 8 units of 2^-24 for `exp` and the quotient: in total less than 2^-21 before the division by the batch size.
    """

    def body(backend: AbstractBackend, compared: Compared) -> None:
        loss, shape, batch = OF_CLASSES[name], (14, 3, 7), 6
        u, targets = normal(shape, 19), spikes(shape, 0.3, 18)
        targets[0] = np.arange(7) == np.array([[2], [0], [6]])
        targets[1:, :, :] = 0
        within = None if lengths is None else inside(np.array(lengths), shape[0]).astype(np.uint8)
        expected = NUMPY.readout_error(loss, u, targets, batch, within)
        native = None if within is None else backend.asarray(within)
        error = backend.numpy(backend.readout_error(loss, backend.asarray(u), backend.asarray(targets), batch, native))
        compared.same("shape and type", (error.shape, error.dtype), (expected.shape, expected.dtype))
        distance = float(np.abs(error.astype(np.float64) - expected).max())
        compared.true(f"dL/du is off by at most 2^-21, got {distance:.3g}", distance <= 2.0**-21)
        compared.equal("where it is zero", error == 0, expected == 0)

    return body


def _within(shape: Shape) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        s, inside = spikes(shape, 0.4, 17), spikes(shape[:2], 0.6, 18)
        masked = backend.mask_steps(backend.asarray(s), backend.asarray(inside))
        expected = s * inside.reshape(*inside.shape, *(1,) * (s.ndim - 2))
        compared.equal("spikes", values(backend, masked, np.uint8), expected)
        compared.same("their number", int(np.sum(backend.numpy(backend.spike_count(masked)))), int(expected.sum()))

    return body


def _weight_grid(block: Block, w: Float32) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        wq, grid = NUMPY.weight_grid(block, w)
        native, native_grid = backend.weight_grid(block, backend.asarray(w))
        compared.same("grid", native_grid, grid)
        compared.equal("weights", values(backend, native, np.float32), wq)

    return body


def _error_grid(dz: Float32, bits: int) -> Body:
    def body(backend: AbstractBackend, compared: Compared) -> None:
        native = backend.asarray(dz.copy())
        errors, counts = backend.error_grid(native, bits, backend.largest_error(native))
        expected, numbers = NUMPY.error_grid(dz, bits, NUMPY.largest_error(dz))
        compared.equal("errors", backend.numpy(errors), expected)
        native_counts = zeroed_numbers(backend.numpy(counts))
        compared.same("zeroed and non-zero errors", native_counts.tolist(), numbers.tolist())

    return body


def _sums_to_normalise(shape: Shape) -> Float32:
    """Sums in units of 2^-14, up to 2^24 of them, `shape` `[T, B, C, ...]`.

    The first channel is far from 0, the second is constant, and squares of the others need more than 53 bits.
    """
    k = np.clip(np.rint(normal(shape, 50).astype(np.float64) * 2**22), -(2**24), 2**24)
    k[:, :, 0] = 2**24 - np.abs(np.rint(normal(shape, 51)[:, :, 0]))
    k[:, :, 1] = 7 - 2**24
    return (k * 2.0**-14).astype(np.float32)


def _of_channels(backend: AbstractBackend[Array], compared: Compared, label: str, got: Any, expected: Any) -> None:
    """Compare numbers per channel, in tuples, bit for bit."""
    for place, (x, y) in enumerate(zip(got, expected, strict=True)):
        if isinstance(y, tuple):
            _of_channels(backend, compared, f"{label} {place}", x, y)
        else:
            compared.equal(f"{label} {place}", values(backend, x, y.dtype.type), y)


def _batchnorm(shape: Shape, gain: float) -> Body:
    norm, exponent = BatchNorm(factor=0.3), np.array([14], np.int32)
    channels, n = shape[2], math.prod(shape) // shape[2]
    z, dy = _sums_to_normalise(shape), normal(shape, 52) * np.exp(4 * normal(shape, 53))
    scale, shift = normal((2, channels), 54)
    fixed = {"norm": norm, "n": n, "gain": gain}

    def body(backend: AbstractBackend, compared: Compared) -> None:
        native, unit, own_scale = (backend.asarray(x.copy()) for x in (z, exponent, scale))
        sums, expected = backend.moments(native, unit), NUMPY.moments(z, exponent)
        compared.equal("sums of integers", values(backend, sums, np.int64), expected)
        native_affine = backend.of_channels(batchnorm.of_batch, sums, unit, own_scale, **fixed)
        expected_affine = NUMPY.of_channels(batchnorm.of_batch, expected, exponent, scale, **fixed)
        _of_channels(backend, compared, "coefficients", native_affine, expected_affine)
        # For samples with lengths, the number of frames is an array.
        frames, of_frame = backend.asarray(np.array([n], np.int32)), {**fixed, "n": 1}
        native_affine_of_frames = backend.of_channels(batchnorm.of_batch, sums, unit, own_scale, frames, **of_frame)
        _of_channels(backend, compared, "coefficients by frames", native_affine_of_frames, expected_affine)
        errors, _ = NUMPY.error_grid(dy, batchnorm.norm_error_bits(n))
        native_errors = backend.asarray(errors.copy())
        native_moments = backend.error_moments(native_errors, native, unit)
        exact = NUMPY.error_moments(errors, z, exponent)
        compared.equal("sums of errors", values(backend, native_moments, np.float64), exact)
        for training in (False, True):
            got = backend.of_channels(
                batchnorm.backward_coefficients, native_moments, unit, native_affine, n=n, training=training
            )
            expected_coefficients = NUMPY.of_channels(
                batchnorm.backward_coefficients, exact, exponent, expected_affine, n=n, training=training
            )
            _of_channels(backend, compared, "way back", got, expected_coefficients)
            of_all, slope, *_ = expected_coefficients
        means, stretched, *others = (
            backend.asarray(x.copy()) for x in (expected_affine.mean, expected_affine.a, shift, of_all, slope)
        )
        numbers, expected_numbers = (
            {"mean": means, "a": stretched},
            {"mean": expected_affine.mean, "a": expected_affine.a},
        )
        y = backend.channelwise(batchnorm.FORWARD, {"z": native}, {**numbers, "shift": others[0]})
        compared.equal(
            "y", backend.numpy(y), NUMPY.channelwise(batchnorm.FORWARD, {"z": z}, {**expected_numbers, "shift": shift})
        )
        dz = backend.channelwise(
            batchnorm.BACKWARD,
            {"z": native, "dy": native_errors},
            {**numbers, "of_all": others[1], "slope": others[2]},
        )
        expected_dz = NUMPY.channelwise(
            batchnorm.BACKWARD, {"z": z, "dy": errors}, {**expected_numbers, "of_all": of_all, "slope": slope}
        )
        compared.equal("dz", backend.numpy(dz), expected_dz)

    return body


def _running_coefficients(backend: AbstractBackend, compared: Compared) -> None:
    """Many square roots: pow(x, 1/2) differs from the square root in one of a thousand cases."""
    mean, scale = normal((2, 20_000), 55)
    arrays = mean, np.exp(3 * normal((20_000,), 56)), scale
    norm = BatchNorm(eps=1e-3)
    coefficients = backend.of_channels(batchnorm.of_running, *(backend.asarray(x.copy()) for x in arrays), norm=norm)
    _of_channels(
        backend, compared, "coefficients", coefficients, NUMPY.of_channels(batchnorm.of_running, *arrays, norm=norm)
    )


def _sample_grid(dz: Float32, bits: int) -> Body:
    """Compare with the error grid of each sample alone."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        errors = backend.numpy(backend.sample_grid(backend.asarray(dz.copy()), bits))
        alone = [NUMPY.error_grid(dz[:, [b]], bits)[0] for b in range(dz.shape[1])]
        compared.equal("errors", errors, np.concatenate(alone, axis=1))

    return body


def _of_other_sizes(shape: Shape, seed: int) -> Float32:
    """Errors `[1, B, ...]`. Those of every second sample are smaller by a factor of 2^40."""
    x: Float32 = normal(shape, seed) * np.exp(4 * normal(shape, seed + 1))
    x[:, 1::2] *= np.float32(2.0**-40)
    return x


def _over_time(shape: Shape) -> Body:
    """The operations of a walk through time, on arrays `[T, ...]`."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        s, x = spikes(shape, 0.4, 60), normal(shape, 61)
        for steps in (1, -2, len(s), -len(s) - 2):
            shifted = backend.shift_time(backend.asarray(s), steps)
            compared.equal(f"spikes, {steps} steps", values(backend, shifted, np.uint8), NUMPY.shift_time(s, steps))
            shifted = backend.shift_time(backend.asarray(x), steps)
            compared.equal(f"errors, {steps} steps", backend.numpy(shifted), NUMPY.shift_time(x, steps))
        for label, array, dtype in (("spikes", s, np.uint8), ("errors", x, np.float32)):
            joined = backend.concatenate([backend.asarray(part.copy()) for part in (array[:2], array[2:3], array[3:])])
            compared.equal(f"{label}, joined", values(backend, joined, dtype), array)
        native = tuple(backend.asarray(x).shape)
        compared.equal("zeros", values(backend, backend.zeros(native), np.float32), np.zeros(shape, np.float32))
        compared.equal("silence", values(backend, backend.silence(native), np.uint8), np.zeros(shape, np.uint8))
        one = normal((1, *shape[1:]), 62)

        def step(carried: tuple[Any, ...], read: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            total = backend.add(backend.add(carried[0], read["x"]), read["one"])
            return (total,), {"before": carried[0], "total": total}

        for reverse in (False, True):
            inputs = {"x": backend.asarray(x), "one": backend.asarray(one)}
            (last,), outputs = backend.scan(step, (backend.zeros((1, *native[1:])),), inputs, len(x), reverse=reverse)
            order, total = range(len(x))[:: -1 if reverse else 1], np.zeros_like(one)
            carried_in, totals = np.zeros_like(x), np.zeros_like(x)
            for t in order:
                carried_in[t], total = total[0], total + x[[t]] + one
                totals[t] = total[0]
            direction = "backwards" if reverse else "forwards"
            compared.equal(f"what is carried, {direction}", backend.numpy(outputs["before"]), carried_in)
            compared.equal(f"what is made, {direction}", backend.numpy(outputs["total"]), totals)
            compared.equal(f"what is left, {direction}", backend.numpy(last), total)

    return body


def _at_ties_and_ends(channels: int, steps: int) -> Float32:
    """Delays `[channels]`: whole, between two steps, beside these, as long as a run of `steps`, longer, and tiny."""
    of_a_run = (steps - 1, steps - 0.5, steps, steps + 0.5, 3 * steps, 2**16)
    beside = (np.nextafter(np.float32(2.5), np.float32(0)), np.nextafter(np.float32(0.5), np.float32(1)))
    return np.resize(np.array([0, 0.5, 1.5, 2.5, 1, 2.0**-100, *beside, 2, *of_a_run], np.float32), channels)


def _learned_delays(shape: Shape, kind: str) -> Body:
    """Learned delays of `spikes`, `counts` or `means` `[T, B, C, ...]`, with the rule written out for each channel.

    Of 3 earlier steps, the values are there, but not the errors, as in a network that runs step by step.
    """
    earlier, steps, delays = 3, shape[0], _at_ties_and_ends(shape[2], shape[0])
    with_earlier = (earlier + steps, *shape[1:])
    largest = {"spikes": 1, "counts": 255, "means": 1}[kind]
    x: AnyArray = spikes(with_earlier, 0.4, 95) * np.uint8(largest)
    if kind == "means":
        x = round_to_grid(np.abs(normal(with_earlier, 95)) % np.float32(1), 4)
    in_units = Values(shape[2:], exponent=4 if kind == "means" else 0, maximum=float(largest))

    def at(array: AnyArray, channel: int, t: int) -> AnyArray:
        read: AnyArray = array[t, :, channel] if 0 <= t < len(array) else np.zeros_like(array[0, :, channel])
        return read

    def slopes(array: AnyArray, channel: int, floor: int) -> AnyArray:
        """From the step after to the step before, float64, at the steps of the errors."""
        floats = array.astype(np.float64)
        first = len(array) - steps
        pairs = ((at(floats, channel, t - floor - 1), at(floats, channel, t - floor)) for t in range(first, len(array)))
        return np.stack([before - after for before, after in pairs])

    def body(backend: AbstractBackend, compared: Compared) -> None:
        native_delays, error = backend.asarray(delays.copy()), normal(shape, 96)
        s = x[earlier:]
        late = values(backend, backend.delay_forward(backend.asarray(s.copy()), native_delays), s.dtype.type)
        early = backend.numpy(backend.delay_backward(backend.asarray(error.copy()), native_delays))
        for channel, delay in enumerate(map(float, delays)):
            for t in range(steps):
                label = f"delay {delay}, step {t}"
                compared.equal(label, late[t, :, channel], at(s, channel, t - round(delay)))
                compared.equal(f"{label}: error", early[t, :, channel], at(error, channel, t + round(delay)))
        on_grid, _ = NUMPY.error_grid(error, LearnedDelay.error_bits(in_units, frames=steps * shape[1]))
        for label, array in (("", s), (", after earlier steps", x)):
            of_slope = np.stack([slopes(array, channel, math.floor(d)) for channel, d in enumerate(delays)], axis=2)
            for precision, errors in (("reproducible", on_grid), ("fast", error)):
                got = backend.delay_gradient(
                    backend.asarray(array.copy()), native_delays, backend.asarray(errors.copy())
                )
                terms = np.moveaxis(errors * of_slope, 2, 0).reshape(len(delays), -1)
                totals, expected = values(backend, got, np.float64), np.array([math.fsum(row) for row in terms])
                if precision == "reproducible":
                    compared.equal(f"gradient of delays{label}, reproducible", totals, expected)
                    continue
                # A float64 sum of n numbers, in any order, is off by at most n 2^-53 of their magnitudes.
                limit = terms.shape[1] * 2.0**-53 * np.abs(terms).sum(axis=1)
                compared.true(f"gradient of delays{label}, fast", bool((np.abs(totals - expected) <= limit).all()))

    return body


def _sum_of_branches(backend: AbstractBackend, compared: Compared) -> None:
    """Sums of spikes, and of means of spikes, which have another type."""
    shape, rule = (5, 2, 3, 4, 3), rule_of(backend, Add())
    a, b = spikes(shape, 0.4, 63), spikes(shape, 0.6, 64) * np.uint8(127)
    means = round_to_grid(np.abs(normal(shape, 65)) % np.float32(1), 4)
    for label, branches in {
        "two": (a, b),
        "three": (b, a, b),
        "means": (a, means),
        "means first": (means, b, a),
    }.items():
        arrays = (backend.asarray(x.copy()) for x in branches)
        total, residuals = rule.forward(Add(), *arrays)
        expected = np.add.reduce([x.astype(np.float32) for x in branches])
        compared.equal(label, values(backend, total, np.float32), expected)
        error = normal(shape, 90)
        errors = rule.backward(Add(), residuals, backend.asarray(error.copy()))
        compared.same(f"{label}: number of errors", len(errors), len(branches))
        for i, got in enumerate(errors):
            compared.equal(f"{label}: error of branch {i + 1}", backend.numpy(got), error)


def _concatenation(inner: Shape) -> Body:
    """The channels of spikes, counts and means. All branches have `inner`, `(H, W)` or `()`, but other channels."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        rule, lead = rule_of(backend, Concat()), (5, 2)
        a = spikes((*lead, 3, *inner), 0.4, 91)
        b = spikes((*lead, 1, *inner), 0.6, 92) * np.uint8(127)
        means = round_to_grid(np.abs(normal((*lead, 4, *inner), 93)) % np.float32(1), 4)
        for label, branches in {
            "two": (a, b),
            "three, one of them twice": (b, a, b),
            "means": (a, means),
            "means first": (means, b, a),
            "one step": (a[:1], b[:1]),
        }.items():
            native = [backend.asarray(x.copy()) for x in branches]
            joined, residuals = rule.forward(Concat(), *native)
            expected = np.concatenate([x.astype(np.float32) for x in branches], axis=2)
            compared.equal(label, values(backend, joined, np.float32), expected)
            compared.true(f"{label}: inputs stay as they are", _unchanged(backend, native, branches))
            error = normal(expected.shape, 94)
            errors = rule.backward(Concat(), residuals, backend.asarray(error.copy()))
            ends = np.cumsum([x.shape[2] for x in branches])
            for i, (got, branch_error) in enumerate(zip(errors, np.split(error, ends[:-1], axis=2), strict=True)):
                compared.equal(f"{label}: error of branch {i + 1}", backend.numpy(got), branch_error)

    return body


def _unchanged(backend: AbstractBackend[Array], native: Sequence[Array], branches: Sequence[AnyArray]) -> bool:
    pairs = zip(native, branches, strict=True)
    return all(np.array_equal(values(backend, x, y.dtype.type), y) for x, y in pairs)


def _one_to_one(backend: AbstractBackend, compared: Compared) -> None:
    synapse, lead, n = OneToOne(weight_bits=5), (4, 3), 37
    s, w = spikes((*lead, n), 0.4, 66), round_to_grid(normal((n, 1), 67), 3)
    rule, expected_rule = rule_of(backend, synapse), rule_of(NUMPY, synapse)
    z, native = rule.forward(synapse, backend.asarray(s), backend.asarray(w))
    compared.equal("z", values(backend, z, np.float32), s * w[:, 0])
    _, residuals = expected_rule.forward(synapse, s, w)
    for precision, errors in (("reproducible", round_to_grid(normal(s.shape, 68), 12)), ("fast", normal(s.shape, 69))):
        ds, dw = expected_rule.backward(synapse, residuals, errors, precision=precision, need_input=True)
        gradients = rule.backward(synapse, native, backend.asarray(errors), precision=precision, need_input=True)
        compared.equal(f"ds, {precision}", backend.numpy(gradients[0]), ds)
        compared.equal(f"dW, {precision}", values(backend, gradients[1], np.float64), dw)
        compared.equal(f"dW by hand, {precision}", dw[:, 0], (s * errors.astype(np.float64)).sum(axis=(0, 1)))
    options = {"precision": "reproducible", "need_input": True, "need_weights": False}
    alone = rule.backward(synapse, native, backend.asarray(errors), **options)
    compared.equal("ds alone", backend.numpy(alone[0]), ds)
    compared.true("dW is None when not asked for", alone[1] is None)


def _population(
    neuron: NeuronModel, filters: tuple[SynapticFilter, ...], static: tuple[bool, ...], shape: Shape
) -> Body:
    """Neurons of `shape` `[T, B, ...]` that read several projections."""

    def body(backend: AbstractBackend, compared: Compared) -> None:
        equations, steps = neuron_equations(filters, neuron, static), shape[0]
        zs = [
            normal((1 if is_static else steps, *shape[1:]), 70 + j) * np.float32(neuron.threshold)
            for j, is_static in enumerate(static)
        ]
        learned = {name: np.abs(normal((shape[2],), 80)) % np.float32(0.5) for name in equations.learned}
        s, residuals = NUMPY.population_forward(equations, zs, steps, learned)
        native_learned = {name: backend.asarray(x.copy()) for name, x in learned.items()}
        native_s, native = backend.population_forward(
            equations, [backend.asarray(z.copy()) for z in zs], steps, native_learned
        )
        compared.equal("potentials", backend.numpy(backend.neuron_potentials(native)), residuals.kept["u"])
        compared.equal("spikes", values(backend, native_s, np.uint8), s)
        ds = normal(shape, 81)
        errors, terms = NUMPY.population_backward(equations, residuals, ds, static)
        native_errors, native_terms = backend.population_backward(equations, native, backend.asarray(ds.copy()), static)
        for j, (got, expected) in enumerate(zip(native_errors, errors, strict=True)):
            compared.equal(f"dL/dz of projection {j + 1}", backend.numpy(got), expected)
        compared.same("what is learned", sorted(native_terms), sorted(terms))
        for name, term in terms.items():
            compared.equal(f"terms of {name}", backend.numpy(native_terms[name]), term)

    return body


def _gradient_norm(backend: AbstractBackend, compared: Compared) -> None:
    wide = normal((7, 131), 19) * np.exp(3 * normal((7, 131), 20))
    for label, gradients in {
        "normal": [normal((5, 3, 3), 21), normal((1001,), 22)],
        "heavy tails": [wide, normal((17,), 23)],
        "zeros": [np.zeros((3, 4), np.float32), np.zeros(5, np.float32)],
        "below the floor": [np.full((3, 3), 1e-33, np.float32)],
        "large": [np.full((3, 3), 3e30, np.float32)],
    }.items():
        computed = backend.gradient_norm([backend.asarray(g) for g in gradients])
        compared.same(label, computed, NUMPY.gradient_norm(gradients))
    for value, size in itertools.product((np.nan, np.inf, -np.inf), (4, 350)):
        not_finite = normal((size, size), 24)
        not_finite[2, 1] = value
        norm = backend.gradient_norm([backend.asarray(normal((3,), 25)), backend.asarray(not_finite)])
        compared.true(f"the norm of a gradient with {value} must not be finite, got {norm}", not math.isfinite(norm))


def _spike_rate(backend: AbstractBackend, compared: Compared) -> None:
    for shape in ((3, 2, 5, 7, 3), (25, 4, 10), (1, 1, 1)):
        s = spikes(shape, 0.37, 30)
        compared.same(f"rate of {list(shape)}", backend.spike_rate(backend.asarray(s)), float(s.sum()) / s.size)


_CONV = {
    "3x3": _block("5C3", (3, 9, 10)),
    "5x5 padded": _block("4C5p2", (2, 8, 11)),
    "1x1": _block("7C1", (3, 5, 5)),
    "2x2 stride 2": _block("6C2s2", (3, 9, 7)),
    "3x3 stride 2 padded": _block("16C3s2p1", (4, 10, 11)),
    "4x4 stride 3": _block("3C4s3", (2, 12, 13)),
    "kernel as large as the input": _block("9C6", (1, 6, 6)),
    "3x3 same, 32 channels": _block("33C3p1", (32, 8, 8)),
    "3x5, padded and strided apart": _conv(Conv2d(6, (3, 5), (2, 1), (0, 2)), (3, 9, 7)),
    "1x5 on one row": _conv(Conv2d(5, (1, 5), (1, 3), (0, 4)), (3, 1, 16)),
    "3x3 dilated": _conv(Conv2d(5, 3, padding=2, dilation=2), (3, 8, 7)),
    "3x2 dilated apart, strided": _conv(Conv2d(4, (3, 2), (1, 2), (3, 1), dilation=(2, 3)), (2, 7, 9)),
    "3 groups": _conv(Conv2d(9, 3, padding=1, groups=3), (6, 5, 7)),
    "2 groups of 4 channels, dilated, strided": _conv(Conv2d(6, (2, 3), 2, 1, dilation=(1, 2), groups=2), (8, 7, 8)),
    "depthwise": _conv(Conv2d(8, 3, padding=1, groups=8), (8, 6, 5)),
    "depthwise, 2 outputs a channel": _conv(Conv2d(10, (1, 3), groups=5), (5, 4, 6)),
}
_PASSING: dict[Passing, Shape] = {
    AvgPool2d((1, 2)): (3, 2, 3, 5, 7),
    AvgPool2d(3): (2, 3, 4, 10, 8),
    AvgPool2d((5, 2)): (2, 1, 3, 5, 9),
    MaxPool2d(2): (3, 2, 8, 9, 6),
    MaxPool2d((3, 1)): (2, 2, 5, 8, 4),
    MaxPool2d(17): (1, 2, 3, 17, 18),
    Upsample2d(2): (2, 3, 4, 3, 5),
    Upsample2d((1, 3)): (3, 2, 3, 4, 1),
    Flatten(): (2, 3, 4, 3, 5),
}
_POOLED_CONV = _block("P4-12C3p1", (3, 22, 21))
_LINEAR = _block("17", (37,))
_FLATTENED = _block("11", (3, 5, 7))
_POOLED_LINEAR = _block("P4-19", (2, 13, 12))
IMAGES = _block("40", (3, 48, 48), coding="direct")
WIDE = _block("2{bits=3}", (16, 48, 48), coding="direct")  # 2 bits are all that its sums leave to weights of 0.6
_FULL = _block("2", (513,), input_max=16)
_FILTERS = {tau: PSP(tau).filter() for tau in (1.0, 2.0, 3.0, 5.0, 5 / 3)}


def powers(steps: int, exponent: int) -> Float32:
    """`[steps, 1, 16]`: powers of two of either sign from `2^exponent` on at the last step; zero before it."""
    x = np.zeros((steps, 1, 16), np.float32)
    x[-1, 0] = np.ldexp(np.resize(np.array([1, -1], np.float32), 16), exponent + np.arange(16) // 2)
    return x


def _adding_up_to(units: int) -> Float32:
    """`[2, 513]`: weights of 12 bits. Each row adds up to `units` units of 2^-11; those of the first are negative."""
    row = np.full(513, 2047, np.float32)
    row[-1] = units - 512 * 2047
    return np.stack([-row, row]) / np.float32(2048)


def _smallest(shape: tuple[int, ...]) -> Float32:
    """One error of 1 among the smallest normal numbers, which count as errors, and halves of them, which do not."""
    x = np.resize(np.array([1, -1, 0.5, -0.5, 0]) * SMALLEST_NORMAL, shape).astype(np.float32)
    x[-1, -1, -1] = 1
    return x


def _with_ties(shape: Shape) -> Float32:
    """Weights, many of them halfway between two grid points."""
    w = round_to_grid(normal(shape, 31), 9)
    w.reshape(-1)[0] = 4
    return w


def _near_ceiling(shape: Shape) -> Float32:
    """Weights just below 2^100 and smaller ones. Their grids have the largest steps, and their sums come near 2^125."""
    w: Float32 = (np.abs(normal(shape, 35)) * np.float32(2.0**97)).clip(0, _BELOW_CEILING)
    w.reshape(-1)[::3] = _BELOW_CEILING
    return w


_BELOW_CEILING = np.nextafter(np.float32(CEILING), np.float32(0))
_HUGE = _near_ceiling((17, 37))

CHECKS = (
    pair_check("encode", _encode()),
    *(pair_check(f"convolution {name}", _synapse(block)) for name, block in _CONV.items()),
    pair_check("convolution, pooled input", _synapse(_POOLED_CONV, pooled=True)),
    pair_check("convolution, one frame", _synapse(_CONV["3x3"], lead=(1, 1))),
    pair_check("convolution, many frames", _synapse(_CONV["3x3 stride 2 padded"], lead=(25, 5))),
    pair_check("linear", _synapse(_LINEAR)),
    pair_check("linear, flattened input", _synapse(_FLATTENED)),
    pair_check("linear, pooled input", _synapse(_POOLED_LINEAR, pooled=True)),
    pair_check("linear, one frame", _synapse(_LINEAR, lead=(1, 1))),
    *(
        pair_check(
            f"pooling {size}x{size}, {'grey values' if kind == 'grey' else kind}",
            _passing(AvgPool2d(size), shape, kind),
        )
        for size, shape in ((1, (2, 2, 3, 4, 5)), (2, (3, 2, 5, 9, 10)), (4, (2, 3, 2, 17, 9)), (8, (1, 2, 1, 24, 16)))
        for kind in ("spikes", "grey")
    ),
    *(
        pair_check(f"{op!r}, {kind}", _passing(op, shape, kind))
        for op, shape in _PASSING.items()
        for kind in ("counts", "grey")
    ),
    pair_check("dropout 0.5", _dropout(0.5, (3, 5, 7, 3), 16, 1, 0)),
    pair_check("dropout 0.1, large seed and step", _dropout(0.1, (2, 37), 160, 2**32 - 1, 123_456)),
    pair_check("dropout 0.9", _dropout(0.9, (1, 1), 1, 77, 9)),
    pair_check(
        "dropout 1 - 2^-33, a step beyond 32 bits", _dropout(1 - 2.0**-33, (3, 7), 35, 2**32 - 1, 2**33 + 12_345)
    ),
    pair_check("dropout 0", _dropout(0.0, (2, 3, 5, 4), 3, 0, 2**31 + 5)),
    *(
        pair_check(f"error of {name}, lengths", _loss_error_of_lengths(name, 3.0, (14, 3, 7), (14, 5, 1)))
        for name in EXACT_LOSSES
    ),
    *(
        pair_check(f"error of {name}{', lengths' if lengths else ''}", _readout_error(name, lengths))
        for name in OF_CLASSES
        for lengths in (None, (14, 5, 1))
    ),
    pair_check("spikes without padding", _within((6, 3, 2, 4, 5))),
    pair_check("weight grid", _weight_grid(_CONV["3x3"], normal((5, 3, 3, 3), 32))),
    pair_check("weight grid, ties", _weight_grid(_LINEAR, _with_ties((17, 37)))),
    pair_check("weight grid, 4 bits", _weight_grid(_block("17{bits=4}", (37,)), normal((17, 37), 33))),
    pair_check("weight grid, 2 bits", _weight_grid(_block("17{bits=2}", (37,)), normal((17, 37), 34))),
    pair_check("weight grid, all zero", _weight_grid(_LINEAR, np.zeros((17, 37), np.float32))),
    pair_check("weight grid, tiny weights", _weight_grid(_LINEAR, normal((17, 37), 35) * np.float32(1e-20))),
    pair_check("weight grid, a power of two", _weight_grid(_LINEAR, np.full((17, 37), 0.5, np.float32))),
    pair_check(
        "weight grid, rounds up to a power of two",
        _weight_grid(_LINEAR, np.full((17, 37), np.nextafter(np.float32(1), np.float32(0)), np.float32)),
    ),
    *(
        pair_check(
            f"weight grid, below the ceiling, {bits} bits", _weight_grid(_block(f"17{{bits={bits}}}", (37,)), _HUGE)
        )
        for bits in (2, 3, 12)
    ),
    pair_check("weight grid, below the ceiling, coarser", _weight_grid(IMAGES, _near_ceiling((40, 3 * 48 * 48)))),
    pair_check("weight grid, coarser for the bound", _weight_grid(IMAGES, np.abs(normal((40, 3 * 48 * 48), 36)))),
    pair_check("weight grid, as coarse as it may be", _weight_grid(WIDE, np.full((2, 16 * 48 * 48), 0.6, np.float32))),
    pair_check("weight grid, the largest at the floor", _weight_grid(_LINEAR, np.full((17, 37), FLOOR, np.float32))),
    *(
        pair_check(f"weight grid, sums that {label} 2^24", _weight_grid(_FULL, _adding_up_to(units)))
        for label, units in (("reach", 2**20), ("pass", 2**20 + 1))
    ),
    pair_check("weight grid, below the floor", _weight_grid(_LINEAR, np.full((17, 37), -(2.0**-101), np.float32))),
    pair_check("weight grid, large weights", _weight_grid(_LINEAR, normal((17, 37), 34) * np.float32(2.0**97))),
    pair_check("error grid", _error_grid(normal((5, 2, 3, 7), 37), 24)),
    pair_check("error grid, 17 bits", _error_grid(normal((5, 2, 33), 38), 17)),
    pair_check("error grid, heavy tails", _error_grid(normal((4, 3, 50), 39) * np.exp(4 * normal((4, 3, 50), 40)), 20)),
    pair_check("error grid, 33 bits", _error_grid(normal((4, 3, 50), 39) * np.exp(4 * normal((4, 3, 50), 40)), 33)),
    pair_check("error grid, 51 bits", _error_grid(normal((4, 3, 50), 39) * np.exp(20 * normal((4, 3, 50), 40)), 51)),
    pair_check("error grid, large errors", _error_grid(normal((3, 2, 50), 41) * np.float32(2.0**125), 41)),
    pair_check("error grid, ties", _error_grid(_with_ties((4, 3, 8)), 8)),
    pair_check("error grid, all zero", _error_grid(np.zeros((3, 2, 5), np.float32), 24)),
    pair_check("error grid, near the floor", _error_grid(normal((3, 2, 50), 41) * np.float32(2.0**-98), 24)),
    pair_check("error grid, below the floor", _error_grid(normal((3, 2, 50), 41) * np.float32(2.0**-105), 24)),
    pair_check("error grid, the largest at the floor", _error_grid(np.full((3, 2, 5), FLOOR, np.float32), 24)),
    pair_check("error grid, above the floor", _error_grid(normal((3, 2, 50), 41) * np.float32(2.0**-76), 41)),
    pair_check("error grid, around the smallest normal number", _error_grid(_smallest((3, 2, 7)), 24)),
    pair_check("batch normalisation, sums that need pieces", _batchnorm((3, 2, 5, 11, 12), 1 / 0.7)),
    pair_check("batch normalisation, full connection", _batchnorm((7, 5, 33), 1.0)),
    pair_check("batch normalisation, running statistics", _running_coefficients),
    pair_check("sample grid, samples of other sizes", _sample_grid(_of_other_sizes((1, 5, 33), 57), 24)),
    pair_check("sample grid, images, 33 bits", _sample_grid(_of_other_sizes((1, 4, 3, 5, 4), 57), 33)),
    pair_check("sample grid, near the floor", _sample_grid(normal((1, 7, 9), 41) * np.float32(2.0**-101), 24)),
    pair_check("sample grid, large errors", _sample_grid(normal((1, 3, 9), 41) * np.float32(2.0**125), 17)),
    pair_check("sample grid, ties", _sample_grid(_with_ties((1, 3, 40)), 8)),
    pair_check("time, spikes of neurons", _over_time((5, 3, 7))),
    pair_check("time, spikes of channels", _over_time((6, 2, 3, 4, 5))),
    pair_check("learned delays of neurons", _learned_delays((6, 3, 37), "spikes")),
    pair_check("learned delays of channels", _learned_delays((5, 2, 18, 3, 5), "spikes")),
    pair_check("learned delays of counts", _learned_delays((9, 2, 15), "counts")),
    pair_check("learned delays of means", _learned_delays((4, 3, 16, 5, 1), "means")),
    pair_check("learned delays, one step", _learned_delays((1, 1, 15), "spikes")),
    pair_check("sum of branches", _sum_of_branches),
    pair_check("concatenation of channels", _concatenation((4, 3))),
    pair_check("concatenation of neurons", _concatenation(())),
    pair_check("one weight a neuron", _one_to_one),
    pair_check(
        "three synapses",
        _population(LIF(3, 2, 0.5), (_FILTERS[3.0], _FILTERS[5 / 3], PSP(4.0, 1.5).filter()), (False,) * 3, (9, 2, 23)),
    ),
    pair_check(
        "one synapse of two projections, another one between",
        _population(
            ALIF(3, 2, 0.5, reset="subtract"),
            (_FILTERS[3.0], _FILTERS[2.0], _FILTERS[3.0]),
            (False,) * 3,
            (9, 2, 3, 4, 5),
        ),
    ),
    pair_check(
        "an image beside frames, biases",
        _population(
            PLIF(3, 2, 0.5, per="channel"),
            (Biased(IDENTITY, np.float32(1)), Biased(_FILTERS[5 / 3], np.float32(1.25))),
            (True, False),
            (8, 3, 4, 3, 3),
        ),
    ),
    pair_check("gradient norm", _gradient_norm),
    pair_check("spike rate", _spike_rate),
)
