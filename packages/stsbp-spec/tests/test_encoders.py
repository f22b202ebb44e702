"""The encoders: patterns, binning against a naive loop, and draws that depend on the sample alone."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.encoders import (
    EventBinning,
    LabelCode,
    PackedFrames,
    bin_events,
    encode_latency,
    encode_poisson,
    encode_repeat,
    repeat,
    stabilise_events,
)
from stsbp_spec.typing import AnyArray, Int64, UInt8


def _images(*shape: int) -> UInt8:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 7)], ids=["maps", "flat"])
def test_repeat_is_the_image_at_every_step_without_a_copy(shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    sequence = repeat(images, 4)
    assert sequence.shape == (4, *shape)
    assert sequence.dtype == np.uint8
    assert np.shares_memory(sequence, images)
    assert not sequence.flags.writeable
    assert all(np.array_equal(frame, images) for frame in sequence)


@pytest.mark.parametrize("images", [np.zeros((2, 3), np.float32), np.zeros((2, 3, 4), np.uint8)], ids=["float", "3d"])
def test_repeat_refuses_other_arrays(images: AnyArray) -> None:
    with pytest.raises(ShapeError, match="uint8 images"):
        repeat(images, 4)
    with pytest.raises(SpecError, match="steps"):
        repeat(_images(2, 3), 0)


def test_label_code_by_default_spikes_always_or_never() -> None:
    sequences = LabelCode().sequences(3, 5)
    assert sequences.shape == (3, 5, 3)
    assert sequences.dtype == np.uint8
    assert np.array_equal(sequences, np.repeat(np.eye(3, dtype=np.uint8)[:, np.newaxis], 5, axis=1))


def test_label_code_repeats_its_patterns_and_cuts_the_last() -> None:
    sequence = LabelCode(desired="011", undesired="10").sequences(2, 5)[1]
    assert sequence[:, 1].tolist() == [0, 1, 1, 0, 1]
    assert sequence[:, 0].tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("desired", "undesired"),
    [("", "0"), ("1", ""), ("2", "0"), ("1", "0 "), ("11", "1"), ("01", "0101"), ("0", "000")],
)
def test_label_code_refuses_bad_patterns(desired: str, undesired: str) -> None:
    with pytest.raises(SpecError, match="label code"):
        LabelCode(desired, undesired)


def test_label_code_refuses_steps_that_end_before_the_patterns_differ() -> None:
    with pytest.raises(SpecError, match="within 3 steps"):
        LabelCode("0001", "0").sequences(2, 3)
    with pytest.raises(SpecError, match="at least 1"):
        LabelCode().sequences(0, 3)


@pytest.mark.parametrize("first", [1, 2, 4, 11])
def test_label_code_goes_on_from_any_step(first: int) -> None:
    code = LabelCode("0011", "010")
    assert np.array_equal(code.sequences(3, 5, first), code.sequences(3, 5 + first)[:, first:])
    # The patterns may be alike there.
    assert not LabelCode("1000", "0").sequences(2, 3, 1).any()


def test_encode_repeat_gathers_the_class_sequences() -> None:
    labels, code = np.array([2, 0, 2, 1]), LabelCode("01", "0")
    target = encode_repeat(labels, 3, 6, code)
    assert target.shape == (6, 4, 3)
    assert target.dtype == np.uint8
    assert target.flags.c_contiguous
    for b, label in enumerate(labels):
        assert np.array_equal(target[:, b], code.sequences(3, 6)[label])
    assert np.array_equal(encode_repeat(labels, 3, 6), encode_repeat(labels, 3, 6, LabelCode()))
    assert encode_repeat(np.zeros(0, np.int64), 3, 6).shape == (6, 0, 3)


def test_encode_repeat_takes_no_memory_for_classes_that_no_sample_has() -> None:
    tracemalloc.start()
    encode_repeat(np.array([7]), 2000, 5)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("labels", [[3], [-1], [0, 7]])
def test_encode_repeat_names_a_label_out_of_range(labels: list[int]) -> None:
    with pytest.raises(SpecError, match=f"label {labels[-1]} is not a class: expected 0 to 2"):
        encode_repeat(np.array(labels), 3, 5)


@pytest.mark.parametrize("labels", [np.zeros(2), np.zeros((2, 1), np.int64)], ids=["float", "2d"])
def test_encode_repeat_refuses_other_arrays(labels: AnyArray) -> None:
    with pytest.raises(ShapeError, match="integer labels"):
        encode_repeat(labels, 3, 5)


def _events(seed: int, n: int, span: int) -> tuple[Int64, Int64, Int64, Int64]:
    rng = np.random.default_rng(seed)
    x, y, p, t = (rng.integers(0, limit, n) for limit in (6, 5, 2, span))
    return x, y, p, t


def _naive(
    events: tuple[Int64, Int64, Int64, Int64], channels: int, steps: int, window: int | None, start: int, binary: bool
) -> UInt8:
    counts = np.zeros((steps, channels, 5, 6), np.int64)
    last = int(events[3].max()) - start
    span = window if window is not None else max(1, last + 1)
    for x, y, p, t in zip(*(column.tolist() for column in events), strict=True):
        if start <= t < start + span:
            counts[(t - start) * steps // span, p if channels == 2 else 0, y, x] += 1
    return (counts > 0).astype(np.uint8) if binary else np.minimum(counts, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "counts"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("window", "start"), [(900, 0), (300, 250), (None, 0), (None, 100), (None, 10_000)])
def test_bin_events_equals_a_naive_loop(seed: int, binary: bool, channels: int, window: int | None, start: int) -> None:
    events = _events(seed, 400, 1000)
    frames = bin_events(*events, shape=(channels, 5, 6), steps=7, window_us=window, start_us=start, binary=binary)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, _naive(events, channels, 7, window, start, binary))


def test_bin_events_puts_edges_into_the_later_bin_and_drops_the_end() -> None:
    t = np.array([0, 9, 10, 29, 30])
    zero = np.zeros(5, np.int64)
    frames = bin_events(zero, zero, zero, t, shape=(2, 1, 1), steps=3, window_us=30, binary=False)
    assert frames[:, 0, 0, 0].tolist() == [2, 1, 1]
    assert not frames[:, 1].any()


@pytest.mark.parametrize(
    "binning",
    [
        EventBinning(steps=7, window_us=90_000),
        EventBinning(steps=7, window_us=90_000, start_us=20_000),
        EventBinning(steps=9, window_us=150_000, first_saccade=True, saccade_us=70_000),
        EventBinning(steps=9, window_us=150_000, start_us=10_000, first_saccade=True, saccade_us=70_000),
    ],
)
def test_a_recordings_length_ends_with_its_last_event_in_the_window(binning: EventBinning) -> None:
    rng = np.random.default_rng(0)
    lengths = set()
    for last in (0, 1, 12_857, 12_858, 30_000, 69_999, 70_000, 89_999, 90_000, 400_000):
        t = np.sort(np.append(rng.integers(0, last + 1, 5), last))
        x, y, p = (rng.integers(0, n, 6) for n in (34, 34, 2))
        length = binning.length(t)
        frames = binning.frames(x, y, p, t)
        steps = np.flatnonzero(frames.any(axis=(1, 2, 3)))
        assert length == (steps[-1] + 1 if steps.size else 1)
        lengths.add(length)
    assert len(lengths) > 2
    assert binning.length(np.zeros(0, np.int64)) == 1
    assert replace(binning, window_us=None).length(t) == binning.steps


def test_bin_events_clips_counts_at_255() -> None:
    zero = np.zeros(300, np.int64)
    assert bin_events(zero, zero, zero, zero, shape=(1, 1, 1), steps=1, binary=False).item() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int32])
def test_bin_events_reads_any_integer_type(dtype: type[np.generic]) -> None:
    events = _events(1, 50, 200)
    x, y = events[0].astype(dtype), events[1].astype(dtype)
    p, t = events[2].astype(bool), events[3].astype(np.uint32)
    frames = bin_events(x, y, p, t, shape=(2, 5, 6), steps=4, window_us=200)
    assert np.array_equal(frames, bin_events(*events, shape=(2, 5, 6), steps=4, window_us=200))


def test_bin_events_of_an_empty_recording_is_silent() -> None:
    empty = np.zeros(0, np.int64)
    assert not bin_events(empty, empty, empty, empty, window_us=None).any()
    zero = np.zeros(1, np.int64)
    assert bin_events(zero, zero, zero, zero, shape=(1, 1, 1), steps=1, window_us=1).tolist() == [[[[1]]]]


@pytest.mark.parametrize(("name", "column"), [("x", 0), ("y", 1), ("polarity", 2)])
@pytest.mark.parametrize("value", [-1, 99])
def test_bin_events_names_what_is_out_of_range(name: str, column: int, value: int) -> None:
    events = list(_events(0, 10, 100))
    events[column] = np.where(np.arange(10) == 3, value, events[column])
    with pytest.raises(SpecError, match=f"event's {name} is out of range"):
        bin_events(*events, shape=(2, 5, 6))


def test_bin_events_of_one_channel_ignores_polarities() -> None:
    x, y, p, t = _events(0, 10, 100)
    expected = bin_events(x, y, p, t, shape=(1, 5, 6))
    assert np.array_equal(bin_events(x, y, 7 * p - 3, t, shape=(1, 5, 6)), expected)


def test_bin_events_refuses_ragged_or_float_columns() -> None:
    x, y, p, t = _events(0, 10, 100)
    with pytest.raises(ShapeError, match="integers t"):
        bin_events(x, y, p, t[:-1], shape=(2, 5, 6))
    with pytest.raises(ShapeError, match="integers y"):
        bin_events(x, y.astype(np.float64), p, t, shape=(2, 5, 6))


def test_event_binning_is_the_same_as_bin_events() -> None:
    events = _events(2, 80, 500)
    binning = EventBinning(steps=3, window_us=400, start_us=50, polarities=1, height=5, width=6, binary=False)
    expected = bin_events(*events, shape=(1, 5, 6), steps=3, window_us=400, start_us=50, binary=False)
    assert binning.shape == (1, 5, 6)
    assert np.array_equal(binning.frames(*events), expected)
    assert hash(binning) == hash(EventBinning(3, 400, 50, 1, 5, 6, False))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "binning",
    [
        EventBinning(7, 900, 50, 1, 5, 6),
        EventBinning(7, 900, 0, 2, 5, 6, first_saccade=True, saccade_us=400),
        EventBinning(7, 900, 0, 2, 5, 6, stabilise=True, saccade_us=300),
    ],
)
def test_events_one_step_after_the_other_give_the_frames_of_all(binning: EventBinning, binary: bool) -> None:
    binning = replace(binning, binary=binary)
    events = _events(2, 900, 1000)
    steps = np.array([binning.step_of(t) for t in events[-1].tolist()])
    assert (steps == (events[-1] - binning.start_us) * 7 // 900).all()
    assert steps.max() == 7
    for step, expected in enumerate(binning.frames(*events)):
        frame = np.zeros(binning.shape, np.uint8)
        indices = np.flatnonzero(steps == step)
        for some in (indices[: len(indices) // 2], indices[len(indices) // 2 :], indices[:0]):
            binning.add(frame, *(column[some] for column in events))
        assert np.array_equal(frame, expected)


def test_counts_of_a_stream_are_clipped_at_255() -> None:
    zeros, frame = np.zeros(200, np.int64), np.zeros((2, 34, 34), np.uint8)
    for expected in (200, 255):
        EventBinning(binary=False).add(frame, zeros, zeros, zeros, zeros)
        assert frame[0, 0, 0] == frame.max() == expected


def test_a_stream_wants_a_window() -> None:
    with pytest.raises(SpecError, match="a stream has no end"):
        EventBinning(window_us=None).step_of(0)
    assert EventBinning(steps=2**20, window_us=2**40).step_of(2**70) == 2**50


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_the_step_of_times_of_a_small_type_does_not_wrap(dtype: type[np.signedinteger[Any]]) -> None:
    binning, limits = EventBinning(steps=2000, window_us=3000, start_us=40), np.iinfo(dtype)
    times = [max(limits.min, -(2**62) + 1), 7, 100, min(limits.max, 2**62 - 1)]
    expected = [(t - 40) * 2000 // 3000 for t in times]
    steps = binning.step_of(np.array(times, dtype).reshape(2, 2))
    assert steps.dtype == np.int64
    assert steps.tolist() == [expected[:2], expected[2:]]
    assert [binning.step_of(dtype(t)) for t in times] == expected  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong", [1.5, True, "3", None, [3], np.array([1.5]), np.array([True]), np.ma.masked_array([3], [False])], ids=repr
)
def test_the_step_of_what_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ShapeError, match="expected times t, an integer or a numpy array of integers, got"):
        EventBinning().step_of(wrong)
    with pytest.raises(SpecError, match="t is out of range: expected less than 2\\^62"):
        EventBinning().step_of(np.array([2**62]))


@pytest.mark.parametrize("wrong", [[3], (3,), None, "3", 3, np.zeros((2, 2), int), np.array([1.5])], ids=repr)
def test_the_length_of_what_is_no_column_of_times_is_refused(wrong: Any) -> None:
    for binning in (EventBinning(), EventBinning(window_us=None)):
        with pytest.raises(ShapeError, match="expected integers"):
            binning.length(wrong)


def test_masked_arrays_are_refused_as_events_and_as_labels() -> None:
    zeros, frame = np.zeros(2, np.int64), np.zeros((2, 34, 34), np.uint8)
    masked = np.ma.masked_array([3, 4], [False, True])
    for call in (
        lambda: EventBinning().frames(masked, zeros, zeros, zeros),
        lambda: EventBinning().frames(zeros, zeros, zeros, masked),
        lambda: EventBinning().add(frame, zeros, masked, zeros, zeros),
        lambda: EventBinning().length(masked),
        lambda: bin_events(zeros, zeros, masked, zeros),
        lambda: stabilise_events(zeros, masked, zeros),
        lambda: encode_repeat(masked, 10, 5),
    ):
        with pytest.raises(ShapeError, match="a masked array"):
            call()


def test_event_binning_takes_what_is_as_large_as_it_may_be() -> None:
    largest = {"height": 2**14, "width": 2**14, "window_us": 2**40, "start_us": 2**40, "saccade_us": 2**40}
    binning = replace(EventBinning(), steps=2**20, **largest)  # type: ignore[arg-type]
    for field, value in {"steps": 2**20, **largest}.items():
        with pytest.raises(SpecError, match=f"{field} must be at most {value}"):
            replace(binning, **{field: value + 1})  # type: ignore[arg-type]
    assert replace(EventBinning(), steps=25, window_us=25).window_us == 25
    defaults = EventBinning()
    assert (defaults.polarities, defaults.height, defaults.width) == (2, 34, 34)
    zero = np.zeros(1, np.int64)
    assert bin_events(zero, zero, zero, zero, shape=(1, 1, 1), steps=2**20, start_us=-(2**40)).shape[0] == 2**20
    with pytest.raises(SpecError, match="start_us at most"):
        bin_events(zero, zero, zero, zero, shape=(1, 1, 1), start_us=-(2**40) - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("window_us", 24),
        ("start_us", -1),
        ("polarities", 3),
        ("height", 0),
        ("width", 0),
        ("saccade_us", 0),
        ("steps", 2**20 + 1),
        ("window_us", 2**40 + 1),
        ("start_us", 2**63),
        ("height", 2**62),
        ("width", 2**31),
        ("saccade_us", 10**30),
    ],
)
def test_event_binning_validates(field: str, value: int) -> None:
    with pytest.raises(SpecError, match=field):
        replace(EventBinning(), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "window", "start", "last"),
    [(2**20 + 1, 2**21, 0, 5), (3, 2**63, 0, 5), (3, 100, 2**64, 5), (2**20, None, 0, 2**62), (3, None, -(2**41), 5)],
)
def test_bin_events_refuses_what_64_bits_do_not_hold(steps: int, window: int | None, start: int, last: int) -> None:
    zero, t = np.zeros(1, np.int64), np.array([last])
    with pytest.raises(SpecError):
        bin_events(zero, zero, zero, t, shape=(1, 1, 1), steps=steps, window_us=window, start_us=start)


def test_bin_events_at_its_limits() -> None:
    zero, t = np.zeros(2, np.int64), np.array([0, 2**40 - 1])
    frames = bin_events(zero, zero, zero, t, shape=(1, 1, 1), steps=2**20, window_us=2**40)
    assert np.flatnonzero(frames).tolist() == [0, 2**20 - 1]


@pytest.mark.parametrize(
    ("x", "y", "t", "saccade_us", "message"),
    [
        ([1], [1], [0], 0, "saccade_us must be at least 1, got 0"),
        ([1], [1], [0], 1.5, "saccade_us must be an integer, got 1.5"),
        ([1.5], [1], [0], 100, r"expected integers x of shape \[1\] as x, got float64"),
        ([1], [1], [0.5], 100, r"expected integers t of shape \[1\] as x, got float64"),
        ([1, 2], [1], [0, 1], 100, r"expected integers y of shape \[2\] as x, got int64 of shape \[1\]"),
        (1, 1, 0, 100, "one for each event"),
    ],
)
def test_stabilise_events_refuses_what_are_no_events(x: Any, y: Any, t: Any, saccade_us: Any, message: str) -> None:
    with pytest.raises((ShapeError, SpecError), match=message):
        stabilise_events(x, y, t, saccade_us=saccade_us)


def test_stabilise_undoes_the_triangle_of_the_saccades() -> None:
    t = np.array([0, 52_500, 105_000, 157_500, 210_000, 262_500, 315_000, 330_000])
    moved_right = np.array([0, 1.75, 3.5, 5.25, 7, 3.5, 0, -1])
    moved_down = np.array([0, 3.5, 7, 3.5, 0, 0, 0, 0])
    x, y = np.full(8, 20), np.full(8, 10)
    columns, rows = stabilise_events(x, y, t)
    assert np.array_equal(columns, np.floor(x - moved_right + 0.5))
    assert np.array_equal(rows, np.floor(y - moved_down + 0.5))
    assert np.array_equal(stabilise_events(x, y, t * 2, saccade_us=210_000), (columns, rows))


def test_stabilised_frames_drop_what_leaves_the_sensor_and_nothing_else() -> None:
    t = np.array([104_000, 104_000])
    x, y, p = np.array([2, 33]), np.array([20, 6]), np.array([0, 1])
    frames = EventBinning(steps=1, stabilise=True).frames(x, y, p, t)
    assert not frames.any()
    frames = EventBinning(steps=1, stabilise=True).frames(np.array([4, 33]), np.array([20, 8]), p, t)
    assert np.argwhere(frames).tolist() == [[0, 0, 13, 1], [0, 1, 1, 30]]
    with pytest.raises(SpecError, match="event's x is out of range"):
        EventBinning(steps=1, stabilise=True).frames(np.array([2, 36]), y, p, t)


def test_first_saccade_drops_the_other_two() -> None:
    t = np.array([0, 104_999, 105_000, 250_000])
    x = y = np.arange(4)
    frames = EventBinning(steps=3, first_saccade=True).frames(x, y, np.zeros(4, np.int64), t)
    assert np.argwhere(frames)[:, -1].tolist() == [0, 1]
    short = EventBinning(steps=3, first_saccade=True, saccade_us=100_000).frames(x, y, np.zeros(4, np.int64), t)
    assert np.argwhere(short)[:, -1].tolist() == [0]


def test_poisson_spikes_depend_on_the_sample_and_not_on_its_batch() -> None:
    images = _images(5, 1, 4, 4)
    spikes = encode_poisson(images, 6, seed=3, epoch=2)
    order = np.array([3, 1])
    assert spikes.shape == (6, 5, 1, 4, 4)
    assert set(np.unique(spikes)) == {0, 1}
    assert np.array_equal(encode_poisson(images[order], 6, seed=3, epoch=2, indices=order), spikes[:, order])
    assert not np.array_equal(encode_poisson(images, 6, seed=3, epoch=3), spikes)
    assert not np.array_equal(encode_poisson(images, 6, seed=4, epoch=2), spikes)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_poisson_rates_follow_brightness(rate: float) -> None:
    images = np.repeat(np.array([[0], [64], [128], [255]], np.uint8), 50, axis=1)
    steps = 400
    spikes = encode_poisson(images, steps, seed=0, rate=rate)
    assert not spikes[:, 0].any()
    for b, grey in enumerate((0, 64, 128, 255)):
        p = rate * grey / 256
        assert abs(spikes[:, b].mean() - p) < 5 * np.sqrt(p * (1 - p) / (steps * 50)) + 1e-12


def test_poisson_refuses_bad_parameters() -> None:
    images = _images(2, 3)
    for rate in (0.0, 1.1, float("nan")):
        with pytest.raises(SpecError, match="rate"):
            encode_poisson(images, 4, seed=0, rate=rate)
    with pytest.raises(ShapeError, match="index"):
        encode_poisson(images, 4, seed=0, indices=np.arange(3))
    with pytest.raises(ShapeError, match="uint8"):
        encode_poisson(images.astype(np.int64), 4, seed=0)


@pytest.mark.parametrize("wrong", [2**32, 2**70, -1, 1.5, True, None, "0"], ids=str)
def test_poisson_refuses_what_is_no_epoch(wrong: Any) -> None:
    """A number that is taken modulo 2^32 would give the draws of another epoch."""
    with pytest.raises(SpecError, match=r"^epoch must be (an integer|at least 0|at most 4294967295), got"):
        encode_poisson(_images(2, 3), 4, seed=0, epoch=wrong)


def test_poisson_refuses_what_are_no_numbers_of_samples() -> None:
    """Two samples whose numbers are rounded or taken modulo 2^24 to the same one would get the same draws."""
    images = _images(2, 3)
    for kind in (np.float64, np.float16, np.bool_):
        with pytest.raises(ShapeError, match=f"expected integers as indices of samples, got {np.dtype(kind)}"):
            encode_poisson(images, 4, seed=0, indices=np.array([0, 1], kind))
    for indices in ([-1, 0], [0, 2**24], [2**63 - 1, 0]):
        with pytest.raises(SpecError, match=f"must be 0 to 16777215, got {min(indices)} to {max(indices)}"):
            encode_poisson(images, 4, seed=0, indices=np.array(indices))
    last = encode_poisson(images, 40, seed=0, indices=np.array([0, 2**24 - 1], np.uint32), epoch=2**32 - 1)
    assert np.array_equal(last[:, 0], encode_poisson(images[:1], 40, seed=0, epoch=2**32 - 1)[:, 0])
    assert encode_poisson(images[:0], 4, seed=0, indices=[]).shape == (4, 0, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 4, 25, 255, 300])
def test_latency_is_one_spike_a_pixel_brighter_first(steps: int) -> None:
    grey = np.arange(256, dtype=np.uint8)[np.newaxis]
    spikes = encode_latency(grey, steps)
    assert spikes.shape == (steps, 1, 256)
    assert spikes.dtype == np.uint8
    assert not spikes[:, 0, 0].any()
    assert (spikes[:, 0, 1:].sum(axis=0) == 1).all()
    first = spikes[:, 0, 1:].argmax(axis=0)
    assert first[-1] == 0
    assert (np.diff(first) <= 0).all()
    if steps <= 255:
        assert first[0] == steps - 1


def test_latency_refuses_bad_parameters() -> None:
    with pytest.raises(SpecError, match="steps"):
        encode_latency(_images(2, 3), 0)
    with pytest.raises(ShapeError, match="uint8"):
        encode_latency(np.zeros((2, 3)), 4)  # type: ignore[arg-type]


def test_poisson_fires_where_the_word_is_below_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^32 words as many as the threshold says: none for a black pixel, all but the last 2^24 for a white one."""
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 2**24 - 1, 2**32 - 2**24, 2**32 - 1], np.uint32)
    monkeypatch.setattr("stsbp_spec.models.encoders.poisson.bits", lambda *_, **__: np.repeat(words, 3))
    spikes = encode_poisson(np.array([[0, 128, 255]], np.uint8), 6, seed=0)
    assert spikes[:, 0].T.tolist() == [[0] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]


