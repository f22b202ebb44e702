"""Measures of spike times: values by hand, against exhaustive searches, and against elephant.

python packages/stsbp/tests/test_measures.py   prints the table of elephant's distances (pip install elephant)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stsbp import measures
from stsbp.measures import trains as alignment
from stsbp.measures.chance import shuffles_of
from stsbp.measures.matching import within
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.metrics import match_spikes
from stsbp_spec.networks.ops.psp import PSP
from stsbp_spec.typing import AnyArray

STEPS = 16


def train(*times: int, steps: int = STEPS) -> AnyArray:
    """One sample of one neuron that spikes at these steps, `[T, 1, 1]`."""
    spikes: AnyArray = np.zeros((steps, 1, 1), dtype=np.uint8)
    spikes[list(times)] = 1
    return spikes


def drawn(seed: int, shape: tuple[int, ...], rate: float = 0.25) -> AnyArray:
    return (uniform(seed, Stream.SIMULATION, int(np.prod(shape))).reshape(shape) < rate).astype(np.uint8)


TIMES = st.lists(st.integers(0, STEPS - 1), unique=True, max_size=6).map(sorted)


# Matches

#   step      0 1 2 3 4 5 6 7 8 9 ... 14
#   outputs       x       x     x
#   targets         x     x           x
# Apart by -1, 0 and -5 steps, so 1, 2, 2 and 3 of them match within 0, 1, 2 and 5 steps.
OUTPUTS, TARGETS = train(2, 6, 9), train(3, 6, 14)


def test_precision_recall_and_f1_by_hand() -> None:
    one_more = OUTPUTS.copy()
    one_more[12] = 1  # 2 steps from the target at 14
    found = measures.precision_recall_f1(one_more, TARGETS)
    assert found.tolerances == (0, 1, 2, 5)
    assert found.precision.tolist() == [1 / 4, 2 / 4, 3 / 4, 3 / 4]
    assert found.recall.tolist() == [1 / 3, 2 / 3, 3 / 3, 3 / 3]
    assert found.f1.tolist() == [2 / 7, 4 / 7, 6 / 7, 6 / 7]


def test_matches_belong_to_a_sample_and_a_neuron() -> None:
    outputs = np.zeros((4, 2, 3), np.uint8)
    targets = outputs.copy()
    outputs[1, 0, 0] = outputs[3, 0, 0] = outputs[0, 1, 2] = 1
    targets[2, 0, 0] = targets[0, 1, 2] = targets[3, 1, 1] = 1
    found = measures.spike_matches(outputs, targets, (1, 0, 1))
    assert found.tolerances == (0, 1)
    assert found.matched.tolist() == [[[0, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]]]
    assert found.outputs.tolist() == [[2, 0, 0], [0, 0, 1]]
    assert found.targets.tolist() == [[1, 0, 0], [0, 1, 1]]
    by_neuron = measures.precision_recall_f1(outputs, targets, 1, by_neuron=True)
    # Neuron 1 has a target spike without an output spike, so its precision is 0.
    assert by_neuron.precision.tolist() == [[1 / 2, 0, 1]]
    assert by_neuron.recall.tolist() == [[1, 0, 1]]
    assert by_neuron.f1.tolist() == [[2 / 3, 0, 1]]


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5, 7, 8, 15, 16, 31, 32, 63, 64, 99, 1000])
def test_numbers_of_matches_are_those_of_the_spec(tolerance: int) -> None:
    outputs, targets = drawn(1, (100, 3, 4)), drawn(2, (100, 3, 4))
    found = measures.spike_matches(outputs, targets, (0, tolerance))
    expected = match_spikes(outputs, targets, tolerance)
    assert found.matched[-1].sum(axis=1).tolist() == expected.matched.tolist()
    assert found.outputs.sum(axis=1).tolist() == expected.spikes.tolist()
    assert found.targets.sum(axis=1).tolist() == expected.targets.tolist()
    assert found.matched[0].sum(axis=1).tolist() == match_spikes(outputs, targets, 0).matched.tolist()


def test_within_names_a_tolerance() -> None:
    assert [within(tolerance) for tolerance in (0, 1, 2)] == ["within 0 steps", "within 1 step", "within 2 steps"]


# Timing errors


def test_timing_errors_by_hand() -> None:
    found = measures.timing_errors(OUTPUTS, TARGETS)
    assert found.tolerance == 5
    assert found.errors.tolist() == list(range(-5, 6))
    assert found.histogram.tolist() == [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    # Of -5, -1 and 0: a quarter of them, 0.75, is reached at -5, a half at -1, and three quarters, 2.25, at 0.
    assert (found.pairs, found.median, found.quartiles) == (3, -1, (-5, 0))
    within_2 = measures.timing_errors(OUTPUTS, TARGETS, 2)
    assert within_2.counts.tolist() == [[0, 1, 1, 0, 0]]
    assert (within_2.median, within_2.quartiles) == (-1, (-1, 0))


def test_without_matches_there_is_no_median() -> None:
    found = measures.timing_errors(train(0), train(9))
    assert (found.pairs, found.median, found.quartiles) == (0, None, None)
    assert measures.timing_errors(train(), train(9)).pairs == 0


@pytest.mark.parametrize(
    ("outputs", "targets", "tolerance", "errors"),
    [
        ((10,), (6, 10), 5, {0: 1}),  # the nearer target, although the other one waited longer
        ((4, 8), (8, 11), 4, {-4: 1, -3: 1}),  # two matches, although one match would have no error
        ((5,), (4, 6), 1, {1: 1}),  # of two as near, the earlier target
        ((4, 6), (5,), 1, {-1: 1}),  # of two as near, the earlier output
        ((3,), (3,), 0, {0: 1}),
        ((0,), (15,), 100, {-15: 1}),  # a tolerance beyond the number of steps
        ((15,), (0,), 15, {15: 1}),
        ((1, 2, 3), (2, 3, 4), 1, {-1: 3}),
        ((1, 2, 3), (2, 3, 4), 0, {0: 2}),
    ],
)
def test_timing_errors_are_those_of_the_nearest_largest_matching(
    outputs: tuple[int, ...], targets: tuple[int, ...], tolerance: int, errors: dict[int, int]
) -> None:
    found = measures.timing_errors(train(*outputs), train(*targets), tolerance)
    counts = zip(found.errors.tolist(), found.histogram.tolist(), strict=True)
    assert {error: count for error, count in counts if count} == errors
    assert len(found.errors) == 2 * min(tolerance, STEPS - 1) + 1


def matchings(outputs: Sequence[int], targets: Sequence[int], tolerance: int) -> Iterator[list[int]]:
    """The errors of all matchings that keep the order of spikes."""
    for size in range(min(len(outputs), len(targets)) + 1):
        for some in itertools.combinations(outputs, size):
            for others in itertools.combinations(targets, size):
                errors = [o - g for o, g in zip(some, others, strict=True)]
                if all(abs(error) <= tolerance for error in errors):
                    yield errors


@given(TIMES, TIMES, st.integers(0, STEPS))
def test_no_matching_is_larger_or_as_large_and_nearer(outputs: list[int], targets: list[int], tolerance: int) -> None:
    found = measures.timing_errors(train(*outputs), train(*targets), tolerance)
    best = max((len(errors), -sum(map(abs, errors))) for errors in matchings(outputs, targets, tolerance))
    assert (found.pairs, -int((found.histogram * abs(found.errors)).sum())) == best
    assert found.pairs == measures.spike_matches(train(*outputs), train(*targets), tolerance).matched.sum()


def test_timing_errors_of_neurons_are_counted_apart() -> None:
    outputs, targets = drawn(3, (40, 5, 3)), drawn(4, (40, 5, 3))
    found = measures.timing_errors(outputs, targets, 3)
    assert found.counts.shape == (3, 7)
    for neuron in range(3):
        alone = measures.timing_errors(outputs[:, :, neuron : neuron + 1], targets[:, :, neuron : neuron + 1], 3)
        assert found.counts[neuron].tolist() == alone.counts[0].tolist()
    assert (found.histogram == found.counts.sum(axis=0)).all()


# Distances


@pytest.mark.parametrize(
    ("cost", "distance"),
    [
        (0, 1),  # moves cost nothing: the difference of two and one spike
        (0.25, 1.25),  # the spike at 2 is moved by one step to 3, and the one at 6 is removed
        (1, 2),
        (2, 3),  # a move costs as much as a removal and an addition
        (7, 3),
    ],
)
def test_victor_purpura_by_hand(cost: float, distance: float) -> None:
    assert measures.victor_purpura(train(2, 6), train(3), cost).tolist() == [[distance]]
    assert measures.victor_purpura(train(3), train(2, 6), cost).tolist() == [[distance]]


def test_victor_purpura_has_a_distance_for_each_sample_and_neuron() -> None:
    outputs, targets = drawn(5, (30, 4, 3)), drawn(6, (30, 4, 3))
    found = measures.victor_purpura(outputs, targets, 0.4)
    assert found.shape == (4, 3)
    for b, n in np.ndindex(4, 3):
        cut = (slice(None), slice(b, b + 1), slice(n, n + 1))
        assert found[b, n] == measures.victor_purpura(outputs[cut], targets[cut], 0.4)[0, 0]


def edited(outputs: Sequence[int], targets: Sequence[int], cost: float) -> float:
    """The smallest cost of the definition, from all ways of moving, adding and removing spikes."""
    spikes = len(outputs) + len(targets)
    return min(
        spikes - 2 * len(errors) + sum(cost * abs(error) for error in errors)
        for errors in matchings(outputs, targets, STEPS)
    )


@given(TIMES, TIMES, st.sampled_from([0, 0.1, 0.25, 0.5, 2 / 3, 1, 1.5, 2, 3]))
def test_victor_purpura_is_the_smallest_cost(outputs: list[int], targets: list[int], cost: float) -> None:
    found = measures.victor_purpura(train(*outputs), train(*targets), cost)[0, 0]
    # At most 12 sums of numbers up to 12 are rounded, each by at most 2^-50.
    assert abs(found - edited(outputs, targets, cost)) <= 24 * 2.0**-50


@given(TIMES, TIMES, TIMES, st.floats(0, 3))
def test_victor_purpura_is_a_metric(a: list[int], b: list[int], c: list[int], cost: float) -> None:
    def distance(one: list[int], other: list[int]) -> float:
        found: float = measures.victor_purpura(train(*one), train(*other), cost)[0, 0]
        return found

    rounded = 24 * 2.0**-50
    assert distance(a, a) == 0
    assert abs(distance(a, b) - distance(b, a)) <= rounded
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 3 * rounded
    assert abs(len(a) - len(b)) - rounded <= distance(a, b) <= len(a) + len(b)
    if cost >= 1e-6 and a != b:
        assert distance(a, b) > 0


ELEPHANT = {
    0.0: [1.0, 2.0, 2.0, 4.0, 0.0, 2.0],
    0.05: [1.9, 5.7, 3.35, 5.65, 1.5, 2.65],
    0.3: [5.7, 10.6, 7.8, 8.0, 6.2, 5.8],
    0.5: [7.5, 11.0, 9.0, 8.0, 9.0, 7.0],
    1.0: [11.0, 12.0, 12.0, 8.0, 14.0, 8.0],
    2.5: [15.0, 12.0, 16.0, 8.0, 18.0, 10.0],
}
"""Distances of elephant 1.2.1 for each cost, rounded to 12 digits: what this file prints as a program."""


def for_elephant() -> AnyArray:
    """Outputs and targets of one sample and six neurons, bool `[2, T, 1, N]`."""
    return np.moveaxis(uniform(40, Stream.SIMULATION, 2 * 6 * 40).reshape(2, 6, 40) < 0.2, 2, 1)[:, :, None]


def of_elephant(cost: float) -> list[float]:
    """elephant's distances for `for_elephant`, with steps of a second."""
    neo, pq = pytest.importorskip("neo"), pytest.importorskip("quantities")
    dissimilarity = pytest.importorskip("elephant.spike_train_dissimilarity")
    distances = []
    for pair in for_elephant()[:, :, 0].transpose(2, 0, 1):
        spikes = [neo.SpikeTrain(np.flatnonzero(x) * pq.s, t_stop=len(x) * pq.s) for x in pair]
        distance = dissimilarity.victor_purpura_distance(spikes, cost_factor=cost * pq.Hz, sort=False)
        distances.append(round(float(distance[0, 1]), 12))
    return distances


