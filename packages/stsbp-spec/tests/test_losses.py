"""Losses and decoders: distances by hand and by loops, errors as derivatives, ties, and classes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.models.decoders import distances, nearest_sequence, spike_count
from stsbp_spec.models.encoders import LabelCode, encode_repeat
from stsbp_spec.models.losses import LOSSES, Hamming, SpikeCount, VanRossum
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float64, UInt8

NUMPY = NumpyBackend()


def _trains(seed: int, density: float = 0.4) -> UInt8:
    return (np.random.default_rng(seed).random((9, 4, 5)) < density).astype(np.uint8)


def _smooth(name: str, o: Float64, target: Float64, tau: float) -> float:
    """The loss of real-valued trains, from the definition: a sum over all pairs of steps, no recursion."""
    steps, batch = o.shape[:2]
    d = o - target
    if name == "hamming":
        return float(0.5 * (d * d).sum() / batch)
    if name == "spike-count":
        return float(0.5 * ((d.sum(axis=0) / steps) ** 2).sum() / batch)
    k, c = 1 - 1 / tau, 1 / tau
    kernel = np.array([[c * k ** (t - s) if s <= t else 0.0 for s in range(steps)] for t in range(steps)])
    a = np.tensordot(kernel, d, axes=1)
    return float(0.5 * (a * a).sum() / batch)


@pytest.mark.parametrize("tau", [1, 2, 3, 5 / 3])
@pytest.mark.parametrize("name", LOSSES)
def test_distance_is_the_definition(name: str, tau: float) -> None:
    o, target = _trains(0), _trains(1)
    distances = LOSSES[name].distance(o, target, PSP(tau))
    assert distances.shape == (4,)
    for b in range(4):
        one = _smooth(name, o[:, b : b + 1].astype(float), target[:, b : b + 1].astype(float), tau)
        # The Hamming distance counts differences; its smooth form is half the square.
        assert distances[b] == pytest.approx(one * (2 if name == "hamming" else 1), rel=1e-14)


@pytest.mark.parametrize("tau", [1, 2, 3, 5 / 3])
@pytest.mark.parametrize("name", LOSSES)
def test_error_is_the_derivative(name: str, tau: float) -> None:
    """Every element against central differences; the losses are quadratic, so these are exact but for rounding."""
    o, target = _trains(2), _trains(3)
    error = NUMPY.loss_error(LOSSES[name], PSP(tau), o, target)
    assert error.dtype == np.float32
    for index in np.ndindex(*o.shape):
        moved = np.zeros(o.shape)
        moved[index] = 0.5
        slope = _smooth(name, o + moved, target.astype(float), tau) - _smooth(
            name, o - moved, target.astype(float), tau
        )
        assert error[index] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_trains_have_distance_zero_and_no_error(name: str) -> None:
    o = _trains(4)
    assert not LOSSES[name].distance(o, o, PSP(3)).any()
    assert not NUMPY.loss_error(LOSSES[name], PSP(3), o, o).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 40),
    neurons=st.integers(1, 40),
    name=st.sampled_from([*LOSSES]),
)
def test_a_batch_and_its_layout_do_not_change_a_samples_distance(
    seed: int, batch: int, neurons: int, name: str
) -> None:
    rng = np.random.default_rng(seed)
    o, target = (rng.integers(0, 2, (7, batch, neurons)).astype(np.uint8) for _ in range(2))
    expected = LOSSES[name].distance(o, target, PSP(3))
    for b in range(batch):
        assert LOSSES[name].distance(o[:, b : b + 1], target[:, b : b + 1], PSP(3)) == expected[b]
        assert LOSSES[name].distance(o[:, b], target[:, b], PSP(3)) == expected[b]
    by_column = np.asfortranarray(o), np.asfortranarray(target)
    assert np.array_equal(LOSSES[name].distance(*by_column, PSP(3)), expected)
    some = rng.permutation(batch)[: 1 + batch // 2]
    assert np.array_equal(LOSSES[name].distance(o[:, some], target[:, some], PSP(3)), expected[some])


@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 60), name=st.sampled_from([*LOSSES]))
def test_the_order_of_the_samples_does_not_change_the_loss(seed: int, batch: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    o, target = (rng.integers(0, 2, (7, batch, 11)).astype(np.uint8) for _ in range(2))
    expected = LOSSES[name].mean(o, target, PSP(3))
    exact = sum((Fraction(d) for d in LOSSES[name].distance(o, target, PSP(3)).tolist()), Fraction(0))
    assert expected == float(exact) / batch
    for _ in range(3):
        order = rng.permutation(batch)
        assert LOSSES[name].mean(o[:, order], target[:, order], PSP(3)) == expected


def test_only_the_spike_count_is_blind_to_time() -> None:
    o = _trains(5)
    moved = np.roll(o, 1, axis=0)
    assert not SpikeCount().distance(o, moved, PSP(3)).any()
    assert (Hamming().distance(o, moved, PSP(3)) > 0).all()
    assert (VanRossum().distance(o, moved, PSP(3)) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_nearest_sequence_reads_back_the_label(name: str) -> None:
    code = LabelCode("011", "0")
    labels = np.array([3, 0, 4, 1])
    targets = encode_repeat(labels, 5, 9, code)
    distance = distances(targets, code.sequences(5, 9), LOSSES[name], PSP(3))
    assert distance.shape == (4, 5)
    assert np.array_equal(nearest_sequence(distance), labels)
    for b in range(4):
        for k in range(5):
            one = LOSSES[name].distance(targets[:, b], code.sequences(5, 9)[k], PSP(3))
            assert distance[b, k] == one


def test_the_nearest_of_distances_below_zero_is_the_smallest() -> None:
    distance = np.array([[-1.0, -3.0, -2.0], [-1.0, 2.0, -1.0 - 1e-12], [1.0, 0.0, -1e-3], [np.inf, np.inf, np.inf]])
    assert nearest_sequence(distance).tolist() == [1, 0, 2, 0]


def test_equal_distances_choose_the_lowest_class_whatever_the_last_bit() -> None:
    distance = np.array([[0.3, 0.1 + 0.2, 0.5], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1 - 1e-6, 2.0]])
    assert nearest_sequence(distance).tolist() == [0, 1, 0, 1]
    assert nearest_sequence(distance[:, ::-1]).tolist() == [1, 0, 0, 1]
    assert nearest_sequence(np.array([[2.0, -1.0, -3.0], [-0.3, -0.1 - 0.2, 1.0]])).tolist() == [2, 0]


def test_spike_count_decodes_the_most_spikes_lowest_class_first() -> None:
    spikes = np.zeros((300, 3, 4), np.uint8)
    spikes[:, 0, 2] = 1
    spikes[:5, 1, 1] = spikes[3:8, 1, 3] = 1
    assert spike_count(spikes).tolist() == [2, 1, 0]


def test_a_count_above_255_does_not_wrap_around() -> None:
    o, target = np.ones((300, 1, 2), np.uint8), np.zeros((300, 1, 2), np.uint8)
    assert SpikeCount().distance(o, target, PSP(2)).tolist() == [1.0]
    assert np.allclose(NUMPY.loss_error(SpikeCount(), PSP(2), o, target), 1 / 300)
