"""Matched spike times against the largest matching that a search finds."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.decoders import distances, equally_near, nearest_sequence, spike_count
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.metrics import f1, match_spikes, matched_pairs, precision, recall
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray, UInt8

TRAINS = st.lists(st.integers(0, 1), min_size=9, max_size=9)


def largest_matching(spikes: list[int], targets: list[int], tolerance: int) -> int:
    """Augmenting paths (Kuhn 1955) on the bipartite graph of spikes within reach."""
    partner: dict[int, int] = {}

    def place(spike: int, visited: set[int]) -> bool:
        for target in (t for t, fires in enumerate(targets) if fires and abs(t - spike) <= tolerance):
            if target not in visited:
                visited.add(target)
                if target not in partner or place(partner[target], visited):
                    partner[target] = spike
                    return True
        return False

    return sum(place(t, set()) for t, fires in enumerate(spikes) if fires)


@given(st.lists(st.tuples(TRAINS, TRAINS), min_size=4, max_size=4), st.integers(0, 10))
def test_no_matching_is_larger(trains: list[tuple[list[int], list[int]]], tolerance: int) -> None:
    both = np.array(trains, dtype=np.uint8).reshape(2, 2, 2, 9)
    spikes, targets = (np.ascontiguousarray(x.transpose(2, 0, 1)) for x in both.transpose(2, 0, 1, 3))
    matches = match_spikes(spikes, targets, tolerance)
    for sample in range(2):
        pairs = trains[2 * sample : 2 * sample + 2]
        assert matches.matched[sample] == sum(largest_matching(o, g, tolerance) for o, g in pairs)
        assert matches.spikes[sample] == sum(sum(o) for o, _ in pairs)
        assert matches.targets[sample] == sum(sum(g) for _, g in pairs)


def _pairs_in_order(spikes: Any, targets: Any, tolerance: int) -> int:
    """The largest matching of two trains `[T]`: the first spikes of both are paired, or the earlier one is left out."""
    times, target_times = np.flatnonzero(spikes).tolist(), np.flatnonzero(targets).tolist()
    matched = i = j = 0
    while i < len(times) and j < len(target_times):
        if abs(times[i] - target_times[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif times[i] < target_times[j]:
            i += 1
        else:
            j += 1
    return matched


# Waiting spikes are bits of words of 8, 16, 32 and 64 bits; beyond, they lie in slots.
@pytest.mark.parametrize("tolerance", [0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 90, 10**9])
def test_long_trains_are_matched_at_every_tolerance(tolerance: int) -> None:
    rng = np.random.default_rng(tolerance)
    spikes, targets = (rng.random((200, 4, 3)) < rate for rate in (0.1, 0.2))
    expected = [[_pairs_in_order(spikes[:, b, n], targets[:, b, n], tolerance) for n in range(3)] for b in range(4)]
    assert match_spikes(spikes, targets, tolerance).matched.tolist() == [sum(row) for row in expected]
    assert matched_pairs(spikes, targets, [0, tolerance])[1].tolist() == expected
    assert matched_pairs(spikes, targets, [0, tolerance])[0].tolist() == (spikes & targets).sum(axis=0).tolist()


def test_neurons_and_samples_do_not_share_spikes() -> None:
    spikes: UInt8 = np.zeros((4, 2, 2), np.uint8)
    targets = spikes.copy()
    spikes[1, 0, 0] = targets[1, 0, 1] = targets[1, 1, 0] = 1
    assert match_spikes(spikes, targets, 3).matched.tolist() == [0, 0]


@pytest.mark.parametrize(("apart", "matched"), [(0, 1), (2, 1), (3, 0)])
def test_tolerance_is_inclusive(apart: int, matched: int) -> None:
    spikes: UInt8 = np.zeros((8, 1, 1), np.uint8)
    targets = spikes.copy()
    spikes[1], targets[1 + apart] = 1, 1
    assert match_spikes(spikes, targets, 2).matched.tolist() == [matched]
    assert match_spikes(targets, spikes, 2).matched.tolist() == [matched]


def test_ratios() -> None:
    assert (precision(3, 4, 6), recall(3, 4, 6), f1(3, 4, 6)) == (0.75, 0.5, 0.6)
    # Silence is right only where silence is wanted.
    assert (precision(0, 0, 5), recall(0, 0, 5), f1(0, 0, 5)) == (0, 0, 0)
    assert (precision(0, 5, 0), recall(0, 5, 0), f1(0, 5, 0)) == (0, 0, 0)
    assert (precision(0, 0, 0), recall(0, 0, 0), f1(0, 0, 0)) == (1, 1, 1)


def test_metrics_take_tensors() -> None:
    rng = np.random.default_rng(0)
    spikes, targets = (rng.random((9, 4, 3)) < 0.4 for _ in range(2))
    lengths = np.array([9, 5, 7, 1])
    expected = match_spikes(spikes.astype(np.uint8), targets.astype(np.uint8), 1, lengths)
    arguments = _Tensor(spikes.astype(np.float32)), _Tensor(targets.astype(np.float32)), 1, _Tensor(lengths)
    for x, y in zip(match_spikes(*arguments), expected, strict=True):
        assert np.array_equal(x, y)
    counted = spike_count(spikes.astype(np.uint8), lengths)
    assert np.array_equal(spike_count(_Tensor(spikes.astype(np.float32)), _Tensor(lengths)), counted)
    distances = VanRossum().distances(spikes.astype(np.uint8), targets.astype(np.uint8), PSP(3), lengths)
    assert np.array_equal(VanRossum().distances(arguments[0], arguments[1], PSP(3), arguments[3]), distances)


class _Tensor:
    """A tensor as those of torch: numpy cannot read it before it is detached and on the host."""

    def __init__(self, array: AnyArray, steps: int = 0) -> None:
        self.array, self.steps = array, steps

    def detach(self) -> Any:
        assert self.steps == 0
        return _Tensor(self.array, 1)

    def cpu(self) -> AnyArray:
        assert self.steps == 1
        return self.array

    def __array__(self, *_: Any, **__: Any) -> AnyArray:
        raise TypeError("can't convert")


def test_refusals() -> None:
    train: UInt8 = np.zeros((4, 1, 2), np.uint8)
    with pytest.raises(ShapeError, match=r"got \(4, 2, 3\) and \(2, 4, 3\); one of them is \[B, T, N\]: swap"):
        match_spikes(np.zeros((4, 2, 3)), np.zeros((2, 4, 3)))
    with pytest.raises(ShapeError, match=r"must both be \[T, B, N\]"):
        match_spikes(train, train[:, :, :1])
    with pytest.raises(SpecError, match="must be a number of steps, 0 or more, got -1"):
        match_spikes(train, train, -1)


@pytest.mark.parametrize("tolerance", [1.5, float("nan"), "1", None, True, -1], ids=str)
def test_match_spikes_refuses_a_tolerance_that_is_no_number_of_steps(tolerance: Any) -> None:
    trains = np.zeros((3, 2, 1), np.uint8)
    with pytest.raises(SpecError, match="the tolerance must be a number of steps, 0 or more, got"):
        match_spikes(trains, trains, tolerance)


@pytest.mark.parametrize("lengths", [[1], [1, 2, 3], [1, -1], [1, 4], [1.0, 2.0], [[1, 2]], "12", 3], ids=str)
def test_functions_of_spike_trains_refuse_lengths_that_do_not_fit(lengths: Any) -> None:
    trains = np.zeros((3, 2, 1), np.uint8)
    for call in (
        lambda: match_spikes(trains, trains, 1, lengths),
        lambda: spike_count(trains, lengths),
        lambda: distances(trains, np.zeros((1, 3, 1), np.uint8), VanRossum(), PSP(4), lengths),
    ):
        with pytest.raises(ShapeError):
            call()


@pytest.mark.parametrize("trains", [None, 3, "abc", [[1], [1, 2]], np.zeros((3, 2)), [[["a"]]]], ids=str)
def test_functions_of_spike_trains_refuse_what_is_no_train(trains: Any) -> None:
    for call in (
        lambda: match_spikes(trains, trains),
        lambda: spike_count(trains),
        lambda: distances(trains, np.zeros((1, 3, 1), np.uint8), VanRossum(), PSP(4)),
    ):
        with pytest.raises(ShapeError):
            call()


def test_distances_refuses_what_is_no_loss_or_filter() -> None:
    trains, wrong = np.zeros((3, 2, 1), np.uint8), cast(Any, "van-rossum")
    with pytest.raises(SpecError, match="a loss is one of"):
        distances(trains, trains, wrong, PSP(4))
    with pytest.raises(SpecError, match="psp is a PSP, for example PSP"):
        distances(trains, trains, VanRossum(), wrong)


@pytest.mark.parametrize(
    "shape", [(3, 6, 3), (4, 5, 4), (5, 3), (3, 1, 3), (3, 5, 1), (0, 5, 3), (5, 2, 3), (1, 3, 5, 3)], ids=str
)
def test_distances_refuses_sequences_of_other_axes_and_does_not_broadcast(shape: tuple[int, ...]) -> None:
    expected = rf"sequences must be \[K, T, N\] = \[K, 5, 3\] .*, got {re.escape(str(list(shape)))}"
    with pytest.raises(ShapeError, match=expected):
        distances(np.ones((5, 2, 3), np.uint8), np.zeros(shape, np.uint8), VanRossum(), PSP(4))


@pytest.mark.parametrize("spikes", [(1, 2, 3), (5, 2, 1)], ids=str)
def test_distances_does_not_broadcast_the_spikes(spikes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"the steps and neurons of the spikes, got \[3, 5, 3\]"):
        distances(np.ones(spikes, np.uint8), np.zeros((3, 5, 3), np.uint8), VanRossum(), PSP(4))


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_distances_refuses_sequences_of_other_values_than_0_and_1(value: float) -> None:
    with pytest.raises(ShapeError, match="sequences are spike trains of 0 and 1"):
        distances(np.ones((5, 2, 3), np.uint8), np.full((3, 5, 3), value), VanRossum(), PSP(4))


def test_distances_takes_sequences_of_every_kind() -> None:
    spikes, sequences = (np.random.default_rng(1).integers(0, 2, size, np.uint8) for size in ((5, 2, 3), (4, 5, 3)))
    expected = distances(spikes, sequences, VanRossum(), PSP(4))
    for other in (sequences.astype(bool), sequences.astype(np.float32), sequences.tolist(), _Tensor(sequences)):
        assert np.array_equal(distances(spikes, other, VanRossum(), PSP(4)), expected)


@pytest.mark.parametrize("call", [nearest_sequence, equally_near])
def test_decoders_refuse_what_are_no_distances(call: Any) -> None:
    for shape in ((3,), (2, 0), (2, 3, 1)):
        with pytest.raises(ShapeError, match=rf"distances must be \[B, K\] .*, got {re.escape(str(list(shape)))}"):
            call(np.zeros(shape))
    with pytest.raises(ShapeError, match="expected an array of numbers"):
        call(None)
    with pytest.raises(NumericError, match="a distance of sample 1 is NaN"):
        call(np.array([[1.0, 2.0], [np.nan, 1.0]]))
    assert np.array_equal(call([[2.0, 1.0]]), call(np.array([[2.0, 1.0]])))