_WRONG = (None, 3, "1", [1, "a"], [[1], [1, 2]], {1})


@pytest.mark.parametrize("wrong", _WRONG, ids=str)
def test_encoders_refuse_what_is_no_array_of_numbers(wrong: Any) -> None:
    image, zero = np.zeros((2, 4), np.uint8), np.zeros(1, np.int64)
    indices: Any = [1] if wrong is None else wrong
    for call in (
        lambda: encode_repeat(wrong, 3, 4),
        lambda: encode_latency(wrong, 3),
        lambda: encode_poisson(wrong, 3, seed=0),
        lambda: encode_poisson(image, 3, seed=0, indices=indices),
        lambda: repeat(wrong, 3),
        lambda: bin_events(zero, zero, zero, wrong),
        lambda: bin_events(wrong, zero, zero, zero),
        lambda: PackedFrames.of(wrong),
    ):
        with pytest.raises(ShapeError):
            call()


def test_encode_repeat_takes_a_list() -> None:
    assert np.array_equal(encode_repeat([2, 0], 3, 4), encode_repeat(np.array([2, 0]), 3, 4))


@pytest.mark.parametrize("wrong", [None, 1.5, "3", True, 0], ids=str)
def test_encoders_refuse_what_is_no_number_of_steps(wrong: Any) -> None:
    image, zero = np.zeros((2, 4), np.uint8), np.zeros(1, np.int64)
    for call in (
        lambda: encode_repeat(np.array([0]), 3, wrong),
        lambda: encode_repeat(np.array([0]), wrong, 3),
        lambda: LabelCode("1", "0").sequences(wrong, 3),
        lambda: LabelCode("1", "0").sequences(3, wrong),
        lambda: encode_latency(image, wrong),
        lambda: encode_poisson(image, wrong, seed=0),
        lambda: repeat(image, wrong),
        lambda: bin_events(zero, zero, zero, zero, steps=wrong),
        lambda: EventBinning(steps=wrong),
        lambda: PackedFrames(np.zeros((1, 1, 4), np.uint8), wrong),
    ):
        with pytest.raises(SpecError, match=r"must be (an integer|at least 1), got"):
            call()


def test_encoders_refuse_other_wrong_types() -> None:
    wrong: Any = 1
    with pytest.raises(SpecError, match="desired must be a pattern of the digits 0 and 1 such as '01', got 1"):
        LabelCode(desired=wrong)
    with pytest.raises(SpecError, match="a label code is a LabelCode, for example"):
        encode_repeat(np.array([0]), 2, 3, wrong)
    for first in (1.5, -1, None):
        with pytest.raises(SpecError, match="the first step must be"):
            LabelCode().sequences(2, 3, first)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="event binning: binary is True or False, got 1"):
        EventBinning(binary=wrong)
    assert LabelCode("10", "0").sequences(2, 3, 10**12).tolist() == LabelCode("10", "0").sequences(2, 3).tolist()


@pytest.mark.parametrize("wrong", [None, 3, "abc", (2, 34), (2, 34, 3.5), (1, 2, "3"), (1, True, 2)], ids=str)
def test_events_are_not_binned_into_what_is_no_shape(wrong: Any) -> None:
    zero = np.zeros(1, np.int64)
    with pytest.raises(SpecError, match=r"the shape of event frames must be three integers \(C, H, W\), got"):
        bin_events(zero, zero, zero, zero, shape=wrong)
