"""What a backend inherits: numbers that are made of others."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.contract.grid import sum_bits
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.engine.operations import Operations
from stsbp_spec.errors import BackendError
from stsbp_spec.models.optim.adamw import gradient_squares
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

NUMPY = NumpyBackend()


class Counted(NumpyBackend):
    """Counts the spikes of each sample alone."""

    def spike_count(self, s: AnyArray) -> AnyArray:
        return np.array([np.count_nonzero(s[:, b]) for b in range(s.shape[1])], np.uint16)


def test_a_spike_rate_is_a_mean_however_spikes_are_counted() -> None:
    s = np.zeros((5, 3, 2, 10, 10), np.uint8)
    s[:4, :, 0] = 1
    s[0, 0, 1, 0, 0] = 1
    for backend in (NUMPY, Counted()):
        assert backend.spike_rate(s) == (4 * 3 * 100 + 1) / 3000


@pytest.mark.parametrize(
    ("units", "square"),
    [(0.5, 0), (0.75, 1), (5.25, 25), (5.5, 36), (5.75, 36), (6.5, 36), (-5.75, 36), (2.0**23 - 0.5, 2**46)],
)
def test_gradients_are_rounded_to_units_of_the_largest_before_they_are_squared(units: float, square: int) -> None:
    """24 bits beside a largest one of 1: units of 2^-23, halves to even."""
    gradients: list[Float32] = [np.array([1], np.float32), np.array([[units * 2.0**-23]], np.float32)]
    bits, total = gradient_squares(gradients).tolist()
    assert bits == 127 << 23
    assert total == 2**46 + square
    assert NUMPY.gradient_norm(gradients) == pytest.approx(np.sqrt(1 + square * 2.0**-46), rel=1e-15)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)], ids=["one number", "neurons", "channels"])
def test_samples_and_steps_that_do_not_count_are_zero(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, *shape)).astype(np.float32)
    for count in range(5):
        assert (
            NUMPY.mask_samples(x, count).tobytes() == np.concatenate([x[:, :count], 0 * abs(x[:, count:])], 1).tobytes()
        )
    inside = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]], np.uint8)
    for values in (x, (x > 0).astype(np.uint8)):
        masked = NUMPY.mask_steps(values, inside)
        assert masked.dtype == values.dtype
        for t, b in np.ndindex(3, 4):
            assert np.array_equal(masked[t, b], values[t, b] * inside[t, b])


@pytest.mark.parametrize("steps", [-5, -4, -3, -1, 0, 1, 3, 4, 5])
def test_a_shift_leaves_zeros_in_the_gap(steps: int) -> None:
    x = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    expected = [x[t - steps] if 0 <= t - steps < 4 else np.zeros(2, np.float32) for t in range(4)]
    assert NUMPY.shift_time(x, steps).tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_carries_arrays_from_step_to_step(reverse: bool) -> None:
    x, once = np.arange(5, dtype=np.float32).reshape(5, 1), np.array([[10]], np.float32)

    def step(
        carried: tuple[AnyArray, ...], read: dict[str, AnyArray]
    ) -> tuple[tuple[AnyArray, ...], dict[str, AnyArray]]:
        (last,) = carried
        return (read["x"] + read["once"],), {"last": last, "seen": read["x"]}

    start = (np.array([[-1]], np.float32),)
    (carried,), outputs = NUMPY.scan(step, start, {"x": x, "once": once}, 5, reverse=reverse)
    order = x[::-1] if reverse else x
    lasts = np.concatenate([start[0], order[:-1] + 10])
    assert np.array_equal(carried, order[-1:] + 10)
    assert np.array_equal(outputs["seen"], x)
    assert np.array_equal(outputs["last"], lasts[::-1] if reverse else lasts)


def test_sums_of_elements_are_by_channel_or_of_all() -> None:
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 4)).astype(np.float32)
    for count, axes in ((3, (0, 1, 3)), (1, (0, 1, 2, 3))):
        sums = NUMPY.channel_totals(x, count)
        assert sums.dtype == np.float64
        assert sums.shape == (count,)
        assert sums == pytest.approx(x.astype(np.float64).sum(axis=axes).reshape(count), rel=1e-14)
    values = np.array([1, 2, 3], np.float32)
    assert np.array_equal(NUMPY.broadcast(values, (2, 3, 4)), np.broadcast_to(values[:, None], (1, 2, 3, 4)))
    assert np.array_equal(NUMPY.broadcast(values[:1], (2, 3)), np.ones((1, 2, 3)))


def test_a_learned_gradient_is_of_errors_on_a_grid_in_reproducible_precision_alone() -> None:
    random = np.random.default_rng(1)
    x = (random.normal(size=(1, 200, 3, 40)) * np.exp(8 * random.normal(size=(1, 200, 3, 40)))).astype(np.float32)
    on_grid, _ = NUMPY.error_grid(x, sum_bits(200 * 40))
    assert not np.array_equal(on_grid, x)
    sums = [terms.astype(np.float64).sum(axis=(0, 1, 3)) for terms in (x, on_grid)]
    fast, exact = (NUMPY.learned_gradient(x, 3, precision) for precision in ("fast", "reproducible"))
    assert exact.tobytes() == sums[1].astype(np.float32).tobytes()
    assert fast == pytest.approx(sums[0], rel=1e-6)
    # Beside large errors that cancel, the grid has no room for a small one.
    far = np.array([1, 2.0**-60, -1], np.float32).reshape(1, 3, 1)
    assert [float(NUMPY.learned_gradient(far, 1, p)[0]) for p in ("fast", "reproducible")] == [0.0, 0.0]
    near = np.array([1, 2.0**-52, -1], np.float32).reshape(1, 3, 1)
    assert [float(NUMPY.learned_gradient(near, 1, p)[0]) for p in ("fast", "reproducible")] == [2.0**-52, 0.0]


def test_the_largest_of_several_arrays_is_taken_elementwise() -> None:
    a, b, c = np.array([[1, 5, 3], [4, 2, 6], [0, 9, 1]], np.int32)
    assert NUMPY.maximum([a]) is a
    assert NUMPY.maximum([a, b, c]).tolist() == [4, 9, 6]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(3, 1, 5), (2, 3, 2, 3, 3), (8,)])
def test_spikes_are_packed_into_bits_and_come_back(shape: tuple[int, ...], dtype: type) -> None:
    s: AnyArray = (np.random.default_rng(2).random(shape) < 0.4).astype(dtype)
    packed = NUMPY.pack_spikes(s)
    assert packed[0].nbytes == -(-s.size // 8)
    unpacked = NUMPY.unpack_spikes(packed)
    assert (unpacked.dtype, unpacked.shape, unpacked.tobytes()) == (s.dtype, s.shape, s.tobytes())


def test_a_backend_of_one_process_says_so() -> None:
    class Lonely(NumpyBackend):
        join = Operations.join

    with pytest.raises(BackendError, match="backend 'numpy' computes in one process only"):
        Lonely().join(Rendezvous(0, 2))
    assert (Operations.alone(NUMPY).size, Operations.alone(NUMPY).rank) == (1, 0)
    assert Operations.compile_seconds.fget(NUMPY) == 0  # type: ignore[attr-defined]
