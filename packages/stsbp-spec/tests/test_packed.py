"""Frames as bits: the same values after the way there and back, refused where they are not of the form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stsbp_spec.engine.checks import check_inputs
from stsbp_spec.errors import ShapeError
from stsbp_spec.models.encoders import PackedFrames
from stsbp_spec.models.encoders.packed import unpacked, without_padding
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Shape


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 25])
@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (4, 6)])
def test_frames_come_back(steps: int, shape: Shape) -> None:
    frames = (np.random.default_rng(steps).random((steps, *shape)) < 0.4).astype(np.uint8)
    packed = PackedFrames.of(frames)
    assert packed.shape == frames.shape
    assert packed.bits.shape == (-(-steps // 8), shape[0], *shape[2:], shape[1])
    assert np.array_equal(packed.unpacked(), frames)
    assert packed.unpacked().dtype == np.uint8


def test_step_t_is_bit_t_of_its_byte() -> None:
    frames = np.zeros((10, 1, 2, 3, 3), np.uint8)
    frames[0, 0, 0, 1, 2] = frames[3, 0, 0, 1, 2] = frames[9, 0, 1, 2, 0] = 1
    bits = PackedFrames.of(frames).bits
    assert np.argwhere(bits).tolist() == [[0, 0, 1, 2, 0], [1, 0, 2, 0, 1]]
    assert (bits[0, 0, 1, 2, 0], bits[1, 0, 2, 0, 1]) == (0b1001, 0b10)


def test_what_lies_beyond_the_last_step_is_no_spike() -> None:
    assert PackedFrames(np.full((1, 2, 3), 255, np.uint8), 3).unpacked().tolist() == np.ones((3, 2, 3)).tolist()


@pytest.mark.parametrize("steps", [1, 8, 11, 25])
@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (3, 6)])
@pytest.mark.parametrize("form", [PackedFrames.of, np.asarray])
def test_spikes_at_padded_steps_are_removed(steps: int, shape: Shape, form: Any) -> None:
    frames = (np.random.default_rng(steps).random((steps, *shape)) < 0.6).astype(np.uint8)
    lengths = np.array([steps, 1, steps // 2 + 1])
    expected = frames.copy()
    for sample, length in enumerate(lengths):
        expected[length:, sample] = 0
    before = frames.copy()
    assert np.array_equal(unpacked(without_padding(form(frames), lengths)), expected)
    assert np.array_equal(frames, before)
    assert np.array_equal(unpacked(without_padding(form(expected), lengths)), expected)


def test_inputs_without_padding_or_steps_stay_as_they_are() -> None:
    images, frames = np.ones((3, 1, 4, 4), np.uint8), np.ones((5, 3, 4), np.uint8)
    assert without_padding(images, np.array([1, 2, 3])) is images
    assert without_padding(frames, None) is frames
    assert without_padding(frames, np.array([5, 5, 5])) is frames


def test_frames_lie_channels_last() -> None:
    frames = PackedFrames.of(np.ones((3, 2, 4, 5, 6), np.uint8)).unpacked()
    assert np.moveaxis(frames, 2, -1).flags.c_contiguous


def test_other_forms_are_refused() -> None:
    with pytest.raises(ShapeError, match="hold 0 and 1, got 2"):
        PackedFrames.of(np.full((2, 1, 3), 2, np.uint8))
    with pytest.raises(ShapeError, match=r"frames are \[T, B, C, H, W\] or \[T, B, N\], got \(3, 4\)"):
        PackedFrames.of(np.zeros((3, 4), np.uint8))
    with pytest.raises(ShapeError, match="17 steps take 3 bytes, got 2"):
        PackedFrames(np.zeros((2, 1, 3), np.uint8), 17)
    for bits in (np.zeros((2, 1, 3)), np.zeros((2, 3), np.uint8), [[[0]]]):
        with pytest.raises(ShapeError, match="packed frames are uint8"):
            PackedFrames(bits, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.full((8, 2, 3), -1), "packed frames hold 0 and 1, got -1 to -1"),
        (np.full((8, 2, 3), 2), "packed frames hold 0 and 1, got 2 to 2"),
        (np.full((8, 2, 3), 0.5), "packed frames hold integers, got float64; convert them"),
    ],
)
def test_frames_that_are_no_bits_are_refused(frames: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        PackedFrames.of(frames)


def test_a_network_of_images_takes_none() -> None:
    network = NetworkSpec.parse("3", input_shape=(4,), outputs=2, coding="direct")
    with pytest.raises(ShapeError, match="packed frames are a sequence of steps"):
        check_inputs(network, PackedFrames(np.zeros((1, 2, 4), np.uint8), 5), 5)