@pytest.mark.parametrize("cost", ELEPHANT)
def test_victor_purpura_is_that_of_elephant(cost: float) -> None:
    outputs, targets = for_elephant()
    assert measures.victor_purpura(outputs, targets, cost).round(12).tolist() == [ELEPHANT[cost]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cost", ELEPHANT)
def test_the_table_is_that_of_elephant(cost: float) -> None:
    assert of_elephant(cost) == ELEPHANT[cost]


def test_van_rossum_by_hand() -> None:
    # With a time constant of 2, the trace is 1/2, 1/4, 1/8, and half of the sum of its squares is 21/128.
    assert measures.van_rossum(train(0, steps=3), train(steps=3), 2).tolist() == [[21 / 128]]
    # With a time constant of 1, it is half of the number of spikes that differ.
    assert measures.van_rossum(OUTPUTS, TARGETS, 1).tolist() == [[2.0]]


def test_van_rossum_is_the_loss_of_each_neuron() -> None:
    outputs, targets, lengths = drawn(7, (20, 4, 3)), drawn(8, (20, 4, 3)), np.array([20, 3, 11, 1])
    found = measures.van_rossum(outputs, targets, 3.5, lengths)
    assert found.shape == (4, 3)
    for neuron in range(3):
        cut = (slice(None), slice(None), slice(neuron, neuron + 1))
        loss = VanRossum().distances(outputs[cut], targets[cut], PSP(3.5), lengths)
        assert found[:, neuron].tolist() == loss.tolist()


# Latency


def test_latency_of_the_neuron_of_the_class_by_hand() -> None:
    outputs = np.zeros((6, 4, 2), np.uint8)
    outputs[0, 0, 1] = outputs[3, 0, 0] = 1  # the other neuron comes first
    outputs[[2, 4], 1, 1] = 1
    outputs[0, 2, 0] = 1
    outputs[5, 3, 1] = 1
    found = measures.first_spike_latency(outputs, np.array([0, 1, 0, 0]))
    assert np.array_equal(found, [4, 3, 1, np.nan], equal_nan=True)
    found = measures.first_spike_latency(outputs, [0, 1, 0, 1], [3, 6, 1, 6])
    assert np.array_equal(found, [np.nan, 3, 1, 6], equal_nan=True)


@pytest.mark.parametrize(
    ("outputs", "targets", "tolerance", "latency"),
    [
        ((0, 4, 9), (6, 10), 1, 10),  # 0 and 4 match nothing, and 9 comes a step too early
        ((0, 4, 9), (6, 10), 2, 5),
        ((0, 4, 9), (6, 10), 0, np.nan),
        ((5,), (3,), 2, 6),
        ((5,), (2,), 2, np.nan),
        ((15,), (0,), 99, 16),
        ((0,), (0,), 0, 1),
        ((), (0,), 5, np.nan),
    ],
)
def test_latency_of_the_first_match_by_hand(
    outputs: tuple[int, ...], targets: tuple[int, ...], tolerance: int, latency: float
) -> None:
    found = measures.first_match_latency(train(*outputs), train(*targets), tolerance)
    assert np.array_equal(found, [latency], equal_nan=True)


def test_the_first_match_is_that_of_any_neuron() -> None:
    outputs, targets = np.zeros((2, 8, 1, 2), np.uint8)
    outputs[2, 0, 0] = targets[2, 0, 1] = 1  # of different neurons
    outputs[5, 0, 1] = targets[6, 0, 1] = 1
    assert measures.first_match_latency(outputs, targets).tolist() == [6]


# Chance


def test_no_sample_is_its_own_partner() -> None:
    for samples, seed in itertools.product((2, 3, 4, 17), range(20)):
        drawn_partners = [measures.partners(samples, seed, shuffle) for shuffle in range(1, samples)]
        for partner in drawn_partners:
            assert sorted(partner) == list(range(samples))
        # The shuffles together pair each sample once with each other one.
        together = np.array(drawn_partners)
        assert all(sorted({*column, place}) == list(range(samples)) for place, column in enumerate(together.T))


def test_partners_are_the_same_everywhere() -> None:
    assert measures.partners(8).tolist() == PARTNERS_OF_8
    assert measures.partners(8, seed=1).tolist() != PARTNERS_OF_8


PARTNERS_OF_8 = [7, 2, 0, 5, 3, 6, 1, 4]


def test_few_samples_are_compared_with_several_others() -> None:
    assert [shuffles_of(n) for n in (1, 2, 4, 10, 11, 60, 99, 100, 5000)] == [0, 1, 3, 9, 10, 2, 2, 1, 1]


def test_chance_level_is_the_measure_of_the_targets_of_partners() -> None:
    outputs, targets, lengths = drawn(9, (20, 5, 3)), drawn(10, (20, 5, 3)), np.array([20, 3, 11, 1, 15])
    partner = measures.partners(5, 7)
    found = measures.chance_level(
        measures.victor_purpura, outputs, targets, seed=7, shuffles=1, lengths=lengths, cost=0.5
    )
    common = np.minimum(lengths, lengths[partner])
    assert np.array_equal(found, measures.victor_purpura(outputs, targets[:, partner], 0.5, common))
    two = measures.chance_level(measures.victor_purpura, outputs, targets, seed=7, shuffles=2, cost=0.5)
    later = measures.victor_purpura(outputs, targets[:, measures.partners(5, 7, 2)], 0.5)
    assert np.array_equal(two[5:], later)
    # By default, five samples are compared with all four others.
    assert measures.chance_level(measures.victor_purpura, outputs, targets).shape == (20, 3)
    shares = measures.chance_level(measures.precision_recall_f1, outputs, targets, seed=3, tolerances=(0, 4))
    assert shares.tolerances == (0, 4)
    assert shares.f1[0] < shares.f1[1] < 1


def test_chance_level_of_labels() -> None:
    outputs, labels = np.zeros((4, 3, 3), np.uint8), np.array([0, 1, 2])
    outputs[labels, labels, labels] = 1  # each sample answers with its own neuron, at its own step
    assert measures.first_spike_latency(outputs, labels).tolist() == [1, 2, 3]
    assert np.isnan(measures.chance_level(measures.first_spike_latency, outputs, labels)).all()


# All together


def all_measures(outputs: Any, targets: Any, lengths: Any = None, labels: Any = None) -> dict[str, Any]:
    summed = measures.SpikeMeasures((0, 2, 4), 0.5, 3.0)
    summed.add(outputs, targets, lengths, labels)
    return {**summed.record(), "by_neuron": summed.record_by_neuron()}


def test_record_has_the_measures_and_their_parameters() -> None:
    outputs, targets, lengths = drawn(11, (20, 6, 3)), drawn(12, (20, 6, 3)), np.array([20, 3, 11, 1, 15, 20])
    found = all_measures(outputs, targets, lengths)
    shares = measures.precision_recall_f1(outputs, targets, (0, 2, 4), lengths)
    errors = measures.timing_errors(outputs, targets, 4, lengths)
    latencies = measures.first_match_latency(outputs, targets, 1, lengths)
    known = np.sort(latencies[~np.isnan(latencies)]).astype(int)
    by_neuron = measures.precision_recall_f1(outputs, targets, (0, 2, 4), lengths, by_neuron=True)
    matches = measures.spike_matches(outputs, targets, 0, lengths)
    assert found.pop("by_neuron") == {
        "outputs": matches.outputs.sum(axis=0).tolist(),
        "targets": matches.targets.sum(axis=0).tolist(),
        "precision": by_neuron.precision.tolist(),
        "recall": by_neuron.recall.tolist(),
        "f1": by_neuron.f1.tolist(),
        "median_timing_error": [
            measures.timing_errors(outputs[..., n : n + 1], targets[..., n : n + 1], 4, lengths).median
            for n in range(3)
        ],
    }
    assert found.pop("victor_purpura") == {
        "cost": 0.5,
        "mean": measures.victor_purpura(outputs, targets, 0.5, lengths).sum() / 6,
    }
    van_rossum = found.pop("van_rossum")
    assert van_rossum["tau"] == 3.0
    assert van_rossum["mean"] == pytest.approx(measures.van_rossum(outputs, targets, 3.0, lengths).sum() / 6, rel=1e-14)
    assert found == {
        "samples": 6,
        "tolerances": [0, 2, 4],
        "precision": shares.precision.tolist(),
        "recall": shares.recall.tolist(),
        "f1": shares.f1.tolist(),
        "timing_error": {
            "tolerance": 4,
            "pairs": errors.pairs,
            "median": errors.median,
            "quartiles": [*(errors.quartiles or ())],
            "errors": [-4, -3, -2, -1, 0, 1, 2, 3, 4],
            "histogram": errors.histogram.tolist(),
        },
        "latency": {
            "of": "matched spike",
            "tolerance": 1,
            "median": known[-(-len(known) // 2) - 1],
            "quartiles": [known[-(-len(known) // 4) - 1], known[-(-3 * len(known) // 4) - 1]],
            "missing": 6 - len(known),
        },
    }
    assert 0 < len(known) < 6


def test_latency_of_the_record_is_that_of_the_classes() -> None:
    outputs, targets, labels = drawn(13, (20, 9, 3), 0.1), drawn(14, (20, 9, 3)), np.arange(9) % 3
    latency = all_measures(outputs, targets, None, labels)["latency"]
    latencies = np.sort(measures.first_spike_latency(outputs, labels))
    assert (latency["of"], latency["tolerance"]) == ("class neuron", None)
    assert latency["missing"] == np.isnan(latencies).sum()
    assert latency["median"] == latencies[-(-(9 - latency["missing"]) // 2) - 1]


def test_silence_has_no_timing() -> None:
    silent = np.zeros((5, 2, 1), np.uint8)
    found = all_measures(silent, silent)
    assert found["f1"] == [1, 1, 1]
    assert (found["timing_error"]["median"], found["timing_error"]["quartiles"]) == (None, None)
    assert found["latency"] == {"of": "matched spike", "tolerance": 1, "median": None, "quartiles": None, "missing": 2}


@settings(max_examples=20)
@given(st.permutations(range(7)), st.integers(1, 7), st.booleans())
def test_batches_and_the_order_of_samples_change_nothing(order: list[int], size: int, of_classes: bool) -> None:
    outputs, targets, lengths = drawn(15, (20, 7, 3)), drawn(16, (20, 7, 3)), np.array([20, 3, 11, 1, 15, 20, 7])
    labels = np.arange(7) % 3 if of_classes else None
    whole = all_measures(outputs, targets, lengths, labels)
    parts = measures.SpikeMeasures((4, 2, 0), 0.5, 3.0)
    for first in range(0, 7, size):
        part = order[first : first + size]
        parts.add(outputs[:, part], targets[:, part], lengths[part], None if labels is None else labels[part])
    assert {**parts.record(), "by_neuron": parts.record_by_neuron()} == whole


@pytest.mark.parametrize("cells", [1, 40, 300])
def test_parts_of_the_table_change_nothing(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    outputs, targets = drawn(17, (30, 6, 5)), drawn(18, (30, 6, 5))
    whole = all_measures(outputs, targets)
    monkeypatch.setattr(alignment, "_CHUNK_CELLS", cells)
    assert all_measures(outputs, targets) == whole


def test_padded_steps_are_left_out() -> None:
    outputs, targets, lengths = drawn(19, (20, 3, 2), 0.5), drawn(20, (20, 3, 2), 0.5), np.array([20, 6, 13])
    whole = all_measures(outputs, targets, lengths)
    for sample, length in enumerate(lengths):
        outputs[length:, sample] = 1 - outputs[length:, sample]
        targets[length:, sample] = outputs[length:, sample]
    assert all_measures(outputs, targets, lengths) == whole
    alone = measures.victor_purpura(outputs[:6, 1:2], targets[:6, 1:2])
    assert measures.victor_purpura(outputs, targets, lengths=lengths)[1].tolist() == alone[0].tolist()


@pytest.mark.parametrize("kind", ["torch", "jax", "bool", "float32", "lists"])
def test_arrays_tensors_and_lists_give_the_same(kind: str) -> None:
    outputs, targets = drawn(21, (20, 4, 3)), drawn(22, (20, 4, 3))
    lengths, labels = np.array([20, 6, 13, 9]), np.array([0, 2, 1, 0])
    expected = all_measures(outputs, targets, lengths, labels)
    if kind == "torch":
        torch = pytest.importorskip("torch")
        given: Any = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (outputs, targets)]
        given += [torch.tensor(lengths), torch.tensor(labels)]
    elif kind == "jax":
        jnp = pytest.importorskip("jax.numpy")
        given = [jnp.asarray(x) for x in (outputs, targets, lengths, labels)]
    elif kind == "lists":
        given = [x.tolist() for x in (outputs, targets, lengths, labels)]
    else:
        given = [outputs.astype(kind), targets.astype(kind), lengths.astype(np.int32), labels.astype(np.uint8)]
    assert all_measures(*given) == expected
    found = measures.chance_level(measures.first_spike_latency, given[0], given[3], lengths=given[2])
    again = measures.chance_level(measures.first_spike_latency, outputs, labels, lengths=lengths)
    assert np.array_equal(found, again, equal_nan=True)


# Refusals

SPIKES = np.zeros((5, 3, 2), np.uint8)


@pytest.mark.parametrize(
    "measure",
    [
        measures.spike_matches,
        measures.precision_recall_f1,
        measures.timing_errors,
        measures.victor_purpura,
        functools.partial(measures.van_rossum, tau=2),
        measures.first_match_latency,
        functools.partial(measures.chance_level, measures.victor_purpura),
        lambda *given, **more: measures.SpikeMeasures().add(*given, **more),
    ],
)
def test_measures_refuse_what_are_no_spike_trains(measure: Any) -> None:
    potentials = SPIKES + 0.5
    for outputs, targets in ((SPIKES[0], SPIKES[0]), (SPIKES[:, :0], SPIKES[:, :0]), (potentials, SPIKES)):
        with pytest.raises(ShapeError, match="outputs must be spike trains"):
            measure(outputs, targets)
    with pytest.raises(ShapeError, match="targets must be "):
        measure(SPIKES, potentials)
    with pytest.raises(ShapeError, match=r"outputs and targets must have the same shape|targets must be \[T, B, N\]"):
        measure(SPIKES, SPIKES[:, :2])
    with pytest.raises(ShapeError, match=r"; one of them is \[B, T, N\]: swap its axes 0 and 1"):
        measure(SPIKES, SPIKES.swapaxes(0, 1))
    samples_first = SPIKES.swapaxes(0, 1)
    with pytest.raises(ShapeError, match=r"; they fit samples in the first axis, but the first axis .* is time"):
        measure(samples_first, samples_first, lengths=[5, 5, 5])
    with pytest.raises(ShapeError, match="lengths must be from 1 to 5"):
        measure(SPIKES, SPIKES, lengths=[1, 2, 6])
    with pytest.raises(ShapeError, match="lengths must be integers"):
        measure(SPIKES, SPIKES, lengths=[1, 2])


@pytest.mark.parametrize("tolerance", [-1, 1.5, True, "1", 10**9 + 1])
def test_measures_refuse_what_is_no_tolerance(tolerance: Any) -> None:
    for call in (
        measures.spike_matches,
        measures.precision_recall_f1,
        measures.timing_errors,
        measures.first_match_latency,
    ):
        with pytest.raises(SpecError, match="a tolerance in steps must be"):
            call(SPIKES, SPIKES, tolerance)
    with pytest.raises(SpecError, match="a tolerance in steps must be"):
        measures.SpikeMeasures((0, tolerance))


def test_other_arguments_out_of_range() -> None:
    with pytest.raises(SpecError, match=r"tolerances must be numbers of steps, for example .*, got none"):
        measures.spike_matches(SPIKES, SPIKES, ())
    with pytest.raises(SpecError, match="timing errors have one tolerance"):
        measures.timing_errors(SPIKES, SPIKES, (1, 2))  # type: ignore[arg-type]
    for cost in (-1, np.inf, np.nan, "1"):
        with pytest.raises(SpecError, match="the cost of moving a spike by one step must be"):
            measures.victor_purpura(SPIKES, SPIKES, cost)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="the cost of moving a spike by one step must be"):
            measures.SpikeMeasures(cost=cost)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="tau"):
        measures.van_rossum(SPIKES, SPIKES, 0.5)


def test_labels_that_do_not_fit() -> None:
    for labels in ([0, 1], [0.0, 1.0, 1.0]):
        with pytest.raises(ShapeError, match=r"labels must be integers \[B\] = \[3\], got"):
            measures.first_spike_latency(SPIKES, labels)
    for call in (measures.first_spike_latency, functools.partial(measures.chance_level, measures.first_spike_latency)):
        with pytest.raises(ShapeError, match=r"; they fit samples in the first axis, but the first axis .* is time"):
            call(SPIKES.swapaxes(0, 1), [0, 1, 1])
    for labels in ([0, 1, 2], [0, -1, 1]):
        with pytest.raises(ShapeError, match="labels must be from 0 to 1, the numbers of the output neurons"):
            measures.first_spike_latency(SPIKES, labels)


def test_chance_level_refuses_what_cannot_be_shuffled() -> None:
    with pytest.raises(ShapeError, match="there is only one sample"):
        measures.chance_level(measures.victor_purpura, SPIKES[:, :1], SPIKES[:, :1])
    with pytest.raises(SpecError, match="a measure is a function"):
        measures.chance_level("f1", SPIKES, SPIKES)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"targets must be \[T, B, N\] or labels \[B\] with B = 3"):
        measures.chance_level(measures.first_spike_latency, SPIKES, [0, 1])
    for shuffles in (0, 3):
        with pytest.raises(SpecError, match="the number of shuffles must be at"):
            measures.chance_level(measures.victor_purpura, SPIKES, SPIKES, shuffles=shuffles)
    with pytest.raises(SpecError, match="the number of samples that are shuffled must be at least 2"):
        measures.partners(1)
    with pytest.raises(SpecError, match="the number of the shuffle must be at most 2"):
        measures.partners(3, 0, 3)
    with pytest.raises(SpecError, match="seed must be an integer"):
        measures.partners(3, -1)


def test_batches_of_a_measurement_must_fit() -> None:
    summed = measures.SpikeMeasures()
    for call in (summed.record, summed.record_by_neuron, lambda: summed.timing_errors):
        with pytest.raises(SpecError, match="nothing was measured yet"):
            call()
    summed.add(SPIKES, SPIKES)
    before = summed.record()
    for other in (SPIKES[:, :, :1], SPIKES[:4]):
        with pytest.raises(SpecError, match="the same number of steps and neurons"):
            summed.add(other, other)
    assert summed.record() == before


if __name__ == "__main__":
    for each in ELEPHANT:
        print(f"    {each}: {of_elephant(each)},")
